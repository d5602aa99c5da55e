//! Images that boot: on every firmware, disk and format, from the recipe `minimal`, which has a guest agent to ask.
//!
//! They take minutes where nothing speeds machines up, so all but one of each pair run when they are asked for: `cargo
//! test --release --test it machine::boot -- --include-ignored`.

use super::qemu;
use crate::support::{Ran, builder, project, require_mirror, shared_store, wait};
use crate::testing::require_program;
use ext4_view::{Ext4, Ext4Read};
use pgha_image::{
    machine::{
        Accel, Agent, Console, DiskBus, DiskFormat, DiskImage, Firmware, Machine, MachineConfig, Net, Probed, Qemu,
        Seed,
    },
    pipeline::Mirrors,
    recipe::Archive,
    reexec::{Launcher, Lifetime},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// How long a guest may take from power to its agent's first word, with KVM.
const BOOT: Duration = Duration::from_secs(60);
/// How long a command in the guest may take, with KVM.
const COMMAND: Duration = Duration::from_secs(30);
/// The kernel, as the image's own link calls it.
const KERNEL: &str = "/vmlinuz";

/// What boots need; one boots at a time, as each wants all of the host.
struct Bench {
    qemu: Qemu,
    probed: Probed,
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// Builds the images, once; `None` with a word where this cannot be.
    fn new() -> Option<Bench> {
        static ALONE: Mutex<()> = Mutex::new(());
        static BUILT: OnceLock<()> = OnceLock::new();
        let qemu = qemu()?;
        if !require_mirror() {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot");
        BUILT.get_or_init(|| {
            let mut build = builder();
            build.args(["build", "minimal", "--format", "raw", "--format", "qcow2", "--cache-dir"]);
            Ran::well(build.arg(shared_store()).arg("-o").arg(&folder));
        });
        let probed = Accel::probe(&qemu).unwrap();
        Some(Bench { qemu, probed, folder, _alone: alone })
    }

    fn image(&self, format: DiskFormat) -> DiskImage {
        DiskImage::open(&self.folder.join(format!("minimal-amd64.{}", format.name()))).unwrap()
    }

    /// The machine that most tests boot.
    fn config(&self) -> MachineConfig {
        MachineConfig {
            name: "boot".to_owned(),
            image: self.image(DiskFormat::Qcow2),
            firmware: Firmware::Bios,
            cpus: 2,
            memory: 1024,
            bus: DiskBus::VirtioBlk,
            disk_size: None,
            keep: None,
            seed: None,
            net: Net::User(Vec::new()),
            console: Console::Log,
        }
    }

    fn start(&self, config: MachineConfig) -> Booted<'_> {
        let folder = tempfile::tempdir().unwrap();
        config.prepare(self.probed.accel, folder.path()).unwrap();
        let launcher = Launcher::with_program(crate::support::PROGRAM);
        let machine = Machine::start(&self.qemu, folder.path(), Lifetime::Tied, &launcher).unwrap();
        Booted { bench: self, machine, _folder: folder }
    }
}

/// A machine that was switched on.
struct Booted<'b> {
    bench: &'b Bench,
    machine: Machine,
    _folder: tempfile::TempDir,
}

