//! The engines of this machine load what we write, and hold clusters that leave each other alone.

use crate::{
    support::{Ran, builder, wait},
    testing::{require, require_program},
};
use pgha_image::{
    container_engine::{ContainerSpec, ContainerState, Engine, NetworkSpec, Which},
    error::report,
    image::{
        compress::Compression,
        oci::{OciImage, OciLayer, OciSpec},
    },
    model::Arch,
    progress::{Progress, Style},
    rootfs::{Entry, tar::LayerWriter},
    store::Store,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
    thread,
    time::Duration,
};

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

/// An image of two layers, of which the upper one removes a file, under a name of this process's own.
fn image(folder: &Path, name: &str) -> OciImage {
    let store = Store::open(&folder.join("store")).unwrap();
    let mut base = LayerWriter::new(&store).unwrap();
    let file = Entry::directory(0o644, 0);
    base.set("/etc".parse().unwrap(), Entry::directory(0o755, 0)).unwrap();
    base.set_file("/etc/gone".parse().unwrap(), file.clone(), 4, &mut &b"gone"[..]).unwrap();
    base.set_file("/etc/stays".parse().unwrap(), file, 5, &mut &b"stays"[..]).unwrap();
    let mut overlay = LayerWriter::new(&store).unwrap();
    overlay.set("/etc".parse().unwrap(), Entry::directory(0o755, 0)).unwrap();
    overlay.remove("/etc/gone".parse().unwrap()).unwrap();
    let layers = [("base", base), ("overlay", overlay)]
        .map(|(title, writer)| OciLayer { title: title.to_owned(), layer: writer.finish().unwrap().0 });
    let spec = OciSpec {
        references: vec![format!("{name}:{}", std::process::id()).parse().unwrap()],
        arch: Arch::HOST,
        created: 1_700_000_000,
        layers: layers.into(),
        compression: Compression::GZIP,
        ports: vec![],
        annotations: Default::default(),
    };
    OciImage::assemble(&store, &spec, &silent()).unwrap()
}

#[test]
fn real_engines_load_the_archive() {
    for (name, which) in [("docker", Which::Docker), ("podman", Which::Podman)] {
        let engine = match Engine::connect(which) {
            Ok(engine) => engine,
            Err(error) => {
                require(name, false, error);
                continue;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), "pgha-image-test-load");
        let archive = image.write_archive(&folder.path().join("image.tar"), &silent()).unwrap().path;
        let loaded = engine.load(&archive, &silent()).unwrap();
        assert_eq!(loaded.len(), 1, "{loaded:?}");
        assert!(loaded[0].reference.ends_with(&image.references()[0].to_string()), "{loaded:?}");
        // The id is the configuration's digest, or the manifest's where containerd keeps the images.
        assert!(
            [image.config(), image.manifest()].map(|digest| digest.hex()).iter().any(|hex| loaded[0].id.ends_with(hex))
        );
        engine.remove_image(&loaded[0].reference).unwrap();
        assert_eq!(engine.image_id(&loaded[0].reference).unwrap(), None);

        let broken = folder.path().join("broken.tar");
        fs::write(&broken, vec![b'x'; 2 << 20]).unwrap();
        let error = engine.load(&broken, &silent()).unwrap_err();
        assert!(report(&error).contains(&format!("{} refused: ", engine.kind())), "{}", report(&error));
    }
}

/// A program for `/sbin/init` that does nothing until it is killed: an ELF file whose code is `pause()` in a loop.
fn idle_init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    // mov $34, %eax; syscall; jmp back
    const CODE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let size = 64 + 56 + CODE.len() as u64;
    half(&mut file, &[2, 62]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + 120, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(CODE);
    file
}

/// The engine that clusters use here, and an image in it whose nodes do nothing; `None` where there is no engine.
struct Idle {
    engine: Engine,
    image: String,
    folder: tempfile::TempDir,
    names: Vec<String>,
}

/// Images are loaded one after the other.
static LOADING: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

