//! An etcd for each incarnation, as far as clusters depend on it.
//!
//! A member that runs and reaches a majority of the members that its own log names, of which none has a newer log, leads:
//! that is Raft. What is written then is in the logs of all members that run and are connected, and of no others. So a
//! quorum of old logs that overrides what was acknowledged is seen, and so is a member that votes twice because it has
//! lost its log. Members are added and removed by etcd's own rules (`server/etcdserver/server.go`: `mayAddMember`,
//! `mayRemoveMember`, with `strict-reconfig-check`).

use super::world::*;
use crate::node::join::quorum;

impl World {
    /// Whether two nodes reach each other.
    pub(super) fn connected(&self, one: u8, other: u8) -> bool {
        let (one, other) = (self.node(one), self.node(other));
        one.on && other.on && one.side == other.side
    }

    /// The version of the log with which an incarnation has a quorum among the nodes that `take part`.
    fn quorum_among(&self, inc: u8, takes_part: impl Fn(u8) -> bool) -> Option<u8> {
        let logs: Vec<(u8, &Data)> = self
            .all()
            .filter(|node| takes_part(*node))
            .filter_map(|node| Some((node, self.node(node).data().filter(|data| data.inc.no == inc)?)))
            .collect();
        let leads = |leader: &Data| {
            let votes = logs.iter().filter(|(node, data)| {
                leader.members[*node as usize] == data.gen_ + 1 && data.version <= leader.version
            });
            votes.count() >= quorum(nodes_of(&leader.members).len())
        };
        let leaders = logs.iter().filter(|(node, data)| data.members[*node as usize] == data.gen_ + 1 && leads(data));
        leaders.map(|(_, data)| data.version).max()
    }

    /// Whether an incarnation has a quorum now on this side of the network.
    pub(super) fn has_quorum(&self, inc: u8, side: u8) -> bool {
        self.quorum_among(inc, |node| self.runs_on(node, side)).is_some()
    }

    /// Whether it could have one if every machine were on and connected.
    pub(super) fn could_have_quorum(&self, inc: u8) -> bool {
        self.quorum_among(inc, |_| true).is_some()
    }

    /// Whether another node's log has everything that this one has.
    pub(super) fn is_elsewhere(&self, data: &Data, but: u8) -> bool {
        let others = self.all().filter(|node| *node != but).filter_map(|node| self.node(node).data());
        others.into_iter().any(|other| other.inc == data.inc && other.version >= data.version)
    }

    fn runs_on(&self, node: u8, side: u8) -> bool {
        let node = self.node(node);
        node.on && node.runs && node.side == side
    }

    /// Whether this node is a member with a quorum.
    pub(super) fn is_in_quorum(&self, node: u8) -> bool {
        let it = self.node(node);
        let Some(data) = it.data().filter(|_| it.on && it.runs) else { return false };
        self.incs[data.inc.no as usize].members[node as usize] == data.gen_ + 1 && self.has_quorum(data.inc.no, it.side)
    }

    /// The incarnation of whose quorum this node is.
    pub(super) fn quorum_of(&self, node: u8) -> Option<u8> {
        self.is_in_quorum(node).then(|| self.node(node).data().map(|data| data.inc.no)).flatten()
    }

    /// The incarnations whose quorum answers through one of these nodes, asked from `me`.
    pub(super) fn quorums_seen(&self, me: u8, through: Set) -> Set {
        let through = through.iter().filter(|node| (*node as usize) < self.nodes.len() && self.connected(me, *node));
        Set::of(through.filter_map(|node| self.quorum_of(node)))
    }

    /// Lets every quorum that there is replicate its log.
    pub(super) fn replicate(&mut self) {
        for inc in 0..self.incs.len() as u8 {
            for side in 0..2 {
                let found = self.quorum_among(inc, |node| self.runs_on(node, side));
                let Some(version) = found else { continue };
                if version < self.incs[inc as usize].version {
                    self.breaks("an etcd goes on from an old log: what it has acknowledged is lost");
                }
                self.incs[inc as usize].born = true;
                self.replicate_on(inc, side);
            }
        }
    }

    fn replicate_on(&mut self, inc: u8, side: u8) {
        for node in self.all() {
            let truth = self.incs[inc as usize];
            let it = self.node_mut(node);
            let Etcd::Data(data) = &mut it.etcd else { continue };
            let is_member = data.inc.no == inc && truth.members[node as usize] == data.gen_ + 1;
            if !(it.on && it.runs && it.side == side && is_member) {
                continue;
            }
            (data.version, data.members) = (truth.version, truth.members);
            data.ever |= !truth.started.is_empty();
            let gen_ = data.gen_;
            self.incs[inc as usize].voted[node as usize] |= 1 << gen_;
        }
    }

    /// Something is written: those that are there get it.
    pub(super) fn write(&mut self, inc: u8, change: impl FnOnce(&mut Etcds)) {
        let it = &mut self.incs[inc as usize];
        change(it);
        it.version += 1;
        let all = nodes_of(&it.members);
        it.settled |= all.and(it.started) == all;
        for side in 0..2 {
            // A member that was removed just now has no part in it.
            let writer = self.quorum_sides(inc).has(side);
            if writer {
                self.replicate_on(inc, side);
            }
        }
    }

    fn quorum_sides(&self, inc: u8) -> Set {
        Set::of((0..2).filter(|side| self.has_quorum(inc, *side)))
    }

    /// Whether etcd lets this member go.
    pub(super) fn may_remove(&self, inc: u8, whom: u8, by: u8) -> bool {
        let it = &self.incs[inc as usize];
        let rest = nodes_of(&it.members).without(whom);
        let runs = |node: u8| self.connected(by, node) && self.quorum_of(node) == Some(inc);
        let active = nodes_of(&it.members).iter().filter(|node| runs(*node)).count();
        let whole = rest.len() + 1;
        !rest.is_empty()
            && rest.and(it.started).len() >= quorum(rest.len())
            && (!runs(whom) || active > 1 + (whole - 1) / 2)
    }

    /// Whether etcd takes a new member.
    pub(super) fn may_add(&self, inc: u8, by: u8) -> bool {
        let it = &self.incs[inc as usize];
        let members = nodes_of(&it.members);
        let started = members.and(it.started).len();
        let connected = members.iter().all(|node| self.connected(by, node) && self.quorum_of(node) == Some(inc));
        let alone = started == 1 && members.len() == 1;
        connected && (alone || started >= quorum(members.len() + 1))
    }
}
