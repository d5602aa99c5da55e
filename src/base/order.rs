//! The order in which packages are installed: what dpkg itself needs first, and as few runs of dpkg as Pre-Depends allow.

use super::Package;
use crate::{debian::depends, error::UserError};
use anyhow::{Context as _, Result};
use std::collections::{BTreeSet, HashMap};

/// One run of dpkg, on packages by their place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Round {
    /// `dpkg --unpack`
    Unpack(Vec<usize>),
    /// `dpkg --configure` of what others pre-depend on.
    Configure(Vec<usize>),
}

/// How a set of packages is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is installed first, all at once, into a root that has nothing.
    pub essential: Vec<usize>,
    /// What follows; after the last round, everything unpacked is configured.
    pub rounds: Vec<Round>,
}

impl Plan {
    /// All packages, in the order in which they are unpacked.
    pub fn unpacked(&self) -> impl Iterator<Item = usize> + '_ {
        let unpacked = self.rounds.iter().filter_map(|round| match round {
            Round::Unpack(packages) => Some(packages),
            Round::Configure(_) => None,
        });
        std::iter::once(&self.essential).chain(unpacked).flatten().copied()
    }
}

/// The installed size up to which packages are unpacked in one run, in KiB. Each run costs a look at everything that is
/// installed; the first ones should not wait for the last to be there.
const BATCH: u64 = 200 << 10;

/// Plans how `packages` are installed, into nothing or on a base.
///
/// # Errors
/// When there is nothing below and no package is essential, or when Pre-Depends go in a circle.
pub fn plan(packages: &[Package], into_nothing: bool) -> Result<Plan> {
    let graph = Graph::new(packages)?;
    let essential = if into_nothing { graph.essential()? } else { BTreeSet::new() };
    let mut rounds = Vec::new();
    for round in graph.rounds(&essential)? {
        match round {
            Round::Unpack(all) => rounds.extend(batches(packages, &all).into_iter().map(Round::Unpack)),
            configure @ Round::Configure(_) => rounds.push(configure),
        }
    }
    Ok(Plan { essential: essential.into_iter().collect(), rounds })
}

fn batches(packages: &[Package], all: &[usize]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &at in all {
        let size: u64 = field(&packages[at], "Installed-Size").parse().unwrap_or(0);
        match batches.last_mut() {
            Some(batch) if size <= room => batch.push(at),
            _ => {
                batches.push(vec![at]);
                room = BATCH;
            }
        }
        room = room.saturating_sub(size);
    }
    batches
}

/// The names that a package provides and those that it needs.
#[derive(Debug)]
struct Node<'a> {
    name: &'a str,
    provides: Vec<&'a str>,
    /// One inner list for each dependency: its alternatives.
    depends: Vec<Vec<&'a str>>,
    pre_depends: Vec<Vec<&'a str>>,
}

impl<'a> Node<'a> {
    fn new(package: &'a Package) -> Result<Node<'a>> {
        let name = field(package, "Package");
        let names = |of| names(field(package, of)).with_context(|| format!("reading the field {of} of `{name}`"));
        Ok(Node {
            name,
            provides: names("Provides")?.into_iter().flatten().collect(),
            depends: names("Depends")?,
            pre_depends: names("Pre-Depends")?,
        })
    }
}

/// The dependencies of a set of packages. The versions that they ask for were settled when the set was chosen.
#[derive(Debug)]
struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    /// Who is, or provides, a name.
    providers: HashMap<&'a str, Vec<usize>>,
    essential: Vec<usize>,
}

impl<'a> Graph<'a> {
    /// The dependencies of `packages`.
    fn new(packages: &'a [Package]) -> Result<Graph<'a>> {
        let nodes: Vec<Node> = packages.iter().map(Node::new).collect::<Result<_>>()?;
        let mut providers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, node) in nodes.iter().enumerate() {
            for name in std::iter::once(node.name).chain(node.provides.iter().copied()) {
                providers.entry(name).or_default().push(at);
            }
        }
        let is_essential = |package: &Package| field(package, "Essential").eq_ignore_ascii_case("yes");
        let essential = (0..packages.len()).filter(|&at| is_essential(&packages[at])).collect();
        Ok(Graph { nodes, providers, essential })
    }

    /// The packages without which dpkg does not run: the essential ones and all that they need.
    ///
    /// # Errors
    /// When there is no essential package.
    fn essential(&self) -> Result<BTreeSet<usize>> {
        if self.essential.is_empty() {
            return Err(UserError::usage("no package is essential: these packages are not a base system")
                .hint("a base needs at least base-files, dpkg and the other packages marked `Essential: yes`")
                .into());
        }
        Ok(self.closure(self.essential.iter().copied(), &BTreeSet::new()))
    }

    /// Those of `start`, and all that they need, that are not `there`.
    fn closure(&self, start: impl Iterator<Item = usize>, there: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut closure = BTreeSet::new();
        let mut next: Vec<usize> = start.filter(|at| !there.contains(at)).collect();
        while let Some(at) = next.pop() {
            if closure.insert(at) {
                let node = &self.nodes[at];
                let needed = node.depends.iter().chain(&node.pre_depends).flatten();
                next.extend(needed.flat_map(|name| self.who_is(name)).filter(|at| !there.contains(at)));
            }
        }
        closure
    }

