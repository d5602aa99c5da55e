//! What happens to clusters, and what must come of it.

use crate::{
    Scenario, hosts,
    safety::etcdctl,
    support::{Ran, wait},
    test_cluster::{HEALED_WITHIN, NAME, NODES, TestCluster},
    writer::Writer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Every scenario, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    let always = |name, run| Scenario { name, ignored: false, run };
    let asked = |name, run| Scenario { name, ignored: true, run };
    vec![
        always("three_nodes_started_at_once_are_writable_within_a_minute", at_once),
        always("every_port_serves_its_role", every_port),
        always("every_tls_port_is_verified_by_the_authority_and_by_nothing_else", tls),
        always("no_secret_is_readable_by_others", secrets),
        always("a_second_init_changes_nothing", second_init),
        always("a_switchover_stops_writes_for_a_moment", switchover),
        always("a_killed_primary_is_replaced_and_loses_nothing", killed_primary),
        always("a_hung_haproxy_loses_the_virtual_address", hung_haproxy),
        always("a_member_that_comes_while_haproxy_starts_is_served", member_during_start),
        always("a_dead_pgbouncer_is_avoided_and_restored", dead_pgbouncer),
        always("a_replaced_node_heals_by_itself", replaced_node),
        always("all_nodes_killed_together_come_back_with_their_data", all_killed),
        asked("an_isolated_primary_steps_down_and_loses_nothing", isolated_primary),
        asked("members_come_and_go_by_document", scaled),
        asked("nodes_started_one_after_the_other_become_a_cluster", staggered),
        asked("two_nodes_begin_without_the_third_by_an_order", third_is_late),
        asked("power_cuts_during_first_boot_do_no_harm", power_cuts),
        asked("documents_that_are_wrong_are_refused", wrong_documents),
        asked("verbs_on_the_host_leave_the_last_good_copy", hosts::last_copy),
        asked("the_compose_file_brings_up_the_same_cluster", compose),
    ]
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// The system identifiers of all nodes' databases: one cluster has one.
fn system_identifiers(cluster: &TestCluster) -> BTreeSet<String> {
    let script = "/usr/lib/postgresql/*/bin/pg_controldata -D /var/lib/postgresql/*/main | grep 'system identifier'";
    NODES.iter().map(|node| cluster.on(node, script).split(':').nth(1).unwrap().trim().to_owned()).collect()
}

fn writable(cluster: &TestCluster, within: Duration) -> Duration {
    let began = Instant::now();
    wait("HAProxy to have a primary", cluster.patience(within), || {
        cluster.try_door(5000)?.ask("create table if not exists opened (); select 1")
    });
    began.elapsed()
}

fn at_once(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.prepare();
    cluster.verb("start", &[]);
    let took = writable(cluster, Duration::from_secs(60));
    println!("    boot to writable: {}", seconds(took));
    let nodes = cluster.wait_healthy();
    let streaming = nodes.iter().filter(|node| node.state == "streaming").count();
    assert_eq!((streaming, nodes.iter().filter(|node| node.vip).count()), (2, 1), "{nodes:?}");
    assert_eq!(system_identifiers(cluster).len(), 1);
}

/// Each port serves its role and no other.
fn assert_ports(cluster: &TestCluster) {
    wait("every port to serve its role", cluster.patience(Duration::from_secs(30)), || {
        let nodes = cluster.status().nodes;
        let replicas: BTreeSet<&str> =
            nodes.iter().filter(|node| node.role == "replica").map(|node| node.name.as_str()).collect();
        let synchronous = nodes.iter().find(|node| node.synchronous).ok_or("no replica is synchronous")?;
        let seen = |port: u16, times: usize| -> Result<BTreeSet<String>, String> {
            (0..times).map(|_| cluster.who(port)).collect()
        };
        let (primary, readers) = (seen(5000, 2)?, seen(5001, 6)?);
        let (sync, others) = (seen(5002, 2)?, seen(5003, 2)?);
        let rest: BTreeSet<String> =
            replicas.iter().filter(|name| **name != synchronous.name).map(|name| (*name).to_owned()).collect();
        let right = primary == BTreeSet::from(["primary".to_owned()])
            && readers == replicas.iter().map(|name| (*name).to_owned()).collect()
            && sync == BTreeSet::from([synchronous.name.clone()])
            && others == rest;
        if right {
            Ok(())
        } else {
            Err(format!("5000 {primary:?}, 5001 {readers:?}, 5002 {sync:?}, 5003 {others:?}; {nodes:?}"))
        }
    });
}

fn every_port(cluster: &mut TestCluster) {
    cluster.healthy();
    assert_ports(cluster);
    let door = cluster.door(5000);
    door.ask("create table if not exists port_test (id int); insert into port_test values (42)").unwrap();
    let reader = cluster.door(5001);
    wait("the row on a replica", cluster.patience(Duration::from_secs(5)), || {
        let seen = reader.ask("select max(id) from port_test")?;
        if seen == "42" { Ok(()) } else { Err(seen) }
    });
    let refused = reader.ask("insert into port_test values (43)").unwrap_err();
    assert!(refused.contains("read-only transaction"), "{refused}");
    for node in NODES {
        let pool = cluster.node_door(node, 6432);
        assert_eq!(pool.ask("select 1").unwrap(), "1", "the pool on {node}");
        let direct = cluster.node_door(node, 5432);
        assert_eq!(direct.ask("select 1").unwrap(), "1", "the server on {node}");
    }
    let authority = cluster.folder().join("ca.crt");
    fs::write(&authority, cluster.on("pg-1", "cat /etc/pgha/tls/ca.crt")).unwrap();
    let password = cluster.on("pg-1", "sed -n 's/^HAPROXY_STATISTICS_PASSWORD=//p' /etc/confd/env.d/haproxy.env");
    let user = format!("admin:{}", password.trim().trim_matches('"'));
    let ask = |user: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--user", user, "--cacert"])
            .arg(&authority);
        Ran::of(curl.arg(format!("https://{}/;csv", cluster.door(7000).place())))
    };
    let statistics = ask(&user);
    for name in ["primary", "replicas", "synchronous", "asynchronous"] {
        let row = format!("{name},pg-1,");
        assert!(statistics.stdout.lines().any(|line| line.starts_with(&row)), "{name}: {statistics:?}");
    }
    let stranger = ask("admin:guess");
    assert!(stranger.stderr.contains("401"), "{stranger:?}");
}

