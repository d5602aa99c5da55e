//! Seeds: what cloud-init reads on each node of a cluster, made from the cluster's document.
//!
//! A node's seed is three files in the form of cloud-init's data source NoCloud: `meta-data` (who it is), `user-data`
//! (the cluster's document, the same on every node) and `network-config` (its address). [`compose`] writes a Compose
//! file that starts the nodes as containers; [`preview`] shows the files that each node will write from its document.

pub mod compose;
mod network;
pub mod preview;
mod secret;

pub use network::Addressing;
pub use secret::{fresh_secret, with_secret};

use crate::{
    document::Document,
    files::{private_folder, write_private},
    model::{ClusterSpec, DOCUMENT_PATH, keys::Keys},
};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// What nodes get in addition to the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Public keys that may log in over SSH as the distribution's user.
    pub ssh_keys: Vec<String>,
    /// How nodes come to their addresses.
    pub addressing: Addressing,
}

/// A cluster's document, read and checked.
#[derive(Debug, Clone)]
pub struct Seeds {
    /// The document as its users wrote it, with its secret.
    pub document: Document,
    /// What it says.
    pub spec: ClusterSpec,
    /// What is doubtful about it.
    pub warnings: Vec<String>,
    /// What nodes get in addition to it.
    pub extras: Extras,
}

/// The files of one node's seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The node's name.
    pub node: String,
    /// File names and their contents.
    pub files: [(&'static str, String); 3],
}

impl Seeds {
    /// Checks `document`, which has its secret.
    ///
    /// # Errors
    /// A wrong request with everything that is wrong about it.
    pub fn new(document: Document, extras: Extras) -> Result<Seeds> {
        let (spec, warnings) = document.cluster()?;
        extras.addressing.check(&spec)?;
        Ok(Seeds { document, spec, warnings, extras })
    }

    /// The seed of the member `own` (an index).
    pub fn seed(&self, own: usize) -> Seed {
        let member = &self.spec.members[own];
        let identity = Keys::new(&self.spec).identity();
        // A node that is seeded for another cluster is another instance: cloud-init then does everything again.
        let id =
            member.instance_id.clone().unwrap_or_else(|| format!("{}-{}-{identity}", self.spec.cluster, member.name));
        let meta_data = format!("instance-id: {id}\nlocal-hostname: {}\n", member.name);
        let network = self.extras.addressing.network_config(&self.spec, member);
        Seed {
            node: member.name.clone(),
            files: [("meta-data", meta_data), ("user-data", self.user_data()), ("network-config", network)],
        }
    }

    /// The seeds of all members.
    pub fn all(&self) -> impl Iterator<Item = Seed> {
        (0..self.spec.members.len()).map(|own| self.seed(own))
    }

    /// The user data, the same for every node: a cloud-config that writes the document to its place.
    pub fn user_data(&self) -> String {
        let mut text = "#cloud-config\n".to_owned();
        if !self.extras.ssh_keys.is_empty() {
            text.push_str("ssh_authorized_keys:\n");
            for key in &self.extras.ssh_keys {
                // JSON is YAML.
                text.push_str(&format!("  - {}\n", serde_json::Value::from(key.trim())));
            }
        }
        text.push_str(&format!("write_files:\n  - path: {DOCUMENT_PATH}\n    permissions: '0600'\n    content: |\n"));
        for line in self.document.text.lines() {
            text.push_str(if line.is_empty() { "" } else { "      " });
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Writes every seed to a folder of its node's name in `folder`, and the document with its secret to
    /// `cluster.yaml` there. Returns the folders.
    ///
    /// # Errors
    /// When something cannot be written. Every file is whole, old or new.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        private_folder(folder)?;
        write_private(&folder.join("cluster.yaml"), &self.document.text)?;
        let mut folders = Vec::new();
        for seed in self.all() {
            let own = folder.join(&seed.node);
            private_folder(&own)?;
            for (name, text) in &seed.files {
                write_private(&own.join(name), text)?;
            }
            folders.push(own);
        }
        Ok(folders)
    }
}

#[cfg(test)]
mod tests;
