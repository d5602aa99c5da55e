//! The image, loaded into Docker and booted there.

use crate::{
    support::{Ran, builder, project, require_mirror, shared_store, wait},
    testing::{require, require_program},
};
use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

/// The image's name while it is tested; a user's own `ha-postgres` stays as it is.
const NAME: &str = "pgha-test-image";

/// A container and its image; both go when the value goes.
struct Container;

impl Drop for Container {
    fn drop(&mut self) {
        for arguments in [["rm", "--force", "--volumes"].as_slice(), ["rmi", "--force"].as_slice()] {
            let _ = Command::new("docker").args(arguments).arg(NAME).output();
        }
    }
}

impl Container {
    fn run() -> Container {
        let container = Container;
        // Where the host's first hierarchy is of the old kind, the new one lies below it.
        let unified = Path::new("/sys/fs/cgroup/unified");
        let groups = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        let mut docker = Command::new("docker");
        docker.args(["run", "--detach", "--name", NAME, "--network", "none", "--tmpfs", "/run", "--tmpfs", "/tmp"]);
        docker.args(["--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"]);
        docker.args([
            "--security-opt",
            "seccomp=unconfined",
            "--security-opt",
            "apparmor=unconfined",
            "--cgroupns",
            "host",
        ]);
        docker.arg("--volume").arg(format!("{}:/sys/fs/cgroup", groups.display())).arg(NAME);
        Ran::well(&mut docker);
        container
    }

    fn exec(&self, command: &[&str]) -> Ran {
        Ran::of(Command::new("docker").args(["exec", NAME]).args(command))
    }
}

#[test]
fn the_image_boots_and_everything_is_whole() {
    if !require_mirror() || !require_program("docker") {
        return;
    }
    let answers = Ran::of(Command::new("docker").arg("info")).status == Some(0);
    if !require("docker", answers, "no Docker engine answers") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for part in ["recipes", "overlays"] {
        Ran::well(Command::new("cp").arg("-r").arg(project().join(part)).arg(folder.path().join(part)));
    }
    let recipe = folder.path().join("recipes/ha-postgres.yaml");
    let text = fs::read_to_string(&recipe).unwrap().replace("name: ha-postgres", &format!("name: {NAME}"));
    fs::write(&recipe, text).unwrap();
    Ran::well(
        builder()
            .args(["build", "ha-postgres", "--load=docker", "--project"])
            .arg(folder.path())
            .arg("--cache-dir")
            .arg(shared_store())
            .arg("-o")
            .arg(folder.path().join("out")),
    );
    let container = Container::run();
    wait("systemd is up", Duration::from_secs(180), || {
        let state = container.exec(&["systemctl", "is-system-running"]).stdout;
        match state.trim() {
            "running" => Ok(()),
            "degraded" => panic!("degraded: {}", container.exec(&["systemctl", "--failed", "--no-legend"]).stdout),
            other => Err(other.to_owned()),
        }
    });

    let audit = container.exec(&["dpkg", "--audit"]);
    assert_eq!((audit.status, audit.stdout.as_str()), (Some(0), ""), "{audit:?}");

    // The files that overlays bring and the paths that the recipe leaves out are all that differs from what packages
    // recorded.
    let overlay_files: BTreeSet<String> = overlay_paths(&folder.path().join("overlays"));
    let left_out = |path: &str| {
        let folders = ["doc", "groff", "info", "linda", "lintian", "locale", "man"];
        folders.iter().any(|folder| path.starts_with(&format!("/usr/share/{folder}/")))
    };
    let verified = container.exec(&["dpkg", "--verify"]);
    let changed: Vec<&str> = verified
        .stdout
        .lines()
        .filter(|line| match line.split_whitespace().last() {
            Some(path) if line.starts_with("missing") => !left_out(path) && !overlay_files.contains(path),
            Some(path) => !overlay_files.contains(path),
            None => false,
        })
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");

    for package in [
        "etcd-server",
        "patroni",
        "postgresql-17",
        "pgbouncer",
        "haproxy",
        "keepalived",
        "cloud-init",
        "openssh-server",
    ] {
        let status = container.exec(&["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]);
        assert_eq!(status.stdout, "installed", "{package}");
    }
    let owner = container.exec(&["stat", "--format=%U:%G %u", "/var/lib/postgresql"]);
    assert_eq!(owner.stdout.trim(), "postgres:postgres 940");
    let clusters = container.exec(&["sh", "-c", "ls -A /var/lib/postgresql/17 /etc/postgresql/17 2>/dev/null"]);
    assert_eq!(clusters.stdout.trim(), "", "no database cluster is in the image");
}

/// The guest paths of the files that overlays bring.
fn overlay_paths(overlays: &Path) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for overlay in fs::read_dir(overlays).unwrap() {
        let rootfs = overlay.unwrap().path().join("rootfs");
        if rootfs.is_dir() {
            let found = Ran::well(Command::new("find").arg(&rootfs).args(["-type", "f", "-printf", "/%P\\n"]));
            paths.extend(
                found.stdout.lines().map(|path| path.trim_end_matches(".hbs").trim_end_matches(".tmpl").to_owned()),
            );
        }
    }
    paths
}
