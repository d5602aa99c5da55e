//! The cluster's first database: who makes it, and whether Patroni may start on this node.
//!
//! Patroni without a database takes the key `/service/<cluster>/initialize` with an empty value, makes a database, and
//! writes its system identifier into the key when roles and databases are there. Two things are wrong with that alone.
//! Any node without a database may be the one that makes it, also one that has lost its disk, while those that have the
//! data are away. And a node that dies at it leaves the key as it is: nobody else begins, and nobody can tell whether the
//! key's owner is at work, is dead, or ever was.
//!
//! So one more key says whose it is: `/pgha/<cluster>/first` names the one node that may make a first database. It is
//! created once, by a node that has formed the cluster's etcd, as long as there is no `initialize`; it gets the system
//! identifier as soon as that is known, and then no other database is let into this cluster, by any node. A beginning
//! (`initialize` with an empty value) that is younger than `first` is the beginning of the node that `first` names, since
//! only that node's Patroni is started without a database; that node alone gives it up, when it finds itself there again.
//!
//! [`may_start`] decides, from what one node sees; the module `bootstrap` looks and acts.

use super::{
    begun::{Begun, What},
    database::Database,
};
use crate::{
    error::UserError,
    etcd::{Client, Compare, EtcdError, KeyValue, Op, RangeRequest},
    files::{Doubt, Presence},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the key `first` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// The node that makes the first database, or the one that saw whose it is.
    pub node: String,
    /// The system identifier, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
}

/// A key with the revisions that created it and changed it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<T> {
    /// What it says.
    pub value: T,
    /// The revision that created it.
    pub created: u64,
    /// The revision that changed it last.
    pub changed: u64,
}

/// The keys, read at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// The id of etcd's cluster.
    pub cluster: u64,
    /// etcd's revision.
    pub revision: u64,
    /// `/pgha/<cluster>/first`.
    pub first: Option<Key<First>>,
    /// Patroni's `initialize`: empty while the first database is being made, a system identifier afterwards.
    pub initialize: Option<Key<String>>,
}

impl Keys {
    /// The system identifier that the cluster's database has, as far as `initialize` and `first` say.
    pub fn system(&self) -> System<'_> {
        let made = self.initialize.as_ref().map(|key| key.value.as_str()).filter(|value| !value.is_empty());
        let pinned = self.first.as_ref().and_then(|key| key.value.system.as_deref());
        match (made, pinned) {
            (Some(made), Some(pinned)) if made != pinned => System::Contradiction { made, pinned },
            (Some(system), _) | (None, Some(system)) => System::Known(system),
            (None, None) => System::Unknown,
        }
    }
}

/// Which database is the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System<'a> {
    /// None has been made yet, or nobody remembers.
    Unknown,
    /// The one with this system identifier.
    Known(&'a str),
    /// The two keys name different ones.
    Contradiction {
        /// Patroni's key.
        made: &'a str,
        /// Ours.
        pinned: &'a str,
    },
}

/// What a node sees before its Patroni starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's name.
    pub me: String,
    /// Whether this node formed the cluster's etcd with others, and has never been complete: it may open the first database.
    pub forms: bool,
    /// The major version of the image's PostgreSQL.
    pub version: u32,
    /// The keys.
    pub keys: Keys,
    /// The data of the image's version.
    pub database: Database,
    /// What this node has begun.
    pub begun: Presence<Begun>,
    /// Whether a server may have started with what is there, if it is a copy ([`super::database::may_have_started`]).
    pub started: bool,
    /// Whether what is there may be half of what the copy that was begun replaces ([`Begun::may_be_half_gone`]).
    pub half_gone: bool,
    /// Whether another node leads the cluster: it has the data then, whatever is here. This node's own key may have
    /// outlived its server.
    pub led: bool,
    /// Whether the disk is known to have room for one more copy that is as large as what is there.
    pub room: bool,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Patroni may start; with what it begins then, which is written down before.
    Start(Option<What>),
    /// `first` is to name this node, then it looks again.
    Open,
    /// `first` is to have this system identifier, then it looks again.
    Pin(String),
    /// What was begun and not finished is set aside, then it looks again.
    SetAsideThenLookAgain(&'static str),
    /// This node's own beginning, which is `initialize` at this revision, is given up, then it looks again.
    GiveUpOwnBeginning(u64),
    /// It looks again later; why.
    Wait(String),
    /// It does not go on without a person; what is wrong and the way out.
    Refuse(String, String),
}