impl Booted<'_> {
    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.machine.console_log()).unwrap_or_default()).into_owned()
    }

    fn agent(&self, within: Duration) -> Agent {
        let patience = self.bench.probed.accel.patience(within);
        self.machine.agent(Instant::now() + patience).unwrap_or_else(|error| panic!("{error:#}\n{}", self.console()))
    }

    /// Waits until the guest has booted whole.
    fn wait(&self) {
        let started = Instant::now();
        drop(self.agent(BOOT));
        println!("the guest answers after {:.1} s", started.elapsed().as_secs_f64());
        self.ask(&["sh", "-c", "systemctl is-system-running --wait || systemctl --failed"], "running");
    }

    /// Boots the guest again, from within.
    fn reboot(&self) {
        let boot = || {
            let agent = self.machine.agent(Instant::now() + Duration::from_secs(1));
            let ended = agent.and_then(|mut agent| agent.run(&["cat", "/proc/sys/kernel/random/boot_id"], b""));
            ended.map(|ended| ended.stdout).map_err(|error| format!("{error:#}"))
        };
        let before = boot().unwrap();
        // The agent goes down with the guest, answered or not.
        let _ = self.agent(COMMAND).run(&["systemctl", "reboot"], b"");
        wait("the next boot", self.bench.probed.accel.patience(2 * BOOT), || match boot()? {
            now if now != before => Ok(()),
            _ => Err("the guest has not gone down".to_owned()),
        });
        self.wait();
    }

    /// What a command in the guest says, which must contain `expected`.
    fn ask(&self, argv: &[&str], expected: &str) -> String {
        let ended = self.agent(COMMAND).run(argv, b"").unwrap_or_else(|error| panic!("{error:#}\n{}", self.console()));
        let said = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
        let words = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status == 0 && said.contains(expected), "{argv:?}: {} {said} {words}", ended.status);
        said
    }
}

/// An image with cloud-init and SSH, in which the package of another kernel lies as `/srv/kernel.deb`.
fn server(bench: &Bench) -> Option<DiskImage> {
    if !require_program("curl") {
        return None;
    }
    let folder = bench.folder.join("server");
    let image = folder.join("server-amd64.qcow2");
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("overlays/kernel/rootfs/srv")).unwrap();
        for part in ["recipes", "overlays"] {
            Ran::well(Command::new("cp").arg("-r").arg(project().join(part)).arg(&folder));
        }
        let write = |path: &str, text: &str| fs::write(folder.join(path), text).unwrap();
        let recipe = |name: &str, rest: &str| {
            let text = format!("schema: 1\nname: {name}\ndescription: For tests\nextends: minimal\n{rest}");
            write(&format!("recipes/{name}.yaml"), &text);
        };
        recipe("kernel", "packages: [linux-image-cloud-amd64]\n");
        recipe("server", "overlays: [cloud, kernel]\n");
        write("overlays/kernel/overlay.yaml", "schema: 1\ndescription: Another kernel, not installed\n");
        let program = |verb: &str, recipe: &str| {
            let mut command = builder();
            command.args([verb, recipe, "--project"]).arg(&folder).arg("--cache-dir").arg(shared_store());
            command
        };
        let plan = Ran::well(program("plan", "kernel").arg("--json")).stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let is_kernel = |package: &&Value| {
            let name = package["name"].as_str().unwrap();
            name.starts_with("linux-image-") && name.ends_with("-cloud-amd64") && name != "linux-image-cloud-amd64"
        };
        let kernel = plan["packages"].as_array().unwrap().iter().find(is_kernel).unwrap();
        let source: Archive =
            serde_json::from_value(plan["sources"][kernel["source"].as_str().unwrap()]["archive"].clone()).unwrap();
        let given: Vec<String> = std::env::var("PGHA_IMAGE_MIRROR").into_iter().collect();
        let mirrors = Mirrors::find(&given, Path::new("/etc/apt")).unwrap().of(source).unwrap();
        let uri = format!("{}/{}", mirrors[0], kernel["path"].as_str().unwrap());
        let deb = folder.join("overlays/kernel/rootfs/srv/kernel.deb");
        Ran::well(Command::new("curl").args(["--silent", "--show-error", "--fail", "--output"]).arg(deb).arg(uri));
        Ran::well(program("build", "server").args(["--format", "qcow2", "-o"]).arg(&folder));
    });
    Some(DiskImage::open(&image).unwrap())
}

fn boots(bench: &Bench, firmware: Firmware, bus: DiskBus, format: DiskFormat) {
    println!("{firmware:?} {bus:?} {format:?}");
    let booted = bench.start(MachineConfig { image: bench.image(format), firmware, bus, ..bench.config() });
    booted.wait();
    let efi = "test -d /sys/firmware/efi && echo uefi || echo bios";
    booted.ask(&["sh", "-c", efi], if firmware == Firmware::Bios { "bios" } else { "uefi" });
    if firmware == Firmware::UefiSecureBoot {
        booted.ask(&["sh", "-c", "od -An -t u1 /sys/firmware/efi/efivars/SecureBoot-*"], "1");
        booted.ask(&["cat", "/sys/kernel/security/lockdown"], "[integrity]");
    }
    let disk = match bus {
        DiskBus::VirtioBlk => "/dev/vda",
        DiskBus::Nvme => "/dev/nvme0n1",
        DiskBus::VirtioScsi | DiskBus::Sata | DiskBus::Ide => "/dev/sda",
    };
    booted.ask(&["findmnt", "-no", "SOURCE", "/"], disk);
}

