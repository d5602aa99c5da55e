//! Clusters that cannot come up again by themselves, and that go on by a person's order: `pgha-node recover`.
//!
//! Every scenario has a ledger of acknowledged rows. What the console says is printed: it is what a person has to go by.

use crate::{
    Scenario,
    safety::{Ledger, assert_idle, give_document, says, secret_of, system, wait_says},
    support::{Ran, wait},
    test_cluster::{NAME, NODES, TestCluster},
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The scenarios, which all run when they are asked for.
pub fn all() -> Vec<Scenario> {
    let asked = |name, run| Scenario { name, ignored: true, run };
    vec![
        asked("recover_when_a_majority_is_lost_for_good", majority_lost),
        asked("recover_when_all_data_of_etcd_are_lost", etcd_lost),
        asked("recover_and_a_lost_node_that_has_more_comes_back", lost_node_returns),
        asked("recover_and_the_old_majority_comes_back_while_the_cluster_is_cut_off", old_majority_returns),
        asked("recover_nothing_where_one_node_has_lost_its_volumes", volumes_lost),
        asked("recover_when_all_addresses_have_changed", addresses_changed),
    ]
}

/// What `pgha-node recover` says on a node.
fn recover(cluster: &TestCluster, node: &str, arguments: &str) -> Ran {
    cluster.try_on(node, &format!("pgha-node recover {arguments} </dev/null"))
}

/// The same, for whoever reads the test's output.
fn show(cluster: &TestCluster, node: &str) {
    println!("--- {node}: pgha-node status\n{}", says(cluster, node));
    let ran = recover(cluster, node, "");
    assert_eq!(ran.status, Some(0), "{ran:?}");
    println!("--- {node}: pgha-node recover\n{}", ran.stdout);
}

/// Gives the order on a node and prints what it says.
fn go_on_from(cluster: &TestCluster, node: &str) {
    let began = Instant::now();
    let ran = recover(cluster, node, "--from-this-node --yes");
    println!("--- {node}: pgha-node recover --from-this-node --yes\n{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.status, Some(0));
    println!("    the order was carried out in {:.1} s", began.elapsed().as_secs_f64());
}

/// The names of the primary, its synchronous standby, and the other.
fn roles(cluster: &TestCluster) -> [String; 3] {
    let nodes = cluster.status().nodes;
    let find =
        |is: &dyn Fn(&crate::test_cluster::Node) -> bool| nodes.iter().find(|node| is(node)).unwrap().name.clone();
    [
        find(&|node| node.role == "primary"),
        find(&|node| node.role != "primary" && node.synchronous),
        find(&|node| node.role != "primary" && !node.synchronous),
    ]
}

/// The answer of a node's own server; nothing if none runs there.
fn ask(cluster: &TestCluster, node: &str, database: &str, query: &str) -> Option<String> {
    let ran = cluster.try_on(node, &format!("runuser -u postgres -- psql -XAtq -d {database} -c \"{query}\""));
    (ran.status == Some(0)).then(|| ran.stdout.trim().to_owned())
}

/// The nodes whose servers take writes.
fn primaries(cluster: &TestCluster) -> Vec<&'static str> {
    let is_primary = |node: &&str| ask(cluster, node, "postgres", "select pg_is_in_recovery()").as_deref() == Some("f");
    NODES.into_iter().filter(is_primary).collect()
}

/// Waits until all is well; nobody but `primary` takes writes meanwhile.
fn wait_with_one_primary(cluster: &TestCluster, primary: &str) {
    let deadline = Instant::now() + cluster.patience(Duration::from_secs(240));
    loop {
        let found = primaries(cluster);
        assert!(found.iter().all(|node| *node == primary), "{found:?} take writes, {primary} alone should");
        let problem = cluster.status().problem;
        if problem.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{problem}");
        thread::sleep(Duration::from_millis(500));
    }
}

fn asides(cluster: &TestCluster, node: &str) -> Vec<Value> {
    serde_json::from_str(&cluster.on(node, "pgha-node aside list --json")).unwrap()
}

fn majority_lost(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    let [_, survivor, _] = roles(cluster);
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != survivor).collect();
    cluster.verb("kill", &others);
    // Nobody can know whether they are lost or cut off.
    thread::sleep(Duration::from_secs(60));
    show(cluster, &survivor);
    assert_eq!(primaries(cluster), Vec::<&str>::new());
    for node in &others {
        cluster.verb("replace", &[node, "--force"]);
    }
    wait_says(cluster, others[0], "majority", Duration::from_secs(60));
    assert_idle(cluster, &others, Duration::from_secs(10));
    show(cluster, others[0]);

    // An order that is not confirmed changes nothing, and neither does one on a node without data.
    let ran = recover(cluster, &survivor, "--from-this-node");
    println!("--- {survivor}: pgha-node recover --from-this-node, not confirmed\n{}", ran.stderr);
    assert!(ran.status == Some(1) && ran.stderr.contains("must be confirmed"), "{ran:?}");
    let ran = recover(cluster, others[0], "--from-this-node --yes --force");
    println!("--- {}: pgha-node recover --from-this-node --yes --force\n{}", others[0], ran.stderr);
    assert!(ran.status == Some(1) && ran.stderr.contains("nothing on this node"), "{ran:?}");

    go_on_from(cluster, &survivor);
    let began = Instant::now();
    ledger.add(cluster, 100);
    println!("    rows are taken {:.1} s after that", began.elapsed().as_secs_f64());
    wait_with_one_primary(cluster, &survivor);
    println!("    the cluster is whole {:.1} s after it", began.elapsed().as_secs_f64());
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
    let kept = asides(cluster, &survivor);
    assert!(kept.iter().any(|aside| aside["why"] == "replaced"), "{kept:?}");
    show(cluster, &survivor);
    let ran = recover(cluster, &survivor, "--from-this-node --yes --force");
    assert!(ran.status == Some(1) && ran.stderr.contains("there is nothing to recover"), "{ran:?}");
    // It goes on after a power cut of all, as any cluster.
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[]);
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

