//! What the program does with files, flags, commands and signals; the store is a YAML file.

use super::{Confd, MEMBERS, free_port, http_get, wait_for};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    process::Command,
    thread,
    time::{Duration, Instant},
};

const ONE: &str = "members: {pg-1: 10.0.0.11}\n";
const TWO: &str = "members: {pg-1: 10.0.0.11, pg-2: 10.0.0.12}\n";

/// confd on a file `keys.yaml` with one resource `members`; `lines` are of the resource.
fn confd(lines: &str) -> Confd {
    let confd = Confd::new(&["-backend", "file"]).resource("members", MEMBERS, "[\"/members\"]", lines);
    let keys = confd.path("keys.yaml").display().to_string();
    confd.write("keys.yaml", ONE);
    confd.flag("-file").flag(&keys)
}

/// A file to which commands add a line for each run.
fn runs(confd: &Confd) -> Vec<String> {
    fs::read_to_string(confd.path("runs")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn commands_see_the_staged_file_and_the_file() {
    let confd = confd("");
    let log = confd.path("runs");
    let check = format!("grep -q pg-1 {{{{.src}}}} && echo check {{{{ .dest }}}} >> {}", log.display());
    let reload = format!("echo reload {{{{.dest}}}} >> {}", log.display());
    confd.add_resource(
        "members",
        MEMBERS,
        "[\"/members\"]",
        &format!("check_cmd = {check:?}\nreload_cmd = {reload:?}\nmode = \"0604\""),
    );
    confd.once_well();
    let dest = confd.out("members");
    assert_eq!(runs(&confd), [format!("check {}", dest.display()), format!("reload {}", dest.display())]);
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o7777, 0o604);
    // In step: nothing runs. Another mode counts as out of step.
    confd.once_well();
    assert_eq!(runs(&confd).len(), 2);
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o600)).unwrap();
    confd.once_well();
    assert_eq!(runs(&confd).len(), 4);
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o7777, 0o604);
    assert_eq!(fs::read_dir(confd.path("out")).unwrap().count(), 1, "no staged file is left");
}

#[test]
fn owner_and_group_are_set_by_number_and_by_name() {
    if !crate::testing::require_root() {
        return;
    }
    for (lines, expected) in [
        ("uid = 12\ngid = 34", (12, 34)),
        ("owner = \"daemon\"\ngroup = \"daemon\"", (1, 1)),
        ("owner = \"daemon\"\nuid = 7", (7, 0)),
    ] {
        let confd = confd(lines);
        confd.once_well();
        let meta = fs::metadata(confd.out("members")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), expected, "{lines}");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_a_sync_runs_nothing() {
    let confd = confd("check_cmd = \"exit 1\"\nreload_cmd = \"exit 1\"").flag("-noop");
    let output = confd.once();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("noop"));
    assert!(!confd.out("members").exists() && !confd.path("state").exists());
    let confd = confd.flag("-noop=false").flag("--sync-only");
    confd.once_well();
    assert!(confd.read("members").contains("pg-1"));
}

#[test]
fn the_mode_of_the_file_there_is_kept() {
    let confd = confd("");
    confd.once_well();
    let mode = || fs::metadata(confd.out("members")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o644);
    fs::set_permissions(confd.out("members"), fs::Permissions::from_mode(0o604)).unwrap();
    confd.write("keys.yaml", TWO);
    confd.once_well();
    assert_eq!((confd.read("members").contains("pg-2"), mode()), (true, 0o604));
}

#[test]
fn keys_are_shown_without_the_prefix_and_the_flag_overrides_it() {
    let confd = confd("prefix = \"/service/demo\"");
    confd.write(
        "keys.yaml",
        "service: {demo: {members: {own: a}}, other: {members: {others: b}}}\nmembers: {none: c}\n",
    );
    confd.once_well();
    assert_eq!(confd.read("members"), "# begin\nserver own a\n# end\n");
    let confd = confd.variable("CONFD_PREFIX", "/service/other");
    confd.once_well();
    assert_eq!(confd.read("members"), "# begin\nserver others b\n# end\n");
    let confd = confd.flag("-prefix=/service/demo");
    confd.once_well();
    assert_eq!(confd.read("members"), "# begin\nserver own a\n# end\n");
}

