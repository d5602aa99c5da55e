//! The gate before Patroni, on a real etcd and real files; what Patroni would do is done by hand.

use crate::confd::etcd::Cluster;
use pgha_image::{
    etcd::Client,
    files::Presence,
    node::{
        aside,
        begun::{Begun, Replaced, What},
        bootstrap::{Closed, Gate},
        database::Database,
        first::{self, Keys, Store, System},
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The system identifier in the control file of a real PostgreSQL 17.
const SYSTEM: &str = "7712652082925278041";
const INITIALIZE: &str = "/service/demo/initialize";

/// Nodes with a disk each, and one etcd.
struct Nodes {
    client: Client,
    roots: Vec<TempDir>,
    _cluster: Cluster,
}

/// How far a node comes.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Admitted,
    Waits(String),
    Refused(String),
}

impl Nodes {
    /// Nothing if etcd is not installed.
    fn new(nodes: usize) -> Option<Nodes> {
        let cluster = Cluster::start(1)?;
        let root = |_| {
            let root = tempfile::tempdir().unwrap();
            for folder in ["var/lib/pgha", "var/lib/postgresql/17"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            root
        };
        Some(Nodes { client: cluster.client(), roots: (0..nodes).map(root).collect(), _cluster: cluster })
    }

    fn root(&self, node: usize) -> &Path {
        self.roots[node].path()
    }

    fn main(&self, node: usize) -> PathBuf {
        self.root(node).join("var/lib/postgresql/17/main")
    }

    fn mark(&self, node: usize) -> Option<What> {
        match Begun::load(&self.root(node).join("var/lib/pgha/begun.json")) {
            Presence::Present(begun) => Some(begun.what),
            Presence::Absent => None,
            Presence::Unknown(doubt) => panic!("{doubt}"),
        }
    }

    fn with_gate<T>(&self, node: usize, forms: bool, act: impl FnOnce(&Gate<'_>) -> T) -> T {
        let (me, root) = (format!("pg-{}", node + 1), self.root(node).to_owned());
        act(&Gate { client: &self.client, cluster: "demo", me: &me, forms, version: 17, root })
    }

    /// Goes through the gate until it would wait.
    fn admit(&self, node: usize, forms: bool) -> Outcome {
        let mut told = String::new();
        let outcome = self.with_gate(node, forms, |gate| {
            gate.admit(|why| told = why.to_owned(), |_| Err(anyhow::anyhow!("enough waiting")))
        });
        match outcome {
            Ok(()) => Outcome::Admitted,
            Err(Closed::Refused(problem)) => Outcome::Refused(problem.message),
            Err(Closed::Failed(error)) => {
                assert_eq!(error.to_string(), "enough waiting");
                Outcome::Waits(told)
            }
        }
    }

    fn missing(&self, node: usize) -> Option<String> {
        self.with_gate(node, false, |gate| gate.missing().unwrap())
    }

    fn keys(&self) -> Keys {
        Store { client: &self.client, cluster: "demo" }.read().unwrap()
    }

    /// What initdb or a copy leaves, whole or cut off.
    fn write_database(&self, node: usize, whole: bool) {
        let main = self.main(node);
        fs::create_dir_all(main.join("global")).unwrap();
        fs::write(main.join("PG_VERSION"), "17\n").unwrap();
        if whole {
            let digits: String = include_str!("../../src/node/database/pg_control.hex").split_whitespace().collect();
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            let mut bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
            bytes.resize(8192, 0);
            fs::write(main.join("global/pg_control"), bytes).unwrap();
        }
    }

    fn asides(&self, node: usize) -> Vec<String> {
        aside::list(self.root(node)).unwrap().into_iter().map(|aside| aside.why).collect()
    }
}

#[test]
fn one_node_makes_the_first_database_and_the_others_copy_it() {
    let Some(nodes) = Nodes::new(3) else { return };
    // All at once: etcd decides.
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..3)
            .map(|node| {
                let nodes = &nodes;
                scope.spawn(move || nodes.admit(node, true))
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let makers: Vec<usize> = (0..3).filter(|node| outcomes[*node] == Outcome::Admitted).collect();
    let [maker] = makers[..] else { panic!("{outcomes:?}") };
    let other = (maker + 1) % 3;
    assert_eq!(nodes.mark(maker), Some(What::Bootstrap));
    assert_eq!(outcomes[other], Outcome::Waits(format!("the first database is being made on pg-{}", maker + 1)));
    assert_eq!(nodes.mark(other), None);

    // Patroni begins; the power fails, with half a database on the disk.
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    nodes.write_database(maker, false);
    assert!(matches!(nodes.admit(other, true), Outcome::Waits(_)), "another node's beginning stays");
    assert_eq!(nodes.keys().initialize.unwrap().value, "");
    assert_eq!(nodes.admit(maker, true), Outcome::Admitted);
    assert_eq!(nodes.keys().initialize, None);
    assert_eq!(nodes.asides(maker), ["unfinished"]);
    assert_eq!(nodes.mark(maker), Some(What::Bootstrap));

    // Again, and this time its roles are missing.
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    nodes.write_database(maker, true);
    assert!(nodes.missing(maker).is_some());
    assert_eq!(nodes.admit(maker, true), Outcome::Admitted);
    assert_eq!(nodes.asides(maker), ["unfinished", "unfinished"]);

    // And this time it is finished.
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    nodes.write_database(maker, true);
    nodes.client.put(INITIALIZE, SYSTEM, 0).unwrap();
    assert_eq!(nodes.missing(maker), None);
    assert_eq!(nodes.mark(maker), None);
    assert_eq!(nodes.keys().first.unwrap().value.system.as_deref(), Some(SYSTEM));

    // A copy that is cut off is made again; a whole one is not touched.
    assert_eq!(nodes.admit(other, true), Outcome::Admitted);
    assert_eq!(nodes.mark(other), Some(What::Clone));
    nodes.write_database(other, true);
    fs::write(nodes.main(other).join("backup_label"), "START WAL LOCATION").unwrap();
    assert_eq!(nodes.admit(other, true), Outcome::Admitted);
    assert_eq!(nodes.asides(other), ["unfinished-clone"]);
    nodes.write_database(other, true);
    assert_eq!(nodes.missing(other), None);
    assert_eq!((nodes.admit(other, true), nodes.mark(other)), (Outcome::Admitted, None));
    assert!(matches!(Database::look(&nodes.main(other)), Database::Present(_)));
}

#[test]
fn a_copy_that_replaces_a_database_is_made_again_where_a_primary_runs() {
    let Some(nodes) = Nodes::new(1) else { return };
    nodes.client.put(INITIALIZE, SYSTEM, 0).unwrap();
    nodes.client.put("/pgha/demo/first", format!(r#"{{"node": "pg-2", "system": "{SYSTEM}"}}"#), 0).unwrap();
    nodes.write_database(0, true);
    fs::create_dir_all(nodes.main(0).join("base/5")).unwrap();
    let replaces = Some(Replaced::of(&nodes.main(0)).unwrap());
    let begun = Begun { what: What::Clone, version: 17, revision: 9, time: 0, replaces };
    begun.store(&nodes.root(0).join("var/lib/pgha/begun.json")).unwrap();
    // Patroni was removing it when the power failed; what is left looks like a whole database.
    fs::remove_dir_all(nodes.main(0).join("base")).unwrap();
    assert!(matches!(Database::look(&nodes.main(0)), Database::Present(_)));
    let Outcome::Waits(why) = nodes.admit(0, false) else { panic!("does not wait") };
    assert!(why.contains("half of it may be gone") && nodes.asides(0).is_empty(), "{why}");
    assert!(nodes.missing(0).is_some());
    // The key of a leader may outlive it.
    nodes.client.put("/service/demo/leader", "pg-1", 0).unwrap();
    assert!(matches!(nodes.admit(0, false), Outcome::Waits(_)));
    nodes.client.put("/service/demo/leader", "pg-2", 0).unwrap();
    assert_eq!(nodes.admit(0, false), Outcome::Admitted);
    assert_eq!((nodes.asides(0), nodes.mark(0)), (vec!["half-replaced".to_owned()], Some(What::Clone)));
    nodes.write_database(0, true);
    assert_eq!((nodes.missing(0), nodes.mark(0)), (None, None));
    // A person's `patronictl reinit`, which was cut off at its end.
    fs::write(nodes.main(0).join("backup_label"), "BACKUP METHOD: streamed\n").unwrap();
    assert_eq!(nodes.admit(0, false), Outcome::Admitted);
    assert!(nodes.asides(0).contains(&"unfinished-clone".to_owned()) && nodes.mark(0).is_some());
}

#[test]
fn a_database_wins_over_an_emptied_key_and_is_told_to_all() {
    let Some(nodes) = Nodes::new(2) else { return };
    // A cluster of before: its key was emptied by hand.
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    assert!(matches!(nodes.admit(1, false), Outcome::Waits(_)));
    nodes.write_database(0, true);
    assert_eq!(nodes.admit(0, false), Outcome::Admitted);
    assert_eq!(nodes.keys().system(), System::Known(SYSTEM));
    assert_eq!((nodes.asides(0), nodes.mark(0)), (vec![], None));
    // Nobody makes another, and nobody copies before one serves.
    assert!(matches!(nodes.admit(1, true), Outcome::Waits(_)));
    nodes.client.put(INITIALIZE, SYSTEM, 0).unwrap();
    assert_eq!(nodes.admit(1, true), Outcome::Admitted);
    // Data of another database are refused, and stay.
    nodes.client.put("/pgha/demo/first", r#"{"node": "pg-2", "system": "1000000001"}"#, 0).unwrap();
    nodes.client.put(INITIALIZE, "1000000001", 0).unwrap();
    let Outcome::Refused(what) = nodes.admit(0, false) else { panic!("not refused") };
    assert!(what.contains(SYSTEM) && what.contains("1000000001"), "{what}");
    assert!(matches!(Database::look(&nodes.main(0)), Database::Present(_)));
    // Where the keys name both, a person says which of them is the cluster's.
    nodes.client.put(INITIALIZE, SYSTEM, 0).unwrap();
    assert!(matches!(nodes.admit(0, false), Outcome::Refused(_)));
    let store = Store { client: &nodes.client, cluster: "demo" };
    let keys = store.read().unwrap();
    let system = first::keeps(&keys, &Database::look(&nodes.main(0))).unwrap();
    assert!(store.keep(&keys, "pg-1", &system).unwrap());
    assert!(!store.keep(&keys, "pg-2", "1000000001").unwrap(), "the keys have changed");
    assert_eq!(nodes.keys().system(), System::Known(SYSTEM));
    assert_eq!(nodes.admit(0, false), Outcome::Admitted);
}

#[test]
fn what_cannot_be_read_or_was_not_begun_here_stays() {
    let Some(nodes) = Nodes::new(1) else { return };
    nodes.client.put(INITIALIZE, SYSTEM, 0).unwrap();
    // A loop of links stands in for a damaged inode.
    fs::create_dir_all(nodes.main(0)).unwrap();
    fs::write(nodes.main(0).join("PG_VERSION"), "17\n").unwrap();
    std::os::unix::fs::symlink("global", nodes.main(0).join("global")).unwrap();
    let Outcome::Waits(why) = nodes.admit(0, false) else { panic!("does not wait") };
    assert!(why.contains("it is not known what is on the disk"), "{why}");
    fs::remove_file(nodes.main(0).join("global")).unwrap();
    let Outcome::Refused(what) = nodes.admit(0, false) else { panic!("not refused") };
    assert!(what.contains("no global/pg_control"), "{what}");
    assert!(nodes.main(0).join("PG_VERSION").exists() && nodes.asides(0).is_empty());
}

#[test]
fn a_person_gives_the_first_database_to_another_node() {
    let Some(nodes) = Nodes::new(2) else { return };
    assert_eq!(nodes.admit(0, true), Outcome::Admitted);
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    let store = Store { client: &nodes.client, cluster: "demo" };
    let old = nodes.keys();
    assert!(store.take(&old, "pg-2").unwrap());
    assert!(!store.take(&old, "pg-1").unwrap(), "the keys are not as they were seen");
    assert_eq!(nodes.keys().initialize, None);
    assert_eq!(nodes.admit(1, false), Outcome::Admitted);
    assert_eq!(nodes.admit(0, true), Outcome::Waits("the first database is being made on pg-2".into()));
    // What is begun after that is pg-2's.
    nodes.client.put(INITIALIZE, "", 0).unwrap();
    assert_eq!(nodes.admit(1, false), Outcome::Admitted);
}