fn etcd_lost(cluster: &mut TestCluster) {
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    let [_, _, behind] = roles(cluster);
    cluster.on(&behind, "systemctl stop pgha-node patroni");
    ledger.add(cluster, 500);
    for node in NODES {
        cluster.on(
            node,
            "systemctl stop pgha-node patroni etcd; mkdir -p /var/lib/away; mv /var/lib/etcd/* /var/lib/away/; sync",
        );
    }
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[]);
    for node in NODES {
        wait_says(cluster, node, "pgha-node recover", Duration::from_secs(120));
        let found = cluster.on(node, "ls -d /var/lib/etcd/*/member 2>/dev/null; true");
        assert_eq!(found.trim(), "", "{node} has begun an etcd: {}", says(cluster, node));
    }
    assert_eq!(primaries(cluster), Vec::<&str>::new());
    show(cluster, &behind);
    // The node that is behind names what would be lost, and does not do it.
    let ran = recover(cluster, &behind, "--from-this-node --yes");
    println!("--- {behind}: pgha-node recover --from-this-node --yes\n{}", ran.stderr);
    assert!(ran.status == Some(1) && ran.stderr.contains("bytes of WAL more"), "{ran:?}");
    let report: Value = serde_json::from_str(&recover(cluster, &behind, "--json").stdout).unwrap();
    let best = report["advice"]["nodes"][0].as_str().unwrap().to_owned();
    assert_ne!(best, behind, "{report}");

    // The power fails while the order is carried out, and once more.
    let order = "pgha-node recover --from-this-node --yes </dev/null >/root/said 2>&1";
    for seconds in [3, 6] {
        let mut given = cluster
            .program()
            .args(["cluster", "exec", NAME, &best, "--", "sh", "-c", order])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_secs(seconds));
        cluster.verb("kill", &[&best]);
        let _ = given.wait();
        cluster.verb("start", &[&best]);
        println!("    cut off after {seconds} s, when it had said:\n{}", cluster.on(&best, "cat /root/said; true"));
        let left = cluster.on(&best, "ls -l /var/lib/pgha /var/lib/etcd");
        println!("{left}");
        if left.contains(" recovered.json") {
            break;
        }
    }
    wait_with_one_primary(cluster, &best);
    cluster.wait_healthy();
    ledger.add(cluster, 100);
    ledger.assert_kept(cluster);
    show(cluster, &behind);
}

