//! What an installed root looks like.

use super::{EPOCH, Kitchen, debs::small, kitchen, only, sandbox, silent, text, tree};
use pgha_image::{
    base::{self, Place},
    model::Digest,
    rootfs::{Change, Kind, tar::StoredLayer},
};

fn base_tree(kitchen: &Kitchen) -> pgha_image::rootfs::Tree {
    tree(&kitchen.store, &[&kitchen.base])
}

#[test]
fn a_minimal_base_is_configured_whole() {
    let Some(kitchen) = kitchen() else { return };
    let tree = base_tree(kitchen);
    let status = text(&kitchen.store, &tree, "/var/lib/dpkg/status");
    let states: Vec<&str> = status.lines().filter_map(|line| line.strip_prefix("Status: ")).collect();
    assert_eq!(states.len(), kitchen.packages.len());
    assert!(states.iter().all(|state| *state == "install ok installed"), "{states:?}");

    let shadow = tree.get("/etc/shadow").unwrap();
    assert_eq!((shadow.mode, shadow.uid, shadow.gid), (0o640, 0, 42));
    assert_eq!(tree.get("/usr/bin/su").unwrap().mode, 0o4755);
    assert_eq!(tree.get("/bin").unwrap().kind, Kind::Symlink("usr/bin".into()));
    assert_eq!(tree.get("/tmp").unwrap().mode, 0o1777);
    assert!(tree.entries.values().all(|entry| entry.mtime <= EPOCH));
}

#[test]
fn accounts_are_there_before_packages_take_their_numbers() {
    let Some(kitchen) = kitchen() else { return };
    let tree = base_tree(kitchen);
    let passwd = text(&kitchen.store, &tree, "/etc/passwd");
    let line = "postgres:x:700:700:PostgreSQL administrator:/var/lib/postgresql:/bin/bash";
    assert!(passwd.lines().any(|entry| entry == line), "{passwd}");
    let shadow = text(&kitchen.store, &tree, "/etc/shadow");
    let day = EPOCH / 86400;
    assert!(shadow.lines().any(|entry| entry.starts_with(&format!("root:*:{day}:"))), "{shadow}");
    assert!(text(&kitchen.store, &tree, "/etc/group").contains("\nbackup:x:34:postgres\n"));
}

#[test]
fn left_out_paths_are_not_there_and_stay_out() {
    let Some(kitchen) = kitchen() else { return };
    let tree = base_tree(kitchen);
    let has = |prefix: &str| tree.entries.keys().filter(|path| path.as_str().starts_with(prefix)).count();
    assert_eq!((has("/usr/share/man/"), has("/usr/share/locale/")), (0, 0));
    assert!(tree.get("/usr/share/doc/dpkg/copyright").is_some());
    assert!(tree.get("/usr/share/doc/dpkg/changelog.Debian.gz").is_none());
    let settings = text(&kitchen.store, &tree, "/etc/dpkg/dpkg.cfg.d/pgha-image");
    assert!(settings.ends_with("path-include=/usr/share/doc/*/copyright\n"), "{settings}");
    let page = small(&kitchen.store, "page", "", &[], &[("/usr/share/man/man1/page.1", "page")]);
    let layer = kitchen.install(vec![page]).unwrap();
    assert!(kitchen.tree(&layer).get("/usr/share/man/man1/page.1").is_none());
}

#[test]
fn a_base_has_no_traces_of_its_making() {
    let Some(kitchen) = kitchen() else { return };
    let tree = base_tree(kitchen);
    assert_eq!(base::lint(&tree), Vec::<String>::new());
    assert_eq!(text(&kitchen.store, &tree, "/etc/debian_version"), "kept\n", "the skeleton's file wins");
    assert!(tree.get("/var/log/apt").is_some(), "directories of logs stay");
}

