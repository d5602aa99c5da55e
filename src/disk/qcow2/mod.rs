//! The qcow2 format (QEMU, docs/interop/qcow2.rst): one writer of whole images, one of overlays, one reader.

mod packed;
mod read;
mod write;

pub use read::ImageFile;
pub use write::Compression;

pub(super) use packed::Packed;
pub(super) use write::{Compressor, Writer};