impl Idle {
    fn new(test: &str) -> Option<Idle> {
        let engine = match Engine::connect(Which::Auto) {
            Ok(engine) => engine,
            Err(error) => {
                require("docker", false, error);
                return None;
            }
        };
        if !require("amd64", cfg!(target_arch = "x86_64"), "the idle program is for amd64") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let mut layer = LayerWriter::new(&store).unwrap();
        layer.set("/sbin".parse().unwrap(), Entry::directory(0o755, 0)).unwrap();
        let init = idle_init();
        let size = init.len() as u64;
        layer.set_file("/sbin/init".parse().unwrap(), Entry::directory(0o755, 0), size, &mut &init[..]).unwrap();
        let name = format!("pgha-image-test-{test}:{}", std::process::id());
        let spec = OciSpec {
            references: vec![name.parse().unwrap()],
            arch: Arch::HOST,
            created: 1_700_000_000,
            layers: vec![OciLayer { title: "idle".to_owned(), layer: layer.finish().unwrap().0 }],
            compression: Compression::GZIP,
            ports: vec![],
            annotations: Default::default(),
        };
        let image = OciImage::assemble(&store, &spec, &silent()).unwrap();
        let archive = image.write_archive(&folder.path().join("image.tar"), &silent()).unwrap().path;
        let loaded = {
            let _one = LOADING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            engine.load(&archive, &silent()).unwrap()
        };
        Some(Idle { engine, image: loaded[0].reference.clone(), folder, names: Vec::new() })
    }

    /// A cluster's name that no other test has; what has it goes with this value.
    fn name(&mut self, word: &str) -> String {
        let name = format!("{word}-{}", std::process::id());
        self.names.push(name.clone());
        name
    }

    /// Somebody with a state folder of their own.
    fn user(&self, name: &str) -> User {
        User { state: self.folder.path().join(name), image: self.image.clone() }
    }

    /// The containers of a cluster by name: id and whether each runs; and the ids of its networks.
    fn seen(&self, cluster: &str) -> (BTreeMap<String, (String, ContainerState)>, Vec<String>) {
        let of = |labels: &BTreeMap<String, String>| labels.get("io.pgha.cluster").is_some_and(|name| name == cluster);
        let containers = self.engine.containers(|_, labels| of(labels)).unwrap();
        let networks = self.engine.networks().unwrap();
        let name = format!("pgha-{cluster}");
        (
            containers.into_iter().map(|one| (one.name, (one.id, one.state))).collect(),
            networks.into_iter().filter(|network| network.name == name).map(|network| network.id).collect(),
        )
    }

    fn is_empty(&self, cluster: &str) -> bool {
        let (containers, networks) = self.seen(cluster);
        containers.is_empty() && networks.is_empty()
    }

    fn remove(&self, cluster: &str) {
        let (containers, networks) = self.seen(cluster);
        for (id, _) in containers.values() {
            let _ = self.engine.remove_container(id);
        }
        for id in networks {
            let _ = self.engine.remove_network(&id);
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for name in &self.names {
            self.remove(name);
        }
        let _ = self.engine.remove_image(&self.image);
    }
}

/// Somebody with a state folder of their own.
struct User {
    state: PathBuf,
    image: String,
}

impl User {
    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = builder();
        command.env("XDG_STATE_HOME", &self.state).args(["cluster", verb]).args(arguments);
        command
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(verb, arguments))
    }

    fn well(&self, verb: &str, arguments: &[&str]) -> Ran {
        Ran::well(&mut self.command(verb, arguments))
    }

    /// `cluster up` of a cluster whose nodes are not started.
    fn up(&self, name: &str, nodes: &str) -> Command {
        self.command("up", &[name, "--nodes", nodes, "--no-start", "--image", &self.image])
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.state.join("pgha-image/clusters").join(name)
    }

    fn document(&self, name: &str) -> String {
        fs::read_to_string(self.folder(name).join("cluster.yaml")).unwrap()
    }

    /// It is refused with these words.
    fn refused(&self, verb: &str, arguments: &[&str], words: &[&str]) {
        let ran = self.run(verb, arguments);
        assert!(matches!(ran.status, Some(1 | 2)), "{verb} {arguments:?}: {ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{verb} {arguments:?} does not say `{word}`: {}", ran.stderr);
        }
    }
}

