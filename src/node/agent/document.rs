//! Which cluster document is the newest: a counter in etcd.
//!
//! A document has no number of its own, and a node may come with an old one (a restored machine, user data of before). So
//! the members count the documents that they see, in the key `/pgha/<cluster>/document`, and change it by
//! compare-and-swap. A document that was followed by another is older, and its node removes nobody. One that was never seen
//! is taken for the newest by itself only if it names every member that etcd has: a document that would remove somebody is
//! the newest when a person says so, by `pgha-node init --changed`, and so is one that was seen before.

use super::{
    World,
    report::{REPORT_PATH, Report},
};
use crate::{
    error::UserError,
    etcd::{Client, Compare, Member, Op},
    log,
    model::{ClusterSpec, Node, scope::client_url},
    node::{join::is_named, lock, peers::TlsCredentials, promise},
};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How many earlier documents are known.
const HISTORY: usize = 100;
/// How long etcd may take to learn of a document that was given on purpose.
const DECLARED_WITHIN: Duration = Duration::from_secs(60);
/// Before it is told once more.
const PAUSE: Duration = Duration::from_secs(1);

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
    /// It was never counted.
    Unknown,
}

/// How a document has come to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// By a person who says that it is the newest.
    OnPurpose,
    /// It is there, and names every member of etcd.
    NamesAll,
    /// It is there, and does not name every member of etcd.
    LeavesOut,
}

impl Given {
    /// A document that is there, beside the members `listed`.
    pub fn found(spec: &ClusterSpec, listed: &[Member]) -> Given {
        let named = listed.iter().all(|member| is_named(spec, &member.name, &member.peer_urls));
        if named && !listed.is_empty() { Given::NamesAll } else { Given::LeavesOut }
    }
}

/// Where the document with this digest stands.
pub fn place(record: Option<&Record>, digest: &str) -> Place {
    let Some(record) = record else { return Place::Unknown };
    if record.digest == digest {
        return Place::Current;
    }
    match record.history.iter().rev().position(|earlier| earlier == digest) {
        Some(back) => {
            Place::Older { generation: record.generation.saturating_sub(back as u64 + 1), newest: record.generation }
        }
        None => Place::Unknown,
    }
}

