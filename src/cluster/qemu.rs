//! Nodes as virtual machines: QEMU, joined by a switch of this program, without root.
//!
//! Everything is in the folder `qemu` of the cluster's own: a folder for each machine, and the switch's socket. What the
//! switch is like is kept in `network.json`, so that one that was lost (the host was switched off) comes back with the
//! same ports of the host.

use super::{
    driver::{ClusterNetwork, Driver, NodePlan, Peer, PowerState, Prepared, Thing, ThingKind},
    owner::Title,
    record::is_there,
};
use crate::{
    container_engine::Executed,
    error::UserError,
    files::{NewFile, read_text},
    machine::{
        Accel, Console, DiskBus, DiskImage, Firmware, Machine, MachineConfig, MachineSpec, Net, Probed, Qemu, Seed,
    },
    model::{Arch, scope::ports},
    reexec::{Launcher, Lifetime},
    switch::{Forward, HOST, LinkFault, PortSpec, Switch, SwitchSpec},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    cell::OnceCell,
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A node's memory where nobody says, in bytes.
const MEMORY: u64 = 1 << 30;
/// The size of a node's disk, in bytes, unless the image's is larger; it takes no more room than what is written to it.
const DISK: u64 = 20 << 30;
/// The folder of machines and their network, in the cluster's own.
pub(super) const FOLDER: &str = "qemu";
const CONTROL: &str = "switch.sock";
const NETWORK: &str = "network.json";
/// What a machine's folder has when a machine was made there, and its disk.
const MACHINE: &str = "machine.json";
const DISK_FILE: &str = "disk.qcow2";
/// A second name of a machine's image, in the machine's folder.
const IMAGE: &str = "image";

/// The driver.
#[derive(Debug)]
pub struct QemuDriver {
    folder: PathBuf,
    network: ClusterNetwork,
    image: PathBuf,
    memory: u64,
    launcher: Launcher,
    probed: OnceCell<Probed>,
}

/// What is kept of the network.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    switch: SwitchSpec,
    /// The nodes' addresses by their names.
    addresses: BTreeMap<String, IpAddr>,
}

impl QemuDriver {
    /// Drives the cluster on `network`, whose own folder is `folder`, with nodes that boot `image`, a file or the name of
    /// a recipe whose image is in `out/`, each with `memory` bytes.
    pub fn new(folder: &Path, network: ClusterNetwork, image: &str, memory: Option<u64>) -> QemuDriver {
        QemuDriver {
            folder: folder.join(FOLDER),
            network,
            image: image.into(),
            memory: memory.unwrap_or(MEMORY),
            launcher: Launcher::new(),
            probed: OnceCell::new(),
        }
    }

    /// The file of the image that somebody names as users do, absolute, for the cluster's record.
    ///
    /// # Errors
    /// A wrong request when there is none.
    pub fn find_image(wanted: &str) -> Result<String> {
        let path = Path::new(wanted);
        let places = ["qcow2", "raw"].map(|format| Path::new("out").join(format!("{wanted}-{}.{format}", Arch::HOST)));
        let is_name = path.components().count() == 1 && path.extension().is_none() && !path.exists();
        let found =
            if is_name { places.iter().find(|path| path.exists()).map_or(path, PathBuf::as_path) } else { path };
        if is_name && found == path {
            let [first, second] = places.map(|path| path.display().to_string());
            return Err(UserError::usage(format!("there is no image {first} or {second}"))
                .hint(format!("build one: pgha-image build {wanted} --format qcow2"))
                .into());
        }
        Ok(DiskImage::open(found)?.path.to_string_lossy().into_owned())
    }

    fn place(&self, node: &str) -> PathBuf {
        self.folder.join(node)
    }

    fn control(&self) -> PathBuf {
        self.folder.join(CONTROL)
    }

    fn kept(&self) -> Result<Option<Kept>> {
        kept(&self.folder)
    }

    fn keep(&self, kept: &Kept) -> Result<()> {
        let path = self.folder.join(NETWORK);
        let mut file = NewFile::beside(&path)?;
        serde_json::to_writer_pretty(&mut file, kept).with_context(|| format!("writing {}", path.display()))?;
        file.flush().with_context(|| format!("writing {}", path.display()))?;
        file.publish(&path)
    }

