use super::*;
use crate::{
    model::samples,
    node::promise::{Promise, answer},
};
use std::collections::BTreeMap;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn document(members: &[u8]) -> Document {
    Document {
        digest: format!("document of {members:?}"),
        identity: "feed".into(),
        members: members
            .iter()
            .map(|number| (format!("pg-{number}"), format!("https://10.0.0.1{number}:2380")))
            .collect(),
    }
}

fn three() -> Document {
    document(&[1, 2, 3])
}

fn fresh() -> Own {
    Own {
        etcd: EtcdData::Absent,
        idle: false,
        database: Found::Absent,
        begun: None,
        marked: true,
        complete: false,
        promises: Promises::default(),
    }
}

fn founded_by(founder: &str, incarnation: &str) -> Promise {
    Promise::new(&three(), founder, incarnation, &BTreeSet::new())
}

fn holding(promise: &Promise) -> Promises {
    Promises { held: Some(promise.clone()), outlived: BTreeSet::new() }
}

fn ids(incarnation: &str, name: &str) -> Ids {
    founded_by("pg-1", incarnation).ids(name).unwrap()
}

fn begun(incarnation: &str, name: &str, seen: bool) -> Begun {
    Begun { start: founded_by("pg-1", incarnation).start(), ids: Some(ids(incarnation, name)), seen }
}

fn told(own: &Own) -> Peer {
    let request = Request { from: "pg-9".into(), document: String::new(), incarnation: None, without: BTreeSet::new() };
    Peer::Told(answer(&three(), "pg-2", own, &request).answer)
}

fn told_promise(incarnation: &str) -> Peer {
    told(&Own { promises: holding(&founded_by("pg-1", incarnation)), ..fresh() })
}

/// Everything that another node can be, as far as it matters.
fn kinds() -> Vec<Peer> {
    let cluster = |incarnation| Some(ids(incarnation, "pg-1").cluster);
    vec![
        Peer::Silent("no answer".into()),
        Peer::Unclear("503".into()),
        told(&fresh()),
        told_promise("a"),
        told_promise("b"),
        told(&Own { database: Found::Present, ..fresh() }),
        told(&Own { complete: true, ..fresh() }),
        told(&Own { database: Found::Unknown("EIO".into()), ..fresh() }),
        told(&Own { begun: Some(begun("a", "pg-2", false)), ..fresh() }),
        told(&Own { begun: Some(begun("b", "pg-2", false)), ..fresh() }),
        told(&Own { etcd: EtcdData::Data(ids("b", "pg-2")), database: Found::Present, complete: true, ..fresh() }),
        told(&Own { etcd: EtcdData::Unknown("EIO".into()), ..fresh() }),
        Peer::Etcd { cluster: cluster("a"), ever: false },
        Peer::Etcd { cluster: cluster("b"), ever: false },
        Peer::Etcd { cluster: cluster("b"), ever: true },
        Peer::Etcd { cluster: None, ever: false },
    ]
}

fn view(me: &str, own: Own, peers: [Peer; 2]) -> View {
    let names = ["pg-1", "pg-2", "pg-3"].into_iter().filter(|name| *name != me);
    View {
        document: three(),
        me: me.into(),
        own,
        order: None,
        cluster: None,
        peers: names.map(str::to_owned).zip(peers).collect(),
        draw: "drawn".into(),
        added: None,
    }
}

fn every_pair(mut check: impl FnMut([Peer; 2])) {
    for second in kinds() {
        for third in kinds() {
            check([second.clone(), third]);
        }
    }
}

#[test]
fn a_founder_draws_once_and_commits_only_when_everybody_holds_its_promise() {
    let promise = founded_by("pg-1", "a");
    every_pair(|peers| {
        let first = next(&view("pg-1", fresh(), peers.clone()));
        assert_eq!(first, Step::Promise(holding(&founded_by("pg-1", "drawn"))), "{peers:?}");
        let own = Own { promises: holding(&promise), ..fresh() };
        let begins_elsewhere = peers.iter().any(|peer| match peer {
            Peer::Told(told) => told.cluster == Some(ids("a", "pg-1").cluster),
            Peer::Etcd { cluster, .. } => *cluster == Some(ids("a", "pg-1").cluster),
            _ => false,
        });
        let all = peers.iter().all(|peer| *peer == told_promise("a"));
        let step = next(&view("pg-1", own, peers.clone()));
        assert_eq!(step == Step::Commit(begun("a", "pg-1", false)), all || begins_elsewhere, "{peers:?}");
        assert_eq!(matches!(step, Step::Wait { .. }), !all && !begins_elsewhere, "{peers:?}");
    });
}

