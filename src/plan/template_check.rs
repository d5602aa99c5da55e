//! Templates that are rendered at first boot, tried at build time, so that a missing key fails the build and not the
//! first boot of a node far away.

use super::Plan;
use crate::{
    error::UserError,
    model::{
        Node, samples,
        scope::{EtcdStart, Machine, Scope},
    },
    overlay::Writer,
    render::render,
};
use anyhow::{Context as _, Result};
use std::fs;

/// Renders every such template of `plan` for the first member of each sample cluster.
///
/// # Errors
/// A wrong request with the template's place when it names what nodes do not know.
pub fn render_all(plan: &Plan) -> Result<()> {
    let parameters = plan.parameters.clone().into_iter().collect();
    let scopes = samples::all().map(|spec| {
        Scope::new(&Node::new(spec.clone(), 0), &Machine::sample(), &EtcdStart::together(&spec), &parameters)
    });
    for file in plan.overlays.iter().flat_map(|overlay| &overlay.files) {
        if file.writer != Writer::Node {
            continue;
        }
        let text = fs::read_to_string(&file.source).with_context(|| format!("reading {}", file.source.display()))?;
        for scope in &scopes {
            render(&file.origin, &text, scope).map_err(|error| {
                UserError::usage(error.root_cause().to_string())
                    .hint("`pgha-image schema scope` prints the values that templates can use")
            })?;
        }
    }
    Ok(())
}
