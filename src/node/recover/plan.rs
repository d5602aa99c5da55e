//! Decides whether the cluster may continue from this node, and from which node it should: pure functions of a view.
//!
//! Going on from a node means that its data are the cluster's from then on, whatever others have. So it is refused where
//! it is not needed (a quorum answers), where it would fork (somebody else has such an order), and where this node's data
//! cannot be used. It is refused until a person insists where a node that answers has something that this one has not, or
//! where that is not known. A node that does not answer is unknown, and no reason to refuse: it may be gone for ever, which
//! only a person knows. It is named, with what it means if it comes back.
//!
//! Nobody can insist on two things. One is that Patroni runs beside data that have, or may have, more than this node's: it
//! would rewind them to this node's as soon as it sees the new cluster, and what they have more would be overwritten rather
//! than set aside. The other is that the cluster goes on from a second node beside one that answers and from which it went
//! on already.

use super::{
    lineage::Lineage,
    rival::Quorum,
    timeline::{Parting, Place, Reach, Relation, relation},
};
use crate::{clock, node::database::Lsn};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is known of all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's name.
    pub me: String,
    /// The nodes of the document, in its order, this one among them.
    pub nodes: Vec<KnownNode>,
    /// The clusters of etcd whose quorum answers. More than one is two clusters of one name.
    pub quorums: Vec<Quorum>,
    /// What this node's etcd has kept.
    pub keys: Keys,
    /// Why this node's etcd cannot get other data in its place.
    pub obstacle: Option<Obstacle>,
}

/// What is in the way, and what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What it is, and where.
    pub what: String,
    /// The way out.
    pub way_out: String,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownNode {
    /// Its name.
    pub name: String,
    /// Why nothing is known of it: nothing answers there.
    pub silent: Option<String>,
    /// Its database.
    pub database: Database,
    /// Its etcd's data.
    pub etcd: Etcd,
    /// Whether Patroni runs there.
    pub patroni: bool,
    /// Whether its server runs as a primary, so that it has more a moment later.
    pub primary: bool,
    /// An order to go on from it, which was given there and is not carried out yet.
    pub order: Option<String>,
    /// The incarnation of the cluster that it was part of last, if that began by such an order.
    pub lineage: Option<Lineage>,
}

/// What is known of a node's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Database {
    /// Nothing, and why.
    Unknown {
        /// Why.
        why: String,
    },
    /// There is none.
    Absent,
    /// There is something that no server can use as it is, and why.
    Unusable {
        /// Why.
        why: String,
    },
    /// There is one.
    Present(Copy),
}

/// A copy of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// How far it has come.
    #[serde(flatten)]
    pub reach: Reach,
    /// The time of the last commit in it, or of its last checkpoint where no commit was found: seconds since 1970.
    pub last: Option<i64>,
}

/// What is known of a node's etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Etcd {
    /// Nothing, and why.
    Unknown {
        /// Why.
        why: String,
    },
    /// It has no data.
    Absent,
    /// It has data.
    Present {
        /// The cluster's id, in hexadecimal digits, if it is known.
        cluster: Option<String>,
        /// The member's id, likewise.
        member: Option<String>,
    },
}

/// What this node's etcd has kept of the keys that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// It has no data.
    Absent,
    /// They cannot be read, and why.
    Unknown(String),
    /// These.
    Read(Kept),
}

/// Keys as this node's etcd has kept them; others may have been changed later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The system identifier of the cluster's database, if there ever was one.
    pub system: Option<String>,
    /// The nodes of which each has all that was acknowledged in synchronous mode: the leader first. Empty if it was off.
    pub synchronous: Vec<String>,
    /// Whether Patroni was in maintenance mode, in which it starts no server.
    pub paused: bool,
    /// etcd's revision.
    pub revision: u64,
}

/// What happens when the cluster goes on from this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The copy that it goes on with; `None` if there is none here and only etcd goes on.
    pub database: Option<Copy>,
    /// Whether etcd's keys are kept; otherwise they are made again from the database.
    pub keys: bool,
    /// What other nodes have that the cluster will not have; it is set aside there.
    pub losses: Vec<Loss>,
    /// Nodes of which nothing is known, and why.
    pub unknown: Vec<(String, String)>,
    /// What else a person should know.
    pub remarks: Vec<Remark>,
    /// The newest timeline that is known of; what begins now needs one that nobody has.
    pub newest: u32,
}

