//! What the world is like after something has happened in it.

use super::{
    decide::{Ask, Fate, Has, Step, Write},
    moves::{How, Model, Move},
    mutations::Mutation,
    world::*,
};
use crate::node::join::Stopped;

impl Model {
    /// The world after something has happened.
    pub(super) fn after(&self, world: &World, happens: Move) -> World {
        let mut next = world.clone();
        self.happen(&mut next, happens);
        let mut next = self.settle(next);
        while let Some(alone) = self.alone(&next) {
            self.happen(&mut next, alone);
            next = self.settle(next);
        }
        next
    }

    /// What happens next to a node alone, where no power cut or lost disk can tell it from what comes after: it need not be
    /// tried in every order with what others do.
    fn alone(&self, world: &World) -> Option<Move> {
        if world.budget.total > 0 || world.broken.is_some() {
            return None;
        }
        let next = |node: u8| match (world.node(node).look, world.node(node).gate) {
            (Look::Acting(..), _) => Some(Move::Act(node)),
            (_, Gate::Ready(GateStep::Unmark, _)) => Some(Move::GateAct(node)),
            _ if self.may_see(world, node) => Some(Move::Seen(node)),
            _ => self.finishes_alone(world, node).then_some(Move::Finish(node)),
        };
        world.all().filter(|node| world.node(*node).on).find_map(next)
    }

