//! Superblock and group descriptors (Documentation, "Super Block", "Block Group Descriptors").

use super::{
    super::{
        bytes::{CRC32C, Fields as _},
        uuid::Uuid,
    },
    BLOCK, EXTRA_SIZE, GROUP_BLOCKS, INODE_SIZE, Options, Seed,
    geometry::Geometry,
    put_split, put_split16,
};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read, Seek, SeekFrom};

/// Bytes in a group descriptor.
pub(super) const DESCRIPTOR_SIZE: usize = 64;
/// Bytes in a superblock, and in front of the first one.
pub(super) const SUPERBLOCK_SIZE: usize = 1024;
pub(super) const FIRST_INODE: u32 = 11;
pub(super) const JOURNAL_INODE: u32 = 8;
const MAGIC: u16 = 0xef53;

/// has_journal, ext_attr, resize_inode, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extents, 64bit, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// The part of the blocks that only root may fill, so that a machine with a full disk can still be mended: one in this
/// many.
const RESERVED_PART: u64 = 100;

/// What a superblock says beyond options and geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u64,
    /// The journal inode's block field and size, of which the superblock keeps a copy.
    pub(super) journal: [u8; 60],
    pub(super) journal_size: u64,
}

/// The superblock, as the one in `group`.
pub(super) fn encode(options: &Options, geometry: &Geometry, counts: &Counts, group: u64) -> Vec<u8> {
    let mut block = vec![0; SUPERBLOCK_SIZE];
    block.put(0x00, (geometry.inodes() as u32).to_le_bytes());
    put_split(&mut block, 0x04, 0x150, geometry.blocks);
    put_split(&mut block, 0x08, 0x154, geometry.blocks / RESERVED_PART);
    put_split(&mut block, 0x0c, 0x158, counts.free_blocks);
    block.put(0x10, (counts.free_inodes as u32).to_le_bytes());
    let block_bits = BLOCK.trailing_zeros() - 10;
    block.put(0x18, block_bits.to_le_bytes());
    block.put(0x1c, block_bits.to_le_bytes());
    block.put(0x20, (GROUP_BLOCKS as u32).to_le_bytes());
    block.put(0x24, (GROUP_BLOCKS as u32).to_le_bytes());
    block.put(0x28, geometry.inodes_per_group.to_le_bytes());
    // Never due for a check by number of mounts.
    block.put(0x36, u16::MAX.to_le_bytes());
    block.put(0x38, MAGIC.to_le_bytes());
    // Clean; goes on after errors, until a mount option says otherwise.
    block.put(0x3a, 1u16.to_le_bytes());
    block.put(0x3c, 1u16.to_le_bytes());
    block.put(0x4c, 1u32.to_le_bytes());
    block.put(0x54, FIRST_INODE.to_le_bytes());
    block.put(0x58, (INODE_SIZE as u16).to_le_bytes());
    block.put(0x5a, (group as u16).to_le_bytes());
    block.put(0x5c, COMPATIBLE.to_le_bytes());
    block.put(0x60, INCOMPATIBLE.to_le_bytes());
    block.put(0x64, READ_ONLY_COMPATIBLE.to_le_bytes());
    block.put(0x68, options.uuid.0);
    block[0x78..][..options.label.len()].copy_from_slice(options.label.as_bytes());
    block.put(0xce, (geometry.reserved_descriptors as u16).to_le_bytes());
    block.put(0xe0, JOURNAL_INODE.to_le_bytes());
    block.put(0xec, options.hash_seed.0);
    block[0xfc] = 1;
    block[0xfd] = 1;
    block.put(0xfe, (DESCRIPTOR_SIZE as u16).to_le_bytes());
    // Mounts know extended attributes and access control lists.
    block.put(0x100, 0xcu32.to_le_bytes());
    block.put(0x10c, counts.journal);
    block.put(0x148, ((counts.journal_size >> 32) as u32).to_le_bytes());
    block.put(0x14c, (counts.journal_size as u32).to_le_bytes());
    block.put(0x15c, (EXTRA_SIZE as u16).to_le_bytes());
    block.put(0x15e, (EXTRA_SIZE as u16).to_le_bytes());
    // Names are hashed as signed bytes; checksums are CRC-32C.
    block.put(0x160, 1u32.to_le_bytes());
    block[0x174] = geometry.flex_bits;
    block[0x175] = 1;
    // Last write, creation, last check.
    for (low, high) in [(0x30, 0x274), (0x108, 0x276), (0x40, 0x277)] {
        block.put(low, (options.epoch as u32).to_le_bytes());
        block[high] = (options.epoch >> 32) as u8;
    }
    let checksum = CRC32C.update(!0, &block[..0x3fc]);
    block.put(0x3fc, checksum.to_le_bytes());
    block
}