/// What is lost by going on without a node's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The node that has it.
    pub node: String,
    /// Where it begins.
    pub from: Place,
    /// Where it ends, as far as it is known.
    pub to: Place,
    /// The time of the last commit in it.
    pub last: Option<i64>,
    /// Whether a promotion had given it up before.
    pub given_up: bool,
}

/// What a person should know, and what stops nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// The node is not one of those that have all that was acknowledged in synchronous mode; these are.
    NotSynchronous(Vec<String>),
    /// These nodes have etcd's data and this one has not: what was changed in Patroni's configuration is lost.
    KeysElsewhere(Vec<String>),
    /// What this node's etcd has kept cannot be read and is not used.
    KeysUnread(String),
    /// The database must come from elsewhere.
    NoDatabase,
    /// Patroni's maintenance mode ends.
    MaintenanceEnds,
    /// The database of this node is another than the one that etcd names.
    OtherDatabase {
        /// This node's.
        own: String,
        /// etcd's.
        kept: String,
    },
    /// A node has a copy of another database.
    Strange {
        /// The node.
        node: String,
        /// Its database.
        system: String,
    },
    /// How this node's copy stands to another's is not known.
    Unclear {
        /// The node.
        node: String,
        /// Why.
        why: String,
    },
}

impl Remark {
    /// Whether commits that clients took for safe may be lost.
    pub fn is_warning(&self) -> bool {
        matches!(self, Remark::NotSynchronous(_))
    }
}

/// Why the cluster does not go on from this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A quorum answers; its members.
    Quorum(Vec<String>),
    /// The quorums of several clusters of etcd answer.
    Split(Vec<Quorum>),
    /// Another node has such an order.
    Pending(String),
    /// The cluster went on from elsewhere, and that node is part of it: which that is.
    Elsewhere(String, String),
    /// What this node has cannot be read.
    Unreadable(String),
    /// This node's database cannot be used as it is.
    Unusable(String),
    /// There is nothing here.
    Nothing,
    /// There is no database here, and etcd's data name none.
    NeverBegun,
    /// Another node's server runs as a primary.
    Primary(String),
    /// This node's etcd cannot get other data in its place.
    Obstructed(Obstacle),
    /// Patroni runs on these nodes and would overwrite what they have, or may have, more than this one.
    Running(Vec<Loss>, Vec<Remark>),
    /// This node has less than others, or another database, or that is not known: a person must insist.
    Doubtful(Vec<Loss>, Vec<Remark>),
}

impl View {
    /// This node.
    pub fn own(&self) -> Option<&KnownNode> {
        self.node(&self.me)
    }

    fn node(&self, name: &str) -> Option<&KnownNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    fn others<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a KnownNode> {
        self.nodes.iter().filter(move |node| node.name != name)
    }

    /// The newest timeline of any node.
    fn newest(&self) -> u32 {
        let timelines = self.nodes.iter().filter_map(|node| Some(node.copy()?.reach.end.timeline));
        timelines.max().unwrap_or(1)
    }
}

impl KnownNode {
    /// Its copy of a database, if it has a usable one.
    pub fn copy(&self) -> Option<&Copy> {
        match &self.database {
            Database::Present(copy) => Some(copy),
            _ => None,
        }
    }
}

/// What going on from the node `name` with `copy` would lose, and what is not known about that.
fn compare(view: &View, name: &str, copy: &Copy) -> (Vec<Loss>, Vec<Remark>) {
    let (mut losses, mut doubts) = (Vec::new(), Vec::new());
    for node in view.others(name) {
        let Some(other) = node.copy() else {
            // A node that answers and does not know what it has may have more.
            if let (None, Database::Unknown { why }) = (&node.silent, &node.database) {
                doubts.push(Remark::Unclear { node: node.name.clone(), why: why.clone() });
            }
            continue;
        };
        let loss = |from: Place, given_up: bool| Loss {
            node: node.name.clone(),
            from,
            to: other.reach.end,
            last: other.last,
            given_up,
        };
        match relation(&copy.reach, &other.reach) {
            Relation::Same | Relation::Ahead => {}
            Relation::Behind => losses.push(loss(copy.reach.end, false)),
            Relation::Parted(Parting { at, given_up }) => losses.push(loss(at, given_up)),
            Relation::Strange => {
                doubts.push(Remark::Strange { node: node.name.clone(), system: other.reach.system.clone() });
            }
            Relation::Unknown(why) => doubts.push(Remark::Unclear { node: node.name.clone(), why }),
        }
    }
    (losses, doubts)
}

