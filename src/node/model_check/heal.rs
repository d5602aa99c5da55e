//! Whether there is a way on, when nothing goes wrong any more.
//!
//! From each state, with all machines on, connected and readable, and with one document, it is searched for a way to one
//! cluster of all nodes with one database. Where there is none, whatever the nodes do and in whatever order, they must
//! come to rest, all of them waiting, in a state in which what they say names an order of a person: it is given, and the
//! search goes on from there.

use super::{
    decide::{Has, Step, Unrecovered, Way},
    happen::set_database_aside,
    moves::{Model, Move},
    search::{Prints, fingerprint},
    world::*,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

/// How many orders may be needed one after the other.
const ORDERS: u8 = 4;

/// What is known of healed states.
#[derive(Default)]
struct Known {
    /// A way leads from them to a state in which all is well.
    well: Prints,
    /// Nodes that wait: whether what they say leads on.
    waiting: HashMap<u64, bool>,
    /// A way leads from them to a state in which all wait, and what they say leads on.
    fine: Prints,
}

/// Looks for ways on.
pub(super) struct Healer<'a> {
    model: &'a Model,
    /// The documents that a person may settle on.
    documents: Vec<u8>,
    known: RefCell<Known>,
    /// How many states are looked at for one way on.
    limit: usize,
    /// For how many states no way on was found within that limit.
    unknown: Cell<usize>,
}

/// A state on the way: its fingerprint, its number, it, the move that led to it, and the moves that are left to try.
type Passed = (u64, u32, World, Option<Move>, Vec<Move>);

/// How a search ended.
enum Ending {
    Well(Box<World>),
    /// A state is reached of which is known that all come to rest and name what leads on.
    Fine,
    /// No state that can be reached is well; these were reached.
    Stuck(Reached),
    /// A rule is broken on the way.
    Broken(String),
    /// It was not found out.
    Unknown,
}

/// All states that can be reached from one, and what leads from which to which.
#[derive(Default)]
struct Reached {
    numbers: HashMap<u64, u32>,
    worlds: Vec<World>,
    ways: Vec<(u32, u32)>,
}

impl Reached {
    /// Those from which one of `goals` can be reached.
    fn before(&self, goals: &[u32]) -> Prints {
        let mut back: Vec<Vec<u32>> = vec![Vec::new(); self.worlds.len()];
        for (from, to) in &self.ways {
            back[*to as usize].push(*from);
        }
        let mut found = vec![false; self.worlds.len()];
        let mut open = goals.to_vec();
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut found[at as usize], true) {
                open.extend(&back[at as usize]);
            }
        }
        self.numbers.iter().filter(|(_, at)| found[**at as usize]).map(|(number, _)| *number).collect()
    }
}

impl<'a> Healer<'a> {
    pub(super) fn new(model: &'a Model) -> Healer<'a> {
        let documents = (0..model.decider.documents.len() as u8).collect();
        Healer { model, documents, known: RefCell::default(), limit: usize::MAX, unknown: Cell::new(0) }
    }

    /// The same where a person settles on one of these documents.
    pub(super) fn under(self, documents: &[u8]) -> Healer<'a> {
        let documents = documents.iter().copied().filter(|doc| self.documents.contains(doc)).collect();
        Healer { documents, ..self }
    }

