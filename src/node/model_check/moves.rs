//! What can happen next in a state of the world, and what the world is like then.

use super::{
    decide::{Ask, Decider, Fate, GateView, Has, Step, Way},
    world::*,
};
use crate::node::{claim::Verdict, join::Aside};
use std::fmt;

/// Mistakes that the checker must find.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Bugs {
    /// Who does not answer counts as one that has promised.
    pub(super) silent_is_fresh: bool,
    /// A promise is told before it is on the disk.
    pub(super) told_unwritten: bool,
}

/// What can happen in a world.
pub(super) struct Model {
    pub(super) decider: Decider,
    /// The rules of a world: whether messages are lost, and Patroni is there.
    pub(super) lossy: bool,
    pub(super) patroni: bool,
    pub(super) bugs: Bugs,
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
    Deliver,
    Beside(u8, u8),
    Act(u8),
    Seen(u8),
    Publish(u8),
    LetGo(u8, u8),
    Expelled(u8),
    GateLook(u8),
    GateAct(u8),
    PatroniStart(u8),
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
    Empty(u8),
    /// `patronictl failover`.
    Failover(u8),
    Claim(u8),
    Take(u8),
    /// `aside make database`.
    Aside(u8),
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |node: &u8| name(*node);
        match self {
            Move::Ask(by, to, How::Answered) => write!(f, "{} asks {} and is answered", n(by), n(to)),
            Move::Ask(by, to, How::Unanswered) => write!(f, "{} asks {}, and the answer is lost", n(by), n(to)),
            Move::Ask(by, to, How::Lost) => write!(f, "{} asks {} in vain", n(by), n(to)),
            Move::Ask(by, to, How::Late) => {
                write!(f, "{} asks {}, whom the question has not reached yet", n(by), n(to))
            }
            Move::Deliver => write!(f, "a late question arrives"),
            Move::Beside(by, inc) => write!(f, "{} sees the quorum of I{inc}", n(by)),
            Move::Act(by) => write!(f, "{} does what it has decided", n(by)),
            Move::Seen(node) => write!(f, "{} writes that its etcd has answered", n(node)),
            Move::Publish(node) => write!(f, "the etcd of {} tells its clients' addresses", n(node)),
            Move::LetGo(by, whom) => write!(f, "{} lets {} go, which never came", n(by), n(whom)),
            Move::Expelled(node) => write!(f, "the etcd of {} learns that it was removed, and ends", n(node)),
            Move::GateLook(node) => write!(f, "{} looks whether Patroni may start", n(node)),
            Move::GateAct(node) => write!(f, "the gate of {} does what it has decided", n(node)),
            Move::PatroniStart(node) => write!(f, "Patroni starts on {}", n(node)),
            Move::PatroniEnds(node) => write!(f, "Patroni ends on {}: its database is another cluster's", n(node)),
            Move::Initdb(node) => write!(f, "{} begins the first database", n(node)),
            Move::InitdbDone(node) => write!(f, "initdb is done on {}", n(node)),
            Move::Announce(node) => write!(f, "{} writes its system identifier into `initialize`", n(node)),
            Move::Copy(node) => write!(f, "{} begins to copy the primary", n(node)),
            Move::CopyDone(node) => write!(f, "the copy of {} is there", n(node)),
            Move::CopyFails(node) => write!(f, "the copy of {} fails, and Patroni removes what it has copied", n(node)),
            Move::StartCopy(node) => write!(f, "the server of {} starts with its copy", n(node)),
            Move::Follow(node) => write!(f, "{} streams and is a synchronous standby", n(node)),
            Move::Lead(node) => write!(f, "{} is the primary", n(node)),
            Move::Expire(inc) => write!(f, "the leader key of I{inc} expires"),
            Move::Drop(by, whom) => write!(f, "{} goes on without the standby {}", n(by), n(whom)),
            Move::Write(node) => write!(f, "{} acknowledges a commit", n(node)),
            Move::Finish(node) => write!(f, "{} writes down that its database is whole", n(node)),
            Move::Cut(node) => write!(f, "the power of {} is cut", n(node)),
            Move::Boot(node) => write!(f, "{} boots", n(node)),
            Move::Replace(node) => write!(f, "{} is replaced: all its disks are new", n(node)),
            Move::LoseEtcd(node) => write!(f, "{} boots without the volume of etcd", n(node)),
            Move::LoseDb(node) => write!(f, "{} boots without the volume of the database", n(node)),
            Move::LoseState(node) => write!(f, "{} boots without what it remembers", n(node)),
            Move::CutStarting(node) => write!(f, "the power of {} is cut before its etcd has written its log", n(node)),
            Move::Unreadable(node) => write!(f, "{} cannot read its disks", n(node)),
            Move::Readable(node) => write!(f, "{} can read its disks", n(node)),
            Move::Damage(node) => write!(f, "pg_control of {} is damaged", n(node)),
            Move::Part(node) => write!(f, "{} is cut off", n(node)),
            Move::Rejoin(node) => write!(f, "{} is not cut off any more", n(node)),
            Move::Order(node, without) => write!(f, "a person on {}: form --without {without:?}", n(node)),
            Move::Document(node, doc) => write!(f, "{} gets document {doc}", n(node)),
            Move::Empty(inc) => write!(f, "a person empties `initialize` of I{inc}"),
            Move::Failover(node) => write!(f, "a person makes {} the primary", n(node)),
            Move::Claim(node) => write!(f, "a person claims the data of {}", n(node)),
            Move::Take(node) => write!(f, "a person lets {} make the first database", n(node)),
            Move::Aside(node) => write!(f, "a person sets the database of {} aside", n(node)),
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
        }
        moves
    }

    /// Whether a node forms or joins now.
    pub(super) fn is_looking(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        it.on && self.decider.nodes(it.doc).has(node) && !it.is_refused() && !(it.runs && world.is_in_quorum(node))
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
                    if reachable && self.lossy {
                        moves.push(Move::Ask(node, other, How::Unanswered));
                    }
                    let asks = self.decider.request(node, it.doc, &Has::of(it)).inc.is_some();
                    if asks && world.letter.is_none() && world.budget.letters > 0 && world.budget.total > 0 {
                        moves.push(Move::Ask(node, other, How::Late));
                    }
                }
                let through = self.decider.nodes(it.doc).without(node);
                moves.extend(world.quorums_seen(node, through).iter().map(|inc| Move::Beside(node, inc)));
            }
            Look::Idle | Look::Asking(_) => {}
        }
    }

    fn etcd_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        let Some(data) = it.data().filter(|_| it.on && it.runs) else { return };
        let inc = data.inc.no;
        if it.begun.is_some_and(|begun| begun.inc.no == inc && !begun.seen) {
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

    fn database_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        if !it.on {
            return;
        }
        match it.gate {
            Gate::Closed if self.gate_view(world, node).is_some() => moves.push(Move::GateLook(node)),
            Gate::Ready(..) if world.is_in_quorum(node) => moves.push(Move::GateAct(node)),
            Gate::Open => moves.push(Move::PatroniStart(node)),
            Gate::Patroni => self.patroni_moves(world, node, moves),
            Gate::Closed | Gate::Ready(..) => {}
        }
    }

    fn patroni_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        for inc in self.reached(world, node).iter() {
            let keys = &world.incs[inc as usize].keys;
            let primary = keys.leader.filter(|leader| *leader != node && world.connected(node, *leader));
            let primary = primary.and_then(|leader| world.node(leader).whole().map(|whole| (leader, *whole)));
            match (&it.db, keys.initialize) {
                (Db::Absent, None) if keys.leader.is_none() => moves.push(Move::Initdb(node)),
                (Db::Absent, Some(Some(_))) if primary.is_some() => moves.push(Move::Copy(node)),
                (Db::Half(Mark::Bootstrap), _) => moves.push(Move::InitdbDone(node)),
                (Db::Half(Mark::Clone), _) if primary.is_some() => moves.push(Move::CopyDone(node)),
                (Db::Half(Mark::Clone), _) => moves.push(Move::CopyFails(node)),
                (Db::Whole(whole), Some(Some(system))) if whole.system != system => moves.push(Move::PatroniEnds(node)),
                (Db::Whole(_), None | Some(None)) if keys.leader.is_none_or(|leader| leader == node) => {
                    moves.push(Move::Announce(node));
                }
                (Db::Whole(whole), Some(Some(_))) => {
                    let may_lead = keys.sync.has(node) || keys.sync.is_empty();
                    if keys.leader.is_none() && may_lead && whole.use_ == Use::Used {
                        moves.push(Move::Lead(node));
                    }
                    if whole.use_ == Use::Copied {
                        moves.push(Move::StartCopy(node));
                    }
                    let follows = keys.sync.has(node) || whole.use_ != Use::Used;
                    if primary.is_some_and(|(_, it)| it.system == whole.system) && !follows {
                        moves.push(Move::Follow(node));
                    }
                }
                _ => {}
            }
            if keys.leader == Some(node) && self.leads(world, node) {
                let away = keys.sync.without(node).iter().filter(|other| !self.streams(world, node, *other));
                let away: Vec<u8> = away.collect();
                moves.extend(away.iter().map(|other| Move::Drop(node, *other)));
                if away.is_empty() && world.budget.commits > 0 {
                    moves.push(Move::Write(node));
                }
            }
        }
        if self.unfinished(world, node).is_some() {
            moves.push(Move::Finish(node));
        }
    }

    /// Whether a node is a primary that accepts writes.
    pub(super) fn leads(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        let reached = self.reached(world, node);
        let holds = reached.iter().any(|inc| world.incs[inc as usize].keys.leader == Some(node));
        it.on && it.patroni() && it.whole().is_some() && holds
    }

    fn streams(&self, world: &World, leader: u8, node: u8) -> bool {
        let it = world.node(node);
        it.patroni() && world.connected(leader, node) && it.whole().is_some_and(|whole| whole.use_ == Use::Used)
    }

    /// The incarnations whose keys the Patroni of a node reaches.
    fn reached(&self, world: &World, node: u8) -> Set {
        world.quorums_seen(node, self.decider.nodes(world.node(node).doc))
    }

    fn gate_view(&self, world: &World, node: u8) -> Option<GateView> {
        let inc = world.quorum_of(node)?;
        let (it, truth) = (world.node(node), &world.incs[inc as usize]);
        let forms = it.begun.is_some_and(|begun| begun.joins.is_none()) && !it.complete;
        let keys = &truth.keys;
        truth.settled.then_some(GateView {
            me: node,
            forms,
            keys: Keys { leader: None, sync: Set(0), ..*keys },
            db: it.db,
            unread: it.db_unread,
            mark: it.mark,
        })
    }

    /// What a node waits for at the gate, by the way on that it names.
    pub(super) fn gate_way(&self, world: &World, node: u8) -> Option<Way> {
        if !self.patroni || world.node(node).gate != Gate::Closed {
            return None;
        }
        Some(self.decider.gate_way(self.gate_view(world, node)?))
    }

    /// What is still to be written down about a database that is whole (`Gate::missing`).
    fn unfinished(&self, world: &World, node: u8) -> Option<u8> {
        let (it, inc) = (world.node(node), world.quorum_of(node)?);
        let keys = &world.incs[inc as usize].keys;
        let known = keys.initialize.flatten().or(keys.first.and_then(|(_, system)| system))?;
        let whole = it.whole().filter(|whole| whole.system == known && whole.use_ == Use::Used)?;
        let pinned = keys.first.is_some_and(|(_, system)| system.is_some());
        (!pinned || it.mark.is_some() || !it.complete).then_some(whole.system)
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
        for doc in 0..self.decider.documents.len() as u8 {
            fault(budget.documents, it.doc != doc, Move::Document(node, doc));
        }
    }

    /// Whether a person can claim the data of a node.
    pub(super) fn may_claim(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        if !(it.on && it.is_refused() && self.decider.nodes(it.doc).has(node)) {
            return false;
        }
        let seen = world.quorums_seen(node, self.decider.nodes(it.doc).without(node)).iter().next();
        let told = seen.map(|no| (Inc { no, doc: world.incs[no as usize].doc }, &world.incs[no as usize]));
        !matches!(self.decider.claim(node, it, told), Verdict::Refused(..))
    }

    /// In which etcd a person can let a node make the first database.
    pub(super) fn may_take(&self, world: &World, node: u8) -> Option<u8> {
        let inc = world.quorum_of(node).filter(|_| self.patroni)?;
        let keys = &world.incs[inc as usize].keys;
        let is_known = keys.initialize.flatten().is_some() || keys.first.is_some_and(|(_, system)| system.is_some());
        (!is_known && keys.first != Some((node, None))).then_some(inc)
    }

    /// The world after something has happened.
    pub(super) fn after(&self, world: &World, happens: Move) -> World {
        let mut next = world.clone();
        self.happen(&mut next, happens);
        next.replicate();
        self.check(&mut next);
        next.canonical()
    }

    fn happen(&self, world: &mut World, happens: Move) {
        match happens {
            Move::Ask(by, to, how) => self.ask(world, by, to, how),
            Move::Deliver => {
                if let Some(letter) = world.letter.take() {
                    let ask =
                        Ask { from: letter.from, doc: letter.doc, inc: Some(letter.inc), without: letter.without };
                    self.hear(world, letter.to, &ask);
                }
            }
            Move::Beside(by, inc) => self.look_beside(world, by, inc),
            Move::Act(by) => self.act(world, by),
            Move::Seen(node) => {
                if let Some(begun) = &mut world.node_mut(node).begun {
                    begun.seen = true;
                }
            }
            Move::Publish(node) => {
                if let Some(inc) = world.quorum_of(node) {
                    world.write(inc, |it| it.started = it.started.with(node));
                }
            }
            Move::LetGo(by, whom) => {
                if let Some(inc) = world.quorum_of(by) {
                    world.write(inc, |it| remove(it, whom));
                }
            }
            Move::Expelled(node) => stop_etcd(world.node_mut(node)),
            Move::GateLook(node) => self.gate_look(world, node),
            Move::GateAct(node) => self.gate_act(world, node),
            Move::PatroniStart(node) => world.node_mut(node).gate = Gate::Patroni,
            Move::PatroniEnds(node) => world.node_mut(node).gate = Gate::Closed,
            Move::Finish(node) => self.finish(world, node),
            Move::Initdb(_)
            | Move::InitdbDone(_)
            | Move::Announce(_)
            | Move::Copy(_)
            | Move::CopyDone(_)
            | Move::CopyFails(_)
            | Move::StartCopy(_)
            | Move::Follow(_)
            | Move::Lead(_)
            | Move::Failover(_)
            | Move::Expire(_)
            | Move::Drop(..)
            | Move::Write(_) => self.patroni_does(world, happens),
            _ => self.goes_wrong(world, happens),
        }
    }

    // Forming and joining.

    fn place(world: &World, node: u8) -> (u8, u8, Has, Option<Order>) {
        let it = world.node(node);
        (node, it.doc, Has::of(it), it.order)
    }

    fn ask(&self, world: &mut World, by: u8, to: u8, how: How) {
        let it = world.node(by);
        let ask = self.decider.request(by, it.doc, &Has::of(it));
        let heard = match how {
            How::Answered | How::Unanswered => self.hear(world, to, &ask),
            How::Lost => Seen::Silent,
            How::Late => {
                let letter = ask.inc.map(|inc| Letter { to, from: by, doc: ask.doc, inc, without: ask.without });
                world.letter = letter;
                spend(&mut world.budget, |budget| &mut budget.letters);
                Seen::Silent
            }
        };
        let heard = if how == How::Answered { heard } else { Seen::Silent };
        let heard = match (heard, ask.inc) {
            (Seen::Silent, Some(inc)) if self.bugs.silent_is_fresh => Seen::Told(Told {
                doc: ask.doc,
                fresh: true,
                promise: Some((by, inc)),
                cluster: None,
                refusal: Refusal::None,
            }),
            (heard, _) => heard,
        };
        let mut seen = match world.node(by).look {
            Look::Asking(seen) => seen,
            _ => [Seen::NotAsked; NODES],
        };
        seen[to as usize] = heard;
        let fate = self.decider.fate(Model::place(world, by), &seen);
        world.node_mut(by).look = match fate {
            Fate::Nothing => Look::Idle,
            Fate::Surely(step) if is_nothing(world.node(by), step) => Look::Idle,
            Fate::Surely(step) => Look::Ready(step),
            Fate::Open => Look::Asking(seen),
        };
    }

    /// What `to` says to a question, and what it writes before.
    pub(super) fn hear(&self, world: &mut World, to: u8, ask: &Ask) -> Seen {
        let it = world.node(to);
        let speaks = self.decider.nodes(it.doc).has(to) && !it.is_refused() && !matches!(it.look, Look::Acting(..));
        if !(it.on && (speaks || it.runs)) {
            return Seen::Silent;
        }
        if let (true, Some(data)) = (it.runs, it.data()) {
            return Seen::Etcd { inc: data.inc, ever: data.ever };
        }
        let (told, written) = self.decider.answer(to, it.doc, &Has::of(it), ask);
        if let Some(promises) = written {
            self.promise(world.node_mut(to), promises);
        }
        Seen::Told(told)
    }

    fn promise(&self, node: &mut Node, promises: Promises) {
        if self.bugs.told_unwritten && node.unwritten.is_none() {
            node.unwritten = Some(node.promises);
        }
        node.promises = promises;
        node.look = Look::Idle;
    }

    fn look_beside(&self, world: &mut World, by: u8, inc: u8) {
        let truth = world.incs[inc as usize];
        let seen = Inc { no: inc, doc: truth.doc };
        let step = self.decider.beside(Model::place(world, by), seen, &truth.members, truth.started);
        let nothing = matches!(step, Step::Wait(_)) || is_nothing(world.node(by), step);
        world.node_mut(by).look = if nothing { Look::Idle } else { Look::Ready(step) };
    }

    fn act(&self, world: &mut World, by: u8) {
        let (step, done) = match world.node(by).look {
            Look::Ready(step) => (step, 0),
            Look::Acting(step, done) => (step, done),
            _ => return,
        };
        let is_over = self.carry_out(world, by, step, done);
        world.node_mut(by).look = match step {
            _ if !is_over => Look::Acting(step, done + 1),
            // Nothing else has changed, so that there is nothing to look at.
            Step::Commit(_) => Look::Ready(Step::Start),
            _ => Look::Idle,
        };
    }

    /// Does one write of a step; whether it was the last.
    fn carry_out(&self, world: &mut World, by: u8, step: Step, done: u8) -> bool {
        match (step, done) {
            (Step::Promise(promises), _) => {
                let promises = self.draw(world, promises);
                self.promise(world.node_mut(by), promises);
            }
            (Step::Release(promises), _) => self.promise(world.node_mut(by), promises),
            (Step::Commit(begun), 0) => {
                world.node_mut(by).etcd_mark = Some((begun.inc, begun.gen_));
                return false;
            }
            (Step::Commit(begun), 1) => {
                let it = world.node_mut(by);
                it.begun = Some(begun);
                it.unwritten = None;
                let without = it.promises.held.filter(|held| held.inc == begun.inc).map(|held| held.without);
                world.ordered.without = Set(world.ordered.without.0 | without.unwrap_or_default().0);
                return world.node(by).order.is_none();
            }
            (Step::Commit(_), _) => world.node_mut(by).order = None,
            (Step::Start, _) => self.start_etcd(world, by),
            (Step::Resume, _) => world.node_mut(by).runs = true,
            (Step::Remove(inc, whom, gen_), _) => {
                let asked = world.quorums_seen(by, self.decider.nodes(world.node(by).doc)).has(inc.no);
                let listed = world.incs[inc.no as usize].members[whom as usize] == gen_ + 1;
                if asked && listed && world.may_remove(inc.no, whom, by) {
                    world.write(inc.no, |it| remove(it, whom));
                }
            }
            (Step::Add(inc), _) => {
                let asked = world.quorums_seen(by, self.decider.nodes(world.node(by).doc)).has(inc.no);
                let listed = world.incs[inc.no as usize].members[by as usize] != 0;
                if asked && !listed && world.may_add(inc.no, by) {
                    let gen_ = world.next_gen(inc.no, by);
                    world.write(inc.no, |it| it.members[by as usize] = gen_ + 1);
                    world.node_mut(by).added = Some((inc, gen_));
                }
            }
            (Step::SetAside(Aside::Unfinished), _) => self.set_etcd_aside(world, by),
            (Step::SetAside(_), 0) => {
                if let Some(begun) = &mut world.node_mut(by).begun {
                    begun.seen = true;
                }
                return false;
            }
            (Step::SetAside(_), 1) => {
                stop_etcd(world.node_mut(by));
                return false;
            }
            (Step::SetAside(_), _) => self.set_etcd_aside(world, by),
            (Step::Abandon(promises, _), 0) => {
                world.node_mut(by).promises = promises;
                return false;
            }
            (Step::Abandon(_, begun), 1) => {
                world.node_mut(by).begun = Some(begun);
                return false;
            }
            (Step::Abandon(..), 2) => {
                stop_etcd(world.node_mut(by));
                return false;
            }
            (Step::Abandon(..), _) => self.set_etcd_aside(world, by),
            (Step::Forget(promises), 0) => {
                world.node_mut(by).promises = promises;
                return false;
            }
            (Step::Forget(_), _) => {
                let it = world.node_mut(by);
                (it.begun, it.complete) = (None, false);
            }
            (Step::Wait(_), _) => {}
        }
        true
    }

    fn draw(&self, world: &mut World, mut promises: Promises) -> Promises {
        if let Some(held) = &mut promises.held
            && held.inc.no == DRAW
        {
            held.inc.no = world.incs.len() as u8;
            world.incs.push(Etcds {
                doc: held.inc.doc,
                born: false,
                settled: false,
                version: 0,
                members: self.decider.first_members(held.inc),
                started: Set(0),
                voted: [0; NODES],
                keys: Keys::default(),
            });
        }
        promises
    }

    fn start_etcd(&self, world: &mut World, by: u8) {
        let Some(begun) = world.node(by).begun else { return };
        let truth = world.incs[begun.inc.no as usize];
        let data = match begun.joins {
            None => Data {
                inc: begun.inc,
                gen_: begun.gen_,
                version: 0,
                members: self.decider.first_members(begun.inc),
                ever: false,
            },
            Some(list) => {
                // etcd compares the members that it was told with those of the cluster.
                let same = nodes_of(&list) == nodes_of(&truth.members);
                let listed = truth.members[by as usize] == begun.gen_ + 1;
                let answers = world.quorums_seen(by, nodes_of(&list)).has(begun.inc.no);
                if !(same && listed && answers) {
                    return;
                }
                Data { inc: begun.inc, gen_: begun.gen_, version: 0, members: truth.members, ever: true }
            }
        };
        if truth.voted[by as usize] & 1 << begun.gen_ != 0 && world.is_counted_on(begun.inc.no, by, begun.gen_) {
            world.breaks("a member that has voted starts again without its log");
        }
        let it = world.node_mut(by);
        it.etcd = Etcd::Data(data);
        it.runs = true;
    }

    fn set_etcd_aside(&self, world: &mut World, by: u8) {
        if let Some(data) = world.node(by).data() {
            // Before a member has told its clients' addresses, nobody has written anything into that etcd.
            let excused = world.node(by).excused || world.ordered.without.has(by);
            if data.ever && !excused && !world.is_elsewhere(data, by) {
                world.breaks("etcd's data were set aside that are nowhere else");
            }
        }
        let it = world.node_mut(by);
        (it.etcd, it.runs, it.excused) = (Etcd::Absent, false, false);
    }

    // The gate before Patroni.

    fn gate_look(&self, world: &mut World, node: u8) {
        let Some(view) = self.gate_view(world, node) else { return };
        world.node_mut(node).gate = match self.decider.gate(view) {
            GateStep::Wait | GateStep::Refuse => Gate::Closed,
            step => Gate::Ready(step, false),
        };
    }

    /// Writes a key of ours or Patroni's; whoever has read the keys before has an old view of them.
    fn write_key(&self, world: &mut World, inc: u8, change: impl FnOnce(&mut Keys)) {
        world.write(inc, |it| change(&mut it.keys));
        for node in 0..world.nodes.len() as u8 {
            if world.node(node).data().is_some_and(|data| data.inc.no == inc)
                && let Gate::Ready(_, stale) = &mut world.node_mut(node).gate
            {
                *stale = true;
            }
        }
    }

    fn gate_act(&self, world: &mut World, node: u8) {
        let Gate::Ready(step, stale) = world.node(node).gate else { return };
        let Some(inc) = world.quorum_of(node) else { return };
        world.node_mut(node).gate = Gate::Closed;
        match step {
            GateStep::Start(mark) => {
                let it = world.node_mut(node);
                it.mark = mark.or(it.mark);
                it.gate = Gate::Open;
            }
            GateStep::SetAside => {
                self.set_database_aside(world, node);
                world.node_mut(node).gate = Gate::Ready(GateStep::Unmark, false);
            }
            GateStep::Unmark => world.node_mut(node).mark = None,
            _ if stale => {}
            GateStep::Open => self.write_key(world, inc, |keys| {
                keys.first = Some((node, None));
                keys.initialize_older = keys.initialize.is_some();
            }),
            GateStep::Pin(system) => self.pin(world, inc, node, system),
            GateStep::GiveUp => self.write_key(world, inc, |keys| keys.initialize = None),
            GateStep::Wait | GateStep::Refuse => {}
        }
    }

    fn pin(&self, world: &mut World, inc: u8, node: u8, system: u8) {
        self.write_key(world, inc, |keys| {
            keys.first = Some((keys.first.map_or(node, |(node, _)| node), Some(system)));
        });
    }

    fn set_database_aside(&self, world: &mut World, node: u8) {
        match world.node(node).db {
            Db::Whole(Whole { use_: Use::Used, .. }) => {
                world.breaks("a database was set aside that was in use");
            }
            Db::Half(_) | Db::Whole(_) | Db::Damaged(_) if world.node(node).mark.is_none() => {
                world.breaks("a folder was set aside that this node has not begun");
            }
            _ => {}
        }
        world.node_mut(node).db = Db::Absent;
    }

    fn finish(&self, world: &mut World, node: u8) {
        let (Some(inc), Some(system)) = (world.quorum_of(node), self.unfinished(world, node)) else { return };
        if world.incs[inc as usize].keys.first.is_none_or(|(_, system)| system.is_none()) {
            self.pin(world, inc, node, system);
        } else if world.node(node).mark.is_some() {
            world.node_mut(node).mark = None;
        } else {
            world.node_mut(node).complete = true;
        }
    }

    // Patroni.

    fn patroni_does(&self, world: &mut World, happens: Move) {
        match happens {
            Move::Expire(inc) => self.write_key(world, inc, |keys| keys.leader = None),
            Move::Initdb(node)
            | Move::InitdbDone(node)
            | Move::Announce(node)
            | Move::Copy(node)
            | Move::CopyDone(node)
            | Move::CopyFails(node)
            | Move::StartCopy(node)
            | Move::Follow(node)
            | Move::Lead(node)
            | Move::Failover(node)
            | Move::Drop(node, _)
            | Move::Write(node) => {
                if let Some(inc) = self.reached(world, node).iter().next() {
                    self.patroni_of(world, node, inc, happens);
                }
            }
            _ => {}
        }
    }

    fn patroni_of(&self, world: &mut World, node: u8, inc: u8, happens: Move) {
        let keys = world.incs[inc as usize].keys;
        let primary = keys.leader.and_then(|leader| world.node(leader).whole().copied());
        match happens {
            Move::Initdb(_) => {
                self.check_initdb(world, node);
                self.write_key(world, inc, |keys| {
                    keys.initialize = Some(None);
                    keys.initialize_older = keys.first.is_none();
                });
                world.node_mut(node).db = Db::Half(Mark::Bootstrap);
            }
            Move::InitdbDone(_) => {
                let system = world.systems.len() as u8;
                world.systems.push(0);
                world.node_mut(node).db = Db::Whole(Whole { system, commits: 0, use_: Use::Made });
            }
            Move::Announce(_) => {
                let Db::Whole(whole) = &mut world.node_mut(node).db else { return };
                let is_first = whole.use_ == Use::Made;
                whole.use_ = Use::Used;
                let system = whole.system;
                self.write_key(world, inc, |keys| {
                    keys.initialize_older &= keys.initialize.is_some();
                    keys.initialize = Some(Some(system));
                    if is_first {
                        (keys.leader, keys.sync) = (Some(node), Set::of([node]));
                    }
                });
            }
            Move::Copy(_) => world.node_mut(node).db = Db::Half(Mark::Clone),
            Move::CopyDone(_) => {
                if let Some(primary) = primary {
                    world.node_mut(node).db = Db::Whole(Whole { use_: Use::Copied, ..primary });
                }
            }
            Move::CopyFails(_) => world.node_mut(node).db = Db::Absent,
            Move::StartCopy(_) => {
                if let Db::Whole(whole) = &mut world.node_mut(node).db {
                    whole.use_ = Use::Used;
                }
            }
            Move::Follow(_) => {
                if let Some(primary) = primary {
                    world.node_mut(node).db = Db::Whole(primary);
                    world.write(inc, |it| it.keys.sync = it.keys.sync.with(node));
                }
            }
            Move::Failover(_) => world.write(inc, |it| (it.keys.leader, it.keys.sync) = (Some(node), Set::of([node]))),
            Move::Lead(_) => {
                let Some(whole) = world.node(node).whole().copied() else { return };
                if world.systems[whole.system as usize] & !whole.commits != 0 {
                    world.breaks("the primary lacks an acknowledged commit");
                }
                world.write(inc, |it| (it.keys.leader, it.keys.sync) = (Some(node), Set::of([node])));
            }
            Move::Drop(_, whom) => world.write(inc, |it| it.keys.sync = it.keys.sync.without(whom)),
            Move::Write(_) => self.acknowledge(world, keys.sync.with(node)),
            _ => {}
        }
    }

    fn acknowledge(&self, world: &mut World, on: Set) {
        world.budget.commits -= 1;
        let bit = 1 << world.budget.commits;
        for node in on.iter() {
            if let Db::Whole(whole) = &mut world.node_mut(node).db {
                whole.commits |= bit;
                let system = whole.system;
                world.systems[system as usize] |= bit;
            }
        }
    }

    // Faults and persons.

    fn goes_wrong(&self, world: &mut World, happens: Move) {
        if let Move::Replace(lost) | Move::LoseEtcd(lost) | Move::LoseDb(lost) | Move::LoseState(lost) = happens {
            world.excuse(lost);
            world.forget_looks(lost);
        }
        let budget = &mut world.budget;
        match happens {
            Move::Cut(node) => {
                spend(budget, |budget| &mut budget.cuts);
                world.hang_up(node);
                power_off(world.node_mut(node));
            }
            Move::Boot(node) => world.node_mut(node).on = true,
            Move::Replace(node) => {
                spend(budget, |budget| &mut budget.disks);
                world.hang_up(node);
                let it = world.node_mut(node);
                *it = Node { side: it.side, ..Node::new(it.doc) };
            }
            Move::LoseEtcd(node) => {
                spend(budget, |budget| &mut budget.etcd_lost);
                let it = world.node_mut(node);
                (it.etcd, it.etcd_mark) = (Etcd::Absent, None);
            }
            Move::LoseDb(node) => {
                spend(budget, |budget| &mut budget.db_lost);
                world.node_mut(node).db = Db::Absent;
            }
            Move::LoseState(node) => {
                spend(budget, |budget| &mut budget.state_lost);
                let it = world.node_mut(node);
                let kept = Node {
                    etcd: it.etcd,
                    etcd_mark: it.etcd_mark,
                    db: it.db,
                    side: it.side,
                    on: false,
                    ..Node::new(it.doc)
                };
                *it = kept;
            }
            Move::CutStarting(node) => {
                spend(budget, |budget| &mut budget.cuts);
                world.hang_up(node);
                let it = world.node_mut(node);
                it.etcd = Etcd::Unborn;
                power_off(it);
            }
            Move::Unreadable(node) => {
                spend(budget, |budget| &mut budget.unread);
                let it = world.node_mut(node);
                (it.etcd_unread, it.db_unread) = (it.etcd != Etcd::Absent, it.db != Db::Absent);
            }
            Move::Readable(node) => {
                let it = world.node_mut(node);
                (it.etcd_unread, it.db_unread, it.look) = (false, false, Look::Idle);
            }
            Move::Damage(node) => {
                spend(budget, |budget| &mut budget.damaged);
                let it = world.node_mut(node);
                if let Db::Whole(whole) = it.db {
                    it.db = Db::Damaged(whole);
                }
            }
            Move::Part(node) => {
                spend(budget, |budget| &mut budget.parts);
                world.node_mut(node).side = 1;
            }
            Move::Rejoin(node) => world.node_mut(node).side = 0,
            Move::Order(node, without) => {
                spend(budget, |budget| &mut budget.orders);
                let it = world.node_mut(node);
                it.order = Some(Order { doc: it.doc, without });
                it.look = unless_acting(it.look);
            }
            Move::Document(node, doc) => {
                spend(budget, |budget| &mut budget.documents);
                let it = world.node_mut(node);
                it.doc = doc;
                it.look = unless_acting(it.look);
            }
            Move::Claim(node) => {
                spend(budget, |budget| &mut budget.claims);
                self.claim(world, node);
            }
            Move::Take(node) => {
                spend(budget, |budget| &mut budget.takes);
                self.take(world, node);
            }
            Move::Empty(inc) => {
                spend(budget, |budget| &mut budget.emptied);
                world.ordered.emptied = true;
                self.write_key(world, inc, |keys| keys.initialize = Some(None));
            }
            _ => {}
        }
        world.forgive();
    }

    /// `Claim::write`.
    pub(super) fn claim(&self, world: &mut World, node: u8) {
        let it = world.node_mut(node);
        let inc = Inc { no: CLAIMED, doc: it.doc };
        it.begun = Some(Begun { inc, gen_: 1, joins: Some([0; NODES]), seen: false });
        it.complete = it.db != Db::Absent;
    }

    /// `Store::take`.
    pub(super) fn take(&self, world: &mut World, node: u8) {
        let Some(inc) = self.may_take(world, node) else { return };
        world.ordered.taken = true;
        self.write_key(world, inc, |keys| {
            (keys.first, keys.initialize, keys.initialize_older) = (Some((node, None)), None, false);
        });
    }
}

