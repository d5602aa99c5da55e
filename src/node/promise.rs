//! The data that a node has, and its promises while a cluster forms: under which founder and incarnation its etcd may start.
//!
//! A node holds at most one promise, written to the disk before it is told. It never starts a new etcd but under the
//! promise that it holds, and once it has begun to it promises nothing any more. All members of a document are members of
//! the etcd that forms, also those that an order leaves out: two incarnations of one document can therefore not both have
//! a quorum, for the two quorums would share a node.
//!
//! Incarnations of different documents need more. A node gives a promise up only
//! * when its founder, asked after the promise was given, says that it does not found that incarnation any more, or
//! * when the request's document or order leaves that founder out, and so few of that incarnation's members are left
//!   outside that they are not a quorum of it. Such an incarnation stays in [`Promises::outlived`]: whatever the node
//!   promises later must keep to that rule too.

use super::etcd_data::{self, EtcdData, Ids};
use crate::model::{
    ClusterSpec, Digest,
    keys::Keys,
    scope::{EtcdStart, peer_url},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A member's name and where its etcd talks to its peers.
pub type Place = (String, String);

/// What forming and joining need to know of the cluster document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Document {
    /// The digest of the whole document, without its secrets.
    pub digest: String,
    /// The cluster's derived identity.
    pub identity: String,
    /// The members, in the document's order.
    pub members: Vec<Place>,
}

impl Document {
    /// What `spec` says.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(spec: &ClusterSpec) -> Result<Document> {
        // A secret serializes as stars, so that nothing can be guessed from the digest.
        let canonical = serde_json::to_vec(spec).context("writing the document as JSON")?;
        Ok(Document {
            digest: Digest::of(canonical).hex(),
            identity: Keys::new(spec).identity(),
            members: spec.members.iter().map(|member| (member.name.clone(), peer_url(member))).collect(),
        })
    }

    /// The node that forms the cluster: the first that is not left out.
    pub fn founder(&self, without: &BTreeSet<String>) -> Option<&str> {
        self.members.iter().map(|(name, _)| name.as_str()).find(|name| !without.contains(*name))
    }

    /// Whether the cluster can be formed without these members.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn allows(&self, without: &BTreeSet<String>) -> Result<(), String> {
        if let Some(stranger) = without.iter().find(|name| self.place(name).is_none()) {
            return Err(format!("the document has no member `{stranger}`"));
        }
        let (all, rest) = (self.members.len(), self.members.len() - without.len());
        if rest < quorum(all) {
            return Err(format!("{rest} of {all} members are not a majority"));
        }
        Ok(())
    }

    /// The member `name`.
    pub fn place(&self, name: &str) -> Option<&Place> {
        self.members.iter().find(|(known, _)| known == name)
    }
}

/// How many of `members` are a majority.
pub fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// Whether something is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Found {
    /// It is.
    Present,
    /// It is not: looking for it said so.
    Absent,
    /// Looking for it failed, and why.
    Unknown(String),
}

/// How this node's etcd member began, as it is kept on its disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Begun {
    /// How etcd starts.
    pub start: EtcdStart,
    /// The ids that it has then; `None` if an older version of this program has kept it.
    pub ids: Option<Ids>,
    /// Whether its etcd has ever answered, or may have: then it does not start so again without its data.
    pub seen: bool,
}

/// What a node knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Own {
    /// Its etcd's data.
    pub etcd: EtcdData,
    /// Whether its etcd runs and has never been part of a quorum.
    pub idle: bool,
    /// A database of any major version.
    pub database: Found,
    /// How its etcd member began.
    pub begun: Option<Begun>,
    /// Whether the mark of that beginning is where etcd's data lie.
    pub marked: bool,
    /// Whether every service has been ready once.
    pub complete: bool,
    /// What it has promised.
    pub promises: Promises,
}

impl Own {
    /// Whether it has never been a member of a cluster, as far as its disks say.
    ///
    /// # Errors
    /// Why it is not known to be so.
    pub fn fresh(&self) -> Result<(), String> {
        match (&self.etcd, &self.database) {
            (EtcdData::Unknown(why), _) => Err(format!("etcd's data cannot be read: {why}")),
            (_, Found::Unknown(why)) => Err(format!("whether there is a database cannot be known: {why}")),
            (EtcdData::Data(_) | EtcdData::Unborn, _) => Err("it has etcd's data".to_owned()),
            (EtcdData::Absent, _) if self.begun.is_some() => Err("it has begun to start etcd".to_owned()),
            (_, Found::Present) => Err("it has a database".to_owned()),
            _ if self.complete => Err("it was a member of the cluster".to_owned()),
            (EtcdData::Absent, Found::Absent) => Ok(()),
        }
    }

