//! Recipes and overlays that are right, and what wrong ones are told.

use super::*;
use crate::{error, recipe};
use std::{fs, os::unix::fs as unix, path::Path};
use tempfile::TempDir;

/// A project of the given files; those of a small right one are there unless given otherwise.
fn project(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let right = [
        (
            "recipes/base.yaml",
            "schema: 1\nname: base\ndescription: Base\nsources:\n  debian: {suite: trixie, signed-by: [keys/a.asc]}\npackages: [apt]\n",
        ),
        (
            "recipes/demo.yaml",
            "schema: 1\nname: demo\ndescription: Demo\nextends: base\nparameters:\n  version: {type: integer, default: 17, description: Major version}\npackages: ['postgresql-{{version}}']\noverlays: [front, back]\n",
        ),
        ("recipes/keys/a.asc", "a key"),
        (
            "overlays/front/overlay.yaml",
            "schema: 1\ndescription: Front\nneeds: [back]\nafter: [back]\npackages: [haproxy]\n",
        ),
        ("overlays/front/rootfs/etc/front.cfg.hbs", "{{cluster}}\n"),
        ("overlays/back/overlay.yaml", "schema: 1\ndescription: Back\nfiles:\n  /etc/back: {mode: \"0600\"}\n"),
        ("overlays/back/rootfs/etc/back", "back\n"),
    ];
    for (path, text) in right.iter().chain(files) {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn draft(project: &Path, settings: &[&str]) -> anyhow::Result<Draft> {
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    Draft::new(recipe::load(project, "demo", &settings)?, project, None)
}

/// The whole message that a wrong project gets, its folder called PROJECT.
fn complaint(project: &Path, settings: &[&str]) -> String {
    let error = draft(project, settings).expect_err("the project is wrong");
    assert_eq!(error::kind_of(&error), error::ErrorKind::Usage, "{error:#}");
    error::report(&error).replace(project.to_str().unwrap(), "PROJECT")
}

/// Checks what the right project with `files` instead of its own is told.
macro_rules! told {
    ($name:literal, $files:expr) => {
        insta::assert_snapshot!($name, complaint(project(&$files).path(), &[]))
    };
}

#[test]
fn a_plan_has_every_decision() {
    let project = project(&[]);
    let plan = draft(project.path(), &["version=18"]).unwrap().with_packages(Vec::new(), Vec::new());
    assert_eq!(plan.lineage, ["base", "demo"]);
    let asked: Vec<&str> = plan.requests.iter().map(|request| request.package.as_str()).collect();
    assert_eq!(asked, ["apt", "postgresql-18", "haproxy"]);
    let overlays: Vec<&str> = plan.overlays.iter().map(|overlay| overlay.name.as_str()).collect();
    assert_eq!(overlays, ["back", "front"], "each comes after those it waits for");
    let template = &plan.overlays[1].files[0];
    assert_eq!(template.installed.as_str(), "/usr/share/pgha/templates/front/etc/front.cfg.hbs");
    assert_eq!(template.path.as_str(), "/etc/front.cfg");
    assert_eq!(template.origin, "overlays/front/rootfs/etc/front.cfg.hbs");
    assert_eq!(plan.overlays[0].files[0].mode, Mode(0o600));
    assert!(plan.manifest().is_none(), "no overlay brings the guest program");
}

#[test]
fn equal_projects_in_different_folders_have_equal_plans() {
    let (one, two) = (project(&[]), project(&[]));
    let plan =
        |folder: &TempDir| draft(folder.path(), &[]).unwrap().with_packages(Vec::new(), Vec::new()).digest().unwrap();
    assert_eq!(plan(&one), plan(&two));
    fs::write(two.path().join("overlays/back/rootfs/etc/back"), "changed\n").unwrap();
    assert_ne!(plan(&one), plan(&two));
}

#[test]
fn explain_names_overlay_source_and_writer() {
    let project = project(&[]);
    let plan = draft(project.path(), &[]).unwrap().with_packages(Vec::new(), Vec::new());
    let explanations = explain(&plan, &"/etc/front.cfg".parse().unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&explanations).unwrap());
    assert!(explain(&plan, &"/etc/nothing".parse().unwrap()).is_empty());
}

#[test]
fn what_is_wrong_with_a_recipe_is_told() {
    let base = "schema: 1\nname: demo\ndescription: Demo\nextends: base\n";
    let with = |rest: &str| format!("{base}{rest}");
    told!("misspelt_key", [("recipes/demo.yaml", &with("pakages: [x]\n"))]);
    told!("wrong_type", [("recipes/demo.yaml", &with("packages: haproxy\n"))]);
    told!("missing_key", [("recipes/demo.yaml", "schema: 1\nname: demo\n")]);
    told!("future_schema", [("recipes/demo.yaml", "schema: 2\nname: demo\ndescription: Demo\n")]);
    told!("strange_name", [("recipes/demo.yaml", "schema: 1\nname: ../demo\ndescription: Demo\n")]);
    told!("unknown_base", [("recipes/demo.yaml", "schema: 1\nname: demo\ndescription: Demo\nextends: bose\n")]);
    told!("no_sources", [("recipes/demo.yaml", "schema: 1\nname: demo\ndescription: Demo\n")]);
    told!("unknown_overlay", [("recipes/demo.yaml", &with("overlays: [frnt]\n"))]);
    told!("overlay_named_as_path", [("recipes/demo.yaml", &with("overlays: [../../etc]\n"))]);
    told!("overlay_named_twice", [("recipes/demo.yaml", &with("overlays: [back, back]\n"))]);
    told!("unknown_parameter_in_package", [("recipes/demo.yaml", &with("packages: ['postgresql-{{versoin}}']\n"))]);
    told!(
        "missing_parameter",
        [("recipes/demo.yaml", &with("parameters:\n  site: {type: string, description: Name of the site}\n"))]
    );
    told!(
        "default_of_wrong_type",
        [(
            "recipes/demo.yaml",
            &with("parameters:\n  site: {type: integer, default: x, description: Number of the site}\n")
        )]
    );
    told!(
        "missing_key_file",
        [(
            "recipes/demo.yaml",
            &with("sources:\n  mine: {uri: \"http://mirror.example/x\", suite: x, signed-by: [keys/none.asc]}\n")
        )]
    );
    told!("wrong_size", [("recipes/demo.yaml", &with("disk: {size: 4G}\n"))]);
    told!("one_number_twice", [("recipes/demo.yaml", &with("users: {a: {uid: 900}, b: {uid: 900}}\n"))]);
}

#[test]
fn recipes_that_extend_each_other_are_told_the_circle() {
    told!("circle_of_recipes", [("recipes/base.yaml", "schema: 1\nname: base\ndescription: Base\nextends: demo\n"),]);
    told!("circle_of_one", [("recipes/demo.yaml", "schema: 1\nname: demo\ndescription: Demo\nextends: demo\n")]);
}

#[test]
fn wrong_settings_are_told() {
    let right = project(&[]);
    insta::assert_snapshot!("setting_of_wrong_type", complaint(right.path(), &["version=seventeen"]));
    insta::assert_snapshot!("setting_unknown", complaint(right.path(), &["verison=17"]));
    insta::assert_snapshot!("setting_without_value", complaint(right.path(), &["version"]));
}

#[test]
fn what_is_wrong_with_an_overlay_is_told() {
    let with = |rest: &str| format!("schema: 1\ndescription: Back\n{rest}");
    told!("overlay_misspelt_key", [("overlays/back/overlay.yaml", &with("file: {}\n"))]);
    told!("overlay_wrong_mode", [("overlays/back/overlay.yaml", &with("files: {/etc/back: {mode: \"999\"}}\n"))]);
    told!(
        "overlay_climbing_path",
        [("overlays/back/overlay.yaml", &with("files: {/etc/../../passwd: {mode: \"0600\"}}\n"))]
    );
    told!("overlay_relative_path", [("overlays/back/overlay.yaml", &with("links: {etc/back: target}\n"))]);
    told!("overlay_unknown_file", [("overlays/back/overlay.yaml", &with("files: {/etc/bakc: {mode: \"0600\"}}\n"))]);
    told!("overlay_other_writer", [("overlays/back/overlay.yaml", &with("files: {/etc/back: {writer: confd}}\n"))]);
    told!(
        "overlay_missing_program",
        [("overlays/back/overlay.yaml", &with("files: {/usr/bin/x: {program: pgha-none}}\n"))]
    );
    told!("overlay_needs_another", [("overlays/back/overlay.yaml", &with("needs: [middle]\n"))]);
    told!("overlays_wait_for_each_other", [("overlays/back/overlay.yaml", &with("after: [front]\n"))]);
    told!("two_owners", [("overlays/back/rootfs/etc/front.cfg", "mine\n")]);
    told!("two_writers_of_one_file", [("overlays/back/rootfs/etc/back.tmpl", "mine\n")]);
    told!(
        "overlay_wrong_time",
        [("overlays/back/overlay.yaml", &with("service: {unit: b.service, ready: {tcp: 1, within: soon}}\n"))]
    );
}

#[test]
fn an_overlay_cannot_lead_out_of_its_folder() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let linked = project(&[]);
    unix::symlink(secret.path(), linked.path().join("overlays/back/rootfs/etc/link")).unwrap();
    let told = complaint(linked.path(), &[]).replace(secret.path().to_str().unwrap(), "SECRET");
    insta::assert_snapshot!("link_to_file", told);

    let linked = project(&[]);
    unix::symlink("/etc", linked.path().join("overlays/back/rootfs/opt")).unwrap();
    insta::assert_snapshot!("link_to_folder", complaint(linked.path(), &[]));

    let linked = project(&[(
        "recipes/demo.yaml",
        "schema: 1\nname: demo\ndescription: Demo\nextends: base\noverlays: [linked]\n",
    )]);
    unix::symlink("/etc", linked.path().join("overlays/linked")).unwrap();
    insta::assert_snapshot!("link_as_overlay", complaint(linked.path(), &[]));
}