#[test]
fn an_image_boots_with_bios_and_with_secure_boot() {
    let Some(bench) = Bench::new() else { return };
    boots(&bench, Firmware::Bios, DiskBus::VirtioBlk, DiskFormat::Qcow2);
    boots(&bench, Firmware::UefiSecureBoot, DiskBus::Nvme, DiskFormat::Raw);
}

#[test]
#[ignore = "boots for a long time"]
fn an_image_boots_on_every_firmware_disk_and_format() {
    let Some(bench) = Bench::new() else { return };
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        for bus in DiskBus::ALL {
            for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
                boots(&bench, firmware, bus, format);
            }
        }
    }
    // The board that system management mode needs has no IDE; NVMe is in the test before, virtio-blk in the last one.
    for bus in [DiskBus::VirtioScsi, DiskBus::Sata] {
        boots(&bench, Firmware::UefiSecureBoot, bus, DiskFormat::Qcow2);
    }
}

#[test]
#[ignore = "boots for a long time"]
fn a_disk_is_used_whole_whatever_its_size() {
    let Some(bench) = Bench::new() else { return };
    for gib in [20u64, 1024] {
        let booted = bench.start(MachineConfig { disk_size: Some(gib << 30), ..bench.config() });
        booted.wait();
        let said = booted.ask(&["findmnt", "-bnro", "SIZE", "/"], "");
        let size: u64 = said.parse().unwrap();
        assert!(size > (gib << 30) / 100 * 95, "{size} of {gib} GiB");
        booted.ask(
            &["sh", "-c", "dd if=/dev/zero of=/large bs=1M count=64 conv=fsync && sync && echo written"],
            "written",
        );
    }
}

#[test]
#[ignore = "boots for a long time"]
fn two_boots_of_one_image_are_two_machines() {
    let Some(bench) = Bench::new() else { return };
    let Some(server) = server(&bench) else { return };
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeKeyOfSomebodyWhoMayLogInHere0123456789ab somebody";
    let seed = Seed {
        files: BTreeMap::from([
            ("meta-data".to_owned(), "instance-id: boot\nlocal-hostname: boot\n".to_owned()),
            ("user-data".to_owned(), format!("#cloud-config\nssh_authorized_keys: ['{key}']\n")),
        ]),
    };
    let mut seen = BTreeSet::new();
    for seed in [Some(seed.clone()), Some(seed), None] {
        let with_seed = seed.is_some();
        let booted = bench.start(MachineConfig { image: server.clone(), seed, ..bench.config() });
        booted.wait();
        let id = booted.ask(&["cat", "/etc/machine-id"], "");
        assert_eq!(id.len(), 32, "{id}");
        assert!(seen.insert(id), "{seen:?}");
        let keys = booted.ask(&["sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"], "ssh-ed25519");
        for key in keys.lines() {
            let key = key.split(' ').nth(1).unwrap().to_owned();
            assert!(seen.insert(key), "{seen:?}");
        }
        if with_seed {
            booted.ask(&["cat", "/home/debian/.ssh/authorized_keys"], key);
            booted.ask(&["passwd", "--status", "debian"], "debian L");
        }
        booted.ask(&["passwd", "--status", "root"], "root L");
        booted.ask(&["sh", "-c", "sshd -T | grep -i passwordauthentication"], "passwordauthentication no");
    }
}

