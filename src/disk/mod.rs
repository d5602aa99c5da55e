//! Bootable disks, written by this program alone.
//!
//! Each writer is a pure function from what should be on a volume to a [`Map`] of what lies where: [`gpt`], [`fat`],
//! [`ext4`], and [`Disk`], which puts them together with GRUB. A map knows its holes and leaves files' bytes in the
//! store, so laying out a disk of any size takes milliseconds. [`Map::write`] then makes the raw and the qcow2 image of
//! it in one pass. Equal input gives equal bytes, on any machine, with any number of processors.

mod bootable;
mod buffer;
mod bytes;
pub mod ext4;
pub mod fat;
pub mod gpt;
pub mod grub;
mod map;
mod memory;
pub mod qcow2;
mod uuid;
mod write;

pub use bootable::{Disk, Identity};
pub use map::{Data, Map, Piece};
pub use qcow2::{Compression, ImageFile};
pub use uuid::Uuid;
pub use write::Outputs;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