#[test]
fn a_lock_fits_its_own_recipe_only() {
    let right = project(&[]);
    let package = Package {
        name: "apt".to_owned(),
        version: "3.0".to_owned(),
        architecture: "amd64".to_owned(),
        sha256: Digest::of("apt"),
        size: 3,
        path: "pool/main/a/apt/apt_3.0_amd64.deb".to_owned(),
        source: "debian".to_owned(),
        source_package: None,
        reason: "requested".to_owned(),
    };
    let plan = draft(right.path(), &[]).unwrap().with_packages(vec![package], Vec::new());
    let text = Lock::of(&plan).to_json().unwrap();
    insta::assert_snapshot!("lock", text);
    let lock = Lock::parse("demo.lock.json", &text).unwrap();
    let again = draft(right.path(), &[]).unwrap().with_lock(lock.clone(), "demo.lock.json").unwrap();
    assert_eq!(again.digest().unwrap(), plan.digest().unwrap(), "why a package is there changes nothing");

    let refused = |settings: &[&str], lock: &Lock| {
        let error = draft(right.path(), settings).unwrap().with_lock(lock.clone(), "demo.lock.json").unwrap_err();
        error::report(&error.into())
    };
    insta::assert_snapshot!("lock_of_other_requests", refused(&["version=18"], &lock));
    let mut other = lock.clone();
    other.sources.get_mut("debian").unwrap().suite = "forky".to_owned();
    insta::assert_snapshot!("lock_of_other_source", refused(&[], &other));
    let truncated = Lock::parse("demo.lock.json", &text[..text.len() / 2]).unwrap_err();
    insta::assert_snapshot!("lock_truncated", error::report(&truncated.into()));
}

