//! The decisions, asked about a state of the world.
//!
//! Nothing is decided here: what a node has and sees is put into the words of [`join`], [`promise`] and [`first`], the
//! decision is asked, and its answer is put into small numbers again. Whatever is not the same after the way there and
//! back ends the run. As the decisions are pure, each is asked once and remembered.

use super::{
    mutations::Mutation,
    search::Mix,
    translate::{self, *},
    world::*,
};
use crate::model::ClusterSpec;
use crate::node::{
    agent::{
        document,
        keys::{self, KeyStep},
        members,
    },
    claim,
    etcd_data::Ids,
    first,
    join::{self, Document, Peer},
    promise::{self, Request},
    recover::plan,
};
use std::{cell::RefCell, collections::HashMap, hash::BuildHasherDefault, time::Duration};

/// Some incarnation that the node knows nothing of.
const OTHER: u8 = 14;

/// The words of a refusal that only a person's documents can end.
pub(super) const GIVE_DOCUMENT: &str = "give the nodes that document again";

/// A step of [`join::next`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Step {
    Promise(Promises),
    Release(Promises),
    Commit(Begun),
    Start,
    Resume,
    Remove(Inc, u8, u8),
    Add(Inc),
    SetAside(join::Aside),
    Abandon(Promises, Begun),
    Forget(Promises),
    Wait(Way),
}

/// A [`join::Write`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Write {
    Promises(Promises),
    Mark(Begun),
    Begun(Begun),
    Seen,
    NotBegun,
    Ordered,
    Stop(join::Stopped),
    Aside,
}

/// A [`first::Completion`] that is not waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    Pin(u8),
    Done,
}

/// Why a cluster is not recovered from a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unrecovered {
    /// There are no data, and none are missed.
    Empty,
    /// Its database is damaged, or half of one.
    Unusable,
    Otherwise,
}

/// The way on that a waiting node names.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Way {
    /// An order, and on which node.
    pub(super) form: Option<(u8, Set)>,
    /// That a person recovers the cluster.
    pub(super) recover: bool,
    /// That a person gives other documents, or replaces a node.
    pub(super) document: bool,
    /// That a person says whose the data are that nothing says it of.
    pub(super) claim: bool,
    /// That a person sets the database aside.
    pub(super) aside: bool,
    /// That a person lets this node make the first database.
    pub(super) take: bool,
    /// That a person says which database is the cluster's.
    pub(super) keep: bool,
}

/// What a look that is not over comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Whatever the others say, the node will wait.
    Nothing,
    /// Whatever the others say, it will do this.
    Surely(Step),
    Open,
}

/// What a node has, as far as forming and joining ask for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Has {
    pub(super) etcd: Log,
    pub(super) idle: bool,
    pub(super) db: Three,
    pub(super) begun: Option<Begun>,
    pub(super) marked: bool,
    pub(super) complete: bool,
    pub(super) promises: Promises,
    pub(super) added: Option<(Inc, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Log {
    Absent,
    Unborn,
    Data(Inc, u8),
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Three {
    Present,
    Absent,
    Unknown,
}

impl Has {
    pub(super) fn of(node: &Node) -> Has {
        Has {
            etcd: match node.etcd {
                _ if node.etcd_unread => Log::Unknown,
                Etcd::Absent => Log::Absent,
                Etcd::Unborn => Log::Unborn,
                Etcd::Data(data) => Log::Data(data.inc, data.gen_),
            },
            idle: node.runs && node.data().is_some_and(|data| !data.ever),
            db: match node.db {
                _ if node.db_unread => Three::Unknown,
                Db::Absent => Three::Absent,
                _ => Three::Present,
            },
            begun: node.begun,
            marked: node.begun.is_some_and(|begun| node.etcd_mark == Some((begun.inc, begun.gen_))),
            complete: node.complete,
            promises: node.promises,
            added: node.added,
        }
    }
}

/// A request as small numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Ask {
    pub(super) from: u8,
    pub(super) doc: u8,
    pub(super) inc: Option<Inc>,
    pub(super) without: Set,
}

/// What the gate before Patroni sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct GateView {
    pub(super) me: u8,
    pub(super) forms: bool,
    /// Without who leads and who follows.
    pub(super) keys: Keys,
    pub(super) db: Db,
    pub(super) unread: bool,
    pub(super) mark: Option<Mark>,
}