    /// The running switch, started if it is not there.
    fn switch(&self) -> Result<Switch> {
        if let Some(switch) = Switch::open(&self.control()) {
            return Ok(switch);
        }
        let mut kept = self.kept()?.context("the cluster has no network")?;
        let (switch, forwards) = Switch::start(&kept.switch, Lifetime::Detached, &self.launcher)?;
        kept.switch.forwards = forwards;
        self.keep(&kept)?;
        Ok(switch)
    }

    /// The node's machine, which must run.
    fn machine(&self, node: &str) -> Result<Machine> {
        Machine::open(&self.place(node))?.with_context(|| format!("{node} is not running"))
    }

    /// What runs the machines' instructions: as the first of them was made for, or found by trying.
    fn accel(&self) -> Result<Accel> {
        if let Some(node) = self.kept()?.and_then(|kept| kept.addresses.into_keys().next()) {
            return Ok(MachineSpec::load(&self.place(&node))?.accel);
        }
        Ok(self.probe()?.accel)
    }

    fn probe(&self) -> Result<&Probed> {
        if self.probed.get().is_none() {
            let _ = self.probed.set(Accel::probe(&Qemu::find()?)?);
        }
        self.probed.get().context("trying KVM")
    }

    fn reached(&self, guest: SocketAddr) -> Result<Option<SocketAddr>> {
        let kept = self.kept()?;
        let forwards = kept.map(|kept| kept.switch.forwards).unwrap_or_default();
        Ok(forwards.iter().find(|forward| forward.guest == guest).map(|forward| forward.host))
    }
}

fn kept(folder: &Path) -> Result<Option<Kept>> {
    let path = folder.join(NETWORK);
    if !is_there(&path)? {
        return Ok(None);
    }
    serde_json::from_str(&read_text(&path)?).map(Some).with_context(|| format!("reading {}", path.display()))
}

/// What the machines in a cluster's folder tell of their cluster.
#[derive(Debug, Clone)]
pub struct Found {
    /// The host's own address in their network.
    pub gateway: IpAddr,
    /// The length of the network's prefix, in bits.
    pub prefix: u8,
    /// The machines, by their nodes' names.
    pub nodes: Vec<String>,
    /// The image of a machine, if it still has it.
    pub image: Option<PathBuf>,
    /// A machine's memory, in bytes.
    pub memory: Option<u64>,
}

/// Looks for machines in the folder `folder` of a cluster; `None` if there never were any.
///
/// # Errors
/// When that cannot be told, or what is there cannot be read.
pub fn found(folder: &Path) -> Result<Option<Found>> {
    let folder = folder.join(FOLDER);
    if !is_there(&folder)? {
        return Ok(None);
    }
    let kept = kept(&folder)?.with_context(|| format!("{} has no {NETWORK}", folder.display()))?;
    let (gateway, prefix) = (kept.switch.gateway, kept.switch.prefix);
    let mut found = Found { gateway, prefix, nodes: Vec::new(), image: None, memory: None };
    for node in kept.addresses.into_keys() {
        let place = folder.join(&node);
        if is_there(&place.join(MACHINE))? {
            found.memory = Some(MachineSpec::load(&place)?.memory << 20);
            let image = place.join(IMAGE);
            found.image = if is_there(&image)? { Some(image) } else { found.image };
            found.nodes.push(node);
        }
    }
    Ok(Some(found))
}

/// Refuses a new cluster `cluster` where machines are in its folder `folder`: what it writes there is theirs, whatever
/// runs its own nodes. A folder of machines that cannot be read has some, too.
///
/// # Errors
/// A wrong request when there are any, with the ways out; when that cannot be told.
pub fn vacant(folder: &Path, cluster: &str) -> Result<()> {
    refuse_machines(&folder.join(FOLDER), cluster)
}

fn refuse_machines(machines: &Path, cluster: &str) -> Result<()> {
    if !is_there(machines)? {
        return Ok(());
    }
    let message = format!("{} has machines of a cluster whose record is lost", machines.display());
    Err(UserError::usage(message)
        .hint(format!(
            "take another name; or, if it is needed: pgha-image cluster adopt {cluster}; or else: pgha-image cluster \
             down {cluster}"
        ))
        .into())
}