#[test]
fn a_node_that_holds_a_promise_begins_only_after_somebody_has() {
    let own = Own { promises: holding(&founded_by("pg-1", "a")), ..fresh() };
    let cluster = Some(ids("a", "pg-1").cluster);
    every_pair(|peers| {
        let committed = peers.iter().any(|peer| match peer {
            Peer::Told(told) => told.cluster == cluster,
            Peer::Etcd { cluster: its, .. } => *its == cluster,
            _ => false,
        });
        let given_up =
            matches!(&peers[0], Peer::Told(told) if told.not_fresh.is_none() && peers[0] != told_promise("a"));
        let expected = match next(&view("pg-2", own.clone(), peers.clone())) {
            Step::Commit(it) => committed && it == begun("a", "pg-2", false),
            Step::Release(promises) => !committed && given_up && promises == Promises::default(),
            Step::Wait { .. } => !committed && !given_up,
            _ => false,
        };
        assert!(expected, "{peers:?}");
    });
}

#[test]
fn a_node_without_a_promise_that_is_no_founder_waits() {
    every_pair(|peers| assert!(matches!(next(&view("pg-2", fresh(), peers)), Step::Wait { .. })));
}

#[test]
fn a_node_alone_in_its_document_forms_its_cluster() {
    let document = document(&[1]);
    let mut view =
        View { document: document.clone(), peers: vec![], ..view("pg-1", fresh(), [told(&fresh()), told(&fresh())]) };
    let promise = Promise::new(&document, "pg-1", "drawn", &BTreeSet::new());
    assert_eq!(next(&view), Step::Promise(holding(&promise)));
    view.own.promises = holding(&promise);
    let Step::Commit(begun) = next(&view) else { panic!() };
    view.own.begun = Some(begun.clone());
    assert_eq!(next(&view), Step::Start(promise.start()));
    view.own.begun = Some(Begun { seen: true, ..begun });
    assert!(matches!(next(&view), Step::Wait { .. }), "its data are missing");
}

#[test]
fn a_node_that_was_a_member_or_has_data_never_forms() {
    let states = [
        Own { database: Found::Present, ..fresh() },
        Own { complete: true, ..fresh() },
        Own { database: Found::Unknown("EIO".into()), ..fresh() },
        Own { etcd: EtcdData::Unknown("EIO".into()), ..fresh() },
        Own { etcd: EtcdData::Unborn, ..fresh() },
        Own { begun: Some(begun("a", "pg-1", true)), ..fresh() },
        Own { begun: Some(begun("a", "pg-1", false)), database: Found::Present, ..fresh() },
        Own { begun: Some(begun("a", "pg-1", false)), complete: true, ..fresh() },
        Own { begun: Some(Begun { ids: None, ..begun("a", "pg-1", false) }), ..fresh() },
    ];
    for own in states {
        for promises in [Promises::default(), holding(&founded_by("pg-1", "a"))] {
            let own = Own { promises, ..own.clone() };
            every_pair(|peers| {
                let step = next(&view("pg-1", own.clone(), peers.clone()));
                assert!(matches!(step, Step::Wait { .. }), "{own:?} {peers:?}: {step:?}");
            });
        }
    }
}

#[test]
fn what_was_committed_starts_again_unless_it_can_never_be_a_cluster() {
    let own = Own { begun: Some(begun("a", "pg-1", false)), promises: holding(&founded_by("pg-1", "a")), ..fresh() };
    // Who certainly takes no part in it.
    let out = |peer: &Peer| match peer {
        Peer::Told(told) if told.not_fresh.is_none() => *peer != told_promise("a"),
        Peer::Told(told) => told.cluster.is_some_and(|its| its != ids("a", "pg-1").cluster),
        Peer::Etcd { cluster, .. } => cluster.is_some_and(|its| its != ids("a", "pg-1").cluster),
        _ => false,
    };
    every_pair(|peers| {
        let step = next(&view("pg-1", own.clone(), peers.clone()));
        let hopeless = peers.iter().all(out);
        assert_eq!(step == Step::Start(founded_by("pg-1", "a").start()), !hopeless, "{peers:?}");
        assert_eq!(step == Step::Forget(Promises::default()), hopeless, "{peers:?}");

        let data = Own { etcd: EtcdData::Data(ids("a", "pg-1")), ..own.clone() };
        assert_eq!(next(&view("pg-1", data.clone(), peers.clone())), Step::Resume);
        let idle = Own { idle: true, begun: Some(begun("a", "pg-1", true)), ..data };
        let step = next(&view("pg-1", idle.clone(), peers.clone()));
        assert_eq!(step == Step::Abandon(Promises::default(), begun("a", "pg-1", false)), hopeless, "{peers:?}");
        assert_eq!(step == Step::Resume, !hopeless, "{peers:?}");
        for own in [Own { database: Found::Present, ..idle.clone() }, Own { complete: true, ..idle }] {
            assert_eq!(next(&view("pg-1", own, peers.clone())), Step::Resume);
        }
    });
}