fn unless_acting(look: Look) -> Look {
    match look {
        Look::Acting(..) => look,
        _ => Look::Idle,
    }
}

fn spend(budget: &mut Budget, kind: impl FnOnce(&mut Budget) -> &mut u8) {
    budget.total -= 1;
    *kind(budget) -= 1;
}

fn stop_etcd(node: &mut Node) {
    node.runs = false;
    if !matches!(node.look, Look::Acting(..)) {
        node.look = Look::Idle;
    }
}

pub(super) fn power_off(node: &mut Node) {
    node.on = false;
    node.runs = false;
    node.look = Look::Idle;
    node.gate = Gate::Closed;
    node.added = None;
    node.excused = false;
    if let Some(written) = node.unwritten.take() {
        node.promises = written;
    }
}

fn remove(it: &mut Etcds, whom: u8) {
    it.members[whom as usize] = 0;
    it.started = it.started.without(whom);
}

/// Whether a step changes nothing, as etcd runs already.
fn is_nothing(node: &Node, step: Step) -> bool {
    node.runs && matches!(step, Step::Resume)
}

impl World {
    /// The number of the member that a node becomes when it is added.
    fn next_gen(&self, inc: u8, node: u8) -> u8 {
        let mut world = self.clone();
        let mut most = 0;
        world.each_gen(inc, node, &mut |gen_| most = most.max(*gen_));
        let voted = self.incs[inc as usize].voted[node as usize];
        let voted = 8 - voted.leading_zeros() as u8;
        most.max(voted.saturating_sub(1)) + 1
    }

