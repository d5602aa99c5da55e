//! Databases that were being made when the power failed.
//!
//! Patroni takes the key `initialize`, with an empty value, before it makes the cluster's first database, and writes the
//! system's identifier into it when roles and databases are there. Nothing takes the key away if the node dies between
//! the two: all nodes then wait for ever for a database that nobody makes. And a node that dies while it clones keeps a
//! folder without `global/pg_control`, which Patroni neither starts nor removes.

use super::state::POSTGRESQL_DATA;
use crate::{
    etcd::{Client, Compare, KeyValue, Op, RangeRequest},
    log,
};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long nobody must have been at work on a database that was begun, before its key is taken away. Patroni tells that
/// it has begun within a second.
const ABANDONED_AFTER: Duration = Duration::from_secs(15);

/// Where the cluster's first database stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum First {
    /// Nobody has begun it, or etcd has forgotten all.
    Unknown,
    /// Somebody has begun it; the key's revision.
    Begun(u64),
    /// It is there.
    Made,
}

fn first(key: Option<&KeyValue>) -> First {
    match key {
        None => First::Unknown,
        Some(key) if key.value.is_empty() => First::Begun(key.mod_revision),
        Some(_) => First::Made,
    }
}

fn initialize_key(scope: &str) -> String {
    format!("/service/{scope}/initialize")
}

/// Before Patroni starts: removes a database of this node that was not finished, and lets the cluster's first one be
/// begun again if it was this node that had begun it.
///
/// # Errors
/// When etcd does not answer or a folder cannot be removed.
pub fn clear(client: &Client, scope: &str) -> Result<()> {
    let key = initialize_key(scope);
    let first = first(client.get(&key).context("asking etcd for the cluster's first database")?.as_ref());
    let folders = folders(Path::new(POSTGRESQL_DATA));
    for folder in folders.iter().filter(|folder| is_unfinished(folder, &first)) {
        log::warning!("removing {}, which was not finished when the power failed", folder.display());
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    if let First::Begun(revision) = first
        && !folders.is_empty()
    {
        give_up(client, key, revision)?;
    }
    Ok(())
}

/// The folders of databases that have something in them.
fn folders(root: &Path) -> Vec<PathBuf> {
    let versions = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("main"));
    folders.filter(|folder| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())).collect()
}

/// Whether a database is not whole: any, as long as the cluster's first one is not finished; one without its control
/// file, which `initdb` and `pg_basebackup` write last.
fn is_unfinished(folder: &Path, first: &First) -> bool {
    matches!(first, First::Begun(_)) || !folder.join("global/pg_control").exists()
}

fn give_up(client: &Client, key: String, revision: u64) -> Result<()> {
    let key = key.into_bytes();
    let gone = client
        .txn(&[Compare::ModRevision(key.clone(), revision)], &[Op::Delete(key)], &[])
        .context("letting the cluster's first database be made again")?;
    if gone.succeeded {
        log::warning!("the cluster's first database was begun and not finished: it is made again");
    }
    Ok(())
}

/// Looks, while Patroni is waited for, whether a database that was begun has been abandoned.
#[derive(Debug, Default)]
pub struct Watch {
    idle: Option<(u64, Instant)>,
}

/// What Patroni tells of a member.
#[derive(Debug, Deserialize)]
struct Member {
    #[serde(default)]
    state: String,
}

impl Watch {
    /// One look. What does not answer is looked at later.
    pub fn look(&mut self, client: &Client, scope: &str) {
        let found = abandoned(client, scope).unwrap_or_default();
        let Some(revision) = self.idle_for(found, Instant::now()) else { return };
        if let Err(error) = give_up(client, initialize_key(scope), revision) {
            log::info!("{error:#}");
        }
    }

    /// The revision to give up, when the same one has been found abandoned for long enough.
    fn idle_for(&mut self, found: Option<u64>, now: Instant) -> Option<u64> {
        self.idle = match (found, self.idle) {
            (None, _) => None,
            (Some(revision), Some((known, since))) if known == revision => Some((known, since)),
            (Some(revision), _) => Some((revision, now)),
        };
        self.idle.filter(|(_, since)| now.duration_since(*since) >= ABANDONED_AFTER).map(|(revision, _)| revision)
    }
}

/// The revision of the key of a database that was begun, if no member is at work on any.
fn abandoned(client: &Client, scope: &str) -> Result<Option<u64>> {
    let First::Begun(revision) = first(client.get(&initialize_key(scope))?.as_ref()) else { return Ok(None) };
    let members = client.range(&RangeRequest::prefix(format!("/service/{scope}/members/")))?;
    Ok(members.kvs.iter().all(|member| is_idle(&member.value)).then_some(revision))
}

fn is_idle(member: &[u8]) -> bool {
    // A member that cannot be understood may be at work.
    serde_json::from_slice::<Member>(member).is_ok_and(|member| member.state == "stopped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_goes() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("17/main");
        assert!(folders(root.path()).is_empty());
        fs::create_dir_all(&main).unwrap();
        assert!(folders(root.path()).is_empty(), "an empty folder is no database");
        fs::write(main.join("PG_VERSION"), "17\n").unwrap();
        assert_eq!(folders(root.path()), std::slice::from_ref(&main));
        assert!(is_unfinished(&main, &First::Made), "a clone that was cut off");
        fs::create_dir(main.join("global")).unwrap();
        fs::write(main.join("global/pg_control"), "").unwrap();
        assert!(!is_unfinished(&main, &First::Made));
        assert!(!is_unfinished(&main, &First::Unknown), "etcd may have lost everything; databases stay");
        assert!(is_unfinished(&main, &First::Begun(7)), "roles and databases may be missing");
    }

    #[test]
    fn an_empty_key_is_a_beginning() {
        let key = |value: &str| KeyValue { value: value.into(), mod_revision: 7, ..KeyValue::default() };
        assert_eq!(first(None), First::Unknown);
        assert_eq!(first(Some(&key(""))), First::Begun(7));
        assert_eq!(first(Some(&key("7711203459481801338"))), First::Made);
    }

    #[test]
    fn a_beginning_is_given_up_when_it_has_been_idle_for_long() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.idle_for(Some(7), after(0)), None);
        assert_eq!(watch.idle_for(Some(7), after(14)), None);
        assert_eq!(watch.idle_for(None, after(14)), None, "somebody is at work");
        assert_eq!(watch.idle_for(Some(7), after(16)), None);
        assert_eq!(watch.idle_for(Some(9), after(20)), None, "another beginning");
        assert_eq!(watch.idle_for(Some(9), after(35)), Some(9));
    }

    #[test]
    fn only_stopped_members_are_idle() {
        assert!(is_idle(br#"{"state": "stopped", "role": "uninitialized"}"#));
        assert!(!is_idle(br#"{"state": "initializing new cluster"}"#));
        assert!(!is_idle(b"nonsense"));
    }
}