/// What a descriptor says of its group beyond the geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) free_blocks: u32,
    /// Inodes in use, which are the first ones of the group.
    pub(super) inodes: u32,
    pub(super) directories: u32,
    /// Checksums of the bitmaps; `None` for one that is left out.
    pub(super) block_bitmap: Option<u32>,
    pub(super) inode_bitmap: Option<u32>,
}

impl Group {
    /// The descriptor of the group with this number.
    pub(super) fn encode(&self, geometry: &Geometry, number: u64, seed: Seed) -> [u8; DESCRIPTOR_SIZE] {
        let mut descriptor = [0; DESCRIPTOR_SIZE];
        put_split(&mut descriptor, 0x00, 0x20, geometry.block_bitmap(number));
        put_split(&mut descriptor, 0x04, 0x24, geometry.inode_bitmap(number));
        put_split(&mut descriptor, 0x08, 0x28, geometry.inode_table(number));
        put_split16(&mut descriptor, 0x0c, 0x2c, self.free_blocks);
        let unused = geometry.inodes_per_group - self.inodes;
        put_split16(&mut descriptor, 0x0e, 0x2e, unused);
        put_split16(&mut descriptor, 0x10, 0x30, self.directories);
        // The table is zero where it is not used, so the kernel need not make it so.
        let flags = u16::from(self.inode_bitmap.is_none()) | u16::from(self.block_bitmap.is_none()) << 1 | 4;
        descriptor.put(0x12, flags.to_le_bytes());
        put_split16(&mut descriptor, 0x18, 0x38, self.block_bitmap.unwrap_or(0));
        put_split16(&mut descriptor, 0x1a, 0x3a, self.inode_bitmap.unwrap_or(0));
        put_split16(&mut descriptor, 0x1c, 0x32, unused);
        let checksum = seed.checksum(&[&(number as u32).to_le_bytes(), &descriptor]);
        descriptor.put(0x1e, (checksum as u16).to_le_bytes());
        descriptor
    }
}

/// What the superblock of a file system says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The file system's identifier.
    pub uuid: Uuid,
    /// Its label; may be empty.
    pub label: String,
    /// Its size in bytes.
    pub size: u64,
    /// Free bytes.
    pub free: u64,
    /// Inodes it has.
    pub inodes: u32,
    /// Inodes that are free.
    pub free_inodes: u32,
    /// When it was made, in seconds since 1970.
    pub made: i64,
}

impl Summary {
    /// Reads the superblock of the file system that begins at byte `offset` of `disk`.
    ///
    /// # Errors
    /// When there is no ext4 file system, or its superblock is damaged.
    pub fn read(disk: &mut (impl Read + Seek), offset: u64) -> Result<Summary> {
        let mut block = [0; SUPERBLOCK_SIZE];
        disk.seek(SeekFrom::Start(offset + SUPERBLOCK_SIZE as u64))
            .and_then(|_| disk.read_exact(&mut block))
            .context("reading the superblock")?;
        let half = |at| u64::from(u32::from_le_bytes(block.field(at)));
        let whole = |low, high| half(high) << 32 | half(low);
        ensure!(u16::from_le_bytes(block.field(0x38)) == MAGIC, "there is no ext4 file system");
        let checksum = CRC32C.update(!0, &block[..0x3fc]);
        let checked = half(0x64) & 0x400 == 0 || half(0x3fc) == u64::from(checksum);
        ensure!(checked && half(0x18) <= 6, "the file system's superblock is damaged");
        let unit = 1024u64 << half(0x18);
        let label: Vec<u8> = block[0x78..0x88].iter().copied().take_while(|byte| *byte != 0).collect();
        Ok(Summary {
            uuid: Uuid(block.field(0x68)),
            label: String::from_utf8_lossy(&label).into_owned(),
            size: whole(0x04, 0x150).saturating_mul(unit),
            free: whole(0x0c, 0x158).saturating_mul(unit),
            inodes: half(0x00) as u32,
            free_inodes: half(0x10) as u32,
            made: (i64::from(block[0x276]) << 32) + half(0x108) as i64,
        })
    }
}