/// Forwards from free ports of the host to all ports of `address` that a node serves.
fn forwards(address: IpAddr) -> impl Iterator<Item = Forward> {
    let host = (Ipv4Addr::LOCALHOST, 0).into();
    ports::ALL.into_iter().map(move |port| Forward { host, guest: (address, port).into() })
}

impl Driver for QemuDriver {
    fn vacant(&self) -> Result<()> {
        refuse_machines(&self.folder, &self.network.cluster)
    }

    fn prepare(&self) -> Result<Prepared> {
        Qemu::find()?;
        DiskImage::open(&self.image)?;
        let making = || format!("making the folder {}", self.folder.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).with_context(making)?;
        let (_, prefix) = self.network.subnet.split_once('/').context("the subnet has a prefix")?;
        let switch = SwitchSpec {
            control: self.control(),
            gateway: self.network.gateway,
            prefix: prefix.parse().context("reading the subnet's prefix")?,
            ports: Vec::new(),
            forwards: self.network.vip.into_iter().flat_map(forwards).collect(),
        };
        self.keep(&Kept { switch, addresses: BTreeMap::new() })?;
        self.switch()?;
        Ok(Prepared::Ready)
    }

    fn check_create(&self) -> Result<()> {
        DiskImage::open(&self.image)?;
        self.switch().map(drop)
    }

    fn create(&self, node: &NodePlan) -> Result<()> {
        let accel = self.accel()?;
        let files = node.seed.files.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        let image = DiskImage::open(&self.image)?;
        let config = MachineConfig {
            name: node.name.clone(),
            disk_size: Some(image.size.max(DISK)),
            image,
            firmware: Firmware::Bios,
            // Emulated processors wait for each other more than they gain.
            cpus: if accel == Accel::Kvm { 2 } else { 1 },
            memory: self.memory.div_ceil(1 << 20),
            bus: DiskBus::VirtioBlk,
            keep: None,
            seed: Some(Seed { files }),
            net: Net::Switch,
            console: Console::Log,
        };
        let place = self.place(&node.name);
        if is_there(&place.join(DISK_FILE))? {
            let (cluster, node) = (&self.network.cluster, &node.name);
            return Err(UserError::runtime(format!("{} has a disk, but no {MACHINE}", place.display()))
                .hint(format!(
                    "a call that made the machine was cut off, or the file is lost: keep the disk, or replace the node: \
                     pgha-image cluster replace {cluster} {node} --force"
                ))
                .into());
        }
        config.prepare(accel, &place)?;
        let switch = self.switch()?;
        let port = PortSpec { name: node.name.clone(), folder: place };
        switch.attach(port.clone())?;
        let mut kept = self.kept()?.context("the cluster has no network")?;
        for forward in forwards(node.address) {
            kept.switch.forwards.push(Forward { host: switch.forward(forward)?, ..forward });
        }
        kept.switch.ports.push(port);
        kept.addresses.insert(node.name.clone(), node.address);
        self.keep(&kept)
    }

    fn start(&self, node: &str) -> Result<()> {
        // A machine finds the switch when it starts, or never.
        drop(self.switch()?);
        Machine::start(&Qemu::find()?, &self.place(node), Lifetime::Detached, &self.launcher).map(drop)
    }

    fn kill(&self, node: &str) -> Result<()> {
        self.machine(node)?.cut_power()
    }

    fn pause(&self, node: &str) -> Result<()> {
        self.machine(node)?.pause()
    }

    fn resume(&self, node: &str) -> Result<()> {
        self.machine(node)?.resume()
    }

    fn destroy(&self, node: &str) -> Result<()> {
        let place = self.place(node);
        if let Some(machine) = Machine::open(&place)? {
            machine.cut_power()?;
        }
        if let Some(mut kept) = self.kept()?
            && let Some(address) = kept.addresses.remove(node)
        {
            self.switch()?.detach(node, &[address])?;
            kept.switch.ports.retain(|port| port.name != node);
            kept.switch.forwards.retain(|forward| forward.guest.ip() != address);
            self.keep(&kept)?;
        }
        remove(&place)
    }

