//! Which cluster document is the newest: a counter in etcd.
//!
//! A document has no number of its own, and a node may come with an old one (a restored machine, user data of before). So
//! the members count the documents that they see, in the key `/pgha/<cluster>/document`, and change it by
//! compare-and-swap. A document that was never seen is newer than all others; one that was seen and followed by another
//! is older, and its node removes nobody. A person who gives an older document on purpose says so:
//! `pgha-node init --changed`.

use super::World;
use crate::{
    etcd::{Client, Compare, Op},
    files::{NewFile, read_text},
    log,
    model::ClusterSpec,
    node::promise,
};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{fs, io::Write as _, path::Path};

/// Where it is kept that a person has given this node's document on purpose, until etcd knows it.
pub const CHANGED_PATH: &str = "/var/lib/pgha/changed";
/// How many earlier documents are known.
const HISTORY: usize = 100;

/// What etcd knows of the cluster's documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The number of the newest.
    pub generation: u64,
    /// Its digest.
    pub digest: String,
    /// The names of its members.
    pub members: Vec<String>,
    /// The digests of those before it, the latest last.
    pub history: Vec<String>,
}

/// Where a document stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the newest.
    Current,
    /// Another one came after it.
    Older {
        /// Its number.
        generation: u64,
        /// The newest one's number.
        newest: u64,
    },
    /// Nobody has seen it yet.
    Newer,
}

/// Where the document with this digest stands.
pub fn place(record: Option<&Record>, digest: &str) -> Place {
    let Some(record) = record else { return Place::Newer };
    if record.digest == digest {
        return Place::Current;
    }
    match record.history.iter().rev().position(|earlier| earlier == digest) {
        Some(back) => {
            Place::Older { generation: record.generation.saturating_sub(back as u64 + 1), newest: record.generation }
        }
        None => Place::Newer,
    }
}

/// The record in which the document `own` is the newest.
fn adopt(record: Option<&Record>, own: &Own) -> Record {
    let (digest, members) = (own.digest.clone(), own.members.clone());
    let mut adopted = Record { generation: 1, digest, members, history: Vec::new() };
    if let Some(record) = record {
        adopted.generation = record.generation + 1;
        adopted.history.clone_from(&record.history);
        adopted.history.push(record.digest.clone());
        let surplus = adopted.history.len().saturating_sub(HISTORY);
        adopted.history.drain(..surplus);
    }
    adopted
}

/// What is counted of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its digest.
    pub digest: String,
    /// The names of its members.
    pub members: Vec<String>,
}

impl Own {
    /// Of this document. The digest is that of what it says, however it is written, without secrets, of which even a
    /// digest would let somebody test guesses.
    ///
    /// # Errors
    /// When it holds what JSON cannot say.
    pub fn of(spec: &ClusterSpec) -> Result<Own> {
        Ok(Own {
            digest: promise::Document::of(spec)?.digest,
            members: spec.members.iter().map(|member| member.name.clone()).collect(),
        })
    }
}

/// Looks where this node's document stands, and counts it if it is new or was given on purpose.
///
/// # Errors
/// When etcd does not answer, or another node counts at the same moment.
pub fn count(world: &World) -> Result<(Place, Record)> {
    let changed = Path::new(CHANGED_PATH);
    let wanted = given_on_purpose(changed, &world.document.digest)?;
    let counted = count_in(&world.etcd, &world.key("document"), &world.document, wanted)?;
    if wanted {
        fs::remove_file(changed).with_context(|| format!("removing {CHANGED_PATH}"))?;
    }
    Ok(counted)
}