#[test]
fn a_cluster_is_safe_from_all_who_do_not_know_it() {
    let Some(mut idle) = Idle::new("strangers") else { return };
    let name = idle.name("vic");
    let (ada, bob) = (idle.user("ada"), idle.user("bob"));
    Ran::well(&mut ada.up(&name, "2"));
    ada.well("start", &[&name]);
    let before = idle.seen(&name);
    assert_eq!((before.0.len(), before.1.len()), (2, 1));
    assert!(before.0.values().all(|(_, state)| *state == ContainerState::Running), "{before:?}");

    let ran = Ran::of(&mut bob.up(&name, "1"));
    assert_eq!(ran.status, Some(2), "{ran:?}");
    for word in ["already", &format!("container pgha-{name}-pg-1 (running), made by "), "cluster adopt", "another name"]
    {
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    }
    let unknown = format!("there is no cluster `{name}`");
    bob.refused("start", &[&name], &[&unknown]);
    bob.refused("kill", &[&name, "pg-1"], &[&unknown]);
    bob.refused("replace", &[&name, "pg-1", "--force"], &[&unknown]);
    bob.refused("down", &[&name], &["nothing was removed", "--force"]);
    bob.refused("down", &[&name, "--yes"], &["nothing was removed", "--force"]);
    assert_eq!(idle.seen(&name), before, "nothing of it was touched");
    assert!(!bob.folder(&name).exists(), "no folder is left of what was refused");

    // What is asked for again must be what is there.
    ada.refused("up", &[&name, "--nodes", "3", "--timing", "quick"], &["--nodes 3: it has 2", "--timing quick"]);
    ada.refused("up", &[&name, "--image", "nope", "--memory", "100"], &["--image nope", "--memory"]);
    Ran::well(&mut ada.up(&name, "2"));
    assert_eq!(idle.seen(&name), before);
    // A node is not removed for one that cannot be made.
    let record = ada.folder(&name).join("record.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace(&idle.image, "pgha-image-test-none")).unwrap();
    ada.refused("replace", &[&name, "pg-1", "--force"], &["has no image pgha-image-test-none"]);
    fs::write(&record, text).unwrap();
    assert_eq!(idle.seen(&name), before);

    // Ada's cluster is gone, and Bob has one of the same name: Ada's record is not a right to his.
    idle.remove(&name);
    Ran::well(&mut bob.up(&name, "2"));
    let before = idle.seen(&name);
    for (verb, arguments) in [
        ("start", vec![name.as_str()]),
        ("kill", vec![&name, "pg-1"]),
        ("status", vec![&name]),
        ("heal", vec![&name]),
        ("replace", vec![&name, "pg-1"]),
        ("replace", vec![&name, "pg-1", "--force"]),
    ] {
        let ran = ada.run(verb, &arguments);
        if verb != "heal" {
            assert!(ran.stderr.contains("is not this cluster's: it was made by"), "{verb}: {ran:?}");
        }
        assert_eq!(idle.seen(&name), before, "{verb} {arguments:?}");
    }
    let smaller = ada.document(&name).replace("  - {name: pg-2", "  # {name: pg-2");
    let file = idle.folder.path().join("smaller.yaml");
    fs::write(&file, smaller).unwrap();
    ada.refused("update", &[&name, file.to_str().unwrap(), "--force"], &["is not this cluster's"]);
    ada.refused("down", &[&name], &["nothing was removed", "--yes"]);
    assert_eq!(idle.seen(&name), before);
    let ran = ada.well("down", &[&name, "--yes"]);
    assert!(ran.stdout.contains("stays without --force"), "{ran:?}");
    assert_eq!(idle.seen(&name), before, "Ada's record alone is forgotten");
    ada.refused("status", &[&name], &[&unknown]);

    // His own goes without a question; what goes is told.
    let ran = bob.well("down", &[&name]);
    for word in [format!("container pgha-{name}-pg-2 (off)"), format!("network pgha-{name} (10.213."), "folder ".into()]
    {
        assert!(ran.stdout.contains(&word), "{word}: {}", ran.stdout);
    }
    assert!(idle.is_empty(&name));
    // With force, it goes whoever made it.
    Ran::well(&mut bob.up(&name, "1"));
    ada.well("down", &[&name, "--force"]);
    assert!(idle.is_empty(&name));
}

#[test]
fn a_cluster_whose_state_folder_is_lost_is_adopted() {
    let Some(mut idle) = Idle::new("adopted") else { return };
    let name = idle.name("lost");
    let (ada, bob) = (idle.user("ada"), idle.user("bob"));
    ada.refused("adopt", &[&name], &["has no containers of a cluster"]);
    Ran::well(&mut ada.up(&name, "2"));
    ada.refused("adopt", &[&name], &["is remembered in"]);
    let before = idle.seen(&name);
    let document = ada.document(&name);
    fs::remove_dir_all(&ada.state).unwrap();
    let ran = Ran::of(&mut ada.up(&name, "2"));
    assert!(ran.status == Some(2) && ran.stderr.contains(&format!("pgha-image cluster adopt {name}")), "{ran:?}");
    let ran = ada.well("adopt", &[&name]);
    assert!(ran.stdout.contains("pg-2"), "{ran:?}");
    assert_eq!(ada.document(&name), document);
    assert_eq!(idle.seen(&name), before, "it was only looked at");
    ada.well("start", &[&name, "pg-1"]);
    let now = idle.seen(&name);
    assert_eq!(now.0[&format!("pgha-{name}-pg-1")].0, before.0[&format!("pgha-{name}-pg-1")].0);
    // A node that is made now is as much the cluster's as the others.
    ada.well("replace", &[&name, "pg-2", "--force"]);
    let now = idle.seen(&name);
    assert_ne!(now.0[&format!("pgha-{name}-pg-2")].0, before.0[&format!("pgha-{name}-pg-2")].0);

    // Another user adopts it, too, and is asked before it goes.
    bob.well("adopt", &[&name]);
    bob.refused("down", &[&name], &["not everything", "nothing was removed", "--yes"]);
    assert_eq!(idle.seen(&name), now);
    ada.well("status", &[&name]);
    bob.well("down", &[&name, "--yes"]);
    assert!(idle.is_empty(&name));
    ada.well("down", &[&name]);
}

/// The shape of clusters that an earlier version made: neither creation ids nor owners.
#[test]
fn clusters_of_an_earlier_version_are_known_by_their_secret() {
    let Some(mut idle) = Idle::new("earlier") else { return };
    let name = idle.name("old");
    let number = std::process::id() % 200;
    let document = |secret: &str| {
        let secret = format!("{}{}=", secret.repeat(10), &secret[..3]);
        format!(
            "schema: 1\ncluster: {name}\nsecret: {secret}\nmembers:\n  - {{name: pg-1, address: 10.215.{number}.11}}\n  \
             - {{name: pg-2, address: 10.215.{number}.12}}\n"
        )
    };
    let labels = |node: Option<&str>| -> BTreeMap<String, String> {
        let cluster = ("io.pgha.cluster".to_owned(), name.clone());
        let node = node.map(|node| ("io.pgha.node".to_owned(), node.to_owned()));
        [Some(cluster), node].into_iter().flatten().collect()
    };
    let gateway = format!("10.215.{number}.1").parse().unwrap();
    let subnet = format!("10.215.{number}.0/24");
    idle.engine
        .create_network(&NetworkSpec {
            name: format!("pgha-{name}"),
            subnet: subnet.clone(),
            gateway,
            labels: labels(None),
        })
        .unwrap();
    for (node, address) in [("pg-1", 11), ("pg-2", 12)] {
        let id = idle
            .engine
            .create_container(&ContainerSpec {
                name: format!("pgha-{name}-{node}"),
                image: idle.image.clone(),
                host_name: node.to_owned(),
                network: format!("pgha-{name}"),
                address: format!("10.215.{number}.{address}").parse().unwrap(),
                ports: vec![],
                memory: None,
                labels: labels(Some(node)),
            })
            .unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let text = document("BwcH");
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, "etc/pgha/cluster.yaml", text.as_bytes()).unwrap();
        idle.engine.put_archive(&id, "/", archive.into_inner().unwrap()).unwrap();
    }
    let record = format!(
        r#"{{"schema": 1, "driver": "docker", "image": "{}", "memory": null,
        "ground": {{"cluster": "{name}", "subnet": "{subnet}", "gateway": "{gateway}", "vip": null}}}}"#,
        idle.image
    );
    let remember = |user: &User, secret: &str| {
        fs::create_dir_all(user.folder(&name)).unwrap();
        fs::write(user.folder(&name).join("cluster.yaml"), document(secret)).unwrap();
        fs::write(user.folder(&name).join("record.json"), &record).unwrap();
    };
    let (ada, bob, eve) = (idle.user("ada"), idle.user("bob"), idle.user("eve"));
    remember(&ada, "BwcH");
    remember(&eve, "CQkJ");
    let before = idle.seen(&name);
    eve.refused("start", &[&name], &["is not this cluster's: it was made by an earlier version"]);
    eve.refused("down", &[&name], &["nothing was removed"]);
    assert_eq!(idle.seen(&name), before);
    ada.well("start", &[&name]);
    ada.well("replace", &[&name, "pg-2", "--force"]);
    bob.well("adopt", &[&name]);
    bob.well("kill", &[&name, "pg-1"]);
    bob.refused("down", &[&name], &["nothing was removed"]);
    ada.well("status", &[&name]);
    ada.well("down", &[&name]);
    assert!(idle.is_empty(&name));
}

