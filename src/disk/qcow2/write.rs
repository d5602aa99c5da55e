//! The qcow2 format, version 3, written once (QEMU, docs/interop/qcow2.rst).
//!
//! ```text
//! cluster 0     header
//! cluster 1 …   guest clusters as they come: compressed ones packed byte by byte, incompressible ones whole
//! then          second-level tables (one entry for a guest cluster), first-level table,
//!               reference counts (one for each cluster of the file) and the table of their clusters
//! ```
//!
//! A compressed cluster may lie across clusters of the file, and each of those counts it as a reference.

use super::Header;
use crate::disk::bytes::CLUSTER;
use anyhow::{Context as _, Result, ensure};
use flate2::{Compress, FlushCompress, Status};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

const CLUSTER_BITS: u32 = CLUSTER.trailing_zeros();
/// Entries of a second-level table, which fills a cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// 16-bit reference counts in a cluster.
const COUNTS: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Bits of a compressed cluster's entry that hold its place; above them the number of further sectors.
const OFFSET_BITS: u32 = 62 - (CLUSTER_BITS - 8);
const SECTOR: u64 = 512;
/// Bytes gathered before they are written.
const BATCH: usize = 1 << 20;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard at this level: small and fast. QEMU 5.1 and later read it.
    Zstd(i32),
    /// Deflate at this level, 1 to 9: every reader of qcow2 reads it.
    Zlib(u32),
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Zstd(3)
    }
}

/// Compresses clusters; the same bytes always give the same bytes.
pub(in crate::disk) enum Compressor {
    Zstd(zstd::bulk::Compressor<'static>),
    Zlib(Box<Compress>),
}

impl Compressor {
    pub(in crate::disk) fn new(compression: Compression) -> Result<Compressor> {
        Ok(match compression {
            Compression::Zstd(level) => {
                Compressor::Zstd(zstd::bulk::Compressor::new(level).context("starting the compressor")?)
            }
            // QEMU reads raw deflate streams with a window of 4 KiB (block/qcow2-threads.c).
            Compression::Zlib(level) => {
                Compressor::Zlib(Box::new(Compress::new_with_window_bits(flate2::Compression::new(level), false, 12)))
            }
        })
    }

    /// Packs a cluster behind `bytes`; returns its size as packed, which is that of a cluster if it is not worth
    /// compressing.
    pub(in crate::disk) fn pack(&mut self, cluster: &[u8], bytes: &mut Vec<u8>) -> Result<u32> {
        let start = bytes.len();
        bytes.resize(start + CLUSTER as usize - SECTOR as usize, 0);
        let room = &mut bytes[start..];
        let size = match self {
            // Its only failure is that the result does not fit.
            Compressor::Zstd(zstd) => zstd.compress_to_buffer(cluster, room).ok(),
            Compressor::Zlib(zlib) => {
                zlib.reset();
                let status = zlib.compress(cluster, room, FlushCompress::Finish).context("compressing")?;
                (status == Status::StreamEnd).then(|| zlib.total_out() as usize)
            }
        };
        bytes.truncate(start + size.unwrap_or(0));
        if size.is_none() {
            bytes.extend_from_slice(cluster);
        }
        Ok((bytes.len() - start) as u32)
    }
}

/// Writes an image to an empty file, guest cluster by guest cluster.
#[derive(Debug)]
pub(in crate::disk) struct Writer<'a> {
    file: &'a File,
    compression: Compression,
    size: u64,
    /// Second-level tables by their place in the first-level one.
    tables: BTreeMap<u64, Vec<u64>>,
    /// References to each cluster of the file.
    counts: Vec<u16>,
    /// Where the next compressed cluster goes, and the end of the room there.
    packed: u64,
    packed_end: u64,
    /// Bytes not yet written, and where they go.
    batch: Vec<u8>,
    batch_at: u64,
}

