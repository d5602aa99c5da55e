//! Base layers, and the sandbox that they are made in.

mod contained;
mod debs;
mod installed;
mod rootless;

use crate::testing::require;
use pgha_image::{
    base::{self, BaseSpec, Group, Package, Place, SkeletonFile, User},
    debian::deb::ExpandedDeb,
    error,
    progress::{Progress, Style},
    rootfs::{
        Tree,
        tar::{Contents, StoredLayer},
    },
    sandbox::Sandbox,
    store::Store,
};
use std::{fs, sync::OnceLock, time::Duration};

const EPOCH: i64 = 1_750_000_000;

/// A store with a minimal base layer, made once for all tests.
struct Kitchen {
    store: Store,
    packages: Vec<ExpandedDeb>,
    base: StoredLayer,
}

fn sandbox() -> Sandbox {
    Sandbox::with_program(env!("CARGO_BIN_EXE_pgha-image"))
}

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

/// `None`, with a message, where this machine cannot do it.
fn kitchen() -> Option<&'static Kitchen> {
    static KITCHEN: OnceLock<Option<Kitchen>> = OnceLock::new();
    KITCHEN
        .get_or_init(|| {
            if let Err(error) = sandbox().probe() {
                require("namespaces", false, error::report(&error));
                return None;
            }
            let store = Store::open(&debs::cache().join("store")).unwrap();
            let packages = debs::essential(&store)?;
            let built =
                base::build(&store, &silent(), &sandbox(), &[], &minimal(&packages), &mut base::at_hand(&packages));
            let (base, _) = built.unwrap_or_else(|error| panic!("{}", error::report(&error)));
            Some(Kitchen { store, packages, base })
        })
        .as_ref()
}

/// The smallest base.
fn minimal(packages: &[ExpandedDeb]) -> BaseSpec {
    BaseSpec {
        packages: packages.iter().map(Package::from).collect(),
        skeleton: vec![SkeletonFile {
            path: "/etc/debian_version".parse().unwrap(),
            mode: 0o640,
            bytes: b"kept\n".to_vec(),
        }],
        exclude: ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"].map(str::to_owned).into(),
        include: vec!["/usr/share/doc/*/copyright".into()],
        users: vec![User {
            name: "postgres".into(),
            uid: 700,
            group: "postgres".into(),
            groups: vec!["backup".into()],
            home: "/var/lib/postgresql".parse().unwrap(),
            shell: "/bin/bash".parse().unwrap(),
            comment: "PostgreSQL administrator".into(),
        }],
        groups: vec![Group { name: "postgres".into(), gid: 700 }],
        epoch: EPOCH,
        limit: Duration::from_secs(300),
        ..BaseSpec::default()
    }
}

/// Only these packages, for on top of a base.
fn only(packages: &[ExpandedDeb]) -> BaseSpec {
    BaseSpec {
        packages: packages.iter().map(Package::from).collect(),
        epoch: EPOCH,
        limit: Duration::from_secs(60),
        place: Place::Memory,
        ..BaseSpec::default()
    }
}

impl Kitchen {
    /// Installs `packages` on the minimal base: the layer, or the error as people read it.
    fn install(&self, packages: Vec<ExpandedDeb>) -> Result<StoredLayer, String> {
        self.build(&only(&packages), &packages)
    }

    fn build(&self, spec: &BaseSpec, packages: &[ExpandedDeb]) -> Result<StoredLayer, String> {
        let below = std::slice::from_ref(&self.base);
        base::build(&self.store, &silent(), &sandbox(), below, spec, &mut base::at_hand(packages))
            .map(|(layer, _)| layer)
            .map_err(|error| error::report(&error))
    }

    /// The sum of the minimal base and `layer`.
    fn tree(&self, layer: &StoredLayer) -> Tree {
        tree(&self.store, &[&self.base, layer])
    }
}

fn tree(store: &Store, layers: &[&StoredLayer]) -> Tree {
    let mut tree = Tree::default();
    for layer in layers {
        tree.apply(&layer.load(store).unwrap()).unwrap();
    }
    tree
}

fn text(store: &Store, tree: &Tree, path: &str) -> String {
    let content = tree.content(path).unwrap_or_else(|| panic!("no file {path}"));
    String::from_utf8(Contents::new(store).read(content).unwrap()).unwrap()
}

/// The command lines of running processes that have `marker` in them.
fn running(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let bytes = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if line.contains(marker) {
            found.push(line);
        }
    }
    found
}

/// Folders of base builds in the store's scratch.
fn scratch(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.scratch_root()).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.starts_with("base-")).collect()
}
