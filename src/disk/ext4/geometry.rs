//! The layout of an empty file system: groups, copies of the superblock, bitmaps, inode tables; and the free room between.

use super::{BLOCK, GROUP_BLOCKS, INODE_SIZE, Run};

/// Bytes of disk for each inode.
const BYTES_PER_INODE: u64 = 16 << 10;
const DESCRIPTORS_PER_BLOCK: u64 = BLOCK / super::superblock::DESCRIPTOR_SIZE as u64;
const INODES_PER_BLOCK: u64 = BLOCK / INODE_SIZE as u64;
/// Blocks of group descriptors that there is room for: enough for 4 TiB.
const DESCRIPTOR_ROOM: u64 = 512;
/// What a last group must have free for it to be worth having.
const WORTHWHILE: u64 = 64;

/// The fixed layout of a file system.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u32,
    /// Blocks of group descriptors in use.
    pub(super) descriptors: u64,
    /// Blocks for further ones.
    pub(super) reserved_descriptors: u64,
    /// The power of two of groups whose bitmaps and inode tables lie together.
    pub(super) flex_bits: u8,
}

impl Geometry {
    /// Lays out a volume of `size` bytes for at least `inodes` inodes; `None` if that many do not go into it.
    pub(super) fn new(size: u64, inodes: u64) -> Option<Geometry> {
        let mut geometry = Geometry::laid_out(size / BLOCK, inodes);
        let last = geometry.groups - 1;
        let used = geometry.base(last) + if geometry.leads(last) { geometry.flex_blocks(last) } else { 0 };
        if last > 0 && geometry.length(last) < used + WORTHWHILE {
            geometry = Geometry::laid_out(last * GROUP_BLOCKS, inodes);
        }
        let fits = (0..geometry.groups)
            .filter(|group| geometry.leads(*group))
            .all(|group| geometry.base(group) + geometry.flex_blocks(group) <= geometry.length(group));
        (fits && geometry.inodes() >= inodes).then_some(geometry)
    }

    fn laid_out(blocks: u64, inodes: u64) -> Geometry {
        let groups = blocks.div_ceil(GROUP_BLOCKS).max(1);
        let per_group = (blocks.min(GROUP_BLOCKS) * BLOCK / BYTES_PER_INODE).max(inodes.div_ceil(groups));
        let inodes_per_group = per_group.next_multiple_of(INODES_PER_BLOCK).min(GROUP_BLOCKS);
        let descriptors = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let reserved_descriptors = DESCRIPTOR_ROOM.max(4 * descriptors).saturating_sub(descriptors).min(BLOCK / 4);
        // Tables that lie together must leave room in the group that holds them.
        let table = 2 + inodes_per_group / INODES_PER_BLOCK;
        let flex_bits = (0..=4).rev().find(|bits| table << bits <= GROUP_BLOCKS / 2).unwrap_or(0);
        Geometry {
            blocks,
            groups,
            inodes_per_group: inodes_per_group as u32,
            descriptors,
            reserved_descriptors,
            flex_bits,
        }
    }

