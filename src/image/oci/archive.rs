//! Writes an image as an archive file.

use super::{Artifact, OciImage};
use crate::{
    files::NewFile,
    model::{GuestPath, Sha256},
    progress::{Progress, Unit, size},
    rootfs::{Entry, tar::encode_header},
};
use anyhow::{Context as _, Result};
use std::{
    fs::Permissions,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

const BLOCK: u64 = 512;

impl OciImage {
    /// Writes the image into the file `target`, which appears or is replaced at the end. Every blob is checked and the
    /// archive's own digest made in the same pass.
    ///
    /// # Errors
    /// When the store lost a layer, or the file cannot be written.
    pub fn write_archive(&self, target: &Path, progress: &Progress) -> Result<Artifact> {
        let mut file = NewFile::beside(target)?;
        file.file()
            .set_permissions(Permissions::from_mode(0o644))
            .with_context(|| format!("setting the mode of {}", file.path().display()))?;
        let step = progress.step("archive", self.size(), Unit::Bytes);
        let mut hashing = Hashing { inner: &mut file, sum: Sha256::new(), size: 0 };
        let mut output = BufWriter::with_capacity(512 << 10, &mut hashing);
        self.write_tar(&mut output, |written| step.advance(written))
            .and_then(|()| Ok(output.flush()?))
            .with_context(|| format!("writing {}", target.display()))?;
        drop(output);
        let (digest, written) = (hashing.sum.finish(), hashing.size);
        file.publish(target)?;
        step.finish(format!("{} {}", target.display(), size(written)));
        Ok(Artifact { path: target.to_owned(), digest, size: written })
    }

    /// Paths in order, everything root's, and of the time at which the image was created.
    fn write_tar(&self, output: &mut dyn Write, written: impl Fn(u64)) -> Result<()> {
        let header = |output: &mut dyn Write, path: &str, mode, size, kind| -> Result<()> {
            let entry = Entry::directory(mode, self.created.max(0));
            let path: GuestPath = format!("/{path}").parse()?;
            Ok(output.write_all(&encode_header(&path, &entry, size, kind, "")?)?)
        };
        for folder in ["blobs", "blobs/sha256"] {
            header(output, folder, 0o755, 0, b'5')?;
        }
        for (digest, blob) in &self.blobs {
            header(output, &format!("blobs/sha256/{}", digest.hex()), 0o644, blob.size(), b'0')?;
            self.copy_blob(digest, blob, output)?;
            pad(output, blob.size())?;
            written(blob.size());
        }
        for (name, document) in &self.documents {
            header(output, name, 0o644, document.len() as u64, b'0')?;
            output.write_all(document)?;
            pad(output, document.len() as u64)?;
        }
        Ok(output.write_all(&[0; 2 * BLOCK as usize])?)
    }
}

fn pad(output: &mut dyn Write, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(BLOCK) - size;
    output.write_all(&[0; BLOCK as usize][..padding as usize])
}

struct Hashing<W> {
    inner: W,
    sum: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sum.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
