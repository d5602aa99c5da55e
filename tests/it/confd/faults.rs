//! What goes wrong, on real etcd processes: the file is never empty or half written, and becomes right again.

use super::{
    Confd, MEMBERS, Sentinel,
    etcd::{Cluster, Tls, as_strs},
    relay::Relay,
    wait_for,
};
use crate::testing::{require, require_root};
use pgha_image::etcd::{Client, RangeRequest};
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How soon after the store's recovery the file must be right.
const RECOVERY: Duration = Duration::from_secs(10);

fn put_members(client: &Client, count: usize) {
    for number in 1..=count {
        client.put(&format!("/members/pg-{number}"), format!("10.0.0.{number}"), 0).unwrap();
    }
}

fn confd(flags: &[String]) -> Confd {
    Confd::new(&as_strs(flags)).resource("members", MEMBERS, "[\"/members\"]", "")
}

fn count(text: &str) -> usize {
    text.matches("server ").count()
}

/// Waits until the file is right; that must not take longer than the recovery may.
fn becomes_right(confd: &Confd, is_right: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    confd.wait("members", is_right);
    assert!(begun.elapsed() < RECOVERY, "it took {:?}", begun.elapsed());
}

#[test]
fn a_member_cut_off_from_its_quorum_is_left() {
    let Some(cluster) = Cluster::start(3) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    // A follower is the stale one; confd knows all members and begins at any.
    let stale = (cluster.leader() + 1) % 3;
    let mut flags = cluster.flags();
    flags.truncate(2);
    flags.extend(["-node".to_owned(), cluster.url(stale)]);
    let confd = confd(&flags);
    let only_stale = confd.start();
    confd.wait("members", |text| count(text) == 2);
    drop(only_stale);
    // Now with all members, while the stale one is cut off: whichever is asked first.
    let all = Confd::new(&as_strs(&cluster.flags())).resource("members", MEMBERS, "[\"/members\"]", "");
    let running: Vec<_> = (0..3).map(|_| all.start()).collect();
    all.wait("members", |text| count(text) == 2);
    let sentinel = Sentinel::watch(&all.out("members"));
    cluster.isolate(stale);
    let majority = Client::new(pgha_image::etcd::Settings::new(
        (0..3).filter(|number| *number != stale).map(|number| cluster.url(number)),
    ))
    .unwrap();
    wait_for("the majority to write", || majority.put("/members/pg-3", "10.0.0.3", 0).is_ok());
    becomes_right(&all, |text| count(text) == 3);
    majority.delete(&RangeRequest::key("/members/pg-1")).unwrap();
    becomes_right(&all, |text| count(text) == 2);
    cluster.heal();
    put_members(&majority, 4);
    becomes_right(&all, |text| count(text) == 4);
    sentinel.end();
    drop(running);
}

#[test]
fn a_frozen_member_is_left() {
    let Some(cluster) = Cluster::start(3) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    let confd = confd(&cluster.flags());
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 2);
    let sentinel = Sentinel::watch(&confd.out("members"));
    for number in 0..3 {
        cluster.freeze(number);
        let others = (0..3).filter(|other| *other != number).map(|other| cluster.url(other));
        let others = Client::new(pgha_image::etcd::Settings::new(others)).unwrap();
        let key = format!("/members/frozen-{number}");
        wait_for("the others to write", || others.put(&key, "10.0.1.1", 0).is_ok());
        becomes_right(&confd, |text| text.contains(&format!("frozen-{number}")));
        cluster.thaw(number);
    }
    sentinel.end();
}

#[test]
fn the_leaders_death_is_survived() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    let confd = confd(&cluster.flags());
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 2);
    let sentinel = Sentinel::watch(&confd.out("members"));
    let leader = cluster.leader();
    cluster.kill(leader);
    wait_for("a new leader", || client.put("/members/pg-3", "10.0.0.3", 0).is_ok());
    becomes_right(&confd, |text| count(text) == 3);
    cluster.launch(leader);
    put_members(&client, 4);
    becomes_right(&confd, |text| count(text) == 4);
    sentinel.end();
}