    pub(super) fn start(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    pub(super) fn length(&self, group: u64) -> u64 {
        GROUP_BLOCKS.min(self.blocks - self.start(group))
    }

    /// Whether a group begins with a superblock: 0, 1 and the powers of 3, 5 and 7.
    pub(super) fn has_superblock(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(power_of)
    }

    /// Blocks of superblock and descriptors at the front of a group.
    fn base(&self, group: u64) -> u64 {
        if self.has_superblock(group) { 1 + self.descriptors + self.reserved_descriptors } else { 0 }
    }

    /// The first group of those whose bitmaps and tables lie with this group's.
    fn leader(&self, group: u64) -> u64 {
        group >> self.flex_bits << self.flex_bits
    }

    fn leads(&self, group: u64) -> bool {
        self.leader(group) == group
    }

    /// The number of groups that a leading group holds bitmaps and tables of.
    fn followers(&self, leader: u64) -> u64 {
        (1 << self.flex_bits).min(self.groups - leader)
    }

    fn flex_blocks(&self, leader: u64) -> u64 {
        self.followers(leader) * (2 + self.table_blocks())
    }

    /// Blocks of a group's inode table.
    fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group) / INODES_PER_BLOCK
    }

    /// Where the bitmaps and tables with this group's begin, how many groups' they are, and the group's place.
    fn flex(&self, group: u64) -> (u64, u64, u64) {
        let leader = self.leader(group);
        (self.start(leader) + self.base(leader), self.followers(leader), group - leader)
    }

    pub(super) fn block_bitmap(&self, group: u64) -> u64 {
        let (start, _, place) = self.flex(group);
        start + place
    }

    pub(super) fn inode_bitmap(&self, group: u64) -> u64 {
        let (start, count, place) = self.flex(group);
        start + count + place
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        let (start, count, place) = self.flex(group);
        start + 2 * count + place * self.table_blocks()
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * u64::from(self.inodes_per_group)
    }

    /// Whether a group holds blocks that only its descriptors know of, so that its bitmap cannot be left out.
    pub(super) fn holds_tables(&self, group: u64) -> bool {
        self.leads(group)
    }

    /// All that is taken before files are, in order.
    pub(super) fn fixed(&self) -> Vec<Run> {
        (0..self.groups)
            .map(|group| {
                let flex = if self.leads(group) { self.flex_blocks(group) } else { 0 };
                Run { start: self.start(group), blocks: self.base(group) + flex }
            })
            .filter(|run| run.blocks > 0)
            .collect()
    }

    /// Blocks that are free before files are.
    pub(super) fn room(&self) -> u64 {
        self.blocks - self.fixed().iter().map(|run| run.blocks).sum::<u64>()
    }
}

/// Hands out the free blocks in order.
#[derive(Debug)]
pub(super) struct Space {
    fixed: Vec<Run>,
    /// The first of `fixed` that is not behind the cursor.
    next: usize,
    /// Every block before this one is taken.
    pub(super) cursor: u64,
    /// Blocks handed out.
    pub(super) taken: u64,
}

impl Space {
    pub(super) fn new(geometry: &Geometry) -> Space {
        Space { fixed: geometry.fixed(), next: 0, cursor: 0, taken: 0 }
    }

    /// Takes the next `blocks` free blocks. There is no end: the caller checks whether they are on the volume.
    pub(super) fn take(&mut self, mut blocks: u64) -> Vec<Run> {
        self.taken += blocks;
        let mut runs = Vec::with_capacity(1);
        while blocks > 0 {
            let free = match self.fixed.get(self.next) {
                Some(fixed) if fixed.start == self.cursor => {
                    self.cursor = fixed.end();
                    self.next += 1;
                    continue;
                }
                Some(fixed) => fixed.start - self.cursor,
                None => u64::MAX,
            };
            let run = Run { start: self.cursor, blocks: blocks.min(free) };
            self.cursor = run.end();
            blocks -= run.blocks;
            runs.push(run);
        }
        runs
    }

    /// Takes one block.
    pub(super) fn take_one(&mut self) -> u64 {
        self.take(1)[0].start
    }

    /// The blocks of a group that are in use, as a bitmap whose bits beyond the group's end are set.
    pub(super) fn bitmap(&self, geometry: &Geometry, group: u64) -> Vec<u8> {
        let (start, length) = (geometry.start(group), geometry.length(group));
        let mut bitmap = vec![0; BLOCK as usize];
        let mut mark = |from: u64, to: u64| {
            set_bits(&mut bitmap, from.saturating_sub(start) as usize, to.saturating_sub(start) as usize);
        };
        mark(start, self.cursor.min(start + length));
        // A group begins with all that is fixed in it.
        if let Ok(place) = self.fixed.binary_search_by_key(&start, |run| run.start) {
            mark(start, self.fixed[place].end().min(start + length));
        }
        mark(start + length, start + GROUP_BLOCKS);
        bitmap
    }
}

/// Sets the bits `from..to` of a bitmap.
pub(super) fn set_bits(bitmap: &mut [u8], from: usize, to: usize) {
    let mut bit = from;
    while bit < to {
        if bit.is_multiple_of(8) && to - bit >= 8 {
            bitmap[bit / 8] = 0xff;
            bit += 8;
        } else {
            bitmap[bit / 8] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}
