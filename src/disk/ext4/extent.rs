//! Extent trees: which blocks hold a file (Documentation, "Extent Tree").

use super::{super::bytes::Fields as _, BLOCK, Run, Seed};

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Entries in an inode.
const ROOT_ENTRIES: usize = 4;
/// Entries in a block, which ends with a checksum.
const NODE_ENTRIES: usize = (BLOCK as usize - HEADER - 4) / ENTRY;
/// Blocks that one extent may have.
const LONGEST: u64 = 1 << 15;

/// A tree: its root, and the blocks below with their places.
#[derive(Debug)]
pub(super) struct Extents {
    pub(super) root: [u8; 60],
    pub(super) nodes: Vec<(u64, Vec<u8>)>,
}

/// The tree of a file whose blocks are `runs` in this order. `take` gives blocks for nodes.
pub(super) fn tree(runs: &[Run], seed: Seed, mut take: impl FnMut() -> u64) -> Extents {
    let mut level: Vec<(u32, [u8; ENTRY])> = leaves(runs);
    let mut nodes = Vec::new();
    let mut depth = 0;
    while level.len() > ROOT_ENTRIES {
        let below = std::mem::take(&mut level);
        for entries in below.chunks(NODE_ENTRIES) {
            let place = take();
            let mut node = vec![0; BLOCK as usize];
            fill(&mut node, entries, NODE_ENTRIES, depth);
            let end = node.len() - 4;
            let checksum = seed.checksum(&[&node[..end]]);
            node.put(end, checksum.to_le_bytes());
            nodes.push((place, node));
            let mut entry = [0; ENTRY];
            entry.put(0, entries[0].0.to_le_bytes());
            entry.put(4, (place as u32).to_le_bytes());
            entry.put(8, ((place >> 32) as u16).to_le_bytes());
            level.push((entries[0].0, entry));
        }
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &level, ROOT_ENTRIES, depth);
    Extents { root, nodes }
}

fn leaves(runs: &[Run]) -> Vec<(u32, [u8; ENTRY])> {
    let mut leaves = Vec::with_capacity(runs.len());
    let mut logical = 0u32;
    for run in runs {
        let mut start = run.start;
        while start < run.end() {
            let length = LONGEST.min(run.end() - start);
            let mut entry = [0; ENTRY];
            entry.put(0, logical.to_le_bytes());
            entry.put(4, (length as u16).to_le_bytes());
            entry.put(6, ((start >> 32) as u16).to_le_bytes());
            entry.put(8, (start as u32).to_le_bytes());
            leaves.push((logical, entry));
            logical += length as u32;
            start += length;
        }
    }
    leaves
}

fn fill(node: &mut [u8], entries: &[(u32, [u8; ENTRY])], room: usize, depth: u16) {
    node.put(0, MAGIC.to_le_bytes());
    node.put(2, (entries.len() as u16).to_le_bytes());
    node.put(4, (room as u16).to_le_bytes());
    node.put(6, depth.to_le_bytes());
    for (place, (_, entry)) in entries.iter().enumerate() {
        node.put(HEADER + ENTRY * place, *entry);
    }
}
