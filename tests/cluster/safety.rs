//! What people and broken machines do to a cluster's data, and that none of it is lost, forked or forgotten.
//!
//! Every scenario has a ledger: the rows that the cluster acknowledged before, which must all be there afterwards.

use crate::{
    Scenario,
    support::{Ran, wait},
    test_cluster::{NAME, NODES, TestCluster},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// The scenarios that always run, and those that run when they are asked for.
pub fn all() -> Vec<Scenario> {
    let always = |name, run| Scenario { name, ignored: false, run };
    let asked = |name, run| Scenario { name, ignored: true, run };
    vec![
        always("two_empty_nodes_never_form_a_cluster_beside_the_one_with_the_data", two_replaced),
        always("an_emptied_initialize_key_costs_nothing", emptied_key),
        always("a_file_that_cannot_be_read_is_not_an_absent_file", unreadable_control_file),
        always("nodes_whose_volumes_are_missing_wait_for_them", missing_volumes),
        always("halves_with_different_documents_form_one_cluster_at_most", different_documents),
        asked("two_empty_nodes_wait_however_late_the_third_comes", two_replaced_at_many_moments),
        asked("the_last_good_copy_is_not_taken_away", last_copy),
        asked("a_machine_that_is_late_by_two_minutes_is_waited_for", two_minutes_late),
    ]
}

/// Rows that were acknowledged.
pub struct Ledger {
    rows: u64,
    system: String,
}

impl Ledger {
    /// Writes rows through HAProxy and remembers whose database has them.
    pub fn write(cluster: &TestCluster) -> Ledger {
        let rows = 1000;
        cluster
            .door(5000)
            .ask(&format!(
                "drop table if exists ledger; create table ledger as select generate_series(1, {rows}) as id"
            ))
            .unwrap();
        Ledger { rows, system: system(cluster, "pg-1") }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes `count` rows more, as soon as HAProxy has a primary.
    pub fn add(&mut self, cluster: &TestCluster, count: u64) {
        let door = cluster.door(5000);
        let (from, to) = (self.rows + 1, self.rows + count);
        // A statement whose answer was lost may have been done.
        let add = format!(
            "insert into ledger select id from generate_series({from}, {to}) id \
             where not exists (select from ledger where id >= {from})"
        );
        wait("HAProxy to have a primary", cluster.patience(Duration::from_secs(120)), || door.ask(&add));
        self.rows = to;
    }

    /// Every row is there, and the database is the same one on every node.
    pub fn assert_kept(&self, cluster: &TestCluster) {
        let door = cluster.door(5000);
        let seen = wait("the ledger to be read", cluster.patience(Duration::from_secs(60)), || {
            door.ask("select count(*), coalesce(sum(id), 0) from ledger")
        });
        assert_eq!(seen, format!("{}|{}", self.rows, self.rows * (self.rows + 1) / 2));
        for node in NODES {
            assert_eq!(system(cluster, node), self.system, "{node}");
        }
    }
}

/// The system identifier of a node's database; empty where there is none.
pub fn system(cluster: &TestCluster, node: &str) -> String {
    let script = "/usr/lib/postgresql/*/bin/pg_controldata -D /var/lib/postgresql/*/main 2>/dev/null \
                  | sed -n 's/^Database system identifier: *//p'; true";
    cluster.on(node, script).trim().to_owned()
}

/// How a node says that it stands: phase, step and reason in a line each.
pub fn says(cluster: &TestCluster, node: &str) -> String {
    cluster.try_on(node, "pgha-node status").stdout
}

/// Waits until a node says something.
pub fn wait_says(cluster: &TestCluster, node: &str, words: &str, within: Duration) {
    wait(&format!("{node} to say `{words}`"), cluster.patience(within), || {
        let said = says(cluster, node);
        if said.contains(words) { Ok(()) } else { Err(said) }
    });
}

/// Neither of `nodes` has a database or a member of etcd that runs, now and for a while.
pub fn assert_idle(cluster: &TestCluster, nodes: &[&str], during: Duration) {
    let until = Instant::now() + during;
    loop {
        for node in nodes {
            let found = cluster
                .on(node, "ls -d /var/lib/postgresql/*/main/PG_VERSION /var/lib/etcd/default/member 2>/dev/null; true");
            assert_eq!(found.trim(), "", "{node} has begun something of its own: {}", says(cluster, node));
        }
        if Instant::now() > until {
            return;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Two nodes get empty disks while the third, with the data, is off; it comes back after `late`.
fn replace_two(cluster: &mut TestCluster, late: Duration) {
    cluster.verb("kill", &NODES);
    cluster.verb("replace", &["pg-2", "--force"]);
    cluster.verb("replace", &["pg-3", "--force"]);
    thread::sleep(late);
    cluster.verb("start", &["pg-1"]);
    assert_idle(cluster, &["pg-2", "pg-3"], Duration::from_secs(15));
}

/// Two nodes get empty disks while the third is off, which comes back after each of these times, in seconds.
fn replace_two_while_off(cluster: &mut TestCluster, ledger: &Ledger, delays: &[u64]) {
    for late in delays {
        replace_two(cluster, Duration::from_secs(*late));
        assert_eq!(system(cluster, "pg-1"), ledger.system, "late by {late} s: {}", says(cluster, "pg-1"));
    }
}

fn two_replaced_at_many_moments(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    replace_two_while_off(cluster, &ledger, &[3, 12, 16, 18, 20, 22, 25, 40]);
    // A person says that it is enough.
    cluster.on("pg-1", "pgha-node recover --from-this-node --yes");
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

fn two_replaced(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    replace_two_while_off(cluster, &ledger, &[3, 20]);
    // Cut off.
    cluster.verb("partition", &["pg-1"]);
    cluster.verb("kill", &["pg-2", "pg-3"]);
    cluster.verb("replace", &["pg-2", "--force"]);
    cluster.verb("replace", &["pg-3", "--force"]);
    assert_idle(cluster, &["pg-2", "pg-3"], Duration::from_secs(20));
    cluster.verb("heal", &[]);
    assert_idle(cluster, &["pg-2", "pg-3"], Duration::from_secs(10));
    assert_eq!(system(cluster, "pg-1"), ledger.system, "{}", says(cluster, "pg-1"));
    println!("    an empty node beside the survivor:\n{}", says(cluster, "pg-2"));
    // A majority is lost for good.
    cluster.start_afresh();
}

/// One replica is off, the other does not run: the primary's copy is the only one that is known to be good.
fn last_copy(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let primary = cluster.primary();
    let replicas: Vec<&str> = NODES.into_iter().filter(|node| *node != primary).collect();
    cluster.verb("kill", &[replicas[0]]);
    cluster.on(replicas[1], "systemctl stop patroni");
    let smaller = cluster.folder().join("smaller.yaml");
    let whole = fs::read_to_string(cluster.document(3)).unwrap();
    let named = format!("name: {primary},");
    let rest: String = whole.lines().filter(|line| !line.contains(&named)).map(|line| format!("{line}\n")).collect();
    assert_ne!(rest, whole);
    fs::write(&smaller, rest).unwrap();
    let verb = |arguments: &[&str]| Ran::of(cluster.program().arg("cluster").args(arguments));
    for refused in [
        cluster.try_on(&primary, "pgha-node leave --yes"),
        verb(&["replace", NAME, &primary, "--within", "15s"]),
        verb(&["update", NAME, smaller.to_str().unwrap(), "--within", "15s"]),
    ] {
        assert!(!matches!(refused.status, Some(0)), "{refused:?}");
        assert!(refused.stderr.contains("--force"), "it says how to insist: {refused:?}");
        println!("{}", refused.stderr.trim_end());
    }
    assert_eq!(system(cluster, &primary), ledger.system, "{}", says(cluster, &primary));
    cluster.door(5000).ask("select 1").unwrap();
    cluster.on(replicas[1], "systemctl start patroni");
    cluster.verb("start", &[replicas[0]]);
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

/// etcdctl on a node, as the cluster's own programs speak to etcd.
pub fn etcdctl(cluster: &TestCluster, node: &str, arguments: &str) -> Ran {
    cluster.try_on(node, &etcdctl_command(arguments))
}

/// The same as a part of a longer command.
pub fn etcdctl_command(arguments: &str) -> String {
    format!(
        "ETCDCTL_API=3 etcdctl --cacert /etc/pgha/tls/ca.crt --cert /etc/pgha/tls/client.pem \
         --key /etc/pgha/tls/client.pem --endpoints https://$(hostname -I | cut -d' ' -f1):2379 {arguments}"
    )
}

fn emptied_key(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    for node in NODES {
        // A stopped leader does not write it again before the node comes back.
        let emptied = etcdctl(cluster, "pg-1", &format!("put /service/{NAME}/initialize ''"));
        assert_eq!(emptied.status, Some(0), "{emptied:?}");
        cluster.verb("kill", &[node]);
        cluster.verb("start", &[node]);
        cluster.wait_healthy();
        ledger.assert_kept(cluster);
    }
    // All at once.
    let emptied = etcdctl(cluster, "pg-1", &format!("put /service/{NAME}/initialize ''"));
    assert_eq!(emptied.status, Some(0), "{emptied:?}");
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[]);
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

fn unreadable_control_file(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    let replica = cluster.status().nodes.into_iter().find(|node| node.role == "replica").unwrap().name;
    // A loop of symbolic links: every look at the file fails, and not because it is absent.
    cluster.on(
        &replica,
        "systemctl stop pgha-node patroni; cd /var/lib/postgresql/*/main/global && mv pg_control kept && \
         ln -s pg_control pg_control && sync",
    );
    let before = cluster.on(&replica, "find /var/lib/postgresql/*/main | wc -l");
    cluster.verb("kill", &[&replica]);
    cluster.verb("start", &[&replica]);
    wait_says(cluster, &replica, "pg_control", Duration::from_secs(60));
    thread::sleep(Duration::from_secs(15));
    assert_eq!(cluster.on(&replica, "find /var/lib/postgresql/*/main | wc -l"), before, "nothing is removed");
    let asides = cluster.on(&replica, "ls -d /var/lib/postgresql/*/*aside* 2>/dev/null; true");
    assert_eq!(asides.trim(), "", "nothing is set aside");
    cluster.on(
        &replica,
        "cd /var/lib/postgresql/*/main/global && rm pg_control && mv kept pg_control && sync; \
         systemctl reset-failed pgha-node; systemctl --no-block restart pgha-node",
    );
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

fn missing_volumes(cluster: &mut TestCluster) {
    cluster.healthy();
    let ledger = Ledger::write(cluster);
    for node in NODES {
        cluster.on(
            node,
            "systemctl stop pgha-node patroni etcd; mkdir -p /var/lib/away; \
             mv /var/lib/postgresql/17 /var/lib/away/postgresql; mv /var/lib/etcd/default /var/lib/away/etcd; \
             install -d -o postgres -g postgres /var/lib/postgresql/17; sync",
        );
    }
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[]);
    for node in NODES {
        wait_says(cluster, node, "missing", Duration::from_secs(60));
    }
    assert_idle(cluster, &NODES, Duration::from_secs(20));
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[]);
    for node in NODES {
        wait_says(cluster, node, "missing", Duration::from_secs(60));
        cluster.on(
            node,
            "systemctl stop pgha-node; rmdir /var/lib/postgresql/17 && mv /var/lib/away/postgresql /var/lib/postgresql/17 && \
             mv /var/lib/away/etcd /var/lib/etcd/default && sync; systemctl --no-block start pgha-node",
        );
    }
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

/// Five nodes: the document of the first three, and that of the last three.
fn different_documents(cluster: &mut TestCluster) {
    if !cluster.is_fast() {
        println!("    skipped: seeds of machines are not changed here");
        return;
    }
    cluster.start_afresh();
    let image = cluster.image();
    let five = cluster.document(5);
    let document = |members: &[usize]| {
        let whole = fs::read_to_string(&five).unwrap();
        let kept = |line: &&str| {
            let named = line.trim_start().strip_prefix("- {name: pg-").and_then(|rest| rest.split(',').next());
            named.is_none_or(|number| members.contains(&number.parse().unwrap()))
        };
        whole.lines().filter(kept).map(|line| format!("{line}\n")).collect::<String>()
    };
    let mut command = cluster.program();
    command.args(["cluster", "up", "--no-start", "--driver", "docker", "--image", &image]).arg("--spec").arg(&five);
    Ran::well(&mut command);
    cluster.take_over();
    let secret = secret_of(cluster);
    for (node, members) in [(1, [1, 2, 3]), (2, [1, 2, 3]), (3, [1, 2, 3]), (4, [3, 4, 5]), (5, [3, 4, 5])] {
        let text = format!("{}secret: {secret}\n", document(&members));
        give_document(cluster, &format!("pg-{node}"), &text);
    }
    cluster.verb("start", &[]);
    // The first three agree. The other two cannot begin without the third; they may join it once it has begun.
    wait("the first three to take writes", cluster.patience(Duration::from_secs(90)), || {
        let said = says(cluster, "pg-1");
        if said.contains("ready") && said.contains("postgresql") { Ok(()) } else { Err(said) }
    });
    let until = Instant::now() + cluster.patience(Duration::from_secs(20));
    while Instant::now() < until {
        let nodes = ["pg-1", "pg-2", "pg-3", "pg-4", "pg-5"];
        let systems: BTreeMap<&str, String> = nodes.into_iter().map(|node| (node, system(cluster, node))).collect();
        let begun: BTreeSet<&String> = systems.values().filter(|system| !system.is_empty()).collect();
        assert_eq!(begun.len(), 1, "{systems:?}");
        let primaries = nodes.into_iter().filter(|node| says(cluster, node).contains("primary, running")).count();
        assert!(primaries <= 1, "{primaries} primaries");
        thread::sleep(Duration::from_secs(1));
    }
    // Both sides hear that their documents differ, and in what.
    for (node, left_out) in [("pg-1", "pg-4, pg-5"), ("pg-4", "pg-1, pg-2")] {
        wait_says(cluster, node, left_out, Duration::from_secs(60));
    }
    cluster.start_afresh();
}

/// The secret that the cluster's document was given.
pub fn secret_of(cluster: &TestCluster) -> String {
    let found = walk(cluster.folder()).into_iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with("secret: "))?.to_owned();
        Some(line.trim_start_matches("secret: ").trim().to_owned())
    });
    found.expect("the cluster's folder has a document with a secret")
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(walk(&path)),
            kind if kind.is_file() && entry.metadata().unwrap().len() < 100_000 => found.push(path),
            _ => {}
        }
    }
    found
}

/// Gives a node that is off another document, as whoever made its seed would.
pub fn give_document(cluster: &TestCluster, node: &str, document: &str) {
    let seed = cluster.folder().join("seed");
    let container = format!("pgha-{NAME}-{node}:/var/lib/cloud/seed/nocloud/user-data");
    Ran::well(Command::new("docker").arg("cp").arg(&container).arg(&seed));
    let old = fs::read_to_string(&seed).unwrap();
    let indented: String = document.lines().map(|line| format!("      {line}\n")).collect();
    let head: String = old
        .lines()
        .take_while(|line| !line.trim_start().starts_with("schema:"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(head.contains("content"), "{old}");
    fs::write(&seed, head + &indented).unwrap();
    Ran::well(Command::new("docker").arg("cp").arg(&seed).arg(&container));
    // cloud-init writes files at a machine's first boot alone; after that it is a person who puts the document there.
    let written = format!("pgha-{NAME}-{node}:/etc/pgha/cluster.yaml");
    let copy = cluster.folder().join("document");
    if Ran::of(Command::new("docker").arg("cp").arg(&written).arg(&copy)).status == Some(0) {
        fs::write(&copy, document).unwrap();
        Ran::well(Command::new("docker").arg("cp").arg(&copy).arg(&written));
    }
}

fn two_minutes_late(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.prepare();
    cluster.verb("start", &["pg-1", "pg-2"]);
    wait_says(cluster, "pg-1", "pg-3", Duration::from_secs(60));
    assert_idle(cluster, &["pg-1", "pg-2"], Duration::from_secs(70));
    let said = says(cluster, "pg-1");
    assert!(said.contains("pgha-node form --without pg-3"), "{said}");
    println!("{said}");
    let console = Ran::of(cluster.program().args(["cluster", "logs", NAME, "pg-1"])).stdout;
    let last = console.lines().rfind(|line| line.contains("pg-3"));
    println!("    console: {}", last.unwrap_or("nothing about pg-3"));
    thread::sleep(Duration::from_secs(40));
    cluster.verb("start", &["pg-3"]);
    let began = Instant::now();
    cluster.wait_healthy();
    println!("    late by two minutes: whole {:.1} s after it came", began.elapsed().as_secs_f64());
}
