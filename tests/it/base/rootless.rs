//! Builds by another process: as an ordinary user, in another environment, or killed half-way.

use super::{Kitchen, debs, kitchen, minimal, only, running, sandbox, scratch, silent};
use crate::testing::{require, require_program, require_root};
use pgha_image::{
    base::{self, BaseSpec, Place},
    debian::deb::ExpandedDeb,
    error,
    rootfs::tar::StoredLayer,
    sandbox::Sandbox,
    store::Store,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What [`helper`] is asked for.
#[derive(Serialize, Deserialize)]
struct Order {
    store: PathBuf,
    program: PathBuf,
    below: Vec<StoredLayer>,
    spec: BaseSpec,
    packages: Vec<ExpandedDeb>,
}

const ORDER: &str = "PGHA_IMAGE_TEST_ORDER";

/// Not a test of its own: what other processes run.
#[test]
#[ignore = "started by other tests"]
fn helper() {
    let Some(path) = std::env::var_os(ORDER) else { return };
    let order: Order = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let store = Store::open(&order.store).unwrap();
    let sandbox = Sandbox::with_program(order.program);
    let built =
        base::build(&store, &silent(), &sandbox, &order.below, &order.spec, &mut base::at_hand(&order.packages));
    let answer = built.map_or_else(|error| error::report(&error), |(layer, _)| layer.tar.to_string());
    fs::write(Path::new(&path).with_extension("answer"), answer).unwrap();
}

/// A folder with copies of the programs and of the packages, which another user can use.
struct Elsewhere {
    folder: TempDir,
    order: Order,
}

impl Elsewhere {
    fn new(kitchen: &Kitchen, spec: BaseSpec, owner: Option<User>) -> Elsewhere {
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::copy(env!("CARGO_BIN_EXE_pgha-image"), at("program")).unwrap();
        fs::copy(std::env::current_exe().unwrap(), at("tests")).unwrap();
        for name in ["program", "tests"] {
            fs::set_permissions(at(name), Permissions::from_mode(0o755)).unwrap();
        }
        drop(Store::open(&at("store")).unwrap());
        for package in &kitchen.packages {
            let name = package.expanded.hex();
            fs::copy(kitchen.store.blob_path(&package.expanded), at("store/blobs").join(name)).unwrap();
        }
        let order = Order {
            store: at("store"),
            program: at("program"),
            below: Vec::new(),
            spec,
            packages: kitchen.packages.clone(),
        };
        fs::write(at("order"), serde_json::to_vec(&order).unwrap()).unwrap();
        if let Some(user) = owner {
            give(folder.path(), user);
        }
        Elsewhere { folder, order }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.folder.path().join("tests"));
        command
            .args(["--exact", "base::rootless::helper", "--ignored"])
            .env_clear()
            .env(ORDER, self.folder.path().join("order"))
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn answer(&self) -> String {
        fs::read_to_string(self.folder.path().join("order.answer")).expect("the helper wrote no answer")
    }
}

/// An ordinary user: name, number and group.
#[derive(Clone, Copy)]
struct User(u32, u32);

fn give(path: &Path, User(uid, gid): User) {
    chown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), User(uid, gid)));
    }
}

/// A user of this machine that has subordinate ids, if this is root, who can become one.
fn ordinary_user() -> Option<User> {
    if !require_root() {
        return None;
    }
    let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let has_ids = subordinate.lines().any(|line| {
            let mut range = line.split(':');
            range.next() == Some(fields[0]) && range.nth(1).and_then(|count| count.parse().ok()) >= Some(65535)
        });
        (has_ids && fields[2] != "0").then(|| User(fields[2].parse().unwrap(), fields[3].parse().unwrap()))
    });
    let why = "no user has subordinate ids (useradd makes one)";
    found.filter(|_| require_program("newuidmap")).or_else(|| {
        require("subordinate-ids", false, why);
        None
    })
}

#[test]
fn root_and_an_ordinary_user_make_the_same_base() {
    let (Some(kitchen), Some(user)) = (kitchen(), ordinary_user()) else { return };
    let mut spec = minimal(&kitchen.packages);
    spec.place = Place::Disk;
    spec.packages.reverse();
    let elsewhere = Elsewhere::new(kitchen, spec, Some(user));
    let status = elsewhere
        .command()
        .envs([("TZ", "Asia/Tokyo"), ("LC_ALL", "tr_TR.UTF-8"), ("HOME", "/nonexistent"), ("SOURCE_DATE_EPOCH", "1")])
        .uid(user.0)
        .gid(user.1)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(elsewhere.answer(), kitchen.base.tar.to_string());
    assert_eq!(scratch(&Store::open(&elsewhere.order.store).unwrap()), Vec::<String>::new());
}

#[test]
fn a_user_without_subordinate_ids_is_told_how_to_get_them() {
    let (Some(kitchen), Some(_)) = (kitchen(), ordinary_user()) else { return };
    let spec = only(&[debs::small(&kitchen.store, "any", "", &[], &[])]);
    let nobody = User(4_242_424, 4_242_424);
    let elsewhere = Elsewhere::new(kitchen, spec, Some(nobody));
    let status = elsewhere.command().env("USER", "ann").uid(nobody.0).gid(nobody.1).status().unwrap();
    assert!(status.success());
    let answer = elsewhere.answer();
    let told = "error: building the base layer\n  because: /etc/subuid gives the user `ann` 0 subordinate ids; 65535 are \
                needed, without them only root can build\n\nhint: sudo usermod --add-subuids ";
    assert!(answer.starts_with(told), "{answer}");
}

/// Kills a build after `delay`; nothing of it must live on or be published.
fn kill_after(elsewhere: &Elsewhere, user: Option<User>, delay: Duration) {
    let mut command = elsewhere.command();
    if let Some(User(uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn().unwrap();
    thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    let marker = elsewhere.folder.path().to_str().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !running(marker).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", running(marker));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_build_leaves_nothing_that_the_next_one_minds() {
    let Some(kitchen) = kitchen() else { return };
    let users = [None, ordinary_user()];
    for user in if users[1].is_some() { &users[..] } else { &users[..1] } {
        let mut spec = minimal(&kitchen.packages);
        spec.place = Place::Disk;
        let elsewhere = Elsewhere::new(kitchen, spec, *user);
        for milliseconds in [300, 3000] {
            kill_after(&elsewhere, *user, Duration::from_millis(milliseconds));
            let store = Store::open(&elsewhere.order.store).unwrap();
            let key = elsewhere.order.spec.key(&[]).unwrap();
            assert!(store.action::<StoredLayer>(&key).is_none(), "published by a build that was killed");
        }
        let mut command = elsewhere.command();
        if let Some(User(uid, gid)) = user {
            command.uid(*uid).gid(*gid);
        }
        assert!(command.status().unwrap().success());
        assert_eq!(elsewhere.answer(), kitchen.base.tar.to_string());
        assert_eq!(scratch(&Store::open(&elsewhere.order.store).unwrap()), Vec::<String>::new());
    }
}

#[test]
fn a_tree_of_other_owners_can_be_removed() {
    let Some(_) = kitchen() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::set_permissions(tree.join("a"), Permissions::from_mode(0o500)).unwrap();
    sandbox().remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    sandbox().remove_tree(&tree).unwrap();
}