#[test]
fn a_file_that_is_a_mount_is_written_over() {
    let confd = confd("");
    let inner = confd.path("inner");
    fs::write(confd.out("members"), "").unwrap();
    fs::write(&inner, "").unwrap();
    // The other end of the mount shows what was written.
    let Some(output) = confd.once_with_mount(&inner, &confd.out("members"), &["-log-level=debug"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("is a mount: writing over it"), "{said}");
    assert_eq!(fs::read_to_string(&inner).unwrap(), "# begin\nserver pg-1 10.0.0.11\n# end\n");
}

#[test]
fn what_is_not_known_is_named_with_file_and_line_and_does_nothing() {
    let confd = confd("secret = true");
    confd.write("confd.toml", "interval = 5\n\nsurprise = 1\n");
    let output = confd.once();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for place in [
        format!("{}:3: the key `surprise` is not known", confd.path("confd.toml").display()),
        format!("{}:5: the key `secret` is not known", confd.path("conf.d/members.toml").display()),
    ] {
        assert!(said.contains(&place), "{place}: {said}");
    }
    let quiet = confd.flag("-log-level=error").once();
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
}

#[test]
fn the_staged_file_is_kept_if_that_is_asked() {
    let confd = confd("check_cmd = \"false\"").flag("-keep-stage-file");
    assert!(!confd.once().status.success());
    let mut found = fs::read_dir(confd.path("out")).unwrap().map(|entry| entry.unwrap().path());
    let kept = found.next().unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), "# begin\nserver pg-1 10.0.0.11\n# end\n");
    assert_eq!(found.next(), None);
}

#[test]
fn changes_are_gathered_for_the_debounce_time() {
    let confd = confd("");
    let reload = format!("grep -c server {{{{.dest}}}} >> {}", confd.path("runs").display());
    let lines = format!("reload_cmd = {reload:?}\ndebounce = \"1s\"");
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &lines);
    let running = confd.start();
    wait_for("the first file", || runs(&confd) == ["1"]);
    confd.write("keys.yaml", TWO);
    thread::sleep(Duration::from_millis(100));
    confd.write("keys.yaml", "members: {pg-1: a, pg-2: b, pg-3: c}\n");
    wait_for("one reload for both", || runs(&confd).len() > 1);
    assert_eq!(runs(&confd), ["1", "3"]);
    drop(running);
}

#[test]
fn a_check_that_fails_keeps_the_file() {
    let confd = confd("check_cmd = \"! grep -q pg-2 {{.src}} || { echo two servers >&2; exit 3; }\"");
    confd.once_well();
    let before = confd.read("members");
    confd.write("keys.yaml", TWO);
    let output = confd.once();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ended with status 3: two servers"), "{said}");
    assert_eq!(confd.read("members"), before);
}

#[test]
fn a_text_of_the_wrong_format_is_not_written() {
    let confd = confd("output_format = \"json\"");
    assert!(!confd.once().status.success());
    assert!(!confd.out("members").exists());
}

#[test]
fn too_few_items_are_never_written() {
    let confd = confd("min_items = 2\nitems = \"/members/*\"");
    let output = confd.once();
    assert!(String::from_utf8_lossy(&output.stderr).contains("min_items = 2"));
    assert_eq!(output.status.code(), Some(1));
    assert!(!confd.out("members").exists());
    confd.write("keys.yaml", TWO);
    confd.once_well();
}

#[test]
fn wrong_requests_are_told_apart_from_failed_work() {
    let confd = confd("");
    let code = |confd: &Confd| confd.once().status.code();
    confd.write("templates/members.tmpl", "{{cgetv \"/x\"}}");
    let output = confd.command().arg("-check-config").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("`cgetv` is not supported"), "{said}");
    confd.write("templates/members.tmpl", "{{getv \"/missing\"}}");
    assert!(confd.command().arg("-check-config").status().unwrap().success());
    assert_eq!(code(&confd), Some(1));
    confd.write("conf.d/broken.toml", "[template]\nsrc = 1\n");
    let output = confd.once();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("broken.toml:2: `src` must be a quoted string"));
    confd.write("confd.toml", "backend = \"vault\"\n");
    let plain = Command::new(env!("CARGO_BIN_EXE_pgha-node"))
        .args(["confd", "-config-file"])
        .arg(confd.path("confd.toml"))
        .output()
        .unwrap();
    assert_eq!(plain.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&plain.stderr).contains("backends: etcdv3, consul, file, env"));
}

