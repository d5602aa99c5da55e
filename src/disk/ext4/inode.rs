//! Inodes (Documentation, "Index Nodes").

use super::{super::bytes::Fields as _, EXTRA_SIZE, INODE_SIZE, Seed, put_split16};

/// Kinds of files, as the upper bits of a mode.
pub(super) mod modes {
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const FILE: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
}

/// The inode's block field is an extent tree.
pub(super) const EXTENTS: u32 = 0x8_0000;
/// The directory is a hash tree.
pub(super) const INDEX: u32 = 0x1000;

/// Bytes that an inode has for extended attributes.
pub(super) const ATTRIBUTE_ROOM: usize = INODE_SIZE - 128 - EXTRA_SIZE;

#[derive(Debug, Clone)]
pub(super) struct Inode {
    /// Kind and permissions.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All its times, in seconds since 1970.
    pub(super) time: i64,
    /// Bytes.
    pub(super) size: u64,
    /// Names.
    pub(super) links: u16,
    /// Blocks of the file system that are its own.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    /// Extents, block numbers, or the target of a short symbolic link.
    pub(super) block: [u8; 60],
    /// The block of extended attributes; zero if there is none.
    pub(super) attribute_block: u64,
    /// The extended attributes in the inode; may be empty.
    pub(super) attributes: Vec<u8>,
}

impl Inode {
    pub(super) fn encode(&self, number: u32, seed: Seed) -> [u8; INODE_SIZE] {
        let mut inode = [0; INODE_SIZE];
        inode.put(0x00, self.mode.to_le_bytes());
        put_split16(&mut inode, 0x02, 0x78, self.uid);
        put_split16(&mut inode, 0x18, 0x7a, self.gid);
        inode.put(0x04, (self.size as u32).to_le_bytes());
        inode.put(0x6c, ((self.size >> 32) as u32).to_le_bytes());
        inode.put(0x1a, self.links.to_le_bytes());
        let sectors = self.blocks * 8;
        inode.put(0x1c, (sectors as u32).to_le_bytes());
        inode.put(0x74, ((sectors >> 32) as u16).to_le_bytes());
        inode.put(0x20, self.flags.to_le_bytes());
        inode.put(0x28, self.block);
        inode.put(0x68, (self.attribute_block as u32).to_le_bytes());
        inode.put(0x76, ((self.attribute_block >> 32) as u16).to_le_bytes());
        inode.put(0x80, (EXTRA_SIZE as u16).to_le_bytes());
        let (seconds, extra) = timestamp(self.time);
        // Access, change, modification, creation; and the upper bits of each.
        for (low, high) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            inode.put(low, seconds.to_le_bytes());
            inode.put(high, extra.to_le_bytes());
        }
        inode[128 + EXTRA_SIZE..][..self.attributes.len()].copy_from_slice(&self.attributes);
        let checksum = seed.of_inode(number).checksum(&[&inode]);
        put_split16(&mut inode, 0x7c, 0x82, checksum);
        inode
    }
}

/// A time as 32 signed bits and two more above them; what is out of their reach becomes the nearest that is not.
fn timestamp(seconds: i64) -> (i32, u32) {
    let seconds = seconds.clamp(i64::from(i32::MIN), (3 << 32) + i64::from(i32::MAX));
    let low = seconds as i32;
    (low, ((seconds - i64::from(low)) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        assert_eq!(timestamp(-1), (-1, 0));
        assert_eq!(timestamp(1 << 31), (i32::MIN, 1));
        assert_eq!(timestamp((1 << 32) + 5), (5, 1));
        assert_eq!(timestamp(i64::MAX), (i32::MAX, 3));
        assert_eq!(timestamp(i64::MIN), (i32::MIN, 0));
    }
}
