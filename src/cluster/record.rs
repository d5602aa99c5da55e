//! What is remembered of a cluster between two runs of the program.

use super::driver::{ClusterNetwork, DriverKind};
use crate::{
    document::Document,
    error::UserError,
    files::{private_folder, read_text, user_folder, write_private},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{fs, path::PathBuf};

/// The folder that has one folder for each cluster.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// A cluster that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this shape: 1.
    pub schema: u32,
    /// What runs its nodes.
    pub driver: DriverKind,
    /// What they are made of: an engine's image, or a file.
    pub image: String,
    /// The most memory that each may use, in bytes.
    pub memory: Option<u64>,
    /// Their network.
    #[serde(alias = "ground")]
    pub network: ClusterNetwork,
}

const DOCUMENT: &str = "cluster.yaml";
const RECORD: &str = "record.json";

impl StateDir {
    /// The user's own: `pgha-image/clusters` in `XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// A wrong request when the user has no such folder.
    pub fn of_the_user() -> Result<StateDir> {
        let folder = user_folder("XDG_STATE_HOME", ".local/state").ok_or_else(|| {
            UserError::usage("neither XDG_STATE_HOME nor HOME is set, so there is no place to remember clusters")
        })?;
        Ok(StateDir(folder.join("clusters")))
    }

    /// A state directory in `folder`.
    pub fn at(folder: PathBuf) -> StateDir {
        StateDir(folder)
    }

    /// The folder of the cluster `name`.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of all clusters.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            other => other.with_context(|| format!("reading {}", self.0.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", self.0.display()))?;
            if entry.path().join(RECORD).is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads the cluster `name`: its record and its document.
    ///
    /// # Errors
    /// A wrong request when there is none of that name.
    pub fn load(&self, name: &str) -> Result<(Record, Document)> {
        let folder = self.folder(name);
        if !folder.join(RECORD).is_file() {
            let known = self.names()?;
            let hint = if known.is_empty() {
                "make one: pgha-image cluster up".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            };
            return Err(UserError::usage(format!("there is no cluster `{name}`")).hint(hint).into());
        }
        let path = folder.join(RECORD);
        let record = serde_json::from_str(&read_text(&path)?).with_context(|| format!("reading {}", path.display()))?;
        let path = folder.join(DOCUMENT);
        let text = read_text(&path)?;
        Ok((record, Document::new(path.display().to_string(), text)))
    }

    /// Whether there is a cluster `name`.
    pub fn has(&self, name: &str) -> bool {
        self.folder(name).join(RECORD).is_file()
    }

    /// Remembers a cluster.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, record: &Record, document: &Document) -> Result<()> {
        private_folder(&self.folder(&record.network.cluster))?;
        self.put(&record.network.cluster, DOCUMENT, &document.text)?;
        // Last, as it is what says that the cluster is there.
        self.put(&record.network.cluster, RECORD, &serde_json::to_string_pretty(record)?).map(drop)
    }

    /// Writes a file of the cluster `name` that nobody else may read. Returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &str, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder(name).join(file);
        write_private(&path, text)?;
        Ok(path)
    }

    /// Forgets the cluster `name`.
    ///
    /// # Errors
    /// When its folder cannot be removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        let folder = self.folder(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("removing {}", folder.display())),
        }
    }
}
