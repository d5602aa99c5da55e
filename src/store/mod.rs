//! A content-addressed store: it keeps every expensive result under the digest of what the result was made from.
//!
//! ```text
//! STORE/CACHEDIR.TAG          backup programs leave the folder out
//! STORE/blobs/HEX             content, named by its own SHA-256
//! STORE/actions/KIND/HEX      JSON: the result of the action whose inputs have this digest
//! STORE/scratch/…             work in progress; removed by the next program that has the store to itself
//! STORE/in-use                locked shared by every program that works here, exclusively by garbage collection
//! STORE/locks/KIND-HEX        held while one program does work that others may need, too
//! ```
//!
//! Everything appears by rename, so a program killed at any moment leaves whole objects and scratch only. Nothing is
//! synced to the disk: after a power cut a blob may be damaged. A blob that does not match its name is removed and made
//! again. It is always safe to delete the whole folder.

#![deny(missing_docs)]

mod blob;
mod gc;

pub use blob::{BlobReader, BlobWriter};
pub use gc::{Collected, Usage};

use crate::{error::UserError, model::Digest};
use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tempfile::TempDir;

/// A store on disk; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
    /// Held shared as long as any clone lives, so that garbage collection takes nothing that is being used.
    in_use: Arc<File>,
}

/// What [`Store::action`] keeps: a result that may name blobs.
pub trait CachedResult: Serialize + DeserializeOwned {
    /// The folder below `actions/` for results of this kind.
    const KIND: &'static str;

    /// The blobs that the result needs.
    fn blobs(&self) -> Vec<Digest>;
}