/// Lock files are kept under version control for years. A shape that changes needs another `schema`, and this one is
/// still read.
#[test]
fn locks_of_an_earlier_version_are_read() {
    let text = include_str!("testdata/lock-1.json");
    let lock = Lock::parse("demo.lock.json", text).unwrap();
    assert_eq!(lock.to_json().unwrap(), text);
    let right = project(&WITH_DISK);
    draft(right.path(), &[]).unwrap().with_lock(lock, "demo.lock.json").unwrap();
}

/// Finished builds are known by the plan's digest. If it changes, each is made once more, so raise `SCHEMA` in
/// `plan/mod.rs` and accept the new digest; if what is built changes and the plan does not, raise `VERSION` in
/// `pipeline/up_to_date.rs`.
#[test]
fn plans_stay_what_they_are() {
    let plan = draft(project(&WITH_DISK).path(), &[]).unwrap().with_packages(Vec::new(), Vec::new());
    insta::assert_snapshot!(plan.digest().unwrap(), @"sha256:a491d18fcb0d09cb029f800ebcbb93382b83e9095f5b8fc072ba839589a4dcbd");
}

#[test]
fn a_template_that_would_fail_on_a_node_fails_here() {
    let project = project(&[("overlays/front/rootfs/etc/front.cfg.hbs", "a\n{{cluster.nam}}\n")]);
    let told = complaint(project.path(), &[]);
    assert!(
        told.starts_with("error: overlays/front/rootfs/etc/front.cfg.hbs:2:1: there is no value `cluster.nam` here"),
        "{told}"
    );
}

