use super::*;
use crate::node::recover::lab::{Lab, names, position};

fn end(lab: &Lab, name: &str) -> crate::node::recover::wal::End {
    let stopped = lab.stopped(name);
    let waldump = stopped.programs.join("pg_waldump");
    let wal = Wal { folder: stopped.wal(), pg_waldump: &waldump };
    wal.end(&stopped.facts().unwrap(), Duration::from_secs(60)).unwrap()
}

/// A table of `rows` rows that was acknowledged, and a little more.
fn fill(server: &crate::node::recover::lab::Server<'_>, rows: u32) {
    server.sql(&format!("create table t as select generate_series(1, {rows}) i; checkpoint"));
    server.sql("insert into t values (0)");
}

#[test]
fn the_end_of_wal_is_found_and_the_database_gets_a_timeline_of_its_own() {
    let Some(lab) = Lab::new() else { return };
    lab.initdb("a");
    let server = lab.start("a", 54321);
    fill(&server, 1000);
    server.sql("select pg_switch_wal()");
    server.sql("insert into t values (0)");
    let written = position(&server.sql("select pg_current_wal_flush_lsn()"));
    server.kill();

    let found = end(&lab, "a");
    assert_eq!((found.at, found.exact), (Place { timeline: 1, position: written }, true));
    let ago = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
        - found.commit.unwrap();
    assert!((0..600).contains(&ago), "{ago}");

    let stopped = lab.stopped("a");
    let number = stopped.number(3, 2).unwrap();
    assert!(number >= 3 + GAP);
    let branch = stopped.branch(number).unwrap();
    assert_eq!((branch.end.timeline, &branch.history), (number, &History(vec![found.at])));
    assert!(branch.end.position > found.at.position, "{branch:?}");
    // Again, nothing changes.
    let before = stopped.facts().unwrap();
    assert_eq!(stopped.branch(number).unwrap(), branch);
    assert_eq!(stopped.facts().unwrap(), before);
    let server = lab.start("a", 54321);
    assert_eq!(server.sql("select count(*) from t"), "1002");
    server.stop();
    let histories = names(&stopped.wal()).into_iter().filter(|name| name.ends_with(".history")).count();
    assert_eq!(histories as u32, number - 1);
}

#[test]
fn a_replica_follows_what_was_branched_and_one_with_more_is_seen() {
    let Some(lab) = Lab::new() else { return };
    lab.initdb("a");
    let primary = lab.start("a", 54331);
    primary.sql("create table t (i int)");
    primary.stop();
    for name in ["b", "c"] {
        lab.copy("a", name);
        lab.follow(name, 54331);
    }
    let primary = lab.start("a", 54331);
    let (behind, replica) = (lab.start("b", 54332), lab.start("c", 54333));
    fill_more(&primary, 10);
    for server in [&behind, &replica] {
        server.wait("select count(*) from t", "10");
    }
    behind.stop();
    fill_more(&primary, 10);
    replica.wait("select count(*) from t", "20");
    // A replica that loses its power, of a primary that goes on alone.
    replica.kill();
    fill_more(&primary, 10);
    primary.kill();

    let [a, b, c] = ["a", "b", "c"].map(|name| end(&lab, name));
    assert!(b.at < c.at && c.at < a.at && a.exact && b.exact && c.exact, "{a:?} {b:?} {c:?}");

    // The cluster goes on from the replica.
    let stopped = lab.stopped("c");
    let branch = stopped.branch(stopped.number(1, 0).unwrap()).unwrap();
    assert_eq!(branch.history.0.len(), 1);
    let new = lab.start("c", 54331);
    assert_eq!(new.sql("select count(*) from t"), "20");
    assert_eq!(new.sql("select pg_is_in_recovery()"), "f");
    fill_more(&new, 5);
    // One that is behind follows; none of its history files is in the way if it is cut off meanwhile.
    let behind = lab.start("b", 54332);
    behind.wait("select count(*) from t", "25");
    behind.kill();
    let behind = lab.start("b", 54332);
    behind.wait("select count(*) from t", "25");
    behind.stop();
    new.stop();
    // The old primary has more than that, on the old timeline.
    let left = branch.history.left(1).unwrap();
    assert!(a.at.position > left, "{a:?} {branch:?}");
}

fn fill_more(server: &crate::node::recover::lab::Server<'_>, rows: u32) {
    server.sql(&format!("insert into t select generate_series(1, {rows})"));
}

