//! Every combination of what a node can see, and every order in which nodes, Patroni and power cuts can act.

use super::*;
use crate::node::database::{Facts, Lsn, ServerState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const OURS: &str = "1000000001";
const THEIRS: &str = "2000000002";

fn present(system: &str, unstarted_copy: bool) -> Database {
    Database::Present(Facts {
        version: 17,
        system: system.to_owned(),
        timeline: 1,
        state: ServerState::ShutDown,
        checkpoint: Lsn(1),
        checkpoint_time: 0,
        recovery_end: Lsn(0),
        recovery_timeline: 0,
        unstarted_copy,
    })
}

fn mark(what: What, version: u32) -> Presence<Begun> {
    Presence::Present(Begun { what, version, revision: 1, time: 0, replaces: None })
}

fn first(node: &str, system: Option<&str>, created: u64) -> Option<Key<First>> {
    let value = First { node: node.to_owned(), system: system.map(ToOwned::to_owned) };
    Some(Key { value, created, changed: created })
}

/// The key as Patroni creates it, and as it changes it when the database is there.
fn initialize(value: &str, created: u64) -> Option<Key<String>> {
    Some(Key { value: value.to_owned(), created, changed: created + u64::from(!value.is_empty()) })
}

/// The key after somebody has emptied it.
fn emptied(created: u64) -> Option<Key<String>> {
    Some(Key { value: String::new(), created, changed: created + 2 })
}

fn every_view() -> Vec<View> {
    let firsts = [
        None,
        first("pg-1", None, 3),
        first("pg-2", None, 3),
        first("pg-1", Some(OURS), 3),
        first("pg-2", Some(OURS), 3),
        first("pg-2", Some(THEIRS), 3),
    ];
    let initializes = [
        None,
        initialize("", 2),
        initialize("", 5),
        emptied(5),
        initialize(OURS, 2),
        initialize(OURS, 5),
        initialize(THEIRS, 5),
    ];
    let databases = [
        Database::Absent,
        present(OURS, false),
        present(OURS, true),
        present(THEIRS, false),
        Database::Damaged("no pg_control".into()),
        Database::Unknown(Doubt::new("EIO")),
    ];
    let marks = [
        Presence::Absent,
        mark(What::Bootstrap, 17),
        mark(What::Clone, 17),
        mark(What::Bootstrap, 16),
        Presence::Unknown(Doubt::new("EIO")),
    ];
    let mut views = Vec::new();
    for first in &firsts {
        for initialize in &initializes {
            for database in &databases {
                for begun in &marks {
                    for flags in 0..32 {
                        views.push(View {
                            me: "pg-1".into(),
                            forms: flags & 1 == 1,
                            version: 17,
                            keys: Keys { first: first.clone(), initialize: initialize.clone(), ..Keys::default() },
                            database: database.clone(),
                            begun: begun.clone(),
                            room: flags & 2 == 2,
                            started: flags & 4 == 4,
                            half_gone: flags & 8 == 8,
                            led: flags & 16 == 16,
                        });
                    }
                }
            }
        }
    }
    views
}

#[test]
fn whatever_a_node_sees_it_does_no_harm() {
    for view in every_view() {
        let step = may_start(&view);
        let (first, initialize) = (view.keys.first.as_ref(), view.keys.initialize.as_ref());
        let pinned = first.and_then(|first| first.value.system.as_deref());
        let mine = first.is_some_and(|first| first.value.node == "pg-1" && first.value.system.is_none());
        let empty = initialize.is_none_or(|key| key.value.is_empty());
        let own = match &view.database {
            Database::Present(facts) => Some(facts.system.as_str()),
            _ => None,
        };
        let marked = match &view.begun {
            Presence::Present(begun) if begun.version == 17 => Some(begun.what),
            _ => None,
        };
        let doubt = matches!(view.begun, Presence::Unknown(_)) || matches!(view.database, Database::Unknown(_));
        let unstarted = matches!(&view.database, Database::Present(facts) if facts.unstarted_copy) && !view.started;
        let told = own.is_some() && initialize.map(|key| key.value.as_str()) == own;
        let half = match marked {
            Some(What::Clone) => view.half_gone || unstarted,
            Some(What::Bootstrap) => false,
            None => unstarted && told,
        };
        match &step {
            _ if doubt => assert!(matches!(step, Step::Wait(_)), "an error decides nothing: {view:?}"),
            Step::Start(None) => {
                assert!(own.is_some() && own == pinned && !half, "{view:?}");
                assert!(
                    initialize.is_none_or(|key| key.value.is_empty() || Some(key.value.as_str()) == own),
                    "{view:?}"
                );
            }
            Step::Start(Some(What::Bootstrap)) => {
                assert!(mine && initialize.is_none() && view.database == Database::Absent, "{view:?}");
            }
            Step::Start(Some(What::Clone)) => {
                assert!(initialize.is_some_and(|key| Some(key.value.as_str()) == pinned), "{view:?}");
                assert!(view.database == Database::Absent, "{view:?}");
            }
            Step::Open => {
                assert!(view.forms && first.is_none() && initialize.is_none(), "{view:?}");
                assert!(view.database == Database::Absent, "{view:?}");
            }
            Step::Pin(system) => {
                assert!(pinned.is_none(), "what is pinned stays: {view:?}");
                assert!(own.is_none_or(|own| own == system), "{view:?}");
                assert!(empty || initialize.is_some_and(|key| key.value == *system), "{view:?}");
            }
            Step::SetAsideThenLookAgain(_) => {
                let damaged = matches!(view.database, Database::Damaged(_));
                match marked {
                    Some(What::Clone) if view.half_gone => assert!(view.room && view.led, "{view:?}"),
                    Some(What::Clone) => {
                        assert!(view.room && !view.started && (damaged || unstarted), "{view:?}");
                    }
                    Some(What::Bootstrap) => {
                        let begun = initialize.is_some_and(|key| key.value.is_empty() && key.created == key.changed);
                        let other = first.is_some_and(|first| first.value.node != "pg-1");
                        assert!(pinned.is_none() && empty, "{view:?}");
                        assert!((begun && (damaged || mine)) || (damaged && other), "{view:?}");
                    }
                    None => assert!(half && view.room && view.led, "it was not begun here: {view:?}"),
                }
            }
            Step::GiveUpOwnBeginning(revision) => {
                assert!(mine && view.database == Database::Absent, "{view:?}");
                let key = initialize.unwrap();
                assert!(key.value.is_empty() && key.created > 3 && key.changed == *revision, "{view:?}");
            }
            Step::Wait(why) => assert!(!why.is_empty()),
            Step::Refuse(what, way_out) => {
                assert!(!what.is_empty() && way_out.contains("nothing is changed"), "{view:?}");
                assert!(view.database != Database::Absent, "{view:?}");
            }
        }
    }
}

/// One view with the rest as a node sees it that has just been made.
fn step(change: impl FnOnce(&mut View)) -> Step {
    let mut view = View {
        me: "pg-1".into(),
        forms: true,
        version: 17,
        keys: Keys::default(),
        database: Database::Absent,
        begun: Presence::Absent,
        started: false,
        half_gone: false,
        led: false,
        room: true,
    };
    change(&mut view);
    may_start(&view)
}

#[test]
fn a_first_database_is_opened_begun_finished_and_copied() {
    assert_eq!(step(|_| {}), Step::Open);
    assert_eq!(step(|view| view.keys.first = first("pg-1", None, 3)), Step::Start(Some(What::Bootstrap)));
    let wait = step(|view| view.keys.first = first("pg-2", None, 3));
    assert_eq!(wait, Step::Wait("the first database is being made on pg-2".into()));
    let made = step(|view| {
        view.keys.first = first("pg-2", None, 3);
        view.keys.initialize = initialize(OURS, 5);
    });
    assert_eq!(made, Step::Pin(OURS.into()));
    let copied = step(|view| {
        view.keys.first = first("pg-2", Some(OURS), 3);
        view.keys.initialize = initialize(OURS, 5);
    });
    assert_eq!(copied, Step::Start(Some(What::Clone)));
}

#[test]
fn a_node_is_done_when_it_has_the_database_that_is_pinned() {
    for view in every_view() {
        let pinned = view.keys.first.as_ref().and_then(|first| first.value.system.clone());
        let whole = match &view.database {
            Database::Present(facts) if !facts.unstarted_copy => Some(facts.system.clone()),
            _ => None,
        };
        match completion(&view.keys, &view.database, view.half_gone) {
            Completion::Done => assert!(pinned.is_some() && pinned == whole && !view.half_gone, "{view:?}"),
            Completion::Pin(system) => {
                assert!(pinned.is_none() && whole == Some(system) && !view.half_gone, "{view:?}");
            }
            Completion::Wait(why) => assert!(!why.is_empty()),
        }
    }
}

#[test]
fn a_person_keeps_a_whole_database_that_the_keys_do_not_exclude() {
    for view in every_view() {
        let made = view.keys.initialize.as_ref().map(|key| key.value.as_str()).filter(|value| !value.is_empty());
        let pinned = view.keys.first.as_ref().and_then(|first| first.value.system.as_deref());
        let named: Vec<&str> = made.into_iter().chain(pinned).collect();
        let own = match &view.database {
            Database::Present(facts) if !facts.unstarted_copy => Some(facts.system.as_str()),
            _ => None,
        };
        let settled = made.is_none() || pinned.is_none() || made == pinned;
        let may = own.is_some_and(|own| named.is_empty() || (named.contains(&own) && !settled));
        match keeps(&view.keys, &view.database) {
            Ok(system) => assert!(may && own == Some(system.as_str()), "{view:?}"),
            Err(error) => assert!(!may && error.hint.is_some(), "{view:?}: {error}"),
        }
    }
}

#[test]
fn a_patroni_that_was_let_in_and_may_not_begin_any_more_comes_back() {
    let mut in_vain = 0;
    for view in every_view() {
        let is_in_vain = is_in_vain(&view);
        in_vain += u32::from(is_in_vain);
        // Where there is a database, or half of one, Patroni is at work.
        assert!(!is_in_vain || view.database == Database::Absent, "{view:?}");
    }
    assert!(in_vain > 0);
    // A person has let another node make the first database, while this one had begun, or this one, while another had.
    let taken = |node: &str| View {
        me: "pg-1".into(),
        forms: true,
        version: 17,
        keys: Keys { first: first(node, None, 3), initialize: initialize("", 5), ..Keys::default() },
        database: Database::Absent,
        begun: mark(What::Bootstrap, 17),
        started: false,
        half_gone: false,
        led: false,
        room: true,
    };
    assert!(is_in_vain(&taken("pg-2")));
    assert!(is_in_vain(&taken("pg-1")));
    assert_eq!(may_start(&taken("pg-1")), Step::GiveUpOwnBeginning(5));
}

#[test]
fn a_key_that_was_emptied_by_hand_costs_no_database() {
    let whole = |first: Option<Key<First>>| {
        step(|view| {
            view.keys.first = first;
            view.keys.initialize = initialize("", 5);
            view.database = present(OURS, false);
            view.forms = false;
        })
    };
    assert_eq!(whole(first("pg-2", Some(OURS), 3)), Step::Start(None));
    assert_eq!(whole(None), Step::Pin(OURS.into()), "a cluster older than the key `first`");
    assert!(matches!(whole(first("pg-2", None, 3)), Step::Wait(_)), "another node makes one");
}

#[test]
fn what_took_writes_is_not_half_of_a_beginning() {
    // Patroni has told the database, and nobody has written down yet that it is whole.
    let told = |database: Database, initialize: Option<Key<String>>| {
        step(|view| {
            view.keys.first = first("pg-1", None, 3);
            view.keys.initialize = initialize;
            view.begun = mark(What::Bootstrap, 17);
            view.database = database;
        })
    };
    for key in [initialize(OURS, 5), emptied(5), None] {
        assert_eq!(told(present(OURS, false), key.clone()), Step::Pin(OURS.into()), "{key:?}");
        assert!(matches!(told(Database::Damaged("x".into()), key), Step::Refuse(..)));
    }
}

#[test]
fn only_what_this_node_began_and_did_not_finish_is_set_aside() {
    let cut_off = |begun: Presence<Begun>, database: Database| {
        step(|view| {
            view.keys.first = first("pg-1", None, 3);
            view.keys.initialize = initialize("", 5);
            view.begun = begun;
            view.database = database;
        })
    };
    let aside = Step::SetAsideThenLookAgain("unfinished");
    assert_eq!(cut_off(mark(What::Bootstrap, 17), Database::Damaged("x".into())), aside);
    assert_eq!(cut_off(mark(What::Bootstrap, 17), present(OURS, false)), aside, "roles may be missing");
    assert_eq!(cut_off(mark(What::Bootstrap, 17), Database::Absent), Step::GiveUpOwnBeginning(5));
    assert!(matches!(cut_off(Presence::Absent, Database::Damaged("x".into())), Step::Refuse(..)));
    assert_eq!(cut_off(Presence::Absent, present(OURS, false)), Step::Pin(OURS.into()), "it was put there whole");
    let copied = |room: bool, database: Database, started: bool| {
        step(|view| {
            view.started = started;
            view.keys.first = first("pg-2", Some(OURS), 3);
            view.keys.initialize = initialize(OURS, 5);
            view.begun = mark(What::Clone, 17);
            view.database = database;
            view.room = room;
        })
    };
    let clone = |room: bool, database: Database| copied(room, database, false);
    let aside = Step::SetAsideThenLookAgain("unfinished-clone");
    // Commits may have been acknowledged that this copy alone has.
    assert!(matches!(copied(true, Database::Damaged("x".into()), true), Step::Refuse(..)));
    assert_eq!(copied(true, present(OURS, true), true), Step::Start(None), "it was cut off when it was rewound");
    assert_eq!(clone(true, Database::Damaged("x".into())), aside);
    assert_eq!(clone(true, present(OURS, true)), aside, "it may not be on the disk as a whole");
    assert_eq!(clone(true, present(OURS, false)), Step::Start(None), "a server has started with it");
    assert!(matches!(clone(false, Database::Damaged("x".into())), Step::Wait(_)), "nothing is removed to make room");
}

#[test]
fn a_database_of_which_half_may_be_gone_waits_for_a_primary_and_is_copied_again() {
    let replaced = |database: Database, led: bool, room: bool| {
        step(|view| {
            view.keys.first = first("pg-2", Some(OURS), 3);
            view.keys.initialize = initialize(OURS, 5);
            view.begun = mark(What::Clone, 17);
            // As it is with every database on which a server has run.
            (view.started, view.half_gone, view.led, view.room) = (true, true, led, room);
            view.database = database;
        })
    };
    for database in [present(OURS, false), Database::Damaged("it has no PG_VERSION".into())] {
        let aside = Step::SetAsideThenLookAgain("half-replaced");
        assert_eq!(replaced(database.clone(), true, true), aside);
        let Step::Wait(why) = replaced(database.clone(), false, true) else { panic!("{database:?}") };
        assert!(why.contains("waits for a primary") && why.contains("aside restore"), "{why}");
        let Step::Wait(why) = replaced(database, true, false) else { panic!("it needs room") };
        assert!(why.contains("`pgha-node aside make database`"), "{why}");
    }
    assert_eq!(replaced(Database::Absent, true, true), Step::Start(Some(What::Clone)), "all of it is gone");
}

#[test]
fn a_copy_that_somebody_else_began_is_made_again_and_a_replica_after_a_power_cut_is_not() {
    let unmarked = |key: &str, database: Database, started: bool, led: bool| {
        step(|view| {
            view.keys.first = first("pg-2", Some(OURS), 3);
            view.keys.initialize = initialize(key, 5);
            (view.started, view.led) = (started, led);
            view.database = database;
        })
    };
    assert_eq!(
        unmarked(OURS, present(OURS, true), false, true),
        Step::SetAsideThenLookAgain("unfinished-clone"),
        "`patronictl reinit`, cut off at its end"
    );
    assert!(matches!(unmarked(OURS, present(OURS, true), false, false), Step::Wait(why) if why.contains("pg_ctl")));
    for led in [true, false] {
        assert_eq!(unmarked(OURS, present(OURS, false), true, led), Step::Start(None), "a replica");
        assert_eq!(unmarked(OURS, present(OURS, true), true, led), Step::Start(None), "it was rewound");
        assert_eq!(unmarked("", present(OURS, true), false, led), Step::Start(None), "a backup, put there by a person");
        let damaged = unmarked(OURS, Database::Damaged("it has no global/pg_control".into()), false, led);
        assert!(matches!(damaged, Step::Refuse(..)));
    }
}

#[test]
fn what_a_node_waits_for_and_why_it_refuses_is_said() {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for view in every_view() {
        match may_start(&view) {
            Step::Wait(why) => texts.insert(format!("waits: {why}")),
            Step::Refuse(what, way_out) => texts.insert(format!("refuses: {what}\n  hint: {way_out}")),
            _ => continue,
        };
    }
    insta::assert_snapshot!(texts.into_iter().collect::<Vec<_>>().join("\n"));
}

// The model: nodes with a gate, Patroni 4.0.7 as `ha.py` has it, keys, disks, and power cuts anywhere.

const NODES: usize = 3;
/// How many first databases may be begun in all; each would get a system identifier of its own.
const DATABASES: u8 = 3;

/// What lies in a node's data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Disk {
    Nothing,
    /// initdb or a copy at work, or cut off.
    Half,
    /// A copy before a server has started with it.
    Copy(u8),
    /// A new database without its roles.
    Bare(u8),
    /// A whole database.
    Whole(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    /// Switched off.
    Off,
    /// `init` looks.
    Gate,
    /// Patroni runs and does nothing lasting.
    Patroni,
    /// Patroni makes the first database with this number.
    Making(u8),
    /// Patroni copies this database.
    Copying(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Node {
    phase: Phase,
    disk: Disk,
    mark: Option<bool>,
}

/// The whole world; small numbers stand for names, revisions and system identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct World {
    nodes: [Node; NODES],
    /// The node and the system, if known.
    first: Option<(u8, Option<u8>)>,
    /// The system, or a beginning; and whether it is younger than `first`.
    initialize: Option<(Option<u8>, bool)>,
    /// First databases begun so far.
    begun: u8,
    /// Systems that were ever in `initialize`.
    made: Option<u8>,
    /// Disks that may still be lost.
    losses: u8,
}

fn system(number: u8) -> String {
    format!("{}", 1_000_000_000 + u64::from(number))
}

fn number(system: &str) -> u8 {
    (system.parse::<u64>().unwrap() - 1_000_000_000) as u8
}

impl World {
    fn start(losses: u8) -> World {
        let node = Node { phase: Phase::Off, disk: Disk::Nothing, mark: None };
        World { nodes: [node; NODES], first: None, initialize: None, begun: 0, made: None, losses }
    }

    fn view(&self, own: usize) -> View {
        let node = &self.nodes[own];
        let name = |node: u8| format!("pg-{node}");
        View {
            me: name(own as u8),
            // The last node came later.
            forms: own + 1 < NODES,
            version: 17,
            keys: Keys {
                first: self.first.and_then(|(node, known)| first(&name(node), known.map(system).as_deref(), 3)),
                initialize: self.initialize.and_then(|(known, younger)| {
                    initialize(&known.map(system).unwrap_or_default(), if younger { 5 } else { 2 })
                }),
                ..Keys::default()
            },
            database: match node.disk {
                Disk::Nothing => Database::Absent,
                Disk::Half => Database::Damaged("no pg_control".into()),
                Disk::Copy(number) => present(&system(number), true),
                Disk::Bare(number) | Disk::Whole(number) => present(&system(number), false),
            },
            begun: match node.mark {
                None => Presence::Absent,
                Some(true) => mark(What::Bootstrap, 17),
                Some(false) => mark(What::Clone, 17),
            },
            started: matches!(node.disk, Disk::Whole(_)),
            half_gone: false,
            led: self.nodes.iter().any(|node| node.phase == Phase::Patroni && matches!(node.disk, Disk::Whole(_))),
            room: true,
        }
    }

    /// The node's `init` looks and acts once. What it does to the keys it does only if they are as it has seen them, and
    /// nothing else changes its disk meanwhile: looking and acting are one.
    fn gate(&self, own: usize) -> World {
        let mut next = self.clone();
        let node = &mut next.nodes[own];
        match may_start(&self.view(own)) {
            Step::Start(what) => {
                node.phase = Phase::Patroni;
                node.mark = what.map_or(node.mark, |what| Some(what == What::Bootstrap));
            }
            Step::Open => next.first = Some((own as u8, None)),
            Step::Pin(system) => {
                let named = next.first.map_or(own as u8, |(node, _)| node);
                next.first = Some((named, Some(number(&system))));
            }
            Step::SetAsideThenLookAgain(_) => {
                let whole = matches!(node.disk, Disk::Whole(number) if self.made == Some(number));
                assert!(!whole, "a whole database is set aside: {self:?}");
                (node.disk, node.mark) = (Disk::Nothing, None);
            }
            Step::GiveUpOwnBeginning(_) => {
                let other =
                    self.nodes.iter().enumerate().any(|(at, node)| at != own && matches!(node.phase, Phase::Making(_)));
                assert!(!other, "another node's beginning is given up: {self:?}");
                next.initialize = None;
            }
            Step::Wait(_) | Step::Refuse(..) => {}
        }
        next
    }

    /// Everything that the node's Patroni may do next; it knows nothing of our key.
    fn patroni(&self, own: usize) -> Vec<World> {
        let change = |act: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            act(&mut next);
            next
        };
        let serves = |wanted: u8| {
            let serves = |node: &Node| node.phase == Phase::Patroni && node.disk == Disk::Whole(wanted);
            self.initialize.is_some_and(|(known, _)| known == Some(wanted)) && self.nodes.iter().any(serves)
        };
        let node = self.nodes[own];
        match (node.phase, node.disk, self.initialize) {
            (Phase::Patroni, Disk::Nothing, None) if self.begun < DATABASES => vec![change(&|world| {
                world.begun += 1;
                world.initialize = Some((None, world.first.is_some()));
                world.nodes[own].phase = Phase::Making(world.begun);
                world.nodes[own].disk = Disk::Half;
            })],
            (Phase::Patroni, Disk::Nothing, Some((Some(known), _))) if serves(known) => vec![change(&|world| {
                world.nodes[own].phase = Phase::Copying(known);
                world.nodes[own].disk = Disk::Half;
            })],
            // A whole database beside an empty or absent key: Patroni writes its own identifier.
            (Phase::Patroni, Disk::Whole(known) | Disk::Bare(known), None | Some((None, _))) => {
                vec![change(&|world| world.told(known))]
            }
            (Phase::Making(number), Disk::Half, _) => vec![
                change(&|world| world.nodes[own].disk = Disk::Bare(number)),
                // It fails: the key goes, the data are moved away, Patroni ends and is started again by systemd.
                change(&|world| {
                    world.initialize = None;
                    world.nodes[own].disk = Disk::Nothing;
                    world.nodes[own].phase = Phase::Patroni;
                }),
            ],
            (Phase::Making(number), Disk::Bare(_), _) => {
                vec![change(&|world| world.nodes[own].disk = Disk::Whole(number))]
            }
            (Phase::Making(number), Disk::Whole(_), _) => vec![change(&|world| {
                world.told(number);
                world.nodes[own].phase = Phase::Patroni;
            })],
            (Phase::Copying(known), Disk::Half, _) => vec![change(&|world| world.nodes[own].disk = Disk::Copy(known))],
            (Phase::Copying(known), Disk::Copy(_), _) => vec![change(&|world| {
                world.nodes[own].disk = Disk::Whole(known);
                world.nodes[own].phase = Phase::Patroni;
            })],
            // `init` sees that it is whole.
            (Phase::Patroni, Disk::Whole(own_system), Some((Some(known), _)))
                if own_system == known
                    && (node.mark.is_some() || self.first.is_none_or(|(_, known)| known.is_none())) =>
            {
                vec![change(&|world| {
                    let named = world.first.map_or(own as u8, |(node, _)| node);
                    world.first = Some((named, Some(known)));
                    world.nodes[own].mark = None;
                })]
            }
            _ => Vec::new(),
        }
    }

    /// Patroni writes a system identifier into its key.
    fn told(&mut self, number: u8) {
        assert!(self.made.is_none_or(|made| made == number), "a second database: {self:?}");
        let younger = self.initialize.map_or(self.first.is_some(), |(_, younger)| younger);
        self.initialize = Some((Some(number), younger));
        self.made = Some(number);
    }

    /// What comes next without any fault.
    fn work(&self) -> Vec<World> {
        let mut next = Vec::new();
        for (own, node) in self.nodes.iter().enumerate() {
            match node.phase {
                Phase::Off => {
                    let mut world = self.clone();
                    world.nodes[own].phase = Phase::Gate;
                    next.push(world);
                }
                Phase::Gate => next.push(self.gate(own)),
                _ => next.extend(self.patroni(own)),
            }
        }
        next.retain(|world| world != self);
        next
    }

    /// Power cuts, and disks that are lost for good with their machine.
    fn faults(&self) -> Vec<World> {
        let mut next = Vec::new();
        for (own, node) in self.nodes.iter().enumerate() {
            if node.phase != Phase::Off {
                let mut world = self.clone();
                world.nodes[own].phase = Phase::Off;
                next.push(world);
            }
            if self.losses > 0 && *node != (Node { phase: Phase::Off, disk: Disk::Nothing, mark: None }) {
                let mut world = self.clone();
                world.losses -= 1;
                world.nodes[own] = Node { phase: Phase::Off, disk: Disk::Nothing, mark: None };
                next.push(world);
            }
        }
        next
    }

    /// Whether every node has the one database.
    fn is_done(&self) -> bool {
        self.made.is_some_and(|made| {
            self.first.is_some_and(|(_, known)| known == Some(made))
                && self.nodes.iter().all(|node| node.phase == Phase::Patroni && node.disk == Disk::Whole(made))
        })
    }

    /// Whether the cluster's database was made, and the last copy of it was lost with its machine: only a person can
    /// help. Or too many first databases were begun for this model.
    fn is_beyond_help(&self) -> bool {
        let whole = |made: u8| self.nodes.iter().any(|node| node.disk == Disk::Whole(made));
        self.made.is_some_and(|made| !whole(made)) || (self.made.is_none() && self.begun == DATABASES)
    }
}

#[test]
fn whenever_the_power_fails_there_is_one_database_and_a_way_on() {
    // Every world that can come about, and for each those from which it comes without a fault.
    let mut before: BTreeMap<World, Vec<World>> = BTreeMap::new();
    let mut open = VecDeque::from([World::start(1)]);
    before.insert(World::start(1), Vec::new());
    while let Some(world) = open.pop_front() {
        for next in world.work() {
            if !before.contains_key(&next) {
                open.push_back(next.clone());
            }
            before.entry(next).or_default().push(world.clone());
        }
        for next in world.faults() {
            before.entry(next.clone()).or_insert_with(|| {
                open.push_back(next);
                Vec::new()
            });
        }
    }
    let mut good: BTreeSet<&World> = before.keys().filter(|world| world.is_done()).collect();
    let mut open: Vec<&World> = good.iter().copied().collect();
    while let Some(world) = open.pop() {
        for earlier in &before[world] {
            if good.insert(earlier) {
                open.push(earlier);
            }
        }
    }
    println!("{} worlds, {} of them lead to one database on all nodes", before.len(), good.len());
    for world in before.keys() {
        assert!(good.contains(world) || world.is_beyond_help(), "no way on: {world:?}");
    }
}