    fn who_is(&self, name: &str) -> impl Iterator<Item = usize> + '_ {
        self.providers.get(name).into_iter().flatten().copied()
    }

    /// The runs that put in all packages but the `configured` ones; after the last, everything unpacked is to be
    /// configured.
    ///
    /// # Errors
    /// When Pre-Depends go in a circle.
    fn rounds(&self, configured: &BTreeSet<usize>) -> Result<Vec<Round>> {
        let mut configured = configured.clone();
        let mut unpacked = BTreeSet::new();
        let mut waiting: BTreeSet<usize> = (0..self.nodes.len()).filter(|at| !configured.contains(at)).collect();
        let mut rounds = Vec::new();
        while !waiting.is_empty() {
            let ready: Vec<usize> =
                waiting.iter().copied().filter(|&at| self.missing(at, &configured).is_empty()).collect();
            if !ready.is_empty() {
                waiting.retain(|at| !ready.contains(at));
                unpacked.extend(ready.iter().copied());
                rounds.push(Round::Unpack(ready));
                continue;
            }
            // What holds the waiting ones up and can be configured now: it is unpacked with all that it needs.
            let wanted: BTreeSet<usize> = waiting
                .iter()
                .flat_map(|&at| self.missing(at, &configured))
                .map(|at| self.closure([at].into_iter(), &configured))
                .filter(|closure| closure.is_subset(&unpacked))
                .flatten()
                .collect();
            if wanted.is_empty() {
                let names: Vec<&str> = waiting.iter().map(|&at| self.nodes[at].name).collect();
                return Err(UserError::runtime(format!(
                    "these packages pre-depend on each other: {}",
                    names.join(", ")
                ))
                .into());
            }
            configured.extend(wanted.iter().copied());
            rounds.push(Round::Configure(wanted.into_iter().collect()));
        }
        Ok(rounds)
    }

    /// The packages that must be configured before `at` can be unpacked.
    fn missing(&self, at: usize, configured: &BTreeSet<usize>) -> Vec<usize> {
        let mut missing = Vec::new();
        for alternatives in &self.nodes[at].pre_depends {
            let mut here =
                alternatives.iter().flat_map(|name| self.who_is(name)).filter(|&other| other != at).peekable();
            // What none of these packages is was there before.
            let Some(&first) = here.peek() else { continue };
            if !here.any(|other| configured.contains(&other)) {
                missing.push(first);
            }
        }
        missing
    }
}

/// Name, version and architecture of a package.
pub fn identity(package: &Package) -> (String, String, String) {
    let own = |name| field(package, name).to_owned();
    (own("Package"), own("Version"), own("Architecture"))
}

/// A field of a package's control file, empty if it is not there.
pub fn field<'a>(package: &'a Package, name: &str) -> &'a str {
    package.control.get(name).map_or("", |value| value.trim())
}

/// The names in a field such as `a (>= 1) | b:any, c`: the alternatives of each group.
fn names(field: &str) -> Result<Vec<Vec<&str>>> {
    depends::groups(field)
        .map(|group| Ok(depends::alternatives(group)?.into_iter().map(|dependency| dependency.name).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;
    use std::collections::BTreeMap;

    fn package(name: &str, fields: &[(&str, &str)]) -> Package {
        let control: BTreeMap<String, String> = std::iter::once(("Package", name))
            .chain(fields.iter().copied())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Package { original: Digest::of(name), control }
    }

    #[test]
    fn dpkg_comes_with_all_that_it_needs() {
        let packages = [
            package("app", &[("Depends", "libc6")]),
            package("dpkg", &[("Essential", "yes"), ("Depends", "tar (>= 1.28), libc6:any | libc7")]),
            package("libc6", &[("Depends", "libgcc-s1")]),
            package("gcc-base", &[("Provides", "libgcc-s1 (= 14)")]),
            package("tar", &[("Essential", "yes"), ("Pre-Depends", "libacl1")]),
        ];
        assert_eq!(Graph::new(&packages).unwrap().essential().unwrap(), [1, 2, 3, 4].into());
        assert!(Graph::new(&packages[..1]).unwrap().essential().is_err());
    }

    #[test]
    fn packages_are_unpacked_at_once_but_for_pre_depends() {
        let packages = [
            package("base", &[]),
            package("systemd", &[("Pre-Depends", "base"), ("Depends", "libsystemd")]),
            package("libsystemd", &[]),
            package("systemd-sysv", &[("Pre-Depends", "systemd (= 1)")]),
            package("app", &[("Depends", "systemd-sysv")]),
        ];
        assert_eq!(
            Graph::new(&packages).unwrap().rounds(&[0].into()).unwrap(),
            [Round::Unpack(vec![1, 2, 4]), Round::Configure(vec![1, 2]), Round::Unpack(vec![3])]
        );
    }

    #[test]
    fn a_virtual_or_alternative_pre_dependency_is_met_by_whoever_is_there() {
        let packages = [
            package("awk-user", &[("Pre-Depends", "gawk | awk, not-listed")]),
            package("mawk", &[("Provides", "awk")]),
        ];
        let graph = Graph::new(&packages).unwrap();
        assert_eq!(graph.rounds(&[1].into()).unwrap(), [Round::Unpack(vec![0])]);
        assert_eq!(
            graph.rounds(&BTreeSet::new()).unwrap(),
            [Round::Unpack(vec![1]), Round::Configure(vec![1]), Round::Unpack(vec![0])]
        );
    }

    #[test]
    fn a_large_round_is_split() {
        let packages = ["90000", "90000", "90000", "500000", "1"].map(|size| package("p", &[("Installed-Size", size)]));
        assert_eq!(batches(&packages, &[0, 1, 2, 3, 4]), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn a_circle_of_pre_depends_is_named() {
        let packages = [package("a", &[("Pre-Depends", "b")]), package("b", &[("Pre-Depends", "a")])];
        let error = Graph::new(&packages).unwrap().rounds(&BTreeSet::new()).unwrap_err();
        assert_eq!(error.to_string(), "these packages pre-depend on each other: a, b");
    }
}
