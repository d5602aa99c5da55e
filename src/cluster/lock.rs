//! One call at a time changes a cluster: a lock in its folder.
//!
//! Other state folders do not see it. Between them the engine decides, which gives each address and each container's name
//! once (`docker.rs`).

use super::record::{LOCK, StateDir, is_plain};
use crate::{error::UserError, files::private_folder, progress::Progress};
use anyhow::{Context as _, Result};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The right to change one cluster of one state folder, until its last copy is dropped.
#[derive(Debug, Clone)]
pub struct Lock(Arc<Held>);

#[derive(Debug)]
struct Held {
    folder: PathBuf,
    file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tidy();
    }
}

impl Held {
    /// A folder that holds nothing but this lock is not a cluster's, and goes.
    fn tidy(&self) {
        let path = self.folder.join(LOCK);
        let only_the_lock = fs::read_dir(&self.folder)
            .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)));
        // Whoever waits for it finds that it has gone, and makes a new one, which is theirs.
        if only_the_lock && is_the_one_at(&self.file, &path).unwrap_or(false) {
            let _ = fs::remove_file(path);
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

impl Lock {
    /// Takes the lock of the cluster `name` for the verb `verb`; waits for whoever holds it, and says for whom.
    ///
    /// # Errors
    /// A wrong request when no cluster can have that name; when the folder cannot be written.
    pub fn take(state_dir: &StateDir, name: &str, verb: &str, progress: &Progress) -> Result<Lock> {
        if !is_plain(name) {
            return Err(UserError::usage(format!("no cluster can have the name `{name}`"))
                .hint("names are of lower-case letters, digits and hyphens")
                .into());
        }
        let folder = state_dir.folder(name);
        let taking = || format!("taking the lock of the cluster `{name}` in {}", folder.display());
        let mut told = false;
        loop {
            private_folder(&folder)?;
            let path = folder.join(LOCK);
            let mut file = match open(&path) {
                // Somebody has just removed the cluster with its folder.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.with_context(taking)?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    if !told {
                        progress.note(&format!("waiting for {}, which changes `{name}`", holder(&mut file)));
                        told = true;
                    }
                    wait(&file).with_context(taking)?;
                }
                Err(error) => return Err(error).with_context(taking),
            }
            if is_the_one_at(&file, &path).with_context(taking)? {
                let text = format!("`cluster {verb}` (process {})\n", std::process::id());
                file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).with_context(taking)?;
                return Ok(Lock(Arc::new(Held { folder, file })));
            }
        }
    }

    /// Takes the cluster's folder away if it holds nothing but the lock: for a program that ends without dropping its
    /// values.
    pub fn tidy(&self) {
        self.0.tidy();
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn wait(file: &File) -> Result<(), Errno> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Who holds the lock, as far as its text tells.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // Words for people only.
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    let _ = file.seek(SeekFrom::Start(0));
    match text.trim() {
        "" => "another call".to_owned(),
        text => text.to_owned(),
    }
}

/// Whether `file` still is what `path` names: a lock of a removed folder locks nothing.
fn is_the_one_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(now) => Ok((own.dev(), own.ino()) == (now.dev(), now.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Style;
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    #[test]
    fn one_at_a_time_also_while_the_folder_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let state_dir = StateDir::at(folder.path().to_owned());
                let inside = Arc::clone(&inside);
                thread::spawn(move || {
                    for _ in 0..50 {
                        let lock = Lock::take(&state_dir, "demo", "up", &Progress::new(Style::Silent)).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        if number % 2 == 0 {
                            state_dir.forget("demo").unwrap();
                        }
                        thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(lock);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_name_that_leads_elsewhere_has_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::at(folder.path().to_owned());
        assert!(Lock::take(&state_dir, "../x", "up", &Progress::new(Style::Silent)).is_err());
    }
}
