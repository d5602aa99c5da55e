use super::*;
use crate::node::recover::{keys::Recovered, timeline::History};

/// What a node has, each with the WAL that it holds: one letter for each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    /// It does not answer.
    Silent,
    Nothing,
    Unknown,
    Unusable,
    A,
    B,
    C,
    /// On timeline 1, past the position at which timeline 2 left it.
    Tail,
    /// On timeline 2.
    New,
    /// On a timeline 3 that left timeline 1 before 2 did.
    Other,
    /// Another database.
    Strange,
}

use Has::*;

const ALL: [Has; 11] = [Silent, Nothing, Unknown, Unusable, A, B, C, Tail, New, Other, Strange];

impl Has {
    fn wal(self) -> Option<&'static str> {
        match self {
            A => Some("aaaa"),
            B => Some("aaaabb"),
            C => Some("aaaabbcc"),
            Tail => Some("aaaabbcctt"),
            New => Some("aaaabbccnnnn"),
            Other => Some("aaaaooooooooo"),
            Strange => Some("zzzz"),
            Silent | Nothing | Unknown | Unusable => None,
        }
    }

    fn database(self) -> Database {
        let (timeline, history) = match self {
            Silent => return Database::Unknown { why: "no answer".into() },
            Unknown => return Database::Unknown { why: "EIO".into() },
            Unusable => return Database::Unusable { why: "damaged".into() },
            Nothing => return Database::Absent,
            A | B | C | Tail | Strange => (1, vec![]),
            New => (2, vec![Place { timeline: 1, position: Lsn(8) }]),
            Other => (3, vec![Place { timeline: 1, position: Lsn(4) }]),
        };
        let position = Lsn(self.wal().unwrap_or_default().len() as u64);
        let reach = Reach {
            system: if self == Strange { "8" } else { "7" }.to_owned(),
            end: Place { timeline, position },
            exact: true,
            history: Some(History(history)),
        };
        Database::Present(Copy { reach, last: Some(1_795_741_749) })
    }

    fn node(self, number: usize, etcd: bool) -> KnownNode {
        let silent = (self == Silent).then(|| "no answer".to_owned());
        let etcd = match (self, etcd) {
            (Silent, _) => Etcd::Unknown { why: "no answer".into() },
            (_, true) => Etcd::Present { cluster: Some("c".into()), member: Some(format!("{number}")) },
            (_, false) => Etcd::Absent,
        };
        KnownNode {
            name: format!("pg-{number}"),
            silent,
            database: self.database(),
            etcd,
            patroni: false,
            primary: false,
            order: None,
            lineage: None,
        }
    }
}

fn view(nodes: Vec<KnownNode>) -> View {
    let keys = match nodes[0].etcd {
        Etcd::Present { .. } => Keys::Read(Kept { system: Some("7".into()), revision: 9, ..Kept::default() }),
        _ => Keys::Absent,
    };
    View { me: "pg-1".into(), nodes, quorums: Vec::new(), keys, obstacle: None }
}

fn quorum_of(cluster: &str, names: &[&str]) -> Quorum {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Quorum { cluster: cluster.into(), members: names.clone(), nodes: names }
}

/// The view of each node on itself that answers, of the same nodes.
fn seen_by(view: &View, name: &str) -> View {
    let keys = match view.nodes.iter().find(|node| node.name == name).map(|node| &node.etcd) {
        Some(Etcd::Present { .. }) => Keys::Read(Kept { system: Some("7".into()), ..Kept::default() }),
        _ => Keys::Absent,
    };
    View { me: name.to_owned(), keys, ..view.clone() }
}

/// All ways in which `size` nodes can be.
fn each(size: usize, of: &[Has], mut check: impl FnMut(&[Has], View)) -> u64 {
    let ways = of.len() * 2;
    let mut count = 0;
    for number in 0..ways.pow(size as u32) {
        let digits: Vec<usize> = (0..size).map(|place| number / ways.pow(place as u32) % ways).collect();
        let has: Vec<Has> = digits.iter().map(|digit| of[digit / 2]).collect();
        let nodes = digits.iter().enumerate().map(|(place, digit)| of[digit / 2].node(place + 1, digit % 2 == 0));
        check(&has, view(nodes.collect()));
        count += 1;
    }
    count
}

fn link() -> Obstacle {
    Obstacle {
        what: "/var/lib/etcd/default is a symbolic link".into(),
        way_out: "move what it leads to into its place".into(),
    }
}

