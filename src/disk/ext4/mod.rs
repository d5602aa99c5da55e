//! Writes an ext4 file system straight from a tree (Linux, Documentation/filesystems/ext4).
//!
//! ```text
//! group 0       superblock, group descriptors and room for more, bitmaps and inode tables of 16 groups (flex_bg)
//!               journal
//!               files, one after the other: by the blob they lie in, and in path order
//!               directories, attributes, long symbolic links
//! group 1, 3, 5, 7, 9, 25, 27 …   begin with copies of superblock and descriptors (sparse_super)
//! group 16, 32 …                  hold bitmaps and inode tables of the 16 groups from there
//! ```
//!
//! Everything has its place before a byte is written, and no block is taken twice, so whatever is not needed stays a
//! hole: unused inodes, bitmaps of untouched groups, the journal behind its superblock.
//!
//! What the file system has, and why:
//!
//! - 4 KiB blocks, extents, 64bit, flex_bg, metadata_csum, dir_index, extra_isize: what `mke2fs` of Debian 12 makes.
//!   Not what Debian 13's adds (metadata_csum_seed, orphan_file), as GRUB 2.06 and older e2fsprogs refuse it.
//! - resize_inode with descriptors for 4 TiB, not meta_bg: growing while mounted needs no new place for descriptors, and
//!   GRUB finds all of them at the front. Beyond that the kernel goes on with meta_bg by itself.
//! - A journal of 64 MiB, or less below 256 MiB: it stays as it is when the file system grows.
//! - Directories that fit a block are lists, larger ones hash trees (half_md4), as large as can be.
//! - Inode times are the entry's own modification time, those of the file system are the one given.
//!
//! The order of the data follows from the tree and the order of the blobs alone, so equal trees give equal bytes. What
//! changes least comes first: then a change moves little.

mod build;
mod directory;
mod extent;
mod geometry;
mod hash;
mod inode;
mod special;
mod superblock;
mod xattr;

pub use build::{TooSmall, format, needed};
pub use superblock::Summary;

use super::{
    bytes::{CRC32C, Fields as _},
    uuid::Uuid,
};
use crate::model::Digest;

/// Bytes in a block.
const BLOCK: u64 = 4096;
/// Blocks in a group: as many as a bitmap of one block has bits.
const GROUP_BLOCKS: u64 = 8 * BLOCK;
const INODE_SIZE: usize = 256;
/// Of the 256 bytes, those behind the first 128 that are fields; the rest holds extended attributes.
const EXTRA_SIZE: usize = 32;

/// What a file system is made with, besides its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The volume's size in bytes.
    pub size: u64,
    /// The file system's identifier.
    pub uuid: Uuid,
    /// What the names in directories are hashed with.
    pub hash_seed: Uuid,
    /// Its label, up to 16 bytes; may be empty.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub epoch: i64,
    /// Blobs, those that change least first; the files of each lie together.
    pub order: Vec<Digest>,
}

/// Blocks that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    blocks: u64,
}

impl Run {
    fn end(self) -> u64 {
        self.start + self.blocks
    }
}

/// Where the checksums of a file system's metadata begin.
#[derive(Debug, Clone, Copy)]
struct Seed(u32);

impl Seed {
    fn new(uuid: Uuid) -> Seed {
        Seed(CRC32C.update(!0, &uuid.0))
    }

    /// Where those of what belongs to an inode begin; generations are zero here.
    fn of_inode(self, number: u32) -> Seed {
        Seed(self.checksum(&[&number.to_le_bytes(), &[0; 4]]))
    }

    fn checksum(self, parts: &[&[u8]]) -> u32 {
        parts.iter().fold(self.0, |register, part| CRC32C.update(register, part))
    }
}

/// Puts a value's low and high halves where a structure has them.
fn put_split(block: &mut [u8], low: usize, high: usize, value: u64) {
    block.put(low, (value as u32).to_le_bytes());
    block.put(high, ((value >> 32) as u32).to_le_bytes());
}

/// As [`put_split`], of halves of 16 bits.
fn put_split16(block: &mut [u8], low: usize, high: usize, value: u32) {
    block.put(low, (value as u16).to_le_bytes());
    block.put(high, ((value >> 16) as u16).to_le_bytes());
}

#[cfg(test)]
mod tests;