    /// The same that gives a search up after so many states.
    pub(super) fn limited(self, limit: usize) -> Healer<'a> {
        Healer { limit, ..self }
    }

    /// For how many states it was not found out whether there is a way on.
    pub(super) fn unknown(&self) -> usize {
        self.unknown.get()
    }

    /// How many healed states were looked at.
    pub(super) fn states(&self) -> usize {
        let known = self.known.borrow();
        known.well.len() + known.fine.len()
    }

    /// What is wrong with a state from which no way leads on.
    pub(super) fn wrong_with(&self, world: &World) -> Option<String> {
        // No person takes all out that have the database, or etcd's data.
        let databases =
            Set::of(world.all().filter(|node| matches!(world.node(*node).db, Db::Whole(_) | Db::Damaged(_))));
        let logs =
            Set::of(world.all().filter(|node| world.node(*node).data().is_some() || world.node(*node).begun.is_some()));
        let holders = if databases.is_empty() { logs } else { databases };
        let names_one = |doc: &&u8| holders.is_empty() || !self.model.decider.nodes(**doc).and(holders).is_empty();
        self.documents.iter().filter(names_one).find_map(|doc| self.wrong_under(world, *doc))
    }

    /// The world in which all is well at last.
    pub(super) fn grown(&self, world: &World, doc: u8) -> Option<World> {
        match self.search(&heal(self.model, world, doc), doc) {
            Ending::Well(world) => Some(*world),
            Ending::Fine | Ending::Stuck(_) | Ending::Broken(_) | Ending::Unknown => None,
        }
    }

    fn wrong_under(&self, world: &World, doc: u8) -> Option<String> {
        let healed = heal(self.model, world, doc);
        let reached = match self.search(&healed, doc) {
            Ending::Well(_) | Ending::Fine => return None,
            Ending::Broken(why) => return Some(why),
            Ending::Unknown => {
                self.unknown.set(self.unknown.get() + 1);
                return None;
            }
            Ending::Stuck(reached) => reached,
        };
        let waiting = (0..reached.worlds.len() as u32).rev().filter(|at| self.rests(&reached.worlds[*at as usize]));
        let waiting: Vec<u32> = waiting.collect();
        let goals = waiting.iter().copied().filter(|at| self.leads_on(&reached.worlds[*at as usize], doc, ORDERS));
        let goals: Vec<u32> = goals.collect();
        let fine = reached.before(&goals);
        let is_fine = fine.contains(&fingerprint(&healed)) || self.is_settled_otherwise(world, &reached.worlds);
        let mut known = self.known.borrow_mut();
        known.fine.extend(fine);
        if is_fine {
            known.fine.insert(fingerprint(&healed));
            return None;
        }
        drop(known);
        let Some(last) = waiting.first().map(|at| &reached.worlds[*at as usize]) else {
            return Some(format!("there is no way on under document {doc}: the nodes never come to rest"));
        };
        let nodes = last.all().map(|node| {
            let said = self.way(last, node).map(|way| format!("\n             {}", super::words::way(&way)));
            let said = said.unwrap_or_default();
            format!("       {}: {}{said}", name(node), super::words::node(last.node(node)))
        });
        let nodes: Vec<String> = nodes.collect();
        Some(format!(
            "there is no way on under document {doc}, and nobody names one; it ends so:\n{}",
            nodes.join("\n")
        ))
    }

    /// Whether the nodes say that they need another document, and that leads on.
    fn is_settled_otherwise(&self, world: &World, reached: &[World]) -> bool {
        let says = |last: &World| last.all().any(|node| self.way(last, node).is_some_and(|way| way.document));
        let well = |other: &u8| matches!(self.search(&heal(self.model, world, *other), *other), Ending::Well(_));
        self.documents.len() > 1 && reached.iter().rev().take(64).any(says) && self.documents.iter().any(well)
    }

    /// Whether all nodes wait: nothing happens but that they look again.
    fn rests(&self, world: &World) -> bool {
        let is_idle = |node: &Node| node.look == Look::Idle && matches!(node.gate, Gate::Closed | Gate::Patroni);
        if !world.nodes.iter().all(is_idle) {
            return false;
        }
        let now = fingerprint(world);
        // What etcd refuses is tried again and again.
        let is_in_vain = |happens: Move| {
            let after = self.model.after(world, happens);
            let tried = match happens {
                Move::Beside(node, _)
                    if matches!(after.node(node).look, Look::Ready(Step::Add(_) | Step::Remove(..))) =>
                {
                    fingerprint(&self.model.after(&after, Move::Act(node)))
                }
                _ => fingerprint(&after),
            };
            tried == now
        };
        let acts = self.model.moves(world).into_iter().filter(|it| !matches!(it, Move::Ask(..)));
        acts.into_iter().all(is_in_vain)
            && world.all().filter(|node| self.model.is_looking(world, *node)).all(|node| {
                let mut after = world.clone();
                let step = self.look(&mut after, node);
                (matches!(step, Step::Wait(_)) || world.node(node).runs && step == Step::Resume) && after == *world
            })
    }

    /// Whether what the nodes say, which all wait, leads on.
    fn leads_on(&self, world: &World, doc: u8, left: u8) -> bool {
        let number = fingerprint(world);
        if let Some(known) = self.known.borrow().waiting.get(&number) {
            return *known;
        }
        let recover = world.all().any(|node| self.way(world, node).is_some_and(|way| way.recover));
        let nodes = self.model.decider.nodes(doc);
        let leads_on = (recover && nodes.iter().any(|node| self.model.may_recover(world, node).is_ok()))
            || self.is_lost(world)
            || self.ordered(world, doc).into_iter().any(|after| match self.search(&after, doc) {
                Ending::Well(_) | Ending::Fine | Ending::Unknown => true,
                Ending::Broken(why) => panic!("after an order that is named: {why}"),
                Ending::Stuck(reached) => {
                    let mut resting = reached.worlds.iter().rev().filter(|world| self.rests(world));
                    left > 0 && resting.any(|it| self.leads_on(it, doc, left - 1))
                }
            });
        self.known.borrow_mut().waiting.insert(number, leads_on);
        leads_on
    }

    /// Whether no disk has the cluster's database any more.
    fn is_lost(&self, world: &World) -> bool {
        let is_known = |inc: &Etcds| self.model.decider.has_database(&inc.keys);
        world.incs.iter().any(is_known) && world.nodes.iter().all(|node| node.whole().is_none())
    }

    /// The states after each of the orders that are named.
    fn ordered(&self, world: &World, doc: u8) -> Vec<World> {
        let mut after = Vec::new();
        let mut order = |change: &dyn Fn(&mut World)| {
            let mut world = world.clone();
            change(&mut world);
            after.push(self.model.settle(world));
        };
        let nodes = self.model.decider.nodes(doc);
        let says = |node: u8| self.way(world, node).is_some_and(|way| way.recover);
        let is_empty = |node: u8| self.model.may_recover(world, node) == Err(Unrecovered::Empty);
        if nodes.iter().any(says) && nodes.iter().all(is_empty) {
            // `recover` says that nodes with empty disks form a new cluster where no node has data.
            order(&|world| nodes.iter().for_each(|node| *world.node_mut(node) = Node::new(doc)));
        }
        for node in nodes.iter() {
            let way = self.way(world, node).unwrap_or_default();
            if let Some((on, without)) = way.form {
                order(&|world| world.node_mut(on).order = Some(Order { doc, without }));
            }
            // So does `recover` of a database that cannot be used.
            let is_unusable = way.recover && self.model.may_recover(world, node) == Err(Unrecovered::Unusable);
            if is_unusable {
                order(&|world| {
                    world.node_mut(node).gate = Gate::Closed;
                    set_database_aside(world.node_mut(node));
                });
            }
            if way.claim && self.model.may_claim(world, node) {
                order(&|world| self.model.claim(world, node));
            }
            if way.claim && !self.model.may_claim(world, node) {
                order(&|world| world.node_mut(node).etcd = Etcd::Absent);
            }
            let nodes = nodes.iter().filter(|_| way.keep);
            for (other, system) in nodes.filter_map(|other| Some((other, self.model.may_keep(world, other)?))) {
                order(&|world| self.model.keep(world, other, system));
            }
            if way.take && self.model.may_take(world, node).is_some() {
                order(&|world| self.model.take(world, node));
            }
            if way.aside && !world.node(node).patroni() {
                order(&|world| set_database_aside(world.node_mut(node)));
            }
            // Patroni names it when the primary is lost for good while it had no synchronous standby, so that nobody can
            // know whether commits would be lost.
            if self.may_fail_over(world, node) {
                order(&|world| {
                    world.give_up_commits(node);
                    *world = self.model.after(world, Move::Failover(node));
                });
            }
        }
        after
    }

    fn may_fail_over(&self, world: &World, node: u8) -> bool {
        let it = world.node(node);
        let Some(inc) = world.quorum_of(node) else { return false };
        let keys = &world.incs[inc as usize].keys;
        let used =
            it.whole().is_some_and(|whole| whole.use_ == Use::Used && Some(whole.system) == keys.initialize.flatten());
        it.patroni() && used && keys.leader.is_none() && !keys.sync.is_empty()
    }

    /// What a node says that waits, by the way on that it names.
    fn way(&self, world: &World, node: u8) -> Option<Way> {
        let it = world.node(node);
        if self.model.decider.is_refused(it) {
            return Some(Way { claim: true, aside: true, ..Way::default() });
        }
        if it.runs && world.is_in_quorum(node) {
            return self.model.gate_way(world, node);
        }
        match self.look(&mut world.clone(), node) {
            Step::Wait(way) => Some(way),
            // `form::serve` names it while etcd waits for its quorum.
            Step::Resume if it.runs => Some(Way { recover: true, ..Way::default() }),
            _ => None,
        }
    }

    /// What a node decides that asks everybody at once.
    fn look(&self, world: &mut World, node: u8) -> Step {
        let it = *world.node(node);
        let mut seen = [Seen::NotAsked; NODES];
        let ask = self.model.decider.request(node, it.doc, &Has::of(&it));
        for other in self.model.decider.others(node, it.doc) {
            let reachable = (other as usize) < world.nodes.len() && world.connected(node, other);
            seen[other as usize] = if reachable { self.model.hear(world, other, &ask) } else { Seen::Silent };
        }
        self.model.decider.look((node, it.doc, Has::of(&it), it.order), &seen)
    }

    /// Searches for a state in which all is well, the likeliest way first.
    fn search(&self, start: &World, doc: u8) -> Ending {
        let mut known = self.known.borrow_mut();
        let mut reached = Reached::default();
        let mut path: Vec<Passed> = Vec::new();
        let mut next = Some((None, start.clone()));
        loop {
            if let Some((last, world)) = next.take() {
                let number = fingerprint(&world);
                let before = path.last().map(|(_, at, ..)| *at);
                if known.well.contains(&number) || self.model.is_well(&world, doc) {
                    known.well.extend(path.iter().map(|(number, ..)| *number));
                    known.well.insert(number);
                    return Ending::Well(Box::new(world));
                }
                if known.fine.contains(&number) {
                    known.fine.extend(path.iter().map(|(number, ..)| *number));
                    return Ending::Fine;
                }
                let new = reached.worlds.len() as u32;
                let at = *reached.numbers.entry(number).or_insert(new);
                reached.ways.extend(before.map(|before| (before, at)));
                if reached.worlds.len() > self.limit {
                    return Ending::Unknown;
                }
                if at == new {
                    if let Some(rule) = world.broken {
                        let moves: Vec<Move> =
                            path.iter().map(|(.., happened, _)| *happened).chain([last]).flatten().collect();
                        return Ending::Broken(super::search::trace(self.model, start, moves, rule.to_owned()).text);
                    }
                    let mut moves = self.model.moves(&world);
                    moves.sort_by_key(|it| std::cmp::Reverse(urgency(*it)));
                    reached.worlds.push(world.clone());
                    path.push((number, at, world, last, moves));
                }
            }
            let Some((_, _, world, _, moves)) = path.last_mut() else { return Ending::Stuck(reached) };
            match moves.pop() {
                Some(happens) => next = Some((Some(happens), self.model.after(world, happens))),
                None => {
                    path.pop();
                }
            }
        }
    }
}

impl World {
    /// What the database of this node does not have is lost, as a person wants it.
    fn give_up_commits(&mut self, node: u8) {
        if let Some(whole) = self.node(node).whole().copied() {
            self.systems[whole.system as usize] = whole.commits;
        }
    }
}

/// The likeliest things first; that a node is let go only when nobody has anything else to do.
fn urgency(happens: Move) -> u8 {
    match happens {
        Move::LetGo(..) | Move::Prune(..) | Move::InVain(_) => 9,
        Move::Ask(..) => 5,
        Move::Beside(..) => 4,
        _ => 1,
    }
}

/// All machines on, connected, readable, with this document, and nothing goes wrong any more.
pub(super) fn heal(model: &Model, world: &World, doc: u8) -> World {
    let mut healed = world.clone();
    healed.budget = Budget { declares: 1, ..Budget::default() };
    healed.letter = None;
    for node in &mut healed.nodes {
        let keeps = node.doc == doc && !node.etcd_unread && !node.db_unread;
        if !keeps && !matches!(node.look, Look::Acting(..)) {
            node.look = Look::Idle;
        }
        (node.on, node.side, node.etcd_unread, node.db_unread) = (true, 0, false, false);
        node.doc = doc;
    }
    model.settle(healed)
}