fn check(has: &[Has], view: View) {
    let outcome = plan(&view, false);
    let insisted = plan(&view, true);
    let own = has[0];

    // What is not needed and what would fork is never done, whoever insists.
    for force in [false, true] {
        let quorum = View { quorums: vec![quorum_of("c", &["pg-2"])], ..view.clone() };
        assert!(matches!(plan(&quorum, force), Err(Refusal::Quorum(_))));
        assert!(matches!(advise(&quorum), Advice::Quorum(_)));
        let several = vec![quorum_of("c", &["pg-2"]), quorum_of("d", &["pg-1"])];
        let split = View { quorums: several.clone(), ..view.clone() };
        assert_eq!(plan(&split, force), Err(Refusal::Split(several.clone())));
        assert_eq!(advise(&split), Advice::Clusters(several));
        let obstructed = View { obstacle: Some(link()), ..view.clone() };
        assert_eq!(plan(&obstructed, force), Err(Refusal::Obstructed(link())));
        let mut ordered = view.clone();
        if let Some(other) = ordered.nodes.get_mut(1) {
            other.order = Some("ordered".into());
            assert!(matches!(plan(&ordered, force), Err(Refusal::Pending(_))));
            assert!(matches!(advise(&ordered), Advice::Pending(_)));
        }
    }

    // Without insisting, nobody who answers has a record that this node has not, except one that a promotion gave up; of
    // nobody who answers is that unknown.
    if let Ok(plan) = &outcome {
        for (other, node) in has.iter().zip(&view.nodes).skip(1) {
            let loss = plan.losses.iter().any(|loss| loss.node == node.name && loss.given_up);
            match (own.wal(), other.wal()) {
                (Some(own), Some(other)) => {
                    assert!(own.starts_with(other) || loss || other == "zzzz", "{has:?}");
                }
                (None, Some(_)) => assert_eq!(node.etcd, Etcd::Absent, "{has:?}"),
                (_, None) => assert!(*other != Unknown || own == Nothing, "{has:?}"),
            }
            assert_eq!(plan.unknown.iter().any(|(name, _)| *name == node.name), *other == Silent, "{has:?}");
        }
        assert_eq!(plan.database.is_some(), own.wal().is_some());
        assert!(plan.database.is_some() || plan.keys, "{has:?}");
    }

    // Insisting helps against what is lost or not known, and against nothing else.
    match (&outcome, &insisted) {
        (Err(Refusal::Doubtful(losses, doubts)), Ok(plan)) => {
            assert_eq!(losses, &plan.losses);
            assert!(doubts.iter().all(|doubt| plan.remarks.contains(doubt)));
        }
        (one, other) => assert_eq!(one, other, "{has:?}"),
    }
    let usable = own.wal().is_some() || (own == Nothing && view.keys != Keys::Absent);
    assert_eq!(insisted.is_ok(), usable, "{has:?}");

    // Beside data that have more, Patroni must not run.
    let mut running = view.clone();
    running.nodes.iter_mut().for_each(|node| node.patroni = true);
    for force in [false, true] {
        if let Ok(plan) = plan(&running, force) {
            assert_eq!(plan.losses, []);
            let is_unclear = |remark: &Remark| matches!(remark, Remark::Unclear { .. });
            assert!(plan.database.is_none() || !plan.remarks.iter().any(is_unclear), "{has:?}");
        }
    }

    if let (Some(other), true) = (running.nodes.get_mut(1), has.get(1).is_some_and(|has| has.wal().is_some())) {
        other.primary = true;
        assert_eq!(plan(&running, true), Err(Refusal::Primary("pg-2".into())));
        assert_eq!(advise(&running), Advice::From(vec!["pg-2".into()]));
    }

    // There is always a way on from a usable database, and the advice names one: what it names goes without insisting.
    match advise(&view) {
        Advice::From(names) => {
            for name in names {
                let whole = plan(&seen_by(&view, &name), false);
                assert!(whole.is_ok() || has.contains(&Strange), "{has:?} {name}: {whole:?}");
            }
        }
        Advice::Choose(choices) => {
            for choice in choices {
                assert!(plan(&seen_by(&view, &choice.node), true).is_ok(), "{has:?} {choice:?}");
                assert!(choice.losses.iter().any(|loss| !loss.given_up) || !choice.doubts.is_empty());
            }
        }
        Advice::NoDatabase(_) => assert!(has.iter().all(|has| has.wal().is_none()), "{has:?}"),
        other => panic!("{has:?}: {other:?}"),
    }
    // Where all copies are on one line and all are known, the longest is named.
    let simple = has.iter().all(|has| matches!(has, Silent | Nothing | Unusable | A | B | C | New));
    if let (true, Some(longest)) = (simple, has.iter().filter_map(|has| has.wal()).max_by_key(|wal| wal.len())) {
        let Advice::From(names) = advise(&view) else { panic!("{has:?}: {:?}", advise(&view)) };
        let longest: Vec<&String> = has
            .iter()
            .zip(&view.nodes)
            .filter(|(has, _)| has.wal() == Some(longest))
            .map(|(_, node)| &node.name)
            .collect();
        assert_eq!(names.len(), longest.len(), "{has:?}");
        assert!(names.iter().all(|name| longest.contains(&name)), "{has:?}");
        // One with etcd's data is first, if there is one.
        let with_etcd = |name: &String| matches!(view.node(name).map(|node| &node.etcd), Some(Etcd::Present { .. }));
        assert_eq!(with_etcd(&names[0]), names.iter().any(with_etcd), "{has:?}");
    }
}