    /// The world after what follows at once from what has happened.
    pub(super) fn settle(&self, mut world: World) -> World {
        let born: Vec<bool> = world.incs.iter().map(|inc| inc.born).collect();
        world.replicate();
        for (inc, born) in born.into_iter().enumerate() {
            if !born && world.incs[inc].born {
                self.check_formed(&mut world, inc as u8);
            }
        }
        for node in world.all() {
            // A member that has its quorum asks nobody any more.
            if matches!(world.node(node).look, Look::Asking(_)) && !self.is_looking(&world, node) {
                world.node_mut(node).look = Look::Idle;
            }
        }
        self.check(&mut world);
        world.canonical()
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
            Move::Alone(by) => {
                world.node_mut(by).look = self.looked(world, by, [Seen::NotAsked; NODES]);
            }
            Move::Count(node) | Move::Declare(node) => {
                let doc = world.node(node).doc;
                if happens == Move::Declare(node) {
                    world.budget.declares -= 1;
                }
                if let Some(inc) = world.quorum_of(node) {
                    self.write_key(world, inc, |keys| {
                        keys.older = Set::of(keys.older.iter().chain(keys.newest)).without(doc);
                        keys.newest = Some(doc);
                    });
                }
            }
            Move::Prune(node, whom) => {
                if let Some(inc) = world.quorum_of(node) {
                    world.write(inc, |it| remove(it, whom));
                }
            }
            Move::Restore(node) => {
                let (it, Some(inc)) = (world.node(node), world.quorum_of(node)) else { return };
                let system = self.decider.restores(&world.incs[inc as usize].keys, it.db, it.db_unread);
                self.write_key(world, inc, |keys| {
                    keys.initialize_older &= keys.initialize.is_some();
                    (keys.initialize, keys.emptied) = (system.map(Some), false);
                });
            }
            Move::InVain(node) => world.node_mut(node).gate = Gate::Closed,
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
            (Seen::Silent, Some(inc)) if self.decider.mutation == Some(Mutation::SilentIsFresh) => Seen::Told(Told {
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
        world.node_mut(by).look = self.looked(world, by, seen);
    }

    /// What a node has in mind that has heard this.
    fn looked(&self, world: &World, by: u8, seen: [Seen; NODES]) -> Look {
        match self.decider.fate(Model::place(world, by), &seen) {
            Fate::Nothing => Look::Idle,
            Fate::Surely(step) if is_nothing(world.node(by), step) => Look::Idle,
            Fate::Surely(step) => Look::Ready(step),
            Fate::Open => Look::Asking(seen),
        }
    }

    /// What `to` says to a question, and what it writes before.
    pub(super) fn hear(&self, world: &mut World, to: u8, ask: &Ask) -> Seen {
        let it = world.node(to);
        let speaks =
            self.decider.nodes(it.doc).has(to) && !self.decider.is_refused(it) && !matches!(it.look, Look::Acting(..));
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
        if self.decider.mutation == Some(Mutation::ToldUnwritten) && node.unwritten.is_none() {
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
        let writes = self.decider.writes(by, &step);
        match writes.get(done as usize) {
            Some(write) => self.write(world, by, *write),
            None => self.carry_out(world, by, step),
        }
        // What changes nothing takes no time.
        let left = writes.iter().enumerate().skip(done as usize + 1);
        let next = left.into_iter().find(|(_, write)| !is_idle(world.node(by), **write)).map(|(at, _)| at as u8);
        world.node_mut(by).look = match (step, next) {
            (_, Some(next)) => Look::Acting(step, next),
            // Nothing else has changed, so that there is nothing to look at.
            (Step::Commit(_), None) => Look::Ready(Step::Start),
            _ => Look::Idle,
        };
    }

    /// Does one write of a step.
    fn write(&self, world: &mut World, by: u8, write: Write) {
        match write {
            Write::Promises(promises) => {
                let promises = self.draw(world, promises);
                self.promise(world.node_mut(by), promises);
            }
            Write::Mark(begun) => world.node_mut(by).etcd_mark = Some((begun.inc, begun.gen_)),
            Write::Begun(begun) => {
                let it = world.node_mut(by);
                it.begun = Some(begun);
                it.unwritten = None;
                let without = it.promises.held.filter(|held| held.inc == begun.inc).map(|held| held.without);
                world.ordered.without = Set(world.ordered.without.0 | without.unwrap_or_default().0);
            }
            Write::Seen => world.node_mut(by).begun.iter_mut().for_each(|begun| begun.seen = true),
            Write::NotBegun => {
                let it = world.node_mut(by);
                (it.begun, it.complete) = (None, false);
            }
            Write::Ordered => world.node_mut(by).order = None,
            Write::Stop(Stopped::Etcd) => stop_etcd(world.node_mut(by)),
            Write::Stop(Stopped::Patroni) => world.node_mut(by).gate = Gate::Closed,
            Write::Aside => self.set_etcd_aside(world, by),
        }
    }

    /// Does a step that does not write on the node's own disks.
    fn carry_out(&self, world: &mut World, by: u8, step: Step) {
        let through = self.decider.nodes(world.node(by).doc);
        match step {
            Step::Start => self.start_etcd(world, by),
            Step::Resume => world.node_mut(by).runs = true,
            Step::Remove(inc, whom, gen_) => {
                let asked = world.quorums_seen(by, through).has(inc.no);
                let listed = world.incs[inc.no as usize].members[whom as usize] == gen_ + 1;
                if asked && listed && world.may_remove(inc.no, whom, by) {
                    world.write(inc.no, |it| remove(it, whom));
                }
            }
            Step::Add(inc) => {
                let asked = world.quorums_seen(by, through).has(inc.no);
                let listed = world.incs[inc.no as usize].members[by as usize] != 0;
                if asked && !listed && world.may_add(inc.no, by) {
                    let gen_ = world.next_gen(inc.no, by);
                    world.write(inc.no, |it| it.members[by as usize] = gen_ + 1);
                    world.node_mut(by).added = Some((inc, gen_));
                }
            }
            _ => {}
        }
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
                budget.declares += 1;
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
            Move::AsideDb(node) => {
                spend(budget, |budget| &mut budget.asides);
                set_database_aside(world.node_mut(node));
            }
            Move::AsideEtcd(node) => {
                spend(budget, |budget| &mut budget.asides);
                let it = world.node_mut(node);
                it.begun.iter_mut().for_each(|begun| begun.seen = true);
                (it.etcd, it.look) = (Etcd::Absent, Look::Idle);
            }
            Move::Empty(inc) => {
                spend(budget, |budget| &mut budget.emptied);
                world.ordered.emptied = true;
                self.write_key(world, inc, |keys| (keys.initialize, keys.emptied) = (Some(None), true));
            }
            Move::Delete(inc) => {
                spend(budget, |budget| &mut budget.deleted);
                world.ordered.emptied = true;
                self.write_key(world, inc, |keys| (keys.initialize, keys.emptied) = (None, false));
            }
            _ => {}
        }
        world.forgive();
    }

    /// `Claim::write`.
    pub(super) fn claim(&self, world: &mut World, node: u8) {
        let it = world.node_mut(node);
        let inc = Inc { no: CLAIMED, doc: it.doc };
        let (inc, gen_) = it.data().map_or((inc, 1), |data| (data.inc, data.gen_));
        it.begun = Some(Begun { inc, gen_, joins: Some([0; NODES]), seen: true });
        it.complete = it.db != Db::Absent;
    }

    /// `Store::keep`.
    pub(super) fn keep(&self, world: &mut World, node: u8, system: u8) {
        let Some(inc) = world.quorum_of(node) else { return };
        self.write_key(world, inc, |keys| {
            keys.initialize_older &= keys.initialize.is_some() && keys.first.is_some();
            (keys.first, keys.initialize, keys.emptied) = (Some((node, Some(system))), Some(Some(system)), false);
        });
    }

    /// `Store::take`.
    pub(super) fn take(&self, world: &mut World, node: u8) {
        let Some(inc) = self.may_take(world, node) else { return };
        world.ordered.taken = true;
        self.write_key(world, inc, |keys| {
            (keys.first, keys.initialize, keys.initialize_older) = (Some((node, None)), None, false);
            keys.emptied = false;
        });
    }
}

/// `aside make database`: what a person removes is not half of what the node has begun.
pub(super) fn set_database_aside(node: &mut Node) {
    (node.db, node.mark, node.look) = (Db::Absent, None, Look::Idle);
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

/// Whether a write changes nothing.
fn is_idle(node: &Node, write: Write) -> bool {
    match write {
        Write::Seen => node.begun.is_none_or(|begun| begun.seen),
        Write::Ordered => node.order.is_none(),
        Write::Stop(Stopped::Etcd) => !node.runs,
        Write::Stop(Stopped::Patroni) => !node.patroni(),
        _ => false,
    }
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
