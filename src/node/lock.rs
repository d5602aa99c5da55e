//! One change of this node at a time: the lock `/run/pgha/lock`. Whoever waits for it reports for whom.
//!
//! The lock is `flock`'s, so that it ends with the process that holds it, however that ends; who holds it, and for what, is
//! written in the file for those who wait. A verb that waits for something outside for long (`init` waits for its peers)
//! lets others in while it rests, and starts over if one came in: what it had seen may be otherwise now.
//!
//! The lock belongs to the process, as flock's lock does: functions far below the verb rest by [`rest`].

use crate::{error::UserError, files::private_folder};
use anyhow::{Context as _, Result};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Where the lock is.
pub const LOCK_PATH: &str = "/run/pgha/lock";
/// How often who waits tries again.
const PAUSE: Duration = Duration::from_millis(200);

/// The lock of this process, while it holds it.
static HELD: Mutex<Option<Lock>> = Mutex::new(None);

/// Holds the node's lock until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held(());

impl Drop for Held {
    fn drop(&mut self) {
        *HELD.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Takes the node's lock for `verb`, such as `leave`, and waits for whoever holds it; `tell` is told who that is.
///
/// # Errors
/// When the file cannot be made or locked, or this process holds it already.
pub fn hold(verb: &str, tell: impl FnMut(&str)) -> Result<Held> {
    let mut lock = Lock::open(Path::new(LOCK_PATH), verb)?;
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    anyhow::ensure!(held.is_none(), "this process holds the lock {LOCK_PATH} already");
    lock.wait(tell).with_context(|| format!("taking the lock {LOCK_PATH}"))?;
    *held = Some(lock);
    Ok(Held(()))
}

/// The same, for who does not wait.
///
/// # Errors
/// As [`hold`]; also when somebody else holds it: who that is.
pub fn hold_now(verb: &str) -> Result<Held> {
    let mut lock = Lock::open(Path::new(LOCK_PATH), verb)?;
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    anyhow::ensure!(held.is_none(), "this process holds the lock {LOCK_PATH} already");
    if lock.try_lock()?.is_none() {
        let holder = lock.holder();
        return Err(UserError::runtime(format!("{holder} is at work on this node"))
            .hint("try again when it has ended")
            .into());
    }
    *held = Some(lock);
    Ok(Held(()))
}

/// Sleeps for `pause`. A process that holds the lock lets others in meanwhile.
///
/// # Errors
/// When somebody came in: what this process has seen of the node may be otherwise now, and it starts over.
pub fn rest(pause: Duration) -> Result<()> {
    match HELD.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        Some(lock) => lock.rest(pause),
        None => {
            thread::sleep(pause);
            Ok(())
        }
    }
}

/// The file, locked or not.
#[derive(Debug)]
struct Lock {
    file: File,
    words: String,
}

impl Lock {
    fn open(path: &Path, verb: &str) -> Result<Lock> {
        if let Some(folder) = path.parent() {
            let there = fs::symlink_metadata(folder).is_ok();
            private_folder(folder)?;
            if !there {
                // `status` reads its neighbours as anybody.
                fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
            }
        }
        // Nobody else may hold it: who can open it can lock it.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.with_context(|| format!("opening the lock {}", path.display()))?;
        Ok(Lock { file, words: format!("{} pgha-node {verb}", std::process::id()) })
    }

    /// Takes the lock if nobody holds it, and returns the words of who held it before.
    fn try_lock(&mut self) -> Result<Option<String>> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let before = self.last();
                self.file.set_len(0)?;
                self.file.rewind()?;
                self.file.write_all(self.words.as_bytes())?;
                Ok(Some(before))
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&mut self, mut tell: impl FnMut(&str)) -> Result<()> {
        let mut told = String::new();
        while self.try_lock()?.is_none() {
            let holder = self.holder();
            if holder != told {
                tell(&format!("waiting for {holder}"));
                told = holder;
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The words of who took it last.
    fn last(&self) -> String {
        let mut text = String::new();
        let read = (&self.file).rewind().and_then(|()| (&self.file).take(200).read_to_string(&mut text));
        read.map(|_| text).unwrap_or_default()
    }

    /// Who holds it, for a person.
    fn holder(&self) -> String {
        match self.last().split_once(' ') {
            Some((pid, verb)) => format!("`{verb}` (process {pid})"),
            None => "another pgha-node".to_owned(),
        }
    }

    fn rest(&mut self, pause: Duration) -> Result<()> {
        flock(&self.file, FlockOperation::Unlock)?;
        thread::sleep(pause);
        let last = loop {
            match self.try_lock()? {
                Some(last) => break last,
                None => thread::sleep(PAUSE),
            }
        };
        if last == self.words {
            return Ok(());
        }
        let verb = last.split_once(' ').map_or(last.as_str(), |(_, verb)| verb);
        Err(UserError::runtime(format!("`{verb}` has been at work on this node: its state is read again")).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(path: &Path, verb: &str) -> Lock {
        let mut lock = Lock::open(path, verb).unwrap();
        lock.wait(|_| {}).unwrap();
        lock
    }

    #[test]
    fn one_waits_for_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/lock");
        let first = take(&path, "init");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        let mut second = Lock::open(&path, "leave").unwrap();
        assert_eq!(second.try_lock().unwrap(), None);
        assert_eq!(second.holder(), format!("`pgha-node init` (process {})", std::process::id()));
        let waiting = thread::spawn(move || {
            let mut told = Vec::new();
            second.wait(|who| told.push(who.to_owned())).unwrap();
            (second, told)
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(first);
        let (second, told) = waiting.join().unwrap();
        assert_eq!(told, [format!("waiting for `pgha-node init` (process {})", std::process::id())]);
        assert_eq!(second.last(), format!("{} pgha-node leave", std::process::id()));
    }

    #[test]
    fn who_rests_knows_whether_somebody_came_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut init = take(&path, "init");
        init.rest(Duration::from_millis(1)).unwrap();
        let other = path.clone();
        let guest = thread::spawn(move || drop(take(&other, "claim")));
        thread::sleep(Duration::from_millis(20));
        let error = init.rest(Duration::from_millis(600)).unwrap_err().to_string();
        assert_eq!(error, "`pgha-node claim` has been at work on this node: its state is read again");
        guest.join().unwrap();
        init.rest(Duration::from_millis(1)).unwrap();
    }
}
