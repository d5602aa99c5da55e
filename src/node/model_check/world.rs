//! A state of the world: what is on the disks of all nodes, what runs, and what is on its way between them.
//!
//! It holds small numbers instead of names, documents and ids, so that millions of states fit into memory and two that
//! differ in nothing but the name of an incarnation are one. [`super::decide`] turns them into what the decisions
//! understand and back.

use super::decide::Step;
use crate::node::begun::What;
use std::fmt;

/// The most nodes of a world.
pub(super) const NODES: usize = 5;
/// The most incarnations that anybody knows of at a time.
pub(super) const INCARNATIONS: usize = 12;
/// Stands for the incarnation that a node draws next.
pub(super) const DRAW: u8 = 15;
/// Stands for the incarnation of a member that a person has claimed: nobody knows it.
pub(super) const CLAIMED: u8 = 13;

/// Some nodes, or some documents.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Set(pub(super) u8);

impl Set {
    pub(super) fn of(members: impl IntoIterator<Item = u8>) -> Set {
        members.into_iter().fold(Set(0), Set::with)
    }

    pub(super) fn has(self, one: u8) -> bool {
        self.0 & 1 << one != 0
    }

    pub(super) fn with(self, one: u8) -> Set {
        Set(self.0 | 1 << one)
    }

    pub(super) fn without(self, one: u8) -> Set {
        Set(self.0 & !(1 << one))
    }

    pub(super) fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |one| self.has(*one))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.iter().map(name).collect();
        write!(f, "{{{}}}", names.join(", "))
    }
}

/// The name of a node.
pub(super) fn name(node: u8) -> String {
    format!("pg-{}", node + 1)
}

/// An incarnation, and the document that it was drawn for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Inc {
    pub(super) no: u8,
    pub(super) doc: u8,
}

impl fmt::Debug for Inc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.no {
            DRAW => write!(f, "new"),
            CLAIMED => write!(f, "claimed"),
            no => write!(f, "I{no}"),
        }
    }
}

/// Which nodes are members of an etcd: 0, or one more than the number of times that the node was added to it before.
pub(super) type Members = [u8; NODES];

/// The nodes of a list of members.
pub(super) fn nodes_of(members: &Members) -> Set {
    Set::of((0..NODES as u8).filter(|node| members[*node as usize] != 0))
}

/// etcd's data on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Etcd {
    Absent,
    /// A folder without a log.
    Unborn,
    Data(Data),
}

/// The log of a member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Data {
    pub(super) inc: Inc,
    /// How often this node was added to that etcd: which member of it this is.
    pub(super) gen_: u8,
    /// How new it is, among the logs of this incarnation.
    pub(super) version: u8,
    /// The members that the log names.
    pub(super) members: Members,
    /// Whether a member in it has ever told its clients' addresses.
    pub(super) ever: bool,
}

/// How an etcd member began, as state.json keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Begun {
    pub(super) inc: Inc,
    pub(super) gen_: u8,
    /// The members that it joins, as it has heard them (see [`Members`]); `None` if it forms a cluster with its document's.
    pub(super) joins: Option<Members>,
    pub(super) seen: bool,
}

/// A promise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Promise {
    pub(super) founder: u8,
    pub(super) inc: Inc,
    pub(super) without: Set,
}

/// What a node has promised. `outlived` are documents, of which only the members matter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Promises {
    pub(super) held: Option<Promise>,
    pub(super) outlived: Set,
}

impl fmt::Debug for Promises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.held {
            Some(held) => write!(f, "{} founds {:?}", name(held.founder), held.inc)?,
            None => write!(f, "nothing")?,
        }
        if !self.outlived.is_empty() {
            write!(f, ", outlived documents {:#b}", self.outlived.0)?;
        }
        Ok(())
    }
}

/// A person's order to form a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Order {
    pub(super) doc: u8,
    pub(super) without: Set,
}

/// A database's folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Db {
    Absent,
    /// initdb or a copy at work or cut off, before there is a valid control file.
    Half(Mark),
    Whole(Whole),
    /// A database whose control file is damaged.
    Damaged(Whole),
}

