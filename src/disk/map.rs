//! The layout of a volume: which data are at which offset.
//!
//! Every writer of this module returns a [`Map`]: the pieces that are not zero, the offset of each, and where its bytes
//! come from. Nothing else is ever written; the space between pieces is a hole. A map takes memory for metadata only,
//! as the bytes of files stay in the store until [`Map::write`].

use crate::rootfs::Content;
use anyhow::{Result, ensure};

/// Bytes at hand, or where in the store they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// A content of the store.
    Content(Content),
}

impl Data {
    /// The number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Content(content) => content.size,
        }
    }
}

/// A run of bytes of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where on the volume it begins, in bytes.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
    /// What it is a part of.
    pub data: Data,
    /// Where in `data` it begins, in bytes.
    pub skip: u64,
}

impl Piece {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// A volume as pieces among holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    size: u64,
    pieces: Vec<Piece>,
}

impl Map {
    /// A volume of `size` bytes, all of them zero.
    pub fn new(size: u64) -> Map {
        Map { size, pieces: Vec::new() }
    }

    /// The volume's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pieces; by offset once [`Map::finish`]ed.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Puts the whole of `data` at `offset`.
    pub fn put(&mut self, offset: u64, data: Data) {
        let length = data.size();
        self.put_part(offset, data, 0, length);
    }

    /// Puts `length` bytes of `data`, from its byte `skip` on, at `offset`.
    pub fn put_part(&mut self, offset: u64, data: Data, skip: u64, length: u64) {
        if length > 0 {
            self.pieces.push(Piece { offset, length, data, skip });
        }
    }

    /// Puts a whole volume at `offset` of this one.
    pub fn put_map(&mut self, offset: u64, volume: Map) {
        self.pieces.extend(volume.pieces.into_iter().map(|piece| Piece { offset: offset + piece.offset, ..piece }));
    }

    /// Sorts the pieces.
    ///
    /// # Errors
    /// When two pieces overlap or one reaches over the end: a mistake of a writer.
    pub fn finish(mut self) -> Result<Map> {
        self.pieces.sort_by_key(|piece| piece.offset);
        for pair in self.pieces.windows(2) {
            ensure!(pair[0].end() <= pair[1].offset, "two pieces lie at byte {} of the volume", pair[1].offset);
        }
        let end = self.pieces.last().map_or(0, Piece::end);
        ensure!(end <= self.size, "a piece ends at byte {end} of a volume of {} bytes", self.size);
        Ok(self)
    }

    /// The allocated ranges: each cluster of `cluster` bytes that a piece touches, merged with its neighbours.
    pub fn ranges(&self, cluster: u64) -> Vec<std::ops::Range<u64>> {
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        for piece in &self.pieces {
            let start = piece.offset / cluster * cluster;
            let end = piece.end().next_multiple_of(cluster).min(self.size);
            match ranges.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_sorted_and_their_clusters_merged() {
        let mut inner = Map::new(100);
        inner.put(50, Data::Bytes(vec![1; 20]));
        inner.put(0, Data::Bytes(vec![2; 10]));
        inner.put(99, Data::Bytes(vec![]));
        let mut map = Map::new(1000);
        map.put_map(500, inner);
        map.put(0, Data::Bytes(vec![3]));
        let map = map.finish().unwrap();
        assert_eq!(map.pieces().iter().map(|piece| piece.offset).collect::<Vec<_>>(), [0, 500, 550]);
        assert_eq!(map.ranges(64), [0..64, 448..576]);
    }

    #[test]
    fn pieces_that_overlap_or_overhang_are_refused() {
        let mut map = Map::new(10);
        map.put(0, Data::Bytes(vec![0; 6]));
        let mut overlap = map.clone();
        overlap.put(5, Data::Bytes(vec![0; 2]));
        assert!(overlap.finish().is_err());
        map.put(8, Data::Bytes(vec![0; 3]));
        assert!(map.finish().is_err());
    }
}
