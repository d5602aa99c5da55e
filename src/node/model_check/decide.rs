//! The decisions, asked about a state of the world.
//!
//! Nothing is decided here: what a node has and sees is put into the words of [`join`], [`promise`] and [`first`], the
//! decision is asked, and its answer is put into small numbers again. Whatever is not the same after the way there and
//! back ends the run. As the decisions are pure, each is asked once and remembered.

use super::{search::Mix, world::*};
use crate::{
    etcd,
    files::{Doubt, Presence},
    model::scope::EtcdStart,
    node::{
        begun, claim,
        database::{Database, Facts, Lsn, ServerState},
        etcd_data::{self, EtcdData, Ids},
        first,
        join::{self, Document, Found, Listed, Own, Peer, View},
        promise::{self, Answer, Request},
    },
};
use std::{cell::RefCell, collections::BTreeSet, collections::HashMap, hash::BuildHasherDefault};

/// Some incarnation that the node knows nothing of.
const OTHER: u8 = 14;

/// The words of a refusal that only a person's documents can end.
const GIVE_DOCUMENT: &str = "give the nodes that document again";

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

type Memory<K, V> = RefCell<HashMap<K, V, BuildHasherDefault<Mix>>>;

/// Where one looks from: the node, its document, what it has, its order.
type Place = (u8, u8, Has, Option<Order>);

/// Asks the decisions.
pub(super) struct Decider {
    /// The members of each document, in its order.
    pub(super) documents: Vec<Vec<u8>>,
    real: Vec<Document>,
    answers: Memory<(u8, u8, Has, Ask), (Told, Option<Promises>)>,
    requests: Memory<(u8, u8, Has), Ask>,
    looks: Memory<(Place, [Seen; NODES]), Fate>,
    clusters: Memory<(Place, Inc, Members, Set), Step>,
    gates: Memory<GateView, GateStep>,
    ids: Memory<(Inc, u8, u8), Ids>,
    cluster_ids: Memory<Inc, u64>,
    asked: std::cell::Cell<u64>,
}