/// A database that a server can use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Whole {
    /// Its system identifier.
    pub(super) system: u8,
    /// The acknowledged commits that it has.
    pub(super) commits: u8,
    /// What has been done with it.
    pub(super) use_: Use,
}

/// What has been done with a database that a server can use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Use {
    /// It was made here, without its roles.
    Made,
    /// It was copied, and no server has started with it.
    Copied,
    /// It is the cluster's.
    Used,
}

/// What a node has heard of another one in the look that it is taking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Seen {
    NotAsked,
    Silent,
    Told(Told),
    Etcd { inc: Inc, ever: bool },
}

/// What a node tells of itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Told {
    pub(super) doc: u8,
    pub(super) fresh: bool,
    pub(super) promise: Option<(u8, Inc)>,
    pub(super) cluster: Option<Inc>,
    pub(super) refusal: Refusal,
}

/// Why a node does not promise, as far as it names a way on.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Refusal {
    #[default]
    None,
    Plain,
    /// It has promised something under another document.
    Document,
}

/// What a node that forms or joins has in mind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Look {
    /// Nothing that could lead to anything.
    Idle,
    /// It has asked some of the others.
    Asking([Seen; NODES]),
    /// It will do this, if nothing changes on its disk before.
    Ready(Step),
    /// It is at work on this: so many of its writes are done.
    Acting(Step, u8),
}

/// How far the gate before Patroni is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Gate {
    Closed,
    /// It will do this; whether the keys have changed since they were read.
    Ready(GateStep, bool),
    /// Patroni runs.
    Patroni,
}

/// What the gate does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum GateStep {
    Start(Option<Mark>),
    Open,
    Pin(u8),
    SetAside,
    /// The second half of setting aside.
    Unmark,
    GiveUp,
    Wait,
    Refuse,
}

/// What the mark of a beginning says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Mark {
    Bootstrap,
    Clone,
}

impl From<What> for Mark {
    fn from(what: What) -> Mark {
        match what {
            What::Bootstrap => Mark::Bootstrap,
            What::Clone => Mark::Clone,
        }
    }
}

/// A machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Node {
    // On its disks, or given to it.
    pub(super) doc: u8,
    pub(super) etcd: Etcd,
    pub(super) etcd_unread: bool,
    /// The member whose mark lies beside etcd's data, on the same disk.
    pub(super) etcd_mark: Option<(Inc, u8)>,
    pub(super) begun: Option<Begun>,
    pub(super) complete: bool,
    pub(super) promises: Promises,
    /// What of it is on the disk, where that is something else: only a planted bug makes it so.
    pub(super) unwritten: Option<Promises>,
    pub(super) order: Option<Order>,
    pub(super) db: Db,
    pub(super) db_unread: bool,
    pub(super) mark: Option<Mark>,
    // Gone when the power goes.
    pub(super) on: bool,
    /// Which side of a cut network it is on.
    pub(super) side: u8,
    pub(super) runs: bool,
    /// The member that it has added itself, and of which etcd.
    pub(super) added: Option<(Inc, u8)>,
    pub(super) look: Look,
    pub(super) gate: Gate,
    /// Whether it was right to decide that etcd's data be set aside, before the disk with the other copy was lost.
    pub(super) excused: bool,
}

impl Node {
    pub(super) fn new(doc: u8) -> Node {
        Node {
            doc,
            etcd: Etcd::Absent,
            etcd_unread: false,
            etcd_mark: None,
            begun: None,
            complete: false,
            promises: Promises::default(),
            unwritten: None,
            order: None,
            db: Db::Absent,
            db_unread: false,
            mark: None,
            on: true,
            side: 0,
            runs: false,
            added: None,
            look: Look::Idle,
            gate: Gate::Closed,
            excused: false,
        }
    }

    /// etcd's data, whether they can be read or not.
    pub(super) fn data(&self) -> Option<&Data> {
        match &self.etcd {
            Etcd::Data(data) => Some(data),
            _ => None,
        }
    }

