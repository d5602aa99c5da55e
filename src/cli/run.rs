//! `pgha-image run`.

use crate::{
    error::UserError,
    files, interrupt,
    machine::{Accel, Console, DiskBus, DiskImage, Firmware, Machine, MachineConfig, Net, PortForward, Qemu, Seed},
    model::Arch,
    progress::Progress,
    recipe::Size,
    reexec::{Launcher, Lifetime},
};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

/// Boot one machine from an image in QEMU, with its serial console on this terminal.
///
/// The image is not changed: what the machine writes is discarded when it ends, unless --keep names a file for it.
/// The machine has a network with DHCP and access to the outside; --port forwards ports of this host to it. Press
/// Ctrl-A x to end the machine at once, Ctrl-A h for more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pgha-image run out/ha-postgres-amd64.qcow2 --seed seed/pg-1 --port 5432:5432
  pgha-image run ha-postgres --firmware secure-boot --disk-bus nvme --disk-size 20GiB")]
pub struct Args {
    /// The image: a raw or qcow2 file, or the name of a recipe whose image is in out/.
    #[arg(value_name = "IMAGE|RECIPE")]
    image: PathBuf,
    /// The machine's firmware.
    #[arg(long, value_name = "FIRMWARE", default_value = "bios")]
    firmware: FirmwareArg,
    /// The bus of the machine's disk.
    #[arg(long, value_name = "BUS", default_value = "virtio-blk")]
    disk_bus: BusArg,
    /// The machine's memory.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    memory: Size,
    /// The number of processors [default: 2, or as many as this host has if that is less].
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
    /// The size of the disk; the root file system grows to it on first boot [default: the image's].
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<Size>,
    /// A seed for cloud-init: a folder with user-data, meta-data and, optionally, network-config.
    #[arg(long, value_name = "DIR")]
    seed: Option<PathBuf>,
    /// Forward a TCP port of this host to one of the machine; may be given several times.
    #[arg(long = "port", value_name = "[ADDRESS:]HOST:GUEST")]
    ports: Vec<PortArg>,
    /// Keep what the machine writes in this file; if the file exists, continue with it.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FirmwareArg {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF with Secure Boot: only signed programs boot.
    SecureBoot,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BusArg {
    /// A virtio block device.
    VirtioBlk,
    /// A disk on a virtio SCSI controller.
    VirtioScsi,
    /// An NVMe drive.
    Nvme,
    /// A disk on an AHCI controller.
    Sata,
    /// A disk on an IDE controller.
    Ide,
}

impl From<FirmwareArg> for Firmware {
    fn from(firmware: FirmwareArg) -> Firmware {
        match firmware {
            FirmwareArg::Bios => Firmware::Bios,
            FirmwareArg::Uefi => Firmware::Uefi,
            FirmwareArg::SecureBoot => Firmware::UefiSecureBoot,
        }
    }
}

impl From<BusArg> for DiskBus {
    fn from(bus: BusArg) -> DiskBus {
        match bus {
            BusArg::VirtioBlk => DiskBus::VirtioBlk,
            BusArg::VirtioScsi => DiskBus::VirtioScsi,
            BusArg::Nvme => DiskBus::Nvme,
            BusArg::Sata => DiskBus::Sata,
            BusArg::Ide => DiskBus::Ide,
        }
    }
}

/// `2222:22`, or `192.0.2.1:2222:22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortArg(PortForward);

impl FromStr for PortArg {
    type Err = String;