/// The incarnation `name`, which replaced those clusters of etcd.
fn lineage(name: &str, replaces: &[&str]) -> Lineage {
    let recovered = Recovered {
        node: format!("pg-{name}"),
        time: 1_795_741_749,
        incarnation: name.to_owned(),
        replaces: replaces.iter().map(|id| (*id).to_owned()).collect(),
        database: None,
    };
    Lineage { cluster: name.to_owned(), recovered }
}

#[test]
fn a_cluster_that_went_on_does_not_go_on_from_elsewhere() {
    let of = |own: Option<Lineage>, other: Option<Lineage>| {
        let mut view = view(vec![C.node(1, true), A.node(2, true), Silent.node(3, true)]);
        view.nodes[0].lineage = own;
        view.nodes[1].lineage = other;
        view
    };
    let (first, second) = (lineage("a", &["c"]), lineage("b", &["c", "a"]));
    let apart = lineage("x", &["c"]);
    let known = [
        of(None, None),
        of(Some(first.clone()), None),
        of(Some(first.clone()), Some(first.clone())),
        of(Some(second.clone()), Some(first.clone())),
    ];
    for view in known {
        assert!(plan(&view, false).is_ok());
        assert_eq!(advise(&view), Advice::From(vec!["pg-1".into()]));
    }
    for view in [of(None, Some(first.clone())), of(Some(first.clone()), Some(second))] {
        for force in [false, true] {
            assert!(matches!(plan(&view, force), Err(Refusal::Elsewhere(node, _)) if node == "pg-2"));
        }
        // The other has less, but it is the cluster.
        assert!(matches!(advise(&view), Advice::Choose(choices) if choices.len() == 1 && choices[0].node == "pg-2"));
    }
    let split = of(Some(first.clone()), Some(apart.clone()));
    assert!(matches!(plan(&split, true), Err(Refusal::Elsewhere(..))));
    assert_eq!(advise(&split), Advice::Split(vec![("pg-1".into(), first), ("pg-2".into(), apart)]));
}

#[test]
fn who_insists_insists_on_what_was_told() {
    let of = |other: Has| view(vec![B.node(1, true), other.node(2, true), Silent.node(3, true)]);
    let told = plan(&of(C), true).unwrap().doubtful();
    assert_eq!(told, ["pg-2"]);
    let beyond = |other: Has, told: &[String]| plan(&of(other), true).unwrap().beyond(told);
    assert_eq!(beyond(C, &told), None);
    assert_eq!(beyond(A, &[]), None);
    assert!(matches!(beyond(C, &[]), Some(Refusal::Doubtful(losses, _)) if losses.len() == 1));
    assert!(matches!(beyond(Unknown, &["pg-3".to_owned()]), Some(Refusal::Doubtful(_, doubts)) if doubts.len() == 1));
    // What a promotion gave up needs no insisting.
    let given_up = view(vec![New.node(1, true), Tail.node(2, true)]);
    assert_eq!(plan(&given_up, false).unwrap().beyond(&[]), None);
}

#[test]
fn one_two_and_three_nodes_in_every_way() {
    let mut count = 0;
    for size in 1..=3 {
        count += each(size, &ALL, check);
    }
    assert_eq!(count, 22 + 22 * 22 + 22 * 22 * 22);
}

#[test]
fn five_nodes_in_every_way() {
    assert_eq!(each(5, &[Silent, A, B, New], check), 32_768);
}

