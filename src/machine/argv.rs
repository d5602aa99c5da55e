//! QEMU's arguments for a machine: a pure function, so that tests can compare every word.
//!
//! QEMU runs in the machine's folder, and all files of the machine have bare names there.

use super::{Accel, DiskFormat, UefiFiles};
use crate::{
    files::{NewFile, read_text},
    model::Mac,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    net::SocketAddr,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

/// The names of a machine's files.
pub(super) mod files {
    pub const DISK: &str = "disk.qcow2";
    pub const IMAGE: &str = "image";
    pub const SEED: &str = "seed.img";
    pub const VARIABLES: &str = "variables.fd";
    pub const MONITOR: &str = "monitor.sock";
    pub const AGENT: &str = "agent.sock";
    pub const CONSOLE: &str = "console.sock";
    pub const CONSOLE_LOG: &str = "console.log";
    pub const NETWORK: &str = crate::switch::SOCKET;
    pub const QEMU_LOG: &str = "qemu.log";
}

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// A virtio block device.
    #[default]
    VirtioBlk,
    /// A disk on a virtio SCSI controller.
    VirtioScsi,
    /// An NVMe drive.
    Nvme,
    /// A disk on the AHCI controller of a PC of 2009.
    Sata,
    /// A disk on the PIIX controller of a PC of 1996.
    Ide,
}

impl DiskBus {
    /// All of them.
    pub const ALL: [DiskBus; 5] = [DiskBus::VirtioBlk, DiskBus::VirtioScsi, DiskBus::Nvme, DiskBus::Sata, DiskBus::Ide];
}

/// A TCP port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

/// The network that a machine is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Net {
    /// QEMU's own, with DHCP, a way to the outside, and these ports to the guest.
    User(Vec<PortForward>),
    /// A port of a switch, which listens on `network.sock` in the machine's folder.
    Switch,
}

/// Where the serial console leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// To `console.log`, and to whoever connects to `console.sock`.
    Log,
    /// To `console.log` and this program's terminal.
    Terminal,
}

/// A machine to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    pub name: String,
    /// What runs its instructions.
    pub accel: Accel,
    /// UEFI firmware; without, it boots with SeaBIOS.
    pub uefi: Option<UefiFiles>,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// How its disk is attached.
    pub bus: DiskBus,
    /// The disk's file: a bare name in the machine's folder, or an absolute path.
    pub disk: PathBuf,
    /// How that file is stored.
    pub format: DiskFormat,
    /// Whether the disk is thrown away with the machine: the host then need not sync what the guest syncs.
    pub volatile: bool,
    /// Whether it has a seed, `seed.img`.
    pub seed: bool,
    /// Its network.
    pub net: Net,
    /// Its serial console.
    pub console: Console,
}

/// The file in a machine's folder that describes the machine.
const SPEC: &str = "machine.json";