/// Whether Patroni may start on a node where it does not run.
pub fn may_start(view: &View) -> Step {
    let begun = match &view.begun {
        Presence::Present(begun) => Some(begun),
        Presence::Absent => None,
        Presence::Unknown(doubt) => return unknown(doubt),
    };
    if let Some(step) = unfinished(view, begun) {
        return step;
    }
    match &view.database {
        Database::Unknown(doubt) => unknown(doubt),
        Database::Damaged(why) => Step::Refuse(
            format!("the database of this node cannot be used: {why}"),
            "nothing is changed. On a cluster whose primary runs: `pgha-node aside make database` sets it aside, and the node gets a \
             copy. Otherwise this may be the only copy: rescue it first"
                .to_owned(),
        ),
        Database::Present(facts) => with_database(view, &facts.system),
        Database::Absent => without_database(view),
    }
}

/// What is missing on a node where Patroni runs, before what was begun is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// `first` is to have this system identifier, then it looks again.
    Pin(String),
    /// Nothing: the node has the cluster's database as a whole, and the mark of its beginning goes.
    Done,
    /// It looks again later; what is missing.
    Wait(String),
}

/// How a person says which database is the cluster's.
pub const KEEP: &str = "`pgha-node recover` shows which data are where, and `pgha-node first keep` on a node that has the right \
                        database says that it is the cluster's";

fn contradiction(made: &str, pinned: &str) -> String {
    format!(
        "Patroni's key names a database with the system identifier {made}, and this cluster's with {pinned}: a person must say \
         which of them is right. {KEEP}"
    )
}

/// The system identifier of `database`, if a person may say that it is the cluster's: the keys name none, or two of which it
/// is one.
///
/// # Errors
/// A wrong request: why not, and the way out.
pub fn keeps(keys: &Keys, database: &Database) -> Result<String, UserError> {
    let own = match database {
        Database::Present(facts) if !facts.unstarted_copy => &facts.system,
        other => {
            return Err(UserError::usage(format!("this node has no whole database: {}", other.words()))
                .hint("`pgha-node recover` shows which data are where"));
        }
    };
    match keys.system() {
        System::Unknown => Ok(own.clone()),
        System::Contradiction { made, pinned } if own == made || own == pinned => Ok(own.clone()),
        System::Contradiction { made, pinned } => Err(UserError::usage(format!(
            "the keys name the databases with the system identifiers {made} and {pinned}, and this node's has {own}"
        ))
        .hint("`pgha-node recover` shows which data are where")),
        System::Known(system) if system == own => {
            Err(UserError::usage("the keys say already that this node's database is the cluster's")
                .hint("pgha-node status"))
        }
        System::Known(system) => Err(UserError::usage(format!(
            "the cluster's database has the system identifier {system}, and this node's has {own}"
        ))
        .hint("if this node's is not wanted: `pgha-node aside make database`")),
    }
}

/// What is missing on a node where Patroni runs, which has `database`; `half_gone` as in [`View`].
pub fn completion(keys: &Keys, database: &Database, half_gone: bool) -> Completion {
    if half_gone && *database != Database::Absent {
        return Completion::Wait("the copy that replaces this node's database has not begun to arrive".to_owned());
    }
    let system = match keys.system() {
        System::Known(system) => system,
        System::Unknown => {
            return Completion::Wait("the cluster's first database gets its roles and databases".to_owned());
        }
        System::Contradiction { made, pinned } => return Completion::Wait(contradiction(made, pinned)),
    };
    match database {
        Database::Present(facts) if facts.system == system && !facts.unstarted_copy => {}
        other => return Completion::Wait(format!("the database of this node is not whole yet: {}", other.words())),
    }
    match keys.first.as_ref().and_then(|first| first.value.system.as_ref()) {
        Some(_) => Completion::Done,
        None => Completion::Pin(system.to_owned()),
    }
}

/// Whether Patroni, which runs on a node without a database, waits for what will not come: it was let in to begin, and would
/// not be any more. It is stopped then, and comes back to [`may_start`].
pub fn is_in_vain(view: &View) -> bool {
    view.database == Database::Absent && !matches!(may_start(view), Step::Start(_))
}

fn unknown(doubt: &Doubt) -> Step {
    Step::Wait(format!("it is not known what is on the disk, and nothing is done until it is: {doubt}"))
}

