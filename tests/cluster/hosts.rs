//! What the host does to nodes that have data.

use crate::{
    support::{Ran, wait},
    test_cluster::{HEALED_WITHIN, NAME, TestCluster},
};
use std::fs;

/// Replacing a node and a document without it: never with the last good copy, and the primary hands over first.
pub fn last_copy(cluster: &mut TestCluster) {
    cluster.healthy();
    let door = cluster.door(5000);
    let rows = "select count(*) from kept";
    door.ask("create table if not exists kept (id int); insert into kept select generate_series(1, 1000)").unwrap();
    let written = door.ask(rows).unwrap();
    let primary = cluster.primary();
    let replicas: Vec<String> =
        cluster.status().nodes.into_iter().map(|node| node.name).filter(|name| *name != primary).collect();
    let without = |node: &str| {
        let text = fs::read_to_string(cluster.document(3)).unwrap();
        let text: String = text
            .lines()
            .filter(|line| !line.contains(&format!("name: {node},")))
            .map(|line| format!("{line}\n"))
            .collect();
        let path = cluster.folder().join(format!("without-{node}.yaml"));
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let refused = |verb: &str, arguments: &[&str]| {
        let ran = Ran::of(cluster.program().args(["cluster", verb, NAME]).args(arguments));
        assert!(ran.status == Some(1) && ran.stderr.contains("cannot go with its data"), "{verb}: {ran:?}");
        ran.stderr
    };
    let document = without(&primary);

    // With one replica off, etcd has no majority without the primary.
    cluster.verb("kill", &[&replicas[0]]);
    refused("replace", &[&primary]);
    refused("update", &[&document]);
    refused("replace", &[&replicas[1]]);
    cluster.verb("start", &[&replicas[0]]);
    cluster.wait_healthy();

    // All nodes run, but only the primary has the data.
    for node in &replicas {
        cluster.on(node, "systemctl stop patroni");
    }
    for (verb, arguments) in [("replace", vec![primary.as_str()]), ("update", vec![document.as_str()])] {
        let told = refused(verb, &[&arguments[..], &["--within", "20s"]].concat());
        assert!(told.contains("no other node has caught up"), "{told}");
    }
    for node in &replicas {
        cluster.on(node, "systemctl start patroni");
    }
    cluster.wait_healthy();
    assert_eq!(door.ask(rows).unwrap(), written);

    // With all others whole, it hands over, leaves, and comes back with an empty disk.
    cluster.verb("replace", &[&primary]);
    wait("the old primary to be a replica", cluster.patience(HEALED_WITHIN), || {
        let status = cluster.status();
        let node = status.nodes.iter().find(|node| node.name == primary).unwrap().clone();
        if node.state == "streaming" && status.problem.is_empty() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    assert_ne!(cluster.primary(), primary);
    cluster.wait_healthy();
    assert_eq!(door.ask(rows).unwrap(), written);
}
