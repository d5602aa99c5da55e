//! Decides how this node's etcd member starts: with the others at first boot, by joining a running cluster, or as before.
//!
//! A second cluster must never be formed, and a member that has lost its disk must not vote as if it had not: its
//! votes and acknowledgements are forgotten (Ongaro, «Consensus», section 11.2, calls such a server a new one). So a
//! cluster forms only when every member of the document says that it has no data and promises the same founder, or a
//! person orders which silent members it forms without; a node joins whenever a quorum answers; otherwise it waits.
//! Silence is not an answer.
//!
//! [`next`] decides about what a node sees, [`super::promise::answer`] about what another node asks of it; neither does
//! any input or output. What they decide about ([`Own`]) changes only by the acts that a [`Step`] or a
//! [`super::promise::Reply`] names, each of which is on the disk before anything follows from it. A step is carried out
//! only if [`Own`] is still what it was when the node began to look ([`View::own`]): a promise may have been given since.

pub use super::promise::{Begun, Document, Found, Own, Place, quorum};

use super::{
    etcd_data::{EtcdData, Ids},
    promise::{self, Answer, Promises, Request},
};
use crate::model::{
    ClusterSpec,
    scope::{EtcdStart, peer_url},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};

/// A person's order to form the cluster without some members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormingOrder {
    /// The digest of the document that it was given for.
    pub document: String,
    /// Whom it leaves out.
    pub without: BTreeSet<String>,
}

/// A member as a cluster with a quorum lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listed {
    /// Its id.
    pub id: u64,
    /// Its name; empty if it was added and has not started.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Whether it has ever started: it tells its clients' addresses then.
    pub started: bool,
    /// Whether it answers now.
    pub answers: bool,
    /// Whether it does not count yet: etcd calls it a learner.
    pub learns: bool,
}

/// A cluster whose quorum answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cluster {
    /// Its id.
    pub id: u64,
    /// Its members.
    pub members: Vec<Listed>,
}

/// What is known of another node of the document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// It does not answer, and why: nothing is known of it.
    Silent(String),
    /// Something answers that is not understood, and what: nothing is known of it either.
    Unclear(String),
    /// Its etcd does not run, and it says this of itself. Founders asked it for a promise.
    Told(Answer),
    /// Its etcd runs.
    Etcd {
        /// The id of its cluster, if it tells it.
        cluster: Option<u64>,
        /// Whether it has ever been part of a quorum.
        ever: bool,
    },
}

/// What a node sees before its etcd runs, or while it runs without a quorum.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// The document.
    pub document: Document,
    /// This node's name.
    pub me: String,
    /// What it knew of itself when it began to look.
    pub own: Own,
    /// A person's order, if there is one.
    pub order: Option<FormingOrder>,
    /// The cluster, if a quorum answers.
    pub cluster: Option<Cluster>,
    /// The other nodes of the document, by name, in its order.
    pub peers: Vec<(String, Peer)>,
    /// The incarnation to use if one must be drawn: random, and never given twice.
    pub draw: String,
    /// The id of the member that this very process has added for this node.
    pub added: Option<u64>,
}

/// What a node does next. An act is on the disk before the node looks again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Writes what it promises (to itself, as the founder), and looks again.
    Promise(Promises),
    /// Writes that it does not hold its promise any more, and looks again.
    Release(Promises),
    /// Writes how its etcd member begins, and looks again. From then on it is not fresh and promises nothing; for a
    /// founder this is the moment at which the cluster is formed.
    Commit(Begun),
    /// Starts etcd without data, as [`Begun`] says.
    Start(EtcdStart),
    /// Starts etcd with the data that it has.
    Resume,
    /// Removes this member of the cluster, dead by the loss of its disk, and looks again.
    Remove(u64),
    /// Adds this node as a member, and looks again.
    Add,
    /// Tells the cluster this member's new address, and looks again.
    Readdress(u64),
    /// Puts its etcd data aside, and looks again.
    SetAside(Aside),
    /// Gives up a beginning that can never have a quorum: writes these promises, then this, stops etcd, puts its data
    /// aside, and looks again.
    Abandon(Promises, Begun),
    /// Gives up a beginning that can never have a quorum and has left no data: writes these promises, then that its etcd
    /// member has not begun, and looks again.
    Forget(Promises),
    /// Looks again later.
    Wait {
        /// For whom and why.
        why: String,
        /// The order that would let the others go on.
        order: Option<Suggestion>,
    },
}