/// The exclusive right to do one piece of work; released on drop.
#[derive(Debug)]
pub struct WorkLock(#[allow(dead_code, reason = "held for its lock")] File);

impl Store {
    /// Opens the store at `root`, makes it if it is not there, and removes what killed programs left.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn open(root: &Path) -> Result<Store> {
        for folder in ["blobs", "actions", "scratch", "locks"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("making the store's folder {}", folder.display()))?;
        }
        // https://bford.info/cachedir/
        let tag = root.join("CACHEDIR.TAG");
        if !tag.exists() {
            fs::write(&tag, "Signature: 8a477f597d28d172789f06886806bc55\n# Made by pgha-image; safe to delete.\n")
                .with_context(|| format!("writing {}", tag.display()))?;
        }
        let in_use = open_lock(&root.join("in-use"))?;
        if in_use.try_lock().is_ok() {
            // No other program works here, so what is in scratch was left by one that was killed.
            sweep(&root.join("scratch"));
            in_use.unlock().with_context(|| format!("unlocking the store {}", root.display()))?;
        }
        in_use.lock_shared().with_context(|| format!("locking the store {}", root.display()))?;
        let root = fs::canonicalize(root).with_context(|| format!("resolving the store {}", root.display()))?;
        Ok(Store { root: root.into(), in_use: Arc::new(in_use) })
    }

    /// The store's folder, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes work in progress if no other program works here: for a program that ends without dropping its values.
    /// `remove` is called with what this user may not remove directly, such as files of mapped ids. Returns whether
    /// nothing is left.
    pub fn abandon_scratch(&self, remove: impl Fn(&Path)) -> bool {
        // A program that is being killed holds its lock a moment longer.
        if self.in_use.try_lock().is_err() {
            return false;
        }
        let scratch = self.scratch_root();
        sweep(&scratch);
        let entries = fs::read_dir(&scratch).into_iter().flatten().flatten();
        entries.for_each(|entry| remove(&entry.path()));
        fs::read_dir(&scratch).map_or(true, |mut entries| entries.next().is_none())
    }

    /// Makes an empty folder for work in progress, which is removed on drop.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn scratch(&self, label: &str) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(&format!("{label}-"))
            .tempdir_in(self.scratch_root())
            .with_context(|| format!("making a folder in the store {}", self.root.display()))
    }

    /// The folder for work in progress, on the same file system as the blobs.
    pub fn scratch_root(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// The path of a blob's file, whether or not it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// A blob's size in bytes, or `None` if the store does not have it.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().map(|metadata| metadata.len())
    }

    /// Starts a new blob.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn write_blob(&self) -> Result<BlobWriter> {
        BlobWriter::new(self)
    }

    /// Keeps `bytes` as a blob.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.write_blob()?;
        io::Write::write_all(&mut writer, bytes).context("writing to the store")?;
        Ok(writer.finish()?.0)
    }

    /// Opens a blob to be read from its beginning, checked against its name as it is read. `None` if it is not there.
    ///
    /// # Errors
    /// When the file is there and cannot be opened.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<BlobReader>> {
        BlobReader::open(self, digest)
    }

    /// A whole blob in memory, checked. A blob that does not match its name is removed and counts as missing.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn get_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.blob_path(digest);
        match fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == *digest => {
                touch(&path);
                Ok(Some(bytes))
            }
            Ok(_) => {
                self.drop_blob(digest);
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Whether a blob is there and matches its name; removes it if it does not match.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn verify_blob(&self, digest: &Digest) -> Result<bool> {
        let Some(mut blob) = self.read_blob(digest)? else { return Ok(false) };
        match io::copy(&mut blob, &mut io::sink()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
            Err(error) => Err(error).with_context(|| format!("reading {}", self.blob_path(digest).display())),
        }
    }

    /// Removes a blob.
    pub fn drop_blob(&self, digest: &Digest) {
        let _ = fs::remove_file(self.blob_path(digest));
    }

    /// The result of the action whose inputs have the digest `key`; `None` if there is none, or if a blob of it is
    /// missing.
    pub fn action<T: CachedResult>(&self, key: &Digest) -> Option<T> {
        let path = self.action_path::<T>(key);
        // A record that cannot be read, or has another shape, counts as missing: the work is done again.
        let outcome: T = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let blobs = outcome.blobs();
        if blobs.iter().any(|blob| self.blob_size(blob).is_none()) {
            return None;
        }
        touch(&path);
        blobs.iter().for_each(|blob| touch(&self.blob_path(blob)));
        Some(outcome)
    }

    /// Keeps the result of the action whose inputs have the digest `key`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_action<T: CachedResult>(&self, key: &Digest, outcome: &T) -> Result<()> {
        let path = self.action_path::<T>(key);
        let folder = self.root.join("actions").join(T::KIND);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(self.scratch_root()).context("making a file in the store")?;
        serde_json::to_writer(&mut file, outcome).with_context(|| format!("writing {}", path.display()))?;
        file.persist(&path).with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    /// Removes the result of the action whose inputs have the digest `key`.
    pub fn drop_action<T: CachedResult>(&self, key: &Digest) {
        let _ = fs::remove_file(self.action_path::<T>(key));
    }

    /// Does `work` unless its result is cached. Of several programs that want it at once, one does it and the others
    /// wait.
    ///
    /// Returns the result and whether it was cached.
    ///
    /// # Errors
    /// What `work` fails with, and when the store cannot be written.
    pub fn memoise<T: CachedResult>(&self, key: &Digest, work: impl FnOnce() -> Result<T>) -> Result<(T, bool)> {
        if let Some(outcome) = self.action(key) {
            return Ok((outcome, true));
        }
        let _lock = self.lock(T::KIND, key)?;
        if let Some(outcome) = self.action(key) {
            return Ok((outcome, true));
        }
        let outcome = work()?;
        self.put_action(key, &outcome)?;
        Ok((outcome, false))
    }

    /// Waits for the exclusive right to do the work of `kind` on `key`.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn lock(&self, kind: &str, key: &Digest) -> Result<WorkLock> {
        let path = self.root.join("locks").join(format!("{kind}-{}", key.hex()));
        let file = open_lock(&path)?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(WorkLock(file))
    }

    fn action_path<T: CachedResult>(&self, key: &Digest) -> PathBuf {
        self.root.join("actions").join(T::KIND).join(key.hex())
    }
}

/// The error for a blob that a result of the store names, and that is gone or was damaged.
pub fn lost_blob(blob: &Digest) -> UserError {
    UserError::runtime(format!("the blob {blob} is missing from the store, or was damaged"))
        .hint("build again: what is missing is made again")
}

/// Opens a lock file, making it if needed.
fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening the lock {}", path.display()))
}

/// Empties the scratch folder as far as this user may. What is left does no harm.
fn sweep(scratch: &Path) {
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

/// Notes for garbage collection that a file was used. A failure does no harm.
fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Checks that `record`, a result as an earlier version kept it, is read, and written in the same way.
///
/// A record of another shape counts as missing, so all work of its kind would be done again after an upgrade. If that is
/// intended, change `record` in the test.
#[cfg(test)]
pub(crate) fn assert_still_read<T: CachedResult>(record: &str) {
    let read: T = serde_json::from_str(record).unwrap_or_else(|error| panic!("{} is not read: {error}", T::KIND));
    assert_eq!(serde_json::to_string(&read).unwrap(), record, "{}", T::KIND);
}

#[cfg(test)]
mod tests;