/// What to do about half of a database that this node began itself.
fn unfinished(view: &View, begun: Option<&Begun>) -> Option<Step> {
    let Some(begun) = begun.filter(|begun| begun.version == view.version) else { return unmarked_copy(view) };
    let is_whole = match (&view.database, begun.what) {
        (Database::Absent | Database::Unknown(_), _) => return None,
        (_, What::Clone) if view.half_gone => return Some(half_gone(view)),
        // It took writes, or may have, and was damaged then.
        (Database::Damaged(_), What::Bootstrap) => may_be_told(view),
        (Database::Damaged(_), What::Clone) => view.started,
        // A copy is on the disk as a whole before a server starts with it, and then its label goes.
        (Database::Present(facts), What::Clone) => !facts.unstarted_copy || view.started,
        // Roles and databases may be missing.
        (Database::Present(_), What::Bootstrap) => !is_mine(view) || may_be_told(view),
    };
    match begun.what {
        _ if is_whole => None,
        What::Clone if !view.room => Some(Step::Wait(
            "a copy of the database was cut off, and there may be no room for another beside it: make room, such as by \
             `pgha-node aside remove`"
                .to_owned(),
        )),
        What::Clone => Some(Step::SetAsideThenLookAgain("unfinished-clone")),
        What::Bootstrap => Some(Step::SetAsideThenLookAgain("unfinished")),
    }
}

/// What to do about a database of which half may be gone, because a copy was to replace it. Its server has run, so that
/// it may be whole, and may have what no other copy has: it stays in its place until the cluster has its data
/// elsewhere.
fn half_gone(view: &View) -> Step {
    let what = "a copy was to replace this node's database and was cut off, so that half of it may be gone";
    if !view.led {
        Step::Wait(format!(
            "{what}: it is not started, and the node waits for a primary to copy from. If no other node has the data, \
             and a person has found it whole: `pgha-node aside make database`, then `pgha-node aside restore`, with \
             which it counts as whole"
        ))
    } else if !view.room {
        Step::Wait(format!(
            "{what}, and there may be no room for a copy beside it: make room, such as by `pgha-node aside make \
             database` and `pgha-node aside remove`"
        ))
    } else {
        Step::SetAsideThenLookAgain("half-replaced")
    }
}

/// What to do about a copy with which no server has started, which this node has not begun itself: `patronictl reinit`
/// makes one. It is not on the disk as a whole for certain before a server starts with it, so that it must not become
/// the primary. A database that was put there before the cluster had one is something else: it is the first.
fn unmarked_copy(view: &View) -> Option<Step> {
    let own = match &view.database {
        Database::Present(facts) if facts.unstarted_copy && !view.started => &facts.system,
        _ => return None,
    };
    if view.keys.system() != System::Known(own) || view.keys.initialize.as_ref().is_none_or(|key| key.value != *own) {
        return None;
    }
    let what = "this node's database is a copy with which no server has started yet, so that it may not be whole";
    Some(if !view.led {
        Step::Wait(format!(
            "{what}: it is not started, and the node waits for a primary to copy from. If a person has put it there to \
             start the cluster with it: run a server on it once (`pg_ctl start`, then `stop`)"
        ))
    } else if !view.room {
        Step::Wait(format!(
            "{what}, and there may be no room for another beside it: make room, such as by `pgha-node aside remove`"
        ))
    } else {
        Step::SetAsideThenLookAgain("unfinished-clone")
    })
}

/// Whether the first database is this node's to make.
fn is_mine(view: &View) -> bool {
    view.keys.first.as_ref().is_some_and(|first| first.value.node == view.me && first.value.system.is_none())
}

/// Whether Patroni may have told this node's beginning as the cluster's database: from then on it takes writes. Before that
/// `initialize` is as Patroni has created it, with an empty value; a key that was changed since, or is gone, was told, and
/// emptied by somebody.
fn may_be_told(view: &View) -> bool {
    let Keys { first, initialize, .. } = &view.keys;
    let is_begun = |key: &Key<String>| key.value.is_empty() && key.created == key.changed;
    let is_others = first.as_ref().is_some_and(|first| first.value.node != view.me);
    match view.keys.system() {
        System::Unknown => !is_others && !initialize.as_ref().is_some_and(is_begun),
        System::Known(_) | System::Contradiction { .. } => true,
    }
}