/// One thing that a step does to this node's own disks, which is there for good before the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// What it promises.
    Promises(Promises),
    /// The mark of a beginning, beside etcd's data.
    Mark(Begun),
    /// How its etcd member begins.
    Begun(Begun),
    /// That its etcd has answered, or may have: it does not start again without the data that go now.
    Seen,
    /// That its etcd member has not begun.
    NotBegun,
    /// That a person's order is carried out.
    Ordered,
    /// No write, but this has stopped, if it ran, before the next one.
    Stop(Stopped),
    /// etcd's data are put aside; why, in a word.
    Aside(&'static str),
}

/// A service that must have stopped before data are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stopped {
    /// Patroni and the database.
    Patroni,
    /// etcd.
    Etcd,
}

/// What a step does to this node's own disks, in order. The power may fail between any two of them.
pub fn writes(step: &Step) -> Vec<Write> {
    match step {
        Step::Promise(promises) | Step::Release(promises) => vec![Write::Promises(promises.clone())],
        // A beginning without its mark would never start, and a mark without its beginning says nothing. A cluster that has
        // formed takes no other order.
        Step::Commit(begun) => vec![Write::Mark(begun.clone()), Write::Begun(begun.clone()), Write::Ordered],
        // What the database here has more than the other cluster's is looked at before Patroni starts there.
        Step::SetAside(why @ Aside::OtherCluster) => {
            vec![Write::Seen, Write::Stop(Stopped::Patroni), Write::Stop(Stopped::Etcd), Write::Aside(why.word())]
        }
        Step::SetAside(why @ Aside::Removed) => {
            vec![Write::Seen, Write::Stop(Stopped::Etcd), Write::Aside(why.word())]
        }
        // There is no log, so that nothing was ever written or promised.
        Step::SetAside(why @ Aside::Unfinished) => vec![Write::Stop(Stopped::Etcd), Write::Aside(why.word())],
        Step::Abandon(promises, begun) => {
            vec![
                Write::Promises(promises.clone()),
                Write::Begun(begun.clone()),
                Write::Stop(Stopped::Etcd),
                Write::Aside("unformed"),
            ]
        }
        Step::Forget(promises) => vec![Write::Promises(promises.clone()), Write::NotBegun],
        Step::Start(_) | Step::Resume | Step::Remove(_) | Step::Add | Step::Readdress(_) | Step::Wait { .. } => {
            Vec::new()
        }
    }
}

/// Why etcd's data are put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aside {
    /// The cluster has removed this member.
    Removed,
    /// They are another cluster's than the one whose quorum answers.
    OtherCluster,
    /// They were begun and have never held anything.
    Unfinished,
}

impl Aside {
    /// It in a word, which the name of what is put aside ends with.
    pub fn word(self) -> &'static str {
        match self {
            Aside::Removed => "removed",
            Aside::OtherCluster => "other-cluster",
            Aside::Unfinished => "unfinished",
        }
    }
}

/// An order that a person could give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Suggestion {
    /// On which node.
    pub on: String,
    /// Whom to leave out.
    pub without: BTreeSet<String>,
}

/// The next step of a node.
pub fn next(view: &View) -> Step {
    match (&view.cluster, &view.own.etcd) {
        (_, EtcdData::Unknown(why)) => wait(format!(
            "etcd's data on this node cannot be read, so that it is not known what this member has promised to the \
             others: {why}"
        )),
        (Some(cluster), EtcdData::Data(ids)) => resume(view, cluster, *ids),
        (Some(cluster), EtcdData::Absent | EtcdData::Unborn) => join(view, cluster),
        (None, EtcdData::Data(ids)) => go_on(view, *ids),
        (None, EtcdData::Absent | EtcdData::Unborn) => match (&view.own.begun, view.own.fresh()) {
            (Some(begun), _) => begin_again(view, begun),
            (None, Ok(())) => form(view),
            (None, Err(why)) if is_unknown(&view.own) => wait(why),
            (None, Err(why)) => missing(view, &why),
        },
    }
}

/// What a person does when a majority is lost for ever.
pub const RECOVER: &str = "pgha-node recover, on a node that has the data";