#[test]
fn dpkg_does_what_packages_ask_for() {
    let Some(kitchen) = kitchen() else { return };
    let store = &kitchen.store;
    let packages = vec![
        small(
            store,
            "diverter",
            "",
            &[("preinst", "#!/bin/sh\nset -e\ndpkg-divert --package diverter --rename --add /usr/bin/diverted\n")],
            &[("/usr/bin/diverted", "diverter's")],
        ),
        small(store, "diverted", "Pre-Depends: diverter\n", &[], &[("/usr/bin/diverted", "diverted's")]),
        small(
            store,
            "listener",
            "",
            &[
                ("triggers", "interest-noawait /usr/share/heard\n"),
                ("postinst", "#!/bin/sh\n[ \"$1\" != triggered ] || echo \"$2\" >>/var/lib/heard\n"),
            ],
            &[],
        ),
        small(store, "speaker", "Pre-Depends: listener\n", &[], &[("/usr/share/heard/word", "word")]),
        small(
            store,
            "settings",
            "",
            &[
                ("conffiles", "/etc/settings.conf\n"),
                (
                    "postinst",
                    "#!/bin/sh\nset -e\nchown backup:postgres /etc/settings.conf\nchmod 2750 /etc/settings.conf\nln /etc/settings.conf /etc/second\n",
                ),
            ],
            &[("/etc/settings.conf", "package's\n")],
        ),
    ];
    let layer = kitchen.install(packages).unwrap();
    let tree = kitchen.tree(&layer);
    assert_eq!(text(store, &tree, "/usr/bin/diverted"), "diverter's");
    assert_eq!(text(store, &tree, "/usr/bin/diverted.distrib"), "diverted's");
    assert_eq!(text(store, &tree, "/var/lib/heard"), "/usr/share/heard\n", "once");
    let settings = tree.get("/etc/settings.conf").unwrap();
    assert_eq!(tree.get("/etc/second").unwrap().kind, Kind::File(*tree.content("/etc/second").unwrap()));
    assert_eq!((settings.mode, settings.uid, settings.gid), (0o2750, 34, 700));
    assert_eq!(settings.kind, Kind::Hardlink("/etc/second".parse().unwrap()));
    let status = text(store, &tree, "/var/lib/dpkg/status");
    assert!(status.contains("Conffiles:\n /etc/settings.conf "), "{status}");
}

#[test]
fn a_layer_on_a_base_holds_what_changed() {
    let Some(kitchen) = kitchen() else { return };
    let remover = small(
        &kitchen.store,
        "remover",
        "",
        &[("postinst", "#!/bin/sh\nrm /etc/debian_version\n")],
        &[("/opt/new", "n")],
    );
    let layer = kitchen.install(vec![remover]).unwrap().load(&kitchen.store).unwrap();
    let paths: Vec<&str> = layer.changes.keys().map(|path| path.as_str()).collect();
    assert!(paths.contains(&"/opt/new") && paths.contains(&"/var/lib/dpkg/info/remover.postinst"), "{paths:?}");
    assert_eq!(layer.changes["/etc/debian_version"], Change::Remove);
    assert!(paths.len() < 25, "{paths:?}");
}

#[test]
fn the_place_of_the_root_makes_no_difference() {
    let Some(kitchen) = kitchen() else { return };
    let package = || {
        small(
            &kitchen.store,
            "placed",
            "",
            &[("postinst", "#!/bin/sh\ndate >/dev/null; mkdir /opt/d\n")],
            &[("/opt/f", "f")],
        )
    };
    let build = |place| {
        let mut spec = only(&[package()]);
        spec.place = place;
        let key = spec.key(std::slice::from_ref(&kitchen.base)).unwrap();
        kitchen.store.drop_action::<StoredLayer>(&key);
        kitchen.build(&spec, &[package()]).unwrap().tar
    };
    assert_eq!(build(Place::Disk), build(Place::Memory));
}

#[test]
fn an_environment_is_the_same_everywhere() {
    let Some(kitchen) = kitchen() else { return };
    let script = "#!/bin/sh\nenv | grep -v ^DPKG_ | sort >/opt/environment; umask >>/opt/environment; hostname >>/opt/environment; pwd >>/opt/environment\n";
    let layer = kitchen
        .install(vec![small(&kitchen.store, "looker", "", &[("postinst", script)], &[("/opt/x", "x")])])
        .unwrap();
    insta::assert_snapshot!(text(&kitchen.store, &kitchen.tree(&layer), "/opt/environment"));
}

#[test]
fn packages_are_asked_for_when_they_are_needed() {
    let Some(kitchen) = kitchen() else { return };
    let package = |name, extra| small(&kitchen.store, name, extra, &[], &[]);
    let packages = [
        package("zebra", "Installed-Size: 900000\n"),
        package("ant", "Pre-Depends: zebra\n"),
        package("bee", "Installed-Size: 900000\n"),
    ];
    let below = std::slice::from_ref(&kitchen.base);
    let spec = only(&packages);
    assert_eq!(spec.order(below).unwrap(), [2, 0, 1]);
    let mut asked = Vec::new();
    let mut supply = |wanted: &[Digest]| -> anyhow::Result<Vec<Digest>> {
        asked.push(wanted.to_vec());
        anyhow::ensure!(asked.len() < 3, "the mirror is gone");
        base::at_hand(&packages)(wanted)
    };
    let error = base::build(&kitchen.store, &silent(), &sandbox(), below, &spec, &mut supply).unwrap_err();
    assert!(format!("{error:#}").contains("the mirror is gone"), "{error:#}");
    assert_eq!(asked, [2, 0, 1].map(|at: usize| vec![packages[at].original]));
    assert!(kitchen.store.action::<StoredLayer>(&spec.key(below).unwrap()).is_none());
}