/// How many rows of a table the manual's commands get out of a database that was set aside.
fn dumped(cluster: &TestCluster, node: &str, aside: &str, table: &str, database: &str) -> usize {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays/node/RECOVERY.md")).unwrap();
    let copy = manual.lines().skip_while(|line| !line.starts_with("    cp -a /var/lib/postgresql"));
    let copy = copy.take_while(|line| !line.starts_with("    echo"));
    let dump = manual.lines().skip_while(|line| !line.starts_with("    cd /var/lib/postgresql/look"));
    let dump = dump.take_while(|line| line.is_empty() || line.starts_with("    "));
    let script: Vec<&str> = copy.chain(dump).map(str::trim_start).collect();
    let script = script.join("\n").replace("/var/lib/postgresql/17/main.aside-...-before-recovery", aside);
    let script = script.replace("TABLE", table).replace("DATABASE", database);
    cluster.on(node, &format!("set -e\n{script}\ncd / && rm -r /var/lib/postgresql/look"));
    let rows = cluster.on(node, "cat /root/rows.sql");
    rows.lines().filter(|line| line.parse::<u32>().is_ok()).count()
}

fn lost_node_returns(cluster: &mut TestCluster) {
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    let [primary, synchronous, survivor] = roles(cluster);
    wait("the other replica to have all rows", cluster.patience(Duration::from_secs(60)), || {
        match ask(cluster, &survivor, "app", "select count(*) from ledger") {
            Some(count) if count == "1000" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.verb("kill", &[&survivor]);
    // Acknowledged by the two that are lost then.
    cluster.door(5000).ask("create table tail as select generate_series(1, 300) id").unwrap();
    cluster.verb("kill", &[&primary, &synchronous]);
    cluster.verb("start", &[&survivor]);
    wait_says(cluster, &survivor, "pgha-node recover", Duration::from_secs(180));
    show(cluster, &survivor);
    go_on_from(cluster, &survivor);
    ledger.add(cluster, 200);

    // The former primary comes back, with its old volumes and with more than the cluster has of that time.
    cluster.verb("start", &[&primary]);
    let settled = |node: &str| {
        wait(&format!("{node} to set its database aside"), cluster.patience(Duration::from_secs(180)), || {
            let found = primaries(cluster);
            assert!(found.iter().all(|found| *found == survivor), "{found:?} take writes");
            let kept = asides(cluster, node);
            if kept.iter().any(|aside| aside["why"] == "before-recovery") { Ok(()) } else { Err(says(cluster, node)) }
        });
    };
    settled(&primary);
    cluster.verb("start", &[&synchronous]);
    settled(&synchronous);
    wait_with_one_primary(cluster, &survivor);
    cluster.wait_healthy();
    ledger.add(cluster, 100);
    ledger.assert_kept(cluster);
    println!("--- {primary}: pgha-node aside list\n{}", cluster.on(&primary, "pgha-node aside list"));
    let tail = cluster.door(5000).ask("select coalesce(to_regclass('tail')::text, 'none')").unwrap();
    assert_eq!(tail, "none");
    // What only they had is not in the cluster, and not lost either.
    for node in [&primary, &synchronous] {
        let kept = asides(cluster, node).into_iter().find(|aside| aside["why"] == "before-recovery").unwrap();
        assert_eq!(kept["system"], system(cluster, node), "{kept}");
        let path = kept["path"].as_str().unwrap();
        let found = cluster.on(
            node,
            &format!(
                "cp -a {path} /var/lib/postgresql/look && cd /var/lib/postgresql/look && \
                 rm -f standby.signal recovery.signal postmaster.pid && \
                 echo 'select count(*) from tail' | runuser -u postgres -- /usr/lib/postgresql/*/bin/postgres --single \
                 -D /var/lib/postgresql/look -c ssl=off -c shared_preload_libraries= app; rm -r /var/lib/postgresql/look"
            ),
        );
        assert!(found.contains("count = \"300\""), "{node}: {found}");
        assert_eq!(dumped(cluster, node, path, "tail", "app"), 300);
    }
}

fn volumes_lost(cluster: &mut TestCluster) {
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    let [primary, lost, _] = roles(cluster);
    cluster.on(
        &lost,
        "systemctl stop pgha-node patroni etcd; mkdir -p /var/lib/away; mv /var/lib/postgresql/* /var/lib/away/; \
         mv /var/lib/etcd/* /var/lib/away/; sync",
    );
    ledger.add(cluster, 100);
    let ran = recover(cluster, &lost, "");
    println!("--- {lost}: pgha-node recover\n{}", ran.stdout);
    assert!(ran.stdout.contains("there is nothing to recover"), "{ran:?}");
    cluster.verb("kill", &[&lost]);
    cluster.verb("start", &[&lost]);
    wait_with_one_primary(cluster, &primary);
    cluster.wait_healthy();
    ledger.assert_kept(cluster);
}

/// The nodes that were given up are a majority of the old etcd: without the recovered node in sight they are the old
/// cluster again. They give way when they see it.
fn old_majority_returns(cluster: &mut TestCluster) {
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    let [primary, synchronous, survivor] = roles(cluster);
    cluster.verb("kill", &NODES);
    cluster.verb("start", &[&survivor]);
    wait_says(cluster, &survivor, "pgha-node recover", Duration::from_secs(180));
    go_on_from(cluster, &survivor);
    ledger.add(cluster, 100);
    cluster.verb("partition", &[&survivor, "--wholly"]);
    cluster.verb("start", &[&primary, &synchronous]);
    let old = wait("the old cluster to take writes", cluster.patience(Duration::from_secs(180)), || {
        primaries(cluster).into_iter().find(|node| *node != survivor).ok_or_else(|| says(cluster, &primary))
    });
    let written = ask(cluster, old, "app", "create table given_up as select generate_series(1, 300) id");
    println!("    the old cluster has taken writes on {old}: {}", written.is_some());
    cluster.verb("heal", &[]);
    let began = Instant::now();
    wait("the old cluster to give way", cluster.patience(Duration::from_secs(120)), || {
        let found = primaries(cluster);
        if found == [survivor.as_str()] {
            Ok(())
        } else {
            Err(format!("{found:?} take writes: {}", says(cluster, old)))
        }
    });
    println!("    it gives way {:.1} s after it sees the other", began.elapsed().as_secs_f64());
    wait_with_one_primary(cluster, &survivor);
    cluster.wait_healthy();
    ledger.add(cluster, 100);
    ledger.assert_kept(cluster);
    assert_eq!(cluster.door(5000).ask("select coalesce(to_regclass('given_up')::text, 'none')").unwrap(), "none");
    let kept = asides(cluster, old);
    assert!(kept.iter().any(|aside| aside["why"] == "before-recovery"), "{kept:?}");
    cluster.start_afresh();
}

fn addresses_changed(cluster: &mut TestCluster) {
    if !cluster.is_fast() {
        println!("    skipped: seeds of machines are not changed here");
        return;
    }
    cluster.start_afresh();
    cluster.healthy();
    let mut ledger = Ledger::write(cluster);
    cluster.verb("kill", &NODES);
    let docker = |arguments: &[&str]| Ran::well(Command::new("docker").args(arguments)).stdout.trim().to_owned();
    let text = fs::read_to_string(cluster.document(3)).unwrap();
    let document = format!("{}secret: {}\n", text.replace("10.214.7.1", "10.214.7.2"), secret_of(cluster));
    // The virtual address stays.
    let document = document.replace("vip: {address: 10.214.7.20/24}", "vip: {address: 10.214.7.10/24}");
    for (number, node) in NODES.iter().enumerate() {
        give_document(cluster, node, &document);
        let container = format!("pgha-{NAME}-{node}");
        let network = docker(&[
            "inspect",
            "--format",
            "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}",
            &container,
        ]);
        docker(&["network", "disconnect", &network, &container]);
        docker(&["network", "connect", "--ip", &format!("10.214.7.{}", 21 + number), &network, &container]);
        docker(&["start", &container]);
    }
    for node in NODES {
        wait_says(cluster, node, "pgha-node recover", Duration::from_secs(180));
    }
    show(cluster, "pg-1");
    let report: Value = serde_json::from_str(&recover(cluster, "pg-1", "--json").stdout).unwrap();
    let best = report["advice"]["nodes"][0].as_str().unwrap_or_else(|| panic!("{report}")).to_owned();
    go_on_from(cluster, &best);
    wait_with_one_primary(cluster, &best);
    cluster.wait_healthy();
    ledger.add(cluster, 100);
    ledger.assert_kept(cluster);
    show(cluster, &best);
    cluster.start_afresh();
}
