//! The node's agent against real members of etcd.

use crate::confd::{etcd::Cluster, free_port, wait_for};
use crate::testing::{require, require_root};
use pgha_image::{
    etcd::{Client, RangeRequest, Settings},
    node::{
        agent::{
            document::{self, Given, Place, count_in},
            repair::{
                decide::{self, Own, Primary, Server, Slot, Step, View, Way, Why, next},
                question, read,
            },
            sql::lsn,
            store::{self, Limits},
            turn::{Turn, Turns},
        },
        first::Store,
    },
};
use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const QUOTA: u64 = 16 << 20;

/// One agent beside each member.
struct Agents {
    agents: Vec<(store::Store, Client, String)>,
    now: Instant,
}

impl Agents {
    fn beside(cluster: &Cluster) -> Agents {
        let agent = |number| {
            let endpoint = cluster.url(number);
            let client = Client::new(Settings { endpoints: vec![endpoint.clone()], ..cluster.settings() }).unwrap();
            (store::Store::with(Limits { quota: QUOTA, floor: 2 << 20 }), client, endpoint)
        };
        Agents { agents: (0..cluster.members.len()).map(agent).collect(), now: Instant::now() }
    }

    /// Lets every agent look once, half a minute after the last time; returns all that is told.
    fn look(&mut self) -> Vec<String> {
        self.now += Duration::from_secs(30);
        let now = self.now;
        let looks =
            self.agents.iter_mut().filter_map(|(store, client, endpoint)| store.look(client, endpoint, now).ok());
        looks.flatten().map(|told| told.text).collect()
    }

    fn sizes(&self) -> Vec<u64> {
        self.agents
            .iter()
            .map(|(_, client, endpoint)| client.status(endpoint).map_or(0, |status| status.db_size))
            .collect()
    }
}

/// A cluster of `count` with a small quota.
fn small(count: usize) -> Option<Cluster> {
    Cluster::start_with(count, None, &["--quota-backend-bytes", &QUOTA.to_string()])
}

#[test]
fn a_store_that_is_full_is_writable_again_without_a_person() {
    for count in [1, 3] {
        let Some(cluster) = small(count) else { return };
        let client = cluster.client();
        let mut agents = Agents::beside(&cluster);
        assert_eq!(agents.look(), [""; 0]);
        let page = vec![7; 512 << 10];
        wait_for("the quota to be used up", || client.put("/history", &page, 0).is_err());
        wait_for("the alarm", || {
            client.alarms().is_ok_and(|alarms| alarms.iter().any(|alarm| alarm.kind == "NOSPACE"))
        });
        assert!(client.lease_grant(5).is_err(), "a lock could not be taken now");
        let told = agents.look();
        assert_eq!(told.iter().filter(|text| text.contains("space is used up")).count(), count, "{told:?}");
        wait_for("the store to take writes", || {
            agents.look();
            client.put("/again", "1", 0).is_ok()
        });
        assert!(client.alarms().unwrap().is_empty());
        assert!(agents.sizes().iter().all(|size| *size < QUOTA / 4), "{:?}", agents.sizes());
        assert_eq!(client.get("/history").unwrap().unwrap().value, page, "what is current is kept");
        assert_eq!(agents.look(), [""; 0]);
    }
}

#[test]
fn a_store_that_is_mostly_empty_is_made_small_before_it_is_full() {
    let Some(cluster) = small(3) else { return };
    let client = cluster.client();
    let page = vec![7; 64 << 10];
    for number in 0..100 {
        client.put(&format!("/bulk/{number}"), &page, 0).unwrap();
    }
    client.delete(&RangeRequest::prefix("/bulk/")).unwrap();
    let revision = client.put("/kept", "1", 0).unwrap();
    client.compact_physically(revision).unwrap();
    let mut agents = Agents::beside(&cluster);
    assert!(agents.sizes().iter().all(|size| *size > 4 << 20), "{:?}", agents.sizes());
    wait_for("the files to be small", || {
        // A member learns what is free with its next write.
        client.put("/tick", "1", 0).unwrap();
        agents.look();
        agents.sizes().iter().all(|size| *size < 1 << 20)
    });
    assert_eq!(client.get("/kept").unwrap().unwrap().value, b"1");
}

#[test]
fn a_store_that_is_full_is_writable_again_while_a_member_is_away_and_when_it_is_back() {
    let Some(mut cluster) = small(3) else { return };
    let client = cluster.client();
    let mut agents = Agents::beside(&cluster);
    let page = vec![7; 512 << 10];
    wait_for("the quota to be used up", || client.put("/history", &page, 0).is_err());
    let leader = cluster.leader();
    cluster.kill((leader + 1) % 3);
    wait_for("the store to take writes", || {
        agents.look();
        client.put("/again", "1", 0).is_ok()
    });
    cluster.kill((leader + 2) % 3);
    agents.look();
    cluster.launch((leader + 1) % 3);
    cluster.launch((leader + 2) % 3);
    wait_for("all files to be small and the store to take writes", || {
        agents.look();
        agents.sizes().iter().all(|size| *size > 0 && *size < QUOTA / 2) && client.put("/back", "1", 0).is_ok()
    });
    assert!(client.alarms().unwrap().is_empty());
}

