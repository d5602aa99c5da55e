//! Measures the store, and removes what was used least recently.

use super::{Store, open_lock};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// What a store holds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Number of blobs.
    pub blobs: u64,
    /// Their size in bytes.
    pub blob_bytes: u64,
    /// Number of cached results, by kind.
    pub actions: BTreeMap<String, u64>,
    /// Size of work in progress, in bytes.
    pub scratch_bytes: u64,
}

/// What garbage collection did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Number of removed objects.
    pub objects: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Size in bytes of what is left.
    pub kept_bytes: u64,
}

impl Store {
    /// Counts what the store holds.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for object in objects(&self.root().join("blobs"))? {
            usage.blobs += 1;
            usage.blob_bytes += object.size;
        }
        for kind in folders(&self.root().join("actions"))? {
            let name = kind.file_name().unwrap_or_default().to_string_lossy().into_owned();
            usage.actions.insert(name, objects(&kind)?.len() as u64);
        }
        usage.scratch_bytes = tree_size(&self.scratch_root());
        Ok(usage)
    }

    /// Removes what was not used for `max_age`, then the least recently used until `max_bytes` are left.
    ///
    /// Returns `None`, having done nothing, while another program works in the store.
    ///
    /// # Errors
    /// When an object cannot be removed.
    pub fn collect(root: &Path, max_age: Option<Duration>, max_bytes: Option<u64>) -> Result<Option<Collected>> {
        let guard = open_lock(&root.join("in-use"))?;
        if guard.try_lock().is_err() {
            return Ok(None);
        }
        let mut all = objects(&root.join("blobs"))?;
        for kind in folders(&root.join("actions"))? {
            all.extend(objects(&kind)?);
        }
        let locks = objects(&root.join("locks"))?;
        all.sort_by_key(|object| object.used);
        let mut total: u64 = all.iter().map(|object| object.size).sum();
        let now = SystemTime::now();
        let mut collected = Collected::default();
        for object in all {
            let too_old = max_age.is_some_and(|age| now.duration_since(object.used).is_ok_and(|unused| unused > age));
            if !too_old && max_bytes.is_none_or(|limit| total <= limit) {
                continue;
            }
            fs::remove_file(&object.path).with_context(|| format!("removing {}", object.path.display()))?;
            total -= object.size;
            collected.objects += 1;
            collected.bytes += object.size;
        }
        for lock in locks {
            fs::remove_file(&lock.path).with_context(|| format!("removing {}", lock.path.display()))?;
        }
        collected.kept_bytes = total;
        Ok(Some(collected))
    }
}

struct Object {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

fn objects(folder: &Path) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        // Another program removed it after it was listed.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            objects.push(Object { path: entry.path(), size: metadata.len(), used });
        }
    }
    Ok(objects)
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn tree_size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => tree_size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