#[test]
#[ignore = "boots for a long time"]
fn a_kernel_that_apt_installs_in_the_guest_boots() {
    let Some(bench) = Bench::new() else { return };
    let Some(server) = server(&bench) else { return };
    let booted = bench.start(MachineConfig { image: server, ..bench.config() });
    booted.wait();
    // What GRUB loads, and with which arguments; it finds kernels by their links or by their own names.
    let menu = "readlink -f /vmlinuz /initrd.img; sed -n 's/^[[:space:]]*linux[[:space:]]*[^ ]* *//p' /boot/grub/grub.cfg \
                | head -n 1 | tr -s ' ' | sed 's/ $//'; grep -o 'terminal_output .*' /boot/grub/grub.cfg | head -n 1";
    let ours = booted.ask(&["sh", "-c", menu], "root=UUID=");
    booted.ask(&["sh", "-c", "update-grub 2>&1"], "done");
    assert_eq!(booted.ask(&["sh", "-c", menu], ""), ours, "update-grub starts the kernel in another way");
    let old = booted.ask(&["uname", "-r"], "");

    let mut agent = booted.agent(10 * COMMAND);
    let install = ["sh", "-c", "DEBIAN_FRONTEND=noninteractive apt-get install -qy /srv/kernel.deb 2>&1"];
    let ended = agent.run(&install, b"").unwrap();
    drop(agent);
    let words = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status == 0 && words.contains("Generating grub configuration file"), "{words}");
    booted.reboot();
    let new = booted.ask(&["uname", "-r"], "");
    assert!(new != old && new.contains("cloud"), "{old} booted again: {new}");
}

#[test]
#[ignore = "boots for a long time"]
fn a_kernel_that_was_changed_boots_without_secure_boot_only() {
    let Some(bench) = Bench::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tampered = folder.path().join("tampered.raw");
    fs::copy(bench.image(DiskFormat::Raw).path, &tampered).unwrap();
    tamper(&tampered);
    let image = DiskImage::open(&tampered).unwrap();
    bench.start(MachineConfig { image: image.clone(), firmware: Firmware::Uefi, ..bench.config() }).wait();
    let booted = bench.start(MachineConfig { image, firmware: Firmware::UefiSecureBoot, ..bench.config() });
    wait("GRUB's refusal", bench.probed.accel.patience(BOOT), || {
        let console = booted.console();
        assert!(!console.contains("Linux version"), "the kernel ran: {console}");
        if console.contains("bad shim signature") { Ok(()) } else { Err(console) }
    });
}

/// A part of a disk.
struct Part {
    disk: File,
    start: u64,
}

impl Ext4Read for Part {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.disk.read_exact_at(into, self.start + start)?)
    }
}

/// Changes one letter of the version in the kernel's setup header, which its signature covers (Linux,
/// Documentation/arch/x86/boot.rst, `kernel_version`).
fn tamper(image: &Path) {
    let disk = File::options().read(true).write(true).open(image).unwrap();
    let start = last_partition(&disk);
    let part = Part { disk: disk.try_clone().unwrap(), start };
    let kernel = Ext4::load(Box::new(part)).unwrap().read(KERNEL).unwrap();
    let version = 0x200 + usize::from(u16::from_le_bytes([kernel[0x20e], kernel[0x20f]]));
    let block = version / 4096 * 4096;
    let wanted = &kernel[block..block + 4096];
    let mut found = Vec::new();
    let mut buffer = vec![0; 4096];
    for at in (start..disk.metadata().unwrap().len()).step_by(4096) {
        if disk.read_exact_at(&mut buffer, at).is_ok() && buffer == wanted {
            found.push(at);
        }
    }
    assert_eq!(found.len(), 1, "the kernel lies once on the disk");
    let letter = kernel[version];
    assert!(letter.is_ascii_alphanumeric(), "{letter}");
    disk.write_all_at(&[letter ^ 1], found[0] + (version - block) as u64).unwrap();
}

/// Where the partition begins that lies last (UEFI specification 2.10, 5.3).
fn last_partition(disk: &File) -> u64 {
    let mut entries = vec![0; 128 * 128];
    disk.read_exact_at(&mut entries, 1024).unwrap();
    let starts = entries.chunks(128).map(|entry| u64::from_le_bytes(entry[32..40].try_into().unwrap()));
    starts.max().unwrap() * 512
}
