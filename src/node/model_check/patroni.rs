//! The gate before Patroni, and Patroni: what it does by itself is modelled as its code has it, version 4.

use super::{
    decide::{Done, GateView, Way},
    moves::{Model, Move},
    world::*,
};

/// What is to be written down next about a database that is whole.
enum Finish {
    Pin(u8),
    /// The mark of the beginning goes.
    Unmark,
    /// Every service has been ready once.
    Complete,
}

impl Model {
    /// What the gate and Patroni can do.
    pub(super) fn database_moves(&self, world: &World, node: u8, moves: &mut Vec<Move>) {
        let it = world.node(node);
        if !it.on {
            return;
        }
        match it.gate {
            Gate::Closed if self.gate_view(world, node).is_some() => moves.push(Move::GateLook(node)),
            Gate::Ready(..) => moves.push(Move::GateAct(node)),
            Gate::Patroni => self.patroni_moves(world, node, moves),
            Gate::Closed => {}
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
                    if keys.leader.is_none() && may_lead && whole.use_ != Use::Copied {
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
        let in_vain =
            it.db == Db::Absent && self.gate_view(world, node).is_some_and(|view| self.decider.is_in_vain(&view));
        if in_vain {
            moves.push(Move::InVain(node));
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

    pub(super) fn gate_view(&self, world: &World, node: u8) -> Option<GateView> {
        let inc = world.quorum_of(node)?;
        let (it, truth) = (world.node(node), &world.incs[inc as usize]);
        let forms = it.begun.is_some_and(|begun| begun.joins.is_none()) && !it.complete;
        let keys = &truth.keys;
        truth.settled.then_some(GateView {
            me: node,
            forms,
            keys: Keys { leader: None, sync: Set(0), newest: None, older: Set(0), ..*keys },
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

    /// What is still to be written down on a node where Patroni runs.
    fn unfinished(&self, world: &World, node: u8) -> Option<Finish> {
        let (it, inc) = (world.node(node), world.quorum_of(node)?);
        match self.decider.completion(&world.incs[inc as usize].keys, it.db, it.db_unread)? {
            Done::Pin(system) => Some(Finish::Pin(system)),
            Done::Done if it.mark.is_some() => Some(Finish::Unmark),
            Done::Done => (!it.complete).then_some(Finish::Complete),
        }
    }

    pub(super) fn gate_look(&self, world: &mut World, node: u8) {
        let Some(view) = self.gate_view(world, node) else { return };
        world.node_mut(node).gate = match self.decider.gate(view) {
            GateStep::Wait | GateStep::Refuse => Gate::Closed,
            step => Gate::Ready(step, false),
        };
    }

    /// Writes a key of ours or Patroni's; whoever has read the keys before has an old view of them.
    pub(super) fn write_key(&self, world: &mut World, inc: u8, change: impl FnOnce(&mut Keys)) {
        world.write(inc, |it| change(&mut it.keys));
        for node in 0..world.nodes.len() as u8 {
            if world.node(node).data().is_some_and(|data| data.inc.no == inc)
                && let Gate::Ready(_, stale) = &mut world.node_mut(node).gate
            {
                *stale = true;
            }
        }
    }

    pub(super) fn gate_act(&self, world: &mut World, node: u8) {
        let Gate::Ready(step, stale) = world.node(node).gate else { return };
        world.node_mut(node).gate = Gate::Closed;
        // A key is written as long as the keys are as they were read, and a quorum answers.
        let inc = world.quorum_of(node).filter(|_| !stale);
        match (step, inc) {
            (GateStep::Start(mark), _) => {
                let it = world.node_mut(node);
                it.mark = mark.or(it.mark);
                it.gate = Gate::Patroni;
            }
            (GateStep::SetAside, _) => {
                self.set_database_aside(world, node);
                world.node_mut(node).gate = Gate::Ready(GateStep::Unmark, false);
            }
            (GateStep::Unmark, _) => world.node_mut(node).mark = None,
            (_, None) | (GateStep::Wait | GateStep::Refuse, _) => {}
            (GateStep::Open, Some(inc)) => self.write_key(world, inc, |keys| {
                keys.first = Some((node, None));
                keys.initialize_older = keys.initialize.is_some();
            }),
            (GateStep::Pin(system), Some(inc)) => self.pin(world, inc, node, system),
            (GateStep::GiveUp, Some(inc)) => {
                self.write_key(world, inc, |keys| (keys.initialize, keys.emptied) = (None, false))
            }
        }
    }

    fn pin(&self, world: &mut World, inc: u8, node: u8, system: u8) {
        self.write_key(world, inc, |keys| {
            keys.first = Some((keys.first.map_or(node, |(node, _)| node), Some(system)));
        });
    }

    fn set_database_aside(&self, world: &mut World, node: u8) {
        match world.node(node).db {
            Db::Whole(Whole { use_: Use::Used, .. }) | Db::Damaged(Whole { use_: Use::Used, .. }) => {
                world.breaks("a database was set aside that was in use");
            }
            Db::Half(_) | Db::Whole(_) | Db::Damaged(_) if world.node(node).mark.is_none() => {
                world.breaks("a folder was set aside that this node has not begun");
            }
            _ => {}
        }
        world.node_mut(node).db = Db::Absent;
    }

    /// Whether what is to be written down next concerns nobody else.
    pub(super) fn finishes_alone(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        it.on && it.patroni() && matches!(self.unfinished(world, node), Some(Finish::Unmark | Finish::Complete))
    }

    pub(super) fn finish(&self, world: &mut World, node: u8) {
        let Some(inc) = world.quorum_of(node) else { return };
        match self.unfinished(world, node) {
            Some(Finish::Pin(system)) => self.pin(world, inc, node, system),
            Some(Finish::Unmark) => world.node_mut(node).mark = None,
            Some(Finish::Complete) => world.node_mut(node).complete = true,
            None => {}
        }
    }

    pub(super) fn patroni_does(&self, world: &mut World, happens: Move) {
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
                self.write_key(world, inc, |keys| {
                    (keys.initialize, keys.emptied) = (Some(None), false);
                    keys.initialize_older = keys.first.is_none();
                });
                world.node_mut(node).db = Db::Half(Mark::Bootstrap);
            }
            // `post_bootstrap` fails on a node that was not let in to make a database: Patroni moves away what it has made.
            Move::InitdbDone(_) if world.node(node).mark != Some(Mark::Bootstrap) => {
                self.write_key(world, inc, |keys| (keys.initialize, keys.emptied) = (None, false));
                world.node_mut(node).db = Db::Absent;
            }
            Move::InitdbDone(_) => {
                self.check_initdb(world, node);
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
                    (keys.initialize, keys.emptied) = (Some(Some(system)), false);
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
                // Where it was told by the keys, its roles may be missing, and it takes writes all the same.
                world.node_mut(node).db = Db::Whole(Whole { use_: Use::Used, ..whole });
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
}