    /// Whether etcd may start without data as it was to start before: it has not answered yet, and its disk is still the one
    /// on which it was to begin.
    pub fn may_start(&self, begun: &Begun) -> bool {
        !begun.seen && self.marked
    }

    /// The cluster whose etcd it has data of, or has begun to start.
    pub fn cluster(&self) -> Option<u64> {
        match &self.etcd {
            EtcdData::Data(ids) => Some(ids.cluster),
            _ => self.begun.as_ref()?.ids.map(|ids| ids.cluster),
        }
    }
}

/// Under which founder and incarnation a node's etcd may start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The node that forms the cluster.
    pub founder: String,
    /// What the founder drew: 128 random bits in hexadecimal digits. No two are the same.
    pub incarnation: String,
    /// The digest of the document.
    pub document: String,
    /// The members that a person's order leaves out.
    pub without: BTreeSet<String>,
    /// etcd's token: the cluster's identity and the incarnation.
    pub token: String,
    /// The members that etcd starts with: all of the document.
    pub members: Vec<Place>,
}

impl Promise {
    /// The promise that `founder` asks for.
    pub fn new(document: &Document, founder: &str, incarnation: &str, without: &BTreeSet<String>) -> Promise {
        Promise {
            founder: founder.to_owned(),
            incarnation: incarnation.to_owned(),
            document: document.digest.clone(),
            without: without.clone(),
            token: format!("{}-{incarnation}", document.identity),
            members: document.members.clone(),
        }
    }

    /// How etcd starts under it.
    pub fn start(&self) -> EtcdStart {
        EtcdStart { existing: false, token: self.token.clone(), members: self.members.clone() }
    }

    /// The ids that etcd derives from it for the member `name`; `None` if it is not one.
    pub fn ids(&self, name: &str) -> Option<Ids> {
        etcd_data::ids(&self.token, &self.members, name)
    }

    /// The promise as it is told to others.
    pub fn told(&self) -> Told {
        Told { founder: self.founder.clone(), incarnation: self.incarnation.clone() }
    }
}

/// A promise as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Told {
    /// The founder.
    pub founder: String,
    /// Its incarnation.
    pub incarnation: String,
}

/// What a node has promised, as it is kept on its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promises {
    /// The promise that it holds.
    pub held: Option<Promise>,
    /// The members of incarnations whose promise it gave up without their founder's word.
    #[serde(default)]
    pub outlived: BTreeSet<Vec<Place>>,
}

impl Promises {
    /// The same without the promise that is held, whose founder does not found it any more.
    pub fn released(&self) -> Promises {
        Promises { held: None, outlived: self.outlived.clone() }
    }
}

/// What one node says to another before etcd runs: a question, and a founder's request for a promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub from: String,
    /// The digest of its document.
    pub document: String,
    /// The incarnation that it founds; `None` if it only asks how the other is.
    #[serde(default)]
    pub incarnation: Option<String>,
    /// Whom its order leaves out.
    #[serde(default)]
    pub without: BTreeSet<String>,
}

