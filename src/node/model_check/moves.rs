//! What can happen next in a state of the world.

use super::{
    decide::{Decider, Has, Step, Unrecovered},
    world::*,
};
use crate::node::claim::Verdict;

/// What can happen in a world.
pub(super) struct Model {
    pub(super) decider: Decider,
    /// The rules of a world: whether messages are lost, and Patroni is there.
    pub(super) lossy: bool,
    pub(super) patroni: bool,
}

/// How a question goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// It is answered.
    Answered,
    /// It comes to the other, whose answer is lost.
    Unanswered,
    /// It is lost.
    Lost,
    /// It comes much later, when nobody waits for an answer any more.
    Late,
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Move {
    Ask(u8, u8, How),
    /// The look of a node that has nobody to ask.
    Alone(u8),
    Deliver,
    Beside(u8, u8),
    Act(u8),
    Seen(u8),
    Publish(u8),
    LetGo(u8, u8),
    Expelled(u8),
    Count(u8),
    Prune(u8, u8),
    Restore(u8),
    InVain(u8),
    GateLook(u8),
    GateAct(u8),
    PatroniEnds(u8),
    Initdb(u8),
    InitdbDone(u8),
    Announce(u8),
    Copy(u8),
    CopyDone(u8),
    CopyFails(u8),
    StartCopy(u8),
    Follow(u8),
    Lead(u8),
    Expire(u8),
    Drop(u8, u8),
    Write(u8),
    Finish(u8),
    // Faults and persons.
    Cut(u8),
    Boot(u8),
    Replace(u8),
    CutStarting(u8),
    LoseEtcd(u8),
    LoseDb(u8),
    LoseState(u8),
    Unreadable(u8),
    Readable(u8),
    Damage(u8),
    Part(u8),
    Rejoin(u8),
    Order(u8, Set),
    Document(u8, u8),
    /// `init --changed`.
    Declare(u8),
    Empty(u8),
    Delete(u8),
    /// `patronictl failover`.
    Failover(u8),
    Claim(u8),
    Take(u8),
    /// `aside make database`.
    AsideDb(u8),
    /// `aside make etcd`.
    AsideEtcd(u8),
}

impl Move {
    /// Whether nobody wants it to happen, or a person orders it.
    pub(super) fn is_fault(self) -> bool {
        match self {
            Move::Cut(_)
            | Move::Replace(_)
            | Move::CutStarting(_)
            | Move::LoseEtcd(_)
            | Move::LoseDb(_)
            | Move::LoseState(_)
            | Move::Unreadable(_)
            | Move::Damage(_)
            | Move::Part(_)
            | Move::Order(..)
            | Move::Document(..)
            | Move::Declare(_)
            | Move::Empty(_)
            | Move::Delete(_)
            | Move::Claim(_)
            | Move::Take(_)
            | Move::AsideDb(_)
            | Move::AsideEtcd(_) => true,
            Move::Ask(_, _, how) => how != How::Answered,
            _ => false,
        }
    }
}

impl Model {
    /// Everything that can happen.
    pub(super) fn moves(&self, world: &World) -> Vec<Move> {
        let mut moves = Vec::with_capacity(64);
        for node in world.all() {
            self.forming(world, node, &mut moves);
            self.etcd_moves(world, node, &mut moves);
            self.agent_moves(world, node, &mut moves);
            if self.patroni {
                self.database_moves(world, node, &mut moves);
            }
            self.faults(world, node, &mut moves);
        }
        moves.extend(world.letter.map(|_| Move::Deliver));
        for inc in 0..world.incs.len() as u8 {
            let keys = &world.incs[inc as usize].keys;
            let serves = (0..2).any(|side| world.has_quorum(inc, side));
            if serves && keys.leader.is_some_and(|leader| !self.leads(world, leader)) {
                moves.push(Move::Expire(inc));
            }
            if serves
                && world.budget.emptied > 0
                && world.budget.total > 0
                && keys.initialize.is_some_and(|it| it.is_some())
            {
                moves.push(Move::Empty(inc));
            }
            if serves
                && world.budget.deleted > 0
                && world.budget.total > 0
                && keys.initialize.is_some_and(|it| it.is_some())
            {
                moves.push(Move::Delete(inc));
            }
        }
        moves
    }

    /// Whether a node forms or joins now.
    pub(super) fn is_looking(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        it.on
            && self.decider.nodes(it.doc).has(node)
            && !self.decider.is_refused(it)
            && !(it.runs && world.is_in_quorum(node))
    }

