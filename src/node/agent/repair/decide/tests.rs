//! Every case of a replica that does not stream.

use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn primary() -> Primary {
    Primary {
        name: "pg-1".into(),
        system: "7".into(),
        timeline: 3,
        position: Lsn(0x9000),
        history: vec![(1, Lsn(0x2000)), (2, Lsn(0x5000))],
        oldest: Lsn(0x4000),
        slot: Slot::Good,
        others: 1,
        refuses: None,
    }
}

fn own(timeline: u32, position: u64) -> Own {
    let before = [(1, Lsn(0x2000)), (2, Lsn(0x5000))];
    let history = before.into_iter().take_while(|(earlier, _)| *earlier != timeline).collect();
    Own { system: "7".into(), timeline, position: Lsn(position), history: Some(history), exact: true }
}

/// A replica that has been apart for an hour, and whose server has been started again.
fn view() -> View {
    View {
        server: Server::Apart("running".into()),
        absent: seconds(3600),
        still: seconds(3600),
        paused: false,
        primary: Ok(primary()),
        own: Ok(own(3, 0x8000)),
        waits: None,
        rewind_failed: false,
        restarted: true,
        dropped: true,
        room: Ok(()),
        turn: Turn::Ours,
        last: None,
        order: None,
    }
}

/// Where a replica of each kind stands: timeline, position, and what that shows.
const PLACES: [(u32, u64, Kin, bool); 8] = [
    (3, 0x9000, Kin::Contained, false),
    (3, 0x3fff, Kin::Contained, true),
    (3, 0x9001, Kin::Diverged, false),
    (2, 0x5000, Kin::Contained, false),
    (2, 0x5001, Kin::Diverged, false),
    (1, 0x2000, Kin::Contained, true),
    (1, 0x2001, Kin::Diverged, true),
    (4, 0x9000, Kin::Stranger, false),
];

fn no_room() -> NoRoom {
    NoRoom { why: "no room".to_owned(), hint: "make some".to_owned() }
}

#[test]
fn timelines_of_one_number_are_not_the_same_way() {
    let with = |timeline, history: Option<Vec<(u32, Lsn)>>| kin(&primary(), &Own { history, ..own(timeline, 0x1000) });
    let before = vec![(1, Lsn(0x2000)), (2, Lsn(0x5000))];
    assert_eq!(with(3, Some(before.clone())), Kin::Contained);
    assert_eq!(with(3, Some(vec![(1, Lsn(0x2000)), (2, Lsn(0x4000))])), Kin::Stranger);
    assert_eq!(with(3, Some(vec![(1, Lsn(0x2000))])), Kin::Stranger);
    assert_eq!(with(2, Some(vec![(1, Lsn(0x2001))])), Kin::Stranger);
    assert_eq!(with(2, Some(before)), Kin::Stranger);
    assert_eq!(with(3, None), Kin::Contained, "enough to set the data aside");
    let mut view = view();
    view.own = Ok(Own { history: None, ..own(3, 0x3000) });
    assert_eq!(next(&view), Step::Repair(Why::WalGone, Way::Aside));
    view.room = Err(no_room());
    assert!(matches!(next(&view), Step::Tell(_)), "not enough to replace them");
}

#[test]
fn a_way_is_known_by_its_timeline_and_position() {
    for (timeline, position, expected, _) in PLACES {
        assert_eq!(kin(&primary(), &own(timeline, position)), expected, "{timeline} {position:x}");
    }
}

/// Every view that differs in what decides.
fn all() -> impl Iterator<Item = (View, Kin, bool)> {
    let servers =
        [Server::Primary, Server::Streaming, Server::Busy("creating replica".into()), Server::Apart("running".into())];
    let slots = [Slot::Missing, Slot::Good, Slot::Lost];
    let stills = [59, 60, 300, 600].map(seconds);
    let lasts = [Some(seconds(3599)), Some(seconds(3600))];
    let primaries: Vec<Result<Primary, String>> = slots
        .into_iter()
        .flat_map(|slot| [0, 1].map(|others| Ok(Primary { slot, others, ..primary() })))
        .chain([
            Err("there is no primary".into()),
            Ok(Primary { refuses: Some("no".into()), ..primary() }),
            Ok(Primary { system: "8".into(), ..primary() }),
        ])
        .collect();
    let turns = [Turn::Ours, Turn::Taken("pg-3".into())];
    let orders = [None, Some(CloneOrder { in_place: false }), Some(CloneOrder { in_place: true })];
    let mut bits = Vec::new();
    for number in 0..32_u32 {
        bits.push([0, 1, 2, 3, 4].map(|bit| number >> bit & 1 == 1));
    }
    servers.into_iter().flat_map(move |server| {
        let mut views = Vec::new();
        for primary in &primaries {
            for still in stills {
                for last in lasts {
                    for turn in &turns {
                        for order in orders {
                            for [paused, rewind_failed, fresh, room, exact] in bits.iter().copied() {
                                for (timeline, position, kin, gone) in PLACES {
                                    // What a server looks for is asked of one that does not answer.
                                    let waits = Some(Lsn(0x3000)).filter(|_| !exact && fresh);
                                    let view = View {
                                        server: server.clone(),
                                        absent: still,
                                        still,
                                        paused,
                                        primary: primary.clone(),
                                        own: Ok(Own { exact, ..own(timeline, position) }),
                                        waits,
                                        rewind_failed,
                                        restarted: !fresh,
                                        dropped: !fresh,
                                        room: if room { Ok(()) } else { Err(no_room()) },
                                        turn: turn.clone(),
                                        last,
                                        order,
                                    };
                                    views.push((view, kin, gone && exact || waits.is_some()));
                                }
                            }
                        }
                    }
                }
            }
        }
        views
    })
}

