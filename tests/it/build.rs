//! Whole builds, from the mirror to the image.

use crate::{
    support::{PROGRAM, Ran, builder, digests, project, require_mirror, shared_store},
    testing::{require_program, require_root},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Builds `recipe` into `out` with the store that all tests share.
fn build(recipe: &str, out: &Path) -> Command {
    let mut command = builder();
    command.args(["build", recipe, "--cache-dir"]).arg(shared_store()).arg("-o").arg(out);
    command
}

#[test]
fn a_build_tells_what_it_wrote_and_does_nothing_the_second_time() {
    if !require_mirror() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let first = Ran::well(&mut build("minimal", out.path()));
    let written: Vec<&str> = first.stdout.lines().collect();
    assert_eq!(written.len(), 4, "one line for each artifact: {written:?}");
    for path in &written {
        assert!(Path::new(path).is_file(), "{path}");
    }
    let before = digests(out.path());
    let second = Ran::well(build("minimal", out.path()).arg("--json"));
    assert_eq!(digests(out.path()), before);
    let events: Vec<serde_json::Value> =
        second.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap()["event"], "start");
    let done = events.last().unwrap();
    assert_eq!((&done["event"], &done["unchanged"]), (&"done".into(), &true.into()), "{done}");
    assert_eq!(done["artifacts"].as_array().unwrap().len(), 4);

    // A file that somebody has changed is made again.
    let lock = out.path().join("minimal.lock.json");
    fs::write(&lock, "{}").unwrap();
    Ran::well(&mut build("minimal", out.path()));
    assert_eq!(digests(out.path()), before);
}

#[test]
fn a_lock_builds_the_same_image_again_without_the_network() {
    if !require_mirror() {
        return;
    }
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Ran::well(&mut build("minimal", one.path()));
    let lock = one.path().join("minimal.lock.json");
    let text = fs::read_to_string(&lock).unwrap();
    assert!(!text.contains("://"), "a lock names no host");
    Ran::well(build("minimal", two.path()).arg("--locked").arg(&lock).args([
        "--offline",
        "--mirror",
        "http://127.0.0.1:9/debian",
    ]));
    assert_eq!(digests(one.path()), digests(two.path()));
}

#[test]
fn offline_with_an_empty_store_is_told_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let ran = Ran::of(
        builder()
            .args(["build", "minimal", "--offline", "--mirror", "http://mirror.example/debian", "--cache-dir"])
            .arg(folder.path().join("store"))
            .arg("-o")
            .arg(folder.path().join("out")),
    );
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    insta::assert_snapshot!(ran.stderr);
    assert!(fs::read_dir(folder.path().join("out")).map_or(true, |mut entries| entries.next().is_none()));
}

#[test]
fn explain_names_the_package_of_a_path() {
    if !require_mirror() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    Ran::well(&mut build("minimal", out.path()));
    let explain = |path: &str| Ran::of(builder().args(["explain", path, "minimal", "--cache-dir"]).arg(shared_store()));
    let systemd = explain("/usr/lib/systemd/systemd");
    assert!(systemd.stdout.starts_with("package  systemd\n"), "{systemd:?}");
    let nothing = explain("/usr/bin/nothing");
    assert_eq!(nothing.status, Some(1));
}

/// Two builds that share nothing but the mirror: other user, folders, time zone, umask, locale.
#[test]
fn equal_requests_give_equal_bytes_to_everybody() {
    if !require_mirror() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    Ran::well(
        builder()
            .args(["build", "ha-postgres", "--format", "oci", "--format", "raw", "--format", "qcow2", "--cache-dir"])
            .arg(here.join("store"))
            .arg("-o")
            .arg(here.join("out"))
            .env("TZ", "UTC"),
    );

    // The other one has a copy of the project, which an ordinary user can read.
    let there = folder.path().join("there");
    fs::create_dir(&there).unwrap();
    for part in ["recipes", "overlays"] {
        Ran::well(Command::new("cp").arg("-r").arg(project().join(part)).arg(there.join(part)));
    }
    let programs = there.join("programs");
    fs::create_dir(&programs).unwrap();
    for program in [PROGRAM, env!("CARGO_BIN_EXE_pgha-node")] {
        fs::copy(program, programs.join(Path::new(program).file_name().unwrap())).unwrap();
    }
    let script = "umask 077; exec ./programs/pgha-image build ha-postgres --format oci --format raw --format qcow2 \
                  --cache-dir store -o out";
    let mut other = match ordinary_user() {
        Some(user) => {
            Ran::well(Command::new("chown").arg("-R").arg(format!("{user}:")).arg(&there));
            chown(&there, None, None).unwrap();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--init-groups", "sh", "-c", script]);
            command
        }
        None => {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }
    };
    Ran::well(
        other
            .current_dir(&there)
            .env("TZ", "Pacific/Kiritimati")
            .env("LC_ALL", "tr_TR.UTF-8")
            .env("HOME", &there)
            .stdin(Stdio::null()),
    );
    let (one, two) = (digests(&here.join("out")), digests(&there.join("out")));
    assert_eq!(one.len(), 8, "{one:?}");
    assert_eq!(one, two);
    for (name, digest) in one {
        println!("{digest}  {name}");
    }
}