    fn forming(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        match it.look {
            Look::Acting(..) | Look::Ready(_) if it.on => moves.push(Move::Act(node)),
            Look::Acting(..) | Look::Ready(_) => {}
            Look::Idle | Look::Asking(_) if self.is_looking(world, node) => {
                for other in self.decider.others(node, it.doc) {
                    if matches!(it.look, Look::Asking(seen) if seen[other as usize] != Seen::NotAsked) {
                        continue;
                    }
                    let reachable = (other as usize) < world.nodes.len() && world.connected(node, other);
                    if reachable {
                        moves.push(Move::Ask(node, other, How::Answered));
                    }
                    if !reachable || self.lossy {
                        moves.push(Move::Ask(node, other, How::Lost));
                    }
                    // A mere question changes nothing where it arrives.
                    let asks = self.decider.request(node, it.doc, &Has::of(it)).inc.is_some();
                    if reachable && self.lossy && asks {
                        moves.push(Move::Ask(node, other, How::Unanswered));
                    }
                    if asks && world.letter.is_none() && world.budget.letters > 0 && world.budget.total > 0 {
                        moves.push(Move::Ask(node, other, How::Late));
                    }
                }
                let through = self.decider.nodes(it.doc).without(node);
                if through.is_empty() && it.look == Look::Idle {
                    moves.push(Move::Alone(node));
                }
                moves.extend(world.quorums_seen(node, through).iter().map(|inc| Move::Beside(node, inc)));
            }
            Look::Idle | Look::Asking(_) => {}
        }
    }

    /// Whether a node has still to write that its etcd has answered.
    pub(super) fn may_see(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        let Some(data) = it.data().filter(|_| it.on && it.runs) else { return false };
        it.begun.is_some_and(|begun| begun.inc.no == data.inc.no && !begun.seen)
    }