fn started(number: u8) -> Listed {
    let name = format!("pg-{number}");
    Listed {
        id: ids("a", &name).member,
        name,
        peer_urls: vec![format!("https://10.0.0.1{number}:2380")],
        started: true,
        answers: true,
        learns: false,
    }
}

fn dead(number: u8) -> Listed {
    Listed { answers: false, ..started(number) }
}

/// What pg-1 does beside a cluster of incarnation `a` with these members.
fn beside(own: Own, members: Vec<Listed>) -> Step {
    beside_after(None, own, members)
}

/// The same in a process that has added this member.
fn beside_after(added: Option<u64>, own: Own, members: Vec<Listed>) -> Step {
    let running = Peer::Etcd { cluster: Some(ids("a", "pg-1").cluster), ever: true };
    let cluster = Some(Cluster { id: ids("a", "pg-1").cluster, members });
    next(&View { cluster, added, ..view("pg-1", own, [running.clone(), running]) })
}

fn member(etcd: EtcdData) -> Own {
    Own { etcd, begun: Some(begun("a", "pg-1", true)), complete: true, database: Found::Present, ..fresh() }
}

#[test]
fn a_node_resumes_by_its_ids_and_not_by_its_address() {
    let own = |incarnation| member(EtcdData::Data(ids(incarnation, "pg-1")));
    assert_eq!(beside(own("a"), vec![started(1), started(2), dead(3)]), Step::Resume);
    assert_eq!(beside(own("b"), vec![started(1), started(2), dead(3)]), Step::SetAside(Aside::OtherCluster));
    assert_eq!(beside(own("a"), vec![started(2), started(3)]), Step::SetAside(Aside::Removed));
    let again = Listed { id: 9, ..started(1) };
    assert_eq!(beside(own("a"), vec![again, started(2), started(3)]), Step::SetAside(Aside::Removed));
    let unknown = beside(member(EtcdData::Unknown("EIO".into())), vec![started(1), started(2), started(3)]);
    assert!(matches!(unknown, Step::Wait { .. }));
}

#[test]
fn a_node_that_lost_its_disk_is_removed_then_added_then_starts() {
    for own in [fresh(), member(EtcdData::Absent), Own { database: Found::Present, ..fresh() }] {
        assert_eq!(beside(own.clone(), vec![dead(1), started(2), started(3)]), Step::Remove(dead(1).id));
        assert_eq!(beside(own.clone(), vec![started(2), started(3)]), Step::Add);
        let added = Listed { id: 9, name: String::new(), started: false, ..dead(1) };
        let members = || vec![started(2), added.clone(), started(3)];
        let Step::Commit(begun) = beside_after(Some(9), own.clone(), members()) else { panic!() };
        assert!(begun.start.existing);
        assert_eq!(begun.ids, Some(Ids { cluster: ids("a", "pg-1").cluster, member: 9 }));
        assert_eq!(begun.start.members, three().members);
        let again = Own { begun: Some(begun.clone()), ..own.clone() };
        assert_eq!(beside_after(Some(9), again.clone(), members()), Step::Start(begun.start));
        let fewer = beside_after(Some(9), again.clone(), vec![started(2), added.clone()]);
        assert!(matches!(fewer, Step::Commit(begun) if begun.start.members.len() == 2));
        // Another process cannot know whether that member has voted before its disk was lost.
        for process in [None, Some(8)] {
            assert_eq!(beside_after(process, own.clone(), members()), Step::Remove(9));
            assert_eq!(beside_after(process, again.clone(), members()), Step::Remove(9));
        }
    }
}