    fn from_str(text: &str) -> Result<PortArg, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is not a port, 0 to 65535"));
        let (address, host, guest) = match parts[..] {
            [host, guest] => (IpAddr::V4(Ipv4Addr::LOCALHOST), host, guest),
            [address, host, guest] => {
                let address: Ipv4Addr = address.parse().map_err(|_| format!("`{address}` is not an IPv4 address"))?;
                (IpAddr::V4(address), host, guest)
            }
            _ => return Err("this is not HOST:GUEST, such as 2222:22".to_owned()),
        };
        Ok(PortArg(PortForward { host: SocketAddr::new(address, port(host)?), guest: port(guest)? }))
    }
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let progress = Progress::for_people();
        let qemu = Qemu::find()?;
        let image = DiskImage::open(&find_image(&self.image)?)?;
        let ports: Vec<PortForward> = self.ports.iter().map(|port| port.0).collect();
        ports.iter().try_for_each(require_free)?;
        let host_cpus = thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let config = MachineConfig {
            name: "run".to_owned(),
            image,
            firmware: self.firmware.into(),
            cpus: self.cpus.unwrap_or(host_cpus.min(2)).max(1),
            memory: self.memory.0.div_ceil(1 << 20),
            bus: self.disk_bus.into(),
            disk_size: self.disk_size.map(|size| size.0),
            keep: self.keep,
            seed: self.seed.as_deref().map(Seed::read).transpose()?,
            net: Net::User(ports),
            console: Console::Terminal,
        };
        let folder = tempfile::Builder::new().prefix("pgha-image-run-").tempdir().context("making a folder")?;
        let cleaning = folder.path().to_owned();
        let terminal = Terminal::save();
        let restoring = terminal.clone();
        interrupt::on_signal(move || {
            restoring.restore();
            files::discard_unpublished();
            !matches!(fs::remove_dir_all(&cleaning), Err(error) if error.kind() != ErrorKind::NotFound)
        })?;
        let probed = Accel::probe(&qemu)?;
        if let Some(warning) = &probed.warning {
            progress.warn(warning);
        }
        config.prepare(probed.accel, folder.path())?;
        progress.note("booting; Ctrl-A x ends the machine, Ctrl-A h shows help");
        let machine = Machine::start(&qemu, folder.path(), Lifetime::Tied, &Launcher::new())?;
        while !machine.wait(Duration::from_secs(3600))? {}
        terminal.restore();
        Ok(())
    }
}

/// The terminal's settings before QEMU changed them; a QEMU that is killed does not restore them.
#[derive(Debug, Clone)]
struct Terminal(Option<Termios>);

impl Terminal {
    fn save() -> Terminal {
        Terminal(tcgetattr(std::io::stdin()).ok())
    }

    fn restore(&self) {
        if let Some(state) = &self.0 {
            // A terminal that is gone needs nothing.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, state);
        }
    }
}

/// The image's path: itself, or the image of the recipe of that name.
fn find_image(wanted: &Path) -> Result<PathBuf> {
    if wanted.exists() || wanted.components().count() != 1 || wanted.extension().is_some() {
        return Ok(wanted.to_owned());
    }
    let name = wanted.display();
    let places = ["qcow2", "raw"].map(|format| Path::new("out").join(format!("{name}-{}.{format}", Arch::HOST)));
    let found = places.iter().find(|path| path.exists()).cloned();
    found.ok_or_else(|| {
        let [first, second] = places.map(|path| path.display().to_string());
        UserError::usage(format!("there is no image {name}, {first} or {second}"))
            .hint(format!("build one: pgha-image build {name} --format qcow2"))
            .into()
    })
}

/// Refuses a port of the host that is in use; QEMU's own message would not name it.
fn require_free(port: &PortForward) -> Result<()> {
    match TcpListener::bind(port.host) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let hint = "stop the program that listens there (`ss -ltnp` shows it), or choose another port";
            Err(UserError::usage(format!("the port {} is in use", port.host)).hint(hint).into())
        }
        Err(error) => Err(error).with_context(|| format!("listening on {}", port.host)),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_and_without_address() {
        let port = |text: &str| text.parse::<PortArg>().map(|port| (port.0.host.to_string(), port.0.guest));
        assert_eq!(port("2222:22"), Ok(("127.0.0.1:2222".to_owned(), 22)));
        assert_eq!(port("0.0.0.0:80:8080"), Ok(("0.0.0.0:80".to_owned(), 8080)));
        assert_eq!(port("22"), Err("this is not HOST:GUEST, such as 2222:22".to_owned()));
        assert_eq!(port("22:70000"), Err("`70000` is not a port, 0 to 65535".to_owned()));
        assert_eq!(port("here:1:2"), Err("`here` is not an IPv4 address".to_owned()));
    }
}
