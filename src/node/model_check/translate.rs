//! The small numbers of the world in the words of the decisions, and back.

use super::{decide::*, mutations::Mutation, world::*};
use crate::{
    error::ErrorKind,
    etcd,
    files::{Doubt, Presence},
    model::{ClusterSpec, Member, samples, scope::EtcdStart},
    node::{
        begun,
        database::{Database, Facts, Held, Lsn, ServerState},
        etcd_data::{self, EtcdData, Ids},
        first,
        join::{self, Found, Listed, Own, Peer, View},
        promise::{self, Answer},
        recover::{
            plan, rival,
            timeline::{self, Reach},
        },
        state::{self, Data as Disks, State},
    },
};
use std::collections::{BTreeSet, HashMap};

impl Decider {
    pub(super) fn view(
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
            order: order.map(|order| join::FormingOrder {
                document: self.real[order.doc as usize].digest.clone(),
                without: names(order.without),
            }),
            cluster,
            peers,
            added: has.added.map(|(inc, gen_)| self.ids(inc, me, gen_).member),
            draw: token(Inc { no: DRAW, doc }),
        }
    }

    pub(super) fn step(&self, view: &View, has: &Has, cluster: Option<(Inc, &Members)>) -> Step {
        let me = node(&view.me);
        let removed = |id: u64| {
            let (inc, members) = cluster.expect("a member is removed from a cluster");
            let (node, gen_) = self.member_of(inc, members, id);
            Step::Remove(inc, node, gen_)
        };
        match join::next(view) {
            join::Step::Promise(promises) => Step::Promise(self.promises(&promises)),
            join::Step::Release(_) if self.mutation == Some(Mutation::NeverReleases) => Step::Wait(Way::default()),
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

    pub(super) fn own(&self, has: &Has, me: u8) -> Own {
        let unreadable = || "Input/output error".to_owned();
        let unread_is_absent = self.mutation == Some(Mutation::UnreadIsAbsent);
        Own {
            etcd: match has.etcd {
                Log::Absent => EtcdData::Absent,
                Log::Unborn => EtcdData::Unborn,
                Log::Data(inc, gen_) => EtcdData::Data(self.ids(inc, me, gen_)),
                Log::Unknown if unread_is_absent => EtcdData::Absent,
                Log::Unknown => EtcdData::Unknown(unreadable()),
            },
            idle: has.idle,
            database: match has.db {
                Three::Present => Found::Present,
                Three::Absent => Found::Absent,
                Three::Unknown if unread_is_absent => Found::Absent,
                Three::Unknown => Found::Unknown(unreadable()),
            },
            begun: has.begun.map(|begun| self.real_begun(&begun, me)),
            marked: has.marked || self.mutation == Some(Mutation::MarkUnlooked),
            complete: has.complete,
            promises: self.real_promises(&has.promises),
        }
    }

    pub(super) fn real_begun(&self, begun: &Begun, me: u8) -> join::Begun {
        join::Begun {
            start: self.start(begun),
            ids: (begun.inc.no != CLAIMED).then(|| self.ids(begun.inc, me, begun.gen_)),
            seen: begun.seen,
        }
    }

    pub(super) fn real_promises(&self, promises: &Promises) -> promise::Promises {
        promise::Promises {
            held: promises.held.map(|held| self.promise(&held)),
            outlived: promises.outlived.iter().map(|doc| self.real[doc as usize].members.clone()).collect(),
        }
    }

    pub(super) fn promise(&self, held: &Promise) -> promise::Promise {
        let document = &self.real[held.inc.doc as usize];
        promise::Promise::new(document, &name(held.founder), &token(held.inc), &names(held.without))
    }

    pub(super) fn promises(&self, real: &promise::Promises) -> Promises {
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

    pub(super) fn start(&self, begun: &Begun) -> EtcdStart {
        match begun.joins {
            None => self.promise(&Promise { founder: 0, inc: begun.inc, without: Set(0) }).start(),
            // `Claim::write`.
            Some(list) if list == [0; NODES] => EtcdStart {
                existing: true,
                token: self.real[begun.inc.doc as usize].identity.clone(),
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
                EtcdStart { existing: true, token: self.real[0].identity.clone(), members }
            }
        }
    }

    pub(super) fn begun(&self, real: &join::Begun, me: u8, has: &Has, cluster: Option<(Inc, &Members)>) -> Begun {
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

    /// What `recover` on `me` sees.
    pub(super) fn recover_view(&self, world: &World, me: u8, leads: impl Fn(u8) -> bool) -> plan::View {
        let doc = world.node(me).doc;
        let unread = || "Input/output error".to_owned();
        let nodes = self.documents[doc as usize].iter().map(|no| {
            let it = world.nodes.get(*no as usize).filter(|_| *no == me || world.connected(me, *no));
            let data = it.and_then(Node::data);
            plan::KnownNode {
                name: name(*no),
                silent: it.is_none().then(|| "no answer".to_owned()),
                database: match it.map(|it| (it.db_unread, it.db)) {
                    None => plan::Database::Unknown { why: "no answer".to_owned() },
                    Some((true, _)) => plan::Database::Unknown { why: unread() },
                    Some((_, Db::Absent)) => plan::Database::Absent,
                    Some((_, Db::Half(_) | Db::Damaged(_))) => {
                        plan::Database::Unusable { why: "it is damaged".to_owned() }
                    }
                    Some((_, Db::Whole(whole))) => {
                        plan::Database::Present(plan::Copy { reach: reach(&whole), last: None })
                    }
                },
                etcd: match (it.map(|it| it.etcd_unread), data) {
                    (None, _) => plan::Etcd::Unknown { why: "no answer".to_owned() },
                    (Some(true), _) => plan::Etcd::Unknown { why: unread() },
                    (Some(false), None) => plan::Etcd::Absent,
                    (Some(false), Some(data)) => {
                        let ids = self.ids(data.inc, *no, data.gen_);
                        plan::Etcd::Present {
                            cluster: Some(format!("{:x}", ids.cluster)),
                            member: Some(format!("{:x}", ids.member)),
                        }
                    }
                },
                patroni: it.is_some_and(Node::patroni),
                primary: it.is_some() && leads(*no),
                order: None,
                lineage: None,
            }
        });
        let own = world.node(me);
        let quorums = world.quorums_seen(me, self.nodes(doc));
        let quorum = |inc: u8| {
            let members: Vec<String> = nodes_of(&world.incs[inc as usize].members).iter().map(name).collect();
            rival::Quorum { cluster: format!("{inc:x}"), nodes: members.clone(), members }
        };
        plan::View {
            me: name(me),
            nodes: nodes.collect(),
            quorums: quorums.iter().map(quorum).collect(),
            obstacle: None,
            keys: match own.data() {
                None => plan::Keys::Absent,
                Some(_) if own.etcd_unread => plan::Keys::Unknown(unread()),
                Some(data) => {
                    let kept = &world.incs[data.inc.no as usize].keys;
                    let known = kept.initialize.flatten().or(kept.first.and_then(|(_, system)| system));
                    plan::Keys::Read(plan::Kept {
                        system: known.map(system),
                        synchronous: kept.sync.iter().map(name).collect(),
                        paused: false,
                        revision: data.version.into(),
                    })
                }
            },
        }
    }

    pub(super) fn peer(&self, seen: &Seen) -> Peer {
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

    pub(super) fn listed(&self, inc: Inc, members: &Members, started: Set) -> Vec<Listed> {
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
                learns: false,
            })
        };
        (0..NODES as u8).filter_map(member).collect()
    }

    pub(super) fn member_of(&self, inc: Inc, members: &Members, id: u64) -> (u8, u8) {
        let listed = (0..NODES as u8).filter(|node| members[*node as usize] != 0);
        let mut known = listed.map(|node| (node, members[node as usize] - 1));
        known.find(|(node, gen_)| self.ids(inc, *node, *gen_).member == id).expect("a listed member")
    }

    pub(super) fn ids(&self, inc: Inc, node: u8, gen_: u8) -> Ids {
        remembered(&self.ids, (inc, node, gen_), || self.derive_ids(inc, node, gen_))
    }

    pub(super) fn derive_ids(&self, inc: Inc, node: u8, gen_: u8) -> Ids {
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

    pub(super) fn cluster_id(&self, inc: Inc) -> u64 {
        remembered(&self.cluster_ids, inc, || self.derive_cluster_id(inc))
    }

    pub(super) fn derive_cluster_id(&self, inc: Inc) -> u64 {
        let first = self.documents[inc.doc as usize][0];
        let document = &self.real[inc.doc as usize];
        let token = format!("{}-{}", document.identity, token(inc));
        etcd_data::ids(&token, &document.members, &name(first)).expect("a member").cluster
    }

    pub(super) fn known_cluster(&self, id: u64, has: &Has) -> Inc {
        has.incs().find(|inc| self.cluster_id(*inc) == id).expect("a cluster that the node has")
    }

    pub(super) fn doc(&self, digest: &str) -> u8 {
        self.real.iter().position(|document| document.digest == digest).expect("a document") as u8
    }
}

pub(super) fn known_incarnation(text: &str, has: &Has, asked: Option<Inc>) -> Inc {
    let mut known = has.incs().chain(asked);
    known.find(|inc| token(*inc) == text).expect("an incarnation that the node knows of")
}

pub(super) fn url(node: u8) -> String {
    format!("https://10.0.0.1{}:2380", node + 1)
}

pub(super) fn node_at(found: &str) -> u8 {
    (0..NODES as u8).find(|node| url(*node) == found).expect("a node's address")
}

/// The text of an incarnation.
pub(super) fn token(inc: Inc) -> String {
    format!("{:032x}", inc.no)
}

pub(super) fn incarnation(text: &str, doc: u8) -> Inc {
    Inc { no: u8::from_str_radix(text, 16).expect("an incarnation"), doc }
}

pub(super) fn node(text: &str) -> u8 {
    text.strip_prefix("pg-").and_then(|number| number.parse::<u8>().ok()).expect("a node") - 1
}

pub(super) fn names(nodes: Set) -> BTreeSet<String> {
    nodes.iter().map(name).collect()
}

pub(super) fn set(names: &BTreeSet<String>) -> Set {
    Set::of(names.iter().map(|name| node(name)))
}

/// How far a copy has come: each commit that it has makes its WAL longer.
fn reach(whole: &Whole) -> Reach {
    let position = Lsn(0x1000 + 0x100 * u64::from(whole.commits.count_ones()));
    Reach {
        system: system(whole.system),
        end: timeline::Place { timeline: 1, position },
        exact: true,
        history: Some(timeline::History::default()),
    }
}

/// The version of PostgreSQL.
const VERSION: u32 = 17;

pub(super) fn system(number: u8) -> String {
    format!("76000000000000000{number:02}")
}

pub(super) fn number(system: &str) -> u8 {
    system[system.len() - 2..].parse().expect("a system identifier")
}

impl Decider {
    /// What the gate sees.
    pub(super) fn gate_view(&self, view: &GateView) -> first::View {
        let half = matches!(view.db, Db::Damaged(_)) && self.mutation == Some(Mutation::DamagedIsHalf);
        let is_empty = view.keys.initialize.flatten().is_none();
        let mut known = view.keys;
        if is_empty && self.mutation == Some(Mutation::EmptiedIsUnbegun) {
            (known.initialize, known.first) = (None, known.first.map(|(node, _)| (node, None)));
        }
        let unread = view.unread && self.mutation != Some(Mutation::UnreadIsAbsent);
        let lost = view.unread && !unread;
        first::View {
            me: name(view.me),
            forms: view.forms,
            version: VERSION,
            keys: keys(&known),
            database: database(if lost { Db::Absent } else { view.db }, unread),
            begun: match view.mark.or(half.then_some(Mark::Clone)) {
                None => Presence::Absent,
                Some(mark) => Presence::Present(begun::Begun {
                    what: match mark {
                        Mark::Bootstrap => begun::What::Bootstrap,
                        Mark::Clone => begun::What::Clone,
                    },
                    version: VERSION,
                    revision: 1,
                    time: 0,
                    replaces: None,
                }),
            },
            half_gone: false,
            led: true,
            started: !half && matches!(view.db, Db::Whole(whole) | Db::Damaged(whole) if whole.use_ == Use::Used),
            room: true,
        }
    }
}

pub(super) fn keys(keys: &Keys) -> first::Keys {
    let (first_at, initialize_at) = if keys.initialize_older { (3, 2) } else { (2, 3) };
    let first = keys.first.map(|(node, made)| first::First { node: name(node), system: made.map(system) });
    let initialize = keys.initialize.map(|made| made.map(system).unwrap_or_default());
    first::Keys {
        cluster: 0,
        revision: 9,
        first: first.map(|value| first::Key { value, created: first_at, changed: first_at }),
        initialize: initialize.map(|value| first::Key {
            changed: initialize_at + 5 * u64::from(keys.emptied || !value.is_empty()),
            value,
            created: initialize_at,
        }),
    }
}

pub(super) fn member(listed: Listed) -> etcd::Member {
    etcd::Member { id: listed.id, name: listed.name, peer_urls: listed.peer_urls, ..etcd::Member::default() }
}

pub(super) fn database(db: Db, unread: bool) -> Database {
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

/// A document with these members. Two with the same differ in something else.
pub(super) fn spec(number: usize, members: &[u8]) -> ClusterSpec {
    let mut spec = samples::three();
    let sample = spec.members[0].clone();
    let member = |node: &u8| Member { name: name(*node), address: [10, 0, 0, 11 + node].into(), ..sample.clone() };
    spec.members = members.iter().map(member).collect();
    spec.pool.size += number as u32;
    spec
}

/// What [`state::verify_ownership`] says to each combination of data and state; no other difference is in a world.
pub(super) fn refused() -> HashMap<(Three, Three, bool), bool> {
    let unknown = || Doubt::new("Input/output error");
    let node = crate::model::Node::new(samples::three(), 0);
    let state = State::new(&node, EtcdStart::together(&node.spec));
    let held =
        || Held { version: VERSION, folder: "main".into(), database: Database::Damaged("it is half".to_owned()) };
    let mut known = HashMap::new();
    for etcd in [Three::Present, Three::Absent, Three::Unknown] {
        for database in [Three::Present, Three::Absent, Three::Unknown] {
            for has_state in [false, true] {
                let disks = Disks {
                    etcd: match etcd {
                        Three::Present => Presence::Present(()),
                        Three::Absent => Presence::Absent,
                        Three::Unknown => Presence::Unknown(unknown()),
                    },
                    postgresql: match database {
                        Three::Present => Presence::Present(vec![held()]),
                        Three::Absent => Presence::Absent,
                        Three::Unknown => Presence::Unknown(unknown()),
                    },
                };
                let verdict = state::verify_ownership(&node, has_state.then_some(&state), &disks, Some(VERSION));
                let is_known = etcd != Three::Unknown && database != Three::Unknown;
                assert!(verdict.as_ref().err().is_none_or(|error| (error.kind == ErrorKind::Usage) == is_known));
                known.insert((etcd, database, has_state), verdict.is_err());
            }
        }
    }
    known
}

pub(super) fn gate_step(step: first::Step) -> GateStep {
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