#[test]
fn what_an_earlier_start_left_is_put_aside_before_a_node_joins() {
    let unborn = |begun: Option<Begun>| Own { etcd: EtcdData::Unborn, begun, ..fresh() };
    let awaited = Listed { started: false, ..dead(1) };
    let same = unborn(Some(begun("a", "pg-1", false)));
    assert!(matches!(beside(same.clone(), vec![awaited.clone(), started(2), started(3)]), Step::Start(_)));
    let other = unborn(Some(begun("b", "pg-1", false)));
    for (own, members) in [
        (same, vec![started(2), started(3)]),
        (other, vec![awaited, started(2), started(3)]),
        (unborn(None), vec![dead(1), started(2), started(3)]),
    ] {
        assert_eq!(beside(own, members), Step::SetAside(Aside::Unfinished));
    }
}

#[test]
fn a_node_late_to_the_first_boot_starts_under_its_promise_alone() {
    let awaited = Listed { started: false, ..dead(1) };
    let members = || vec![awaited.clone(), started(2), started(3)];
    let own = |incarnation| Own { promises: holding(&founded_by("pg-2", incarnation)), ..fresh() };
    let Step::Commit(begun) = beside(own("a"), members()) else { panic!() };
    assert!(!begun.start.existing && !begun.seen);
    assert_eq!(beside(own("b"), members()), Step::Remove(awaited.id));
    assert_eq!(beside(fresh(), members()), Step::Remove(awaited.id));
    let lost = Own { begun: Some(Begun { seen: true, ..begun }), ..own("a") };
    assert_eq!(beside(lost, members()), Step::Remove(awaited.id));
}

#[test]
fn what_was_committed_never_starts_again_on_another_disk_or_after_it_was_given_up() {
    let begun = begun("a", "pg-1", false);
    let own = Own { begun: Some(begun), promises: holding(&founded_by("pg-1", "a")), ..fresh() };
    let peers = || [told_promise("a"), Peer::Silent("no answer".into())];
    assert!(matches!(next(&view("pg-1", own.clone(), peers())), Step::Start(_)));
    let unmarked = Own { marked: false, ..own.clone() };
    assert!(matches!(next(&view("pg-1", unmarked.clone(), peers())), Step::Wait { .. }));
    let awaited = Listed { started: false, ..dead(1) };
    assert_eq!(beside(unmarked, vec![awaited.clone(), started(2), started(3)]), Step::Remove(awaited.id));
    for promises in [Promises::default(), holding(&founded_by("pg-1", "b"))] {
        let given_up = Own { promises, ..own.clone() };
        every_pair(|peers| {
            assert_eq!(next(&view("pg-1", given_up.clone(), peers)), Step::Forget(Promises::default()));
        });
        let unborn = Own { etcd: EtcdData::Unborn, ..given_up };
        assert_eq!(next(&view("pg-1", unborn, peers())), Step::SetAside(Aside::Unfinished));
    }
}

#[test]
fn a_node_with_a_new_address_tells_it_or_is_replaced() {
    let elsewhere = Listed { peer_urls: vec!["https://10.0.0.99:2380".into()], ..dead(1) };
    let cluster = |member: &Listed| vec![member.clone(), started(2), started(3)];
    let data = member(EtcdData::Data(ids("a", "pg-1")));
    assert_eq!(beside(data.clone(), cluster(&elsewhere)), Step::Readdress(elsewhere.id));
    assert_eq!(beside(fresh(), cluster(&elsewhere)), Step::Remove(elsewhere.id));
    let alive = Listed { answers: true, ..elsewhere };
    assert!(matches!(beside(data, cluster(&alive)), Step::Wait { .. }));
    assert!(matches!(beside(fresh(), cluster(&alive)), Step::Wait { .. }));
}

#[test]
fn members_that_never_came_are_let_go_by_a_quorum_only() {
    let never = |number: u8| Listed { id: number.into(), started: false, ..dead(number) };
    let started = |number: u8| Listed { id: number.into(), ..started(number) };
    assert_eq!(absent(&[started(1), started(2), started(3)]), Vec::<u64>::new());
    assert_eq!(absent(&[started(1), started(2), never(3)]), [3]);
    assert_eq!(absent(&[started(1), never(2), never(3)]), Vec::<u64>::new());
    assert_eq!(absent(&[started(1), never(2)]), Vec::<u64>::new());
}

#[test]
fn who_was_left_out_is_let_go_at_once_and_others_when_it_is_time() {
    let never = |number: u8| Listed { id: number.into(), started: false, ..dead(number) };
    let started = |number: u8| Listed { id: number.into(), ..started(number) };
    let left_out = Promise::new(&three(), "pg-1", "a", &set(&["pg-3"]));
    for promise in [founded_by("pg-1", "a"), left_out.clone()] {
        for late in [false, true] {
            let gone = |cluster: &[Listed]| going(cluster, &holding(&promise), late);
            let expected: &[u64] = if late || promise == left_out { &[3] } else { &[] };
            assert_eq!(gone(&[started(1), started(2), never(3)]), expected);
            assert_eq!(gone(&[started(1), started(2), started(3)]), Vec::<u64>::new());
            assert_eq!(gone(&[started(1), never(2), never(3)]), Vec::<u64>::new());
        }
    }
}