#[test]
fn a_store_that_was_wiped_empties_nothing() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    put_members(&client, 3);
    let confd = confd(&cluster.flags());
    let running = confd.start();
    confd.wait("members", |text| count(text) == 3);
    let sentinel = Sentinel::watch(&confd.out("members"));
    cluster.kill(0);
    fs::remove_dir_all(cluster.data(0)).unwrap();
    cluster.launch(0);
    wait_for("the new store", || client.get("x").is_ok());
    running.wait_log("another or an older store");
    assert_eq!(count(&confd.read("members")), 3);
    // Long after the hold time, and after a restart of confd, it is still as it was.
    thread::sleep(Duration::from_secs(6));
    drop(running);
    let _running = confd.start();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(count(&confd.read("members")), 3);
    put_members(&client, 1);
    client.put("/members/pg-7", "10.0.0.7", 0).unwrap();
    becomes_right(&confd, |text| count(text) == 2 && text.contains("pg-7"));
    sentinel.end();
}

#[test]
fn compaction_while_cut_off_is_survived() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    let relay = Relay::to(cluster.members[0].client_port);
    let confd = confd(&["-backend=etcdv3".into(), format!("-node=http://127.0.0.1:{}", relay.port)]);
    let running = confd.start();
    confd.wait("members", |text| count(text) == 2);
    let sentinel = Sentinel::watch(&confd.out("members"));
    relay.cut();
    running.wait_log("trying again");
    put_members(&client, 3);
    client.delete(&RangeRequest::key("/members/pg-1")).unwrap();
    let now = client.put("/members/pg-2", "10.0.0.22", 0).unwrap();
    client.compact(now).unwrap();
    relay.heal();
    becomes_right(&confd, |text| text.contains("10.0.0.22") && text.contains("pg-3") && !text.contains("pg-1"));
    sentinel.end();
}

#[test]
fn a_token_that_expires_is_renewed() {
    let Some(cluster) = Cluster::start_with(1, Some(Tls::new()), &["--auth-token-ttl", "1"]) else { return };
    let (root, _) = cluster.protect();
    put_members(&root, 1);
    let mut flags = cluster.flags();
    flags.extend(["-username=confd", "-password=confd", "-basic-auth", "-interval=1"].map(str::to_owned));
    let confd = confd(&flags);
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 1);
    let sentinel = Sentinel::watch(&confd.out("members"));
    for number in 2..=3 {
        thread::sleep(Duration::from_millis(2500));
        put_members(&root, number);
        becomes_right(&confd, |text| count(text) == number);
    }
    sentinel.end();
}

#[test]
fn new_certificates_are_taken_up_without_a_restart() {
    let Some(mut cluster) = Cluster::start_with(1, Some(Tls::new()), &[]) else { return };
    put_members(&cluster.client(), 1);
    let confd = confd(&cluster.flags());
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 1);
    let sentinel = Sentinel::watch(&confd.out("members"));
    // Even the authority is another one.
    cluster.tls().renew();
    cluster.kill(0);
    cluster.launch(0);
    let client = cluster.client();
    wait_for("etcd with its new certificate", || client.put("/members/pg-2", "10.0.0.2", 0).is_ok());
    becomes_right(&confd, |text| count(text) == 2);
    sentinel.end();
}

#[test]
fn leases_that_end_together_empty_nothing() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let register = || {
        for number in 1..=3 {
            let lease = client.lease_grant(60).unwrap();
            client.put(&format!("/members/pg-{number}"), format!("10.0.0.{number}"), lease.id).unwrap();
        }
    };
    register();
    let confd = Confd::new(&as_strs(&cluster.flags())).resource("members", MEMBERS, "[\"/members\"]", "min_items = 1");
    let running = confd.start();
    confd.wait("members", |text| count(text) == 3);
    let sentinel = Sentinel::watch(&confd.out("members"));
    for kv in client.range(&RangeRequest::prefix("/members/")).unwrap().kvs {
        client.lease_revoke(kv.lease).unwrap();
    }
    running.wait_log("min_items = 1");
    thread::sleep(Duration::from_secs(1));
    register();
    client.put("/members/pg-4", "10.0.0.4", 0).unwrap();
    becomes_right(&confd, |text| count(text) == 4);
    sentinel.end();
}

#[test]
fn an_empty_set_without_a_minimum_must_last_before_it_counts() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    let confd = confd(&cluster.flags()).flag("-shrink-hold=2s");
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 2);
    let before = Instant::now();
    client.delete(&RangeRequest::prefix("/members/")).unwrap();
    confd.wait("members", |text| text == "# begin\n# end\n");
    assert!(before.elapsed() >= Duration::from_millis(1900), "{:?}", before.elapsed());
}