#[test]
fn a_failed_up_removes_only_what_it_made() {
    let Some(mut idle) = Idle::new("failed") else { return };
    let (name, other) = (idle.name("part"), format!("part-{}-pg", std::process::id()));
    idle.names.push(other.clone());
    let (ada, bob) = (idle.user("ada"), idle.user("bob"));
    // The node `2` of this cluster has the name that the node `pg-2` of the other one would have.
    let number = std::process::id() % 200;
    let file = idle.folder.path().join("other.yaml");
    let text = format!("schema: 1\ncluster: {other}\nmembers: [{{name: '2', address: 10.216.{number}.12}}]\n");
    fs::write(&file, text).unwrap();
    bob.well("up", &["--spec", file.to_str().unwrap(), "--no-start", "--image", &idle.image]);
    let before = idle.seen(&other);
    let ran = Ran::of(&mut ada.up(&name, "3"));
    assert!(ran.status == Some(1) && ran.stderr.contains("is already in use"), "{ran:?}");
    assert_eq!(idle.seen(&other), before);
    assert!(idle.is_empty(&name), "{:?}", idle.seen(&name));
    assert!(!ada.folder(&name).exists());

    // Addresses that are another's.
    let file = idle.folder.path().join("same.yaml");
    let text = format!("schema: 1\ncluster: {name}\nmembers: [{{name: a, address: 10.216.{number}.77}}]\n");
    fs::write(&file, text).unwrap();
    let spec = file.to_str().unwrap();
    ada.refused("up", &["--spec", spec, "--no-start", "--image", &idle.image], &["are in another network"]);
    assert!(idle.is_empty(&name) && idle.seen(&other) == before);
}