    pub(super) fn whole(&self) -> Option<&Whole> {
        match &self.db {
            Db::Whole(whole) => Some(whole),
            _ => None,
        }
    }

    pub(super) fn patroni(&self) -> bool {
        self.gate == Gate::Patroni
    }
}

/// Patroni's and our keys in one etcd.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) struct Keys {
    /// Who makes the first database, and its system identifier.
    pub(super) first: Option<(u8, Option<u8>)>,
    /// Patroni's `initialize`: `Some(None)` is an empty value.
    pub(super) initialize: Option<Option<u8>>,
    /// Whether `initialize`, which is empty, was not so from the beginning.
    pub(super) emptied: bool,
    /// Whether `initialize` was created before `first`.
    pub(super) initialize_older: bool,
    /// The holder of the leader key.
    pub(super) leader: Option<u8>,
    /// Who has every acknowledged commit (Patroni's `sync`).
    pub(super) sync: Set,
    /// The newest document, and those before it.
    pub(super) newest: Option<u8>,
    pub(super) older: Set,
}

/// An incarnation that somebody knows of, with the truth of its etcd.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Etcds {
    /// The document whose members it forms with.
    pub(super) doc: u8,
    /// Whether it has ever had a quorum.
    pub(super) born: bool,
    /// Whether all members have been there once, so that etcd has settled its version.
    pub(super) settled: bool,
    /// The version of the newest log.
    pub(super) version: u8,
    pub(super) members: Members,
    /// The members that have told their clients' addresses.
    pub(super) started: Set,
    /// For each node, which of the members that it was have been part of a quorum (bits).
    pub(super) voted: [u8; NODES],
    pub(super) keys: Keys,
}

/// A request that was sent and not answered in time, and may still come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Letter {
    pub(super) to: u8,
    pub(super) from: u8,
    pub(super) doc: u8,
    pub(super) inc: Inc,
    pub(super) without: Set,
}

/// What may still go wrong, and be ordered.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) struct Budget {
    /// Of all kinds together.
    pub(super) total: u8,
    pub(super) cuts: u8,
    pub(super) disks: u8,
    pub(super) etcd_lost: u8,
    pub(super) db_lost: u8,
    pub(super) state_lost: u8,
    pub(super) unread: u8,
    pub(super) damaged: u8,
    pub(super) parts: u8,
    pub(super) letters: u8,
    pub(super) orders: u8,
    pub(super) documents: u8,
    pub(super) commits: u8,
    pub(super) emptied: u8,
    pub(super) deleted: u8,
    pub(super) claims: u8,
    pub(super) takes: u8,
    pub(super) asides: u8,
    /// How often a person may still say that the document of a node is the newest.
    pub(super) declares: u8,
}

/// What a person has ordered that takes a guarantee away.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) struct Ordered {
    /// To form a cluster without these, which was followed.
    pub(super) without: Set,
    /// That a key be emptied by hand.
    pub(super) emptied: bool,
    /// That another node make the first database.
    pub(super) taken: bool,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) incs: Vec<Etcds>,
    /// The acknowledged commits of each database.
    pub(super) systems: Vec<u8>,
    pub(super) letter: Option<Letter>,
    pub(super) budget: Budget,
    pub(super) ordered: Ordered,
    /// The rule that was broken, and where.
    pub(super) broken: Option<&'static str>,
}

impl World {
    /// Machines without anything, with these documents.
    pub(super) fn fresh(documents: &[u8], budget: Budget) -> World {
        World {
            nodes: documents.iter().map(|doc| Node::new(*doc)).collect(),
            incs: Vec::new(),
            systems: Vec::new(),
            letter: None,
            budget,
            ordered: Ordered::default(),
            broken: None,
        }
    }

    pub(super) fn node(&self, node: u8) -> &Node {
        &self.nodes[node as usize]
    }

