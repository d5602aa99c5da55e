//! Which packages to install so that all that are requested work (Debian policy 7).
//!
//! Two steps. The first walks the dependencies in apt's order and makes apt's choices, so that what comes out is what
//! `apt-get install` would have chosen on an empty system; like apt's own walk it never goes back on a choice, and may
//! end in a contradiction. The second is a complete solver (`resolvo`), which tries the walk's choices first: where they
//! hold it confirms them, where they do not it finds another way, or proves that there is none and says why.
//!
//! A request is solved as if nothing were installed yet, for one architecture. All versions of all indices take part;
//! the highest of each package is tried first.

mod explain;
mod sat;
mod universe;
mod walk;

use super::{
    depends::Dependency,
    index::{Index, Package},
};
use crate::error::UserError;
use anyhow::Result;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
};
use universe::{Id, Kind, Universe};

/// A request to the solver.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Names of packages, each with a version if need be: `postgresql-17 (>= 17.2)`.
    pub packages: Vec<String>,
    /// Names of packages that must not be installed.
    pub exclude: Vec<String>,
    /// Whether what packages recommend is installed too, where possible.
    pub recommends: bool,
    /// Whether the essential packages are left out; they belong to every system, but not to a test.
    pub without_essential: bool,
}

/// A package to install, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub package: Package,
    /// The number that its index was read with.
    pub origin: usize,
    /// Why it is there.
    pub reason: Reason,
}

/// Why a package is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It was requested.
    Requested,
    /// Every system has it.
    Essential,
    /// This package depends on it.
    NeededBy(String),
    /// This package recommends it.
    RecommendedBy(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Requested => f.write_str("requested"),
            Reason::Essential => f.write_str("essential"),
            Reason::NeededBy(name) => write!(f, "{name} depends on it"),
            Reason::RecommendedBy(name) => write!(f, "{name} recommends it"),
        }
    }
}

/// Chooses packages from `indices`, sorted by name.
///
/// # Errors
/// When a package is not known, or no set of packages satisfies the request; blames the request.
pub fn solve(indices: &[Index], request: &Request) -> Result<Vec<Choice>> {
    let mut universe = Universe::new(indices, &request.exclude);
    let requested = requested(&mut universe, request)?;
    let essential: Vec<Id> = if request.without_essential { Vec::new() } else { universe.essential().collect() };
    let mut roots = essential.clone();
    roots.extend(requested.iter().copied());

    let preferred = walk::walk(&universe, &roots, request.recommends);
    let solution = match sat::solve(&universe, &roots, &preferred) {
        Ok(solution) => solution,
        Err(reasons) => return Err(contradiction(&reasons)),
    };
    // Where the walk went wrong, what it recommends hangs on choices that were dropped: walk again from firm ground.
    let solution = if solution.iter().eq(&preferred) {
        solution
    } else {
        let firm = sat::solve(&universe, &roots, &[]).unwrap_or(solution);
        let mut ground = roots.clone();
        ground.extend(firm.iter().copied().filter(|id| !roots.contains(id)));
        let preferred = walk::walk(&universe, &ground, request.recommends);
        sat::solve(&universe, &roots, &preferred).unwrap_or(firm)
    };
    let solution = universe.reachable(&roots, &solution);
    describe(&universe, &requested, &essential, &solution)
}

/// The requested packages, with their versions decided.
fn requested(universe: &mut Universe<'_>, request: &Request) -> Result<Vec<Id>> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let mut found = Vec::new();
    for text in &request.packages {
        let wanted = Dependency::parse(text).map_err(|_| {
            UserError::usage(format!("`{text}` is not a package name")).hint("write `name` or `name (>= 1.2)`")
        })?;
        if request.exclude.iter().any(|name| name == wanted.name) {
            let hint = "take it off one of the two lists".to_owned();
            wrong.push((format!("`{}` is both requested and excluded", wanted.name), hint));
            continue;
        }
        match universe.request(&wanted) {
            Ok(id) if found.contains(&id) => {}
            Ok(id) => found.push(id),
            Err(reason) => wrong.push(reason),
        }
    }
    if wrong.is_empty() {
        return Ok(found);
    }
    let lines: Vec<String> = wrong.iter().map(|(line, _)| line.clone()).collect();
    let hints: BTreeSet<String> = wrong.into_iter().map(|(_, hint)| hint).collect();
    Err(UserError::usage(lines.join("\n")).hint(hints.into_iter().collect::<Vec<_>>().join("\n")).into())
}

fn contradiction(reasons: &[String]) -> anyhow::Error {
    UserError::usage(format!("no set of packages satisfies the request:\n  {}", reasons.join("\n  ")))
        .hint("drop one of the packages, exclude one, or add a source that has the missing version")
        .into()
}

/// Names the reason for each package: that of the first one met on the way from the roots.
fn describe(
    universe: &Universe<'_>,
    requested: &[Id],
    essential: &[Id],
    solution: &BTreeSet<Id>,
) -> Result<Vec<Choice>> {
    let mut reasons: HashMap<Id, Reason> = HashMap::new();
    let mut queue = VecDeque::new();
    for (roots, reason) in [(requested, Reason::Requested), (essential, Reason::Essential)] {
        for &id in roots {
            if reasons.insert(id, reason.clone()).is_none() {
                queue.push_back(id);
            }
        }
    }
    // All dependencies first, so that nothing is said to be only recommended that is needed.
    let mut later = VecDeque::new();
    while let Some((id, kinds)) = queue
        .pop_front()
        .map(|id| (id, &[Kind::Depends][..]))
        .or_else(|| later.pop_front().map(|id| (id, &[Kind::Recommends, Kind::Suggests][..])))
    {
        for group in universe.relations(id).groups.iter().filter(|group| kinds.contains(&group.kind)) {
            for target in group.alternatives.iter().flat_map(|alternative| universe.solutions(alternative)) {
                if solution.contains(&target) && !reasons.contains_key(&target) {
                    let by = universe.entry(id).name().to_owned();
                    let reason =
                        if group.kind == Kind::Depends { Reason::NeededBy(by) } else { Reason::RecommendedBy(by) };
                    reasons.insert(target, reason);
                    queue.push_back(target);
                }
            }
        }
        if kinds == [Kind::Depends] {
            later.push_back(id);
        }
    }
    let mut choices = Vec::with_capacity(solution.len());
    for &id in solution {
        let entry = universe.entry(id);
        let reason = reasons.remove(&id).unwrap_or(Reason::Requested);
        choices.push(Choice { package: entry.package()?, origin: entry.origin(), reason });
    }
    choices.sort_by(|a, b| a.package.name.cmp(&b.package.name));
    Ok(choices)
}

#[cfg(test)]
mod tests;
