//! The two files that no directory names: the journal, and the one that reserves blocks for group descriptors.

use super::{super::bytes::Fields as _, BLOCK, geometry::Geometry};

/// Entries of a block of block numbers.
const POINTERS: u64 = BLOCK / 4;
/// Block numbers that an inode holds by itself.
const DIRECT: u64 = 12;
/// Where in an inode's block field the number of its doubly indirect block stands.
const DOUBLY_INDIRECT: usize = 4 * 13;

/// Blocks of the journal of a file system of this many blocks: all but the smallest have as large a one as those of
/// many GiB, since the file system will grow on its first boot, and its journal never does.
pub(super) fn journal_blocks(blocks: u64) -> u64 {
    match (blocks * BLOCK) >> 20 {
        0..128 => 1024,
        128..256 => 4096,
        _ => 16384,
    }
}

/// The first block of a journal that holds nothing (Documentation, "Journal (jbd2)"; big-endian).
pub(super) fn journal_superblock(blocks: u64) -> Vec<u8> {
    let mut block = vec![0; 1024];
    block.put(0, 0xc03b_3998u32.to_be_bytes());
    block.put(4, 4u32.to_be_bytes());
    block.put(12, (BLOCK as u32).to_be_bytes());
    block.put(16, (blocks as u32).to_be_bytes());
    block.put(20, 1u32.to_be_bytes());
    block.put(24, 1u32.to_be_bytes());
    block.put(64, 1u32.to_be_bytes());
    block
}

/// The file that keeps the blocks behind the descriptors, in every group that has a superblock, for descriptors of
/// groups to come (Linux, fs/ext4/resize.c, `reserve_backup_gdb`).
#[derive(Debug)]
pub(super) struct Resize {
    /// Its inode's block field.
    pub(super) block: [u8; 60],
    pub(super) size: u64,
    /// Blocks it has, its doubly indirect one included.
    pub(super) blocks: u64,
    /// What is to be written, by block number.
    pub(super) nodes: Vec<(u64, Vec<u8>)>,
}

impl Resize {
    /// The file with its doubly indirect block at `place`: that one points to the reserved blocks of group 0, each of
    /// which points to its copies.
    pub(super) fn new(geometry: &Geometry, place: u64) -> Resize {
        let copies: Vec<u64> = (1..geometry.groups)
            .filter(|group| geometry.has_superblock(*group))
            .map(|group| geometry.start(group))
            .collect();
        let mut top = vec![0; BLOCK as usize];
        let mut nodes = Vec::new();
        for number in geometry.descriptors..geometry.descriptors + geometry.reserved_descriptors {
            let reserved = 1 + number;
            top.put((number % POINTERS) as usize * 4, (reserved as u32).to_le_bytes());
            let node: Vec<u8> = copies.iter().flat_map(|start| ((start + reserved) as u32).to_le_bytes()).collect();
            nodes.push((reserved, node));
        }
        nodes.push((place, top));
        let mut block = [0; 60];
        block.put(DOUBLY_INDIRECT, (place as u32).to_le_bytes());
        Resize {
            block,
            size: (POINTERS * POINTERS + POINTERS + DIRECT) * BLOCK,
            blocks: 1 + geometry.reserved_descriptors * (1 + copies.len() as u64),
            nodes,
        }
    }
}
