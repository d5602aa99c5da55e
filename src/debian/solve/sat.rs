//! The complete solver: dependencies as `resolvo` sees them.
//!
//! A version set is a list of packages of one name. What provides a name is one alternative more, so that a dependency
//! is a union of version sets, in the order in which they are to be tried.

use super::{
    explain,
    universe::{Group, Id, Kind, Name, Universe},
};
use crate::debian::depends::Dependency;
use resolvo::{
    Candidates, Condition, ConditionId, ConditionalRequirement, DenseIndex as _, Dependencies, DependencyProvider,
    Interner, KnownDependencies, NameId, Problem, Requirement, SolvableId, Solver, SolverCache, StringId,
    UnsolvableOrCancelled, VersionSetId, VersionSetUnionId,
};
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    fmt::Display,
};

/// Finds packages that satisfy all of `roots` and everything among themselves, with as many of `preferred` as possible.
///
/// # Errors
/// Lines that say why there are none.
pub(super) fn solve(universe: &Universe<'_>, roots: &[Id], preferred: &[Id]) -> Result<BTreeSet<Id>, Vec<String>> {
    let provider = Provider { universe, preferred: preferred.iter().copied().collect(), sets: RefCell::default() };
    let requirements = roots.iter().map(|&root| provider.exactly(root).into()).collect::<Vec<ConditionalRequirement>>();
    let mut solver = Solver::new(provider);
    let problem = Problem::new().requirements(requirements).soft_requirements(preferred.iter().map(|&id| solvable(id)));
    match solver.solve(problem) {
        Ok(solution) => Ok(solution.into_iter().map(id_of).collect()),
        Err(UnsolvableOrCancelled::Unsolvable(conflict)) => Err(explain::explain(&conflict.graph(&solver), &solver)),
        Err(UnsolvableOrCancelled::Cancelled(_)) => Err(vec!["the search was given up".into()]),
    }
}

pub(super) struct Provider<'u, 'a> {
    universe: &'u Universe<'a>,
    preferred: BTreeSet<Id>,
    sets: RefCell<Sets>,
}

/// Everything that was given a number.
#[derive(Default)]
struct Sets {
    sets: Vec<VersionSet>,
    unions: Vec<Vec<VersionSetId>>,
    /// Dependencies met before, by their text.
    known: HashMap<String, Requirement>,
    /// Names that no package has, numbered after those that some have.
    missing: Vec<String>,
}

struct VersionSet {
    name: NameId,
    members: Vec<Id>,
    /// The dependency that it is part of.
    text: String,
}

impl<'u, 'a> Provider<'u, 'a> {
    pub(super) fn universe(&self) -> &'u Universe<'a> {
        self.universe
    }

    /// The dependency as it was written.
    pub(super) fn text(&self, requirement: Requirement) -> String {
        let sets = self.sets.borrow();
        let first = match requirement {
            Requirement::Single(set) => Some(set),
            Requirement::Union(union) => sets.unions[union.to_index()].first().copied(),
        };
        first.map_or_else(String::new, |set| sets.sets[set.to_index()].text.clone())
    }

    pub(super) fn set_text(&self, set: VersionSetId) -> String {
        self.sets.borrow().sets[set.to_index()].text.clone()
    }

    fn exactly(&self, id: Id) -> Requirement {
        let name = NameId::from_index(self.universe.name(id) as usize);
        let text = self.universe.entry(id).name().to_owned();
        self.sets.borrow_mut().add(name, vec![id], text).into()
    }

    fn requirement(&self, group: &Group<'a>) -> Requirement {
        if let Some(&known) = self.sets.borrow().known.get(group.text) {
            return known;
        }
        let mut ids: Vec<Id> =
            group.alternatives.iter().flat_map(|alternative| self.universe.ranked(alternative)).collect();
        ids.sort_by_key(|id| !self.preferred.contains(id));
        let mut by_name: Vec<(Name, Vec<Id>)> = Vec::new();
        for id in ids {
            let name = self.universe.name(id);
            match by_name.iter_mut().find(|(known, _)| *known == name) {
                Some((_, members)) if members.contains(&id) => {}
                Some((_, members)) => members.push(id),
                None => by_name.push((name, vec![id])),
            }
        }
        let mut sets = self.sets.borrow_mut();
        let mut made: Vec<VersionSetId> = by_name
            .into_iter()
            .map(|(name, members)| sets.add(NameId::from_index(name as usize), members, group.text.to_owned()))
            .collect();
        if made.is_empty() {
            let name = NameId::from_index(self.universe.names() + sets.missing.len());
            sets.missing.push(group.text.to_owned());
            made.push(sets.add(name, Vec::new(), group.text.to_owned()));
        }
        let requirement = match made[..] {
            [only] => only.into(),
            _ => {
                sets.unions.push(made);
                VersionSetUnionId::from_index(sets.unions.len() - 1).into()
            }
        };
        sets.known.insert(group.text.to_owned(), requirement);
        requirement
    }