/// Whether a document is counted as the newest from now on.
pub fn becomes_newest(place: Place, given: Given) -> bool {
    match (place, given) {
        (Place::Current, _) => false,
        (Place::Older { .. } | Place::Unknown, Given::OnPurpose) | (Place::Unknown, Given::NamesAll) => true,
        (Place::Older { .. }, Given::NamesAll | Given::LeavesOut) | (Place::Unknown, Given::LeavesOut) => false,
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

fn key(spec: &ClusterSpec) -> String {
    format!("/pgha/{}/document", spec.cluster)
}

/// Looks where this node's document stands beside the members `listed`, and counts it if nobody would be removed by it.
///
/// # Errors
/// When etcd does not answer, or another node counts at the same moment.
pub fn count(world: &World, listed: &[Member]) -> Result<(Place, Record)> {
    let given = Given::found(&world.node.spec, listed);
    count_in(&world.etcd, &key(&world.node.spec), &world.document, given)
}

/// As [`count`], for the document `own` in the key `key`.
///
/// # Errors
/// As [`count`].
pub fn count_in(client: &Client, key: &str, own: &Own, given: Given) -> Result<(Place, Record)> {
    let (record, revision) = read(client, key)?;
    let place = place(record.as_ref(), &own.digest);
    if !becomes_newest(place, given) {
        return Ok((place, record.unwrap_or_default()));
    }
    let adopted = adopt(record.as_ref(), own);
    let bytes = key.as_bytes().to_vec();
    let compare = match revision {
        Some(revision) => Compare::ModRevision(bytes.clone(), revision),
        None => Compare::Missing(bytes.clone()),
    };
    let put = Op::Put(bytes, serde_json::to_vec(&adopted)?, 0);
    let done = client.txn(&[compare], &[put], &[]).context("storing the newest document in etcd")?;
    ensure!(done.succeeded, "another node stores its document in etcd at the same moment");
    log::info!("this node's document is the newest, generation {}", adopted.generation);
    Ok((Place::Current, adopted))
}

/// The record, and the revision that changed it last.
fn read(client: &Client, key: &str) -> Result<(Option<Record>, Option<u64>)> {
    let Some(found) = client.get(key).context("asking etcd for the newest document")? else { return Ok((None, None)) };
    let record = serde_json::from_slice(&found.value).with_context(|| format!("reading etcd's key {key}"))?;
    Ok((Some(record), Some(found.mod_revision)))
}

/// A client of the node's own etcd.
fn own_etcd(node: &Node) -> Result<Client> {
    Ok(TlsCredentials::of_the_node().etcd(vec![client_url(node.member())])?)
}

/// Refuses to take up a document that is older than the one that the node works with. One that the node works with already
/// goes on, and is told of; where etcd does not answer, nothing is known of it.
///
/// # Errors
/// A wrong request.
pub fn refuse_older(node: &Node) -> Result<()> {
    let own = Own::of(&node.spec)?;
    let known = Report::load(Path::new(REPORT_PATH)).document;
    if known.is_empty() || known == own.digest {
        return Ok(());
    }
    let found = own_etcd(node).and_then(|client| read(&client, &key(&node.spec)));
    match found {
        Ok((record, _)) => verify_newer(record.as_ref(), &own).map_err(Into::into),
        Err(error) => {
            log::warning!("whether the document is the newest is not known: {error:#}");
            Ok(())
        }
    }
}

fn verify_newer(record: Option<&Record>, own: &Own) -> Result<(), UserError> {
    let (Place::Older { generation, newest }, Some(record)) = (place(record, &own.digest), record) else {
        return Ok(());
    };
    Err(UserError::usage(format!(
        "the document is generation {generation} of the cluster's, and generation {newest} is the newest (members {}): it is \
         not taken up",
        record.members.join(", ")
    ))
    .hint("give this node the newest document. If this one is to be the newest from now on: pgha-node init --changed"))
}

/// Tells etcd, which serves, that the node's document is the newest: a person has given it on purpose.
///
/// # Errors
/// When etcd does not take it within a minute.
pub fn declare_newest(node: &Node) -> Result<()> {
    let own = Own::of(&node.spec)?;
    let client = own_etcd(node)?;
    let deadline = Instant::now() + DECLARED_WITHIN;
    loop {
        match count_in(&client, &key(&node.spec), &own, Given::OnPurpose) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context("making the document the cluster's newest"));
            }
            Err(_) => lock::rest(PAUSE)?,
        }
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
        assert_eq!(place(None, &one.digest), Place::Unknown);
        let first = adopt(None, &one);
        assert_eq!((first.generation, place(Some(&first), &one.digest)), (1, Place::Current));
        assert_eq!(place(Some(&first), &two.digest), Place::Unknown);
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
    fn only_a_person_makes_an_older_document_or_one_that_removes_somebody_the_newest() {
        let older = Place::Older { generation: 1, newest: 2 };
        let expected = |place, given| match given {
            Given::OnPurpose => place != Place::Current,
            Given::NamesAll => place == Place::Unknown,
            Given::LeavesOut => false,
        };
        for place in [Place::Current, older, Place::Unknown] {
            for given in [Given::OnPurpose, Given::NamesAll, Given::LeavesOut] {
                assert_eq!(becomes_newest(place, given), expected(place, given), "{place:?} {given:?}");
            }
        }
        let spec = samples::three();
        let member =
            |number: u8| Member { peer_urls: vec![format!("https://10.0.0.1{number}:2380")], ..Member::default() };
        assert_eq!(Given::found(&spec, &[member(1), member(3)]), Given::NamesAll);
        assert_eq!(Given::found(&spec, &[member(1), member(4)]), Given::LeavesOut);
        assert_eq!(Given::found(&spec, &[]), Given::LeavesOut, "nobody knows whom it leaves out");
    }

    #[test]
    fn an_older_document_is_refused_with_the_way_out() {
        let [one, two] = [1, 2].map(document);
        let record = adopt(Some(&adopt(None, &one)), &two);
        assert!(verify_newer(Some(&record), &two).is_ok());
        assert!(verify_newer(Some(&record), &document(3)).is_ok());
        assert!(verify_newer(None, &one).is_ok());
        let problem = crate::error::report(&verify_newer(Some(&record), &one).unwrap_err().into());
        assert!(problem.contains("generation 1 of the cluster's, and generation 2 is the newest (members pg-1, pg-2)"));
        assert!(problem.ends_with("pgha-node init --changed"), "{problem}");
    }
}
