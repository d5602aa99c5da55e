//! Disks.
mod bytes;
pub mod ext4;
pub mod gpt;
mod map;
mod qcow2;
mod uuid;
mod write;
pub use map::{Data, Map, Piece};
pub use qcow2::Compression;
pub use uuid::Uuid;
pub use write::Outputs;
#[cfg(test)] mod hand;
