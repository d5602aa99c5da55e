//! What the host does to nodes that have data.

use crate::{
    ground::{Ground, HEALED_WITHIN, NAME},
    support::{Ran, wait},
};
use std::fs;

/// Replacing a node and a document without it: never with the last good copy, and the primary hands over first.
pub fn last_copy(ground: &mut Ground) {
    ground.healthy();
    let door = ground.door(5000);
    let rows = "select count(*) from kept";
    door.ask("create table if not exists kept (id int); insert into kept select generate_series(1, 1000)").unwrap();
    let written = door.ask(rows).unwrap();
    let primary = ground.primary();
    let replicas: Vec<String> =
        ground.status().nodes.into_iter().map(|node| node.name).filter(|name| *name != primary).collect();
    let without = |node: &str| {
        let text = fs::read_to_string(ground.document(3)).unwrap();
        let text: String = text
            .lines()
            .filter(|line| !line.contains(&format!("name: {node},")))
            .map(|line| format!("{line}\n"))
            .collect();
        let path = ground.folder().join(format!("without-{node}.yaml"));
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let refused = |verb: &str, arguments: &[&str]| {
        let ran = Ran::of(ground.program().args(["cluster", verb, NAME]).args(arguments));
        assert!(ran.status == Some(1) && ran.stderr.contains("cannot go with its data"), "{verb}: {ran:?}");
        ran.stderr
    };
    let document = without(&primary);

    // With one replica off, etcd has no majority without the primary.
    ground.cluster("kill", &[&replicas[0]]);
    refused("replace", &[&primary]);
    refused("update", &[&document]);
    refused("replace", &[&replicas[1]]);
    ground.cluster("start", &[&replicas[0]]);
    ground.wait_healthy();

    // All nodes run, but only the primary has the data.
    for node in &replicas {
        ground.on(node, "systemctl stop patroni");
    }
    for (verb, arguments) in [("replace", vec![primary.as_str()]), ("update", vec![document.as_str()])] {
        let told = refused(verb, &[&arguments[..], &["--within", "20s"]].concat());
        assert!(told.contains("no other node has caught up"), "{told}");
    }
    for node in &replicas {
        ground.on(node, "systemctl start patroni");
    }
    ground.wait_healthy();
    assert_eq!(door.ask(rows).unwrap(), written);

    // With all others whole, it hands over, leaves, and comes back with an empty disk.
    ground.cluster("replace", &[&primary]);
    wait("the old primary to be a replica", ground.patience(HEALED_WITHIN), || {
        let status = ground.status();
        let node = status.nodes.iter().find(|node| node.name == primary).unwrap().clone();
        if node.state == "streaming" && status.ailment.is_empty() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    assert_ne!(ground.primary(), primary);
    ground.wait_healthy();
    assert_eq!(door.ask(rows).unwrap(), written);
}