/// Whether and how the cluster goes on from this node; `force` when a person insists.
///
/// # Errors
/// Why it does not.
pub fn plan(view: &View, force: bool) -> Result<Plan, Refusal> {
    match view.quorums.as_slice() {
        [] => {}
        [quorum] => return Err(Refusal::Quorum(quorum.members.clone())),
        several => return Err(Refusal::Split(several.to_vec())),
    }
    if let Some(node) = view.others(&view.me).find(|node| node.order.is_some()) {
        return Err(Refusal::Pending(node.name.clone()));
    }
    let Some(own) = view.own() else { return Err(Refusal::Nothing) };
    if let Some((node, lineage)) = elsewhere(view, own) {
        return Err(Refusal::Elsewhere(node.name.clone(), lineage.words()));
    }
    if let Some(node) = view.others(&view.me).find(|node| node.primary) {
        return Err(Refusal::Primary(node.name.clone()));
    }
    if let Some(obstacle) = &view.obstacle {
        return Err(Refusal::Obstructed(obstacle.clone()));
    }
    let (losses, doubts) = match &own.database {
        Database::Unknown { why } => return Err(Refusal::Unreadable(why.clone())),
        Database::Unusable { why } => return Err(Refusal::Unusable(why.clone())),
        Database::Absent => without_database(view)?,
        Database::Present(copy) => with_database(view, copy),
    };
    let runs = |name: &str| view.node(name).is_some_and(|node| node.patroni);
    let overwritten: Vec<Loss> = losses.iter().filter(|loss| runs(&loss.node)).cloned().collect();
    // Patroni leaves a stranger's database alone, and all where there is none to rewind to.
    let has_copy = own.copy().is_some();
    let unclear = |doubt: &&Remark| matches!(doubt, Remark::Unclear { node, .. } if has_copy && runs(node));
    let unclear: Vec<Remark> = doubts.iter().filter(unclear).cloned().collect();
    if !overwritten.is_empty() || !unclear.is_empty() {
        return Err(Refusal::Running(overwritten, unclear));
    }
    let insists = losses.iter().any(|loss| !loss.given_up) || !doubts.is_empty();
    if insists && !force {
        return Err(Refusal::Doubtful(losses, doubts));
    }
    let mut remarks = doubts;
    remarks.extend(remarks_on(view, own));
    Ok(Plan {
        database: own.copy().cloned(),
        keys: matches!(view.keys, Keys::Read(_)),
        losses,
        unknown: view.others(&view.me).filter_map(|node| Some((node.name.clone(), node.silent.clone()?))).collect(),
        remarks,
        newest: view.newest(),
    })
}

/// A node that answers and is part of an incarnation of the cluster that `node` does not know of.
fn elsewhere<'a>(view: &'a View, node: &'a KnownNode) -> Option<(&'a KnownNode, &'a Lineage)> {
    view.others(&node.name).find_map(|other| {
        let theirs = other.lineage.as_ref()?;
        let is_known = node.lineage.as_ref().is_some_and(|own| {
            own.recovered.incarnation == theirs.recovered.incarnation || theirs.is_followed_by(&own.recovered)
        });
        (!is_known).then_some((other, theirs))
    })
}

impl Plan {
    /// What speaks against the plan, although a person insisted: nodes with more, or of which that is not known, other than
    /// those of which the person was told.
    pub fn beyond(&self, told: &[String]) -> Option<Refusal> {
        let is_new = |name: &String| !told.contains(name);
        let losses: Vec<Loss> =
            self.losses.iter().filter(|loss| !loss.given_up && is_new(&loss.node)).cloned().collect();
        let doubts: Vec<Remark> =
            self.remarks.iter().filter(|remark| remark.node().is_some_and(is_new)).cloned().collect();
        (!losses.is_empty() || !doubts.is_empty()).then_some(Refusal::Doubtful(losses, doubts))
    }

    /// The nodes that have more, or of which that is not known.
    pub fn doubtful(&self) -> Vec<String> {
        let losses = self.losses.iter().filter(|loss| !loss.given_up).map(|loss| &loss.node);
        losses.chain(self.remarks.iter().filter_map(Remark::node)).cloned().collect()
    }
}

