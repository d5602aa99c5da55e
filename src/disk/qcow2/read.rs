//! Reads a disk from the file that it was written to, raw or qcow2, without mounting or converting it.

use super::Header;
use crate::error::UserError;
use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Decompress, FlushDecompress};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Clusters that an image may have at most: larger ones than QEMU makes are not images (docs/interop/qcow2.rst).
const LARGEST_CLUSTER_BITS: u32 = 21;
/// The largest first-level table that QEMU takes, in bytes.
const LARGEST_TABLE: u64 = 32 << 20;
/// The incompatible feature that reference counts may be wrong; a reader does not need them.
const DIRTY: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A disk in a file, to be read like a device.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    qcow2: Option<Qcow2>,
    size: u64,
    position: u64,
}

/// The tables of a qcow2 image, and the cluster and second-level table that were read last.
#[derive(Debug)]
struct Qcow2 {
    cluster_bits: u32,
    zstd: bool,
    first_level: Vec<u64>,
    table: (u64, Vec<u64>),
    cluster: (u64, Vec<u8>),
}

impl ImageFile {
    /// Opens the image at `path`: qcow2 if it begins so, else raw.
    ///
    /// # Errors
    /// When it cannot be read, or is a qcow2 image with a backing file or encryption.
    pub fn open(path: &Path) -> Result<ImageFile> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let reading = || format!("reading {}", path.display());
        let length = file.metadata().with_context(reading)?.len();
        let mut start = Vec::new();
        (&file).take(Header::NEEDED as u64).read_to_end(&mut start).with_context(reading)?;
        if !Header::is_at(&start) {
            return Ok(ImageFile { file, qcow2: None, size: length, position: 0 });
        }
        let header = Header::parse(&start).with_context(reading)?;
        let (qcow2, size) = Qcow2::open(&file, &header, length).with_context(reading)?;
        Ok(ImageFile { file, qcow2: Some(qcow2), size, position: 0 })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// `raw` or `qcow2`.
    pub fn format(&self) -> &'static str {
        if self.qcow2.is_some() { "qcow2" } else { "raw" }
    }

    /// Reads `buffer` full from the disk's byte `offset` on.
    ///
    /// # Errors
    /// When it reaches over the end, or the image is damaged.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        ensure!(end.is_some_and(|end| end <= self.size), "reading beyond the end of the disk");
        match &mut self.qcow2 {
            None => self.file.read_exact_at(buffer, offset).context("reading the image"),
            Some(qcow2) => qcow2.read_at(&self.file, offset, buffer),
        }
    }
}

impl Read for ImageFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        let at = self.position;
        self.read_at(at, &mut buffer[..left]).map_err(io::Error::other)?;
        self.position += left as u64;
        Ok(left)
    }
}

impl Seek for ImageFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Qcow2 {
    /// Reads the header and the first-level table of an image of `length` bytes; also returns the disk's size.
    fn open(file: &File, header: &Header, length: u64) -> Result<(Qcow2, u64)> {
        ensure!(!header.has_backing_file, UserError::usage("the image is an overlay of another one"));
        ensure!(!header.is_encrypted, UserError::usage("the image is encrypted"));
        let unknown = header.features & !DIRTY;
        ensure!(unknown == 0, "the image has the features {unknown:#x}, which are not supported");
        let cluster_bits = header.cluster_bits;
        ensure!((9..=LARGEST_CLUSTER_BITS).contains(&cluster_bits), "clusters of 2^{cluster_bits} bytes");
        let (entries, at) = (u64::from(header.l1_size), header.l1_table_offset);
        let fits = at.checked_add(8 * entries).is_some_and(|end| end <= length);
        ensure!(fits && 8 * entries <= LARGEST_TABLE, "the image is truncated");
        let first_level = table(file, at, entries)?;
        let none = (u64::MAX, Vec::new());
        let qcow2 = Qcow2 { cluster_bits, zstd: header.zstd, first_level, table: (0, Vec::new()), cluster: none };
        Ok((qcow2, header.size))
    }

    fn read_at(&mut self, file: &File, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let size = 1u64 << self.cluster_bits;
        while !buffer.is_empty() {
            let within = offset % size;
            let count = (size - within).min(buffer.len() as u64) as usize;
            let (part, rest) = buffer.split_at_mut(count);
            self.read_in_cluster(file, offset >> self.cluster_bits, within, part)?;
            offset += count as u64;
            buffer = rest;
        }
        Ok(())
    }

    /// Reads a part of the guest cluster `index`.
    fn read_in_cluster(&mut self, file: &File, index: u64, within: u64, part: &mut [u8]) -> Result<()> {
        let entries = 1u64 << (self.cluster_bits - 3);
        let first = self.first_level.get((index / entries) as usize).copied().unwrap_or(0) & OFFSET;
        if first != 0 && self.table.0 != first {
            self.table = (first, table(file, first, entries)?);
        }
        let entry = if first == 0 { 0 } else { self.table.1[(index % entries) as usize] };
        if entry >> 62 & 1 == 1 {
            if self.cluster.0 != index {
                self.cluster = (u64::MAX, self.unpack(file, entry)?);
                self.cluster.0 = index;
            }
            part.copy_from_slice(&self.cluster.1[within as usize..][..part.len()]);
            return Ok(());
        }
        match entry & OFFSET {
            0 => part.fill(0),
            // Bit 0 tells a cluster that reads as zeros, though it may have a place.
            _ if entry & 1 == 1 => part.fill(0),
            at => file.read_exact_at(part, at + within).context("reading a cluster")?,
        }
        Ok(())
    }

