//! Images that boot: on every firmware, disk and format, from the recipe `minimal`, which has a guest agent to ask.
//!
//! They take minutes where nothing speeds machines up, so they run when they are asked for: `cargo test --release --test
//! it machine::boot -- --ignored`.

use super::qemu;
use crate::support::{Ran, builder, has_mirror, shared_store, wait};
use ext4_view::{Ext4, Ext4Read};
use pgha_image::machine::{
    Accel, Agent, Console, DiskBus, DiskFormat, DiskImage, Firmware, Guard, Life, Machine, Net, Order, Probed, Qemu,
};
use std::{
    collections::BTreeSet,
    error::Error,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
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
        if !has_mirror() {
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

    fn start(&self, image: DiskImage, firmware: Firmware, bus: DiskBus, disk_size: Option<u64>) -> Booted<'_> {
        let folder = tempfile::tempdir().unwrap();
        let order = Order {
            name: "boot".to_owned(),
            image,
            firmware,
            cpus: 2,
            memory: 1024,
            bus,
            disk_size,
            keep: None,
            seed: None,
            net: Net::User(Vec::new()),
            console: Console::Log,
        };
        order.prepare(self.probed.accel, folder.path()).unwrap();
        let guard = Guard::with_program(crate::support::PROGRAM);
        let machine = Machine::start(&self.qemu, folder.path(), Life::Tied, &guard).unwrap();
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

    /// What a command in the guest says, which must contain `expected`.
    fn ask(&self, argv: &[&str], expected: &str) -> String {
        let ended = self.agent(COMMAND).run(argv, b"").unwrap_or_else(|error| panic!("{error:#}\n{}", self.console()));
        let said = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
        let words = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status == 0 && said.contains(expected), "{argv:?}: {} {said} {words}", ended.status);
        said
    }
}

fn boots(bench: &Bench, firmware: Firmware, bus: DiskBus, format: DiskFormat) {
    println!("{firmware:?} {bus:?} {format:?}");
    let booted = bench.start(bench.image(format), firmware, bus, None);
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
#[ignore = "boots for a long time"]
fn an_image_boots_with_bios_and_with_secure_boot() {
    let Some(bench) = Bench::new() else { return };
    boots(&bench, Firmware::Bios, DiskBus::VirtioBlk, DiskFormat::Qcow2);
    boots(&bench, Firmware::UefiSecureBoot, DiskBus::Nvme, DiskFormat::Raw);
}

#[test]
#[ignore = "boots for a long time"]
fn an_image_boots_on_every_firmware_disk_and_format() {
    let Some(bench) = Bench::new() else { return };
    for firmware in [Firmware::Bios, Firmware::Uefi, Firmware::UefiSecureBoot] {
        for (index, bus) in DiskBus::ALL.into_iter().enumerate() {
            // The board that system management mode needs has no such controller.
            if firmware == Firmware::UefiSecureBoot && bus == DiskBus::Ide {
                continue;
            }
            let formats = [DiskFormat::Raw, DiskFormat::Qcow2];
            match firmware {
                Firmware::UefiSecureBoot => boots(&bench, firmware, bus, formats[index % 2]),
                _ => formats.into_iter().for_each(|format| boots(&bench, firmware, bus, format)),
            }
        }
    }
}

#[test]
#[ignore = "boots for a long time"]
fn a_disk_is_used_whole_whatever_its_size() {
    let Some(bench) = Bench::new() else { return };
    for gib in [20u64, 1024] {
        let image = bench.image(DiskFormat::Qcow2);
        let booted = bench.start(image, Firmware::Bios, DiskBus::VirtioBlk, Some(gib << 30));
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
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let booted = bench.start(bench.image(DiskFormat::Qcow2), Firmware::Bios, DiskBus::VirtioBlk, None);
        booted.wait();
        let id = booted.ask(&["cat", "/etc/machine-id"], "");
        assert_eq!(id.len(), 32, "{id}");
        assert!(seen.insert(id), "{seen:?}");
    }
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
    bench.start(image.clone(), Firmware::Uefi, DiskBus::VirtioBlk, None).wait();
    let booted = bench.start(image, Firmware::UefiSecureBoot, DiskBus::VirtioBlk, None);
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
