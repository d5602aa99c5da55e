//! Records what this node is about to begin, before it begins.
//!
//! The mark is on the disk before Patroni starts without a database, and goes when a whole one is there. So a node that
//! finds half a database knows whether it was at work on it itself; without the mark a folder that no server can use is
//! not half of a beginning but damage, and stays where it is.

use crate::{
    files::{Doubt, NewFile, Presence, sync_folder},
    model::Digest,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// Where the mark is.
pub const BEGUN_PATH: &str = "/var/lib/pgha/begun.json";
/// More than any mark has.
const LONGEST: u64 = 4096;
/// A manifest's end in bytes: the line with its checksum, and more.
const MANIFEST_END: u64 = 128;

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
    /// The database in whose place a copy is made, where Patroni removes that one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Replaced>,
}

/// A database that is to be replaced, by its backup manifest. `pg_basebackup` writes the manifest last, so that a copy
/// that has arrived as a whole has one, and another than what it replaces had. Nothing else counts: numbers and times of
/// files may change when a file system is mounted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replaced {
    /// The digest of the manifest's end, which holds its own checksum; nothing if the database had none.
    pub manifest: Option<Digest>,
}

impl Replaced {
    /// The database in `folder`.
    ///
    /// # Errors
    /// When it is not known which it is.
    pub fn of(folder: &Path) -> Result<Replaced> {
        Ok(Replaced { manifest: manifest(folder).known()? })
    }

    /// Whether what is in `folder` may be what is left of it.
    fn may_be_in(self, folder: &Path) -> bool {
        match manifest(folder) {
            Presence::Present(found) => self.manifest == Some(found),
            // Each file of it may be the first that goes, and a copy may be cut off too.
            Presence::Absent | Presence::Unknown(_) => true,
        }
    }
}

/// The digest of the end of the manifest in `folder` (PostgreSQL, «Backup Manifest Format»).
fn manifest(folder: &Path) -> Presence<Digest> {
    let path = folder.join("backup_manifest");
    let read = || -> io::Result<Digest> {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MANIFEST_END)))?;
        Digest::of_reader(file)
    };
    Presence::of(&path).and_then(|_| match read() {
        Ok(digest) => Presence::Present(digest),
        Err(error) => Presence::Unknown(Doubt::new(format!("reading {}: {error}", path.display()))),
    })
}

/// What a person is told of a database that may be half gone.
pub const HALF_GONE: &str = "a copy was to replace it and was cut off, so that half of it may be gone";

impl Begun {
    /// Whether what is in `folder`, where data of PostgreSQL `version` lie, may be half of what the copy that was begun
    /// replaces.
    pub fn may_be_half_gone(&self, version: u32, folder: &Path) -> bool {
        self.version == version && self.replaces.is_some_and(|replaced| replaced.may_be_in(folder))
    }

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

    /// What the mark asks of a database: a file, and no manifest.
    fn database(main: &Path) {
        fs::create_dir_all(main).unwrap();
        fs::write(main.join("PG_VERSION"), "17\n").unwrap();
    }

    #[test]
    fn a_mark_is_read_back_and_half_a_mark_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("begun.json");
        assert_eq!(Begun::load(&path), Presence::Absent);
        let begun = Begun { what: What::Clone, version: 17, revision: 9, time: 1_795_741_749, replaces: None };
        begun.store(&path).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("replaces"), "as earlier versions write it");
        assert_eq!(Begun::load(&path), Presence::Present(begun));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&path, r#"{"what": "clone""#).unwrap();
        assert!(matches!(Begun::load(&path), Presence::Unknown(_)));
        forget(&path).unwrap();
        forget(&path).unwrap();
        assert_eq!(Begun::load(&path), Presence::Absent);
    }

    #[test]
    fn what_a_copy_replaces_is_told_from_the_copy_by_its_manifest() {
        let root = tempfile::tempdir().unwrap();
        let (main, path) = (root.path().join("main"), root.path().join("begun.json"));
        let manifest = main.join("backup_manifest");
        let arrives = |checksum: &str| {
            database(&main);
            let end = format!("\"Manifest-Checksum\": \"{checksum}\"}}\n");
            fs::write(&manifest, format!("{{ \"Files\": [{}],\n{end}", " ".repeat(500))).unwrap();
        };
        let begin = || {
            let replaces = Some(Replaced::of(&main).unwrap());
            Begun { what: What::Clone, version: 17, revision: 9, time: 0, replaces }.store(&path).unwrap();
        };
        let half = |version| Begun::load(&path).known().unwrap().unwrap().may_be_half_gone(version, &main);
        // The cluster's first database is not a copy, a replica's is.
        database(&main);
        for is_copy in [false, true] {
            if is_copy {
                arrives("aa");
            }
            begin();
            assert!(half(17) && !half(16), "Patroni may not have begun, or may have removed half");
            // As after a restart on a file system that keeps neither numbers nor times.
            let kept = root.path().join("kept");
            assert!(std::process::Command::new("cp").arg("-r").args([&main, &kept]).status().unwrap().success());
            fs::remove_dir_all(&main).unwrap();
            fs::rename(&kept, &main).unwrap();
            assert!(half(17), "it has the same manifest still, or none");
            fs::remove_file(main.join("PG_VERSION")).unwrap();
            assert!(half(17), "another file was the first that went");
            let _ = fs::remove_file(&manifest);
            assert!(half(17), "it was the first that went");
            std::os::unix::fs::symlink("backup_manifest", &manifest).unwrap();
            assert!(half(17), "a doubt");
            fs::remove_dir_all(&main).unwrap();
            database(&main);
            assert!(half(17), "a copy without its manifest is not whole");
            arrives("bb");
            assert!(!half(17), "the copy is there");
        }
    }
}