impl Remark {
    /// The node of which it says that it may have more.
    fn node(&self) -> Option<&String> {
        match self {
            Remark::Strange { node, .. } | Remark::Unclear { node, .. } => Some(node),
            Remark::NotSynchronous(_)
            | Remark::KeysElsewhere(_)
            | Remark::KeysUnread(_)
            | Remark::NoDatabase
            | Remark::MaintenanceEnds
            | Remark::OtherDatabase { .. } => None,
        }
    }
}

fn with_database(view: &View, copy: &Copy) -> (Vec<Loss>, Vec<Remark>) {
    let (losses, mut doubts) = compare(view, &view.me, copy);
    match &view.keys {
        Keys::Read(Kept { system: Some(kept), .. }) if *kept != copy.reach.system => {
            doubts.push(Remark::OtherDatabase { own: copy.reach.system.clone(), kept: kept.clone() });
        }
        // Then it is those others who have a stranger's.
        Keys::Read(Kept { system: Some(_), .. }) => doubts.retain(|doubt| !matches!(doubt, Remark::Strange { .. })),
        Keys::Read(_) | Keys::Absent => {}
        Keys::Unknown(why) => doubts.push(Remark::KeysUnread(why.clone())),
    }
    (losses, doubts)
}

/// Without a database, etcd alone can go on, if it knows of one.
fn without_database(view: &View) -> Result<(Vec<Loss>, Vec<Remark>), Refusal> {
    let kept = match &view.keys {
        Keys::Absent => return Err(Refusal::Nothing),
        Keys::Unknown(why) => return Err(Refusal::Unreadable(why.clone())),
        Keys::Read(kept) => kept,
    };
    if kept.system.is_none() {
        return Err(Refusal::NeverBegun);
    }
    // One that has both can say more of what was acknowledged.
    let better = view.others(&view.me).filter(|node| node.copy().is_some() && node.etcd != Etcd::Absent);
    let better = better.map(|node| Remark::Unclear {
        node: node.name.clone(),
        why: "it has a database, and this node has none".to_owned(),
    });
    Ok((Vec::new(), better.collect()))
}

fn remarks_on(view: &View, own: &KnownNode) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if own.copy().is_none() {
        remarks.push(Remark::NoDatabase);
    }
    match &view.keys {
        Keys::Read(Kept { synchronous, paused, .. }) => {
            if *paused {
                remarks.push(Remark::MaintenanceEnds);
            }
            let missing = own.copy().is_some_and(|copy| !has_acknowledged(view, copy, synchronous));
            if missing && !synchronous.is_empty() && !synchronous.contains(&own.name) {
                remarks.push(Remark::NotSynchronous(synchronous.clone()));
            }
        }
        Keys::Absent | Keys::Unknown(_) => {
            let others = view.others(&view.me).filter(|node| matches!(node.etcd, Etcd::Present { .. }));
            let others: Vec<String> = others.map(|node| node.name.clone()).collect();
            if !others.is_empty() {
                remarks.push(Remark::KeysElsewhere(others));
            }
        }
    }
    remarks
}

/// Whether one of the nodes `synchronous` answers and has no more than `copy`.
fn has_acknowledged(view: &View, copy: &Copy, synchronous: &[String]) -> bool {
    let has_all = |other: &Copy| matches!(relation(&copy.reach, &other.reach), Relation::Same | Relation::Ahead);
    synchronous.iter().filter_map(|name| view.node(name)?.copy()).any(has_all)
}

/// From which node the cluster should go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// Nothing is to be done: a quorum answers.
    Quorum(Vec<String>),
    /// The quorums of several clusters of etcd answer: a person stops all but one of them.
    Clusters(Vec<Quorum>),
    /// An order was given on this node already.
    Pending(String),
    /// Two of these nodes, which answer, are each part of a cluster that went on without the other.
    Split(Vec<(String, Lineage)>),
    /// From any of these: nobody who answers has more. The first is the best.
    From(Vec<String>),
    /// Each has something that others have not, or that is not known: a person decides, and insists.
    Choose(Vec<Choice>),
    /// No node that answers has a usable database; these have etcd's data.
    NoDatabase(Vec<String>),
}

/// One of several nodes of which none has everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The node.
    pub node: String,
    /// What would be lost.
    pub losses: Vec<Loss>,
    /// What is not known.
    pub doubts: Vec<Remark>,
}

