//! Overlays: images that have nothing but a header with the name of the image below.
//!
//! QEMU then puts there what the guest writes. An overlay may be larger than the image below it; the rest reads as zero.

use super::Header;
use crate::disk::bytes::CLUSTER;
use anyhow::{Context as _, Result};
use std::{fs::File, os::unix::fs::FileExt as _};

/// Writes an overlay of `size` bytes to an empty file. `below` is the path of the image below, `format` QEMU's name for
/// its format.
///
/// # Errors
/// When the path is too long, the disk is too large, or the file cannot be written.
pub fn write_overlay(file: &File, below: &[u8], format: &str, size: u64) -> Result<()> {
    let table_clusters = table_clusters(size);
    let header = Header {
        size,
        cluster_bits: CLUSTER.trailing_zeros(),
        l1_size: u32::try_from(table_entries(size)).context("the disk is too large for qcow2")?,
        l1_table_offset: 3 * CLUSTER,
        refcount_table_offset: CLUSTER,
        refcount_table_clusters: 1,
        ..Header::default()
    };
    file.set_len((3 + table_clusters) * CLUSTER)?;
    file.write_all_at(&header.to_bytes(Some((below, format)))?, 0)?;
    // The table of reference counts has one cluster of them, which counts all clusters of this file.
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts: Vec<u8> = (0..3 + table_clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&counts, 2 * CLUSTER)?;
    Ok(())
}

/// Entries of the first-level table: one for each cluster of second-level entries.
fn table_entries(size: u64) -> u64 {
    size.div_ceil(CLUSTER * (CLUSTER / 8))
}

fn table_clusters(size: u64) -> u64 {
    (8 * table_entries(size)).div_ceil(CLUSTER).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_counts_its_clusters() {
        for (size, clusters) in [(1 << 20, 1), (20 << 30, 1), (1 << 40, 1), (4 << 40, 1), (5 << 40, 2)] {
            assert_eq!(table_clusters(size), clusters, "{size}");
        }
    }
}