impl Decider {
    pub(super) fn new(documents: &[&[u8]]) -> Decider {
        let place = |node: &u8| (name(*node), format!("https://10.0.0.1{}:2380", node + 1));
        let real = documents.iter().enumerate().map(|(number, members)| Document {
            digest: format!("document {number}"),
            identity: "feed".to_owned(),
            members: members.iter().map(place).collect(),
        });
        Decider {
            real: real.collect(),
            documents: documents.iter().map(|members| members.to_vec()).collect(),
            answers: Memory::default(),
            requests: Memory::default(),
            looks: Memory::default(),
            clusters: Memory::default(),
            gates: Memory::default(),
            ids: Memory::default(),
            cluster_ids: Memory::default(),
            asked: std::cell::Cell::new(0),
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
            let own = self.own(has, me);
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

    /// The members that are let go while a cluster forms.
    pub(super) fn absent(&self, inc: Inc, members: &Members, started: Set) -> Set {
        let listed = self.listed(inc, members, started);
        Set::of(join::absent(&listed).into_iter().map(|id| self.member_of(inc, members, id).0))
    }

    /// What the gate before Patroni decides.
    pub(super) fn gate(&self, view: GateView) -> GateStep {
        remembered(&self.gates, view, || {
            self.count();
            gate_step(first::may_start(&gate_view(&view)))
        })
    }

    /// The way on that the gate names.
    pub(super) fn gate_way(&self, view: GateView) -> Way {
        let text = match first::may_start(&gate_view(&view)) {
            first::Step::Wait(why) => why,
            first::Step::Refuse(what, way_out) => format!("{what}: {way_out}"),
            _ => String::new(),
        };
        Way {
            recover: text.contains("pgha-node recover"),
            aside: text.contains("pgha-node aside make"),
            take: text.contains("pgha-node first"),
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

    /// The nodes of a document but one.
    pub(super) fn others(&self, me: u8, doc: u8) -> impl Iterator<Item = u8> {
        self.documents[doc as usize].iter().copied().filter(move |node| *node != me)
    }

    fn count(&self) {
        self.asked.set(self.asked.get() + 1);
    }

    fn view(
        &self,
        me: u8,
        doc: u8,
        has: &Has,
        order: Option<Order>,
        peers: Vec<(String, Peer)>,
        cluster: Option<join::Cluster>,
    ) -> View {
        View {
            document: self.real[doc as usize].clone(),
            me: name(me),
            own: self.own(has, me),
            order: order.map(|order| join::Order {
                document: self.real[order.doc as usize].digest.clone(),
                without: names(order.without),
            }),
            cluster,
            peers,
            added: has.added.map(|(inc, gen_)| self.ids(inc, me, gen_).member),
            draw: token(Inc { no: DRAW, doc }),
        }
    }

    fn step(&self, view: &View, has: &Has, cluster: Option<(Inc, &Members)>) -> Step {
        let me = node(&view.me);
        let removed = |id: u64| {
            let (inc, members) = cluster.expect("a member is removed from a cluster");
            let (node, gen_) = self.member_of(inc, members, id);
            Step::Remove(inc, node, gen_)
        };
        match join::next(view) {
            join::Step::Promise(promises) => Step::Promise(self.promises(&promises)),
            join::Step::Release(promises) => Step::Release(self.promises(&promises)),
            join::Step::Commit(begun) => Step::Commit(self.begun(&begun, me, has, cluster)),
            join::Step::Start(start) => {
                assert_eq!(
                    Some(&start),
                    view.own.begun.as_ref().map(|begun| &begun.start),
                    "it starts as it has begun"
                );
                Step::Start
            }
            join::Step::Resume => Step::Resume,
            join::Step::Remove(id) => removed(id),
            join::Step::Add => Step::Add(cluster.expect("a member is added to a cluster").0),
            join::Step::Readdress(_) => panic!("no address changes"),
            join::Step::SetAside(why) => Step::SetAside(why),
            join::Step::Abandon(promises, begun) => {
                Step::Abandon(self.promises(&promises), self.begun(&begun, me, has, cluster))
            }
            join::Step::Forget(promises) => Step::Forget(self.promises(&promises)),
            join::Step::Wait { why, order } => Step::Wait(Way {
                form: order.map(|order| (node(&order.on), set(&order.without))),
                recover: why.contains("pgha-node recover"),
                document: why.contains(GIVE_DOCUMENT),
                ..Way::default()
            }),
        }
    }

    fn own(&self, has: &Has, me: u8) -> Own {
        let unreadable = || "Input/output error".to_owned();
        Own {
            etcd: match has.etcd {
                Log::Absent => EtcdData::Absent,
                Log::Unborn => EtcdData::Unborn,
                Log::Data(inc, gen_) => EtcdData::Data(self.ids(inc, me, gen_)),
                Log::Unknown => EtcdData::Unknown(unreadable()),
            },
            idle: has.idle,
            database: match has.db {
                Three::Present => Found::Present,
                Three::Absent => Found::Absent,
                Three::Unknown => Found::Unknown(unreadable()),
            },
            begun: has.begun.map(|begun| join::Begun {
                start: self.start(&begun),
                ids: (begun.inc.no != CLAIMED).then(|| self.ids(begun.inc, me, begun.gen_)),
                seen: begun.seen,
            }),
            marked: has.marked,
            complete: has.complete,
            promises: promise::Promises {
                held: has.promises.held.map(|held| self.promise(&held)),
                outlived: has.promises.outlived.iter().map(|doc| self.real[doc as usize].members.clone()).collect(),
            },
        }
    }

    fn promise(&self, held: &Promise) -> promise::Promise {
        let document = &self.real[held.inc.doc as usize];
        promise::Promise::new(document, &name(held.founder), &token(held.inc), &names(held.without))
    }

    fn promises(&self, real: &promise::Promises) -> Promises {
        let same_members = |members: &Vec<join::Place>| {
            let found = self.real.iter().position(|document| document.members == *members);
            found.expect("members of a document") as u8
        };
        let promises = Promises {
            held: real.held.as_ref().map(|held| Promise {
                founder: node(&held.founder),
                inc: incarnation(&held.incarnation, self.doc(&held.document)),
                without: set(&held.without),
            }),
            outlived: Set::of(real.outlived.iter().map(same_members)),
        };
        assert_eq!(promises.held.map(|held| self.promise(&held)), real.held, "a promise is as promises are");
        promises
    }

    fn start(&self, begun: &Begun) -> EtcdStart {
        match begun.joins {
            None => self.promise(&Promise { founder: 0, inc: begun.inc, without: Set(0) }).start(),
            Some(_) if begun.inc.no == CLAIMED => EtcdStart {
                existing: true,
                token: "feed".to_owned(),
                members: self.real[begun.inc.doc as usize].members.clone(),
            },
            Some(list) => {
                let mut members: Vec<_> = (0..NODES as u8)
                    .filter(|node| list[*node as usize] != 0)
                    .map(|node| match list[node as usize] {
                        1 => (name(node), url(node)),
                        odd => (format!("member-{:x}", self.ids(begun.inc, node, odd - 2).member), url(node)),
                    })
                    .collect();
                members.sort();
                EtcdStart { existing: true, token: "feed".to_owned(), members }
            }
        }
    }

    fn begun(&self, real: &join::Begun, me: u8, has: &Has, cluster: Option<(Inc, &Members)>) -> Begun {
        let ids = real.ids.expect("this version of the program keeps ids");
        let known = cluster.map(|(inc, _)| inc).into_iter().chain(has.incs());
        let inc = known.into_iter().find(|inc| self.cluster_id(*inc) == ids.cluster).expect("a known cluster");
        let gen_ = (0..8).find(|gen_| self.ids(inc, me, *gen_) == ids).expect("a known member");
        let joins = real.start.existing.then(|| {
            let mut list = [0; NODES];
            for (name, url) in &real.start.members {
                let node = node_at(url);
                list[node as usize] = match name.strip_prefix("member-") {
                    None => 1,
                    Some(_) => 2 + cluster.map_or(0, |(_, members)| members[node as usize] - 1),
                };
            }
            list
        });
        let begun = Begun { inc, gen_, joins, seen: real.seen };
        assert_eq!(self.start(&begun), real.start, "a beginning is as beginnings are");
        begun
    }

    fn peer(&self, seen: &Seen) -> Peer {
        let told = |inc: Inc| self.cluster_id(inc);
        match seen {
            Seen::NotAsked | Seen::Silent => Peer::Silent("no answer".to_owned()),
            Seen::Etcd { inc, ever } => Peer::Etcd { cluster: Some(told(*inc)), ever: *ever },
            Seen::Told(it) => Peer::Told(Answer {
                document: self.real[it.doc as usize].digest.clone(),
                not_fresh: (!it.fresh).then(|| "it is not fresh".to_owned()),
                promise: it
                    .promise
                    .map(|(founder, inc)| promise::Told { founder: name(founder), incarnation: token(inc) }),
                cluster: it.cluster.map(told),
                refusal: match it.refusal {
                    Refusal::None => None,
                    Refusal::Plain => Some("it does not promise".to_owned()),
                    Refusal::Document => Some(GIVE_DOCUMENT.to_owned()),
                },
            }),
        }
    }

    fn listed(&self, inc: Inc, members: &Members, started: Set) -> Vec<Listed> {
        let member = |node: u8| {
            let gen_ = members[node as usize].checked_sub(1)?;
            let started = started.has(node);
            Some(Listed {
                id: self.ids(inc, node, gen_).member,
                // A member that forms the cluster has a name from the beginning.
                name: if started || gen_ == 0 { name(node) } else { String::new() },
                peer_urls: vec![url(node)],
                started,
                answers: false,
            })
        };
        (0..NODES as u8).filter_map(member).collect()
    }

    fn member_of(&self, inc: Inc, members: &Members, id: u64) -> (u8, u8) {
        let listed = (0..NODES as u8).filter(|node| members[*node as usize] != 0);
        let mut known = listed.map(|node| (node, members[node as usize] - 1));
        known.find(|(node, gen_)| self.ids(inc, *node, *gen_).member == id).expect("a listed member")
    }

    fn ids(&self, inc: Inc, node: u8, gen_: u8) -> Ids {
        remembered(&self.ids, (inc, node, gen_), || self.derive_ids(inc, node, gen_))
    }

    fn derive_ids(&self, inc: Inc, node: u8, gen_: u8) -> Ids {
        match gen_ {
            0 => {
                let formed = self.promise(&Promise { founder: 0, inc, without: Set(0) }).ids(&name(node));
                // A node that is not one of those that formed it was never member number 0 of it.
                formed.unwrap_or(Ids { cluster: self.cluster_id(inc), member: 0xdead })
            }
            later => Ids {
                cluster: self.cluster_id(inc),
                member: u64::from(inc.no) << 16 | u64::from(node) << 8 | u64::from(later),
            },
        }
    }

    fn cluster_id(&self, inc: Inc) -> u64 {
        remembered(&self.cluster_ids, inc, || self.derive_cluster_id(inc))
    }

    fn derive_cluster_id(&self, inc: Inc) -> u64 {
        let first = self.documents[inc.doc as usize][0];
        let document = &self.real[inc.doc as usize];
        let token = format!("{}-{}", document.identity, token(inc));
        etcd_data::ids(&token, &document.members, &name(first)).expect("a member").cluster
    }

    fn known_cluster(&self, id: u64, has: &Has) -> Inc {
        has.incs().find(|inc| self.cluster_id(*inc) == id).expect("a cluster that the node has")
    }

    fn doc(&self, digest: &str) -> u8 {
        self.real.iter().position(|document| document.digest == digest).expect("a document") as u8
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
    fn each_inc(&mut self, with: &mut dyn FnMut(&mut Inc)) {
        if let Log::Data(inc, _) = &mut self.etcd {
            with(inc);
        }
        self.begun.iter_mut().for_each(|begun| with(&mut begun.inc));
        self.added.iter_mut().for_each(|(inc, _)| with(inc));
        each_inc_promised(&mut self.promises, with);
    }

    fn incs(&self) -> impl Iterator<Item = Inc> {
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

fn remembered<K: std::hash::Hash + Eq, V: Copy>(memory: &Memory<K, V>, key: K, ask: impl FnOnce() -> V) -> V {
    if let Some(known) = memory.borrow().get(&key) {
        return *known;
    }
    let value = ask();
    memory.borrow_mut().insert(key, value);
    value
}

fn known_incarnation(text: &str, has: &Has, asked: Option<Inc>) -> Inc {
    let mut known = has.incs().chain(asked);
    known.find(|inc| token(*inc) == text).expect("an incarnation that the node knows of")
}

fn url(node: u8) -> String {
    format!("https://10.0.0.1{}:2380", node + 1)
}

fn node_at(found: &str) -> u8 {
    (0..NODES as u8).find(|node| url(*node) == found).expect("a node's address")
}

/// The text of an incarnation.
fn token(inc: Inc) -> String {
    format!("{:032x}", inc.no)
}

fn incarnation(text: &str, doc: u8) -> Inc {
    Inc { no: u8::from_str_radix(text, 16).expect("an incarnation"), doc }
}

fn node(text: &str) -> u8 {
    text.strip_prefix("pg-").and_then(|number| number.parse::<u8>().ok()).expect("a node") - 1
}

fn names(nodes: Set) -> BTreeSet<String> {
    nodes.iter().map(name).collect()
}

fn set(names: &BTreeSet<String>) -> Set {
    Set::of(names.iter().map(|name| node(name)))
}

/// The version of PostgreSQL.
const VERSION: u32 = 17;

fn system(number: u8) -> String {
    format!("76000000000000000{number:02}")
}

fn number(system: &str) -> u8 {
    system[system.len() - 2..].parse().expect("a system identifier")
}

fn gate_view(view: &GateView) -> first::View {
    first::View {
        me: name(view.me),
        forms: view.forms,
        version: VERSION,
        keys: keys(&view.keys),
        database: database(view.db, view.unread),
        begun: match view.mark {
            None => Presence::Absent,
            Some(mark) => Presence::Present(begun::Begun {
                what: match mark {
                    Mark::Bootstrap => begun::What::Bootstrap,
                    Mark::Clone => begun::What::Clone,
                },
                version: VERSION,
                revision: 1,
                time: 0,
            }),
        },
        room: true,
    }
}

fn keys(keys: &Keys) -> first::Keys {
    let (first_at, initialize_at) = if keys.initialize_older { (3, 2) } else { (2, 3) };
    let first = keys.first.map(|(node, made)| first::First { node: name(node), system: made.map(system) });
    let initialize = keys.initialize.map(|made| made.map(system).unwrap_or_default());
    first::Keys {
        cluster: 0,
        revision: 9,
        first: first.map(|value| first::Key { value, created: first_at, changed: first_at }),
        initialize: initialize.map(|value| first::Key { value, created: initialize_at, changed: initialize_at }),
    }
}

fn member(listed: Listed) -> etcd::Member {
    etcd::Member { id: listed.id, name: listed.name, peer_urls: listed.peer_urls, ..etcd::Member::default() }
}

fn database(db: Db, unread: bool) -> Database {
    match db {
        _ if unread => Database::Unknown(Doubt::new("Input/output error")),
        Db::Absent => Database::Absent,
        Db::Half(_) => Database::Damaged("it has no global/pg_control".to_owned()),
        Db::Damaged(_) => Database::Damaged("the checksum of its global/pg_control is wrong".to_owned()),
        Db::Whole(whole) => Database::Present(Facts {
            version: VERSION,
            system: system(whole.system),
            timeline: 1,
            state: ServerState::InProduction,
            checkpoint: Lsn(u64::from(whole.commits)),
            checkpoint_time: 0,
            recovery_end: Lsn(0),
            recovery_timeline: 0,
            unstarted_copy: whole.use_ == Use::Copied,
        }),
    }
}

fn gate_step(step: first::Step) -> GateStep {
    match step {
        first::Step::Start(what) => GateStep::Start(what.map(Mark::from)),
        first::Step::Open => GateStep::Open,
        first::Step::Pin(made) => GateStep::Pin(number(&made)),
        first::Step::SetAsideThenLookAgain(_) => GateStep::SetAside,
        first::Step::GiveUpOwnBeginning(_) => GateStep::GiveUp,
        first::Step::Wait(_) => GateStep::Wait,
        first::Step::Refuse(..) => GateStep::Refuse,
    }
}