#[test]
fn who_has_data_listens_for_silent_members_before_it_is_a_quorum_with_others() {
    let own = Own { etcd: EtcdData::Data(ids("a", "pg-1")), database: Found::Present, complete: true, ..fresh() };
    let silent = || Peer::Silent("no answer".to_owned());
    let listens_at = |view: &View, seconds| listens(view, &next(view), Duration::from_secs(seconds));
    let one_away = view("pg-1", own.clone(), [told(&own), silent()]);
    assert!(listens_at(&one_away, 0) && listens_at(&one_away, 9) && !listens_at(&one_away, 10));
    // Where all start together, and where a quorum answers, nobody waits.
    assert!(!listens_at(&view("pg-1", own.clone(), [told(&own), told(&own)]), 0));
    let pg_1 = Listed { id: ids("a", "pg-1").member, peer_urls: vec![one_away.url()], ..Listed::default() };
    let cluster = Some(Cluster { id: ids("a", "pg-1").cluster, members: vec![pg_1] });
    let with_quorum = View { cluster, ..one_away.clone() };
    assert_eq!(next(&with_quorum), Step::Resume);
    assert!(!listens_at(&with_quorum, 0));
    assert!(!listens(&one_away, &Step::Add, Duration::ZERO));
}

#[test]
fn data_that_have_voted_are_put_aside_for_good() {
    // Its etcd has voted, and the power failed before it was written that it had answered; then its member was removed.
    let before = Own { etcd: EtcdData::Data(ids("a", "pg-2")), begun: Some(begun("a", "pg-2", false)), ..fresh() };
    let cluster =
        |member: u64| Cluster { id: ids("a", "pg-1").cluster, members: vec![Listed { id: member, ..started(1) }] };
    let removed = View {
        cluster: Some(cluster(7)),
        ..view("pg-2", before.clone(), [Peer::Silent(String::new()), Peer::Silent(String::new())])
    };
    let step = next(&removed);
    assert_eq!(step, Step::SetAside(Aside::Removed));
    assert_eq!(writes(&step).first(), Some(&Write::Seen));
    assert_eq!(writes(&Step::SetAside(Aside::OtherCluster)).first(), Some(&Write::Seen));
    // Without it, the member would start again without its log as soon as the cluster is out of sight.
    let start = |seen: bool| {
        let after = Own { etcd: EtcdData::Absent, begun: Some(begun("a", "pg-2", seen)), ..before.clone() };
        let own = Own { promises: holding(&founded_by("pg-1", "a")), ..after };
        next(&view("pg-2", own, [Peer::Silent(String::new()), Peer::Silent(String::new())]))
    };
    assert!(matches!(start(false), Step::Start(_)) && matches!(start(true), Step::Wait { .. }));
}