/// A recipe whose disks have an overlay of their own.
const WITH_DISK: [(&str, &str); 3] = [
    (
        "recipes/demo.yaml",
        "schema: 1\nname: demo\ndescription: Demo\nextends: base\noverlays: [back]\ndisk: {size: 2GiB, packages: [linux], overlays: [boot]}\n",
    ),
    ("overlays/boot/overlay.yaml", "schema: 1\ndescription: Boot\npackages: [grub]\n"),
    ("overlays/boot/rootfs/etc/boot", "boot\n"),
];

#[test]
fn what_disks_alone_have_changes_no_other_image() {
    let with = project(&WITH_DISK);
    let draft = || draft(with.path(), &[]).unwrap();
    let disk = draft().plan().disk.clone().unwrap();
    let asked: Vec<&str> = disk.requests.iter().map(|request| request.package.as_str()).collect();
    assert_eq!((disk.size.map(|size| size.0), asked), (Some(2 << 30), vec!["linux", "grub"]));
    assert_eq!(disk.overlays[0].name, "boot");
    assert!(draft().plan().overlays.iter().all(|overlay| overlay.name != "boot"));
    assert!(draft().plan().requests.iter().all(|request| request.package != "grub"));

    let plan = || draft().with_packages(Vec::new(), Vec::new());
    let bare = || draft().without_disk().with_packages(Vec::new(), Vec::new());
    assert_ne!(plan().digest().unwrap(), bare().digest().unwrap());
    fs::write(with.path().join("overlays/boot/rootfs/etc/boot"), "changed\n").unwrap();
    let before = bare().digest().unwrap();
    fs::write(with.path().join("overlays/boot/rootfs/etc/boot"), "changed again\n").unwrap();
    assert_eq!(bare().digest().unwrap(), before);

    // A lock made without a disk builds none; one made with a disk builds both.
    let (locked, bare_lock) = (Lock::of(&plan()), Lock::of(&bare()));
    assert!(bare_lock.disk.is_none());
    draft().with_lock(locked.clone(), "demo.lock.json").unwrap();
    draft().without_disk().with_lock(locked, "demo.lock.json").unwrap();
    let error = draft().with_lock(bare_lock, "demo.lock.json").unwrap_err();
    assert!(error.message.contains("it was made without a VM image"), "{error}");
}

#[test]
fn what_is_wrong_with_a_disk_is_told() {
    let base = "schema: 1\nname: demo\ndescription: Demo\nextends: base\n";
    let with = |rest: &str| format!("{base}{rest}");
    let told = |files: &[(&str, &str)]| complaint(project(files).path(), &[]);
    let twice = with("overlays: [back]\ndisk: {size: 1GiB, overlays: [back]}\n");
    assert!(told(&[("recipes/demo.yaml", &twice)]).contains("is in the recipe already"));
    let template = with("overlays: [back]\ndisk: {size: 1GiB, overlays: [front]}\n");
    assert!(told(&[("recipes/demo.yaml", &template)]).contains("an overlay of disks alone has templates"));
}