/// From which node the cluster should go on, of those that answer.
pub fn advise(view: &View) -> Advice {
    match view.quorums.as_slice() {
        [] => {}
        [quorum] => return Advice::Quorum(quorum.members.clone()),
        several => return Advice::Clusters(several.to_vec()),
    }
    if let Some(node) = view.nodes.iter().find(|node| node.order.is_some()) {
        return Advice::Pending(node.name.clone());
    }
    // The cluster went on already: from a node of that incarnation, if from any.
    let is_newest = |node: &&KnownNode| elsewhere(view, node).is_none();
    if !view.nodes.iter().any(|node| is_newest(&node)) {
        let parts = view.nodes.iter().filter_map(|node| Some((node.name.clone(), node.lineage.clone()?)));
        return Advice::Split(parts.collect());
    }
    let choices: Vec<Choice> = view
        .nodes
        .iter()
        .filter(is_newest)
        .filter_map(|node| {
            let copy = node.copy()?;
            let (losses, doubts) =
                if node.name == view.me { with_database(view, copy) } else { compare(view, &node.name, copy) };
            Some(Choice { node: node.name.clone(), losses, doubts })
        })
        .collect();
    if choices.is_empty() {
        let with_etcd = view.nodes.iter().filter(|node| matches!(node.etcd, Etcd::Present { .. }));
        return Advice::NoDatabase(with_etcd.map(|node| node.name.clone()).collect());
    }
    // Who takes writes has everything a moment later.
    if let Some(primary) = view.nodes.iter().find(|node| node.primary && node.copy().is_some()) {
        return Advice::From(vec![primary.name.clone()]);
    }
    let whole = |choice: &&Choice| choice.doubts.is_empty() && choice.losses.iter().all(|loss| loss.given_up);
    let mut best: Vec<&str> = choices.iter().filter(whole).map(|choice| choice.node.as_str()).collect();
    if best.is_empty() {
        return Advice::Choose(choices);
    }
    // Stable: among equals the document's order decides.
    best.sort_by_key(|name| !view.node(name).is_some_and(|node| matches!(node.etcd, Etcd::Present { .. })));
    Advice::From(best.into_iter().map(ToOwned::to_owned).collect())
}