fn with_database(view: &View, own: &str) -> Step {
    let first = view.keys.first.as_ref();
    match view.keys.system() {
        System::Known(system) if system == own => match first.and_then(|first| first.value.system.as_ref()) {
            Some(_) => Step::Start(None),
            None => Step::Pin(own.to_owned()),
        },
        System::Known(system) => Step::Refuse(
            format!("the database of this node has the system identifier {own}, that of the cluster has {system}"),
            "nothing is changed. `pgha-node recover` shows which data are where. If this node's are not wanted: `pgha-node \
             aside make database` sets them aside, and the node gets a copy of the cluster's"
                .to_owned(),
        ),
        System::Contradiction { made, pinned } => Step::Refuse(
            format!(
                "Patroni's key names a database with the system identifier {made}, and this cluster's with {pinned}; this \
                 node's has {own}"
            ),
            format!("nothing is changed: a person must say which of them is right. {KEEP}"),
        ),
        // The keys were lost, or this node's database was never told: it is the cluster's. But while another node makes
        // one, two would be.
        System::Unknown => match first {
            Some(first) if first.value.node != view.me => Step::Wait(format!(
                "this node has a database (system identifier {own}), and {} was told to make the cluster's first: neither \
                 is lost. If this node's data are wanted: stop {}. {KEEP}",
                first.value.node, first.value.node
            )),
            _ => Step::Pin(own.to_owned()),
        },
    }
}

fn without_database(view: &View) -> Step {
    let Keys { first, initialize, .. } = &view.keys;
    let pinned = first.as_ref().and_then(|first| first.value.system.as_ref());
    match (view.keys.system(), initialize, first) {
        (System::Contradiction { made, pinned }, ..) => Step::Wait(contradiction(made, pinned)),
        (System::Known(system), Some(key), _) if key.value == system => match pinned {
            Some(_) => Step::Start(Some(What::Clone)),
            None => Step::Pin(system.to_owned()),
        },
        (System::Known(system), ..) => Step::Wait(format!(
            "the cluster has a database (system identifier {system}), and no node has started with it yet: waiting for one"
        )),
        (System::Unknown, None, None) if view.forms => Step::Open,
        (System::Unknown, None, None) => Step::Wait(
            "the cluster has no database yet, and this node is not one of those that formed it: waiting for one that is, \
             or that has the data. If no node has the data: `pgha-node first take` on the node that is to make the first \
             database"
                .to_owned(),
        ),
        (System::Unknown, Some(_), None) => Step::Wait(
            "the cluster's first database was begun, and nothing says by which node: waiting for it. If no node is at work \
             on it: `pgha-node first take` on the node that is to make it"
                .to_owned(),
        ),
        (System::Unknown, initialize, Some(first)) if first.value.node == view.me => match initialize {
            None => Step::Start(Some(What::Bootstrap)),
            // Only the node that `first` names begins, and it is this one: Patroni does not run, so it was cut off.
            Some(key) if key.created > first.created => Step::GiveUpOwnBeginning(key.changed),
            Some(_) => Step::Wait(
                "the cluster's first database was begun before this node was told to make it: see `pgha-node first`"
                    .to_owned(),
            ),
        },
        (System::Unknown, _, Some(first)) => {
            Step::Wait(format!("the first database is being made on {}", first.value.node))
        }
    }
}

/// Where the keys are, with a client that reaches them.
#[derive(Debug)]
pub struct Store<'a> {
    /// Of this node's own etcd, or of others'.
    pub client: &'a Client,
    /// The cluster's name.
    pub cluster: &'a str,
}