pub(super) type Memory<K, V> = RefCell<HashMap<K, V, BuildHasherDefault<Mix>>>;

/// Where one looks from: the node, its document, what it has, its order.
type Place = (u8, u8, Has, Option<Order>);

/// Who answers, by which document, what it has, and what it is asked.
type Asked = (u8, u8, Has, Ask);

/// Asks the decisions.
pub(super) struct Decider {
    /// The members of each document, in its order.
    pub(super) documents: Vec<Vec<u8>>,
    pub(super) real: Vec<Document>,
    pub(super) specs: Vec<ClusterSpec>,
    answers: Memory<Asked, (Told, Option<Promises>)>,
    requests: Memory<(u8, u8, Has), Ask>,
    looks: Memory<(Place, [Seen; NODES]), Fate>,
    clusters: Memory<(Place, Inc, Members, Set), Step>,
    gates: Memory<GateView, GateStep>,
    pub(super) ids: Memory<(Inc, u8, u8), Ids>,
    pub(super) cluster_ids: Memory<Inc, u64>,
    asked: std::cell::Cell<u64>,
    /// Whether a node may not use its data, by what it has of etcd's, of a database, and of a state.
    refused: HashMap<(Three, Three, bool), bool>,
    pub(super) mutation: Option<Mutation>,
}

impl Decider {
    pub(super) fn new(documents: &[&[u8]], mutation: Option<Mutation>) -> Decider {
        let specs: Vec<ClusterSpec> = documents.iter().enumerate().map(|(no, members)| spec(no, members)).collect();
        let real = specs.iter().map(|spec| Document::of(spec).expect("a digest")).collect();
        Decider {
            real,
            specs,
            documents: documents.iter().map(|members| members.to_vec()).collect(),
            answers: Memory::default(),
            requests: Memory::default(),
            looks: Memory::default(),
            clusters: Memory::default(),
            gates: Memory::default(),
            ids: Memory::default(),
            cluster_ids: Memory::default(),
            asked: std::cell::Cell::new(0),
            refused: refused(),
            mutation,
        }
    }

    /// How many different questions were asked.
    pub(super) fn questions(&self) -> u64 {
        self.asked.get()
    }

    /// The nodes of a document.
    pub(super) fn nodes(&self, doc: u8) -> Set {
        Set::of(self.documents[doc as usize].iter().copied())
    }

    /// The members with which an incarnation forms.
    pub(super) fn first_members(&self, inc: Inc) -> Members {
        let mut members = [0; NODES];
        for node in &self.documents[inc.doc as usize] {
            members[*node as usize] = 1;
        }
        members
    }

    /// What a node asks the others with.
    pub(super) fn request(&self, me: u8, doc: u8, has: &Has) -> Ask {
        let (mut has, mut local) = (*has, Local::default());
        has.each_inc(&mut |inc| local.rename(inc));
        let mut ask = remembered(&self.requests, (me, doc, has), || self.request_of(me, doc, &has));
        ask.inc.iter_mut().for_each(|inc| local.restore(inc));
        ask
    }

    fn request_of(&self, me: u8, doc: u8, has: &Has) -> Ask {
        self.count();
        let request = Request::of(&self.real[doc as usize], &name(me), &self.own(has, me));
        Ask {
            from: node(&request.from),
            doc: self.doc(&request.document),
            inc: request.incarnation.as_ref().map(|text| incarnation(text, doc)),
            without: set(&request.without),
        }
    }

    /// What a node answers, and what it writes before.
    pub(super) fn answer(&self, me: u8, doc: u8, has: &Has, ask: &Ask) -> (Told, Option<Promises>) {
        let (mut has, mut ask, mut local) = (*has, *ask, Local::default());
        has.each_inc(&mut |inc| local.rename(inc));
        ask.inc.iter_mut().for_each(|inc| local.rename(inc));
        let (mut told, mut written) = self.answer_to(me, doc, &has, &ask);
        each_inc_told(&mut told, &mut |inc| local.restore(inc));
        written.iter_mut().for_each(|promises| each_inc_promised(promises, &mut |inc| local.restore(inc)));
        (told, written)
    }