impl MachineSpec {
    /// Whether a machine was prepared in `folder`.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(SPEC).is_file()
    }

    /// Reads what was prepared in `folder`.
    ///
    /// # Errors
    /// When there is no machine, or one of another version of this program.
    pub fn load(folder: &Path) -> Result<MachineSpec> {
        let path = folder.join(SPEC);
        serde_json::from_str(&read_text(&path)?).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes it into `folder`, last of what a machine has there.
    pub(super) fn store(&self, folder: &Path) -> Result<()> {
        let path = folder.join(SPEC);
        let mut file = NewFile::beside(&path)?;
        serde_json::to_writer_pretty(&mut file, self).with_context(|| format!("writing {}", path.display()))?;
        file.publish(&path)
    }

    /// QEMU's arguments.
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::default();
        self.board(&mut argv);
        self.firmware(&mut argv);
        self.drives(&mut argv);
        self.network(&mut argv);
        self.console(&mut argv);
        argv.option("-chardev", &format!("socket,id=monitor,path={},server=on,wait=off", files::MONITOR));
        argv.option("-mon", "chardev=monitor,mode=control");
        argv.option("-chardev", &format!("socket,id=agent,path={},server=on,wait=off", files::AGENT));
        argv.option("-device", "virtio-serial-pci");
        argv.option("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0");
        argv.option("-device", "virtio-rng-pci");
        argv.0
    }

    fn has_secure_boot(&self) -> bool {
        self.uefi.as_ref().is_some_and(|uefi| uefi.secure_boot)
    }

    fn board(&self, argv: &mut Argv) {
        // A node of a cluster has no screen, no keyboard, and no devices that are only there to be found: an emulated
        // kernel spends seconds on them.
        let node = self.net == Net::Switch && self.bus == DiskBus::VirtioBlk;
        let bare = if node { ",sata=off,smbus=off,i8042=off" } else { "" };
        let smm = if self.has_secure_boot() { ",smm=on" } else { "" };
        let board = if self.bus == DiskBus::Ide { "pc" } else { "q35" };
        argv.option("-name", &format!("guest={}", self.name));
        argv.option("-machine", &format!("{board}{smm}{bare}"));
        argv.words(&self.accel.arguments());
        argv.option("-smp", &self.cpus.to_string());
        argv.option("-m", &format!("{}M", self.memory));
        let screen = if node { "none" } else { "std" };
        argv.words(&["-nodefaults", "-no-user-config", "-display", "none", "-vga", screen]);
    }

    fn firmware(&self, argv: &mut Argv) {
        let Some(uefi) = &self.uefi else { return };
        argv.drive("if=pflash,unit=0,format=raw,readonly=on", &uefi.code);
        argv.drive("if=pflash,unit=1,format=raw", Path::new(files::VARIABLES));
        if self.has_secure_boot() {
            argv.words(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            // Waking up is not protected, so the firmware requires machines that cannot sleep.
            argv.words(&["-global", "ICH9-LPC.disable_s3=1"]);
        }
    }

    fn drives(&self, argv: &mut Argv) {
        let cache = if self.volatile { "unsafe" } else { "writeback" };
        let format = self.format.name();
        argv.drive(
            &format!("if=none,id=disk,format={format},cache={cache},discard=unmap,detect-zeroes=unmap"),
            &self.disk,
        );
        self.attach(argv, "disk", 0);
        if self.seed {
            argv.drive("if=none,id=seed,format=raw,readonly=on", Path::new(files::SEED));
            self.attach(argv, "seed", 1);
        }
    }

    fn network(&self, argv: &mut Argv) {
        match &self.net {
            Net::User(ports) => {
                let forwards: String = ports
                    .iter()
                    .map(|port| format!(",hostfwd=tcp:{}:{}-:{}", port.host.ip(), port.host.port(), port.guest))
                    .collect();
                argv.option("-netdev", &format!("user,id=net{forwards}"));
            }
            Net::Switch => {
                let socket = files::NETWORK;
                argv.option("-netdev", &format!("stream,id=net,server=off,addr.type=unix,addr.path={socket}"));
            }
        }
        // Nothing boots from the network, so its ROM need not be loaded. The switch takes frames of any size, and few
        // large ones cost less than many small ones.
        let mtu = if self.net == Net::Switch { ",host_mtu=9000" } else { "" };
        argv.option("-device", &format!("virtio-net-pci,netdev=net,mac={},romfile={mtu}", Mac::of(&self.name)));
    }

    fn console(&self, argv: &mut Argv) {
        match self.console {
            Console::Log => {
                let (socket, log) = (files::CONSOLE, files::CONSOLE_LOG);
                argv.option(
                    "-chardev",
                    &format!("socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"),
                );
            }
            Console::Terminal => {
                let log = files::CONSOLE_LOG;
                argv.option("-chardev", &format!("stdio,id=console,mux=on,signal=off,logfile={log},logappend=on"));
                // Ctrl-A then reaches QEMU, as in `Ctrl-A x`, which ends it.
                argv.option("-mon", "chardev=console,mode=readline");
            }
        }
        argv.option("-serial", "chardev:console");
    }

    /// Attaches the drive `id`, the `index`th of the machine; it boots from the first.
    fn attach(&self, argv: &mut Argv, id: &str, index: u32) {
        let boot = if index == 0 { ",bootindex=0" } else { "" };
        let device = match self.bus {
            DiskBus::VirtioBlk => format!("virtio-blk-pci,drive={id}{boot}"),
            DiskBus::VirtioScsi => {
                if index == 0 {
                    argv.option("-device", "virtio-scsi-pci,id=scsi");
                }
                format!("scsi-hd,bus=scsi.0,drive={id}{boot}")
            }
            DiskBus::Nvme => format!("nvme,drive={id},serial={id}{boot}"),
            DiskBus::Sata => format!("ide-hd,bus=ide.{index},drive={id}{boot}"),
            DiskBus::Ide => format!("ide-hd,bus=ide.0,unit={index},drive={id}{boot}"),
        };
        argv.option("-device", &device);
    }
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: &str) {
        self.words(&[name, value]);
    }

    /// A drive with the file `path`, in which a comma is written twice.
    fn drive(&mut self, properties: &str, path: &Path) {
        let mut value = format!("{properties},file=").into_bytes();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        self.words(&["-drive"]);
        self.0.push(OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn spec() -> MachineSpec {
        MachineSpec {
            name: "pg-1".to_owned(),
            accel: Accel::Kvm,
            uefi: None,
            cpus: 2,
            memory: 1024,
            bus: DiskBus::VirtioBlk,
            disk: files::DISK.into(),
            format: DiskFormat::Qcow2,
            volatile: true,
            seed: true,
            net: Net::Switch,
            console: Console::Log,
        }
    }

    /// The arguments, an option a line.
    fn shown(spec: &MachineSpec) -> String {
        let mut text = String::new();
        for word in spec.argv() {
            let word = word.into_string().unwrap();
            text.push(if word.starts_with('-') { '\n' } else { ' ' });
            text.push_str(&word);
        }
        text.trim().to_owned()
    }

    #[test]
    fn a_node_of_a_cluster_is_golden() {
        insta::assert_snapshot!(shown(&spec()));
    }

    #[test]
    fn a_machine_with_secure_boot_and_a_terminal_is_golden() {
        let uefi = UefiFiles { code: "/usr/share/OVMF/code.fd".into(), variables: "/v".into(), secure_boot: true };
        insta::assert_snapshot!(shown(&MachineSpec {
            accel: Accel::Tcg,
            uefi: Some(uefi),
            bus: DiskBus::VirtioScsi,
            disk: "/a, b/disk.img".into(),
            format: DiskFormat::Raw,
            volatile: false,
            net: Net::User(vec![PortForward { host: (Ipv4Addr::LOCALHOST, 2222).into(), guest: 22 }]),
            console: Console::Terminal,
            ..spec()
        }));
    }

    #[test]
    fn each_bus_attaches_disk_and_seed() {
        let mut text = String::new();
        for bus in DiskBus::ALL {
            let shown = shown(&MachineSpec { bus, ..spec() });
            let of_disks = |line: &&str| line.contains("-machine") || line.contains("drive=") || line.contains("scsi");
            let lines: Vec<_> = shown.lines().filter(of_disks).collect();
            text += &format!("{bus:?}\n  {}\n", lines.join("\n  "));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn names_give_addresses_that_differ() {
        assert_eq!(Mac::of("pg-1"), Mac::of("pg-1"));
        assert_ne!(Mac::of("pg-1"), Mac::of("pg-2"));
        assert!(Mac::of("pg-1").to_string().starts_with("52:54:00:"));
    }
}