#[test]
fn a_key_that_is_gone_is_written_back_only_while_nobody_leads() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let store = Store { client: &client, cluster: "demo" };
    client.put("/pgha/demo/first", r#"{"node": "pg-1", "system": "7"}"#, 0).unwrap();
    let initialize = || client.get("/service/demo/initialize").unwrap().map(|key| key.value);
    client.put("/service/demo/leader", "pg-1", 0).unwrap();
    assert!(store.leader().unwrap().is_some());
    assert!(!store.restore(&store.read().unwrap(), "7").unwrap());
    client.delete(&RangeRequest::key("/service/demo/leader")).unwrap();
    // Somebody else writes between the look and the act.
    let before = store.read().unwrap();
    client.put("/service/demo/initialize", "8", 0).unwrap();
    assert!(!store.restore(&before, "7").unwrap());
    assert_eq!(initialize(), Some(b"8".to_vec()));
    client.delete(&RangeRequest::key("/service/demo/initialize")).unwrap();
    assert!(store.restore(&store.read().unwrap(), "7").unwrap());
    assert_eq!(initialize(), Some(b"7".to_vec()));
}

#[test]
fn the_newest_document_is_known_to_all() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let document = |name: &str| document::Own { digest: name.to_owned(), members: vec![name.to_owned()] };
    let count = |name: &str, given| count_in(&client, "/pgha/demo/document", &document(name), given).unwrap();
    assert_eq!(count("a", Given::LeavesOut).0, Place::Unknown);
    assert_eq!(client.get("/pgha/demo/document").unwrap(), None);
    assert_eq!(count("a", Given::NamesAll).0, Place::Current);
    assert_eq!(count("a", Given::LeavesOut).1.generation, 1);
    assert_eq!(count("b", Given::NamesAll).1.generation, 2);
    let (place, record) = count("a", Given::NamesAll);
    assert_eq!((place, record.members), (Place::Older { generation: 1, newest: 2 }, vec!["b".to_owned()]));
    assert_eq!(count("a", Given::OnPurpose).1.generation, 3);
    assert_eq!(count("b", Given::NamesAll).0, Place::Older { generation: 2, newest: 3 });
    // A value that is not understood does not let another be written.
    client.put("/pgha/demo/document", "{", 0).unwrap();
    assert!(count_in(&client, "/pgha/demo/document", &document("c"), Given::OnPurpose).is_err());
    assert_eq!(client.get("/pgha/demo/document").unwrap().unwrap().value, b"{");
}

#[test]
fn one_node_at_a_time_has_its_turn() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let turn = |name: &'static str| Turns::new(&client, "/pgha/demo/repair", name);
    let Turn::Ours(lease) = turn("pg-2").take().unwrap() else { panic!("not taken") };
    assert_eq!(turn("pg-3").take().unwrap(), Turn::Taken("pg-2".into()));
    assert_eq!(turn("pg-2").take().unwrap(), Turn::Ours(lease), "an agent that starts again goes on");
    turn("pg-3").give_back().unwrap();
    assert_eq!(turn("pg-2").look().unwrap(), Turn::Ours(lease));
    turn("pg-2").give_back().unwrap();
    assert_eq!(turn("pg-3").look().unwrap(), Turn::Free);
    assert!(matches!(turn("pg-3").take().unwrap(), Turn::Ours(_)));
    // Who holds it has died.
    let Some(key) = client.get("/pgha/demo/repair").unwrap() else { panic!("no key") };
    client.lease_revoke(key.lease).unwrap();
    assert!(matches!(turn("pg-2").take().unwrap(), Turn::Ours(_)));
}

/// A primary and its replica of the PostgreSQL that is installed; dropped, they are killed.
struct Servers {
    bin: PathBuf,
    folder: TempDir,
    user: (u32, u32),
    port: u16,
    children: Vec<Child>,
}