    fn answer_to(&self, me: u8, doc: u8, has: &Has, ask: &Ask) -> (Told, Option<Promises>) {
        let key = (me, doc, *has, *ask);
        remembered(&self.answers, key, || {
            self.count();
            let request = Request {
                from: name(ask.from),
                document: self.real[ask.doc as usize].digest.clone(),
                incarnation: ask.inc.map(token),
                without: names(ask.without),
            };
            let mut own = self.own(has, me);
            if ask.inc.is_some() && self.mutation == Some(Mutation::PromisesTwice) {
                own.promises = promise::Promises::default();
            }
            let reply = promise::answer(&self.real[doc as usize], &name(me), &own, &request);
            // The incarnations that can be in it, with their documents.
            let known = |text: &str| known_incarnation(text, has, ask.inc);
            let told = Told {
                doc: self.doc(&reply.answer.document),
                fresh: reply.answer.not_fresh.is_none(),
                promise: reply.answer.promise.map(|told| (node(&told.founder), known(&told.incarnation))),
                cluster: reply.answer.cluster.map(|id| self.known_cluster(id, has)),
                refusal: match &reply.answer.refusal {
                    None => Refusal::None,
                    Some(why) if why.contains(GIVE_DOCUMENT) => Refusal::Document,
                    Some(_) => Refusal::Plain,
                },
            };
            (told, reply.store.map(|promises| self.promises(&promises)))
        })
    }

    /// What a node that has heard this of the others comes to, without a quorum that answers.
    pub(super) fn fate(&self, place: Place, seen: &[Seen; NODES]) -> Fate {
        let (mut place, mut seen, mut local) = (place, *seen, Local::default());
        place.2.each_inc(&mut |inc| local.rename(inc));
        seen.iter_mut().for_each(|seen| each_inc_seen(seen, &mut |inc| local.rename(inc)));
        match self.fate_of(place, &seen) {
            Fate::Surely(mut step) => {
                each_inc_meant(&mut step, &mut |inc| local.restore(inc));
                Fate::Surely(step)
            }
            fate => fate,
        }
    }

    fn fate_of(&self, place: Place, seen: &[Seen; NODES]) -> Fate {
        let missing: Vec<u8> =
            self.others(place.0, place.1).filter(|it| seen[*it as usize] == Seen::NotAsked).collect();
        match missing[..] {
            [] => remembered(&self.looks, (place, *seen), || match self.look(place, seen) {
                Step::Wait(_) => Fate::Nothing,
                step => Fate::Surely(step),
            }),
            [last] => remembered(&self.looks, (place, *seen), || self.over_all(place, seen, last)),
            _ => Fate::Open,
        }
    }

    fn over_all(&self, place: Place, seen: &[Seen; NODES], last: u8) -> Fate {
        let mut common: Option<Step> = None;
        for answer in self.universe(place.1, &place.2) {
            let mut seen = *seen;
            seen[last as usize] = answer;
            let step = match self.look(place, &seen) {
                Step::Wait(_) => Step::Wait(Way::default()),
                step => step,
            };
            match common {
                Some(other) if other != step => return Fate::Open,
                _ => common = Some(step),
            }
        }
        match common {
            Some(Step::Wait(_)) | None => Fate::Nothing,
            Some(step) => Fate::Surely(step),
        }
    }

    /// Everything that another node can say, as far as it makes a difference to one that has this.
    fn universe(&self, doc: u8, has: &Has) -> Vec<Seen> {
        let mut incs: Vec<Inc> = has.incs().collect();
        incs.push(Inc { no: OTHER, doc });
        let founders = [has.promises.held.map_or(0, |held| held.founder), NODES as u8];
        let promises: Vec<_> = std::iter::once(None)
            .chain(incs.iter().flat_map(|inc| founders.map(|founder| Some((founder, *inc)))))
            .collect();
        let docs = (0..self.real.len() as u8).filter(|it| *it == doc || *it == (doc + 1) % self.real.len() as u8);
        let mut all = vec![Seen::Silent];
        for doc in docs {
            for promise in &promises {
                all.push(Seen::Told(Told {
                    doc,
                    fresh: true,
                    promise: *promise,
                    cluster: None,
                    refusal: Refusal::None,
                }));
                for cluster in std::iter::once(None).chain(incs.iter().copied().map(Some)) {
                    all.push(Seen::Told(Told {
                        doc,
                        fresh: false,
                        promise: *promise,
                        cluster,
                        refusal: Refusal::None,
                    }));
                }
            }
        }
        all.extend(incs.iter().flat_map(|inc| [false, true].map(|ever| Seen::Etcd { inc: *inc, ever })));
        all
    }