    pub(super) fn node_mut(&mut self, node: u8) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.nodes.len() as u8
    }

    pub(super) fn breaks(&mut self, rule: &'static str) {
        self.broken.get_or_insert(rule);
    }

    /// The same world under names that depend on nothing that is gone.
    pub(super) fn canonical(mut self) -> World {
        self.rename_incarnations();
        for inc in 0..self.incs.len() as u8 {
            if self.has_added() {
                self.rename_members(inc);
            }
            self.rank_versions(inc);
        }
        self.rename_systems();
        self
    }

    fn rename_incarnations(&mut self) {
        let mut known: Vec<u8> = Vec::new();
        self.each_inc(&mut |inc| {
            if inc.no < CLAIMED {
                let at = known.iter().position(|it| *it == inc.no).unwrap_or_else(|| {
                    known.push(inc.no);
                    known.len() - 1
                });
                inc.no = at as u8;
            }
        });
        assert!(known.len() <= INCARNATIONS, "too many incarnations at a time");
        self.incs = known.iter().map(|old| self.incs[*old as usize]).collect();
    }

    fn each_inc(&mut self, with: &mut dyn FnMut(&mut Inc)) {
        for node in &mut self.nodes {
            if let Etcd::Data(data) = &mut node.etcd {
                with(&mut data.inc);
            }
            if let Some(begun) = &mut node.begun {
                with(&mut begun.inc);
            }
            for (inc, _) in node.added.iter_mut().chain(&mut node.etcd_mark) {
                with(inc);
            }
            for promises in std::iter::once(&mut node.promises).chain(&mut node.unwritten) {
                each_inc_promised(promises, with);
            }
            match &mut node.look {
                Look::Idle => {}
                Look::Asking(seen) => seen.iter_mut().for_each(|seen| each_inc_seen(seen, with)),
                Look::Ready(step) | Look::Acting(step, _) => each_inc_meant(step, with),
            }
        }
        if let Some(letter) = &mut self.letter {
            with(&mut letter.inc);
        }
    }

    /// Whether a member was ever added to an etcd that had formed.
    fn has_added(&self) -> bool {
        self.incs.iter().any(|inc| inc.members.iter().any(|member| *member > 1))
            || self.nodes.iter().any(|node| {
                node.begun.is_some_and(|begun| begun.joins.is_some())
                    || node.data().is_some_and(|data| data.members.iter().any(|member| *member > 1))
                    || matches!(node.look, Look::Ready(_) | Look::Acting(..))
            })
    }

    /// Counts how often a node was added by what is still known of it.
    fn rename_members(&mut self, inc: u8) {
        for node in self.all() {
            let mut known: Vec<u8> = Vec::new();
            self.each_gen(inc, node, &mut |gen_| known.push(*gen_));
            known.push(0);
            known.sort_unstable();
            known.dedup();
            let place = |gen_: u8| known.iter().position(|it| *it == gen_).map(|at| at as u8);
            self.each_gen(inc, node, &mut |gen_| *gen_ = place(*gen_).unwrap_or_default());
            let voted = &mut self.incs[inc as usize].voted[node as usize];
            *voted = (0..8).filter(|gen_| *voted & 1 << gen_ != 0).filter_map(place).fold(0, |bits, at| bits | 1 << at);
        }
    }

    pub(super) fn each_gen(&mut self, inc: u8, node: u8, with: &mut dyn FnMut(&mut u8)) {
        let mut member = |members: &mut Members| {
            if let Some(mut gen_) = members[node as usize].checked_sub(1) {
                with(&mut gen_);
                members[node as usize] = gen_ + 1;
            }
        };
        member(&mut self.incs[inc as usize].members);
        for other in &mut self.nodes {
            if let Etcd::Data(data) = &mut other.etcd
                && data.inc.no == inc
            {
                member(&mut data.members);
            }
        }
        for (at, it) in self.nodes.iter_mut().enumerate() {
            let me = at == node as usize;
            if let Etcd::Data(data) = &mut it.etcd
                && data.inc.no == inc
                && me
            {
                with(&mut data.gen_);
            }
            for (_, gen_) in it.added.iter_mut().chain(&mut it.etcd_mark).filter(|(of, _)| me && of.no == inc) {
                with(gen_);
            }
            let meant = match &mut it.look {
                Look::Ready(step) | Look::Acting(step, _) => Some(step),
                _ => None,
            };
            let meant = match meant {
                Some(Step::Commit(begun) | Step::Abandon(_, begun)) => Some(begun),
                Some(Step::Remove(it, whom, gen_)) if it.no == inc && *whom == node => {
                    with(gen_);
                    None
                }
                _ => None,
            };
            for begun in it.begun.iter_mut().chain(meant).filter(|begun| begun.inc.no == inc) {
                if me {
                    with(&mut begun.gen_);
                }
                if let Some(odd) = begun.joins.as_mut().map(|list| &mut list[node as usize])
                    && *odd >= 2
                {
                    let mut gen_ = *odd - 2;
                    with(&mut gen_);
                    *odd = gen_ + 2;
                }
            }
        }
    }

    fn rank_versions(&mut self, inc: u8) {
        let of = |node: &Node| node.data().filter(|data| data.inc.no == inc).map(|data| data.version);
        let mut known: Vec<u8> = self.nodes.iter().filter_map(of).collect();
        known.extend([0, self.incs[inc as usize].version]);
        known.sort_unstable();
        known.dedup();
        let rank = |version: &mut u8| {
            *version = known.iter().position(|it| it == version).unwrap_or_default() as u8;
        };
        rank(&mut self.incs[inc as usize].version);
        for node in &mut self.nodes {
            if let Etcd::Data(data) = &mut node.etcd
                && data.inc.no == inc
            {
                rank(&mut data.version);
            }
        }
    }

    fn rename_systems(&mut self) {
        let mut known: Vec<u8> = Vec::new();
        self.each_system(&mut |system| {
            let at = known.iter().position(|it| it == system).unwrap_or_else(|| {
                known.push(*system);
                known.len() - 1
            });
            *system = at as u8;
        });
        self.systems = known.iter().map(|old| self.systems[*old as usize]).collect();
    }

    fn each_system(&mut self, with: &mut dyn FnMut(&mut u8)) {
        for node in &mut self.nodes {
            if let Db::Whole(whole) | Db::Damaged(whole) = &mut node.db {
                with(&mut whole.system);
            }
            if let Gate::Ready(GateStep::Pin(system), _) = &mut node.gate {
                with(system);
            }
        }
        for inc in &mut self.incs {
            if let Some((_, Some(system))) = &mut inc.keys.first {
                with(system);
            }
            if let Some(Some(system)) = &mut inc.keys.initialize {
                with(system);
            }
        }
    }
}

