//! Chunks of a volume as qcow2 images hold them.

use super::write::Compressor;
use crate::disk::bytes::{CLUSTER, is_zero};
use anyhow::Result;

/// The size of a cluster's entry in a table, in bytes.
const ENTRY: usize = 4;

/// The clusters of a chunk, ready to be written.
///
/// ```text
/// 4 bytes for each cluster    its size as packed, little-endian: 0 is a hole, CLUSTER not compressed
/// then                        the packed clusters
/// ```
#[derive(Debug)]
pub(in crate::disk) struct Packed {
    bytes: Vec<u8>,
    count: usize,
}

impl Packed {
    /// Packs the clusters of `chunk`, all of them whole.
    pub(in crate::disk) fn new(chunk: &[u8], compressor: &mut Compressor) -> Result<Packed> {
        let count = chunk.len() / CLUSTER as usize;
        let mut bytes = Vec::with_capacity(chunk.len() / 2);
        bytes.resize(count * ENTRY, 0);
        for (index, cluster) in chunk.chunks(CLUSTER as usize).enumerate() {
            if !is_zero(cluster) {
                let size = compressor.pack(cluster, &mut bytes)?;
                bytes[index * ENTRY..][..ENTRY].copy_from_slice(&size.to_le_bytes());
            }
        }
        Ok(Packed { bytes, count })
    }

    /// What [`Packed::bytes`] gave for `count` clusters.
    pub(in crate::disk) fn from_bytes(bytes: Vec<u8>, count: usize) -> Packed {
        Packed { bytes, count }
    }

    /// All of it, to be kept.
    pub(in crate::disk) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The clusters that are not zero: their places in the chunk and their packed bytes.
    pub(in crate::disk) fn clusters(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (table, mut rest) = self.bytes.split_at(self.count * ENTRY);
        table.as_chunks::<ENTRY>().0.iter().zip(0..).filter_map(move |(size, index)| {
            let (cluster, behind) = rest.split_at(u32::from_le_bytes(*size) as usize);
            rest = behind;
            (!cluster.is_empty()).then_some((index, cluster))
        })
    }
}
