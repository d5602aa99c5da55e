//! Disk images as machines see them: recognised by their first bytes, and never written to.
//!
//! A machine writes to an overlay of its image ([`write_overlay`]).

use crate::{
    disk::qcow2::{Header, HeaderError, write_overlay},
    error::UserError,
    files::NewFile,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

const SECTOR: u64 = 512;

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte by byte.
    Raw,
    /// QEMU's own format.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

/// An image that machines can boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    /// Where it is; absolute.
    pub path: PathBuf,
    /// How it is stored.
    pub format: DiskFormat,
    /// The size of the disk that it holds, in bytes.
    pub size: u64,
    /// Whether it is an overlay of another image, whose path may be relative to its own.
    pub backed: bool,
}

impl DiskImage {
    /// Looks at the image `path`.
    ///
    /// # Errors
    /// A wrong request when there is none, or it is not a raw or qcow2 image of a partitioned disk.
    pub fn open(path: &Path) -> Result<DiskImage> {
        let shown = path.display();
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let hint = "build one: pgha-image build RECIPE --format qcow2";
                return Err(UserError::usage(format!("there is no image {shown}")).hint(hint).into());
            }
            Err(error) => return Err(error).with_context(|| format!("opening the image {shown}")),
        };
        let reading = || format!("reading the image {shown}");
        if file.metadata().with_context(reading)?.is_dir() {
            return Err(UserError::usage(format!("{shown} is a folder, not an image")).into());
        }
        let path = path.canonicalize().with_context(reading)?;
        let mut start = Vec::new();
        file.by_ref().take(SECTOR).read_to_end(&mut start).with_context(reading)?;
        let size = file.seek(SeekFrom::End(0)).with_context(reading)?;
        let wrong = |what: String| Err(UserError::usage(format!("{shown} {what}")).into());
        if Header::is_at(&start) {
            return match Header::parse(&start) {
                Ok(Header { size, has_backing_file: backed, .. }) => {
                    Ok(DiskImage { path, format: DiskFormat::Qcow2, size, backed })
                }
                Err(HeaderError::CutOff) => wrong("is a qcow2 image that was cut off".to_owned()),
                Err(HeaderError::Version(version)) => {
                    wrong(format!("is a qcow2 image of version {version}, which is unknown"))
                }
            };
        }
        // Every partitioned disk has this signature, also one with GPT (UEFI specification 2.10, 5.2.1).
        if start.get(510..512) != Some(&[0x55, 0xaa][..]) {
            let what = other(&start).unwrap_or("neither a qcow2 image nor a raw image of a partitioned disk");
            return wrong(format!("is {what}"));
        }
        if !size.is_multiple_of(SECTOR) {
            return wrong(format!("is a raw image of {size} bytes, which are not whole sectors: it was cut off"));
        }
        Ok(DiskImage { path, format: DiskFormat::Raw, size, backed: false })
    }

    /// The same image under a second name, `target`, if a link can be made: then it stays when a build replaces the
    /// image. Otherwise it is the image itself.
    pub fn linked(&self, target: &Path) -> DiskImage {
        let linked = || {
            let target = std::path::absolute(target).ok()?;
            std::fs::hard_link(&self.path, &target).ok().map(|()| target)
        };
        let path = if self.backed { None } else { linked() };
        DiskImage { path: path.unwrap_or_else(|| self.path.clone()), ..self.clone() }
    }

    /// Makes the file `target` an overlay of this image, with a disk of `size` bytes or as large as the image's.
    ///
    /// # Errors
    /// A wrong request when `size` is less than the image's or not a whole number of sectors; when the overlay cannot be
    /// written.
    pub fn overlay(&self, target: &Path, size: Option<u64>) -> Result<()> {
        let size = size.unwrap_or(self.size);
        if size < self.size || !size.is_multiple_of(SECTOR) {
            let shown = self.path.display();
            let least = self.size;
            let message = format!("a disk of {size} bytes cannot hold {shown}, which is a disk of {least} bytes");
            return Err(UserError::usage(message)
                .hint("give a larger --disk-size, in whole sectors of 512 bytes")
                .into());
        }
        let below = self.path.as_os_str().as_bytes();
        let file = NewFile::beside(target)?;
        write_overlay(file.file(), below, self.format.name(), size)
            .with_context(|| format!("writing the overlay {} of {}", target.display(), self.path.display()))?;
        file.publish(target)
    }
}

/// What a file is that is often taken for an image.
fn other(start: &[u8]) -> Option<&'static str> {
    let table: [(&[u8], &str); 6] = [
        (b"KDMV", "a VMDK image"),
        (b"vhdxfile", "a VHDX image"),
        (b"conectix", "a VHD image"),
        (b"\x1f\x8b", "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"\xfd7zXZ", "compressed with xz"),
    ];
    table.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::FileExt as _};

    fn raw(path: &Path, size: u64) {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    }

    fn refusal(path: &Path) -> String {
        DiskImage::open(path).unwrap_err().to_string().replace(&path.display().to_string(), "FILE")
    }

    #[test]
    fn images_are_recognised_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        assert_eq!(refusal(&path), "there is no image FILE");
        assert_eq!(refusal(folder.path()), "FILE is a folder, not an image");
        raw(&path, 1 << 20);
        let image = DiskImage::open(&path).unwrap();
        assert_eq!((image.format, image.size), (DiskFormat::Raw, 1 << 20));
        let overlay = folder.path().join("overlay");
        image.overlay(&overlay, Some(1 << 40)).unwrap();
        let opened = DiskImage::open(&overlay).unwrap();
        assert_eq!((opened.format, opened.size), (DiskFormat::Qcow2, 1 << 40));
        let error = image.overlay(&overlay, Some(1 << 19)).unwrap_err();
        assert!(error.to_string().starts_with("a disk of 524288 bytes cannot hold"), "{error}");
        let linked = image.linked(&folder.path().join("linked"));
        fs::remove_file(&path).unwrap();
        assert_eq!(DiskImage::open(&linked.path).unwrap(), linked, "the image is gone with its first name");
        assert_eq!(opened.linked(&folder.path().join("other")), opened, "a relative backing file would be lost");
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        for (bytes, message) in [
            (&b""[..], "FILE is neither a qcow2 image nor a raw image of a partitioned disk"),
            (b"\x1f\x8b\x08", "FILE is compressed with gzip"),
            (b"KDMV....", "FILE is a VMDK image"),
            (b"QFI\xfb", "FILE is a qcow2 image that was cut off"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(refusal(&path), message);
        }
        raw(&path, 1000);
        assert_eq!(refusal(&path), "FILE is a raw image of 1000 bytes, which are not whole sectors: it was cut off");
    }
}