#[test]
fn a_full_disk_leaves_the_file_and_is_waited_out() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        Command::new("mount").args(arguments).arg(folder.path()).status().is_ok_and(|status| status.success())
    };
    let is_mounted = || mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
    if !require_root() || !require("mounts", is_mounted(), "no file system can be mounted") {
        return;
    }
    let _unmount = Unmount(folder.path());
    let confd = Confd::new(&["-backend", "file"]);
    let keys = confd.path("keys.yaml").display().to_string();
    confd.write("keys.yaml", "members: {pg-1: 10.0.0.1}\n");
    let dest = folder.path().join("members");
    confd.add_resource("members", MEMBERS, "[\"/members\"]", "");
    let text = fs::read_to_string(confd.path("conf.d/members.toml")).unwrap();
    confd.write(
        "conf.d/members.toml",
        &text.replace(&confd.out("members").display().to_string(), &dest.display().to_string()),
    );
    let confd = confd.flag("-file").flag(&keys);
    let running = confd.start();
    wait_for("the file", || dest.exists());
    let sentinel = Sentinel::watch(&dest);
    fs::write(folder.path().join("filler"), vec![0; 1 << 20]).unwrap_err();
    let big: String = (0..200).map(|number| format!("  pg-{number}: 10.0.0.{number}\n")).collect();
    confd.write("keys.yaml", &format!("members:\n{big}"));
    running.wait_log("No space left");
    assert_eq!(count(&fs::read_to_string(&dest).unwrap()), 1);
    fs::remove_file(folder.path().join("filler")).unwrap();
    wait_for("the file to become right", || count(&fs::read_to_string(&dest).unwrap()) == 200);
    sentinel.end();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no staged file is left");
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_file_that_was_there_before_is_not_emptied_at_once() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let confd = confd(&cluster.flags()).flag("-shrink-hold=4s");
    let old = "# begin\nserver old 10.0.0.9\n# end\n";
    fs::write(confd.out("members"), old).unwrap();
    let sentinel = Sentinel::watch(&confd.out("members"));
    // Nobody remembers what it was rendered from, and no member has registered yet.
    let running = confd.start();
    running.wait_log("instead of an unknown number");
    assert_eq!(confd.read("members"), old);
    put_members(&client, 3);
    becomes_right(&confd, |text| count(text) == 3 && !text.contains("old"));
    drop(running);
    // The same after a boot at which the members come back one after the other.
    client.delete(&RangeRequest::prefix("/members/")).unwrap();
    let running = confd.start();
    running.wait_log("0 items instead of 3");
    put_members(&client, 1);
    running.wait_log("1 items instead of 3");
    assert_eq!(count(&confd.read("members")), 3);
    put_members(&client, 3);
    client.put("/members/pg-3", "10.0.0.33", 0).unwrap();
    becomes_right(&confd, |text| count(text) == 3 && text.contains("10.0.0.33"));
    sentinel.end();
}

#[test]
fn the_last_good_file_is_there_before_the_store_answers() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    put_members(&cluster.client(), 2);
    let confd = confd(&cluster.flags());
    confd.once_well();
    let good = confd.read("members");
    cluster.kill(0);
    fs::remove_file(confd.out("members")).unwrap();
    let _running = confd.start();
    confd.wait("members", |text| text == good);
    let sentinel = Sentinel::watch(&confd.out("members"));
    cluster.launch(0);
    let client = cluster.client();
    wait_for("etcd", || client.put("/members/pg-3", "10.0.0.3", 0).is_ok());
    becomes_right(&confd, |text| count(text) == 3);
    sentinel.end();
}

#[test]
fn a_storm_of_changes_ends_with_the_last_one() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    put_members(&client, 2);
    let confd = confd(&cluster.flags());
    let _running = confd.start();
    confd.wait("members", |text| count(text) == 2);
    let sentinel = Sentinel::watch(&confd.out("members"));
    for number in 0..500 {
        client.put("/members/pg-1", format!("10.0.9.{number}"), 0).unwrap();
    }
    becomes_right(&confd, |text| text.contains("10.0.9.499"));
    sentinel.end();
}
