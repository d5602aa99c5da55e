//! The record of a cluster, kept between runs of the program.

use super::driver::{ClusterNetwork, DriverKind};
use crate::{
    document::Document,
    error::UserError,
    files::{private_folder, read_text, user_folder, write_private},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The folder that has one folder for each cluster.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// A cluster that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this shape: 2, or 1 if it was made before there were creation ids.
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
    /// Tells what is the cluster's from what only has the same name: drawn when it was made.
    #[serde(default)]
    pub creation: Option<String>,
    /// Whether the first record was lost, and this one rebuilt from what the engine had.
    #[serde(default)]
    pub adopted: bool,
}

impl Record {
    /// The version of the shape that this program writes.
    pub const SCHEMA: u32 = 2;
}

/// The document, in the cluster's folder.
pub(super) const DOCUMENT: &str = "cluster.yaml";
const RECORD: &str = "record.json";
/// The lock, in the cluster's folder. Its text says who holds it.
pub(super) const LOCK: &str = "lock";

impl StateDir {
    /// The user's own: `pgha-image/clusters` in `XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// A wrong request when the user has no such folder.
    pub fn of_the_user() -> Result<StateDir> {
        let folder = user_folder("XDG_STATE_HOME", ".local/state").ok_or_else(|| {
            UserError::usage(
                "neither XDG_STATE_HOME nor HOME is set, so there is no folder for the records of clusters",
            )
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

    /// The folder that has all clusters.
    pub fn place(&self) -> &Path {
        &self.0
    }

    /// The names of all clusters.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(names),
            other => other.with_context(|| format!("reading {}", self.0.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", self.0.display()))?;
            if let Ok(name) = entry.file_name().into_string()
                && self.has(&name)?
            {
                names.push(name);
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
        if !self.has(name)? {
            let known = self.names()?;
            let hint = if known.is_empty() {
                "make one: pgha-image cluster up".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            };
            return Err(UserError::usage(format!("there is no cluster `{name}`")).hint(hint).into());
        }
        let folder = self.folder(name);
        let path = folder.join(RECORD);
        let reading = || format!("reading {}", path.display());
        let record: Record = serde_json::from_str(&read_text(&path)?).with_context(reading)?;
        if record.schema > Record::SCHEMA {
            let (schema, known) = (record.schema, Record::SCHEMA);
            return Err(UserError::runtime(format!(
                "its schema {schema} is newer than {known}, the newest that is known here"
            ))
            .hint("use the version of this program that made the cluster, or a newer one"))
            .with_context(reading);
        }
        let path = folder.join(DOCUMENT);
        let text = read_text(&path)?;
        Ok((record, Document::new(path.display().to_string(), text)))
    }

    /// Whether there is a cluster `name`.
    ///
    /// # Errors
    /// When that cannot be told: then there may be one.
    pub fn has(&self, name: &str) -> Result<bool> {
        // Other names do not belong to clusters, and may lead out of the folder.
        Ok(is_plain(name) && is_there(&self.folder(name).join(RECORD))?)
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

    /// Forgets the cluster `name`: removes everything in its folder but the lock, which whoever holds it removes.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        let folder = self.folder(name);
        let removing = || format!("removing {}", folder.display());
        // First, as it is what says that the cluster is there.
        unless_gone(fs::remove_file(folder.join(RECORD))).with_context(removing)?;
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.with_context(removing)?,
        };
        for entry in entries {
            let entry = entry.with_context(removing)?;
            let path = entry.path();
            if entry.file_name() == LOCK {
                continue;
            }
            let is_folder = entry.file_type().with_context(removing)?.is_dir();
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            unless_gone(removed).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

fn unless_gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether `name` is the name of a folder in a state directory and of nothing else.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Whether there is something at `path`.
///
/// # Errors
/// When that cannot be told: an error is not an absence.
pub(super) fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking for {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"schema": 1, "driver": "docker", "image": "ha-postgres", "memory": null,
        "ground": {"cluster": "demo", "subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "vip": null}}"#;

    #[test]
    fn records_of_the_first_schema_open_and_newer_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::at(folder.path().to_owned());
        let own = state_dir.folder("demo");
        fs::create_dir(&own).unwrap();
        fs::write(own.join(DOCUMENT), "schema: 1\n").unwrap();
        assert!(!state_dir.has("demo").unwrap());
        fs::write(own.join(RECORD), OLD).unwrap();
        assert_eq!(state_dir.names().unwrap(), ["demo"]);
        let (record, _) = state_dir.load("demo").unwrap();
        assert_eq!((record.schema, record.creation.as_deref(), record.adopted), (1, None, false));
        fs::write(own.join(RECORD), OLD.replace(r#""schema": 1"#, r#""schema": 3"#)).unwrap();
        let error = state_dir.load("demo").unwrap_err();
        assert!(error.root_cause().to_string().contains("schema 3 is newer than 2"), "{error:#}");
    }

    #[test]
    fn names_that_lead_elsewhere_are_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(RECORD), OLD).unwrap();
        let state_dir = StateDir::at(folder.path().join("clusters"));
        fs::create_dir(folder.path().join("clusters")).unwrap();
        for name in ["..", "", "a/..", "Demo", "/etc"] {
            assert!(!state_dir.has(name).unwrap(), "{name}");
            assert!(state_dir.load(name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_error_is_not_an_absence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(is_there(&file).unwrap() && !is_there(&file.join("below")).unwrap());
        let long = folder.path().join("x".repeat(300));
        assert!(is_there(&long).is_err(), "no such name can be looked for");
    }
}
