//! Directories (Documentation, "Directory Entries").

use super::{
    super::{bytes::Fields as _, uuid::Uuid},
    BLOCK, Seed,
    hash::half_md4,
};
use anyhow::{Result, ensure};

const SIZE: usize = BLOCK as usize;
/// The end of a leaf that holds its checksum, dressed as an entry.
const TAIL: usize = 12;
/// The end of an index block that holds its checksum.
const INDEX_TAIL: usize = 8;
/// Bytes of a leaf that a new hash tree fills: a fifth stays free, so that the first new names split nothing.
const LEAF_FILL: usize = (SIZE - TAIL) / 5 * 4;
const ROOT_HEADER: usize = 32;
const NODE_HEADER: usize = 8;
const ROOT_LIMIT: usize = (SIZE - ROOT_HEADER - INDEX_TAIL) / 8;
const NODE_LIMIT: usize = (SIZE - NODE_HEADER - INDEX_TAIL) / 8;
const HALF_MD4: u8 = 1;

/// Kinds of files, as directories record them.
pub(super) mod types {
    pub(crate) const FILE: u8 = 1;
    pub(crate) const DIRECTORY: u8 = 2;
    pub(crate) const FIFO: u8 = 5;
    pub(crate) const SYMLINK: u8 = 7;
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: u8,
}

impl Name<'_> {
    fn size(&self) -> usize {
        (8 + self.name.len()).next_multiple_of(4)
    }
}

/// A directory's blocks, in order.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<u8>,
    /// Whether they are a hash tree.
    pub(super) indexed: bool,
}

/// A directory's inode and its parent's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) inode: u32,
    pub(super) parent: u32,
}

impl Place {
    fn dots(&self) -> [Name<'static>; 2] {
        [
            Name { name: b".", inode: self.inode, kind: types::DIRECTORY },
            Name { name: b"..", inode: self.parent, kind: types::DIRECTORY },
        ]
    }
}

/// The blocks of a directory.
///
/// # Errors
/// When it has more names than a hash tree of two levels holds (millions).
pub(super) fn blocks(place: Place, names: &[Name<'_>], hash_seed: Uuid, seed: Seed) -> Result<Blocks> {
    let seed = seed.of_inode(place.inode);
    let all: Vec<Name<'_>> = place.dots().into_iter().chain(names.iter().copied()).collect();
    if all.iter().map(Name::size).sum::<usize>() <= SIZE - TAIL {
        return Ok(Blocks { blocks: leaf(&all, seed), indexed: false });
    }
    let leaves = split(names, hash_seed);
    let levels = index_sizes(leaves.len());
    ensure!(levels.len() <= 2, "a directory has {} names, more than its index holds", names.len());
    // The root, the nodes below it if there are any, the leaves.
    let nodes = levels.get(1).copied().unwrap_or(0);
    let first_leaf = 1 + nodes as u32;
    let pointers: Vec<(u32, u32)> = leaves.iter().map(|leaf| leaf.from).zip(first_leaf..).collect();
    let mut blocks;
    if nodes == 0 {
        blocks = root(place, &pointers, 0, seed);
    } else {
        let parts: Vec<&[(u32, u32)]> = pointers.chunks(NODE_LIMIT).collect();
        let upper: Vec<(u32, u32)> = parts.iter().map(|part| part[0].0).zip(1..).collect();
        blocks = root(place, &upper, 1, seed);
        parts.iter().for_each(|part| blocks.extend(node(part, seed)));
    }
    for leaf_names in &leaves {
        blocks.extend(leaf(&leaf_names.names, seed));
    }
    Ok(Blocks { blocks, indexed: true })
}

/// The blocks of a directory that is empty but has room for more, as `lost+found` should.
pub(super) fn roomy(place: Place, blocks: usize, seed: Seed) -> Vec<u8> {
    let seed = seed.of_inode(place.inode);
    let mut bytes = leaf(&place.dots(), seed);
    bytes.extend((1..blocks).flat_map(|_| leaf(&[], seed)));
    bytes
}

/// Names of one leaf of a hash tree.
struct Leaf<'a> {
    /// The lowest hash that leads here; its lowest bit says that the leaf before has names of that hash too.
    from: u32,
    names: Vec<Name<'a>>,
}

