//! How this node's etcd member comes to be: with the others at first boot, into a cluster that runs, or as it was.
//!
//! A second cluster must never be formed, and a member that has lost its disk must not vote as if it had not: its
//! votes and acknowledgements are forgotten (Ongaro, «Consensus», section 11.2, calls such a server a new one). So a node
//! without data forms a cluster only with a majority of nodes that have none either; it joins whenever a quorum answers;
//! otherwise it waits.

use crate::model::{
    ClusterSpec,
    scope::{EtcdStart, peer_url},
};
use std::collections::BTreeSet;

/// A member as a cluster with a quorum lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
}

/// What is known of another node of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// It does not answer, and why.
    Silent(String),
    /// It has no etcd data, or its etcd has never been part of a quorum.
    Fresh,
    /// Its etcd has data, and no quorum now.
    Data,
}

/// What a node sees before its etcd runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Whether this node has etcd data.
    pub data: bool,
    /// The members, if a quorum answers.
    pub cluster: Option<Vec<Listed>>,
    /// The other nodes of the document, by name.
    pub peers: Vec<(String, Peer)>,
}

/// What a node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Starts etcd so.
    Start(EtcdStart),
    /// Starts etcd with the data that it has.
    Resume,
    /// Removes this member, dead by the loss of its disk, and looks again.
    Remove(u64),
    /// Adds this node as a member, and looks again.
    Add,
    /// Tells the cluster this member's new address, and looks again.
    Readdress(u64),
    /// Puts its etcd data aside, which the cluster no longer knows, and looks again.
    Discard,
    /// Looks again later; for whom and why.
    Wait(String),
}

/// The next step of the member `own` (an index) of `spec`.
pub fn next(spec: &ClusterSpec, own: usize, view: &View) -> Step {
    match (&view.cluster, view.data) {
        (Some(cluster), true) => resume(spec, own, cluster),
        (Some(cluster), false) => join(spec, own, cluster),
        (None, true) => Step::Resume,
        (None, false) => form(spec, &view.peers),
    }
}

fn resume(spec: &ClusterSpec, own: usize, cluster: &[Listed]) -> Step {
    let (name, url) = (&spec.members[own].name, peer_url(&spec.members[own]));
    if cluster.iter().any(|member| member.peer_urls.contains(&url)) {
        return Step::Resume;
    }
    match cluster.iter().find(|member| member.name == *name) {
        Some(namesake) if namesake.answers => occupied(namesake),
        Some(namesake) => Step::Readdress(namesake.id),
        None => Step::Discard,
    }
}

fn join(spec: &ClusterSpec, own: usize, cluster: &[Listed]) -> Step {
    let (name, url) = (&spec.members[own].name, peer_url(&spec.members[own]));
    if let Some(mine) = cluster.iter().find(|member| member.peer_urls.contains(&url)) {
        let together = EtcdStart::together(spec);
        return match (mine.started, mine.name.is_empty()) {
            // It lost its disk.
            (true, _) => Step::Remove(mine.id),
            // It was added, and the power went before it started.
            (false, true) => {
                Step::Start(EtcdStart { existing: true, token: String::new(), members: listed(spec, cluster) })
            }
            // The others formed the cluster without waiting for it, as the same document tells it to do.
            (false, false) if urls(cluster) == together.members.iter().map(|(_, url)| url.as_str()).collect() => {
                Step::Start(together)
            }
            (false, false) => Step::Remove(mine.id),
        };
    }
    match cluster.iter().find(|member| member.name == *name) {
        Some(namesake) if namesake.answers => occupied(namesake),
        Some(namesake) => Step::Remove(namesake.id),
        None => Step::Add,
    }
}

fn occupied(namesake: &Listed) -> Step {
    Step::Wait(format!(
        "a running etcd member at {} has this node's name: stop it first",
        namesake.peer_urls.join(", ")
    ))
}

fn urls(cluster: &[Listed]) -> BTreeSet<&str> {
    cluster.iter().flat_map(|member| member.peer_urls.iter().map(String::as_str)).collect()
}

/// The members as `initial-cluster` wants them; who has not started is named by the document.
fn listed(spec: &ClusterSpec, cluster: &[Listed]) -> Vec<(String, String)> {
    let name = |member: &Listed, url: &str| {
        let known = spec.members.iter().find(|known| peer_url(known) == url).map(|known| known.name.clone());
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

/// The members that have never started, if the others are a quorum. Until all members have told their versions, etcd
/// says that its cluster's is 3.0, and Patroni speaks a dialect of that age, which no etcd of today understands. A node
/// that comes late adds itself; a cluster of two members of two survives as little as one of two of three.
pub fn absent(cluster: &[Listed]) -> Vec<u64> {
    let never: Vec<u64> = cluster.iter().filter(|member| !member.started).map(|member| member.id).collect();
    if cluster.len() - never.len() > cluster.len() / 2 { never } else { Vec::new() }
}

/// Whether the document names the member, by its name or its address. One that it does not name and that does not answer
/// is a node that was taken out of it while it was dead; it costs the cluster a part of what it could lose.
pub fn is_named(spec: &ClusterSpec, name: &str, peer_urls: &[String]) -> bool {
    spec.members.iter().any(|known| known.name == name || peer_urls.contains(&peer_url(known)))
}

fn form(spec: &ClusterSpec, peers: &[(String, Peer)]) -> Step {
    let quorum = spec.members.len() / 2 + 1;
    let named = |wanted: fn(&Peer) -> bool| -> Vec<&str> {
        peers.iter().filter(|(_, peer)| wanted(peer)).map(|(name, _)| name.as_str()).collect()
    };
    let fresh = 1 + named(|peer| *peer == Peer::Fresh).len();
    let data = named(|peer| *peer == Peer::Data);
    let silent: Vec<String> = peers
        .iter()
        .filter_map(|(name, peer)| match peer {
            Peer::Silent(why) => Some(format!("{name} ({why})")),
            _ => None,
        })
        .collect();
    if data.is_empty() && fresh >= quorum {
        Step::Start(EtcdStart::together(spec))
    } else if data.is_empty() {
        Step::Wait(format!("{fresh} of {quorum} nodes that form the cluster are here; not yet {}", silent.join(", ")))
    } else if silent.is_empty() {
        Step::Wait(format!(
            "{} has the data of a cluster whose majority is lost: recover etcd by hand, this node will not form another",
            data.join(", ")
        ))
    } else {
        Step::Wait(format!(
            "the cluster exists on {} and waits for its quorum; not here: {}",
            data.join(", "),
            silent.join(", ")
        ))
    }
}