fn tls(cluster: &mut TestCluster) {
    cluster.healthy();
    let authority = cluster.on("pg-1", "cat /etc/pgha/tls/ca.crt");
    let trusted = cluster.folder().join("ca.crt");
    fs::write(&trusted, authority).unwrap();
    let stranger = cluster.folder().join("stranger.crt");
    let key = cluster.folder().join("stranger.key");
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=stranger",
    ]);
    Ran::well(make.arg("-keyout").arg(&key).arg("-out").arg(&stranger));

    for (port, node) in [(5000, None), (5001, None), (5432, Some("pg-1")), (6432, Some("pg-2")), (5432, Some("pg-3"))] {
        let place = match node {
            Some(node) => cluster.node_door(node, port),
            None => cluster.door(port),
        };
        let with = |file: &std::path::Path| place.with("PGSSLROOTCERT", file.to_str().unwrap()).ask("select 1");
        assert_eq!(with(&trusted).unwrap(), "1", "{port}");
        let refused = with(&stranger).unwrap_err();
        assert!(refused.contains("certificate verify failed"), "{port}: {refused}");
        let open = place.with("PGSSLMODE", "disable").ask("select 1").unwrap_err();
        assert!(!open.is_empty(), "{port} speaks without TLS");
    }
    // The other ports, seen from a node: its own certificate is what etcd asks for.
    for (port, client) in [(2379, true), (2380, true), (8008, false), (7000, false)] {
        let show = if client { "-cert /etc/pgha/tls/client.pem -key /etc/pgha/tls/client.pem" } else { "" };
        let connect = |roots: &str, show: &str| {
            let script = format!(
                "openssl s_client -connect $(hostname -I | cut -d' ' -f1):{port} -verify_return_error \
                 -verify_ip $(hostname -I | cut -d' ' -f1) {roots} {show} </dev/null 2>&1"
            );
            cluster.try_on("pg-2", &script)
        };
        let trusted = connect("-CAfile /etc/pgha/tls/ca.crt", show);
        assert!(trusted.stdout.contains("Verify return code: 0 (ok)"), "{port}: {}", trusted.stdout);
        let stranger = connect("-no-CAfile -no-CApath -no-CAstore", show);
        assert!(!stranger.stdout.contains("Verify return code: 0 (ok)"), "{port} is verified without the authority");
    }
    // Strangers who trust the authority, but show nothing themselves.
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--write-out", "%{http_code}", "--cacert"]);
        Ran::of(curl.arg(&trusted).args(arguments))
    };
    let place = |port| cluster.node_door("pg-2", port).place();
    let etcd = curl(&["--data", "{}", &format!("https://{}/v3/kv/range", place(2379))]);
    assert!(etcd.status != Some(0) || etcd.stdout.ends_with("401"), "etcd serves strangers: {etcd:?}");
    let patroni = curl(&["--request", "POST", "--data", "{}", &format!("https://{}/restart", place(8008))]);
    assert!(["401", "403"].iter().any(|code| patroni.stdout.ends_with(code)), "Patroni obeys strangers: {patroni:?}");
}

