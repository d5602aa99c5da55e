//! Where a cluster's nodes run, and what can be done to them there.

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
pub struct Ground {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It does not exist.
    Absent,
    /// It is switched off.
    Off,
    /// It runs.
    On,
    /// It is stopped in its tracks.
    Paused,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Power::Absent => "absent",
            Power::Off => "off",
            Power::On => "on",
            Power::Paused => "paused",
        })
    }
}

/// One end of a link that can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A node, by name and address.
    Node(String, IpAddr),
    /// Everything that is no node: the host, clients.
    Outside,
}

/// What runs nodes. Every function returns when its work is done; nodes go on when the program ends.
pub trait Driver: fmt::Debug {
    /// Makes what nodes share. What is there already stays as it is.
    ///
    /// # Errors
    /// When the driver's programs are missing, or addresses are taken.
    fn prepare(&self) -> Result<()>;

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

    /// Removes a node and its disk; one that does not exist is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn destroy(&self, node: &str) -> Result<()>;

    /// Whether the node runs.
    ///
    /// # Errors
    /// When it cannot be told.
    fn power(&self, node: &str) -> Result<Power>;

    /// Runs a command in a node as root with `input` as its standard input.
    ///
    /// # Errors
    /// When the node does not run or the command does not end within `within`.
    fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed>;

    /// The program and its arguments that run `command` in a node on this terminal; `None` if the driver cannot.
    fn interactive(&self, node: &str, command: &[String]) -> Option<(String, Vec<String>)>;

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

    /// Removes everything of the cluster, also of one that was half made.
    ///
    /// # Errors
    /// When something stays.
    fn remove(&self) -> Result<()>;
}