/// Why the keys could not be read or changed.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreError {
    /// etcd does not do it.
    Etcd(EtcdError),
    /// `first` says something that this program does not understand.
    Meaning(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Etcd(error) => error.fmt(f),
            StoreError::Meaning(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> StoreError {
        StoreError::Etcd(error)
    }
}

impl Store<'_> {
    fn first_key(&self) -> String {
        format!("/pgha/{}/first", self.cluster)
    }

    fn leader_key(&self) -> String {
        format!("/service/{}/leader", self.cluster)
    }

    fn initialize_key(&self) -> String {
        format!("/service/{}/initialize", self.cluster)
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// When etcd does not answer, or a key cannot be understood.
    pub fn read(&self) -> Result<Keys, StoreError> {
        let (first, initialize) = (self.first_key(), self.initialize_key());
        let ranges = [&first, &initialize].map(|key| Op::Range(RangeRequest::key(key.as_str())));
        let mut answer = self.client.txn(&[], &ranges, &[])?;
        let mut next = || {
            let range = if answer.responses.is_empty() { None } else { answer.responses.remove(0).range };
            range.and_then(|mut range| range.kvs.pop())
        };
        let (found_first, found_initialize) = (next(), next());
        Ok(Keys {
            first: found_first.map(|found| understand(&first, found)).transpose()?,
            initialize: found_initialize.map(|found| text(&initialize, found)).transpose()?,
            cluster: answer.header.cluster_id,
            revision: answer.header.revision,
        })
    }

    /// Makes `first` say that `me` makes the first database, as long as the keys are as they were read; whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn open(&self, keys: &Keys, me: &str) -> Result<bool, StoreError> {
        self.put(keys, &First { node: me.to_owned(), system: None })
    }

    /// Makes `first` say which database the cluster's is, as long as the keys are as they were read; whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn pin(&self, keys: &Keys, me: &str, system: &str) -> Result<bool, StoreError> {
        let node = keys.first.as_ref().map_or(me, |first| &first.value.node).to_owned();
        self.put(keys, &First { node, system: Some(system.to_owned()) })
    }

    /// Deletes `initialize`, as long as the keys are as they were read; whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn give_up(&self, keys: &Keys) -> Result<bool, StoreError> {
        let gone = Op::Delete(self.initialize_key().into_bytes());
        Ok(self.client.txn(&self.unchanged(keys), &[gone], &[])?.succeeded)
    }

    /// Makes `first` name `me` and deletes an empty `initialize`, as long as the keys are as they were read: by a person's
    /// order alone. Whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn take(&self, keys: &Keys, me: &str) -> Result<bool, StoreError> {
        let first = First { node: me.to_owned(), system: None };
        // Deleted and created: `first` must be older than the beginning that is to come, and is, as it is created again.
        let gone = [self.first_key(), self.initialize_key()].map(|key| Op::Delete(key.into_bytes()));
        if !self.client.txn(&self.unchanged(keys), &gone, &[])?.succeeded {
            return Ok(false);
        }
        self.put(&Keys::default(), &first)
    }

    /// Makes both keys say that the cluster's database has this system identifier, as long as they are as they were read: by
    /// a person's order alone. Whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn keep(&self, keys: &Keys, me: &str, system: &str) -> Result<bool, StoreError> {
        let first = First { node: me.to_owned(), system: Some(system.to_owned()) };
        let text = serde_json::to_vec(&first).map_err(|error| StoreError::Meaning(error.to_string()))?;
        let puts = [
            Op::Put(self.first_key().into_bytes(), text, 0),
            Op::Put(self.initialize_key().into_bytes(), system.as_bytes().to_vec(), 0),
        ];
        Ok(self.client.txn(&self.unchanged(keys), &puts, &[])?.succeeded)
    }

    /// The name of the node that leads, if one does.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn leader(&self) -> Result<Option<String>, StoreError> {
        let found = self.client.get(&self.leader_key())?;
        Ok(found.map(|key| String::from_utf8_lossy(&key.value).into_owned()))
    }

    /// Makes `initialize` say which database the cluster's is, as long as the keys are as they were read and there is no
    /// leader; whether it was so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn restore(&self, keys: &Keys, system: &str) -> Result<bool, StoreError> {
        let [first, initialize] = self.unchanged(keys);
        let leaderless = Compare::Missing(self.leader_key().into_bytes());
        let put = Op::Put(self.initialize_key().into_bytes(), system.as_bytes().to_vec(), 0);
        Ok(self.client.txn(&[first, initialize, leaderless], &[put], &[])?.succeeded)
    }

    fn put(&self, keys: &Keys, first: &First) -> Result<bool, StoreError> {
        let text = serde_json::to_vec(first).map_err(|error| StoreError::Meaning(error.to_string()))?;
        let put = Op::Put(self.first_key().into_bytes(), text, 0);
        Ok(self.client.txn(&self.unchanged(keys), &[put], &[])?.succeeded)
    }

    fn unchanged(&self, keys: &Keys) -> [Compare; 2] {
        let compare = |key: String, changed: Option<u64>| match changed {
            None => Compare::Missing(key.into_bytes()),
            Some(revision) => Compare::ModRevision(key.into_bytes(), revision),
        };
        [
            compare(self.first_key(), keys.first.as_ref().map(|key| key.changed)),
            compare(self.initialize_key(), keys.initialize.as_ref().map(|key| key.changed)),
        ]
    }
}

fn understand(name: &str, found: KeyValue) -> Result<Key<First>, StoreError> {
    let value = serde_json::from_slice(&found.value)
        .map_err(|error| StoreError::Meaning(format!("etcd's key {name} cannot be understood: {error}")))?;
    Ok(Key { value, created: found.create_revision, changed: found.mod_revision })
}

fn text(name: &str, found: KeyValue) -> Result<Key<String>, StoreError> {
    let value = String::from_utf8(found.value)
        .map_err(|_| StoreError::Meaning(format!("etcd's key {name} cannot be understood: it is not UTF-8")))?;
    Ok(Key { value, created: found.create_revision, changed: found.mod_revision })
}

#[cfg(test)]
mod tests;