fn is_unknown(own: &Own) -> bool {
    matches!(own.database, Found::Unknown(_))
}

fn wait(why: String) -> Step {
    Step::Wait { why, order: None }
}

/// With data, beside a cluster whose quorum answers.
fn resume(view: &View, cluster: &Cluster, ids: Ids) -> Step {
    if ids.cluster != cluster.id {
        return Step::SetAside(Aside::OtherCluster);
    }
    match cluster.members.iter().find(|member| member.id == ids.member) {
        None => Step::SetAside(Aside::Removed),
        Some(mine) if mine.peer_urls.contains(&view.url()) => Step::Resume,
        Some(mine) if mine.answers => occupied(mine),
        Some(mine) => Step::Readdress(mine.id),
    }
}

/// Without data, beside a cluster whose quorum answers.
fn join(view: &View, cluster: &Cluster) -> Step {
    let url = view.url();
    let step = match cluster.members.iter().find(|member| member.peer_urls.contains(&url)) {
        Some(mine) if mine.started => Step::Remove(mine.id),
        Some(mine) => enter(view, cluster, mine),
        None => match cluster.members.iter().find(|member| member.name == view.me) {
            Some(namesake) if namesake.answers => occupied(namesake),
            Some(namesake) => Step::Remove(namesake.id),
            None => Step::Add,
        },
    };
    match (&view.own.etcd, &step) {
        // What an earlier start has left would be taken for the new member's.
        (EtcdData::Unborn, Step::Commit(_) | Step::Add | Step::Remove(_)) => Step::SetAside(Aside::Unfinished),
        _ => step,
    }
}

/// Without data, as the member `mine`, which has never started as far as the cluster knows.
///
/// It may have started all the same: what it has promised and written then is lost with its disk before the cluster knew
/// of it. So an added member is this node's only if this very process has added it.
fn enter(view: &View, cluster: &Cluster, mine: &Listed) -> Step {
    let ids = Ids { cluster: cluster.id, member: mine.id };
    let listed = EtcdStart {
        existing: true,
        token: view.document.identity.clone(),
        members: listed(&view.document, &cluster.members),
    };
    let added = view.added == Some(mine.id);
    let promised = view.own.promises.held.as_ref().filter(|held| held.ids(&view.me) == Some(ids));
    match view.own.begun.as_ref().filter(|begun| begun.ids == Some(ids)) {
        Some(begun) if begun.start.existing && added && begun.start == listed => Step::Start(begun.start.clone()),
        Some(begun) if !begun.start.existing && view.own.may_start(begun) => Step::Start(begun.start.clone()),
        _ if added && mine.name.is_empty() => Step::Commit(Begun { start: listed, ids: Some(ids), seen: true }),
        Some(_) => Step::Remove(mine.id),
        // The others formed the cluster under the promise that this node holds.
        None => match promised {
            Some(held) if !mine.name.is_empty() => {
                Step::Commit(Begun { start: held.start(), ids: Some(ids), seen: false })
            }
            _ => Step::Remove(mine.id),
        },
    }
}

fn occupied(namesake: &Listed) -> Step {
    wait(format!(
        "an etcd member at {} has this node's name and runs, or did so a short time ago: stop it first",
        namesake.peer_urls.join(", ")
    ))
}

/// The members as `initial-cluster` wants them; who has not started is named by the document.
fn listed(document: &Document, cluster: &[Listed]) -> Vec<Place> {
    let name = |member: &Listed, url: &str| {
        let known = document.members.iter().find(|known| known.1 == url).map(|known| known.0.clone());
        if member.name.is_empty() {
            known.unwrap_or_else(|| format!("member-{:x}", member.id))
        } else {
            member.name.clone()
        }
    };
    let mut members: Vec<_> = cluster
        .iter()
        .flat_map(|member| member.peer_urls.iter().map(move |url| (name(member, url), url.clone())))
        .collect();
    members.sort();
    members
}

/// How long a node that has etcd's data listens for members that do not answer before its etcd starts with them.
pub const LISTENS: Duration = Duration::from_secs(10);

