//! VM images of the real recipes, judged by the tools that know disks, and read again without mounting them.

use crate::{
    support::{PROGRAM, Ran, builder, digests, project, require_mirror, shared_store},
    testing::{require, require_program},
};
use pgha_image::disk::gpt::Table;
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

fn build(recipe: &str, out: &Path) -> Command {
    let mut command = builder();
    command.args(["build", recipe, "--quiet", "--cache-dir"]).arg(shared_store()).arg("-o").arg(out);
    command
}

/// Builds both disks and the container of `recipe`.
fn all_formats(recipe: &str, out: &Path) {
    Ran::well(build(recipe, out).args(["--format", "raw", "--format", "qcow2", "--format", "oci"]));
}

/// What `program` says of `image`; `None` where it is not installed.
fn ask(program: &str, arguments: &[&str], image: &Path) -> Option<String> {
    if !require_program(program) {
        return None;
    }
    let ran = Ran::well(Command::new(program).args(arguments).arg(image).env("LC_ALL", "C.UTF-8"));
    Some(ran.stdout + &ran.stderr)
}

/// A copy of a partition, holes kept.
fn partition(image: &Path, number: u32, folder: &Path) -> PathBuf {
    let mut disk = File::open(image).unwrap();
    let table = Table::read(&mut disk).unwrap();
    let partition = table.partition(number).unwrap();
    let path = folder.join(format!("partition-{number}"));
    let mut copy = File::create(&path).unwrap();
    copy.set_len(partition.size()).unwrap();
    disk.seek(SeekFrom::Start(partition.offset())).unwrap();
    let mut rest = disk.take(partition.size());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = rest.read(&mut buffer).unwrap();
        match &buffer[..count] {
            [] => return path,
            zeros if zeros.iter().all(|byte| *byte == 0) => _ = copy.seek(SeekFrom::Current(count as i64)).unwrap(),
            bytes => io::Write::write_all(&mut copy, bytes).unwrap(),
        }
    }
}

