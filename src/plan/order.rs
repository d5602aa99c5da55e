//! The order of overlays: each after those whose services start before its own.

use crate::{document::suggest, error::UserError, overlay::Overlay};
use std::collections::{BTreeMap, BTreeSet};

/// Sorts `overlays` so that each comes after those named in its `after`, and otherwise stays where the recipe has it.
///
/// # Errors
/// A wrong request when an overlay needs one that is not there, or when they wait for each other.
pub fn sort(overlays: Vec<Overlay>, recipe: &str) -> Result<Vec<Overlay>, UserError> {
    let names: BTreeSet<String> = overlays.iter().map(|overlay| overlay.name.clone()).collect();
    for overlay in &overlays {
        if let Some(missing) = overlay.needs.iter().find(|needed| !names.contains(*needed)) {
            let message = format!(
                "{}: the overlay needs `{missing}`, which the recipe `{recipe}` does not have",
                overlay.document.name
            );
            let hint = suggest(missing, names.iter().map(String::as_str), "the recipe has")
                .filter(|hint| hint.starts_with("did you mean"))
                .unwrap_or_else(|| format!("add `{missing}` to the recipe's overlays"));
            return Err(UserError::usage(message).hint(hint));
        }
    }
    let mut waiting: Vec<(Overlay, BTreeSet<String>)> = overlays
        .into_iter()
        .map(|overlay| {
            let after = overlay.after.iter().filter(|name| names.contains(*name)).cloned().collect();
            (overlay, after)
        })
        .collect();
    let mut sorted = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let Some(next) = waiting.iter().position(|(_, after)| after.is_empty()) else {
            let waits: BTreeMap<&str, &BTreeSet<String>> =
                waiting.iter().map(|(overlay, after)| (overlay.name.as_str(), after)).collect();
            return Err(UserError::usage(format!("overlays wait for each other: {}", circle(&waits)))
                .hint("remove one of them from the other's `after`"));
        };
        let (overlay, _) = waiting.remove(next);
        for (_, after) in &mut waiting {
            after.remove(&overlay.name);
        }
        sorted.push(overlay);
    }
    Ok(sorted)
}

/// One circle among overlays that all wait for another one.
fn circle(waits: &BTreeMap<&str, &BTreeSet<String>>) -> String {
    let mut path: Vec<&str> = Vec::new();
    let mut at = waits.keys().next().copied().unwrap_or_default();
    while !path.contains(&at) {
        path.push(at);
        at = waits[at].iter().map(String::as_str).find(|name| waits.contains_key(name)).unwrap_or_default();
    }
    path.push(at);
    let first = path.iter().position(|name| *name == at).unwrap_or_default();
    path[first..].join(" → ")
}