    fn power(&self, node: &str) -> Result<PowerState> {
        let place = self.place(node);
        if !is_there(&place.join(MACHINE))? {
            return Ok(PowerState::Absent);
        }
        let Some(machine) = Machine::open(&place)? else { return Ok(PowerState::Off) };
        Ok(if machine.monitor()?.status()? == "paused" { PowerState::Paused } else { PowerState::On })
    }

    fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let ended = self.machine(node)?.agent(Instant::now() + within).and_then(|mut agent| agent.run(&words, input));
        let ended = ended.with_context(|| format!("running a command on {node}"))?;
        Ok(Executed { status: ended.status.into(), stdout: ended.stdout, stderr: ended.stderr })
    }

    fn interactive(&self, _: &str, _: &[String]) -> Result<Option<(String, Vec<String>)>> {
        Ok(None)
    }

    fn console(&self, node: &str) -> Result<String> {
        let path = self.place(node).join(Machine::CONSOLE_LOG);
        match fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The switch loses frames between them, so no machine is touched.
    fn cut(&self, one: &[Peer], other: &[Peer]) -> Result<()> {
        let names = |peers: &[Peer]| -> Vec<String> {
            let name = |peer: &Peer| match peer {
                Peer::Node(name, _) => name.clone(),
                Peer::Outside => HOST.to_owned(),
            };
            peers.iter().map(name).collect()
        };
        self.switch()?.fault(names(one), names(other), LinkFault::CUT)
    }

    fn heal(&self) -> Result<()> {
        self.switch()?.heal()
    }

    fn endpoint(&self, node: &str, port: u16) -> Result<Option<SocketAddr>> {
        let address = self.kept()?.and_then(|kept| kept.addresses.get(node).copied());
        address.map_or(Ok(None), |address| self.reached((address, port).into()))
    }

    fn vip_endpoint(&self, port: u16) -> Result<Option<SocketAddr>> {
        self.network.vip.map_or(Ok(None), |vip| self.reached((vip, port).into()))
    }

    /// All of it is in the cluster's own folder, so it is the cluster's.
    fn things(&self) -> Result<Vec<Thing>> {
        if !is_there(&self.folder)? {
            return Ok(Vec::new());
        }
        let thing = |kind, path: &Path, name: &str, about: String| Thing {
            kind,
            id: path.display().to_string(),
            name: name.to_owned(),
            title: Title::Mine,
            about,
            made: format!("in {}", self.folder.display()),
        };
        let mut things = Vec::new();
        for place in machines(&self.folder)? {
            let state = if Machine::open(&place)?.is_some() { " (running)" } else { " (off)" };
            let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
            things.push(thing(ThingKind::Machine, &place, &name, state.to_owned()));
        }
        things.push(thing(
            ThingKind::Network,
            &self.folder,
            &self.network.cluster,
            format!(" ({})", self.network.subnet),
        ));
        Ok(things)
    }

    fn measure(&self, thing: &Thing, _: Duration) -> Option<u64> {
        match thing.kind {
            // What the file takes, not what it may become.
            ThingKind::Machine => Some(fs::metadata(Path::new(&thing.id).join(DISK_FILE)).ok()?.blocks() * 512),
            ThingKind::Container | ThingKind::Network => None,
        }
    }

    fn discard(&self, _: &[Thing]) -> Result<()> {
        for place in machines(&self.folder)? {
            if let Some(machine) = Machine::open(&place)? {
                machine.cut_power()?;
            }
        }
        if let Some(switch) = Switch::open(&self.control()) {
            switch.stop()?;
        }
        remove(&self.folder)
    }

    fn patience(&self, time: Duration) -> Duration {
        self.accel().map_or(time, |accel| accel.patience(time))
    }

    fn warning(&self) -> Option<String> {
        self.probe().ok()?.warning.clone()
    }
}

/// The folders of machines in `folder`.
fn machines(folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(reading)?,
    };
    let mut places = Vec::new();
    for entry in entries {
        let entry = entry.with_context(reading)?;
        if entry.file_type().with_context(reading)?.is_dir() {
            places.push(entry.path());
        }
    }
    places.sort();
    Ok(places)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