#[test]
fn one_failure_stops_the_others_only_if_that_is_asked() {
    let confd = confd("");
    // In the order of their names, this one is first.
    confd.add_resource("failing", "{{getv \"/missing\"}}", "[\"/members\"]", "");
    let confd = confd.flag("--failure-mode=fail-fast");
    assert_eq!((confd.once().status.code(), confd.out("members").exists()), (Some(1), false));
    let confd = confd.flag("--failure-mode=best-effort");
    assert_eq!((confd.once().status.code(), confd.out("members").exists()), (Some(1), true));
}

#[test]
fn a_preflight_asks_the_store_and_writes_nothing() {
    let confd = confd("");
    let output = confd.command().arg("--preflight").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("file answers with 1 keys"), "{said}");
    assert!(!confd.out("members").exists());
    fs::remove_file(confd.path("keys.yaml")).unwrap();
    assert_eq!(confd.command().arg("--preflight").status().unwrap().code(), Some(1));
    assert!(confd.command().arg("--validate").status().unwrap().success());
}

#[test]
fn the_program_is_confd_under_that_name() {
    let confd = confd("");
    let link = confd.path("confd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pgha-node"), &link).unwrap();
    let version = Command::new(&link).arg("-version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("confd "), "{version:?}");
    let keys = confd.path("keys.yaml");
    let status = Command::new(&link)
        .args(["-onetime", "-backend=file", "-log-level", "error", "-file"])
        .arg(&keys)
        .arg("-confdir")
        .arg(confd.path(""))
        .arg("-state-dir")
        .arg(confd.path("state"))
        .status();
    assert!(status.unwrap().success());
    assert!(confd.read("members").contains("pg-1"));
}

#[test]
fn a_reload_that_fails_is_repeated_even_after_a_restart() {
    let confd = confd("");
    let (allow, log) = (confd.path("allow"), confd.path("runs"));
    let reload = format!("echo try >> {0}; test -e {1} && echo done >> {0}", log.display(), allow.display());
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &format!("reload_cmd = {reload:?}"));
    let running = confd.start();
    // The file is in step at once, the reload is not.
    confd.wait("members", |text| text.contains("pg-1"));
    wait_for("a second try", || runs(&confd).len() >= 2);
    drop(running);
    let before = runs(&confd).len();
    let _running = confd.start();
    wait_for("another try", || runs(&confd).len() > before);
    fs::write(&allow, "").unwrap();
    wait_for("success", || runs(&confd).last().is_some_and(|run| run == "done"));
    let done = || runs(&confd).iter().filter(|run| *run == "done").count();
    assert_eq!(done(), 1);
    confd.write("keys.yaml", TWO);
    wait_for("the next reload", || done() == 2);
}

#[test]
fn a_reload_that_came_too_soon_is_done_later() {
    let confd = confd("");
    let reload = format!("date +%s%N >> {}", confd.path("runs").display());
    confd.add_resource(
        "members",
        MEMBERS,
        "[\"/members\"]",
        &format!("reload_cmd = {reload:?}\nmin_reload_interval = \"2s\""),
    );
    let _running = confd.start();
    wait_for("the first reload", || runs(&confd).len() == 1);
    confd.write("keys.yaml", TWO);
    confd.wait("members", |text| text.contains("pg-2"));
    wait_for("the second reload", || runs(&confd).len() == 2);
    let times: Vec<u64> = runs(&confd).iter().map(|time| time.parse().unwrap()).collect();
    assert!(times[1] - times[0] >= 1_900_000_000, "{times:?}");
}

#[test]
fn a_command_that_hangs_is_killed_with_what_it_started() {
    let confd = confd("");
    let pid = confd.path("pid");
    let check = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    confd.add_resource(
        "members",
        MEMBERS,
        "[\"/members\"]",
        &format!("check_cmd = {check:?}\ncheck_cmd_timeout = \"300ms\""),
    );
    let output = confd.once();
    assert!(String::from_utf8_lossy(&output.stderr).contains("did not end within 0.3 s"));
    let child: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    wait_for("the grandchild's end", is_gone);
}

