//! A network switch for machines, in user space: it connects them and the host, and breaks links on demand.
//!
//! ```text
//! machine ── network.sock ──┐
//! machine ── network.sock ──┼─ fabric ─┬─ host: TCP/IP endpoint with the gateway's address
//! machine ── network.sock ──┘  faults  │   ▲ 127.0.0.1:PORT of the host's programs
//!                                 ▲    │
//!                       control socket ┴─ later calls of this program
//! ```
//!
//! It is a process of this program, one thread that waits for sockets, and another for the control socket. Nothing
//! leaves it but through the forwarded ports, so it needs no rights at all.

mod control;
mod fabric;
mod host;
mod serve;
mod wire;

pub use control::{Forward, LinkStatus, PortStatus, Status, Switch};
pub use fabric::{Counters, LinkFault};
pub(crate) use serve::serve;

use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// The name of the host's own port.
pub const HOST: &str = "host";

/// The hidden mode in which this program is a switch.
pub(crate) const MODE: &str = "switch";

/// The socket in a machine's folder on which the switch listens.
pub const SOCKET: &str = "network.sock";

/// A switch to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchSpec {
    /// The socket through which it is controlled; what it has to say goes to a file of this name with `.log`.
    pub control: PathBuf,
    /// The host's address in the network.
    pub gateway: IpAddr,
    /// The bits of the network in that address.
    pub prefix: u8,
    /// The machines' ports.
    pub ports: Vec<PortSpec>,
    /// Ports of the host that lead to guests.
    pub forwards: Vec<Forward>,
}

/// A port of a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Its name, which is the machine's.
    pub name: String,
    /// The machine's folder, in which the switch listens on [`SOCKET`].
    pub folder: PathBuf,
}

#[cfg(test)]
mod tests;
