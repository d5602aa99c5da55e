//! Records what this node is about to begin, before it begins.
//!
//! The mark is on the disk before Patroni starts without a database, and goes when a whole one is there. So a node that
//! finds half a database knows whether it was at work on it itself; without the mark a folder that no server can use is
//! not half of a beginning but damage, and stays where it is.

use crate::files::{Doubt, NewFile, Presence, sync_folder};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

/// Where the mark is.
pub const BEGUN_PATH: &str = "/var/lib/pgha/begun.json";
/// More than any mark has.
const LONGEST: u64 = 4096;

/// What was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The cluster's first database.
    Bootstrap,
    /// A copy of the cluster's database.
    Clone,
}

/// The mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// What was begun.
    pub what: What,
    /// PostgreSQL's major version.
    pub version: u32,
    /// etcd's revision when it was allowed.
    pub revision: u64,
    /// When, in seconds since 1970.
    pub time: i64,
}

impl Begun {
    /// The mark at `path`.
    pub fn load(path: &Path) -> Presence<Begun> {
        Presence::of_text(path, LONGEST).and_then(|text| match serde_json::from_str(&text) {
            Ok(begun) => Presence::Present(begun),
            Err(error) => Presence::Unknown(Doubt::new(format!("reading {}: {error}", path.display()))),
        })
    }

    /// Writes it to the disk: it is there after a power cut.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        let mut new = NewFile::beside(path)?;
        let doing = || format!("writing {}", path.display());
        new.write_all(&serde_json::to_vec_pretty(self)?).with_context(doing)?;
        // Nothing in it is secret, and what Patroni runs after it has made a database reads it.
        new.file().set_permissions(fs::Permissions::from_mode(0o644)).with_context(doing)?;
        new.publish(path)
    }
}

/// Takes the mark away, if there is one: what was begun is done, or set aside.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_half_a_mark_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("begun.json");
        assert_eq!(Begun::load(&path), Presence::Absent);
        let begun = Begun { what: What::Clone, version: 17, revision: 9, time: 1_795_741_749 };
        begun.store(&path).unwrap();
        assert_eq!(Begun::load(&path), Presence::Present(begun));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&path, r#"{"what": "clone""#).unwrap();
        assert!(matches!(Begun::load(&path), Presence::Unknown(_)));
        forget(&path).unwrap();
        forget(&path).unwrap();
        assert_eq!(Begun::load(&path), Presence::Absent);
    }
}