    /// What a node decides that has asked all others and sees no quorum.
    pub(super) fn look(&self, place: Place, seen: &[Seen; NODES]) -> Step {
        let (me, doc, has, order) = place;
        self.count();
        let peers = self.others(me, doc).map(|other| (name(other), self.peer(&seen[other as usize]))).collect();
        let view = self.view(me, doc, &has, order, peers, None);
        self.step(&view, &has, None)
    }

    /// What a node decides that sees this cluster. What else the others say makes no difference then.
    pub(super) fn beside(&self, place: Place, inc: Inc, members: &Members, started: Set) -> Step {
        let (mut place, mut inc, mut local) = (place, inc, Local::default());
        place.2.each_inc(&mut |inc| local.rename(inc));
        local.rename(&mut inc);
        let mut step = self.beside_it(place, inc, members, started);
        each_inc_meant(&mut step, &mut |inc| local.restore(inc));
        step
    }

    fn beside_it(&self, place: Place, inc: Inc, members: &Members, started: Set) -> Step {
        remembered(&self.clusters, (place, inc, *members, started), || {
            let (me, doc, has, order) = place;
            let cluster = join::Cluster { id: self.cluster_id(inc), members: self.listed(inc, members, started) };
            let decide = |peer: Peer| {
                self.count();
                let peers = self.others(me, doc).map(|other| (name(other), peer.clone())).collect();
                self.step(&self.view(me, doc, &has, order, peers, Some(cluster.clone())), &has, Some((inc, members)))
            };
            let step = decide(Peer::Silent(String::new()));
            assert_eq!(step, decide(Peer::Etcd { cluster: Some(cluster.id), ever: true }), "it depends on peers");
            step
        })
    }

    /// Whether a node may not use the data that it has, as nothing says whose they are.
    pub(super) fn is_refused(&self, node: &Node) -> bool {
        // A disk that cannot be read any more was read when the node began, unless there was nothing to compare it with.
        let three = |unread: bool, present: bool| match (unread && node.begun.is_none(), present) {
            (true, _) => Three::Unknown,
            (_, true) => Three::Present,
            (_, false) => Three::Absent,
        };
        let is_blind = self.mutation == Some(Mutation::UnreadIsAbsent);
        let etcd = three(node.etcd_unread, node.etcd != Etcd::Absent);
        let database = three(node.db_unread, node.db != Db::Absent);
        let seen = |it: Three| if is_blind && it == Three::Unknown { Three::Absent } else { it };
        let (etcd, database) = (seen(etcd), seen(database));
        self.refused[&(etcd, database, node.begun.is_some())]
    }

    /// What a step writes, in order.
    pub(super) fn writes(&self, me: u8, step: &Step) -> Vec<Write> {
        let begun_of = |begun: &Begun| self.real_begun(begun, me);
        let (real, promised, begun) = match step {
            Step::Promise(promises) => (join::Step::Promise(self.real_promises(promises)), Some(promises), None),
            Step::Release(promises) => (join::Step::Release(self.real_promises(promises)), Some(promises), None),
            Step::Commit(begun) => (join::Step::Commit(begun_of(begun)), None, Some(begun)),
            Step::Abandon(promises, begun) => {
                (join::Step::Abandon(self.real_promises(promises), begun_of(begun)), Some(promises), Some(begun))
            }
            Step::Forget(promises) => (join::Step::Forget(self.real_promises(promises)), Some(promises), None),
            Step::SetAside(why) => (join::Step::SetAside(*why), None, None),
            Step::Start | Step::Resume | Step::Remove(..) | Step::Add(_) | Step::Wait(_) => return Vec::new(),
        };
        let writes = join::writes(&real).into_iter().map(|write| {
            let same = |begun: Option<&Begun>, real: &join::Begun| {
                *begun.filter(|begun| begun_of(begun) == *real).expect("the beginning of the step")
            };
            match write {
                join::Write::Promises(real) => Write::Promises(
                    *promised.filter(|it| self.real_promises(it) == real).expect("the promises of the step"),
                ),
                join::Write::Mark(real) => Write::Mark(same(begun, &real)),
                join::Write::Begun(real) => Write::Begun(same(begun, &real)),
                join::Write::Seen => Write::Seen,
                join::Write::NotBegun => Write::NotBegun,
                join::Write::Ordered => Write::Ordered,
                join::Write::Stop(service) => Write::Stop(service),
                join::Write::Aside(_) => Write::Aside,
            }
        });
        let keeps = |write: &Write| *write != Write::Seen || self.mutation != Some(Mutation::SeenUnwritten);
        writes.filter(keeps).collect()
    }

