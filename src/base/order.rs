//! In which order packages are put in: what dpkg itself needs first, and as few runs of dpkg as Pre-Depends allow.

use crate::{debian::deb::ExpandedDeb, error::Fault};
use anyhow::Result;
use std::collections::{BTreeSet, HashMap};

/// One run of dpkg, on packages by their place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Round {
    /// `dpkg --unpack`
    Unpack(Vec<usize>),
    /// `dpkg --configure` of what others pre-depend on.
    Configure(Vec<usize>),
}

/// The names that a package stands for and those it needs.
#[derive(Debug)]
struct Node<'a> {
    name: &'a str,
    provides: Vec<&'a str>,
    /// One inner list for each dependency: its alternatives.
    depends: Vec<Vec<&'a str>>,
    pre_depends: Vec<Vec<&'a str>>,
}

/// The dependencies of a set of packages. The versions that they ask for were settled when the set was chosen.
#[derive(Debug)]
pub struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    /// Who is, or provides, a name.
    providers: HashMap<&'a str, Vec<usize>>,
    essential: Vec<usize>,
}

impl<'a> Graph<'a> {
    /// The dependencies of `packages`.
    pub fn new(packages: &'a [ExpandedDeb]) -> Graph<'a> {
        let nodes: Vec<Node> = packages
            .iter()
            .map(|package| Node {
                name: field(package, "Package"),
                provides: names(field(package, "Provides")).into_iter().flatten().collect(),
                depends: names(field(package, "Depends")),
                pre_depends: names(field(package, "Pre-Depends")),
            })
            .collect();
        let mut providers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, node) in nodes.iter().enumerate() {
            for name in std::iter::once(node.name).chain(node.provides.iter().copied()) {
                providers.entry(name).or_default().push(at);
            }
        }
        let is_essential = |package: &ExpandedDeb| field(package, "Essential").eq_ignore_ascii_case("yes");
        let essential = (0..packages.len()).filter(|&at| is_essential(&packages[at])).collect();
        Graph { nodes, providers, essential }
    }

    /// The packages without which dpkg does not run: the essential ones and all that they need.
    ///
    /// # Errors
    /// When there is no essential package.
    pub fn essential(&self) -> Result<BTreeSet<usize>> {
        if self.essential.is_empty() {
            return Err(Fault::request("no package is essential: these packages are no base system")
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
    pub fn rounds(&self, configured: &BTreeSet<usize>) -> Result<Vec<Round>> {
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
                return Err(
                    Fault::work(format!("these packages pre-depend on each other: {}", names.join(", "))).into()
                );
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
pub fn identity(package: &ExpandedDeb) -> (String, String, String) {
    let own = |name| field(package, name).to_owned();
    (own("Package"), own("Version"), own("Architecture"))
}

/// A field of a package's control file, empty if it is not there.
pub fn field<'a>(package: &'a ExpandedDeb, name: &str) -> &'a str {
    package.control.get(name).map_or("", |value| value.trim())
}

/// The names in a field such as `a (>= 1) | b:any, c`.
fn names(field: &str) -> Vec<Vec<&str>> {
    field.split(',').map(|group| group.split('|').filter_map(first_word).collect()).collect()
}

fn first_word(text: &str) -> Option<&str> {
    text.trim().split(|c: char| c.is_whitespace() || "(:[<".contains(c)).next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Digest;
    use std::collections::BTreeMap;

    fn package(name: &str, fields: &[(&str, &str)]) -> ExpandedDeb {
        let control: BTreeMap<String, String> = std::iter::once(("Package", name))
            .chain(fields.iter().copied())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        ExpandedDeb { original: Digest::of(name), expanded: Digest::of(name), size: 0, control, newest: 0 }
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
        assert_eq!(Graph::new(&packages).essential().unwrap(), [1, 2, 3, 4].into());
        assert!(Graph::new(&packages[..1]).essential().is_err());
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
            Graph::new(&packages).rounds(&[0].into()).unwrap(),
            [Round::Unpack(vec![1, 2, 4]), Round::Configure(vec![1, 2]), Round::Unpack(vec![3])]
        );
    }

    #[test]
    fn a_virtual_or_alternative_pre_dependency_is_met_by_whoever_is_there() {
        let packages = [
            package("awk-user", &[("Pre-Depends", "gawk | awk, not-listed")]),
            package("mawk", &[("Provides", "awk")]),
        ];
        let graph = Graph::new(&packages);
        assert_eq!(graph.rounds(&[1].into()).unwrap(), [Round::Unpack(vec![0])]);
        assert_eq!(
            graph.rounds(&BTreeSet::new()).unwrap(),
            [Round::Unpack(vec![1]), Round::Configure(vec![1]), Round::Unpack(vec![0])]
        );
    }

    #[test]
    fn a_circle_of_pre_depends_is_named() {
        let packages = [package("a", &[("Pre-Depends", "b")]), package("b", &[("Pre-Depends", "a")])];
        let error = Graph::new(&packages).rounds(&BTreeSet::new()).unwrap_err();
        assert_eq!(error.to_string(), "these packages pre-depend on each other: a, b");
    }
}