pub(super) fn each_inc_promised(promises: &mut Promises, with: &mut dyn FnMut(&mut Inc)) {
    if let Some(held) = &mut promises.held {
        with(&mut held.inc);
    }
}

pub(super) fn each_inc_told(told: &mut Told, with: &mut dyn FnMut(&mut Inc)) {
    if let Some((_, inc)) = &mut told.promise {
        with(inc);
    }
    if let Some(inc) = &mut told.cluster {
        with(inc);
    }
}

pub(super) fn each_inc_seen(seen: &mut Seen, with: &mut dyn FnMut(&mut Inc)) {
    match seen {
        Seen::Told(told) => each_inc_told(told, with),
        Seen::Etcd { inc, .. } => with(inc),
        Seen::NotAsked | Seen::Silent => {}
    }
}

pub(super) fn each_inc_meant(step: &mut Step, with: &mut dyn FnMut(&mut Inc)) {
    match step {
        Step::Promise(promises) | Step::Release(promises) | Step::Forget(promises) => each_inc_promised(promises, with),
        Step::Commit(begun) => with(&mut begun.inc),
        Step::Abandon(promises, begun) => {
            each_inc_promised(promises, with);
            with(&mut begun.inc);
        }
        Step::Remove(inc, ..) | Step::Add(inc) => with(inc),
        Step::Start | Step::Resume | Step::SetAside(_) | Step::Wait(_) => {}
    }
}
