//! Finds this machine in its cluster's document, and the image's version of PostgreSQL.

use super::{identity, machine, metadata};
use crate::model::{Manifest, Node};
use anyhow::{Context as _, Result};
use std::path::Path;

/// Reads the document and finds this machine in it.
///
/// # Errors
/// As [`find_with_warnings`].
pub fn find() -> Result<Node> {
    Ok(find_with_warnings()?.0)
}

/// The same, with doubts about the document.
///
/// # Errors
/// A wrong request when the document is missing, wrong, or names this machine twice; failed work when it does not name
/// it, which a network that comes up late can change.
pub fn find_with_warnings() -> Result<(Node, Vec<String>)> {
    let document = metadata::find(Path::new("/"))?;
    let (spec, warnings) = document.cluster()?;
    let host = machine::host_identity()?;
    match identity::identify(&spec, &host)? {
        Some(index) => Ok((Node::new(spec, index), warnings)),
        None => Err(identity::unknown_host(&spec, &host).into()),
    }
}

/// The major version of the image's PostgreSQL, if it has one.
///
/// # Errors
/// When the image names something else.
pub fn postgresql_version(manifest: &Manifest) -> Result<Option<u32>> {
    let Some(version) = manifest.parameters.get("postgres_version") else { return Ok(None) };
    let number = version.as_u64().and_then(|version| u32::try_from(version).ok());
    number.map(Some).with_context(|| format!("the image's `postgres_version` is {version}, which is not a version"))
}
