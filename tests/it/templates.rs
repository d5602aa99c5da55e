//! The templates of all overlays, rendered against the sample clusters.

use pgha_image::{
    exec::Run,
    model::{
        ClusterSpec, Node, samples,
        scope::{EtcdStart, Machine, Scope},
    },
    render::render,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Every template that is rendered once: guest path to the path of its source.
fn templates() -> BTreeMap<String, PathBuf> {
    let overlays = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays");
    let mut found = BTreeMap::new();
    for overlay in fs::read_dir(&overlays).unwrap() {
        let root = overlay.unwrap().path().join("rootfs");
        collect(&root, &root, &mut found);
    }
    assert!(found.len() > 8, "{found:?}");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "hbs") {
            let guest = path.strip_prefix(root).unwrap().with_extension("");
            found.insert(format!("/{}", guest.display()), path);
        }
    }
}

fn scope(spec: &ClusterSpec, own: usize) -> Scope {
    let parameters = [("postgres_version".to_owned(), 17.into())].into_iter().collect();
    Scope::new(&Node::new(spec.clone(), own), &Machine::sample(), &EtcdStart::together(spec), &parameters)
}

fn rendered(spec: &ClusterSpec, own: usize) -> BTreeMap<String, String> {
    let scope = scope(spec, own);
    let one = |(guest, path): (String, PathBuf)| {
        let text = render(&guest, &fs::read_to_string(path).unwrap(), &scope).unwrap();
        (guest, text)
    };
    templates().into_iter().map(one).collect()
}

#[test]
fn every_template_renders_for_every_member_of_every_sample() {
    for spec in samples::all() {
        for own in 0..spec.members.len() {
            for (guest, text) in rendered(&spec, own) {
                assert!(!text.contains("{{"), "{guest}: {text}");
            }
        }
    }
}

/// Where the rendered files are kept, one for each cluster and guest path.
const SNAPSHOTS: &str = "snapshots/templates";

#[test]
fn templates_give_what_they_gave() {
    let mut names = BTreeSet::new();
    for spec in samples::all() {
        for (guest, text) in rendered(&spec, 0) {
            let name = format!("{}{}", spec.cluster, guest.replace('/', "-"));
            insta::with_settings!({
                snapshot_path => SNAPSHOTS,
                prepend_module_to_snapshot => false,
                omit_expression => true,
                description => format!("{guest} on the first member of the sample cluster `{}`", spec.cluster),
            }, { insta::assert_snapshot!(name.as_str(), text) });
            names.insert(format!("{name}.snap"));
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(SNAPSHOTS);
    let kept = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(kept.collect::<BTreeSet<_>>(), names, "a snapshot of a file that is not rendered any more must go");
}

#[test]
fn every_rendered_file_names_its_source_first() {
    for (guest, text) in rendered(&samples::five(), 4) {
        // The list of users has no comments in its format.
        if guest != "/etc/pgbouncer/userlist.txt" {
            let first = text.lines().next().unwrap();
            assert!(first.contains(&format!("/rootfs{guest}.hbs")) && first.contains("pgha-node"), "{guest}: {first}");
        }
    }
}

#[test]
fn rendered_documents_are_well_formed() {
    for spec in samples::all() {
        for (guest, text) in rendered(&spec, 0) {
            if guest.ends_with(".yaml") || guest.ends_with(".yml") {
                let value: serde_json::Value =
                    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{guest}: {error}"));
                assert!(value.is_object(), "{guest}");
            }
        }
    }
}

#[test]
fn all_members_share_passwords() {
    // The password that one node sends is the one that another expects.
    let spec = samples::three();
    let secrets = |own: usize| {
        let text = rendered(&spec, own)["/etc/patroni/config.yml"].clone();
        text.lines().filter(|line| line.trim().starts_with("password:")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(secrets(0), secrets(2));
    assert_eq!(secrets(0).len(), 5);
}

#[test]
fn programs_accept_their_configuration() {
    for (program, guest, arguments) in [
        ("keepalived", "/etc/keepalived/keepalived.conf", &["-t", "-f"][..]),
        ("patroni", "/etc/patroni/config.yml", &["--validate-config", "--ignore-listen-port"]),
    ] {
        if !crate::testing::require_program(program) {
            continue;
        }
        for spec in samples::all() {
            let text = rendered(&spec, 0).remove(guest).unwrap();
            if text.trim().is_empty() {
                continue;
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            let run = Run::new(program).args(arguments.iter().copied()).arg(file.path());
            run.capture().unwrap_or_else(|error| panic!("{}: {error}", spec.cluster));
        }
    }
}

#[test]
fn a_node_that_was_let_in_to_copy_makes_no_database() {
    use pgha_image::node::begun::{BEGUN_PATH, Begun, What};
    use std::{os::unix::fs::PermissionsExt as _, process::Command};

    let folder = tempfile::tempdir().unwrap();
    let (mark, psql) = (folder.path().join("begun.json"), folder.path().join("psql"));
    fs::write(&psql, "#!/bin/sh\nfor argument; do last=$argument; done\necho \"made $last\"\n").unwrap();
    fs::set_permissions(&psql, fs::Permissions::from_mode(0o755)).unwrap();
    let config = rendered(&samples::three(), 0).remove("/etc/patroni/config.yml").unwrap();
    let config: serde_json::Value = serde_saphyr::from_str(&config).unwrap();
    let command = config["bootstrap"]["post_bootstrap"].as_str().unwrap();
    let command = command.replace(BEGUN_PATH, mark.to_str().unwrap());
    // Patroni splits it as a shell does, and adds the words that lead to the server.
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = || {
        let script = format!("{command} 'dbname=postgres port=5432'");
        Command::new("sh").args(["-c", &script]).env("PATH", &path).output().unwrap()
    };
    let makes = || {
        let output = run();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.success(), said == "made dbname=postgres port=5432\n", "{said}");
        output.status.success()
    };
    assert!(!makes(), "nobody let the node in");
    let begun = |what| Begun { what, version: 17, revision: 9, time: 0, replaces: None }.store(&mark).unwrap();
    begun(What::Bootstrap);
    assert!(makes());
    begun(What::Clone);
    assert!(!makes());
    assert!(String::from_utf8(run().stderr).unwrap().contains("not let in to make"));
}

#[test]
fn a_lone_node_has_no_empty_list_of_peers() {
    // keepalived refuses one.
    let mut spec = samples::one();
    spec.vip = samples::three().vip;
    let text = rendered(&spec, 0)["/etc/keepalived/keepalived.conf"].clone();
    assert!(text.contains("virtual_ipaddress") && !text.contains("unicast_peer"), "{text}");
    assert!(rendered(&samples::three(), 0)["/etc/keepalived/keepalived.conf"].contains("unicast_peer"));
}
