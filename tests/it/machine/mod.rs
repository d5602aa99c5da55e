//! Machines in QEMU: started, found again, ended, and what `pgha-image run` makes of it. The guest is a boot sector,
//! which costs the emulator nothing.

mod boot;
mod cluster;

use crate::{
    support::{PROGRAM, Ran, builder, wait},
    testing::require_program,
};
use pgha_image::{
    machine::{Accel, Console, DiskBus, DiskImage, Firmware, Machine, MachineConfig, Net, Qemu},
    reexec::{Launcher, Lifetime},
    switch::{PortSpec, Switch, SwitchSpec},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// How long QEMU may take to start on a loaded host.
const START: Duration = Duration::from_secs(60);

/// Says `ready` on the serial port, and then whatever is said to it.
const GUEST: &[u8] = &[
    0x31, 0xc0, // xor %ax, %ax
    0x8e, 0xd8, // mov %ax, %ds
    0xbe, 0x21, 0x7c, // mov $0x7c21, %si
    0xac, // 1: lodsb
    0x84, 0xc0, // test %al, %al
    0x74, 0x06, // jz 2f
    0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xee, // out %al, %dx
    0xeb, 0xf5, // jmp 1b
    0xba, 0xfd, 0x03, // 2: mov $0x3fd, %dx
    0xec, // in %dx, %al
    0xa8, 0x01, // test $1, %al
    0x74, 0xf8, // jz 2b
    0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xec, // in %dx, %al
    0xee, // out %al, %dx
    0xeb, 0xf1, // jmp 2b
    b'r', b'e', b'a', b'd', b'y', b'\r', b'\n', 0,
];

fn write_guest(path: &Path) {
    let mut disk = vec![0; 1 << 20];
    disk[..GUEST.len()].copy_from_slice(GUEST);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(path, disk).unwrap();
}

fn config(folder: &Path, name: &str) -> MachineConfig {
    let image = folder.join("disk.img");
    write_guest(&image);
    MachineConfig {
        name: name.to_owned(),
        image: DiskImage::open(&image).unwrap(),
        firmware: Firmware::Bios,
        cpus: 1,
        memory: 32,
        bus: DiskBus::VirtioBlk,
        disk_size: Some(20 << 30),
        keep: None,
        seed: None,
        net: Net::User(Vec::new()),
        console: Console::Log,
    }
}

fn qemu() -> Option<Qemu> {
    require_program("qemu-system-x86_64").then(|| Qemu::find().unwrap())
}

/// The machines' processes that run in `folder`.
fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let runs_there = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder));
        if runs_there {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

fn wait_for_console(machine: &Machine, text: &str) {
    wait("the guest's word", START, || {
        let said = fs::read(machine.console_log()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains(text) { Ok(()) } else { Err(said) }
    });
}

/// Ends a detached machine when its test ends, however that is.
struct EndAtLast(std::path::PathBuf);

impl Drop for EndAtLast {
    fn drop(&mut self) {
        if let Ok(Some(machine)) = Machine::open(&self.0) {
            let _ = machine.cut_power();
        }
    }
}

#[test]
fn a_machine_is_paused_found_again_and_ended() {
    let Some(qemu) = qemu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::with_program(PROGRAM);
    let place = folder.path().join("machine");
    config(folder.path(), "pg-1").prepare(Accel::Tcg, &place).unwrap();
    let machine = Machine::start(&qemu, &place, Lifetime::Detached, &launcher).unwrap();
    let _end = EndAtLast(place.clone());
    wait_for_console(&machine, "ready");
    let again = Machine::start(&qemu, &place, Lifetime::Detached, &launcher).unwrap_err();
    assert_eq!(format!("{again:#}"), "starting the machine pg-1: it is running already");
    machine.pause().unwrap();
    // As a later call of the program does.
    drop(machine);
    let machine = Machine::open(&place).unwrap().expect("the machine is gone");
    assert_eq!(machine.monitor().unwrap().status().unwrap(), "paused");
    machine.resume().unwrap();
    assert_eq!(machine.monitor().unwrap().status().unwrap(), "running");
    let error = format!("{:#}", machine.agent(Instant::now() + Duration::from_millis(200)).unwrap_err());
    assert!(error.contains("the guest agent does not answer"), "{error}");
    machine.cut_power().unwrap();
    assert!(Machine::open(&place).unwrap().is_none());
    assert_eq!(processes_in(&place), [""; 0]);
    // Its disk is as it left it, and it starts again.
    let machine = Machine::start(&qemu, &place, Lifetime::Tied, &launcher).unwrap();
    drop(machine);
    assert_eq!(processes_in(&place), [""; 0]);
}

#[test]
fn what_qemu_says_against_a_machine_is_told() {
    let Some(qemu) = qemu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("machine");
    config(folder.path(), "pg-1").prepare(Accel::Tcg, &place).unwrap();
    fs::remove_file(place.join("disk.qcow2")).unwrap();
    let error = Machine::start(&qemu, &place, Lifetime::Tied, &Launcher::with_program(PROGRAM)).unwrap_err();
    let told = format!("{error:#}");
    assert!(told.contains("starting the machine pg-1: QEMU ended") && told.contains("disk.qcow2"), "{told}");
}

#[test]
fn machines_meet_at_a_switch_that_outlives_its_starter() {
    let Some(qemu) = qemu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::with_program(PROGRAM);
    let names = ["pg-1", "pg-2"];
    for name in names {
        MachineConfig { net: Net::Switch, ..config(folder.path(), name) }
            .prepare(Accel::Tcg, &folder.path().join(name))
            .unwrap();
    }
    let spec = SwitchSpec {
        control: folder.path().join("switch.sock"),
        gateway: Ipv4Addr::new(192, 0, 2, 1).into(),
        prefix: 24,
        ports: names.map(|name| PortSpec { name: name.to_owned(), folder: folder.path().join(name) }).into(),
        forwards: Vec::new(),
    };
    let (switch, _) = Switch::start(&spec, Lifetime::Detached, &launcher).unwrap();
    drop(switch);
    let switch = Switch::open(&spec.control).expect("the switch is gone");
    let machines =
        names.map(|name| Machine::start(&qemu, &folder.path().join(name), Lifetime::Tied, &launcher).unwrap());
    let connected = || {
        let status = switch.status().unwrap();
        names.map(|name| status.ports[name].connected)
    };
    wait("both machines at the switch", START, || match connected() {
        [true, true] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let [first, second] = machines;
    drop(first);
    wait("the first machine off the switch", START, || match connected() {
        [false, true] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop(second);
    switch.stop().unwrap();
    assert!(Switch::open(&spec.control).is_none());
}

#[test]
fn a_machine_on_the_terminal_speaks_hears_and_is_ended_by_its_keys() {
    if qemu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    write_guest(&image);
    let mut running = builder();
    running.arg("run").arg(&image).args(["--memory", "32MiB", "--disk-size", "1TiB"]);
    let mut child = running.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let said = Arc::new(Mutex::new(String::new()));
    let (mut stdout, heard) = (child.stdout.take().unwrap(), said.clone());
    std::thread::spawn(move || {
        let mut byte = [0];
        while stdout.read_exact(&mut byte).is_ok() {
            heard.lock().unwrap().push(char::from(byte[0]));
        }
    });
    let wait_for = |text: &str| {
        wait("the guest's word", START, || {
            let said = said.lock().unwrap().clone();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    };
    wait_for("ready");
    stdin.write_all(b"echo\x03").unwrap();
    wait_for("echo\x03");
    stdin.write_all(b"\x01x").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("Ctrl-A x"), "{}", ran.stderr);
    assert_eq!(fs::metadata(&image).unwrap().len(), 1 << 20, "the image itself is not written to");
}

#[test]
fn a_machine_does_not_outlive_a_killed_program() {
    if qemu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let image = folder.path().join("disk.img");
    write_guest(&image);
    for signal in ["KILL", "TERM"] {
        let mut running = builder();
        running.arg("run").arg(&image).args(["--memory", "32MiB"]).env("TMPDIR", &scratch);
        let mut child = running.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait("the machine's process", START, || match processes_in(&scratch)[..] {
            [_] => Ok(()),
            ref other => Err(format!("{other:?}")),
        });
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let status = child.wait().unwrap();
        if signal == "TERM" {
            assert_eq!(status.code(), Some(143));
            assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "the machine's folder is left");
        }
        wait("the end of the machine's process", Duration::from_secs(10), || match processes_in(&scratch)[..] {
            [] => Ok(()),
            ref other => Err(format!("{other:?}")),
        });
        // What a killed program leaves is a folder in the place for such.
        fs::remove_dir_all(&scratch).unwrap();
        fs::create_dir(&scratch).unwrap();
    }
}

#[test]
fn requests_for_impossible_machines_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    write_guest(&image);
    let image = image.to_str().unwrap().to_owned();
    let refuse = |arguments: &[&str], path: &str| {
        let mut command = builder();
        command.arg("run").args(arguments);
        if !path.is_empty() {
            command.env("PATH", path);
        }
        let ran = Ran::of(&mut command);
        assert_eq!(ran.status, Some(2), "{arguments:?}: {}", ran.stderr);
        ran.stderr
    };
    let nowhere = folder.path().join("bin");
    fs::create_dir(&nowhere).unwrap();
    let told = refuse(&[&image], nowhere.to_str().unwrap());
    assert!(
        told.contains("is not installed here") && told.contains("hint: install the package qemu-system-x86"),
        "{told}"
    );
    let old = nowhere.join("qemu-system-x86_64");
    fs::write(&old, "#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)'\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let told = refuse(&[&image], nowhere.to_str().unwrap());
    assert!(told.contains("QEMU 5.2 is too old") && told.contains("7.2 or newer"), "{told}");
    if qemu().is_none() {
        return;
    }
    let told = refuse(&["no/such.qcow2"], "");
    assert!(told.contains("there is no image no/such.qcow2") && told.contains("hint: build one"), "{told}");
    let told = refuse(&["no-such-recipe"], "");
    assert!(told.contains("pgha-image build no-such-recipe --format qcow2"), "{told}");
    let told = refuse(&[&image, "--seed", "no-seed"], "");
    assert!(told.contains("there is no seed folder no-seed"), "{told}");
    let told = refuse(&[&image, "--disk-size", "512KiB"], "");
    assert!(told.contains("cannot hold"), "{told}");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let told = refuse(&[&image, "--port", &format!("{port}:22")], "");
    assert!(told.contains(&format!("the port 127.0.0.1:{port} is in use")), "{told}");
}
