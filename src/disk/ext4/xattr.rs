//! Extended attributes (Documentation, "Extended Attributes"; Linux, fs/ext4/xattr.h, fs/ext4/acl.h).

use super::{super::bytes::Fields as _, BLOCK, Seed, inode::ATTRIBUTE_ROOM};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;

/// Attributes of one file, encoded.
#[derive(Debug)]
pub(super) enum Attributes {
    /// They fit into the inode; possibly there are none.
    Inline(Vec<u8>),
    /// They need a block.
    Block(Vec<u8>),
}

/// An attribute as stored: the number of its prefix, the rest of its name, its value.
type Attribute<'a> = (u8, &'a [u8], Vec<u8>);

/// Encodes a file's attributes.
///
/// # Errors
/// When one is of a kind that ext4 cannot store, or there is no room for all.
pub(super) fn encode(attributes: &BTreeMap<String, Vec<u8>>) -> Result<Attributes> {
    let mut stored = attributes.iter().map(|(name, value)| attribute(name, value)).collect::<Result<Vec<_>>>()?;
    // The kernel searches blocks in this order.
    stored.sort_by(|a, b| (a.0, a.1.len(), a.1).cmp(&(b.0, b.1.len(), b.1)));
    let size: usize =
        stored.iter().map(|(_, name, value)| padded(ENTRY_HEADER + name.len()) + padded(value.len())).sum();
    if stored.is_empty() {
        return Ok(Attributes::Inline(Vec::new()));
    }
    // A zero word ends the entries.
    if 4 + size + 4 <= ATTRIBUTE_ROOM {
        let mut inline = vec![0; ATTRIBUTE_ROOM];
        inline.put(0, MAGIC.to_le_bytes());
        write(&mut inline[4..], 0, &stored, |_, _| 0);
        return Ok(Attributes::Inline(inline));
    }
    ensure!(BLOCK_HEADER + size + 4 <= BLOCK as usize, "its extended attributes do not fit into a block");
    let mut block = vec![0; BLOCK as usize];
    let mut hash = 0u32;
    write(&mut block, BLOCK_HEADER, &stored, |name, value| {
        let entry = entry_hash(name, value);
        hash = hash.rotate_left(16) ^ entry;
        entry
    });
    block.put(0, MAGIC.to_le_bytes());
    block.put(4, 1u32.to_le_bytes());
    block.put(8, 1u32.to_le_bytes());
    block.put(12, hash.to_le_bytes());
    Ok(Attributes::Block(block))
}

/// Puts the checksum into a block that will lie at `place`.
pub(super) fn seal(block: &mut [u8], place: u64, seed: Seed) {
    let checksum = seed.checksum(&[&place.to_le_bytes(), block]);
    block.put(16, checksum.to_le_bytes());
}

/// Writes entries from `first` on and their values from the end on; values' offsets count from the slice's beginning.
fn write(room: &mut [u8], first: usize, attributes: &[Attribute<'_>], mut hash: impl FnMut(&[u8], &[u8]) -> u32) {
    let mut at = first;
    let mut value_at = room.len();
    for (prefix, name, value) in attributes {
        value_at -= padded(value.len());
        room[value_at..value_at + value.len()].copy_from_slice(value);
        let entry = &mut room[at..];
        entry[0] = name.len() as u8;
        entry[1] = *prefix;
        entry.put(2, if value.is_empty() { 0 } else { value_at as u16 }.to_le_bytes());
        entry.put(8, (value.len() as u32).to_le_bytes());
        entry.put(12, hash(name, value).to_le_bytes());
        entry[ENTRY_HEADER..][..name.len()].copy_from_slice(name);
        at += padded(ENTRY_HEADER + name.len());
    }
}

fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

fn padded(size: usize) -> usize {
    size.next_multiple_of(4)
}

fn attribute<'a>(name: &'a str, value: &[u8]) -> Result<Attribute<'a>> {
    let acl = match name {
        "system.posix_acl_access" => Some(2),
        "system.posix_acl_default" => Some(3),
        _ => None,
    };
    if let Some(prefix) = acl {
        let value =
            access_list(value).with_context(|| format!("the attribute `{name}` is not an access control list"))?;
        return Ok((prefix, b"", value));
    }
    for (prefix, text) in [(1, "user."), (4, "trusted."), (6, "security.")] {
        if let Some(rest) = name.strip_prefix(text) {
            ensure!((1..=255).contains(&rest.len()), "the name of the attribute `{name}` is too long or too short");
            return Ok((prefix, rest.as_bytes(), value.to_vec()));
        }
    }
    bail!("ext4 stores no extended attribute of the name `{name}`")
}

/// An access control list as ext4 stores it: only entries of named users and groups have a number.
fn access_list(value: &[u8]) -> Option<Vec<u8>> {
    const NAMED: [u16; 2] = [0x02, 0x08];
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let mut stored = 1u32.to_le_bytes().to_vec();
    let (entries, rest) = entries.as_chunks::<8>();
    for entry in entries {
        let named = NAMED.contains(&u16::from_le_bytes(entry.field(0)));
        stored.extend_from_slice(&entry[..if named { 8 } else { 4 }]);
    }
    rest.is_empty().then_some(stored)
}
