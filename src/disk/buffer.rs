//! Buffers and files for writing raw images past the system's page cache.
//!
//! Nobody reads a raw image at once that was just written, and finding memory to keep all of it takes a busy or virtual
//! host longer than writing it.

use super::bytes::CLUSTER;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    fs::File,
    io,
    ops::{Deref, DerefMut},
    os::unix::fs::FileExt as _,
};

/// What places in memory and on the disk must be multiples of: no device has larger sectors.
const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of [`ALIGNMENT`].
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Forgets all bytes.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Cuts the bytes off at `len`, or adds zeros up to it.
    pub(super) fn resize(&mut self, len: usize) {
        if self.memory.len() < len + ALIGNMENT {
            let mut memory = vec![0; len.next_multiple_of(CLUSTER as usize) + ALIGNMENT];
            let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
            memory[start..start + self.len].copy_from_slice(self);
            (self.memory, self.start) = (memory, start);
        }
        if len > self.len {
            let start = self.start;
            self.memory[start + self.len..start + len].fill(0);
        }
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A file that aligned bytes are written to directly, where its file system can.
#[derive(Debug)]
pub(super) struct RawFile<'a>(&'a File);

impl<'a> RawFile<'a> {
    /// Asks for direct writes.
    pub(super) fn new(file: &'a File) -> RawFile<'a> {
        // A file system that cannot is used as any other.
        let _ = set_direct(file, true);
        RawFile(file)
    }

    pub(super) fn file(&self) -> &File {
        self.0
    }

    /// Writes whole sectors of a [`Buffer`] at `offset`.
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.0.write_all_at(bytes, offset) {
            // Some take the flag and refuse the write.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                set_direct(self.0, false)?;
                self.0.write_all_at(bytes, offset)
            }
            done => done,
        }
    }
}

impl Drop for RawFile<'_> {
    /// The file's owner writes it as any other.
    fn drop(&mut self) {
        let _ = set_direct(self.0, false);
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_new_bytes_are_zeros() {
        let mut buffer = Buffer::default();
        for len in [10, 5000, 20, 70_000, 1] {
            buffer.resize(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(buffer.iter().skip(1).all(|byte| *byte == 0), "{len}");
            buffer.fill(7);
            buffer.resize(1);
        }
        assert_eq!(*buffer, [7]);
        buffer.clear();
        buffer.resize(1);
        assert_eq!(*buffer, [0]);
    }

    #[test]
    fn odd_bytes_are_written_all_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let raw = RawFile::new(file.as_file());
        raw.write_all_at(b"odd", 1).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"\0odd");
    }
}