impl<'a> Writer<'a> {
    /// Starts the image of a volume of `size` bytes.
    pub(in crate::disk) fn new(file: &'a File, compression: Compression, size: u64) -> Writer<'a> {
        Writer {
            file,
            compression,
            size,
            tables: BTreeMap::new(),
            counts: vec![1],
            packed: CLUSTER,
            packed_end: CLUSTER,
            batch: Vec::with_capacity(BATCH + CLUSTER as usize),
            batch_at: CLUSTER,
        }
    }

    /// Writes the guest cluster with this index, as [`Compressor::pack`] made it.
    pub(in crate::disk) fn put(&mut self, index: u64, packed: &[u8]) -> Result<()> {
        let size = packed.len() as u64;
        let (entry, at) = if size == CLUSTER {
            let at = self.take_clusters(1);
            (at | COPIED, at)
        } else {
            let at = self.take_bytes(size);
            let further = (at + size - 1) / SECTOR - at / SECTOR;
            (COMPRESSED | further << OFFSET_BITS | at, at)
        };
        let table = self.tables.entry(index / L2_ENTRIES).or_insert_with(|| vec![0; L2_ENTRIES as usize]);
        table[(index % L2_ENTRIES) as usize] = entry;
        self.write(at, packed)
    }

    /// Writes the tables and the header.
    pub(in crate::disk) fn finish(mut self) -> Result<()> {
        let mut first_level = vec![0u64; self.size.div_ceil(CLUSTER * L2_ENTRIES) as usize];
        for (index, table) in std::mem::take(&mut self.tables) {
            let at = self.take_clusters(1);
            first_level[index as usize] = at | COPIED;
            self.write(at, &big_endian(&table))?;
        }
        let first_level_at = self.take_clusters((8 * first_level.len() as u64).div_ceil(CLUSTER));
        self.write(first_level_at, &big_endian(&first_level))?;

        let (counts_at, blocks, table_at, table_clusters) = self.take_counts();
        let counts: Vec<u8> = self.counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.write(counts_at, &counts)?;
        let table: Vec<u64> = (0..blocks).map(|block| counts_at + block * CLUSTER).collect();
        self.write(table_at, &big_endian(&table))?;
        self.flush()?;
        self.file.set_len(self.counts.len() as u64 * CLUSTER).context("writing the qcow2 image")?;

        let header = Header {
            size: self.size,
            cluster_bits: CLUSTER_BITS,
            l1_size: u32::try_from(first_level.len()).context("the disk is too large for qcow2")?,
            l1_table_offset: first_level_at,
            refcount_table_offset: table_at,
            refcount_table_clusters: table_clusters as u32,
            zstd: matches!(self.compression, Compression::Zstd(_)),
            ..Header::default()
        };
        let header = header.to_bytes(None)?;
        self.file.write_all_at(&header, 0).context("writing the qcow2 image")
    }

    /// Takes whole clusters at the end of the file; returns where they begin.
    fn take_clusters(&mut self, clusters: u64) -> u64 {
        let at = self.counts.len() as u64 * CLUSTER;
        self.counts.extend(std::iter::repeat_n(1, clusters as usize));
        at
    }

    /// Takes room for a compressed cluster: behind the last one, if that leads into no whole cluster.
    fn take_bytes(&mut self, size: u64) -> u64 {
        let end = self.counts.len() as u64 * CLUSTER;
        if self.packed_end != end && self.packed + size > self.packed_end {
            self.packed = end;
        }
        let at = self.packed;
        self.packed += size;
        if self.packed > self.packed_end {
            let needed = self.packed.div_ceil(CLUSTER) as usize;
            self.counts.resize(needed.max(self.counts.len()), 0);
            self.packed_end = self.packed.next_multiple_of(CLUSTER);
        }
        for cluster in at / CLUSTER..=(at + size - 1) / CLUSTER {
            self.counts[cluster as usize] += 1;
        }
        at
    }

    /// Takes room for the reference counts, which count themselves, and for their table: where the counts begin, their
    /// clusters, where the table begins, its clusters.
    fn take_counts(&mut self) -> (u64, u64, u64, u64) {
        let used = self.counts.len() as u64;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let needed = (used + blocks + table).div_ceil(COUNTS);
            if needed <= blocks && (8 * blocks).div_ceil(CLUSTER) <= table {
                break;
            }
            blocks = needed.max(blocks);
            table = (8 * blocks).div_ceil(CLUSTER);
        }
        (self.take_clusters(blocks), blocks, self.take_clusters(table), table)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if at != self.batch_at + self.batch.len() as u64 || self.batch.len() > BATCH {
            self.flush()?;
            self.batch_at = at;
        }
        self.batch.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        ensure!(self.batch_at + self.batch.len() as u64 <= 1 << OFFSET_BITS, "the disk is too large for qcow2");
        self.file.write_all_at(&self.batch, self.batch_at).context("writing the qcow2 image")?;
        self.batch.clear();
        Ok(())
    }
}

fn big_endian(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
