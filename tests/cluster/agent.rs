//! What the agent on each node mends by itself, and what it leaves alone.

use crate::{
    Scenario,
    safety::{Ledger, etcdctl, etcdctl_command, says, wait_says},
    support::{Ran, wait},
    test_cluster::{NAME, NODES, TestCluster},
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Where a node has its document.
const DOCUMENT: &str = "/etc/pgha/cluster.yaml";
/// etcd's quota where it is to be used up soon, in bytes.
const SMALL_QUOTA: u64 = 24 << 20;

/// The scenarios, which run when they are asked for.
pub fn all() -> Vec<Scenario> {
    let asked = |name, run| Scenario { name, ignored: true, run };
    vec![
        asked("a_replica_that_missed_wal_is_cloned_anew_by_itself", missed_wal),
        asked("a_clone_in_place_that_is_cut_off_is_made_again", clone_cut_off),
        asked("etcd_that_is_out_of_space_takes_writes_again_by_itself", out_of_space),
        asked("a_member_that_was_removed_from_etcd_comes_back_by_itself", removed_member),
        asked("an_older_document_removes_nobody", older_document),
        asked("a_member_that_the_newest_document_does_not_name_goes_after_long_silence", unnamed_member),
        asked("a_deleted_initialize_key_is_written_back_while_nobody_leads", deleted_key),
        asked("a_full_disk_closes_the_database_and_opens_it_again", full_disk),
    ]
}

/// What the server of a node answers to its superuser.
fn sql(cluster: &TestCluster, node: &str, query: &str) -> String {
    cluster.on(node, &format!("runuser -u postgres -- psql -XAtq -c \"{query}\"")).trim().to_owned()
}

/// The name of a replica.
fn replica(cluster: &TestCluster) -> String {
    cluster.status().nodes.into_iter().find(|node| node.role == "replica").unwrap().name
}

/// Patroni removes the old data before it copies: whatever is left of them is never started.
fn clone_cut_off(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    for cut_after in [200, 600, 1500, 4000] {
        let node = replica(cluster);
        cluster.on(&node, "pgha-node reclone --in-place --yes </dev/null >/root/said 2>&1 &");
        thread::sleep(Duration::from_millis(cut_after));
        cluster.verb("kill", &[&node]);
        cluster.verb("start", &[&node]);
        cluster.wait_healthy();
        ledger.assert_kept(cluster);
        let found = cluster.on(&node, "ls -d /var/lib/pgha/begun.json /var/lib/postgresql/*/main.aside-* 2>&1; true");
        let said = cluster.on(&node, "cat /root/said");
        println!("    cut off after {cut_after} ms: {} {}", said.trim(), found.trim().replace('\n', ", "));
        cluster.on(&node, "rm -rf /var/lib/postgresql/*/main.aside-*");
    }
}

fn missed_wal(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let (primary, lost) = (cluster.primary(), replica(cluster));
    for setting in ["max_slot_wal_keep_size = '64MB'", "wal_keep_size = 0", "max_wal_size = '64MB'"] {
        sql(cluster, &primary, &format!("alter system set {setting}"));
    }
    sql(cluster, &primary, "select pg_reload_conf()");
    cluster.verb("kill", &[&lost]);
    let slot = lost.replace('-', "_");
    wait("the replica's slot to be lost", cluster.patience(Duration::from_secs(120)), || {
        sql(
            cluster,
            &primary,
            "select pg_logical_emit_message(true, 'x', repeat('y', 1000000)) from generate_series(1, 64)",
        );
        sql(cluster, &primary, "select pg_switch_wal()");
        sql(cluster, &primary, "checkpoint");
        let status =
            sql(cluster, &primary, &format!("select wal_status from pg_replication_slots where slot_name = '{slot}'"));
        if status == "lost" { Ok(()) } else { Err(status) }
    });
    let began = Instant::now();
    cluster.verb("start", &[&lost]);
    wait_says(cluster, &lost, "this replica", Duration::from_secs(150));
    println!("    told after {:.0} s:\n{}", began.elapsed().as_secs_f64(), says(cluster, &lost));
    let status = cluster.try_on(&lost, "pgha-node status");
    assert_eq!(status.status, Some(1), "a replica that does not stream is not well: {}", status.stdout);
    cluster.wait_healthy();
    println!("    streams again after {:.0} s:\n{}", began.elapsed().as_secs_f64(), says(cluster, &lost));
    ledger.assert_kept(cluster);
    let asides = cluster.on(&lost, "ls -d /var/lib/postgresql/*/main.aside-*");
    assert!(asides.contains("-wal-gone") || asides.contains("-slot-lost"), "{asides}");
    let status = sql(
        cluster,
        &primary,
        &format!("select active, wal_status from pg_replication_slots where slot_name = '{slot}'"),
    );
    assert!(status.starts_with("t|") && !status.ends_with("lost"), "{status}");
    for node in [&primary, &lost] {
        sql(cluster, node, "alter system reset all");
        sql(cluster, node, "select pg_reload_conf()");
    }
    cluster.on(&lost, "pgha-node aside list");
    cluster.on(&lost, "rm -r /var/lib/postgresql/*/main.aside-*");
}

/// The names of etcd's members, as the member on `node` lists them.
fn members(cluster: &TestCluster, node: &str) -> Vec<String> {
    let listed = etcdctl(cluster, node, "member list");
    let mut names: Vec<String> =
        listed.stdout.lines().filter_map(|line| line.split(", ").nth(2)).map(str::to_owned).collect();
    names.sort();
    names
}

/// The id of the member on `node`.
fn member_id(cluster: &TestCluster, node: &str) -> String {
    let listed = etcdctl(cluster, node, "member list").stdout;
    let line = listed.lines().find(|line| line.split(", ").nth(2) == Some(node)).unwrap_or_else(|| panic!("{listed}"));
    line.split(", ").next().unwrap().to_owned()
}

fn restart_etcd_with_quota(cluster: &TestCluster, quota: u64) {
    for node in NODES {
        cluster.on(
            node,
            &format!(
                "sed -i 's/^quota-backend-bytes: .*/quota-backend-bytes: {quota}/' /etc/etcd/etcd.yaml && \
                 grep -q 'quota-backend-bytes: {quota}' /etc/etcd/etcd.yaml && systemctl restart etcd"
            ),
        );
        cluster.wait_healthy();
    }
}

fn out_of_space(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let primary = cluster.primary();
    restart_etcd_with_quota(cluster, SMALL_QUOTA);
    let fill = "head -c 1000000 /dev/zero | tr '\\0' x";
    wait("etcd's space to be used up", cluster.patience(Duration::from_secs(60)), || {
        let put = cluster.try_on(&primary, &format!("{fill} | {}", etcdctl_command("put /history")));
        if put.stderr.contains("space exceeded") { Ok(()) } else { Err(format!("{put:?}")) }
    });
    let began = Instant::now();
    let status = cluster.try_on(&primary, "pgha-node status");
    assert!(status.stdout.contains("alarm NOSPACE"), "{}", status.stdout);
    assert_eq!(status.status, Some(1), "{}", status.stdout);
    println!("{}", status.stdout);
    // The primary goes on meanwhile.
    cluster.door(5000).ask("insert into ledger select -1; delete from ledger where id = -1").unwrap();
    wait("etcd to take writes", cluster.patience(Duration::from_secs(120)), || {
        let put = etcdctl(cluster, &primary, "put /again 1");
        if put.status == Some(0) { Ok(()) } else { Err(says(cluster, &primary)) }
    });
    println!("    takes writes again after {:.0} s", began.elapsed().as_secs_f64());
    wait("the nodes to be well again", cluster.patience(Duration::from_secs(120)), || {
        for node in NODES {
            let status = cluster.try_on(node, "pgha-node status");
            if status.status != Some(0) || status.stdout.contains("NOSPACE") {
                return Err(format!("{node}: {}", status.stdout));
            }
        }
        Ok(())
    });
    println!("    all is well after {:.0} s", began.elapsed().as_secs_f64());
    assert_eq!(cluster.primary(), primary, "nobody had to take over");
    for key in ["/history", "/again"] {
        etcdctl(cluster, &primary, &format!("del {key}"));
    }
    restart_etcd_with_quota(cluster, 1 << 30);
    ledger.assert_kept(cluster);
}

fn removed_member(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let (primary, lost) = (cluster.primary(), replica(cluster));
    // Once it sees that it is removed, once it does not.
    for stalled in [false, true] {
        let id = member_id(cluster, &lost);
        if stalled {
            cluster.on(&lost, "systemctl kill --signal STOP etcd");
        }
        let began = Instant::now();
        wait("the member to be removed", cluster.patience(Duration::from_secs(30)), || {
            let removed = etcdctl(cluster, &primary, &format!("member remove {id}"));
            if removed.status == Some(0) { Ok(()) } else { Err(removed.stderr) }
        });
        if stalled {
            thread::sleep(Duration::from_secs(5));
            cluster.on(&lost, "systemctl kill --signal CONT etcd");
        }
        wait("the member to be back", cluster.patience(Duration::from_secs(120)), || {
            let names = members(cluster, &primary);
            if names == NODES { Ok(()) } else { Err(format!("{names:?}\n{}", says(cluster, &lost))) }
        });
        println!("    back after {:.0} s", began.elapsed().as_secs_f64());
        assert_ne!(member_id(cluster, &lost), id, "it is a new member");
        cluster.wait_healthy();
        ledger.assert_kept(cluster);
    }
}

fn older_document(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let newest = cluster.on("pg-1", &format!("cat {DOCUMENT}"));
    let smaller = without_third(cluster, "pg-1");
    let give = |document: &str, init: &str| give(cluster, "pg-1", document, init);
    let stall = |during: &dyn Fn()| {
        cluster.on("pg-3", "systemctl kill --signal STOP etcd");
        during();
        thread::sleep(Duration::from_secs(10));
        cluster.on("pg-3", "systemctl kill --signal CONT etcd");
        assert_eq!(members(cluster, "pg-2"), NODES, "nobody is removed");
    };

    // One that nobody has seen, and that would remove somebody.
    let given = give(&smaller, "pgha-node init");
    assert_eq!(given.status, Some(0), "{given:?}");
    wait_says(cluster, "pg-1", "is not one that the cluster has seen", Duration::from_secs(60));
    stall(&|| ());
    let given = give(&newest, "pgha-node init");
    assert_eq!(given.status, Some(0), "{given:?}");

    // One that was followed by another.
    for document in [&smaller, &newest] {
        let given = give(document, "pgha-node init --changed");
        assert_eq!(given.status, Some(0), "{given:?}");
    }
    let refused = give(&smaller, "pgha-node init; echo \"status $?\"");
    assert!(refused.stdout.ends_with("status 78\n"), "{refused:?}");
    let said = says(cluster, "pg-1");
    assert!(said.contains("it is not taken up") && said.contains("pgha-node init --changed"), "{said}");
    println!("{said}");
    // It boots with it all the same: it may be the only one that it has.
    cluster.verb("kill", &["pg-1"]);
    stall(&|| {
        cluster.verb("start", &["pg-1"]);
        wait_says(cluster, "pg-1", "this node's document is generation", Duration::from_secs(90));
    });
    println!("{}", says(cluster, "pg-1"));
    let given = give(&newest, "pgha-node init");
    assert_eq!(given.status, Some(0), "{given:?}");
    cluster.wait_healthy();
    assert_eq!(members(cluster, "pg-2"), NODES);
    ledger.assert_kept(cluster);
    let key = etcdctl(cluster, "pg-2", &format!("get --print-value-only /pgha/{NAME}/document"));
    println!("    {}", key.stdout.trim());
}

/// The document that a node has, without pg-3.
fn without_third(cluster: &TestCluster, node: &str) -> String {
    let document = cluster.on(node, &format!("cat {DOCUMENT}"));
    let smaller: String =
        document.lines().filter(|line| !line.contains("name: pg-3")).map(|line| format!("{line}\n")).collect();
    assert_ne!(smaller, document);
    smaller
}

/// Gives a node a document, and runs `init`.
fn give(cluster: &TestCluster, node: &str, document: &str, init: &str) -> Ran {
    cluster.feed(node, &format!("cat > {DOCUMENT}.new && mv {DOCUMENT}.new {DOCUMENT}"), document);
    cluster.try_on(node, init)
}

fn unnamed_member(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    if cluster.primary() == "pg-3" {
        cluster.verb("switchover", &["--to", "pg-1"]);
        cluster.wait_healthy();
    }
    cluster.verb("kill", &["pg-3"]);
    let smaller = without_third(cluster, "pg-1");
    for node in ["pg-1", "pg-2"] {
        let given = give(cluster, node, &smaller, "pgha-node init --changed");
        assert_eq!(given.status, Some(0), "{given:?}");
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(270) {
        assert_eq!(members(cluster, "pg-1"), NODES, "after {:?}", began.elapsed());
        thread::sleep(Duration::from_secs(10));
    }
    println!("{}", says(cluster, "pg-1"));
    wait("the member to be removed", cluster.patience(Duration::from_secs(120)), || {
        let names = members(cluster, "pg-1");
        if names == NODES[..2] { Ok(()) } else { Err(format!("{names:?}\n{}", says(cluster, "pg-1"))) }
    });
    println!("    removed after {:.0} s", began.elapsed().as_secs_f64());
    let door = cluster.door(5000);
    let rows = wait("the ledger to be read", cluster.patience(Duration::from_secs(60)), || {
        door.ask("select count(*) from ledger")
    });
    assert_eq!(rows, ledger.rows().to_string());
    cluster.start_afresh();
}

fn deleted_key(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    for node in NODES {
        cluster.on(node, "systemctl stop patroni");
    }
    let key = |name: &str| etcdctl(cluster, "pg-1", &format!("get --print-value-only /service/{NAME}/{name}")).stdout;
    wait("the leader's key to be gone", cluster.patience(Duration::from_secs(60)), || {
        let leader = key("leader");
        if leader.trim().is_empty() { Ok(()) } else { Err(leader) }
    });
    let before = key("initialize");
    assert!(before.trim().len() > 10, "{before}");
    let began = Instant::now();
    etcdctl(cluster, "pg-1", &format!("del /service/{NAME}/initialize"));
    wait("the key to be written back", cluster.patience(Duration::from_secs(30)), || {
        let now = key("initialize");
        if now == before { Ok(()) } else { Err(now) }
    });
    println!("    written back after {:.1} s", began.elapsed().as_secs_f64());
    for node in NODES {
        cluster.on(node, "systemctl start patroni");
    }
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

/// How large the databases' volumes are where they are to be filled, in MiB.
const SMALL_DISK: u64 = 1200;

/// Moves a node's databases to a small volume of their own. It is gone when the node is off.
fn make_small(cluster: &TestCluster, node: &str) {
    cluster.on(
        node,
        &format!(
            "systemctl stop patroni && mkdir -p /mnt/small && mount -t tmpfs -o size={SMALL_DISK}m,mode=0755 small /mnt/small && \
             cp -a /var/lib/postgresql/. /mnt/small/ && chown --reference /var/lib/postgresql /mnt/small && \
             mount --move /mnt/small /var/lib/postgresql && systemctl start patroni"
        ),
    );
    cluster.wait_healthy();
}

/// Fills a node's volume to `percent` of it.
fn fill(cluster: &TestCluster, node: &str, percent: u64) {
    cluster.on(
        node,
        &format!(
            "cd /var/lib/postgresql && rm -f filler && used=$(df -m --output=used . | tail -n 1) && \
             fallocate -l $(({SMALL_DISK} * {percent} / 100 - used))M filler && df -h ."
        ),
    );
}

fn full_disk(cluster: &mut TestCluster) {
    if !cluster.is_fast() {
        println!("    skipped: the volumes of machines are not changed here");
        return;
    }
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    for node in NODES {
        make_small(cluster, node);
    }

    // A replica has room: it takes over.
    let first = cluster.primary();
    fill(cluster, &first, 92);
    let began = Instant::now();
    wait("a replica with room to take over", cluster.patience(Duration::from_secs(90)), || {
        let primary = cluster.status().nodes.into_iter().find(|node| node.role == "primary").map(|node| node.name);
        if primary.as_ref().is_some_and(|name| *name != first) { Ok(()) } else { Err(says(cluster, &first)) }
    });
    println!("    handed over after {:.0} s", began.elapsed().as_secs_f64());
    println!("{}", says(cluster, &first));
    cluster.on(&first, "rm /var/lib/postgresql/filler");
    cluster.wait_healthy();
    ledger.assert_kept(cluster);

    // Nobody has room: the database is read-only, and says why.
    let primary = cluster.primary();
    for node in NODES.into_iter().filter(|node| *node != primary) {
        fill(cluster, node, 85);
        wait_says(cluster, node, "% full", Duration::from_secs(30));
    }
    let door = cluster.door(5000);
    fill(cluster, &primary, 96);
    let began = Instant::now();
    let insert = "insert into ledger values (-1)";
    let refused =
        wait("the database to be read-only", cluster.patience(Duration::from_secs(90)), || match door.ask(insert) {
            Err(error) if error.contains("read-only transaction") => Ok(error),
            other => Err(format!("{other:?}: {}", says(cluster, &primary))),
        });
    println!("    read-only after {:.0} s: {refused}", began.elapsed().as_secs_f64());
    assert_eq!(cluster.primary(), primary);
    assert!(door.ask("select count(*) from ledger").is_ok(), "it is read all the same");
    wait_says(cluster, &primary, "the database is read-only", Duration::from_secs(30));
    let status = cluster.try_on(&primary, "pgha-node status");
    assert_eq!(status.status, Some(1), "{}", status.stdout);
    println!("{}", status.stdout);
    sql(cluster, &primary, "create table mended (); drop table mended");
    cluster.on(&primary, "rm /var/lib/postgresql/filler");
    let began = Instant::now();
    wait("the database to be open", cluster.patience(Duration::from_secs(90)), || door.ask(insert));
    println!("    open again after {:.0} s", began.elapsed().as_secs_f64());
    door.ask("delete from ledger where id = -1").unwrap();
    for node in NODES {
        cluster.on(node, "rm -f /var/lib/postgresql/filler");
    }
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
    cluster.start_afresh();
}
