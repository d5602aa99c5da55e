//! What was applied, kept on disk: it survives a crash between the file's replacement and the reload.

use crate::files::NewFile;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

/// What was applied last to a resource's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format.
    pub schema: u32,
    /// The rendered file.
    pub dest: PathBuf,
    /// SHA-256 of its content, in hexadecimal.
    pub content: String,
    /// The store's revision that it was rendered from.
    pub revision: u64,
    /// Which store that was.
    pub cluster: u64,
    /// How many items it was rendered from.
    pub items: usize,
    /// Whether its reader has not been reloaded yet.
    pub reload_owed: bool,
}

/// Where the record of one resource is kept, with a copy of its last good content.
#[derive(Debug)]
pub struct StateFile {
    record: PathBuf,
    good: PathBuf,
}

impl StateFile {
    /// The keeper of the resource file `resource` in `folder`.
    pub fn new(folder: &Path, resource: &Path) -> StateFile {
        let name = resource.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // Resources of equal names may lie in several folders.
        let id = &hash(resource.as_os_str().as_encoded_bytes())[..12];
        StateFile { record: folder.join(format!("{name}-{id}.json")), good: folder.join(format!("{name}-{id}.good")) }
    }

    /// The record; nothing if there is none, or none that can be read.
    pub fn load(&self) -> Option<Record> {
        let text = fs::read_to_string(&self.record).ok()?;
        serde_json::from_str(&text).ok().filter(|record: &Record| record.schema == 1)
    }

    /// Keeps `record`, durably.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, record: &Record) -> Result<()> {
        write(&self.record, &serde_json::to_vec(record)?).context("keeping what was applied")
    }

    /// Keeps content that its reader has accepted.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save_good(&self, content: &[u8]) -> Result<()> {
        if fs::read(&self.good).is_ok_and(|kept| kept == content) {
            return Ok(());
        }
        write(&self.good, content).context("keeping the last good content")
    }

    /// The content that was kept last.
    pub fn load_good(&self) -> Option<Vec<u8>> {
        fs::read(&self.good).ok()
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    }
    let mut file = NewFile::beside(path)?;
    file.write_all(bytes).with_context(|| format!("writing {}", path.display()))?;
    file.publish(path)
}

/// SHA-256 in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let state_file = StateFile::new(&folder.path().join("state"), Path::new("/etc/confd/conf.d/haproxy.toml"));
        assert_eq!(state_file.load(), None);
        let record = Record {
            schema: 1,
            dest: "/etc/haproxy/haproxy.cfg".into(),
            content: hash(b"x"),
            revision: 7,
            cluster: u64::MAX,
            items: 3,
            reload_owed: true,
        };
        state_file.save(&record).unwrap();
        assert_eq!(state_file.load(), Some(record));
        fs::write(&state_file.record, "{\"schema\":1").unwrap();
        assert_eq!(state_file.load(), None);
        state_file.save_good(b"good").unwrap();
        assert_eq!(state_file.load_good().as_deref(), Some(&b"good"[..]));
        let other = StateFile::new(folder.path(), Path::new("/etc/confd/conf.d/sub/haproxy.toml"));
        assert_ne!(other.record.file_name(), state_file.record.file_name());
    }
}
