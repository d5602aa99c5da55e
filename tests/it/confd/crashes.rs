//! What a crash leaves behind: the program, as it is shipped, is killed at each of the system calls that change a file,
//! one after the other, by `strace`.

use super::{Confd, MEMBERS, Running, wait_for};
use crate::testing::{require, require_program};
use std::{
    fs,
    process::{Command, Stdio},
};

/// The calls before which the program is killed: all that change what is on disk, beside opening a file. Each set is
/// counted on its own, in each thread.
const CALLS: [&str; 4] =
    ["write", "fsync,fdatasync", "rename,renameat,renameat2", "fchmod,fchown,unlink,unlinkat,link,linkat"];
/// The file as it was before the crash, and as it becomes.
const OLD: &str = "# begin\nserver pg-1 10.0.0.1\n# end\n";
const NEW: &str = "# begin\nserver pg-1 10.0.0.1\nserver pg-2 10.0.0.2\n# end\n";

/// Whether programs can be traced here.
fn can_trace() -> bool {
    if !require_program("strace") {
        return false;
    }
    let quiet = || Stdio::null();
    let status = Command::new("strace").args(["-qqq", "-e", "trace=none", "true"]).stderr(quiet()).status();
    require("tracing", status.is_ok_and(|status| status.success()), "strace may not trace programs")
}

/// confd after one good pass, with a change waiting that no pass has seen. Each run of `reload` is followed by a line that
/// tells how many servers the file's reader now knows.
fn before_a_crash(reload: &str) -> Confd {
    let confd = Confd::new(&["-backend", "file"]);
    let keys = confd.path("keys.yaml").display().to_string();
    confd.write("keys.yaml", "members: {pg-1: 10.0.0.1}\n");
    let note = format!("grep -c server {{{{.dest}}}} >> {}", confd.path("reloads").display());
    let (own, reload) = (format!("reload_cmd = {note:?}"), format!("{reload}{note}"));
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &own);
    let confd = confd.flag("-file").flag(&keys);
    confd.once_well();
    assert_eq!(confd.read("members"), OLD);
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &format!("reload_cmd = {reload:?}"));
    confd.write("keys.yaml", "members: {pg-1: 10.0.0.1, pg-2: 10.0.0.2}\n");
    confd
}

fn reloads(confd: &Confd) -> String {
    fs::read_to_string(confd.path("reloads")).unwrap_or_default()
}

/// Whether the new file is there, its reader was told, and that is written down.
fn is_done(confd: &Confd) -> bool {
    let states = fs::read_dir(confd.path("state")).into_iter().flatten().flatten();
    let mut records = states.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"));
    let is_owed = records
        .any(|record| fs::read_to_string(record.path()).is_ok_and(|record| record.contains("\"reload_owed\":true")));
    confd.read("members") == NEW && reloads(confd).ends_with("2\n") && !is_owed
}

/// Starts it again after a crash: the file becomes right, and its reader knows.
fn recover(confd: &Confd, crash: &str) {
    let _running = confd.start();
    wait_for(&format!("the file and its reader after {crash}"), || is_done(confd));
    // Told once, or twice if the crash came before that was written down.
    assert!(matches!(reloads(confd).as_str(), "1\n2\n" | "1\n2\n2\n"), "{crash}: {:?}", reloads(confd));
}

/// Waits until it has ended; says whether it came to its end only after all was done.
fn is_through(confd: &Confd, running: &mut Running) -> bool {
    let mut is_through = false;
    wait_for("the crash or the end of the pass", || {
        is_through = is_done(confd);
        is_through || running.child.try_wait().unwrap().is_some()
    });
    is_through
}

#[test]
fn a_crash_at_any_point_loses_neither_file_nor_reload() {
    if !can_trace() {
        return;
    }
    let (mut before, mut between, mut after) = (0, 0, 0);
    for calls in CALLS {
        for number in 1.. {
            let confd = before_a_crash("");
            let inject = format!("inject={calls}:signal=KILL:when={number}");
            let mut running = confd.start_traced(&["-o", "/dev/null", "-e", &inject]);
            if is_through(&confd, &mut running) {
                break;
            }
            let crash = format!("the crash at {calls} {number}");
            match (confd.read("members").as_str(), reloads(&confd).as_str()) {
                (OLD, "1\n") => before += 1,
                (NEW, "1\n") => between += 1,
                (NEW, "1\n2\n") => after += 1,
                (file, reloads) => panic!("{crash} leaves {file:?}, its reader was told {reloads:?}"),
            }
            recover(&confd, &crash);
        }
    }
    println!("crashes: {before} before the file was replaced, {between} between that and the reload, {after} after it");
    // All of it was met: before the file is replaced, between that and the reload, and after the reload.
    assert!(before >= 6 && between >= 2 && after >= 3, "{before} before, {between} between, {after} after");
}

#[test]
fn a_crash_during_the_reload_repeats_it() {
    // The first reload of the new file kills the program that runs it.
    let once = "if ! test -e MARK; then touch MARK; kill -9 $PPID; exit 0; fi; ";
    let folder = tempfile::tempdir().unwrap();
    let confd = before_a_crash(&once.replace("MARK", &folder.path().join("mark").display().to_string()));
    let mut running = confd.start();
    assert!(!running.child.wait().unwrap().success());
    assert_eq!((confd.read("members").as_str(), reloads(&confd).as_str()), (NEW, "1\n"));
    recover(&confd, "the crash");
}

#[test]
fn a_file_reaches_the_disk_before_it_takes_the_others_place_and_the_folder_after() {
    if !can_trace() {
        return;
    }
    let confd = before_a_crash("");
    let trace = confd.path("trace").display().to_string();
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2";
    let mut running = confd.start_traced(&["-y", "-s", "4096", "-o", &trace, "-e", calls]);
    assert!(is_through(&confd, &mut running));
    drop(running);
    let traced = fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = traced.lines().collect();
    let dest = format!("\"{}\"", confd.out("members").display());
    let at = lines.iter().position(|line| line.contains("rename") && line.contains(&dest));
    let at = at.unwrap_or_else(|| panic!("the file is not renamed:\n{traced}"));
    let stage = format!("<{}/.members.", confd.path("out").display());
    let folder = format!("<{}>", confd.path("out").display());
    assert!(lines[at - 1].contains("sync(") && lines[at - 1].contains(&stage), "{traced}");
    assert!(lines[at + 1].contains("sync(") && lines[at + 1].contains(&folder), "{traced}");
}
