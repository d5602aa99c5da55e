//! Packages that fail, hang, or reach for what is not theirs.

use super::{Kitchen, debs::small, kitchen, minimal, only, running, sandbox, scratch, silent, text};
use pgha_image::{base, error};
use std::{io::ErrorKind, net::TcpListener, time::Duration};

/// What an error says of installing one package with this postinst.
fn failure(kitchen: &Kitchen, name: &str, postinst: &str) -> String {
    let package = small(&kitchen.store, name, "", &[("postinst", postinst)], &[]);
    let mut spec = only(std::slice::from_ref(&package));
    spec.limit = Duration::from_secs(20);
    let error = kitchen.build(&spec, &[package]).unwrap_err();
    assert_eq!(scratch_of_this_process(kitchen), Vec::<String>::new());
    error
}

/// Other tests build at the same time, but one at a time fails.
fn scratch_of_this_process(kitchen: &Kitchen) -> Vec<String> {
    // A build that still runs holds its folder locked.
    scratch(&kitchen.store)
        .into_iter()
        .filter(|name| {
            std::fs::File::open(kitchen.store.scratch_root().join(name)).is_ok_and(|folder| folder.try_lock().is_ok())
        })
        .collect()
}

#[test]
fn a_failing_script_is_shown_with_its_last_words() {
    let Some(kitchen) = kitchen() else { return };
    let error =
        failure(kitchen, "failing", "#!/bin/sh\nfor i in $(seq 50); do echo line $i; done\necho broken >&2\nexit 7\n");
    insta::assert_snapshot!(error);
}

#[test]
fn a_hanging_script_is_killed_when_its_time_is_up() {
    let Some(kitchen) = kitchen() else { return };
    let error = failure(
        kitchen,
        "hanging",
        "#!/bin/sh\necho waiting for ever\ntrap '' TERM INT\nsleep 98761 & wait; sleep 98761\n",
    );
    insta::assert_snapshot!(error);
    assert_eq!(running("98761"), Vec::<String>::new());
}

#[test]
fn a_bomb_of_processes_is_stopped() {
    let Some(kitchen) = kitchen() else { return };
    let bomb = small(&kitchen.store, "bomb", "", &[("postinst", "#!/bin/sh\nwhile :; do sleep 98762 & done\n")], &[]);
    let error = kitchen.install(vec![bomb]).unwrap_err();
    assert!(error.contains("was killed for starting too many processes at configure of `bomb`"), "{error}");
    assert_eq!(running("98762"), Vec::<String>::new());
}

#[test]
fn a_daemon_does_not_outlive_its_package() {
    let Some(kitchen) = kitchen() else { return };
    let script = "#!/bin/sh\nsetsid sleep 98763 &\nsetsid sh -c 'sleep 98763' >/dev/null 2>&1 &\nexit 0\n";
    kitchen.install(vec![small(&kitchen.store, "daemon", "", &[("postinst", script)], &[])]).unwrap();
    assert_eq!(running("98763"), Vec::<String>::new());
}

#[test]
fn a_script_reaches_nothing_outside() {
    let Some(kitchen) = kitchen() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("secret"), "secret").unwrap();
    let at = host.path().display();
    let script = format!(
        r#"#!/bin/bash
exec >/opt/report 2>/dev/null
try() {{ if "${{@:2}}"; then echo "$1: yes"; else echo "$1: no"; fi; }}
try network bash -c 'echo hello >/dev/tcp/127.0.0.1/{port}'
try host-files cat {at}/secret
try host-files-by-climbing cat ../../../../../../..{at}/secret
try host-files-of-a-process cat /proc/1/root{at}/secret
try writing-there touch {at}/evil
try kernel-settings sh -c 'echo evil >/proc/sys/kernel/core_pattern'
try sysrq sh -c 'echo h >/proc/sysrq-trigger'
try mounting mount -t tmpfs tmpfs /mnt
try remounting mount -o remount,rw /run/pgha-image
try writing-packages touch /run/pgha-image/evil
try overwriting-packages sh -c 'echo evil >/run/pgha-image/0.deb'
try device-nodes mknod /opt/disk b 8 0
try chroot-escape perl -e 'mkdir "/opt/c"; chroot "/opt/c"; chdir ".." for 1..20; chroot "."; exit(!-e "{at}/secret")'
try terminal sh -c ': </dev/tty'
kill -9 1
kill -STOP 1
try still-here true
echo "interfaces: $(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')"
case $(uname -m) in aarch64) fsync=82 ;; *) fsync=74 ;; esac
try fsync-of-nothing-succeeds perl -e "exit(syscall($fsync, 999) != 0)"
try keyrings perl -e 'exit(syscall(248, "user", "evil", "x", 1, -3) == -1)'
rmdir /opt/c
kill -9 -1
"#
    );
    let package = small(&kitchen.store, "reaching", "", &[("postinst", &script)], &[("/opt/x", "x")]);
    let error = kitchen.install(vec![package]).unwrap_err();
    assert!(error.contains("`dpkg` ended with status 137"), "all that it can reach is its own: {error}");

    let script = script.replace("kill -9 -1\n", "");
    let package = small(&kitchen.store, "reaching", "", &[("postinst", &script)], &[("/opt/x", "x")]);
    let layer = kitchen.install(vec![package]).unwrap();
    insta::assert_snapshot!(text(&kitchen.store, &kitchen.tree(&layer), "/opt/report"));
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 1);
}

#[test]
fn what_has_no_place_in_an_image_fails_the_build() {
    let Some(kitchen) = kitchen() else { return };
    let cluster = "#!/bin/sh\nmkdir -p /var/lib/postgresql/17/main\necho 17 >/var/lib/postgresql/17/main/PG_VERSION\necho 8.8.8.8 >/etc/resolv.conf\n";
    insta::assert_snapshot!(failure(kitchen, "cluster", cluster));
    let socket =
        "#!/bin/sh\nperl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"/opt/agent\", Listen => 1)'\n";
    let package = small(&kitchen.store, "socket", "", &[("postinst", socket)], &[("/opt/x", "x")]);
    insta::assert_snapshot!(kitchen.install(vec![package]).unwrap_err());
}

#[test]
fn packages_that_are_no_base_are_refused() {
    let Some(kitchen) = kitchen() else { return };
    let spec = only(&[small(&kitchen.store, "lonely", "", &[], &[])]);
    let error = base::build(&kitchen.store, &silent(), &sandbox(), &[], &spec, &mut base::at_hand(&[])).unwrap_err();
    assert_eq!(error::kind_of(&error), error::ErrorKind::Usage);
    insta::assert_snapshot!(error::report(&error));
}

#[test]
fn a_damaged_package_is_dropped_and_named() {
    let Some(kitchen) = kitchen() else { return };
    let package = small(&kitchen.store, "damaged", "", &[], &[("/opt/damaged", "d")]);
    let blob = kitchen.store.blob_path(&package.expanded);
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    insta::assert_snapshot!(kitchen.install(vec![package]).unwrap_err());
    assert!(!blob.exists());
}

#[test]
fn a_time_in_the_future_is_refused() {
    let Some(kitchen) = kitchen() else { return };
    let mut spec = minimal(&kitchen.packages);
    spec.epoch = 33_000_000_000;
    let error = base::build(&kitchen.store, &silent(), &sandbox(), &[], &spec, &mut base::at_hand(&[])).unwrap_err();
    insta::assert_snapshot!(error::report(&error));
}