/// An ordinary user that may build without being root; made for the test where that can be done.
fn ordinary_user() -> Option<&'static str> {
    const USER: &str = "pgha-test";
    if !require_root() || !require_program("setpriv") || !require_program("newuidmap") {
        return None;
    }
    let known = Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success());
    if !known {
        Ran::well(Command::new("useradd").args(["--system", "--add-subids-for-system", "--no-create-home", USER]));
    }
    Some(USER)
}

/// SIGKILL at moments spread over a whole build: nothing half made is ever seen, and the next build is right.
#[test]
fn a_build_that_is_killed_leaves_nothing_half_made() {
    if !require_mirror() {
        return;
    }
    const KILLS: u32 = 20;
    let folder = tempfile::tempdir().unwrap();
    let (store, out) = (folder.path().join("store"), folder.path().join("out"));
    let run = || {
        let mut command = builder();
        command.args(["build", "minimal", "--quiet", "--cache-dir"]).arg(&store).arg("-o").arg(&out);
        command
    };
    let began = Instant::now();
    Ran::well(&mut run());
    let whole = began.elapsed();
    let right = digests(&out);
    for kill in 0..KILLS {
        // Every few kills all is new again, so that each moment of a build is met, also with leftovers of the last.
        if kill % 4 == 0 {
            fs::remove_dir_all(&store).unwrap();
            fs::remove_dir_all(&out).unwrap();
        }
        let mut child = run().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(whole * (kill % 4 * 5 + kill / 4) / KILLS);
        child.kill().unwrap();
        child.wait().unwrap();
        for (name, digest) in artifacts(&out) {
            assert_eq!(Some(&digest), right.get(&name), "{name} is half made after kill {kill}");
        }
        if kill % 4 == 3 {
            Ran::well(&mut run());
            assert_eq!(artifacts(&out), right, "the build after kill {kill}");
        }
    }
}

/// The digests of what has an artifact's name; a file that is being written has a hidden one.
fn artifacts(out: &Path) -> BTreeMap<String, String> {
    if !out.is_dir() {
        return BTreeMap::new();
    }
    digests(out).into_iter().filter(|(name, _)| !name.starts_with('.')).collect()
}

#[test]
fn ctrl_c_takes_away_what_is_half_made() {
    if !require_mirror() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, out) = (folder.path().join("store"), folder.path().join("out"));
    let mut child = builder()
        .args(["build", "minimal", "--cache-dir"])
        .arg(&store)
        .arg("-o")
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::support::wait("a root being made", Duration::from_secs(120), || {
        let scratch = fs::read_dir(store.join("scratch")).into_iter().flatten().flatten();
        let mut names = scratch.map(|entry| entry.file_name().into_string().unwrap());
        names.find(|name| name.starts_with("base-")).ok_or_else(|| "no scratch folder".to_owned())
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(store.join("scratch")).unwrap().count(), 0, "the scratch folder is empty");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

/// A small file system of its own: as root alone, and seen by the build alone.
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !require_mirror() || !require_root() || !require_program("unshare") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (full, megabytes) in [("store", 24), ("out", 4)] {
        let (store, out) = (shared_store(), folder.path().join("out"));
        let store = if full == "store" { folder.path().join("store") } else { store };
        let at = if full == "store" { &store } else { &out };
        fs::create_dir_all(at).unwrap();
        let script = "mount -t tmpfs -o size=$1m none \"$2\" && \"$3\" build minimal --quiet --cache-dir \"$4\" -o \"$5\"; \
                      status=$?; ls -A \"$5\"; exit $status";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", &megabytes.to_string()]);
        command.arg(at).arg(PROGRAM).arg(&store).arg(&out).current_dir(project()).stdin(Stdio::null());
        let ran = Ran::of(&mut command);
        assert_eq!(ran.status, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "", "nothing is left in the output folder");
    }
}