#[test]
fn the_tools_find_nothing_wrong_with_the_disk_of_the_real_image() {
    if !require_mirror() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    all_formats("ha-postgres", out.path());
    let (raw, qcow2) = (out.path().join("ha-postgres-amd64.raw"), out.path().join("ha-postgres-amd64.qcow2"));
    let metadata = fs::metadata(&raw).unwrap();
    let summary = inspect(&raw);
    let bytes = summary["bytes"].as_u64().unwrap();
    assert!(metadata.blocks() * 512 < bytes + (64 << 20), "holes take no room: {} blocks, {bytes}", metadata.blocks());
    // Nobody gave the disk a size: what is in it and a journal fill all but a step and the room of a first boot.
    assert!(metadata.len() < bytes + (512 << 20), "{} of {bytes}", metadata.len());
    if let Some(said) = ask("sfdisk", &["--verify"], &raw) {
        assert!(said.contains("No errors detected"), "{said}");
    }
    if let Some(said) = ask("sgdisk", &["-v"], &raw) {
        assert!(said.contains("No problems found"), "{said}");
    }
    if require_program("qemu-img") {
        let said = ask("qemu-img", &["check"], &qcow2).unwrap();
        assert!(said.contains("No errors were found"), "{said}");
        ask("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap()], &qcow2);
    }
    let (root, esp) = (partition(&raw, 1, out.path()), partition(&raw, 15, out.path()));
    ask("e2fsck", &["-fn"], &root);
    ask("fsck.vfat", &["-n"], &esp);
    if let Some(said) = ask("dumpe2fs", &["-h"], &root) {
        for feature in ["has_journal", "extent", "64bit", "metadata_csum", "dir_index"] {
            assert!(said.contains(feature), "{feature}: {said}");
        }
    }
    // Owners, modes and links reach the disk.
    if require_program("debugfs") {
        let stat = |path: &str| ask("debugfs", &["-R", &format!("stat {path}")], &root).unwrap();
        let postgres = stat("/var/lib/postgresql");
        assert!(postgres.contains("User:   940") && postgres.contains("Group:   940"), "{postgres}");
        assert!(stat("/vmlinuz").contains("Fast link dest: \"boot/vmlinuz-"), "{}", stat("/vmlinuz"));
        assert!(stat("/initrd.img").contains("Fast link dest: \"boot/initrd.img-"), "{}", stat("/initrd.img"));
    }
    let folder = out.path().join("mounted");
    fs::create_dir(&folder).unwrap();
    let mount = Ran::of(Command::new("mount").args(["-o", "loop,ro"]).arg(&root).arg(&folder));
    if mount.status == Some(0) {
        let release = fs::read_to_string(folder.join("etc/os-release"));
        Ran::well(Command::new("umount").arg(&folder));
        assert!(release.unwrap().contains("trixie"));
    } else {
        require("loop", false, format_args!("this machine mounts no images ({})", mount.stderr.trim()));
    }
}

fn inspect(image: &Path) -> serde_json::Value {
    let ran = Ran::well(Command::new(PROGRAM).arg("inspect").arg(image).arg("--json"));
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn an_image_is_read_again_and_two_are_compared() {
    if !require_mirror() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    all_formats("minimal", out.path());
    let image = |suffix: &str| out.path().join(format!("minimal-amd64.{suffix}"));
    let (raw, qcow2, oci) = (inspect(&image("raw")), inspect(&image("qcow2")), inspect(&image("oci.tar")));
    for (summary, format) in [(&raw, "raw"), (&qcow2, "qcow2"), (&oci, "oci")] {
        assert_eq!(summary["format"], format);
        assert!(summary["packages"]["systemd"].is_string(), "{format}");
    }
    let digests = digests(out.path());
    for (summary, suffix) in [(&raw, "raw"), (&qcow2, "qcow2"), (&oci, "oci.tar")] {
        let file = format!("minimal-amd64.{suffix}");
        assert_eq!(summary["sha256"], format!("sha256:{}", digests[&file]), "{file}");
    }
    let kinds: Vec<&str> =
        raw["partitions"].as_array().unwrap().iter().map(|part| part["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["root", "bios", "esp"]);
    let command = raw["boot"]["command"].as_str().unwrap();
    let uuid = raw["partitions"][0]["file_system"].as_str().unwrap().strip_prefix("ext4 ").unwrap();
    assert!(command.starts_with(&format!("/vmlinuz root=UUID={uuid} ro")), "{command}");
    assert!(oci["boot"].is_null() && oci["packages"]["grub2-common"].is_null(), "a container boots with nothing");
    assert!(raw["packages"]["grub2-common"].is_string());
    let people = Ran::well(Command::new(PROGRAM).arg("inspect").arg(image("qcow2")));
    assert!(people.stdout.contains("partition"), "{}", people.stdout);

    let diff = |one: &str, two: &str| Ran::of(Command::new(PROGRAM).arg("diff").arg(image(one)).arg(image(two)));
    let same = diff("raw", "qcow2");
    assert_eq!((same.status, same.stdout.as_str()), (Some(0), ""), "{}", same.stderr);
    let other = diff("oci.tar", "qcow2");
    assert_eq!(other.status, Some(1), "{}", other.stderr);
    for line in ["+ package  grub2-common", "+ boot     partition 1", "+ file     /boot/grub/grub.cfg"] {
        assert!(other.stdout.contains(line), "{line}");
    }
    let nothing = Ran::of(Command::new(PROGRAM).arg("inspect").arg(out.path().join("minimal.lock.json")));
    assert_eq!(nothing.status, Some(2), "{}", nothing.stderr);
}

#[test]
fn a_container_alone_is_the_same_as_beside_a_disk() {
    if !require_mirror() {
        return;
    }
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    all_formats("minimal", one.path());
    Ran::well(&mut build("minimal", two.path()));
    for name in ["minimal-amd64.oci.tar", "minimal-amd64.spdx.json", "minimal-amd64.cdx.json"] {
        assert!(fs::read(one.path().join(name)).unwrap() == fs::read(two.path().join(name)).unwrap(), "{name}");
    }
    let text = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert!(!text(two.path(), "minimal.lock.json").contains("linux-image"));
    assert!(text(one.path(), "minimal.lock.json").contains("linux-image"));
    assert!(text(one.path(), "minimal-amd64.disk.spdx.json").contains("linux-image"));
    // The lock of both builds both again.
    let again = tempfile::tempdir().unwrap();
    let lock = one.path().join("minimal.lock.json");
    Ran::well(build("minimal", again.path()).args(["--format", "qcow2", "--offline", "--locked"]).arg(&lock));
    let qcow2 = "minimal-amd64.qcow2";
    assert!(fs::read(one.path().join(qcow2)).unwrap() == fs::read(again.path().join(qcow2)).unwrap());
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    if !require_mirror() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for part in ["recipes", "overlays"] {
        Ran::well(Command::new("cp").arg("-r").arg(project().join(part)).arg(folder.path().join(part)));
    }
    let recipe = "schema: 1\nname: small\ndescription: Too small\nextends: debian-trixie\ndisk: {size: 256MiB}\n";
    fs::write(folder.path().join("recipes/small.yaml"), recipe).unwrap();
    let out = folder.path().join("out");
    let ran = Ran::of(build("small", &out).arg("--project").arg(folder.path()).args(["--format", "raw"]));
    assert_eq!(ran.status, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("a disk of 256 MiB is too small for the image: it needs "), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: set `disk.size` to "), "{}", ran.stderr);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}