    /// A refusal leaves, of each name that it touches, the packages that it does not touch.
    fn constraints(&self, id: Id, refusal: &Dependency<'a>) -> Vec<VersionSetId> {
        let refused = self.universe.refused(id, refusal);
        let names: BTreeSet<Name> = refused.iter().map(|&other| self.universe.name(other)).collect();
        let text = refusal.to_string();
        let mut sets = self.sets.borrow_mut();
        names
            .into_iter()
            .map(|name| {
                let members = self.universe.named(name).iter().copied().filter(|other| !refused.contains(other));
                sets.add(NameId::from_index(name as usize), members.collect(), text.clone())
            })
            .collect()
    }
}

impl Sets {
    fn add(&mut self, name: NameId, members: Vec<Id>, text: String) -> VersionSetId {
        self.sets.push(VersionSet { name, members, text });
        VersionSetId::from_index(self.sets.len() - 1)
    }
}

fn solvable(id: Id) -> SolvableId {
    SolvableId::from_index(id as usize)
}

pub(super) fn id_of(solvable: SolvableId) -> Id {
    solvable.to_index() as Id
}

impl Interner for Provider<'_, '_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        let entry = self.universe.entry(id_of(solvable));
        format!("{} {}", entry.name(), entry.version())
    }

    fn display_name(&self, name: NameId) -> impl Display + '_ {
        let number = name.to_index();
        match self.universe.named(number as Name).first() {
            Some(&id) => self.universe.entry(id).name().to_owned(),
            None => self.sets.borrow().missing[number - self.universe.names()].clone(),
        }
    }

    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        self.set_text(set)
    }

    fn display_string(&self, _string: StringId) -> impl Display + '_ {
        ""
    }

    fn version_set_name(&self, set: VersionSetId) -> NameId {
        self.sets.borrow().sets[set.to_index()].name
    }

    fn solvable_name(&self, solvable: SolvableId) -> NameId {
        NameId::from_index(self.universe.name(id_of(solvable)) as usize)
    }

    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.sets.borrow().unions[union.to_index()].clone().into_iter()
    }

    fn resolve_condition(&self, _condition: ConditionId) -> Condition {
        unreachable!("no requirement here has a condition")
    }
}

impl DependencyProvider for Provider<'_, '_> {
    async fn filter_candidates(&self, candidates: &[SolvableId], set: VersionSetId, inverse: bool) -> Vec<SolvableId> {
        let sets = self.sets.borrow();
        let members = &sets.sets[set.to_index()].members;
        candidates.iter().copied().filter(|&candidate| members.contains(&id_of(candidate)) != inverse).collect()
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates> {
        let candidates = self.universe.named(name.to_index() as Name).iter().map(|&id| solvable(id)).collect();
        Some(Candidates { candidates, ..Candidates::default() })
    }

    async fn sort_candidates(&self, _solver: &SolverCache<Self>, solvables: &mut [SolvableId]) {
        let rank = |solvable: &SolvableId| {
            let id = id_of(*solvable);
            let place = self.universe.named(self.universe.name(id)).iter().position(|&other| other == id);
            (!self.preferred.contains(&id), place)
        };
        solvables.sort_by_key(rank);
    }

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let id = id_of(solvable);
        let relations = self.universe.relations(id);
        let mut known = KnownDependencies::default();
        for group in relations.groups.iter().filter(|group| group.kind == Kind::Depends) {
            known.requirements.push(self.requirement(group).into());
        }
        for refusal in &relations.refused {
            known.constrains.extend(self.constraints(id, refusal));
        }
        Dependencies::Known(known)
    }
}
