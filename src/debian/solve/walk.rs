//! The walk that makes apt's choices (apt 2 and 3, `apt-pkg/depcache.cc`, `MarkInstall`), on an empty system.
//!
//! Depth first, in the order of the fields. Of the alternatives of a dependency the first that can be installed is
//! taken, unless one of them is there already. A package is *firm* if it was asked for, or if something firm depends on
//! it and there is no other choice; what a firm package refuses is out for good, whereas others give way.

use super::universe::{Group, Id, Kind, Relations, Universe};
use crate::debian::depends::Dependency;
use std::collections::BTreeSet;

/// Dependencies nest less deep than this.
const MAX_DEPTH: usize = 3000;

struct Walk<'u, 'a> {
    universe: &'u Universe<'a>,
    recommends: bool,
    states: Vec<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    installed: bool,
    firm: bool,
    /// It turned out that it cannot be installed.
    out: bool,
}

/// The packages that apt would choose for `roots`; they may contradict each other.
pub(super) fn walk(universe: &Universe<'_>, roots: &[Id], recommends: bool) -> Vec<Id> {
    let mut walk = Walk { universe, recommends, states: vec![State::default(); universe.len()] };
    for &root in roots {
        *walk.state(root) = State { installed: true, firm: true, out: false };
    }
    for &root in roots {
        walk.install(root, true, 0);
    }
    let installed: BTreeSet<Id> = (0..universe.len() as Id).filter(|&id| walk.states[id as usize].installed).collect();
    universe.reachable(roots, &installed).into_iter().collect()
}

impl<'a> Walk<'_, 'a> {
    fn state(&mut self, id: Id) -> &mut State {
        &mut self.states[id as usize]
    }

    fn installed(&self, id: Id) -> bool {
        self.states[id as usize].installed
    }

    /// Installs a package with all it depends on; `asked` for those that were asked for, which stay whatever happens.
    fn install(&mut self, id: Id, asked: bool, depth: usize) -> bool {
        let State { installed, firm, out } = self.states[id as usize];
        if depth > MAX_DEPTH || out || (!asked && firm && !installed) {
            return false;
        }
        let relations = self.universe.relations(id);
        if !firm && installed && !self.broken(id, &relations) {
            return true;
        }
        if !relations.groups.iter().all(|group| group.kind != Kind::Depends || self.satisfiable(group)) {
            if !firm {
                *self.state(id) = State { installed: false, firm, out: true };
            }
            return false;
        }
        let gives_up = !firm && !asked;
        let wanted: Vec<&Group<'a>> =
            relations.groups.iter().filter(|group| self.matters(group) && (firm || !self.satisfied(group))).collect();
        let mut done = self.clear_away(id, &relations, firm, asked);
        if !done && gives_up {
            return false;
        }
        // Nothing that follows may put it out again.
        *self.state(id) = State { installed: true, firm: true, out };
        done &= self.install_wanted(&wanted, firm, asked, depth);
        self.state(id).firm = firm;
        if !done && gives_up {
            *self.state(id) = State { installed: false, firm, out: true };
            return false;
        }
        done
    }

    fn install_wanted(&mut self, wanted: &[&Group<'a>], firm: bool, asked: bool, depth: usize) -> bool {
        let mut done = true;
        for group in wanted {
            let needed = group.kind == Kind::Depends;
            let satisfied = if !self.satisfied(group) {
                self.install_one(group, firm && needed, depth)
            } else if firm && needed {
                self.make_firm(group, depth)
            } else {
                true
            };
            if !satisfied && needed {
                done = false;
                if !firm && !asked {
                    break;
                }
            }
        }
        done
    }

    fn install_one(&mut self, group: &Group<'a>, spread_firmness: bool, depth: usize) -> bool {
        let choices = self.choices(group, true);
        for &choice in &choices {
            if spread_firmness && choices.len() == 1 {
                if self.states[choice as usize].out {
                    continue;
                }
                self.state(choice).installed = true;
                self.state(choice).firm = true;
            }
            if self.install(choice, false, depth + 1) {
                return true;
            }
        }
        false
    }

    /// Makes the only choice for a dependency firm.
    fn make_firm(&mut self, group: &Group<'a>, depth: usize) -> bool {
        match self.choices(group, false)[..] {
            [only] if !self.states[only as usize].firm => {
                self.state(only).firm = true;
                self.install(only, false, depth + 1)
            }
            _ => true,
        }
    }

    /// What may be taken for a dependency, in apt's order if it is to be `ranked`.
    fn choices(&self, group: &Group<'a>, ranked: bool) -> Vec<Id> {
        let all = |alternative| {
            if ranked { self.universe.ranked(alternative) } else { self.universe.solutions(alternative) }
        };
        let mut choices: Vec<Id> = group.alternatives.iter().flat_map(all).collect();
        if !ranked {
            choices.sort_unstable();
        }
        choices.dedup();
        choices.retain(|&id| {
            let State { installed, firm, out } = self.states[id as usize];
            self.universe.is_candidate(id) && !out && (installed || !firm)
        });
        choices
    }

    /// Puts out what the package refuses. Whether it could.
    fn clear_away(&mut self, id: Id, relations: &Relations<'a>, firm: bool, asked: bool) -> bool {
        let mut done = true;
        for refusal in &relations.refused {
            for other in self.universe.refused(id, refusal) {
                if !self.universe.is_candidate(other) {
                    continue;
                }
                let state = self.state(other);
                if state.installed && state.firm {
                    done = false;
                    if !firm && !asked {
                        return false;
                    }
                } else {
                    state.installed = false;
                    if firm {
                        state.firm = true;
                        state.out = true;
                    }
                }
            }
        }
        done
    }

    fn matters(&self, group: &Group<'_>) -> bool {
        group.kind == Kind::Depends || (group.kind == Kind::Recommends && self.recommends)
    }

    fn any(&self, group: &Group<'_>, what: impl Fn(Id) -> bool) -> bool {
        group.alternatives.iter().flat_map(|alternative| self.universe.solutions(alternative)).any(what)
    }

    fn satisfied(&self, group: &Group<'_>) -> bool {
        self.any(group, |id| self.installed(id))
    }

    fn satisfiable(&self, group: &Group<'_>) -> bool {
        self.any(group, |id| self.installed(id) || (self.universe.is_candidate(id) && !self.states[id as usize].out))
    }

    fn broken(&self, id: Id, relations: &Relations<'a>) -> bool {
        let refuses = |refusal: &Dependency<'_>| {
            self.universe.refused(id, refusal).into_iter().any(|other| self.installed(other))
        };
        relations.groups.iter().any(|group| self.matters(group) && !self.satisfied(group))
            || relations.refused.iter().any(refuses)
    }
}
