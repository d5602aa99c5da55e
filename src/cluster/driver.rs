//! The drivers that run a cluster's nodes, and what they can do to a node.

use super::owner::Title;
use crate::{container_engine::Executed, seed::Seed};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What runs the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// Containers of Docker or Podman.
    Docker,
    /// Virtual machines of QEMU.
    Qemu,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverKind::Docker => "docker",
            DriverKind::Qemu => "qemu",
        })
    }
}

/// The network that nodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetwork {
    /// The cluster's name.
    pub cluster: String,
    /// The network's addresses, as `10.0.0.0/24`.
    pub subnet: String,
    /// The host's own address in it.
    pub gateway: IpAddr,
    /// The virtual address, if there is one.
    pub vip: Option<IpAddr>,
}

/// One node to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// What cloud-init reads on it.
    pub seed: Seed,
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// It does not exist.
    Absent,
    /// It is switched off.
    Off,
    /// It runs.
    On,
    /// It is stopped in its tracks.
    Paused,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PowerState::Absent => "absent",
            PowerState::Off => "off",
            PowerState::On => "on",
            PowerState::Paused => "paused",
        })
    }
}

/// The result of preparing a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// It is there.
    Ready,
    /// Its addresses are another network's, and nothing was made.
    Taken,
}

/// What a thing is that goes with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThingKind {
    /// A container with its volumes.
    Container,
    /// A virtual machine with its disk.
    Machine,
    /// A network.
    Network,
}

impl fmt::Display for ThingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ThingKind::Container => "container",
            ThingKind::Machine => "machine",
            ThingKind::Network => "network",
        })
    }
}

/// One thing that has the name of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// What it is.
    pub kind: ThingKind,
    /// The engine's own id for it, or its path.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub title: Title,
    /// How it stands, and what it has.
    pub about: String,
    /// Who made it, and when.
    pub made: String,
}

/// One end of a link that can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A node, by name and address.
    Node(String, IpAddr),
    /// Everything that is not a node: the host, clients.
    Outside,
}

/// What runs nodes. Every function returns when its work is done; nodes go on when the program ends.
pub trait Driver: fmt::Debug {
    /// Refuses if there is anything that has the name of a cluster to be made.
    ///
    /// # Errors
    /// A wrong request when there is, with whose it is and the ways out; when it cannot be told.
    fn vacant(&self) -> Result<()>;

    /// Makes what the nodes of a new cluster share.
    ///
    /// # Errors
    /// When the driver's programs are missing, or somebody else takes the name at this moment.
    fn prepare(&self) -> Result<Prepared>;

    /// Whether a node could be made: before another is removed for it.
    ///
    /// # Errors
    /// When the image or the network is missing.
    fn check_create(&self) -> Result<()>;

    /// Makes a node with an empty disk, switched off.
    ///
    /// # Errors
    /// When the image is missing, or name, address or a port is taken.
    fn create(&self, node: &NodePlan) -> Result<()>;

    /// Switches a node on.
    ///
    /// # Errors
    /// When it does not exist or cannot run.
    fn start(&self, node: &str) -> Result<()>;

    /// Cuts a node's power: nothing in it gets to say goodbye. Its disk stays.
    ///
    /// # Errors
    /// When it does not run.
    fn kill(&self, node: &str) -> Result<()>;

    /// Stops a node in its tracks.
    ///
    /// # Errors
    /// When it does not run.
    fn pause(&self, node: &str) -> Result<()>;

    /// Lets a paused node go on.
    ///
    /// # Errors
    /// When it is not paused.
    fn resume(&self, node: &str) -> Result<()>;

    /// Removes a node and its disk; one that does not exist is not an error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn destroy(&self, node: &str) -> Result<()>;

    /// Whether the node runs.
    ///
    /// # Errors
    /// When it cannot be told.
    fn power(&self, node: &str) -> Result<PowerState>;

    /// Runs a command in a node as root with `input` as its standard input.
    ///
    /// # Errors
    /// When the node does not run or the command does not end within `within`.
    fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed>;

    /// The program and its arguments that run `command` in a node on this terminal; `None` if the driver cannot.
    ///
    /// # Errors
    /// When the node does not exist.
    fn interactive(&self, node: &str, command: &[String]) -> Result<Option<(String, Vec<String>)>>;

    /// What the node has written to its console.
    ///
    /// # Errors
    /// When it cannot be read.
    fn console(&self, node: &str) -> Result<String>;

    /// Loses all packets between each of `one` and each of `other`, silently, until [`Driver::heal`].
    ///
    /// # Errors
    /// When a node does not run or the driver cannot.
    fn cut(&self, one: &[Peer], other: &[Peer]) -> Result<()>;

    /// Lets all packets pass again.
    ///
    /// # Errors
    /// When a running node cannot be healed.
    fn heal(&self) -> Result<()>;

    /// Where this host reaches the port of a node; `None` if it does not.
    ///
    /// # Errors
    /// When it cannot be told.
    fn endpoint(&self, node: &str, port: u16) -> Result<Option<SocketAddr>>;

    /// Where this host reaches the port of the virtual address; `None` if it does not.
    ///
    /// # Errors
    /// When it cannot be told.
    fn vip_endpoint(&self, port: u16) -> Result<Option<SocketAddr>>;

    /// How long what takes `time` elsewhere may take here.
    fn patience(&self, time: Duration) -> Duration {
        time
    }

    /// Why nodes run worse here than they should, if they do.
    fn warning(&self) -> Option<String> {
        None
    }

    /// Everything that has the cluster's name.
    ///
    /// # Errors
    /// When it cannot be told.
    fn things(&self) -> Result<Vec<Thing>>;

    /// How much data a thing has, in bytes, if that can be told within `within`.
    fn measure(&self, thing: &Thing, within: Duration) -> Option<u64>;

    /// Removes `things`, which [`Driver::things`] has told, with their data.
    ///
    /// # Errors
    /// When something stays.
    fn discard(&self, things: &[Thing]) -> Result<()>;

    /// Removes everything that is the cluster's, also of one that was half made, and nothing else.
    ///
    /// # Errors
    /// When something stays.
    fn remove(&self) -> Result<()> {
        let things: Vec<Thing> = self.things()?.into_iter().filter(|thing| thing.title != Title::Foreign).collect();
        self.discard(&things)
    }
}
