//! The header of qcow2 images: one form for the writer, for overlays, and for readers.

use crate::disk::bytes::Fields as _;
use anyhow::{Context as _, Result, ensure};

/// The first bytes of every qcow2 image.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The bytes that a header has at least, and that are enough to read its fields but the compression type.
const LEAST: usize = 104;
/// The bytes of headers that are written here.
const LENGTH: usize = 112;
/// Marks the header extension with the format of the image below.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of the image below, in bytes.
const LONGEST_NAME: usize = 1023;
/// The incompatible feature that the compression type is not the default.
const COMPRESSION_TYPE: u64 = 1 << 3;

/// The fields of a header, named as in the specification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The size of the disk in bytes.
    pub size: u64,
    /// The power of two of a cluster's bytes.
    pub cluster_bits: u32,
    /// Entries of the first-level table.
    pub l1_size: u32,
    /// Where the first-level table begins.
    pub l1_table_offset: u64,
    /// Where the table of reference counts begins.
    pub refcount_table_offset: u64,
    /// The clusters of that table.
    pub refcount_table_clusters: u32,
    /// Whether compressed clusters are compressed with Zstandard, not with Deflate.
    pub zstd: bool,
    /// Whether there is an image below.
    pub has_backing_file: bool,
    /// Whether the image is encrypted.
    pub is_encrypted: bool,
    /// Incompatible features, but for that of the compression type.
    pub features: u64,
}

/// Why bytes are not the header of an image that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// There are fewer bytes than a header has.
    #[error("the image is truncated")]
    CutOff,
    /// It has this version, which is not 2 or 3.
    #[error("a qcow2 image of version {0}, which is not supported")]
    Version(u32),
}

impl Header {
    /// The bytes from an image's beginning that [`Header::parse`] needs.
    pub const NEEDED: usize = LENGTH;

    /// Whether an image that begins with `start` is a qcow2 image.
    pub fn is_at(start: &[u8]) -> bool {
        start.starts_with(&MAGIC)
    }

    /// Reads the header of an image that begins with `start`.
    ///
    /// # Errors
    /// When it is cut off or of another version.
    pub fn parse(start: &[u8]) -> Result<Header, HeaderError> {
        if start.len() < LEAST {
            return Err(HeaderError::CutOff);
        }
        let (word, long) = (|at| u32::from_be_bytes(start.field(at)), |at| u64::from_be_bytes(start.field::<8>(at)));
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return Err(HeaderError::Version(version));
        }
        let features = if version == 3 { long(72) } else { 0 };
        let has_type = features & COMPRESSION_TYPE != 0;
        if has_type && start.len() <= LEAST {
            return Err(HeaderError::CutOff);
        }
        Ok(Header {
            size: long(24),
            cluster_bits: word(20),
            l1_size: word(36),
            l1_table_offset: long(40),
            refcount_table_offset: long(48),
            refcount_table_clusters: word(56),
            zstd: has_type && start[LEAST] == 1,
            has_backing_file: long(8) != 0,
            is_encrypted: word(32) != 0,
            features: features & !COMPRESSION_TYPE,
        })
    }

    /// The header as an image has it, with its extensions and, for an overlay, the name and format of the image below.
    ///
    /// # Errors
    /// When the name is too long.
    pub fn to_bytes(&self, backing: Option<(&[u8], &str)>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; LENGTH];
        bytes.put(0, MAGIC);
        bytes.put(4, 3u32.to_be_bytes());
        bytes.put(20, self.cluster_bits.to_be_bytes());
        bytes.put(24, self.size.to_be_bytes());
        bytes.put(36, self.l1_size.to_be_bytes());
        bytes.put(40, self.l1_table_offset.to_be_bytes());
        bytes.put(48, self.refcount_table_offset.to_be_bytes());
        bytes.put(56, self.refcount_table_clusters.to_be_bytes());
        let compression_type = if self.zstd { COMPRESSION_TYPE } else { 0 };
        bytes.put(72, (self.features | compression_type).to_be_bytes());
        // Reference counts of 2^4 bits.
        bytes.put(96, 4u32.to_be_bytes());
        bytes.put(100, (LENGTH as u32).to_be_bytes());
        bytes.put(LEAST, [u8::from(self.zstd)]);
        let Some((name, format)) = backing else {
            // The end of the extensions.
            bytes.extend([0; 8]);
            return Ok(bytes);
        };
        ensure!(name.len() <= LONGEST_NAME, "the path of the image below is too long");
        bytes.extend(BACKING_FORMAT.to_be_bytes());
        bytes.extend(u32::try_from(format.len()).context("the name of a format is too long")?.to_be_bytes());
        bytes.extend(format.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([0; 8]);
        let at = bytes.len() as u64;
        bytes.put(8, at.to_be_bytes());
        bytes.put(16, (name.len() as u32).to_be_bytes());
        bytes.extend(name);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            size: 5 << 30,
            cluster_bits: 16,
            l1_size: 10,
            l1_table_offset: 3 << 16,
            refcount_table_offset: 1 << 16,
            refcount_table_clusters: 1,
            zstd: true,
            ..Header::default()
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = header().to_bytes(None).unwrap();
        assert!(Header::is_at(&bytes));
        assert_eq!(Header::parse(&bytes), Ok(header()));
        let overlay = header().to_bytes(Some((b"/images/disk.raw", "raw"))).unwrap();
        assert_eq!(Header::parse(&overlay), Ok(Header { has_backing_file: true, ..header() }));
        assert!(overlay.ends_with(b"/images/disk.raw"));
    }

    #[test]
    fn short_and_foreign_headers_are_refused() {
        let mut bytes = header().to_bytes(None).unwrap();
        assert_eq!(Header::parse(&bytes[..103]), Err(HeaderError::CutOff));
        assert_eq!(Header::parse(&bytes[..104]), Err(HeaderError::CutOff), "the compression type is missing");
        bytes[7] = 4;
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Version(4)));
        assert!(header().to_bytes(Some((&[b'x'; 1024], "raw"))).is_err());
    }
}