/// Whether the node listens on before it carries out `step`, `since` its first look: a member that is silent may be the one
/// from which the cluster went on, and with the others this node may be a quorum of what was given up. Where all members
/// start together, all answer, and nobody waits.
pub fn listens(view: &View, step: &Step, since: Duration) -> bool {
    let is_silent = |(_, peer): &(String, Peer)| matches!(peer, Peer::Silent(_));
    *step == Step::Resume && view.cluster.is_none() && since < LISTENS && view.peers.iter().any(is_silent)
}

/// With data and without a quorum.
fn go_on(view: &View, ids: Ids) -> Step {
    match &view.own.begun {
        Some(begun) if view.own.idle && is_hopeless(view, begun, ids.cluster) => {
            Step::Abandon(view.own.promises.released(), Begun { seen: false, ..begun.clone() })
        }
        _ => Step::Resume,
    }
}

/// Without data and without a quorum, where etcd was to start before.
fn begin_again(view: &View, begun: &Begun) -> Step {
    if begun.start.existing && begun.ids.is_some() && !view.own.complete && view.own.database == Found::Absent {
        return wait(format!(
            "this node was joining the cluster, and no quorum of it answers. If none can come back: {RECOVER}"
        ));
    }
    let ids = begun.ids.filter(|_| {
        !begun.start.existing && view.own.may_start(begun) && !view.own.complete && view.own.database == Found::Absent
    });
    let Some(ids) = ids else { return missing(view, "it has begun to start etcd") };
    let held = view.own.promises.held.as_ref().and_then(|held| held.ids(&view.me));
    // It was given up before: whoever has voted does not start without what it has written.
    if held != Some(ids) || is_hopeless(view, begun, ids.cluster) {
        return match view.own.etcd {
            EtcdData::Unborn => Step::SetAside(Aside::Unfinished),
            _ => Step::Forget(view.own.promises.released()),
        };
    }
    if begun.start.members.contains(&view.place()) {
        return Step::Start(begun.start.clone());
    }
    let members: Vec<String> = begun.start.members.iter().map(|(name, url)| format!("{name} at {url}")).collect();
    wait(format!("this node was to form the cluster at another address: {}", members.join(", ")))
}

/// Whether a beginning has not become a cluster and never can: so many of its members say that they have not begun the
/// same and cannot any more that the rest is not a quorum, and nobody is silent.
fn is_hopeless(view: &View, begun: &Begun, cluster: u64) -> bool {
    let Some((_, incarnation)) = begun.start.token.rsplit_once('-') else { return false };
    if begun.start.existing || view.own.complete || view.own.database != Found::Absent {
        return false;
    }
    let mut with = 1;
    for place in begun.start.members.iter().filter(|place| place.0 != view.me) {
        match view.document.members.contains(place).then(|| view.peer(&place.0)).flatten() {
            Some(Peer::Told(told)) if told.not_fresh.is_none() => {
                with += usize::from(told.promise.as_ref().is_some_and(|promise| promise.incarnation == incarnation));
            }
            Some(Peer::Told(Answer { cluster: Some(its), .. })) if *its != cluster => {}
            Some(Peer::Etcd { cluster: Some(its), ever: false }) => with += usize::from(*its == cluster),
            Some(Peer::Etcd { cluster: Some(its), ever: true }) if *its != cluster => {}
            _ => return false,
        }
    }
    with < quorum(begun.start.members.len())
}

/// A node that was a member or has data, without etcd's.
fn missing(view: &View, why: &str) -> Step {
    wait(format!(
        "{why}, and etcd's data are missing; it joins its cluster when a quorum of it answers and forms no other ({}). If a \
         volume is not mounted, mount it. If no quorum of it can come back: {RECOVER}",
        view.standing()
    ))
}

/// A fresh node without a quorum.
fn form(view: &View) -> Step {
    let Promises { held, .. } = &view.own.promises;
    if let Some(held) = held {
        if let Some(begun) = committed(view, held) {
            return Step::Commit(begun);
        }
        if is_given_up(view, held) {
            return Step::Release(view.own.promises.released());
        }
    }
    let without = view.without();
    let request = Request {
        from: view.me.clone(),
        document: view.document.digest.clone(),
        incarnation: Some(view.draw.clone()),
        without: without.clone(),
    };
    let founder = view.document.founder(&without) == Some(view.me.as_str());
    match held {
        Some(held) if founder && is_mine(view, held, &without) => gather(view, held),
        _ if founder => match promise::promise(&view.document, &view.me, &view.own, &request) {
            Ok(promises) => Step::Promise(promises),
            Err(why) => view.waiting(format!("this node cannot form the cluster: {why}")),
        },
        // What it founded by an order that does not stand any more.
        Some(held) if held.founder == view.me => Step::Release(view.own.promises.released()),
        _ => view.waiting(format!(
            "{} forms the cluster when every member is here",
            view.document.founder(&without).unwrap_or_default()
        )),
    }
}

