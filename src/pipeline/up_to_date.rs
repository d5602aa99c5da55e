//! Records of finished builds: an unchanged build is not repeated.

use super::{Artifact, Format, KINDS, Target};
use crate::{
    base,
    model::Digest,
    plan::Plan,
    store::{CachedResult, Store},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Changes when the same plan gives other artifacts than before.
const VERSION: u32 = 2;

/// The key of a finished build: what it was made of, and where it was put.
#[derive(Debug)]
pub struct UpToDate(Digest);

/// What a finished build left in the output folder.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    artifacts: Vec<ArtifactRecord>,
}

/// An artifact when it was finished.
#[derive(Debug, Serialize, Deserialize)]
struct ArtifactRecord {
    kind: String,
    path: PathBuf,
    sha256: Digest,
    size: u64,
    stamp: FileStamp,
}

/// Changes when the file is written, replaced or touched.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileStamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl CachedResult for Record {
    const KIND: &'static str = "build";

    fn blobs(&self) -> Vec<Digest> {
        Vec::new()
    }
}

impl UpToDate {
    /// The key of building `plan` for `target`.
    ///
    /// # Errors
    /// When the output folder is not there.
    pub fn of(plan: &Plan, target: &Target) -> Result<UpToDate> {
        let folder = fs::canonicalize(&target.folder)
            .with_context(|| format!("resolving the folder {}", target.folder.display()))?;
        let formats: Vec<&Format> = target.formats.iter().collect();
        let key =
            (VERSION, base::ENGINE, env!("CARGO_PKG_VERSION"), plan.digest()?, formats, target.compression, folder);
        Ok(UpToDate(Digest::of_json(&key)?))
    }

    /// The artifacts, if this very build was finished before and they have not been touched since.
    pub fn find(&self, store: &Store) -> Option<Vec<Artifact>> {
        let record = store.action::<Record>(&self.0)?;
        record
            .artifacts
            .into_iter()
            .map(|seen| {
                let kind = KINDS.into_iter().find(|kind| *kind == seen.kind)?;
                let untouched = FileStamp::of(&seen.path).is_ok_and(|stamp| stamp == seen.stamp);
                untouched.then_some(Artifact { kind, path: seen.path, sha256: seen.sha256, size: seen.size })
            })
            .collect()
    }

    /// Notes that the build is finished.
    ///
    /// # Errors
    /// When an artifact is gone, or the store cannot be written.
    pub fn remember(&self, store: &Store, artifacts: &[Artifact]) -> Result<()> {
        let seen = artifacts.iter().map(|artifact| {
            let stamp = FileStamp::of(&artifact.path)?;
            let Artifact { kind, path, sha256, size } = artifact.clone();
            Ok(ArtifactRecord { kind: kind.to_owned(), path, sha256, size, stamp })
        });
        store.put_action(&self.0, &Record { artifacts: seen.collect::<Result<_>>()? })
    }
}

impl FileStamp {
    fn of(path: &Path) -> Result<FileStamp> {
        let metadata: Metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(FileStamp {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<Record>(
            r#"{"artifacts":[{"kind":"qcow2","path":"/out/demo-amd64.qcow2","sha256":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","size":196640,"stamp":{"inode":12,"length":196640,"modified":[1750000000,5],"changed":[1750000001,0]}}]}"#,
        );
    }
}
