//! Machines in QEMU: from an image to a guest that runs, with consoles, commands, faults, and an end.
//!
//! ```text
//! Firmware, DiskImage, Seed ──MachineConfig::prepare──▶ a folder with machine.json ──Machine::start──▶ QEMU in that folder
//!                                                disk.qcow2  overlay of the image       monitor.sock  [`Qmp`]
//!                                                seed.img    for cloud-init             agent.sock    [`Agent`]
//!                                                                                       console.log, console.sock
//! switch: a process of this program ◀── network.sock of each machine
//! ```
//!
//! A machine's whole state is its folder, so that a later process finds it again ([`Machine::open`]). Nothing here needs
//! root, a bridge, or a tool beside QEMU itself.

mod accel;
mod agent;
mod argv;
mod drive;
mod firmware;
mod qemu;
mod qmp;
mod running;
mod seed;

pub use accel::{Accel, Probed};
pub use agent::{Agent, Ended};
pub use argv::{Console, DiskBus, MachineSpec, Net, PortForward};
pub use drive::{DiskFormat, DiskImage};
pub use firmware::{Firmware, UefiFiles};
pub use qemu::{Qemu, Version};
pub use qmp::{Event, Qmp};
pub use running::{Machine, MachineConfig};
pub use seed::Seed;

use crate::{reexec, switch};
use std::{ffi::OsString, process::ExitCode};

/// Serves this program's hidden modes for machines if it was started in one; `None` if it was not.
///
/// To be called first thing in `main`.
pub fn entry() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != reexec::ARGUMENT {
        return None;
    }
    let mut word = || arguments.next().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let (lifetime, parent, what) = (word(), word(), word());
    if let Err(error) = reexec::settle(&lifetime, &parent) {
        return Some(reexec::complain(&error));
    }
    Some(match what.as_str() {
        "program" => reexec::become_program(&arguments.collect::<Vec<OsString>>()),
        switch::MODE => switch::serve(),
        _ => ExitCode::from(2),
    })
}