/// Splits names over leaves by their hash.
fn split<'a>(names: &[Name<'a>], hash_seed: Uuid) -> Vec<Leaf<'a>> {
    let mut hashed: Vec<((u32, u32), Name<'a>)> =
        names.iter().map(|name| (half_md4(name.name, hash_seed), *name)).collect();
    hashed.sort_by(|a, b| (a.0, a.1.name).cmp(&(b.0, b.1.name)));
    let mut leaves = vec![Leaf { from: 0, names: Vec::new() }];
    let mut filled = 0;
    let mut last = 0;
    for ((hash, _), name) in hashed {
        if filled + name.size() > LEAF_FILL {
            leaves.push(Leaf { from: hash | u32::from(hash == last), names: Vec::new() });
            filled = 0;
        }
        filled += name.size();
        last = hash;
        if let Some(leaf) = leaves.last_mut() {
            leaf.names.push(name);
        }
    }
    leaves
}

/// The number of index blocks on each level, from the root, that point to this many leaves.
fn index_sizes(leaves: usize) -> Vec<usize> {
    let mut sizes = vec![1];
    let mut below = leaves;
    while below > ROOT_LIMIT {
        below = below.div_ceil(NODE_LIMIT);
        sizes.insert(1, below);
    }
    sizes
}

/// A block of entries, the last of which reaches to the tail.
fn leaf(names: &[Name<'_>], seed: Seed) -> Vec<u8> {
    let mut block = vec![0; SIZE];
    let end = SIZE - TAIL;
    let mut at = 0;
    let mut last = 0;
    for name in names {
        put_entry(&mut block[at..], name, name.size());
        last = at;
        at += name.size();
    }
    // An entry without an inode is free room.
    block.put(last + 4, ((end - last) as u16).to_le_bytes());
    let checksum = seed.checksum(&[&block[..end]]);
    block.put(end + 4, (TAIL as u16).to_le_bytes());
    block[end + 7] = 0xde;
    block.put(end + 8, checksum.to_le_bytes());
    block
}

fn put_entry(block: &mut [u8], name: &Name<'_>, size: usize) {
    block.put(0, name.inode.to_le_bytes());
    block.put(4, (size as u16).to_le_bytes());
    block[6] = name.name.len() as u8;
    block[7] = name.kind;
    block[8..][..name.name.len()].copy_from_slice(name.name);
}

fn root(place: Place, pointers: &[(u32, u32)], levels: u8, seed: Seed) -> Vec<u8> {
    let mut block = vec![0; SIZE];
    let [dot, dots] = place.dots();
    put_entry(&mut block, &dot, dot.size());
    put_entry(&mut block[dot.size()..], &dots, SIZE - dot.size());
    block[28] = HALF_MD4;
    block[29] = 8;
    block[30] = levels;
    put_pointers(&mut block, ROOT_HEADER, ROOT_LIMIT, pointers, seed);
    block
}

fn node(pointers: &[(u32, u32)], seed: Seed) -> Vec<u8> {
    let mut block = vec![0; SIZE];
    block.put(4, (SIZE as u16).to_le_bytes());
    put_pointers(&mut block, NODE_HEADER, NODE_LIMIT, pointers, seed);
    block
}

/// Puts an index's entries; limit and count stand where the first one's hash would.
fn put_pointers(block: &mut [u8], at: usize, limit: usize, pointers: &[(u32, u32)], seed: Seed) {
    for (place, (hash, target)) in pointers.iter().enumerate() {
        block.put(at + 8 * place, hash.to_le_bytes());
        block.put(at + 8 * place + 4, target.to_le_bytes());
    }
    block.put(at, (limit as u16).to_le_bytes());
    block.put(at + 2, (pointers.len() as u16).to_le_bytes());
    let checksum = seed.checksum(&[&block[..at + 8 * pointers.len()], &[0; 8]]);
    block.put(SIZE - 4, checksum.to_le_bytes());
}