/// Runs commands at once.
fn at_once(commands: Vec<Command>) -> Vec<Ran> {
    let threads: Vec<_> =
        commands.into_iter().map(|mut command| thread::spawn(move || Ran::of(&mut command))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn clusters_that_are_made_at_once_do_not_meet() {
    let Some(mut idle) = Idle::new("at-once") else { return };
    let users: Vec<User> = ["ada", "bob", "eve"].map(|name| idle.user(name)).into();
    // One name, three folders: one cluster at most, and whole.
    let name = idle.name("same");
    let mut winners = 0;
    for _ in 0..3 {
        let ran = at_once(users.iter().map(|user| user.up(&name, "2")).collect());
        let (containers, networks) = idle.seen(&name);
        let won: Vec<usize> = (0..users.len()).filter(|index| ran[*index].status == Some(0)).collect();
        for (index, ran) in ran.iter().enumerate().filter(|(index, _)| !won.contains(index)) {
            let told = ["already", "at this moment"].iter().any(|word| ran.stderr.contains(word));
            assert!(told, "{ran:?}");
            assert!(!users[index].folder(&name).exists(), "{ran:?}");
        }
        assert!(won.len() <= 1, "{ran:?}");
        assert_eq!((containers.len(), networks.len()), (2 * won.len(), won.len()), "{ran:?}");
        if let [winner] = won[..] {
            winners += 1;
            users[winner].well("status", &[&name]);
            users[winner].well("down", &[&name]);
        }
        assert!(idle.is_empty(&name));
    }
    println!("one name at once: {winners} of 3 times a cluster was made");

    // One name and one folder: one cluster, which both have made.
    let name = idle.name("shared");
    for ran in at_once(vec![users[0].up(&name, "2"), users[0].up(&name, "2")]) {
        assert_eq!(ran.status, Some(0), "{ran:?}");
    }
    assert_eq!(idle.seen(&name).0.len(), 2);
    let ran = at_once(vec![users[0].command("down", &[&name]), users[0].command("down", &[&name])]);
    assert!(ran.iter().any(|ran| ran.status == Some(0)), "{ran:?}");
    assert!(idle.is_empty(&name));

    // Names that differ choose addresses that differ.
    let names: Vec<String> = ["one", "two", "three"].map(|word| idle.name(word)).into();
    let ups = names.iter().zip(users.iter().cycle()).map(|(name, user)| user.up(name, "1")).collect();
    for ran in at_once(ups) {
        assert_eq!(ran.status, Some(0), "{ran:?}");
    }
    for (name, user) in names.iter().zip(&users) {
        assert_eq!(idle.seen(name).0.len(), 1);
        user.well("down", &[name]);
        assert!(idle.is_empty(name));
    }
}

#[test]
fn an_interrupted_up_leaves_nothing() {
    let Some(mut idle) = Idle::new("interrupted") else { return };
    let (name, other) = (idle.name("stop"), idle.name("other"));
    let ada = idle.user("ada");
    Ran::well(&mut ada.up(&other, "1"));
    let before = idle.seen(&other);
    for containers in [0, 1, 3] {
        let mut up = ada.up(&name, "9");
        let child = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait("the call to be in the middle", Duration::from_secs(60), || {
            let (seen, networks) = idle.seen(&name);
            if seen.len() >= containers && !networks.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.status, Some(130), "{ran:?}");
        assert!(ran.stderr.contains("is left"), "{ran:?}");
        assert!(idle.is_empty(&name), "{:?}", idle.seen(&name));
        assert!(!ada.folder(&name).exists());
    }
    assert_eq!(idle.seen(&other), before);
    // Nothing stands in the way of the next one.
    Ran::well(&mut ada.up(&name, "1"));
    for name in [name, other] {
        ada.well("down", &[&name]);
    }
}

/// Machines lie in the state folder itself, and are not made over others that lie there.
#[test]
fn machines_whose_record_is_lost_are_adopted_where_they_are() {
    if !require_program("qemu-system-x86_64") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    let mut bytes = vec![0; 1 << 20];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&disk, bytes).unwrap();
    let user = User { state: folder.path().join("state"), image: disk.to_str().unwrap().to_owned() };
    // Machines do not end with a test that fails.
    struct Down<'a>(&'a User);
    impl Drop for Down<'_> {
        fn drop(&mut self) {
            let _ = self.0.run("down", &["vms", "--force"]);
        }
    }
    let _down = Down(&user);
    let up = |user: &User| {
        let mut up = user.up("vms", "2");
        up.args(["--driver", "qemu", "--timing", "fast", "--memory", "256"]);
        up
    };
    Ran::well(&mut up(&user));
    let own = user.folder("vms");
    let disks =
        || ["pg-1", "pg-2"].map(|node| fs::metadata(own.join("qemu").join(node).join("disk.qcow2")).unwrap().ino());
    let (before, document) = (disks(), user.document("vms"));
    let record = fs::read_to_string(own.join("record.json")).unwrap();
    user.refused("adopt", &["vms"], &["is remembered in"]);
    fs::remove_file(own.join("record.json")).unwrap();
    let ran = Ran::of(&mut up(&user));
    assert!(ran.status == Some(2) && ran.stderr.contains("machines of a cluster whose record is lost"), "{ran:?}");
    user.refused("down", &["vms"], &["nothing was removed"]);
    assert_eq!(disks(), before);
    user.well("adopt", &["vms"]);
    assert_eq!((disks(), user.document("vms")), (before, document));
    let value = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let (old, new) = (value(&record), value(&fs::read_to_string(own.join("record.json")).unwrap()));
    for key in ["driver", "memory", "ground"] {
        assert_eq!(old[key], new[key], "{key}");
    }
    // A further machine can be made of the image that was found.
    user.well("replace", &["vms", "pg-1", "--force"]);
    user.refused("up", &["vms", "--nodes", "3"], &["--nodes 3: it has 2"]);
    let ran = user.well("down", &["vms"]);
    assert!(ran.stdout.contains("machine pg-2 (off)") && !own.exists(), "{ran:?}");
}
