//! What this machine is in its cluster: the document, which of its members it is, and the image's PostgreSQL.

use super::{identity, machine, metadata};
use crate::model::{ClusterSpec, Manifest, Member};
use anyhow::{Context as _, Result};
use std::path::Path;

/// The document, and which of its members this machine is.
#[derive(Debug)]
pub struct Node {
    /// The cluster.
    pub spec: ClusterSpec,
    /// The index of this machine's member.
    pub own: usize,
    /// What is doubtful about the document.
    pub warnings: Vec<String>,
}

impl Node {
    /// Reads the document and finds this machine in it.
    ///
    /// # Errors
    /// A wrong request when the document is missing, wrong, or names this machine twice; failed work when it does not
    /// name it, which a network that comes up late can change.
    pub fn find() -> Result<Node> {
        let document = metadata::find(Path::new("/"))?;
        let (spec, warnings) = document.cluster()?;
        let host = machine::host_identity()?;
        match identity::identify(&spec, &host)? {
            Some(own) => Ok(Node { spec, own, warnings }),
            None => Err(identity::unknown_host(&spec, &host).into()),
        }
    }

    /// This machine's member.
    pub fn member(&self) -> &Member {
        &self.spec.members[self.own]
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