fn secrets(cluster: &mut TestCluster) {
    cluster.healthy();
    let document = cluster.on("pg-1", "cat /etc/pgha/cluster.yaml");
    let secret = document.lines().find_map(|line| line.strip_prefix("secret: ")).unwrap().trim().to_owned();
    let password = cluster.door(5000).password();
    let superuser = cluster.on("pg-1", "sed -n 's/^ *password: *\"\\(.*\\)\"/\\1/p' /etc/patroni/config.yml | sort -u");
    let needles: Vec<&str> = [secret.as_str(), password.as_str()].into_iter().chain(superuser.lines()).collect();
    assert!(needles.len() > 4, "{}", needles.len());
    for node in NODES {
        // Whatever `nobody` may read holds none of them, and processes show none in their arguments. What is looked for
        // comes by standard input, so that it is not found in the search itself.
        let script = "cat >/run/needles\n\
             chmod 644 /run/needles\n\
             find / -xdev \\( -path /proc -o -path /sys -o -path /run/needles \\) -prune -o -type f -perm /004 -print0 2>/dev/null \
             | runuser -u nobody -- xargs -0 grep -lsFf /run/needles\n\
             runuser -u nobody -- find /run /tmp -type f ! -path /run/needles -readable -print0 2>/dev/null \
             | runuser -u nobody -- xargs -0 -r grep -lsFf /run/needles\n\
             for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -qFf /run/needles && cat $p/comm; done\n\
             journalctl --no-pager --boot | grep -cFf /run/needles\n\
             rm /run/needles; true";
        let found = cluster.feed(node, script, &(needles.join("\n") + "\n"));
        assert_eq!(found.trim(), "0", "{node}: secrets are readable in\n{found}");
        let keys = cluster.on(node, "find /etc/pgha/tls -type f ! -name ca.crt -perm /007");
        assert_eq!(keys.trim(), "", "{node}: keys that others may read");
    }
}