/// The beginning of a promise whose founder has formed the cluster: somebody has begun under it.
fn committed(view: &View, held: &promise::Promise) -> Option<Begun> {
    let ids = held.ids(&view.me)?;
    let begun = view.peers.iter().any(|(_, peer)| match peer {
        Peer::Told(told) => told.cluster == Some(ids.cluster),
        Peer::Etcd { cluster, .. } => *cluster == Some(ids.cluster),
        _ => false,
    });
    let is_here = held.members.contains(&view.place());
    (begun && is_here).then(|| Begun { start: held.start(), ids: Some(ids), seen: false })
}

/// Whether the founder of a promise says that it does not found that incarnation any more. It was asked after the promise
/// was given, so it has given up since, or lost its disk.
fn is_given_up(view: &View, held: &promise::Promise) -> bool {
    let same = view.document.place(&held.founder).is_some_and(|place| held.members.contains(place));
    match view.peer(&held.founder) {
        Some(Peer::Told(told)) if same => told.not_fresh.is_none() && told.promise != Some(held.told()),
        _ => false,
    }
}

/// Whether this node founds what it holds, by the present document and order.
fn is_mine(view: &View, held: &promise::Promise, without: &BTreeSet<String>) -> bool {
    held.founder == view.me && held.document == view.document.digest && held.without == *without
}

/// A founder forms the cluster when all whom it asks hold its promise.
fn gather(view: &View, held: &promise::Promise) -> Step {
    let told = held.told();
    let all = view.peers.iter().filter(|(name, _)| !held.without.contains(name)).all(|(_, peer)| match peer {
        Peer::Told(answer) => answer.not_fresh.is_none() && answer.promise.as_ref() == Some(&told),
        _ => false,
    });
    match held.ids(&view.me) {
        Some(ids) if all => Step::Commit(Begun { start: held.start(), ids: Some(ids), seen: false }),
        _ => view.waiting("this node forms the cluster when every member is here".to_owned()),
    }
}

/// Whether a person's order stands: given for this document, on the node that it makes the founder, and nobody whom it
/// leaves out answers.
///
/// # Errors
/// Why it does not.
pub fn stands(view: &View, order: &FormingOrder) -> Result<(), String> {
    if order.document != view.document.digest {
        return Err("the order was given for another document".to_owned());
    }
    view.document.allows(&order.without)?;
    let founder = view.document.founder(&order.without).unwrap_or_default();
    if founder != view.me {
        return Err(format!("not this node, but {founder} forms the cluster then"));
    }
    match view.peers.iter().find(|(name, peer)| order.without.contains(name) && !matches!(peer, Peer::Silent(_))) {
        Some((name, _)) => Err(format!("{name} answers")),
        None => Ok(()),
    }
}

impl View {
    fn place(&self) -> Place {
        self.document.place(&self.me).cloned().unwrap_or_default()
    }

    fn url(&self) -> String {
        self.place().1
    }

    fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|(known, _)| known == name).map(|(_, peer)| peer)
    }

    /// Whom the order leaves out, if it stands.
    fn without(&self) -> BTreeSet<String> {
        self.order
            .as_ref()
            .filter(|order| stands(self, order).is_ok())
            .map(|order| order.without.clone())
            .unwrap_or_default()
    }

    fn waiting(&self, why: String) -> Step {
        let order = self.order.as_ref().and_then(|order| stands(self, order).err());
        let order = order.map(|why| format!("; the order to form it without some is not followed: {why}"));
        let why = self.elsewhere().unwrap_or(why);
        Step::Wait {
            why: format!("{why} ({}){}", self.standing(), order.unwrap_or_default()),
            order: self.suggestion(),
        }
    }

    /// Where the cluster is, if it is known to be somewhere.
    fn elsewhere(&self) -> Option<String> {
        let is_data = |peer: &Peer| match peer {
            Peer::Etcd { ever, .. } => *ever,
            Peer::Told(told) => told.not_fresh.is_some() && told.cluster.is_some(),
            _ => false,
        };
        let known = |peer: &Peer| !matches!(peer, Peer::Silent(_) | Peer::Unclear(_));
        let data: Vec<&str> =
            self.peers.iter().filter(|(_, peer)| is_data(peer)).map(|(name, _)| name.as_str()).collect();
        let data = if data.is_empty() { return None } else { data.join(", ") };
        let what = if self.peers.iter().all(|(_, peer)| known(peer)) {
            format!("{data} has the data of a cluster whose majority is not here")
        } else {
            format!("the cluster exists on {data} and waits for its quorum")
        };
        Some(format!("{what}; this node forms no other. If no quorum of it can come back: {RECOVER}"))
    }

    /// The order that would let those who are here go on, if all of them are fresh.
    fn suggestion(&self) -> Option<Suggestion> {
        let silent = |peer: &Peer| matches!(peer, Peer::Silent(_));
        let fresh = |peer: &Peer| matches!(peer, Peer::Told(told) if told.not_fresh.is_none() && told.document == self.document.digest);
        if self.own.fresh().is_err() || self.peers.iter().any(|(_, peer)| !silent(peer) && !fresh(peer)) {
            return None;
        }
        let away = self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(name, _)| name.clone());
        let without: BTreeSet<String> = away.collect();
        if without.is_empty() || without == self.without() || self.document.allows(&without).is_err() {
            return None;
        }
        Some(Suggestion { on: self.document.founder(&without)?.to_owned(), without })
    }

    /// How the others are, in a few words.
    pub fn standing(&self) -> String {
        let words = self.peers.iter().map(|(name, peer)| match peer {
            Peer::Silent(why) | Peer::Unclear(why) => format!("{name}: {why}"),
            Peer::Told(Answer { not_fresh: Some(why), .. }) => format!("{name}: {why}"),
            Peer::Told(told) if told.document != self.document.digest => format!("{name}: it has another document"),
            Peer::Told(Answer { refusal: Some(why), .. }) => format!("{name}: {why}"),
            Peer::Told(_) => format!("{name}: here"),
            Peer::Etcd { ever: true, .. } => format!("{name}: its etcd has data and no quorum"),
            Peer::Etcd { ever: false, .. } => format!("{name}: its etcd waits for the others"),
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

/// The members that have never started, if the others are a quorum. Until all members have told their versions, etcd
/// says that its cluster's is 3.0, and Patroni speaks a dialect of that age, which no etcd of today understands. A node
/// that comes late adds itself; a cluster of two members of two survives as little as one of two of three.
pub fn absent(cluster: &[Listed]) -> Vec<u64> {
    let never: Vec<u64> = cluster.iter().filter(|member| !member.started).map(|member| member.id).collect();
    if cluster.len() - never.len() > cluster.len() / 2 { never } else { Vec::new() }
}

/// Who is let go of those that have not come: at once whom the order left out, the others when it is time.
pub fn going(cluster: &[Listed], promises: &Promises, late: bool) -> Vec<u64> {
    let absent = absent(cluster);
    let left_out: BTreeSet<&str> =
        promises.held.iter().flat_map(|held| held.without.iter().map(String::as_str)).collect();
    let members = cluster.iter().filter(|member| absent.contains(&member.id));
    members.filter(|member| late || left_out.contains(member.name.as_str())).map(|member| member.id).collect()
}

/// Whether a new member must not count until it runs: with it, those that have started would be no quorum. So it is of a
/// cluster of one member, as after a recovery.
pub fn must_learn(cluster: &Cluster) -> bool {
    let voters = || cluster.members.iter().filter(|member| !member.learns);
    voters().filter(|member| member.started).count() < quorum(voters().count() + 1)
}

/// Whether the document names the member, by its name or its address. One that it does not name and that does not answer
/// is a node that was taken out of it while it was dead; it costs the cluster a part of what it could lose.
pub fn is_named(spec: &ClusterSpec, name: &str, peer_urls: &[String]) -> bool {
    spec.members.iter().any(|known| known.name == name || peer_urls.contains(&peer_url(known)))
}

#[cfg(test)]
mod tests;