    /// Known limit: no look is older than the loss of a disk, which takes longer than the few seconds of a look. A founder
    /// that stands still in the middle of one, as a suspended machine does, could commit by the promise of a node that
    /// has given it up since, and by that of another one that has forgotten why it must not give it.
    fn forget_looks(&mut self, lost: u8) {
        for node in self.all().filter(|node| *node != lost) {
            let it = self.node_mut(node);
            it.look = unless_acting(it.look);
        }
    }

    /// No question comes to a process that has ended.
    fn hang_up(&mut self, node: u8) {
        self.letter = self.letter.filter(|letter| letter.to != node);
    }

    /// A disk is about to be lost: who is about to set aside what is on it too could not know.
    fn excuse(&mut self, lost: u8) {
        for node in self.all().filter(|node| *node != lost) {
            let it = self.node(node);
            let is_aside = |step: &Step| matches!(step, Step::SetAside(_) | Step::Abandon(..));
            let sets_aside = matches!(&it.look, Look::Ready(step) | Look::Acting(step, _) if is_aside(step));
            if sets_aside && it.data().is_some_and(|data| self.is_elsewhere(data, node)) {
                self.node_mut(node).excused = true;
            }
        }
    }

    /// Whether a log that there is names this member, so that its votes count.
    fn is_counted_on(&self, inc: u8, node: u8, gen_: u8) -> bool {
        let names = |members: &Members| members[node as usize] == gen_ + 1;
        let logs = self.nodes.iter().filter_map(Node::data).filter(|data| data.inc.no == inc);
        names(&self.incs[inc as usize].members) || logs.into_iter().any(|data| names(&data.members))
    }

    /// Acknowledged commits whose last copy a fault has destroyed are nobody's fault.
    fn forgive(&mut self) {
        for system in 0..self.systems.len() {
            let copies = self.nodes.iter().filter_map(|node| match &node.db {
                Db::Whole(whole) | Db::Damaged(whole) if whole.system as usize == system => Some(whole.commits),
                _ => None,
            });
            let kept = copies.fold(0, |all, commits| all | commits);
            self.systems[system] &= kept;
        }
    }
}