    /// The bytes of a compressed cluster.
    fn unpack(&self, file: &File, entry: u64) -> Result<Vec<u8>> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let further = (entry & !(3 << 62)) >> offset_bits;
        let mut packed = vec![0; ((further + 1) * 512 - at % 512) as usize];
        let mut length = 0;
        // The last sector of an image may be cut off.
        while length < packed.len() {
            match file.read_at(&mut packed[length..], at + length as u64).context("reading a cluster")? {
                0 => break,
                count => length += count,
            }
        }
        let packed = &packed[..length];
        let mut cluster = vec![0; 1 << self.cluster_bits];
        let size = if self.zstd {
            let mut decoder = zstd::stream::raw::Decoder::new().context("starting the decompressor")?;
            let (mut input, mut output) =
                (zstd::stream::raw::InBuffer::around(packed), zstd::stream::raw::OutBuffer::around(&mut cluster[..]));
            use zstd::stream::raw::Operation as _;
            while decoder.run(&mut input, &mut output).context("a compressed cluster is damaged")? != 0 {
                ensure!(input.pos() < packed.len() && output.pos() < 1 << self.cluster_bits, "a cluster is damaged");
            }
            output.pos() as u64
        } else {
            let mut decoder = Decompress::new(false);
            decoder
                .decompress(packed, &mut cluster, FlushDecompress::Finish)
                .context("a compressed cluster is damaged")?;
            decoder.total_out()
        };
        if size != 1 << self.cluster_bits {
            bail!("a compressed cluster is truncated");
        }
        Ok(cluster)
    }
}

fn table(file: &File, at: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; 8 * entries as usize];
    file.read_exact_at(&mut bytes, at).context("reading a table of the image")?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{
        Compression, Data, Map, Outputs,
        bytes::CLUSTER,
        testing::{Bench, noise},
    };

    #[test]
    fn both_formats_read_as_the_disk_that_was_written() {
        let bench = Bench::new();
        let mut map = Map::new(700 * CLUSTER + 512);
        map.put(3 * CLUSTER + 100, Data::Bytes(noise(200_000)));
        map.put(600 * CLUSTER, Data::Bytes(b"text ".repeat(30_000)));
        map.put(700 * CLUSTER, Data::Bytes(vec![7; 512]));
        let map = map.finish().unwrap();
        let raw = bench.raw("raw", &map);
        let expected = std::fs::read(&raw).unwrap();
        assert_eq!(ImageFile::open(&raw).unwrap().format(), "raw");
        for compression in [Compression::Zstd(3), Compression::Zlib(6)] {
            let path = bench.path("qcow2");
            let file = File::create(&path).unwrap();
            map.write(&bench.store, Outputs { raw: None, qcow2: Some((&file, compression)) }, &|_| ()).unwrap();
            let mut image = ImageFile::open(&path).unwrap();
            assert_eq!((image.format(), image.size()), ("qcow2", map.size()));
            let mut read = Vec::new();
            image.read_to_end(&mut read).unwrap();
            assert!(read == expected, "{compression:?}");
            let mut part = [0; 1000];
            image.read_at(3 * CLUSTER + 65_000, &mut part).unwrap();
            assert_eq!(part, expected[3 * CLUSTER as usize + 65_000..][..1000]);
            assert!(image.read_at(map.size() - 10, &mut part).is_err());
        }
    }

    #[test]
    fn a_damaged_image_is_an_error_and_no_panic() {
        let bench = Bench::new();
        let mut map = Map::new(100 * CLUSTER);
        map.put(0, Data::Bytes(b"text ".repeat(100_000)));
        let map = map.finish().unwrap();
        let path = bench.path("qcow2");
        let file = File::create(&path).unwrap();
        map.write(&bench.store, Outputs { raw: None, qcow2: Some((&file, Compression::default())) }, &|_| ()).unwrap();
        let good = std::fs::read(&path).unwrap();
        for length in [50, 104, 4096, good.len() - 2 * CLUSTER as usize] {
            std::fs::write(&path, &good[..length]).unwrap();
            if let Ok(mut image) = ImageFile::open(&path) {
                let _ = image.read_to_end(&mut Vec::new());
            }
        }
        for at in (0..112).chain([CLUSTER as usize, CLUSTER as usize + 3]) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            std::fs::write(&path, bad).unwrap();
            if let Ok(mut image) = ImageFile::open(&path) {
                let mut buffer = [0; 4096];
                let _ = image.read_at(0, &mut buffer);
            }
        }
    }
}