impl Request {
    /// What a node asks with what it holds: a founder's request if it has promised to found itself.
    pub fn of(document: &Document, me: &str, own: &Own) -> Request {
        let founding = own.promises.held.as_ref().filter(|held| held.founder == me && own.fresh().is_ok());
        Request {
            from: me.to_owned(),
            document: document.digest.clone(),
            incarnation: founding.map(|held| held.incarnation.clone()),
            without: founding.map(|held| held.without.clone()).unwrap_or_default(),
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The digest of its document.
    pub document: String,
    /// Why it is not fresh; `None` if it is.
    #[serde(default)]
    pub not_fresh: Option<String>,
    /// The promise that it holds, which is on its disk.
    #[serde(default)]
    pub promise: Option<Told>,
    /// The id of the cluster whose etcd it has data of or has begun to start.
    #[serde(default)]
    pub cluster: Option<u64>,
    /// Why it does not promise what was asked for.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// An answer, and what must be on the disk before it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The answer.
    pub answer: Answer,
    /// What must be written first; `None` if it is there already.
    pub store: Option<Promises>,
}

/// What the node `me` with `document` answers to `request`, and what it writes before it does.
///
/// `own` must not change between this decision and the write.
pub fn answer(document: &Document, me: &str, own: &Own, request: &Request) -> Reply {
    let asked = request.incarnation.is_some();
    let (promises, store, refusal) = match promise(document, me, own, request) {
        Ok(promises) if asked && promises != own.promises => (promises.clone(), Some(promises), None),
        Ok(_) => (own.promises.clone(), None, None),
        Err(why) => (own.promises.clone(), None, asked.then_some(why)),
    };
    Reply {
        answer: Answer {
            document: document.digest.clone(),
            not_fresh: own.fresh().err(),
            promise: promises.held.as_ref().map(Promise::told),
            cluster: own.cluster(),
            refusal,
        },
        store,
    }
}

/// What the node holds once it has promised what `request` asks for, or why it does not.
pub fn promise(document: &Document, me: &str, own: &Own, request: &Request) -> Result<Promises, String> {
    own.fresh()?;
    let Request { from, incarnation, without, .. } = request;
    let Some(incarnation) = incarnation else { return Err("nothing is asked for".to_owned()) };
    if request.document != document.digest {
        return Err(format!("its document is another than {from}'s"));
    }
    if without.contains(me) {
        return Err(format!("{from} has an order to form the cluster without it"));
    }
    document.allows(without)?;
    let founder = document.founder(without).unwrap_or_default();
    if founder != from {
        return Err(format!("not {from}, but {founder} forms the cluster"));
    }
    let taking: Vec<&Place> = document.members.iter().filter(|(name, _)| !without.contains(name)).collect();
    let wanted = Promise::new(document, from, incarnation, without);
    let mut outlived = own.promises.outlived.clone();
    match &own.promises.held {
        None => {}
        Some(held) if *held == wanted => return Ok(own.promises.clone()),
        // It has not begun, so that it can stop founding; nobody else can begin that incarnation.
        Some(held) if held.founder == me => {}
        Some(held) if !is_left_out(held, &taking) => {
            return Err(format!("it has promised {} to start under another incarnation", held.founder));
        }
        Some(held) => {
            outlived.insert(held.members.clone());
        }
    }
    match outlived.iter().find(|members| !cannot_form(members, &taking)) {
        None => Ok(Promises { held: Some(wanted), outlived }),
        Some(members) => Err(format!(
            "it has promised to form a cluster with {}, and enough of them may have done so: give the nodes that document \
             again, or replace this node",
            names(members)
        )),
    }
}

fn is_left_out(held: &Promise, taking: &[&Place]) -> bool {
    !taking.iter().any(|place| place.0 == held.founder && held.members.contains(place))
}

/// Whether `members` have no quorum without those of `taking`, who will all have promised something else.
fn cannot_form(members: &[Place], taking: &[&Place]) -> bool {
    members.iter().filter(|place| !taking.contains(place)).count() < quorum(members.len())
}

fn names(members: &[Place]) -> String {
    members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn document(members: &[u8]) -> Document {
        Document {
            digest: format!("document of {members:?}"),
            identity: "feed".into(),
            members: members.iter().map(|n| (format!("pg-{n}"), format!("https://10.0.0.1{n}:2380"))).collect(),
        }
    }

    fn own(held: Option<Promise>) -> Own {
        Own {
            etcd: EtcdData::Absent,
            idle: false,
            database: Found::Absent,
            begun: None,
            marked: true,
            complete: false,
            promises: Promises { held, outlived: BTreeSet::new() },
        }
    }

    fn request(document: &Document, from: &str, incarnation: &str, without: &[&str]) -> Request {
        Request {
            from: from.into(),
            document: document.digest.clone(),
            incarnation: Some(incarnation.into()),
            without: set(without),
        }
    }

    /// What pg-3 of three says to a request, with a promise of the same document that it holds.
    fn outcome(held: Option<(&str, &str, &[&str])>, from: &str, without: &[&str]) -> Result<(), String> {
        let document = document(&[1, 2, 3]);
        let held = held.map(|(founder, it, without)| Promise::new(&document, founder, it, &set(without)));
        let reply = answer(&document, "pg-3", &own(held), &request(&document, from, "new", without));
        match reply.answer.refusal {
            Some(why) => {
                assert_eq!(reply.store, None);
                Err(why)
            }
            None => {
                let told = Told { founder: from.into(), incarnation: "new".into() };
                assert_eq!(reply.answer.promise, Some(told));
                Ok(())
            }
        }
    }

    #[test]
    fn a_promise_is_given_to_the_founder_alone_and_once() {
        for held in [None, Some(("pg-1", "old", &[][..])), Some(("pg-2", "old", &["pg-1"])), Some(("pg-1", "new", &[]))]
        {
            for from in ["pg-1", "pg-2", "pg-3", "pg-4"] {
                for without in [&[][..], &["pg-1"], &["pg-2"], &["pg-3"], &["pg-1", "pg-2"], &["pg-4"]] {
                    let founder = match without {
                        [] | ["pg-2"] => from == "pg-1",
                        ["pg-1"] => from == "pg-2",
                        _ => false,
                    };
                    let free = match held {
                        None => true,
                        Some((founder, it, _)) => without.contains(&founder) || (it == "new" && without.is_empty()),
                    };
                    assert_eq!(outcome(held, from, without).is_ok(), founder && free, "{held:?} {from} {without:?}");
                }
            }
        }
    }

    #[test]
    fn a_node_that_is_not_fresh_promises_nothing() {
        let document = document(&[1, 2, 3]);
        let ids = Promise::new(&document, "pg-1", "old", &set(&[])).ids("pg-3").unwrap();
        let start = Promise::new(&document, "pg-1", "old", &set(&[])).start();
        for not_fresh in [
            Own { etcd: EtcdData::Unborn, ..own(None) },
            Own { etcd: EtcdData::Data(ids), ..own(None) },
            Own { etcd: EtcdData::Unknown("EIO".into()), ..own(None) },
            Own { database: Found::Present, ..own(None) },
            Own { database: Found::Unknown("EIO".into()), ..own(None) },
            Own { begun: Some(Begun { start, ids: Some(ids), seen: false }), ..own(None) },
            Own { complete: true, ..own(None) },
        ] {
            let reply = answer(&document, "pg-3", &not_fresh, &request(&document, "pg-1", "new", &[]));
            assert!(reply.store.is_none() && reply.answer.promise.is_none(), "{not_fresh:?}");
            assert!(reply.answer.not_fresh.is_some() && reply.answer.refusal.is_some(), "{not_fresh:?}");
        }
    }

    #[test]
    fn a_question_changes_nothing_and_another_document_is_told() {
        let document = document(&[1, 2, 3]);
        let question = Request { incarnation: None, ..request(&document, "pg-1", "new", &[]) };
        let reply = answer(&document, "pg-3", &own(None), &question);
        assert_eq!((reply.store, reply.answer.refusal, reply.answer.promise), (None, None, None));
        let other = Request { document: "another".into(), ..request(&document, "pg-1", "new", &[]) };
        let reply = answer(&document, "pg-3", &own(None), &other);
        assert_eq!(reply.answer.document, document.digest);
        assert!(reply.answer.refusal.unwrap().contains("document"));
    }

    #[test]
    fn refusals_say_why() {
        let refusals = [
            outcome(Some(("pg-1", "old", &[])), "pg-1", &[]),
            outcome(Some(("pg-2", "old", &["pg-1"])), "pg-1", &[]),
            outcome(None, "pg-2", &[]),
            outcome(None, "pg-1", &["pg-3"]),
            outcome(None, "pg-3", &["pg-1", "pg-2"]),
            outcome(None, "pg-1", &["pg-7"]),
        ];
        insta::assert_snapshot!(refusals.map(Result::unwrap_err).join("\n"));
    }

    #[test]
    fn a_promise_of_another_document_is_given_up_only_where_the_rest_is_no_quorum() {
        let give = |mut own: Own, document: &Document, from: &str, without: &[&str]| {
            let me = "pg-3";
            let reply = answer(document, me, &own, &request(document, from, &format!("of {from}"), without));
            if let Some(promises) = reply.store {
                own.promises = promises;
            }
            (own, reply.answer.refusal)
        };
        let held = Promise::new(&document(&[1, 2, 3]), "pg-1", "old", &set(&[]));
        // pg-1 alone cannot form what was promised; pg-1 and pg-2 can.
        let (after, refusal) = give(own(Some(held.clone())), &document(&[2, 3, 4]), "pg-2", &[]);
        assert_eq!(refusal, None);
        assert_eq!(after.promises.outlived, BTreeSet::from([held.members.clone()]));
        let (_, refusal) = give(own(Some(held.clone())), &document(&[3, 4, 5]), "pg-3", &[]);
        assert!(refusal.unwrap().contains("pg-1, pg-2, pg-3"));
        // It does not help to go by way of a third document.
        let third = document(&[3, 4, 2]);
        let (after, refusal) = give(own(Some(held)), &third, "pg-3", &[]);
        assert_eq!(refusal, None);
        let (_, refusal) = give(after, &document(&[3, 4, 5]), "pg-3", &[]);
        assert!(refusal.unwrap().contains("pg-1, pg-2, pg-3"));
    }

    #[test]
    fn two_incarnations_of_one_document_share_a_node_whatever_the_orders() {
        // All members of the document are members of each: two majorities of it.
        for size in 1..=7 {
            assert!(2 * quorum(size) > size);
        }
        let document = document(&[1, 2, 3, 4, 5]);
        let promise = Promise::new(&document, "pg-1", "a", &set(&["pg-4", "pg-5"]));
        assert_eq!(promise.start().members.len(), 5);
    }
}