    /// Whether the keys say which database is the cluster's.
    pub(super) fn has_database(&self, keys: &Keys) -> bool {
        translate::keys(keys).system() != first::System::Unknown
    }

    /// The database that a person keeps as the cluster's, where this node has `db`.
    pub(super) fn keeps(&self, keys: &Keys, db: Db, unread: bool) -> Option<u8> {
        first::keeps(&translate::keys(keys), &database(db, unread)).ok().map(|system| number(&system))
    }

    /// What is to be done where Patroni runs before what was begun is done; `None` as long as it is not.
    pub(super) fn completion(&self, keys: &Keys, db: Db, unread: bool) -> Option<Done> {
        match first::completion(&translate::keys(keys), &database(db, unread), false) {
            first::Completion::Pin(system) => Some(Done::Pin(number(&system))),
            first::Completion::Done => Some(Done::Done),
            first::Completion::Wait(_) => None,
        }
    }

    /// Where the document of a node stands, and whether it becomes the newest: when it is found beside these members, or a
    /// person says so (`on_purpose`).
    pub(super) fn becomes_newest(
        &self,
        doc: u8,
        keys: &Keys,
        inc: Inc,
        members: &Members,
        started: Set,
        on_purpose: bool,
    ) -> bool {
        let listed: Vec<_> = self.listed(inc, members, started).into_iter().map(member).collect();
        let given = match on_purpose {
            true => document::Given::OnPurpose,
            false => document::Given::found(&self.specs[doc as usize], &listed),
        };
        document::becomes_newest(self.stands(doc, keys), given)
    }

    fn stands(&self, doc: u8, keys: &Keys) -> document::Place {
        let record = keys.newest.map(|newest| document::Record {
            generation: keys.older.len() as u64 + 1,
            digest: self.real[newest as usize].digest.clone(),
            members: Vec::new(),
            history: keys.older.iter().map(|older| self.real[older as usize].digest.clone()).collect(),
        });
        document::place(record.as_ref(), &self.real[doc as usize].digest)
    }

    /// The member that an agent with this document removes, if all that do not answer have been silent for as long as it
    /// takes. The silence of a whole day is the longest that is asked for.
    pub(super) fn prunes(
        &self,
        doc: u8,
        keys: &Keys,
        inc: Inc,
        members: &Members,
        started: Set,
        answering: Set,
    ) -> Option<u8> {
        self.count();
        let listed = self.listed(inc, members, started);
        let answers = |id: u64| answering.has(self.member_of(inc, members, id).0);
        let seen = listed.iter().map(|it| members::SeenMember {
            id: it.id,
            name: it.name.clone(),
            named: join::is_named(&self.specs[doc as usize], &it.name, &it.peer_urls),
            started: it.started,
            silent: (!answers(it.id)).then_some(Duration::from_secs(86_400)),
        });
        let view = members::MembersView { place: self.stands(doc, keys), listed: seen.collect() };
        let ripe = members::ripe(&view)?;
        let heard = listed.iter().map(|it| it.id).filter(|id| answers(*id)).collect();
        view.is_safe(&heard).then(|| self.member_of(inc, members, ripe).0)
    }

    /// The database that an agent writes back into the key `initialize`, while there is no leader.
    pub(super) fn restores(&self, keys: &Keys, db: Db, unread: bool) -> Option<u8> {
        match keys::restore(&translate::keys(keys), &database(db, unread)) {
            KeyStep::Restore(system) => Some(number(system)),
            KeyStep::Nothing | KeyStep::Tell(_) => None,
        }
    }

    /// Whether a Patroni that runs waits for what will not come.
    pub(super) fn is_in_vain(&self, view: &GateView) -> bool {
        self.mutation != Some(Mutation::WaitsInVain) && first::is_in_vain(&self.gate_view(view))
    }

    /// The members that are let go while a cluster forms, sooner or later.
    pub(super) fn absent(&self, inc: Inc, members: &Members, started: Set) -> Set {
        let listed = self.listed(inc, members, started);
        let going = join::going(&listed, &promise::Promises::default(), true);
        Set::of(going.into_iter().map(|id| self.member_of(inc, members, id).0))
    }