#[test]
fn a_promotion_that_was_cut_off_is_finished() {
    let Some(lab) = Lab::new() else { return };
    lab.initdb("a");
    let server = lab.start("a", 54341);
    fill(&server, 100);
    server.kill();
    let stopped = lab.stopped("a");
    let number = stopped.number(1, 1).unwrap();
    assert_eq!(stopped.settle(number).unwrap(), None);
    // Cut off when half of the files are there.
    let found = end(&lab, "a");
    stopped.skip(&History(vec![found.at]), number / 2).unwrap();
    // And when the server was promoted, but not stopped.
    lab.copy("a", "b");
    stopped.ask_for_promotion().unwrap();
    let branch = stopped.branch(number).unwrap();
    assert_eq!(branch.end.timeline, number);
    assert_eq!(stopped.settle(number).unwrap(), Some(branch.clone()));
    let server = lab.start("a", 54341);
    server.kill();
    let cut = stopped.settle(number).unwrap().unwrap();
    assert_eq!((cut.end, &cut.history), (end(&lab, "a").at, &branch.history));
    assert_ne!(stopped.facts().unwrap().state, ServerState::ShutDown);
    let again = stopped.branch(number).unwrap();
    assert_eq!((again.end.timeline, &again.history), (number, &branch.history));
    assert_eq!(stopped.facts().unwrap().state, ServerState::ShutDown);
    // A number that is taken meanwhile is passed over.
    let other = lab.stopped("b");
    fs::write(other.history_file(number), format!("1\t{}\tpromoted\n", found.at.position)).unwrap();
    lab.account.own(&other.history_file(number)).unwrap();
    assert_eq!(other.branch(number).unwrap().end.timeline, number + 1);
}

#[test]
fn a_replica_follows_again_after_a_promotion_that_was_prepared_and_withdrawn() {
    let Some(lab) = Lab::new() else { return };
    lab.initdb("a");
    let primary = lab.start("a", 54361);
    primary.sql("create table t (i int)");
    primary.stop();
    lab.copy("a", "b");
    lab.follow("b", 54361);
    let primary = lab.start("a", 54361);
    let replica = lab.start("b", 54362);
    fill_more(&primary, 10);
    replica.wait("select count(*) from t", "10");
    replica.stop();
    let stopped = lab.stopped("b");
    let number = stopped.number(1, 0).unwrap();
    let found = end(&lab, "b");
    stopped.skip(&History(vec![found.at]), number).unwrap();
    stopped.ask_for_promotion().unwrap();
    assert_eq!(stopped.settle(number).unwrap(), None);
    assert!(!names(&stopped.wal()).iter().any(|name| name.ends_with(".history")));
    // As Patroni does it.
    fs::rename(stopped.data.join("recovery.signal"), stopped.data.join("standby.signal")).unwrap();
    fill_more(&primary, 10);
    let replica = lab.start("b", 54362);
    replica.wait("select count(*) from t", "20");
    assert_eq!(end(&lab, "b").at.timeline, 1);
}

#[test]
fn a_database_that_does_not_come_up_says_why() {
    let Some(lab) = Lab::new() else { return };
    lab.initdb("a");
    lab.start("a", 54351).kill();
    let conf = lab.data("a").join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}shared_preload_libraries = 'no_such_library'\n")).unwrap();
    let stopped = lab.stopped("a");
    let error = crate::error::report(&stopped.branch(90).unwrap_err());
    assert!(error.contains("no_such_library") && error.contains("hint:"), "{error}");
    assert_eq!(stopped.facts().unwrap().timeline, 1);
    // The WAL is gone.
    for name in names(&stopped.wal()).iter().filter(|name| name.len() == 24) {
        fs::remove_file(stopped.wal().join(name)).unwrap();
    }
    let error = crate::error::report(&stopped.branch(90).unwrap_err());
    assert!(error.contains("does not have the last checkpoint"), "{error}");
    // Then it is not known whether it was promoted; where there is no database, it was not.
    assert!(stopped.settle(90).is_err());
    fs::rename(&stopped.data, lab.data("away")).unwrap();
    assert_eq!(stopped.settle(90).unwrap(), None);
}

#[test]
fn no_two_members_draw_the_same_number() {
    let mut given = std::collections::BTreeMap::new();
    for newest in 1..200 {
        for own in 0..9 {
            let number = drawn(newest, own);
            assert!((newest + GAP..newest + GAP + MEMBERS).contains(&number));
            assert_eq!(*given.entry(number).or_insert(own), own);
        }
    }
}