    fn etcd_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        let Some(data) = it.data().filter(|_| it.on && it.runs) else { return };
        let inc = data.inc.no;
        if self.may_see(world, node) {
            moves.push(Move::Seen(node));
        }
        let truth = &world.incs[inc as usize];
        if world.is_in_quorum(node) {
            if !truth.started.has(node) {
                moves.push(Move::Publish(node));
            }
            if !truth.settled {
                let absent = self.decider.absent(data.inc, &truth.members, truth.started);
                let may = absent.iter().filter(|whom| *whom != node && world.may_remove(inc, *whom, node));
                moves.extend(may.map(|whom| Move::LetGo(node, whom)));
            }
        } else if truth.members[node as usize] != data.gen_ + 1 && world.has_quorum(inc, it.side) {
            moves.push(Move::Expelled(node));
        }
    }

    /// What the agent can do, which acts only where every service has been ready.
    fn agent_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        let Some(inc) = world.quorum_of(node).filter(|_| self.is_settled(world, node)) else { return };
        let truth = &world.incs[inc as usize];
        if self.decider.documents.len() > 1 {
            if self.counts(world, node, false) {
                moves.push(Move::Count(node));
            }
            if world.budget.declares > 0 && self.counts(world, node, true) {
                moves.push(Move::Declare(node));
            }
            if let Some(whom) = self.prunes(world, node).filter(|whom| world.may_remove(inc, *whom, node)) {
                moves.push(Move::Prune(node, whom));
            }
        }
        if self.patroni
            && truth.keys.leader.is_none()
            && self.decider.restores(&truth.keys, it.db, it.db_unread).is_some()
        {
            moves.push(Move::Restore(node));
        }
    }

    fn is_settled(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        let ready = if self.patroni { it.complete && it.patroni() } else { it.begun.is_some_and(|begun| begun.seen) };
        ready && world.quorum_of(node).is_some_and(|inc| world.incs[inc as usize].settled)
    }

    /// Whether the document of a node becomes the newest.
    fn counts(&self, world: &World, node: u8, on_purpose: bool) -> bool {
        let (it, Some(data)) = (world.node(node), world.node(node).data()) else { return false };
        let truth = &world.incs[data.inc.no as usize];
        self.decider.becomes_newest(it.doc, &truth.keys, data.inc, &truth.members, truth.started, on_purpose)
    }

    /// Whom the agent of a node removes.
    fn prunes(&self, world: &World, node: u8) -> Option<u8> {
        let (it, data) = (world.node(node), world.node(node).data()?);
        let truth = &world.incs[data.inc.no as usize];
        let runs = |other: &u8| {
            let other = *other;
            world.connected(node, other)
                && world.node(other).runs
                && world.node(other).data().is_some_and(|it| it.inc == data.inc)
        };
        let answering = Set::of(world.all().filter(runs));
        self.decider.prunes(it.doc, &truth.keys, data.inc, &truth.members, truth.started, answering)
    }

    fn faults(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let (it, budget) = (world.node(node), &world.budget);
        if !it.on {
            moves.push(Move::Boot(node));
        }
        if it.side != 0 {
            moves.push(Move::Rejoin(node));
        }
        if it.etcd_unread || it.db_unread {
            moves.push(Move::Readable(node));
        }
        if budget.total == 0 {
            return;
        }
        let mut fault = |left: u8, possible: bool, fault: Move| {
            if left > 0 && possible {
                moves.push(fault);
            }
        };
        fault(budget.cuts, it.on, Move::Cut(node));
        let starts = it.look == Look::Ready(Step::Start) && it.etcd == Etcd::Absent;
        fault(budget.cuts, it.on && starts, Move::CutStarting(node));
        fault(budget.disks, true, Move::Replace(node));
        let on_etcd = it.etcd != Etcd::Absent || it.etcd_mark.is_some();
        fault(budget.etcd_lost, !it.on && on_etcd, Move::LoseEtcd(node));
        fault(budget.db_lost, !it.on && it.db != Db::Absent, Move::LoseDb(node));
        let remembers = it.begun.is_some() || it.complete || it.promises != Promises::default() || it.mark.is_some();
        fault(budget.state_lost, !it.on && remembers, Move::LoseState(node));
        let has_data = it.etcd != Etcd::Absent || it.db != Db::Absent;
        fault(budget.unread, !it.on && has_data && !it.etcd_unread, Move::Unreadable(node));
        fault(budget.damaged, !it.on && it.whole().is_some(), Move::Damage(node));
        fault(budget.parts, it.side == 0, Move::Part(node));
        let subsets = (1..1u8 << world.nodes.len()).map(Set).filter(|set| set.len() <= world.nodes.len() / 2);
        for without in subsets {
            let order = Order { doc: it.doc, without };
            fault(budget.orders, it.on && it.order != Some(order), Move::Order(node, without));
        }
        fault(budget.claims, self.may_claim(world, node), Move::Claim(node));
        fault(budget.takes, self.may_take(world, node).is_some(), Move::Take(node));
        let away = |look: &Look| !matches!(look, Look::Acting(..));
        let db = it.on && it.gate == Gate::Closed && !matches!(it.db, Db::Absent) && !it.db_unread;
        fault(budget.asides, db, Move::AsideDb(node));
        let etcd = it.on && !it.runs && it.etcd != Etcd::Absent && !it.etcd_unread && away(&it.look);
        fault(budget.asides, etcd, Move::AsideEtcd(node));
        for doc in 0..self.decider.documents.len() as u8 {
            fault(budget.documents, it.doc != doc, Move::Document(node, doc));
        }
    }

    /// Whether a person can claim the data of a node.
    pub(super) fn may_claim(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        if !(it.on && self.decider.is_refused(it) && self.decider.nodes(it.doc).has(node)) {
            return false;
        }
        let seen = world.quorums_seen(node, self.decider.nodes(it.doc).without(node)).iter().next();
        let told = seen.map(|no| (Inc { no, doc: world.incs[no as usize].doc }, &world.incs[no as usize]));
        !matches!(self.decider.claim(node, it, told), Verdict::Refused(..))
    }

    /// The database that a person on this node can say is the cluster's.
    pub(super) fn may_keep(&self, world: &World, node: u8) -> Option<u8> {
        let (it, inc) = (world.node(node), world.quorum_of(node)?);
        self.decider.keeps(&world.incs[inc as usize].keys, it.db, it.db_unread)
    }

    /// Whether the cluster may go on from a node, if a person insists.
    pub(super) fn may_recover(&self, world: &World, node: u8) -> Result<(), Unrecovered> {
        self.decider.may_recover(&self.decider.recover_view(world, node, |other| self.leads(world, other)))
    }

    /// In which etcd a person can let a node make the first database.
    pub(super) fn may_take(&self, world: &World, node: u8) -> Option<u8> {
        let inc = world.quorum_of(node).filter(|_| self.patroni)?;
        let keys = &world.incs[inc as usize].keys;
        (!self.decider.has_database(keys) && keys.first != Some((node, None))).then_some(inc)
    }
}
