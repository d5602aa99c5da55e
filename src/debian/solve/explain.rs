//! Why there is no solution, in lines that people can follow.

use super::{
    sat::{Provider, id_of},
    universe::Universe,
};
use crate::debian::depends;
use resolvo::{
    Solver,
    conflict::{ConflictCause, ConflictEdge, ConflictGraph, ConflictNode},
};

/// The chain of reasons, from what was requested to what cannot be.
pub(super) fn explain(graph: &ConflictGraph, solver: &Solver<Provider<'_, '_>>) -> Vec<String> {
    let provider = solver.provider();
    let universe = provider.universe();
    let nodes = graph.graph.raw_nodes();
    let name = |node: usize| match nodes[node].weight {
        ConflictNode::Solvable(solvable) => {
            let entry = universe.entry(id_of(solvable));
            Some(format!("{} {}", entry.name(), entry.version()))
        }
        _ => None,
    };
    let why = |node: usize| match nodes[node].weight {
        ConflictNode::Solvable(solvable) if universe.entry(id_of(solvable)).essential() => "essential",
        _ => "requested",
    };
    let mut lines: Vec<String> = Vec::new();
    let mut refusals: Vec<String> = Vec::new();
    let mut seen = vec![graph.root_node.index()];
    let mut next = 0;
    while let Some(&at) = seen.get(next) {
        next += 1;
        for edge in graph.graph.raw_edges().iter().filter(|edge| edge.source().index() == at) {
            let target = edge.target().index();
            let missing = matches!(nodes[target].weight, ConflictNode::UnresolvedDependency);
            let line = match (&edge.weight, name(at)) {
                (ConflictEdge::Requires(requirement), who) => {
                    let what = provider.text(*requirement);
                    let line = match who {
                        Some(who) => format!("{who} depends on {what}"),
                        None => format!("{} is {}", name(target).unwrap_or(what), why(target)),
                    };
                    if missing { format!("{line}, {}", instead(universe, &provider.text(*requirement))) } else { line }
                }
                (ConflictEdge::Conflict(cause), who) => {
                    let line = match (cause, who, name(target)) {
                        (ConflictCause::Constrains(set), Some(who), Some(other)) => {
                            let what = provider.set_text(*set);
                            let beside = other.split(' ').next() != Some(what.as_str());
                            if beside {
                                format!("{who} conflicts with {what}, which {other} is")
                            } else {
                                format!("{who} conflicts with {other}")
                            }
                        }
                        (_, Some(who), Some(other)) => format!("{who} and {other} cannot both be installed"),
                        _ => continue,
                    };
                    if !refusals.contains(&line) {
                        refusals.push(line);
                    }
                    continue;
                }
            };
            if !lines.contains(&line) {
                lines.push(line);
            }
            if !seen.contains(&target) {
                seen.push(target);
            }
        }
    }
    lines.extend(refusals);
    lines
}

/// What there is in the place of a dependency that nothing satisfies.
fn instead(universe: &Universe<'_>, group: &str) -> String {
    let names = depends::alternatives(group).unwrap_or_default();
    let there: Vec<String> = names.iter().flat_map(|wanted| universe.versions_of(wanted.name)).collect();
    if there.is_empty() { "which there is not".into() } else { format!("but there is only {}", there.join(", ")) }
}