    /// What the gate before Patroni decides.
    pub(super) fn gate(&self, view: GateView) -> GateStep {
        remembered(&self.gates, view, || {
            self.count();
            gate_step(first::may_start(&self.gate_view(&view)))
        })
    }

    /// The way on that the gate names.
    pub(super) fn gate_way(&self, view: GateView) -> Way {
        let text = match first::may_start(&self.gate_view(&view)) {
            first::Step::Wait(why) => why,
            first::Step::Refuse(what, way_out) => format!("{what}: {way_out}"),
            _ => String::new(),
        };
        Way {
            recover: text.contains("pgha-node recover"),
            aside: text.contains("pgha-node aside make"),
            take: text.contains("pgha-node first take") || text.contains("`pgha-node first`"),
            keep: text.contains("pgha-node first keep"),
            ..Way::default()
        }
    }

    /// Whether a person may claim the data of this node. `told` is what a quorum says: its incarnation, members and keys.
    pub(super) fn claim(&self, me: u8, node: &Node, told: Option<(Inc, &Etcds)>) -> claim::Verdict {
        self.count();
        let has = Has::of(node);
        claim::verdict(&claim::View {
            me: name(me),
            peer_url: url(me),
            database: database(node.db, node.db_unread),
            etcd: self.own(&has, me).etcd,
            told: match told {
                None => claim::Told::Nobody("no quorum answers".to_owned()),
                Some((inc, truth)) => claim::Told::Quorum {
                    members: self.listed(inc, &truth.members, truth.started).into_iter().map(member).collect(),
                    keys: first::Keys { cluster: self.cluster_id(inc), ..keys(&truth.keys) },
                },
            },
        })
    }

    /// Whether the cluster may go on from the node of this view, if a person insists.
    pub(super) fn may_recover(&self, view: &plan::View) -> Result<(), Unrecovered> {
        self.count();
        match plan::plan(view, true) {
            Ok(_) => Ok(()),
            Err(plan::Refusal::Nothing | plan::Refusal::NeverBegun) => Err(Unrecovered::Empty),
            Err(plan::Refusal::Unusable(_)) => Err(Unrecovered::Unusable),
            Err(_) => Err(Unrecovered::Otherwise),
        }
    }

    /// The nodes of a document but one.
    pub(super) fn others(&self, me: u8, doc: u8) -> impl Iterator<Item = u8> {
        self.documents[doc as usize].iter().copied().filter(move |node| *node != me)
    }

    fn count(&self) {
        self.asked.set(self.asked.get() + 1);
    }
}

/// Incarnations have no meaning but to be the same or not: a question is asked about those that occur in it.
#[derive(Default)]
struct Local(Vec<u8>);

impl Local {
    fn rename(&mut self, inc: &mut Inc) {
        if inc.no < CLAIMED {
            let known = self.0.iter().position(|it| *it == inc.no);
            inc.no = known.unwrap_or_else(|| {
                self.0.push(inc.no);
                self.0.len() - 1
            }) as u8;
        }
    }

    fn restore(&self, inc: &mut Inc) {
        if inc.no < CLAIMED {
            inc.no = self.0[inc.no as usize];
        }
    }
}

impl Has {
    pub(super) fn each_inc(&mut self, with: &mut dyn FnMut(&mut Inc)) {
        if let Log::Data(inc, _) = &mut self.etcd {
            with(inc);
        }
        self.begun.iter_mut().for_each(|begun| with(&mut begun.inc));
        self.added.iter_mut().for_each(|(inc, _)| with(inc));
        each_inc_promised(&mut self.promises, with);
    }

    pub(super) fn incs(&self) -> impl Iterator<Item = Inc> {
        let log = match self.etcd {
            Log::Data(inc, _) => Some(inc),
            _ => None,
        };
        let begun = self.begun.map(|begun| begun.inc);
        log.into_iter()
            .chain(begun)
            .chain(self.added.map(|(inc, _)| inc))
            .chain(self.promises.held.map(|held| held.inc))
    }
}

pub(super) fn remembered<K: std::hash::Hash + Eq, V: Copy>(
    memory: &Memory<K, V>,
    key: K,
    ask: impl FnOnce() -> V,
) -> V {
    if let Some(known) = memory.borrow().get(&key) {
        return *known;
    }
    let value = ask();
    memory.borrow_mut().insert(key, value);
    value
}