#[test]
fn nothing_is_cloned_but_where_the_data_are_known_to_be_elsewhere() {
    let mut repairs = 0_u64;
    for (view, kin, _) in all() {
        let Step::Repair(why, way) = next(&view) else { continue };
        repairs += 1;
        let primary = view.primary.as_ref().unwrap();
        let own = view.own.as_ref().unwrap();
        assert!(!view.paused && primary.refuses.is_none() && view.turn == Turn::Ours, "{view:?}");
        assert_ne!(view.server, Server::Primary, "{view:?}");
        if way == Way::InPlace {
            assert!(view.room.is_err(), "{view:?}");
        }
        match view.order {
            Some(order) => {
                assert!(why == Why::Ordered && (way == Way::Aside || order.in_place), "{view:?}");
            }
            None => {
                assert!(matches!(view.server, Server::Apart(_)), "{view:?}");
                assert_eq!(own.system, primary.system, "{view:?}");
                assert_ne!(kin, Kin::Stranger, "{view:?}");
                assert!(view.last.is_none_or(|last| last >= BETWEEN), "{view:?}");
                assert!(view.still >= if own.exact { NOTICE } else { STILL }, "{view:?}");
                if way == Way::InPlace {
                    assert!(own.exact && kin == Kin::Contained && primary.others > 0, "{view:?}");
                }
                if why == Why::Still {
                    assert!(primary.others > 0 && view.restarted && view.still >= STILL && own.exact, "{view:?}");
                }
            }
        }
    }
    assert!(repairs > 1000, "{repairs}");
}

#[test]
fn a_replica_that_cannot_follow_is_repaired_where_nothing_is_in_doubt() {
    for (view, kin, gone) in all() {
        let clear = matches!(view.server, Server::Apart(_))
            && !view.paused
            && view.turn == Turn::Ours
            && view.primary.as_ref().is_ok_and(|primary| primary.refuses.is_none() && primary.system == "7")
            && view.order.is_none()
            && view.last.is_none_or(|last| last >= BETWEEN)
            && view.room.is_ok()
            && view.still >= STILL
            && kin != Kin::Stranger;
        let hard = view.rewind_failed || kin == Kin::Diverged || gone;
        if clear && hard {
            assert!(matches!(next(&view), Step::Repair(_, Way::Aside)), "{view:?}");
        }
    }
}

#[test]
fn small_acts_touch_only_what_stands_still() {
    for (view, kin, gone) in all() {
        match next(&view) {
            Step::DropSlot => {
                assert_eq!(view.primary.as_ref().unwrap().slot, Slot::Lost);
                assert!(!gone && kin == Kin::Contained && !view.dropped && view.still >= NOTICE, "{view:?}");
            }
            Step::Restart => {
                assert!(matches!(view.server, Server::Apart(_)) && !view.restarted, "{view:?}");
                assert!(view.still >= RESTART_AFTER && view.own.as_ref().unwrap().exact, "{view:?}");
            }
            Step::Nothing => {
                let well = matches!(view.server, Server::Primary | Server::Streaming);
                assert!(view.order.is_none() && (well || view.absent < NOTICE), "{view:?}");
            }
            Step::Tell(_) | Step::Repair(..) => {}
        }
    }
}

#[test]
fn each_reason_is_seen() {
    let step = |change: fn(&mut View)| {
        let mut view = view();
        change(&mut view);
        next(&view)
    };
    let repair = |why| Step::Repair(why, Way::Aside);
    assert_eq!(step(|_| {}), repair(Why::Still));
    assert_eq!(step(|view| view.own = Ok(own(3, 0x3000))), repair(Why::WalGone));
    assert_eq!(step(|view| view.own = Ok(own(2, 0x5001))), repair(Why::Diverged));
    assert_eq!(step(|view| view.rewind_failed = true), repair(Why::RewindFailed));
    let lost = |view: &mut View| view.primary = Ok(Primary { slot: Slot::Lost, ..primary() });
    assert_eq!(step(|view| view.primary = Ok(Primary { slot: Slot::Lost, ..primary() })), repair(Why::SlotLost));
    let mut first = view();
    lost(&mut first);
    first.dropped = false;
    assert_eq!(next(&first), Step::DropSlot);
    assert_eq!(step(|view| view.restarted = false), Step::Restart);
    let waiting = |position| {
        let mut view = view();
        view.own = Ok(Own { exact: false, ..own(3, 0x3000) });
        view.waits = Some(Lsn(position));
        next(&view)
    };
    assert_eq!(waiting(0x3fff), repair(Why::WalGone));
    assert!(matches!(waiting(0x4000), Step::Tell(_)), "a control file alone says nothing of the WAL");
    let told = step(|view| view.own = Ok(own(4, 0x9000)));
    assert!(matches!(told, Step::Tell(why) if why.starts_with("pg-1 does not know its timeline 4")));
    let told = step(|view| view.own = Err("its control file is damaged".into()));
    assert!(matches!(told, Step::Tell(why) if why.ends_with("`pgha-node reclone` clones it again")));
}
