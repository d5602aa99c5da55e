//! The qcow2 format (QEMU, docs/interop/qcow2.rst): one header for the writer of images, for overlays and for the reader.

mod header;
mod overlay;
mod packed;
mod read;
mod write;

pub use header::{Header, HeaderError};
pub use overlay::write_overlay;
pub use read::ImageFile;
pub use write::Compression;

pub(super) use packed::Packed;
pub(super) use write::{Compressor, Writer};
