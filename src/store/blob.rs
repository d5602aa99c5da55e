//! Blobs: written once under a temporary name, read back with their digest checked.

use super::{Store, touch};
use crate::model::{Digest, Sha256};
use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt as _,
};
use tempfile::NamedTempFile;

/// Writes a new blob. Without [`BlobWriter::finish`] it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
}

impl BlobWriter {
    pub(super) fn new(store: &Store) -> Result<BlobWriter> {
        let file = NamedTempFile::new_in(store.scratch_root())
            .with_context(|| format!("making a file in the store {}", store.root().display()))?;
        Ok(BlobWriter { store: store.clone(), file, hasher: Sha256::new(), size: 0 })
    }

    /// The bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Puts the blob in its place and returns its digest and size in bytes.
    ///
    /// # Errors
    /// When the file cannot be moved.
    pub fn finish(self) -> Result<(Digest, u64)> {
        let digest = self.hasher.finish();
        let path = self.store.blob_path(&digest);
        if self.store.blob_size(&digest) == Some(self.size) {
            touch(&path);
        } else {
            self.file.persist(&path).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok((digest, self.size))
    }

    /// As [`BlobWriter::finish`], but keeps nothing unless the digest is `expected`; returns whether it was.
    ///
    /// # Errors
    /// When the file cannot be moved.
    pub fn finish_as(self, expected: &Digest) -> Result<bool> {
        let matches = self.hasher.clone().finish() == *expected;
        if matches {
            self.finish()?;
        }
        Ok(matches)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a blob from its beginning.
///
/// The read that reaches the end fails with [`io::ErrorKind::InvalidData`] if the bytes do not match the name, and the
/// blob is dropped so that it is made again.
#[derive(Debug)]
pub struct BlobReader {
    store: Store,
    digest: Digest,
    file: File,
    hasher: Option<Sha256>,
    size: u64,
}

impl BlobReader {
    pub(super) fn open(store: &Store, digest: &Digest) -> Result<Option<BlobReader>> {
        let path = store.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        let size = file.metadata().with_context(|| format!("reading {}", path.display()))?.len();
        touch(&path);
        Ok(Some(BlobReader { store: store.clone(), digest: *digest, file, hasher: Some(Sha256::new()), size }))
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Another handle on the same blob, for [`BlobReader::read_exact_at`].
    ///
    /// # Errors
    /// When the system has no more handles.
    pub fn try_clone(&self) -> Result<BlobReader> {
        let file = self.file.try_clone().with_context(|| format!("opening the blob {} again", self.digest))?;
        Ok(BlobReader { store: self.store.clone(), digest: self.digest, file, hasher: None, size: self.size })
    }

    /// Reads `buffer.len()` bytes from `offset`, unchecked: for content that has a digest of its own.
    ///
    /// # Errors
    /// When the blob ends before that.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
        } else if !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.digest
        {
            self.store.drop_blob(&self.digest);
            let message = format!("the store's blob {} was damaged and has been dropped", self.digest);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}