impl Servers {
    /// A primary, if there is a PostgreSQL and this is root, who may become its user.
    fn primary() -> Option<Servers> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let bin = versions.map(|entry| entry.path().join("bin")).max();
        let owner = String::from_utf8(Command::new("id").arg("postgres").output().ok()?.stdout).ok()?;
        let number = |name: &str| owner.split(name).nth(1)?.split('(').next()?.parse().ok();
        let found = (bin, number("uid="), number("gid="));
        let (Some(bin), Some(user), Some(group)) = found else {
            require("postgresql", false, "PostgreSQL is not installed");
            return None;
        };
        // Only root can start PostgreSQL as another user.
        if !require_root() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        let mut servers = Servers { bin, folder, user: (user, group), port: free_port(), children: Vec::new() };
        servers.run("initdb", &["--auth=trust", "--username=postgres", "--no-sync", "-D", &servers.data("primary")]);
        servers.start("primary");
        Some(servers)
    }

    fn data(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(self.bin.join(program));
        command.uid(self.user.0).gid(self.user.1).current_dir(self.folder.path()).env("LC_ALL", "C");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn start(&mut self, name: &str) {
        let port = if name == "primary" { self.port } else { self.port + 1 };
        let (data, sockets) = (self.data(name), self.folder.path().display().to_string());
        let mut command = self.command("postgres");
        command.args(["-D", &data, "-k", &sockets, "-p", &port.to_string(), "-c", "listen_addresses="]);
        for setting in ["fsync=off", "max_slot_wal_keep_size=32MB", "min_wal_size=32MB", "max_wal_size=32MB"] {
            command.args(["-c", setting]);
        }
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        self.children.push(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        wait_for("PostgreSQL to start", || {
            self.command("pg_isready").args(["-q", "-h", &sockets, "-p", &port.to_string()]).status().unwrap().success()
        });
    }

    fn ask(&self, name: &str, sql: &str) -> String {
        let (port, sockets) = (if name == "primary" { self.port } else { self.port + 1 }, self.folder.path().display());
        let target = format!("host={sockets} port={port} user=postgres dbname=postgres");
        self.run("psql", &["-XAtq", "-d", &target, "-c", sql]).trim().to_owned()
    }

    fn view(&self, me: &str) -> Primary {
        // libpq's name for a replica stands in for that of a member, which Patroni gives.
        let members = ["pg-1", "pg-2", "walreceiver"];
        read("pg-1", me, &members, &self.ask("primary", &question(me)), None).unwrap().0
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_primary_tells_what_a_replica_has_missed() {
    let Some(mut servers) = Servers::primary() else { return };
    servers.ask("primary", "SELECT pg_create_physical_replication_slot('pg_2', true)");
    let (data, target) = (
        servers.data("replica"),
        format!("host={} port={} user=postgres", servers.folder.path().display(), servers.port),
    );
    servers
        .run("pg_basebackup", &["-D", &data, "-d", &target, "-R", "-S", "pg_2", "-X", "stream", "--checkpoint=fast"]);
    let conninfo = std::fs::read_to_string(format!("{data}/postgresql.auto.conf")).unwrap();
    assert!(conninfo.contains("primary_slot_name"));
    servers.start("replica");
    wait_for("the replica to stream", || servers.ask("primary", "SELECT count(*) FROM pg_stat_replication") == "1");
    let well = servers.view("pg-2");
    assert_eq!((well.timeline, well.slot, &well.history[..]), (1, Slot::Good, &[][..]));
    assert_eq!(well.others, 1);
    assert_eq!(servers.view("pg-7").slot, Slot::Missing);
    let own = Own {
        system: servers.ask("replica", "SELECT system_identifier FROM pg_control_system()"),
        timeline: 1,
        position: lsn(&servers.ask("replica", "SELECT pg_last_wal_receive_lsn()")).unwrap(),
        history: Some(Vec::new()),
        exact: true,
    };
    let mut replica = servers.children.pop().unwrap();
    replica.kill().unwrap();
    replica.wait().unwrap();
    wait_for("the slot to be lost", || {
        servers.ask(
            "primary",
            "SELECT pg_switch_wal() FROM pg_logical_emit_message(true, 'x', 'y'), generate_series(1, 1)",
        );
        servers.ask("primary", "CHECKPOINT");
        servers.view("pg-2").slot == Slot::Lost
    });
    let hour = Duration::from_secs(3600);
    let view = |primary| View {
        server: Server::Apart("PostgreSQL runs and does not stream".into()),
        absent: hour,
        still: hour,
        paused: false,
        primary: Ok(primary),
        own: Ok(own.clone()),
        waits: None,
        rewind_failed: false,
        restarted: false,
        dropped: false,
        room: Ok(()),
        turn: decide::Turn::Ours,
        last: None,
        order: None,
    };
    let lost = servers.view("pg-2");
    assert_eq!(lost.system, own.system);
    let expected = if own.position < lost.oldest { Step::Repair(Why::WalGone, Way::Aside) } else { Step::DropSlot };
    assert_eq!(next(&view(lost)), expected);
    assert_eq!(expected, Step::Repair(Why::WalGone, Way::Aside), "a checkpoint removes what no slot holds");
    servers.ask("primary", "SELECT pg_drop_replication_slot('pg_2') WHERE 'lost' = 'lost'");
    assert_eq!(next(&view(servers.view("pg-2"))), Step::Repair(Why::WalGone, Way::Aside));
}
