//! What the verbs of `pgha-image cluster` do to virtual machines; whether PostgreSQL survives it is for whole images.

use super::{processes_in, qemu, write_guest};
use crate::support::{Ran, builder, wait};
use pgha_image::switch::Switch;
use std::{collections::BTreeMap, path::Path, time::Duration};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn ran(&self, arguments: &[&str]) -> Ran {
        Ran::of(builder().arg("cluster").args(arguments).env("XDG_STATE_HOME", self.folder.path().join("state")))
    }

    fn well(&self, arguments: &[&str]) -> String {
        let ran = self.ran(arguments);
        assert_eq!(ran.status, Some(0), "{arguments:?}\n{}", ran.stderr);
        ran.stdout
    }

    fn place(&self) -> std::path::PathBuf {
        self.folder.path().join("state/pgha-image/clusters/vm/qemu")
    }

    /// Whether each node runs.
    fn powers(&self) -> BTreeMap<String, String> {
        let status: serde_json::Value = serde_json::from_str(&self.well(&["status", "vm", "--json"])).unwrap();
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        status["nodes"].as_array().unwrap().iter().map(|node| (word(&node["node"]), word(&node["power"]))).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.ran(&["down", "vm"]);
    }
}

fn powers(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(node, power)| ((*node).to_owned(), (*power).to_owned())).collect()
}

#[test]
fn machines_of_a_cluster_are_started_broken_healed_and_removed() {
    if qemu().is_none() {
        return;
    }
    let bench = Bench { folder: tempfile::tempdir().unwrap() };
    let image = bench.folder.path().join("disk.img");
    write_guest(&image);
    let image = image.to_str().unwrap().to_owned();
    let up = ["up", "vm", "--driver", "qemu", "--nodes", "2", "--memory", "32", "--no-start", "--image"];
    let missing = bench.ran(&[&up[..], &["no/such.qcow2"]].concat());
    assert_eq!(missing.status, Some(2), "{}", missing.stderr);
    assert!(missing.stderr.contains("there is no image no/such.qcow2"), "{}", missing.stderr);
    bench.well(&[&up[..], &[image.as_str()]].concat());
    assert_eq!(bench.powers(), powers(&[("pg-1", "off"), ("pg-2", "off")]));

    bench.well(&["start", "vm"]);
    wait("the guests' words", Duration::from_secs(60), || {
        let logs = bench.well(&["logs", "vm"]);
        if logs.matches("ready").count() == 2 { Ok(()) } else { Err(logs) }
    });
    bench.well(&["pause", "vm", "pg-1"]);
    bench.well(&["kill", "vm", "pg-2"]);
    assert_eq!(bench.powers(), powers(&[("pg-1", "paused"), ("pg-2", "off")]));
    let killed = bench.ran(&["kill", "vm", "pg-2"]);
    assert!(killed.status == Some(1) && killed.stderr.contains("pg-2 is not running"), "{}", killed.stderr);

    bench.well(&["partition", "vm", "pg-1", "--wholly"]);
    let links = || {
        let status = Switch::open(&bench.place().join("switch.sock")).unwrap().status().unwrap();
        status.links.iter().map(|link| link.between.join("|")).collect::<Vec<_>>()
    };
    assert_eq!(links(), ["host|pg-1", "pg-1|pg-2"]);
    bench.well(&["heal", "vm"]);
    assert_eq!(links(), [""; 0]);

    // The switch is lost, as when the host was switched off, and comes back with the next start.
    let before = std::fs::read_to_string(bench.place().join("network.json")).unwrap();
    Switch::open(&bench.place().join("switch.sock")).unwrap().stop().unwrap();
    bench.well(&["start", "vm", "pg-2"]);
    assert_eq!(std::fs::read_to_string(bench.place().join("network.json")).unwrap(), before);
    bench.well(&["kill", "vm", "pg-2"]);

    bench.well(&["down", "vm"]);
    assert_eq!(processes_in(Path::new(&bench.folder.path())), [""; 0]);
    assert!(!bench.place().exists() && Switch::open(&bench.place().join("switch.sock")).is_none());
    assert_eq!(bench.ran(&["status", "vm"]).status, Some(2));
}