fn second_init(cluster: &mut TestCluster) {
    cluster.healthy();
    let state = "find /etc/pgha /etc/patroni /etc/haproxy /etc/pgbouncer /etc/etcd /etc/keepalived /etc/confd /var/lib/pgha \
                 -type f -exec stat -c '%n %Y %i' {} + | sort; systemctl show -p MainPID --value etcd patroni haproxy pgbouncer confd";
    let before = cluster.on("pg-2", state);
    cluster.on("pg-2", "pgha-node init");
    assert_eq!(cluster.on("pg-2", state), before);
    assert!(cluster.on("pg-2", "pgha-node status").contains("nothing had to be changed"));
}

fn switchover(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    let writer = Writer::start(&door);
    thread::sleep(Duration::from_secs(3));
    let old = cluster.primary();
    cluster.verb("switchover", &[]);
    thread::sleep(Duration::from_secs(8));
    let written = writer.stop();
    println!("    switchover: writes stop for {}, {} rows", seconds(written.longest_gap()), written.acknowledged.len());
    cluster.wait_healthy();
    written.assert_kept(&door);
    assert_ne!(cluster.primary(), old);
    let most = cluster.patience(Duration::from_secs(3));
    assert!(written.longest_gap() <= most, "{:?}", written.longest_gap());
    assert_ports(cluster);
}

fn killed_primary(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    let writer = Writer::start(&door);
    thread::sleep(Duration::from_secs(3));
    let old = cluster.primary();
    cluster.verb("kill", &[&old]);
    thread::sleep(Duration::from_secs(5));
    writer.wait_resumed(cluster.slow(Duration::from_secs(60)));
    thread::sleep(Duration::from_secs(5));
    let written = writer.stop();
    println!(
        "    killed primary: writes stop for {}, {} rows, {} connections",
        seconds(written.longest_gap()),
        written.acknowledged.len(),
        written.connections
    );
    let most = cluster.slow(Duration::from_secs(25));
    assert!(written.longest_gap() <= most, "{:?}", written.longest_gap());
    written.assert_kept(&door);
    let new = cluster.primary();
    assert_ne!(new, old);
    cluster.verb("start", &[&old]);
    let nodes = cluster.wait_healthy();
    assert!(nodes.iter().any(|node| node.name == old && node.state == "streaming"), "{nodes:?}");
    assert_eq!(cluster.primary(), new, "the old primary comes back as a replica");
    written.assert_kept(&door);
    assert_ports(cluster);
}

fn hung_haproxy(cluster: &mut TestCluster) {
    cluster.healthy();
    let holder = cluster.vip_holder();
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != holder).collect();
    let address = "10.214.7.10/";
    cluster.on(&holder, "pkill -STOP -x haproxy");
    let began = Instant::now();
    let moved = wait("another node to take the address", cluster.patience(Duration::from_secs(15)), || {
        let taken = others.iter().find(|node| cluster.on(node, "ip -o address show").contains(address));
        taken.map(|node| (began.elapsed(), (*node).to_owned())).ok_or_else(|| "nobody has it".to_owned())
    });
    println!("    hung HAProxy: the address moves after {}", seconds(moved.0));
    cluster.on(&holder, "pkill -CONT -x haproxy");
    assert!(moved.0 <= cluster.patience(Duration::from_secs(4)), "{:?}", moved.0);
    cluster.wait_healthy();
    assert_ports(cluster);
}

