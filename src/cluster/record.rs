//! The record of a cluster, kept between runs of the program.

use super::{
    AUTHORITY,
    driver::{ClusterNetwork, DriverKind},
    qemu,
};
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
/// An image of machines for new ones, in the cluster's folder.
pub(super) const IMAGE: &str = "image";
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
        if !self.has(&record.network.cluster)? {
            self.keep_document(&record.network.cluster, document)?;
        }
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

    /// Keeps a document in the folder of the cluster `name` that is another than `document`, which is to replace it: the
    /// old one may be the last that has its cluster's secret. Returns where it is kept.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn keep_document(&self, name: &str, document: &Document) -> Result<Option<PathBuf>> {
        let folder = self.folder(name);
        if !is_there(&folder.join(DOCUMENT))? {
            return Ok(None);
        }
        let known = read_text(&folder.join(DOCUMENT))?;
        if known == document.text {
            return Ok(None);
        }
        let mut kept = format!("{DOCUMENT}.before");
        for number in 2.. {
            if !is_there(&folder.join(&kept))? {
                self.put(name, &kept, &known)?;
                break;
            }
            if read_text(&folder.join(&kept))? == known {
                break;
            }
            kept = format!("{DOCUMENT}.before-{number}");
        }
        Ok(Some(folder.join(kept)))
    }

    /// The document of a cluster `name` that is there without a record; whoever makes such a cluster keeps it.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn left_document(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.folder(name).join(DOCUMENT);
        Ok((is_plain(name) && !self.has(name)? && is_there(&path)?).then_some(path))
    }

    /// Forgets the cluster `name`: removes what this program has written of it to its folder. The lock stays, which
    /// whoever holds it removes, and so does what may be another cluster's: machines, which only their driver removes,
    /// and documents that were kept. Returns that.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn forget(&self, name: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder(name);
        let removing = || format!("removing {}", folder.display());
        // First, as it is what says that the cluster is there.
        unless_gone(fs::remove_file(folder.join(RECORD))).with_context(removing)?;
        for path in self.listed(name)?.0 {
            unless_gone(fs::remove_file(&path)).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(self.listed(name)?.1)
    }

    /// What stays in the folder of the cluster `name` when it is forgotten.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn strange(&self, name: &str) -> Result<Vec<PathBuf>> {
        Ok(self.listed(name)?.1)
    }

    /// What is in the folder of the cluster `name` besides the lock: its own files, and what is not known to be its own.
    fn listed(&self, name: &str) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let folder = self.folder(name);
        let reading = || format!("reading {}", folder.display());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Default::default()),
            other => other.with_context(reading)?,
        };
        let machines = is_there(&folder.join(qemu::FOLDER))?;
        let (mut own, mut strange) = (Vec::new(), Vec::new());
        for entry in entries {
            let entry = entry.with_context(reading)?;
            let name = entry.file_name();
            if name == LOCK {
                continue;
            }
            let is_folder = entry.file_type().with_context(reading)?.is_dir();
            let is_own = !is_folder && name.to_str().is_some_and(|name| is_own(name, machines));
            if is_own { &mut own } else { &mut strange }.push(entry.path());
        }
        strange.sort();
        Ok((own, strange))
    }
}

/// Whether a file of this name in a cluster's folder is the cluster's own. Where there are `machines`, their image is
/// theirs.
fn is_own(name: &str, machines: bool) -> bool {
    // A file that was being written when the program was cut off is hidden, and has an end that nobody knows.
    let written = |file: &str| name == file || name.strip_prefix('.').is_some_and(|name| begins(name, file));
    [RECORD, DOCUMENT, AUTHORITY].into_iter().any(written) || (name == IMAGE && !machines)
}

fn begins(name: &str, file: &str) -> bool {
    name.strip_prefix(file).is_some_and(|end| end.starts_with('.'))
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
    fn a_document_without_a_record_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::at(folder.path().to_owned());
        let own = state_dir.folder("demo");
        fs::create_dir(&own).unwrap();
        fs::write(own.join(DOCUMENT), "first\n").unwrap();
        assert_eq!(state_dir.left_document("demo").unwrap(), Some(own.join(DOCUMENT)));
        let record: Record = serde_json::from_str(OLD).unwrap();
        let store = |text: &str| state_dir.store(&record, &Document::new("demo", text)).unwrap();
        let read = |name: &str| fs::read_to_string(own.join(name)).ok();
        store("second\n");
        assert_eq!(read("cluster.yaml.before").as_deref(), Some("first\n"));
        assert_eq!((read(DOCUMENT).as_deref(), state_dir.left_document("demo").unwrap()), (Some("second\n"), None));
        store("third\n");
        assert_eq!(read("cluster.yaml.before-2"), None, "the cluster's own document has changed");
        fs::remove_file(own.join(RECORD)).unwrap();
        store("third\n");
        assert_eq!(read("cluster.yaml.before-2"), None);
        fs::remove_file(own.join(RECORD)).unwrap();
        store("fourth\n");
        assert_eq!(read("cluster.yaml.before").as_deref(), Some("first\n"));
        assert_eq!(read("cluster.yaml.before-2").as_deref(), Some("third\n"));
    }

    #[test]
    fn only_the_clusters_own_files_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::at(folder.path().to_owned());
        let own = state_dir.folder("demo");
        fs::create_dir_all(own.join("qemu/pg-1")).unwrap();
        fs::create_dir(own.join(".cluster.yaml.folder")).unwrap();
        let files = ["qemu/pg-1/disk.qcow2", "qemu/network.json", "cluster.yaml.before", "image", "notes.txt"];
        let gone = [RECORD, DOCUMENT, AUTHORITY, ".cluster.yaml.Xy12", ".record.json.a"];
        for file in files.iter().chain(&gone).chain(&[LOCK]) {
            fs::write(own.join(file), "text").unwrap();
        }
        let stays = [".cluster.yaml.folder", "cluster.yaml.before", "image", "notes.txt", "qemu"];
        let stays: Vec<PathBuf> = stays.iter().map(|name| own.join(name)).collect();
        assert_eq!(state_dir.strange("demo").unwrap(), stays);
        assert_eq!(state_dir.forget("demo").unwrap(), stays);
        assert!(files.iter().chain(&[LOCK]).all(|file| own.join(file).exists()));
        assert!(gone.iter().all(|file| !own.join(file).exists()));
        // Their driver has removed the machines.
        fs::remove_dir_all(own.join("qemu")).unwrap();
        state_dir.forget("demo").unwrap();
        assert!(!own.join("image").exists() && own.join("cluster.yaml.before").exists());
        assert_eq!(state_dir.forget("none").unwrap(), Vec::<PathBuf>::new());
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