/// As [`count`], for the document `own` in the key `key`; `on_purpose` if a person has given it just now.
///
/// # Errors
/// As [`count`].
pub fn count_in(client: &Client, key: &str, own: &Own, on_purpose: bool) -> Result<(Place, Record)> {
    let found = client.get(key).context("asking etcd for the newest document")?;
    let record: Option<Record> = match &found {
        Some(found) => Some(serde_json::from_slice(&found.value).with_context(|| format!("reading etcd's key {key}"))?),
        None => None,
    };
    let place = place(record.as_ref(), &own.digest);
    let wanted = match place {
        Place::Newer => true,
        Place::Older { .. } => on_purpose,
        Place::Current => false,
    };
    if !wanted {
        return Ok((place, record.unwrap_or_default()));
    }
    let adopted = adopt(record.as_ref(), own);
    let bytes = key.as_bytes().to_vec();
    let compare = match &found {
        Some(found) => Compare::ModRevision(bytes.clone(), found.mod_revision),
        None => Compare::Missing(bytes.clone()),
    };
    let put = Op::Put(bytes, serde_json::to_vec(&adopted)?, 0);
    let done = client.txn(&[compare], &[put], &[]).context("telling etcd the newest document")?;
    ensure!(done.succeeded, "another node tells etcd its document at the same moment");
    log::info!("this node's document is the newest, generation {}", adopted.generation);
    Ok((Place::Current, adopted))
}

/// Keeps that a person has given the document of `spec` on purpose, until [`count`] has told etcd.
///
/// # Errors
/// When it cannot be written.
pub fn give_on_purpose(spec: &ClusterSpec) -> Result<()> {
    let path = Path::new(CHANGED_PATH);
    let mut new = NewFile::beside(path)?;
    new.write_all(Own::of(spec)?.digest.as_bytes()).with_context(|| format!("writing {CHANGED_PATH}"))?;
    new.publish(path)
}

/// Whether a person has given the document with this digest on purpose; an order for another document does not count.
fn given_on_purpose(path: &Path, digest: &str) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(read_text(path)?.trim() == digest),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Secret, samples};

    /// Documents that differ, by the number of their members.
    fn document(members: usize) -> Own {
        let mut spec = samples::five();
        spec.members.truncate(members);
        Own::of(&spec).unwrap()
    }

    #[test]
    fn documents_are_counted() {
        let [one, two, three] = [1, 2, 3].map(document);
        assert_eq!(place(None, &one.digest), Place::Newer);
        let first = adopt(None, &one);
        assert_eq!((first.generation, place(Some(&first), &one.digest)), (1, Place::Current));
        assert_eq!(place(Some(&first), &two.digest), Place::Newer);
        let third = adopt(Some(&adopt(Some(&first), &two)), &three);
        assert_eq!(third.members, ["pg-1", "pg-2", "pg-3"]);
        assert_eq!(place(Some(&third), &one.digest), Place::Older { generation: 1, newest: 3 });
        assert_eq!(place(Some(&third), &two.digest), Place::Older { generation: 2, newest: 3 });
        // Given again on purpose, it is the newest; its number is the last one that it had.
        let again = adopt(Some(&third), &one);
        assert_eq!(place(Some(&again), &one.digest), Place::Current);
        let after = adopt(Some(&again), &two);
        assert_eq!(place(Some(&after), &one.digest), Place::Older { generation: 4, newest: 5 });
    }

    #[test]
    fn the_history_has_an_end() {
        let mut record = adopt(None, &document(1));
        for round in 0..250 {
            record = adopt(Some(&record), &document(1 + round % 2));
        }
        assert_eq!((record.generation, record.history.len()), (251, HISTORY));
    }

    #[test]
    fn a_digest_is_that_of_what_a_document_says() {
        let digest = |spec: &ClusterSpec| Own::of(spec).unwrap().digest;
        let spec = samples::three();
        let mut rekeyed = spec.clone();
        rekeyed.secret = Secret::new("CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=");
        assert_eq!(digest(&spec), digest(&rekeyed));
        let mut moved = spec.clone();
        moved.members[2].address = "10.0.0.99".parse().unwrap();
        assert_ne!(digest(&spec), digest(&moved));
        assert_eq!(digest(&spec).len(), 64);
    }

    #[test]
    fn an_order_is_for_one_document() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("changed");
        assert!(!given_on_purpose(&path, "a").unwrap());
        fs::write(&path, "a\n").unwrap();
        assert!(given_on_purpose(&path, "a").unwrap());
        assert!(!given_on_purpose(&path, "b").unwrap());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("changed", &path).unwrap();
        assert!(given_on_purpose(&path, "a").is_err(), "unknown is not absent");
    }
}