#[test]
fn a_reload_that_hangs_is_killed_and_repeated() {
    let confd = confd("");
    let (first, log) = (confd.path("first"), confd.path("runs"));
    let reload =
        format!("test -e {0} || {{ touch {0}; sleep 1000; }}; echo done >> {1}", first.display(), log.display());
    let lines = format!("reload_cmd = {reload:?}\nreload_cmd_timeout = \"300ms\"");
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &lines);
    let running = confd.start();
    running.wait_log("did not end within 0.3 s");
    wait_for("the second try", || runs(&confd) == ["done"]);
}

#[test]
fn a_hangup_reads_resources_again_and_keeps_them_if_they_are_wrong() {
    let confd = confd("");
    let running = confd.start();
    confd.wait("members", |text| text.contains("pg-1"));
    confd.add_resource("second", "{{getv \"/members/pg-1\"}}", "[\"/members\"]", "");
    running.signal(Signal::HUP);
    confd.wait("second", |text| text == "10.0.0.11");
    confd.write("conf.d/broken.toml", "[template]\nsrc = 1\n");
    running.signal(Signal::HUP);
    running.wait_log("keeping the resources as they were");
    confd.write("keys.yaml", TWO);
    confd.wait("members", |text| text.contains("pg-2"));
}

#[test]
fn the_end_waits_for_the_step_in_hand() {
    let confd = confd("");
    let log = confd.path("runs");
    let reload = format!("echo begin >> {0}; sleep 1; echo end >> {0}", log.display());
    confd.add_resource("members", MEMBERS, "[\"/members\"]", &format!("reload_cmd = {reload:?}"));
    let mut running = confd.start();
    wait_for("the reload to begin", || runs(&confd) == ["begin"]);
    running.signal(Signal::TERM);
    assert!(running.child.wait().unwrap().success());
    assert_eq!(runs(&confd), ["begin", "end"]);
}

#[test]
fn the_service_manager_and_monitors_are_told() {
    let confd = confd("");
    let socket = UnixDatagram::bind(confd.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let notify = confd.path("notify").display().to_string();
    let running =
        confd.start_with(&[("NOTIFY_SOCKET", &notify), ("WATCHDOG_USEC", "600000"), ("CONFD_METRICS_ADDR", &address)]);
    let heard = |part: &str| {
        let end = Instant::now() + Duration::from_secs(20);
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            let length = socket.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..length]).contains(part) {
                return true;
            }
        }
        false
    };
    assert!(heard("READY=1"));
    assert!(heard("WATCHDOG=1"));
    wait_for("a healthy answer", || http_get(port, "/health").is_some_and(|answer| answer.contains("200 OK")));
    let metrics = http_get(port, "/metrics").unwrap();
    assert!(metrics.contains("confd_applied_items{"), "{metrics}");
    running.signal(Signal::HUP);
    assert!(heard("RELOADING=1"));
    assert!(heard("READY=1"));
    running.signal(Signal::TERM);
    assert!(heard("STOPPING=1"));
}

#[test]
fn without_watching_the_interval_sees_everything() {
    let confd = confd("").flag("-interval=1");
    let mut command = confd.command();
    let mut child = command.spawn().unwrap();
    confd.wait("members", |text| text.contains("pg-1"));
    confd.write("keys.yaml", TWO);
    confd.wait("members", |text| text.contains("pg-2"));
    confd.add_resource("second", "{{getv \"/members/pg-1\"}}", "[\"/members\"]", "");
    confd.wait("second", |text| text == "10.0.0.11");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_edited_template_is_seen_at_the_next_reading() {
    let confd = confd("").flag("-interval=1");
    let _running = confd.start();
    confd.wait("members", |text| text.contains("pg-1"));
    confd.write("templates/members.tmpl", "{{nosuchfunction}}");
    thread::sleep(Duration::from_millis(1500));
    assert!(confd.read("members").contains("pg-1"));
    confd.write("templates/members.tmpl", "edited");
    confd.wait("members", |text| text == "edited");
}

#[test]
fn a_resource_may_have_a_store_of_its_own() {
    let confd = confd("");
    confd.write("other.yaml", "members: {pg-9: 10.0.0.19}\n");
    let other = confd.path("other.yaml");
    confd.add_resource(
        "other",
        MEMBERS,
        "[\"/members\"]",
        &format!("[backend]\nbackend = \"file\"\nfile = [{other:?}]"),
    );
    confd.once_well();
    assert!(confd.read("other").contains("pg-9") && confd.read("members").contains("pg-1"));
}