/// HAProxy has read its file and does not yet count as started, when systemd drops a reload.
fn member_during_start(cluster: &mut TestCluster) {
    cluster.healthy();
    let holder = cluster.vip_holder();
    let node = NODES.into_iter().find(|node| *node != holder).unwrap();
    let drop_in = "/run/systemd/system/haproxy.service.d/99-slow.conf";
    cluster.on(
        node,
        &format!(
            "mkdir -p $(dirname {drop_in}) && printf '[Service]\\nExecStartPost=/bin/sleep 6\\n' >{drop_in} \
             && systemctl daemon-reload && systemctl stop haproxy && systemctl start --no-block haproxy"
        ),
    );
    let servers = "printf 'show servers state primary\\n' | timeout 5 python3 -c 'import socket, sys\ns = \
                   socket.socket(socket.AF_UNIX)\ns.connect(\"/run/haproxy/admin.sock\")\n\
                   s.sendall(sys.stdin.buffer.read())\nprint(s.makefile().read())'";
    let served = |what: &str, wanted: bool| {
        wait(what, cluster.patience(Duration::from_secs(40)), || {
            let seen = cluster.try_on(node, servers);
            let is_there = seen.stdout.contains(" pg-9 ");
            if seen.stdout.contains(" pg-1 ") && is_there == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    };
    served("HAProxy to answer", false);
    let state = cluster.try_on(node, "systemctl is-active haproxy").stdout;
    assert_eq!(state.trim(), "activating", "HAProxy was not caught while it starts");
    let member = etcdctl(cluster, node, &format!("get --print-value-only /service/{NAME}/members/pg-1")).stdout;
    let put = etcdctl(cluster, node, &format!("put /service/{NAME}/members/pg-9 '{}'", member.trim()));
    assert_eq!(put.status, Some(0), "{put:?}");
    served("HAProxy to serve the member that came while it started", true);
    etcdctl(cluster, node, &format!("del /service/{NAME}/members/pg-9"));
    served("the member to be gone", false);
    cluster.on(node, &format!("rm {drop_in} && systemctl daemon-reload"));
    cluster.wait_healthy();
}

fn dead_pgbouncer(cluster: &mut TestCluster) {
    cluster.healthy();
    let primary = cluster.primary();
    let replica = cluster.status().nodes.into_iter().find(|node| node.role == "replica").unwrap().name;
    cluster.on(&primary, "pkill -KILL -x pgbouncer");
    wait("systemd to restore it", cluster.patience(Duration::from_secs(20)), || {
        let state = cluster.try_on(&primary, "systemctl is-active pgbouncer").stdout;
        if state.trim() == "active" { Ok(()) } else { Err(state) }
    });
    cluster.wait_healthy();
    cluster.on(&replica, "systemctl stop pgbouncer");
    wait("HAProxy to avoid the node", cluster.patience(Duration::from_secs(15)), || {
        let seen: BTreeSet<Result<String, String>> = (0..6).map(|_| cluster.who(5001)).collect();
        if seen.len() == 1 && seen.iter().all(|name| name.as_ref().is_ok_and(|name| *name != replica)) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    cluster.on(&replica, "systemctl start pgbouncer");
    cluster.on(&primary, "systemctl stop pgbouncer");
    wait("HAProxy to close the primary's port", cluster.patience(Duration::from_secs(15)), || {
        match cluster.who(5000) {
            Err(_) => Ok(()),
            Ok(who) => Err(format!("{who} answers")),
        }
    });
    cluster.on(&primary, "systemctl start pgbouncer");
    cluster.wait_healthy();
    assert_ports(cluster);
}

fn replaced_node(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    door.ask("create table if not exists survivors (id int); insert into survivors values (1)").unwrap();
    let replica = cluster.status().nodes.into_iter().find(|node| node.synchronous).unwrap().name;
    // etcd's member loses its data while the rest of the node lives.
    cluster.on(&replica, "systemctl stop etcd; rm -rf /var/lib/etcd/default; systemctl restart pgha-node");
    cluster.wait_healthy();
    // The whole node is lost, and a new one with the same name takes its place.
    let began = Instant::now();
    cluster.verb("replace", &[&replica, "--force"]);
    wait("the new node to be a replica", cluster.patience(HEALED_WITHIN), || {
        let status = cluster.status();
        let node = status.nodes.iter().find(|node| node.name == replica).unwrap().clone();
        if node.state == "streaming" && status.problem.is_empty() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    println!("    replaced node: whole after {}", seconds(began.elapsed()));
    let members = cluster.on(&replica, "pgha-node status");
    assert!(members.contains("3 of 3 members started"), "{members}");
    assert_eq!(system_identifiers(cluster).len(), 1);
    cluster.wait_healthy();
    assert_ports(cluster);
}

fn all_killed(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    let writer = Writer::start(&door);
    thread::sleep(Duration::from_secs(3));
    let before = cluster.status().nodes;
    let candidates: BTreeSet<&str> = before
        .iter()
        .filter(|node| node.role == "primary" || node.synchronous)
        .map(|node| node.name.as_str())
        .collect();
    let identifiers = system_identifiers(cluster);
    cluster.verb("kill", &NODES);
    let written = writer.stop();
    cluster.verb("start", &[]);
    let took = writable(cluster, HEALED_WITHIN);
    println!("    all killed: writable {} after power returns", seconds(took));
    written.assert_kept(&door);
    assert!(candidates.contains(cluster.primary().as_str()), "{} was not among {candidates:?}", cluster.primary());
    cluster.wait_healthy();
    assert_eq!(system_identifiers(cluster), identifiers);
    assert_ports(cluster);
}

fn isolated_primary(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    let writer = Writer::start(&door);
    thread::sleep(Duration::from_secs(3));
    let old = cluster.primary();
    cluster.verb("partition", &[&old, "--wholly"]);
    // Whether a server takes writes: at most one does, at every look.
    let began = Instant::now();
    while began.elapsed() < cluster.slow(Duration::from_secs(45)) {
        let script = "runuser -u postgres -- psql -Atc 'select not pg_is_in_recovery()' 2>/dev/null || echo f";
        let writing: Vec<_> = NODES.iter().filter(|node| cluster.on(node, script).trim() == "t").collect();
        assert!(writing.len() <= 1, "{writing:?} take writes after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(500));
    }
    writer.wait_resumed(cluster.slow(Duration::from_secs(60)));
    let written = writer.stop();
    println!("    isolated primary: writes stop for {}", seconds(written.longest_gap()));
    cluster.verb("heal", &[]);
    cluster.wait_healthy();
    assert_ne!(cluster.primary(), old);
    written.assert_kept(&door);
    assert_ports(cluster);
}

/// The servers of each HAProxy, as its own socket tells.
fn servers(cluster: &TestCluster, node: &str) -> BTreeSet<String> {
    let script = "python3 -c \"\nimport socket\ns = socket.socket(socket.AF_UNIX)\n\
                  s.connect('/run/haproxy/admin.sock')\ns.sendall(b'show servers state primary\\\\n')\n\
                  print(b''.join(iter(lambda: s.recv(65536), b'')).decode())\"";
    let text = cluster.on(node, script);
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(3)).filter(|name| name.starts_with("pg-"));
    names.map(str::to_owned).collect()
}

fn scaled(cluster: &mut TestCluster) {
    cluster.healthy();
    let update = |cluster: &TestCluster, nodes: usize| {
        let document = cluster.document(nodes);
        let within = format!("{}s", cluster.patience(Duration::from_secs(300)).as_secs());
        cluster.verb("update", &[document.to_str().unwrap(), "--within", &within]);
        let wanted: BTreeSet<String> = (1..=nodes).map(|number| format!("pg-{number}")).collect();
        for node in &wanted {
            wait("HAProxy to follow the members", cluster.patience(Duration::from_secs(10)), || {
                let seen = servers(cluster, node);
                assert!(!seen.is_empty(), "{node} has no servers");
                if seen == wanted { Ok(()) } else { Err(format!("{node}: {seen:?}")) }
            });
        }
    };
    let door = cluster.door(5000);
    door.ask("create table if not exists survivors (id int); insert into survivors values (2)").unwrap();
    update(cluster, 5);
    // A node that cannot leave stays known, so that the update can be given again.
    cluster.on("pg-5", "cd /usr/bin && mv pgha-node away && ln -s false pgha-node");
    let document = cluster.document(4);
    let failed = Ran::of(cluster.program().args(["cluster", "update", NAME]).arg(document));
    assert!(failed.status != Some(0) && failed.stderr.contains("pg-5 cannot leave"), "{failed:?}");
    cluster.on("pg-5", "cd /usr/bin && mv away pgha-node");
    update(cluster, 4);
    let gone = cluster.try_on("pg-5", "true");
    assert!(gone.stderr.contains("no node `pg-5`"), "{gone:?}");
    update(cluster, 3);
    assert_eq!(door.ask("select count(*) > 0 from survivors").unwrap(), "t");
    cluster.wait_healthy();
    assert_ports(cluster);
}

/// Nothing has begun on these nodes: no etcd, no database.
fn assert_nothing_begun(cluster: &TestCluster, nodes: &[&str]) {
    for node in nodes {
        let found =
            cluster.on(node, "ls -d /var/lib/etcd/default /var/lib/postgresql/*/main/PG_VERSION 2>/dev/null; true");
        assert_eq!(found.trim(), "", "{node}");
    }
}

fn staggered(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.prepare();
    let mut started: Vec<&str> = Vec::new();
    for node in NODES.into_iter().rev() {
        assert_nothing_begun(cluster, &started);
        cluster.verb("start", &[node]);
        started.push(node);
        if node != NODES[0] {
            thread::sleep(Duration::from_secs(30));
        }
    }
    let began = Instant::now();
    let nodes = cluster.wait_healthy();
    println!("    the last of three came: whole after {}", seconds(began.elapsed()));
    assert_eq!(nodes.iter().filter(|node| node.state == "streaming").count(), 2);
    assert_eq!(system_identifiers(cluster).len(), 1);
    assert_ports(cluster);
}

/// Two nodes wait for the third until a person orders them not to.
fn third_is_late(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.prepare();
    cluster.verb("start", &["pg-1", "pg-2"]);
    let order = "on pg-1: pgha-node form --without pg-3";
    wait("the nodes to say what could be done", cluster.patience(Duration::from_secs(150)), || {
        let told = ["pg-1", "pg-2"].map(|node| cluster.try_on(node, "pgha-node status").stdout);
        if told.iter().all(|text| text.contains(order)) { Ok(()) } else { Err(told.join("\n")) }
    });
    assert_nothing_begun(cluster, &["pg-1", "pg-2"]);
    let refused = |node: &str, arguments: &str| {
        let ran = cluster.try_on(node, &format!("pgha-node form {arguments}"));
        assert_eq!(ran.status, Some(2), "{ran:?}");
        ran.stderr
    };
    assert!(refused("pg-2", "--without pg-3 --yes").contains(order));
    assert!(refused("pg-1", "--without pg-2,pg-3 --yes").contains("not a majority"));
    assert!(refused("pg-2", "--without pg-1 --yes").contains("pg-1 answers"));
    assert!(refused("pg-1", "--without pg-3 </dev/null").contains("nothing has changed"));
    cluster.feed("pg-1", "pgha-node form --without pg-3", &format!("{NAME}\n"));
    let took = writable(cluster, Duration::from_secs(120));
    println!("    third left out: writable after {}", seconds(took));
    cluster.verb("start", &["pg-3"]);
    let began = Instant::now();
    cluster.wait_healthy();
    println!("    third late: whole after {}", seconds(began.elapsed()));
    assert_eq!(system_identifiers(cluster).len(), 1);
    assert_ports(cluster);
}

fn power_cuts(cluster: &mut TestCluster) {
    cluster.start_afresh();
    cluster.prepare();
    cluster.verb("start", &[]);
    // Twenty moments, spread over what a first boot takes; who loses power changes, and thrice all do.
    for cut in 0..20u32 {
        thread::sleep(Duration::from_millis(700 + u64::from(cut) * 450));
        let node = NODES[cut as usize % 3];
        if cut % 7 == 6 {
            cluster.verb("kill", &NODES);
            cluster.verb("start", &[]);
        } else {
            cluster.verb("kill", &[node]);
            cluster.verb("start", &[node]);
        }
        if cut % 5 == 4 {
            cluster.wait_healthy();
            assert_eq!(system_identifiers(cluster).len(), 1, "after {} cuts", cut + 1);
            // The next cuts meet a first boot again.
            cluster.start_afresh();
            cluster.prepare();
            cluster.verb("start", &[]);
        }
    }
    cluster.wait_healthy();
    assert_eq!(system_identifiers(cluster).len(), 1);
}

fn wrong_documents(cluster: &mut TestCluster) {
    cluster.healthy();
    let state = "stat -c '%n %Y %i' /var/lib/pgha/state.json /etc/patroni/config.yml";
    let before = cluster.on("pg-3", state);
    let cases = BTreeMap::from([
        ("s/cluster: .*/cluster: other/", "are those of the cluster `pgha-test`, the document is that of `other`"),
        ("s/address: 10.214.7.12/address: 10.214.7.11/", "10.214.7.11"),
        ("s/timing: .*/timing: quick/", "`quick`"),
        ("s/vip: .*/vip: {address: 192.0.2.1\\/24}/", "192.0.2.1"),
    ]);
    for (edit, reason) in cases {
        let script = format!(
            "cp -p /etc/pgha/cluster.yaml /run/kept; sed -i '{edit}' /etc/pgha/cluster.yaml; pgha-node init 2>/run/said; s=$?; \
             pgha-node status >>/run/said; cp -p /run/kept /etc/pgha/cluster.yaml; cat /run/said; exit $s"
        );
        let ran = cluster.try_on("pg-3", &script);
        assert_ne!(ran.status, Some(0), "{edit}");
        assert!(ran.stdout.contains(reason), "{edit}: {}", ran.stdout);
        assert_eq!(cluster.on("pg-3", state), before, "{edit}");
    }
    cluster.on("pg-3", "pgha-node init");
    cluster.wait_healthy();
}

fn compose(cluster: &mut TestCluster) {
    let program = ["docker compose version", "docker-compose version"]
        .into_iter()
        .find(|command| Ran::of(Command::new("sh").args(["-c", command])).status == Some(0));
    let Some(program) = program.map(|command| command.trim_end_matches(" version")) else {
        crate::testing::require("compose", false, "Compose is not installed");
        return;
    };
    let image = cluster.image();
    cluster.start_afresh();
    let seeds = cluster.folder().join("pgha-test-compose");
    let document = cluster.document(3);
    let mut seed = cluster.program();
    seed.arg("seed").arg(&document).arg("-o").arg(&seeds).args(["--compose", "--image", &image]);
    Ran::well(&mut seed);
    let text = fs::read_to_string(seeds.join("compose.yaml")).unwrap();
    // Ports of the host may be taken here.
    fs::write(
        seeds.join("compose.yaml"),
        text.replace("127.0.0.1:5000:", "127.0.0.1::")
            .replace("127.0.0.1:5001:", "127.0.0.1::")
            .replace("127.0.0.1:7000:", "127.0.0.1::"),
    )
    .unwrap();
    let run = |arguments: &str| {
        Ran::of(Command::new("sh").args(["-c", &format!("{program} {arguments}")]).current_dir(&seeds))
    };
    let up = run("up --detach");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert_eq!(up.status, Some(0), "{up:?}");
        wait("all three nodes to be ready", HEALED_WITHIN, || {
            for node in NODES {
                let ran = run(&format!("exec -T {node} pgha-node status"));
                if ran.status != Some(0) {
                    return Err(format!("{node}: {}{}", ran.stdout, ran.stderr));
                }
            }
            Ok(())
        });
    }));
    run("down --volumes");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