impl Loss {
    /// How much WAL it is, in bytes.
    pub fn bytes(&self) -> u64 {
        let Lsn(from) = self.from.position;
        self.to.position.0.saturating_sub(from)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { node, from, to, last, given_up } = self;
        write!(f, "{node} has {} bytes of WAL more, from {from} to {to}", self.bytes())?;
        if let Some(last) = last {
            write!(f, ", its last commit of {}", clock::utc(*last))?;
        }
        if *given_up {
            f.write_str("; a promotion had given them up before")?;
        }
        Ok(())
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::NotSynchronous(names) => write!(
                f,
                "replication was synchronous, and this node was not among those that had all that was acknowledged ({}): \
                 commits that clients took for safe may be missing here",
                names.join(", ")
            ),
            Remark::KeysElsewhere(names) => write!(
                f,
                "this node's etcd has no data, and that of {} has: changes of Patroni's configuration are lost by going on \
                 from here, and who was synchronous is not known",
                names.join(", ")
            ),
            Remark::KeysUnread(why) => {
                write!(
                    f,
                    "etcd's data on this node cannot be read: they are set aside and their keys are not kept ({why})"
                )
            }
            Remark::NoDatabase => f.write_str(
                "this node has no database: etcd alone goes on, and the database must come from a node that has it",
            ),
            Remark::MaintenanceEnds => f.write_str(
                "Patroni was in maintenance mode (`pause`), in which it starts no server: that mode ends, and Patroni \
                 takes care of the servers again",
            ),
            Remark::OtherDatabase { own, kept } => write!(
                f,
                "this node's database has the system identifier {own}, and etcd's data here name {kept} as the cluster's"
            ),
            Remark::Strange { node, system } => {
                write!(f, "{node} has another database, with the system identifier {system}")
            }
            Remark::Unclear { node, why } => {
                write!(f, "whether {node} has more than this node is not known: {why}")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, losses: &[Loss], doubts: &[Remark]| {
            losses.iter().try_for_each(|loss| write!(f, "\n{loss}"))?;
            doubts.iter().try_for_each(|doubt| write!(f, "\n{doubt}"))
        };
        match self {
            Refusal::Quorum(names) => {
                write!(f, "there is nothing to recover: a quorum of the cluster's etcd answers ({})", names.join(", "))
            }
            Refusal::Split(quorums) => {
                write!(f, "{}", SeveralClusters(quorums))
            }
            Refusal::Pending(node) => write!(f, "{node} has an order to go on from it: two nodes must not"),
            Refusal::Elsewhere(node, which) => write!(f, "{node} answers and is part of {which}"),
            Refusal::Unreadable(why) => write!(f, "what this node has is not known: {why}"),
            Refusal::Unusable(why) => write!(f, "this node's database cannot be used: {why}"),
            Refusal::Nothing => f.write_str("there is nothing on this node from which the cluster could go on"),
            Refusal::NeverBegun => {
                f.write_str("this node has no database, and its etcd's data say that the cluster never had one")
            }
            Refusal::Primary(node) => write!(f, "the database of {node} runs as a primary and takes writes"),
            Refusal::Obstructed(obstacle) => {
                write!(f, "a new etcd cannot get the place of this node's old one: {}", obstacle.what)
            }
            Refusal::Running(losses, doubts) => {
                write!(
                    f,
                    "Patroni runs on {} and may overwrite there what this node has not, as soon as this node's cluster \
                     answers:",
                    running(losses, doubts)
                )?;
                list(f, losses, doubts)
            }
            Refusal::Doubtful(losses, doubts) => {
                f.write_str("this node may not be the one to go on from:")?;
                list(f, losses, doubts)
            }
        }
    }
}

impl Refusal {
    /// The way out, on the node `me`.
    pub fn hint(&self, me: &str) -> String {
        match self {
            Refusal::Quorum(_) => "see what this node waits for: pgha-node status".to_owned(),
            Refusal::Split(_) => END_THE_SPLIT.to_owned(),
            Refusal::Pending(node) => format!(
                "see `pgha-node recover`, on {node}. If {node} cannot go on: pgha-node recover --cancel, there"
            ),
            Refusal::Elsewhere(node, _) => format!(
                "nothing is to be done if {node} comes up: pgha-node status, there. If what {node} has is not wanted, or \
                 cannot come up any more: switch {node} off, and give the order again"
            ),
            Refusal::Unreadable(_) => {
                "nothing is decided about data that cannot be read. A volume may not be mounted, or a disk may be damaged"
                    .to_owned()
            }
            Refusal::Unusable(_) => "see from which node the cluster can go on: pgha-node recover. Where no node has one that can \
                                     be used: rescue this one, or set it aside by `pgha-node aside make database`"
                .to_owned(),
            Refusal::Nothing | Refusal::NeverBegun => {
                "see from which node the cluster can go on: pgha-node recover. Where no node has data, nodes with empty disks \
                 form a new cluster"
                    .to_owned()
            }
            Refusal::Primary(node) => format!(
                "go on from {node}: pgha-node recover --from-this-node, there. Or, if its data are not wanted: systemctl stop \
                 pgha-node patroni, there"
            ),
            Refusal::Obstructed(obstacle) => format!("{}; then give the order again", obstacle.way_out),
            Refusal::Running(losses, doubts) => format!(
                "go on from a node that has it (pgha-node recover), or, to see exactly what it is and have it set aside \
                 there: systemctl stop patroni && systemctl restart pgha-node, on {}",
                running(losses, doubts)
            ),
            Refusal::Doubtful(..) => format!(
                "pgha-node recover shows all nodes and the order to give. To go on from {me} all the same, with the data of \
                 others set aside where they are: --force"
            ),
        }
    }
}

/// What a person does where two clusters of one name answer.
pub const END_THE_SPLIT: &str = "decide which is right; on all nodes that are to give way: systemctl stop pgha-node patroni \
                                 etcd; then on each of them: pgha-node aside make etcd && systemctl start pgha-node. The \
                                 manual, under «A node that was given up comes back»: pgha-node help recover";

/// Which nodes run which cluster, in words.
#[derive(Debug)]
pub struct SeveralClusters<'a>(pub &'a [Quorum]);

impl fmt::Display for SeveralClusters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |Quorum { cluster, nodes, .. }: &Quorum| format!("{cluster} on {}", nodes.join(", "));
        let all = self.0.iter().map(one).collect::<Vec<_>>().join("; ");
        write!(f, "clusters of one name run, each with a quorum of its own etcd, and may each take writes: {all}")
    }
}

/// The nodes of which these are.
fn running(losses: &[Loss], doubts: &[Remark]) -> String {
    let names = losses.iter().map(|loss| &loss.node).chain(doubts.iter().filter_map(Remark::node));
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