#[test]
fn nothing_is_started_or_moved_before_it_is_written_why() {
    let promises = holding(&founded_by("pg-1", "a"));
    let steps = [
        Step::Promise(promises.clone()),
        Step::Release(promises.clone()),
        Step::Commit(begun("a", "pg-1", false)),
        Step::Start(begun("a", "pg-1", false).start),
        Step::Resume,
        Step::Remove(7),
        Step::Add,
        Step::Readdress(7),
        Step::SetAside(Aside::Removed),
        Step::SetAside(Aside::OtherCluster),
        Step::SetAside(Aside::Unfinished),
        Step::Abandon(promises.clone(), begun("a", "pg-1", true)),
        Step::Forget(promises),
        Step::Wait { why: String::new(), order: None },
    ];
    let lines = steps.iter().map(|step| {
        let words = writes(step).into_iter().map(|write| match write {
            Write::Promises(_) => "promises".to_owned(),
            Write::Mark(_) => "mark".to_owned(),
            Write::Begun(_) => "begun".to_owned(),
            Write::Seen => "seen".to_owned(),
            Write::NotBegun => "not begun".to_owned(),
            Write::Ordered => "ordered".to_owned(),
            Write::Stop(service) => format!("stop {service:?}"),
            Write::Aside(why) => format!("aside ({why})"),
        });
        let name = format!("{step:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
        format!("{name}: {}", words.collect::<Vec<_>>().join(", "))
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_member_is_named_by_its_name_or_its_address() {
    let spec = samples::three();
    assert!(is_named(&spec, "pg-2", &["https://192.0.2.7:2380".to_owned()]));
    assert!(is_named(&spec, "", &["https://10.0.0.13:2380".to_owned()]));
    assert!(!is_named(&spec, "pg-7", &["https://10.0.0.17:2380".to_owned()]));
}

#[test]
fn an_order_stands_on_the_founder_alone_and_only_while_nobody_left_out_answers() {
    let silent = || Peer::Silent("no answer".into());
    let order = |without: &[&str]| FormingOrder { document: three().digest, without: set(without) };
    let given = |me: &str, peers, order: FormingOrder| stands(&view(me, fresh(), peers), &order).err();
    assert_eq!(given("pg-1", [told(&fresh()), silent()], order(&["pg-3"])), None);
    let refused = [
        given("pg-2", [told(&fresh()), silent()], order(&["pg-3"])),
        given("pg-1", [silent(), silent()], order(&["pg-2", "pg-3"])),
        given("pg-1", [told(&fresh()), silent()], order(&["pg-4"])),
        given("pg-1", [told(&fresh()), told(&fresh())], order(&["pg-3"])),
        given("pg-1", [told(&fresh()), Peer::Unclear("503".into())], order(&["pg-3"])),
        given("pg-1", [told(&fresh()), silent()], FormingOrder { document: "another".into(), ..order(&["pg-3"]) }),
    ];
    insta::assert_snapshot!(refused.map(Option::unwrap).join("\n"));
}

#[test]
fn whom_a_node_waits_for_is_said_with_the_order_that_would_go_on() {
    let silent = || Peer::Silent("no answer".into());
    let here = || told(&fresh());
    let text = [
        view("pg-1", Own { promises: holding(&founded_by("pg-1", "a")), ..fresh() }, [told_promise("a"), silent()]),
        view("pg-2", fresh(), [silent(), here()]),
        view("pg-3", fresh(), [silent(), silent()]),
        view("pg-3", fresh(), [here(), Peer::Etcd { cluster: None, ever: true }]),
        view("pg-3", fresh(), [silent(), Peer::Etcd { cluster: None, ever: true }]),
        view("pg-1", Own { complete: true, ..fresh() }, [silent(), here()]),
        view("pg-1", Own { etcd: EtcdData::Unknown("EIO".into()), ..fresh() }, [silent(), here()]),
    ]
    .map(|view| match next(&view) {
        Step::Wait { why, order } => format!("{why}\n    {order:?}"),
        other => panic!("{other:?}"),
    });
    insta::assert_snapshot!(text.join("\n"));
}

/// Some machines with the real decisions, and etcds that are as simple as can be.
struct Lab {
    machines: BTreeMap<String, Machine>,
    draws: u32,
}

#[derive(Clone)]
struct Machine {
    own: Own,
    document: Document,
    order: Option<FormingOrder>,
    /// Whether it is on, and its etcd runs.
    on: bool,
    runs: bool,
}

impl Lab {
    fn new(members: &[u8]) -> Lab {
        let machine = Machine { own: fresh(), document: document(members), order: None, on: true, runs: false };
        let machines = document(members).members.into_iter().map(|(name, _)| (name, machine.clone())).collect();
        Lab { machines, draws: 0 }
    }

    fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).unwrap()
    }

    fn replace(&mut self, name: &str) {
        let machine = self.machine(name);
        (machine.own, machine.runs, machine.on, machine.order) = (fresh(), false, true, None);
    }

    fn power_cut(&mut self, name: &str) {
        self.machine(name).runs = false;
    }

    fn order(&mut self, name: &str, without: &[&str]) {
        let machine = self.machine(name);
        machine.order = Some(FormingOrder { document: machine.document.digest.clone(), without: set(without) });
    }

    /// The clusters with a quorum.
    fn clusters(&self) -> Vec<u64> {
        let running = self.machines.values().filter(|machine| machine.on && machine.runs);
        let mut found: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for machine in running {
            let size = machine.own.begun.as_ref().unwrap().start.members.len();
            let entry = found.entry(machine.own.cluster().unwrap()).or_insert((0, size));
            entry.0 += 1;
        }
        found.into_iter().filter(|(_, (running, size))| *running >= quorum(*size)).map(|(id, _)| id).collect()
    }

    fn ask(&mut self, name: &str, request: &Request) -> Peer {
        let ever = |id| self.clusters().contains(&id);
        let Some(machine) = self.machines.get(name).filter(|machine| machine.on) else {
            return Peer::Silent("no answer".into());
        };
        if machine.runs {
            let cluster = machine.own.cluster();
            return Peer::Etcd { cluster, ever: cluster.is_some_and(ever) };
        }
        let reply = answer(&machine.document, name, &machine.own, request);
        if let Some(promises) = reply.store {
            self.machine(name).own.promises = promises;
        }
        Peer::Told(reply.answer)
    }

    /// One look and one step; returns the step.
    fn step(&mut self, name: &str) -> Step {
        let machine = self.machines[name].clone();
        let request = Request::of(&machine.document, name, &machine.own);
        let others: Vec<String> = machine.document.members.iter().map(|(other, _)| other.clone()).collect();
        let peers = others.into_iter().filter(|other| other != name).map(|other| {
            let peer = self.ask(&other, &request);
            (other, peer)
        });
        let peers = peers.collect();
        self.draws += 1;
        let draw = format!("{:032x}", self.draws);
        let clusters = self.clusters();
        let mut own = machine.own.clone();
        own.idle = machine.runs && !own.cluster().is_some_and(|id| clusters.contains(&id));
        let view = View {
            document: machine.document,
            me: name.into(),
            own,
            order: machine.order,
            cluster: None,
            peers,
            draw,
            added: None,
        };
        let step = next(&view);
        let machine = self.machine(name);
        match step.clone() {
            Step::Promise(promises) | Step::Release(promises) => machine.own.promises = promises,
            Step::Commit(begun) => machine.own.begun = Some(begun),
            Step::Start(_) => {
                let begun = machine.own.begun.as_mut().unwrap();
                begun.seen = true;
                machine.own.etcd = EtcdData::Data(begun.ids.unwrap());
                machine.runs = true;
            }
            Step::Resume => machine.runs = true,
            Step::SetAside(_) => machine.own.etcd = EtcdData::Absent,
            Step::Abandon(promises, begun) => {
                machine.runs = false;
                machine.own.promises = promises;
                (machine.own.begun, machine.own.etcd) = (Some(begun), EtcdData::Absent);
            }
            Step::Forget(promises) => (machine.own.promises, machine.own.begun) = (promises, None),
            Step::Wait { .. } | Step::Remove(_) | Step::Add | Step::Readdress(_) => {}
        }
        step
    }

    /// Lets everybody who is on look and step, until nothing changes.
    fn settle(&mut self) -> usize {
        for round in 0..50 {
            let before: Vec<_> = self.machines.values().map(|machine| (machine.own.clone(), machine.runs)).collect();
            let on: Vec<String> =
                self.machines.iter().filter(|(_, machine)| machine.on).map(|(name, _)| name.clone()).collect();
            for name in on {
                self.step(&name);
                assert!(self.clusters().len() < 2);
            }
            if before == self.machines.values().map(|machine| (machine.own.clone(), machine.runs)).collect::<Vec<_>>() {
                return round;
            }
        }
        panic!("it never comes to rest");
    }

    fn is_whole(&self) -> bool {
        let running = self.machines.values().filter(|machine| machine.runs).count();
        self.clusters().len() == 1 && running == self.machines.len()
    }
}

#[test]
fn machines_that_are_all_fresh_form_one_cluster_within_a_few_looks() {
    for members in [&[1][..], &[1, 2], &[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4, 5]] {
        let mut lab = Lab::new(members);
        let rounds = lab.settle();
        assert!(lab.is_whole() && rounds <= 5, "{members:?}: {rounds}");
    }
}

#[test]
fn a_machine_that_is_late_is_waited_for() {
    for late in ["pg-1", "pg-2", "pg-3"] {
        let mut lab = Lab::new(&[1, 2, 3]);
        lab.machine(late).on = false;
        lab.settle();
        assert!(lab.clusters().is_empty(), "{late}");
        lab.machine(late).on = true;
        lab.settle();
        assert!(lab.is_whole(), "{late}");
    }
}

#[test]
fn an_order_forms_the_cluster_without_those_who_do_not_come() {
    for (late, founder) in [("pg-1", "pg-2"), ("pg-3", "pg-1")] {
        let mut lab = Lab::new(&[1, 2, 3]);
        lab.machine(late).on = false;
        lab.settle();
        lab.order(founder, &[late]);
        lab.settle();
        assert_eq!(lab.clusters().len(), 1, "{late}");
    }
}

#[test]
fn an_order_given_to_some_is_not_followed_when_the_others_answer() {
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.machine("pg-1").on = false;
    lab.order("pg-2", &["pg-1"]);
    lab.step("pg-2");
    assert!(lab.machines["pg-2"].own.promises.held.as_ref().is_some_and(|held| held.founder == "pg-2"));
    lab.machine("pg-1").on = true;
    lab.settle();
    assert!(lab.is_whole());
    assert_eq!(lab.machines["pg-2"].own.promises.held.as_ref().unwrap().founder, "pg-1");
}

#[test]
fn a_founder_that_loses_its_power_after_the_commit_starts_the_same_again() {
    let mut lab = Lab::new(&[1, 2, 3]);
    while !matches!(lab.step("pg-1"), Step::Commit(_)) {}
    lab.power_cut("pg-1");
    lab.settle();
    assert!(lab.is_whole());
}

#[test]
fn a_founder_that_committed_and_is_lost_is_left_out_by_an_order_or_replaced() {
    let committed = || {
        let mut lab = Lab::new(&[1, 2, 3]);
        while !matches!(lab.step("pg-1"), Step::Start(_)) {}
        lab.machine("pg-1").on = false;
        lab.settle();
        assert!(lab.clusters().is_empty());
        lab
    };
    let mut lab = committed();
    lab.order("pg-2", &["pg-1"]);
    lab.settle();
    assert_eq!(lab.clusters().len(), 1);
    // It comes back with what it has begun: alone it is nothing.
    lab.machine("pg-1").on = true;
    lab.power_cut("pg-1");
    lab.settle();

    let mut lab = committed();
    lab.replace("pg-1");
    lab.settle();
    assert!(lab.is_whole());
}

#[test]
fn a_founder_whose_companions_are_replaced_begins_again() {
    let mut lab = Lab::new(&[1, 2, 3]);
    while !matches!(lab.step("pg-1"), Step::Start(_)) {}
    lab.replace("pg-2");
    lab.replace("pg-3");
    lab.settle();
    assert!(lab.is_whole());
}

#[test]
fn two_that_were_replaced_never_form_beside_one_that_has_data() {
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.settle();
    for machine in lab.machines.values_mut() {
        (machine.own.complete, machine.own.database) = (true, Found::Present);
    }
    for (survivor, on) in [("pg-1", false), ("pg-3", false), ("pg-3", true)] {
        let mut lab = Lab { machines: lab.machines.clone(), draws: 100 };
        for name in ["pg-1", "pg-2", "pg-3"] {
            if name != survivor {
                lab.replace(name);
            }
        }
        lab.machine(survivor).on = on;
        lab.settle();
        assert!(lab.clusters().is_empty());
        // Its etcd's data are missing too.
        let machine = lab.machine(survivor);
        (machine.on, machine.runs, machine.own.etcd) = (true, false, EtcdData::Absent);
        lab.settle();
        assert!(lab.clusters().is_empty());
    }
}

#[test]
fn another_document_stops_the_forming_and_a_common_one_lets_it_go_on() {
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.machine("pg-3").document.digest = "another".into();
    lab.settle();
    assert!(lab.clusters().is_empty());
    for machine in lab.machines.values_mut() {
        machine.document.digest = "another".into();
    }
    lab.settle();
    assert!(lab.is_whole());
}

#[test]
fn a_document_without_a_founder_that_is_lost_needs_no_order() {
    let mut lab = Lab::new(&[1, 2, 3]);
    while !matches!(lab.step("pg-1"), Step::Start(_)) {}
    lab.machines.remove("pg-1");
    let new = document(&[2, 3, 4]);
    lab.machines.insert("pg-4".into(), Lab::new(&[4]).machines["pg-4"].clone());
    for machine in lab.machines.values_mut() {
        machine.document = new.clone();
    }
    lab.settle();
    assert!(lab.is_whole());
}

#[test]
fn a_new_member_counts_at_once_only_where_the_others_are_a_quorum_with_it() {
    let cluster = |started: usize, never: usize| Cluster {
        id: 1,
        members: (0..started + never)
            .map(|id| Listed { id: id as u64, started: id < started, ..Listed::default() })
            .collect(),
    };
    let learns: Vec<bool> =
        [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0)].map(|(started, never)| must_learn(&cluster(started, never))).into();
    assert_eq!(learns, [true, false, true, false, false]);
    // While the second learns, there is still one alone that counts.
    let mut two = cluster(2, 0);
    two.members[1].learns = true;
    assert!(must_learn(&two));
}