#[test]
fn synchronous_nodes_and_lost_keys_are_told() {
    let synchronous = |names: &[&str]| {
        Keys::Read(Kept {
            system: Some("7".into()),
            synchronous: names.iter().map(|name| (*name).to_owned()).collect(),
            revision: 9,
            ..Kept::default()
        })
    };
    let base = view(vec![B.node(1, true), Silent.node(2, true), A.node(3, true)]);
    let remarks = |keys: Keys, base: &View| plan(&View { keys, ..base.clone() }, true).unwrap().remarks;
    assert_eq!(remarks(synchronous(&["pg-2", "pg-1"]), &base), []);
    assert!(matches!(remarks(synchronous(&["pg-2"]), &base)[..], [Remark::NotSynchronous(_)]));
    // What pg-3 has is here too.
    assert_eq!(remarks(synchronous(&["pg-2", "pg-3"]), &base), []);
    let lost = view(vec![B.node(1, false), Silent.node(2, true), A.node(3, true)]);
    assert_eq!(remarks(Keys::Absent, &lost), [Remark::KeysElsewhere(vec!["pg-3".into()])]);
    let unread = View { keys: Keys::Unknown("bad log".into()), ..base };
    assert!(matches!(plan(&unread, false), Err(Refusal::Doubtful(..))));
    let plan = plan(&unread, true).unwrap();
    assert!(!plan.keys && plan.remarks.contains(&Remark::KeysUnread("bad log".into())));
}

#[test]
fn that_maintenance_mode_ends_is_told_and_needs_no_insisting() {
    let of = |paused: bool| {
        let keys = Keys::Read(Kept { system: Some("7".into()), paused, ..Kept::default() });
        plan(&View { keys, ..view(vec![B.node(1, true), A.node(2, true)]) }, false).unwrap()
    };
    assert_eq!(of(false).remarks, []);
    assert_eq!(of(true).remarks, [Remark::MaintenanceEnds]);
    assert_eq!((of(true).beyond(&[]), of(true).doubtful()), (None, Vec::new()));
}

#[test]
fn a_database_that_etcd_does_not_name_needs_insisting() {
    let nodes = vec![Strange.node(1, true), A.node(2, true), Silent.node(3, true)];
    let refusal = plan(&view(nodes.clone()), false).unwrap_err();
    let Refusal::Doubtful(_, doubts) = &refusal else { panic!("{refusal:?}") };
    assert!(doubts.contains(&Remark::OtherDatabase { own: "8".into(), kept: "7".into() }));
    // On the node with the cluster's own, the stranger's does not make it hesitate; without etcd's word it does.
    assert!(plan(&seen_by(&view(nodes.clone()), "pg-2"), false).is_ok());
    let lost = View { keys: Keys::Absent, ..seen_by(&view(nodes), "pg-2") };
    assert!(matches!(plan(&lost, false), Err(Refusal::Doubtful(..))));
}

#[test]
fn refusals_say_what_is_wrong_and_the_way_out() {
    let told = |view: View, force: bool| {
        let refusal = plan(&view, force).unwrap_err();
        format!("{refusal}\nhint: {}", refusal.hint("pg-1"))
    };
    let two = |one: Has, other: Has| view(vec![one.node(1, true), other.node(2, true)]);
    let mut running = two(Tail, New);
    running.nodes[1].patroni = true;
    let mut unclear = two(B, Unknown);
    unclear.nodes[1].patroni = true;
    let mut elsewhere = two(B, A);
    elsewhere.nodes[1].lineage = Some(lineage("2", &[]));
    let mut ordered = two(B, A);
    ordered.nodes[1].order = Some("ordered".into());
    let mut primary = two(B, A);
    primary.nodes[1].primary = true;
    let texts = [
        told(View { quorums: vec![quorum_of("c", &["pg-2", "pg-3"])], ..two(A, A) }, false),
        told(View { quorums: vec![quorum_of("c", &["pg-2"]), quorum_of("d", &["pg-3"])], ..two(A, A) }, true),
        told(ordered, true),
        told(primary, true),
        told(two(Unknown, A), true),
        told(two(Unusable, A), true),
        told(view(vec![Nothing.node(1, false), A.node(2, true)]), true),
        told(running, true),
        told(unclear, true),
        told(elsewhere, true),
        told(two(A, C), false),
        told(two(Tail, New), false),
        told(view(vec![C.node(1, false), Strange.node(2, true)]), false),
        told(two(C, Unknown), false),
        told(two(Nothing, A), false),
        told(View { obstacle: Some(link()), ..two(A, A) }, true),
    ];
    insta::assert_snapshot!(texts.join("\n\n"));
}
