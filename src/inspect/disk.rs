//! Reads disks: partitions, and the files of an ext4 root.

use super::{Found, FoundContent, FoundEntry, Partition, TELLING};
use crate::{
    disk::{
        ImageFile, ext4,
        gpt::{Table, kinds},
    },
    error::UserError,
    model::{Digest, GuestPath},
    rootfs::{Entry, Kind},
};
use anyhow::{Context as _, Result, anyhow};
use ext4_view::{Ext4, Ext4Read, FileType, Metadata};
use std::{
    collections::BTreeMap,
    error::Error,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// Reads the disk at `path`; also says its format.
pub(super) fn read(path: &Path, digests: bool) -> Result<(&'static str, Found)> {
    let mut disk = ImageFile::open(path)?;
    let format = disk.format();
    let table = Table::read(&mut disk).map_err(|error| {
        UserError::usage(format!("{error:#}")).hint("an image is raw, qcow2, or an OCI archive or layout")
    })?;
    let mut found = Found { disk_size: Some(disk.size()), ..Found::default() };
    let mut root = None;
    for partition in &table.partitions {
        let (offset, size) = (partition.offset(), partition.size());
        let file_system = match ext4::Summary::read(&mut disk, offset) {
            Ok(summary) => {
                root.get_or_insert(offset);
                Some(format!("ext4 {}", summary.uuid))
            }
            Err(_) => fat(&mut disk, offset)?,
        };
        let kind = match partition.kind {
            kind if kind == kinds::BIOS_BOOT => "bios".to_owned(),
            kind if kind == kinds::ESP => "esp".to_owned(),
            kind if kind == kinds::ROOT_AMD64 || kind == kinds::ROOT_ARM64 => "root".to_owned(),
            kind => kind.to_string(),
        };
        let (number, name, id) = (partition.number, partition.name.clone(), partition.id.to_string());
        found.partitions.push(Partition { number, name, kind, id, offset, size, file_system });
    }
    if let Some(offset) = root {
        let volume = Volume { disk, offset };
        let ext4 = Ext4::load(Box::new(volume)).map_err(|error| anyhow!("reading the root file system: {error}"))?;
        let metadata = ext4.metadata("/").map_err(|error| anyhow!("reading `/`: {error}"))?;
        found.tree.entries.insert(GuestPath::root(), found_entry(Kind::Directory, &metadata));
        walk(&ext4, &GuestPath::root(), digests, &mut found)?;
    }
    Ok((format, found))
}

/// A FAT file system and its serial number as `blkid` writes it (fatgen103, "Boot Sector and BPB Structure").
fn fat(disk: &mut ImageFile, offset: u64) -> Result<Option<String>> {
    let mut sector = [0; 512];
    disk.seek(SeekFrom::Start(offset)).and_then(|_| disk.read_exact(&mut sector)).context("reading a partition")?;
    let serial = |at: usize| {
        let word = |at: usize| u16::from_le_bytes([sector[at], sector[at + 1]]);
        Some(format!("vfat {:04X}-{:04X}", word(at + 2), word(at)))
    };
    Ok(match () {
        () if sector[82..].starts_with(b"FAT32") => serial(67),
        () if sector[54..].starts_with(b"FAT1") => serial(39),
        () => None,
    })
}

/// A file system inside a disk.
struct Volume {
    disk: ImageFile,
    offset: u64,
}

impl Ext4Read for Volume {
    fn read(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let at = self.offset.checked_add(start).ok_or("beyond the end of the disk")?;
        Ok(self.disk.read_at(at, buffer)?)
    }
}

fn found_entry(kind: Kind<FoundContent>, metadata: &Metadata) -> FoundEntry {
    let mode = u32::from(metadata.mode()) & 0o7777;
    Entry { kind, mode, uid: metadata.uid(), gid: metadata.gid(), mtime: 0, xattrs: BTreeMap::new() }
}

fn walk(ext4: &Ext4, folder: &GuestPath, digests: bool, found: &mut Found) -> Result<()> {
    let reading = |error: &dyn std::fmt::Display| anyhow!("reading `{folder}`: {error}");
    for entry in ext4.read_dir(folder.as_str()).map_err(|error| reading(&error))? {
        let entry = entry.map_err(|error| reading(&error))?;
        let name = entry.file_name();
        let name = name.as_str().map_err(|error| reading(&error))?;
        if name == "." || name == ".." {
            continue;
        }
        let path = folder.join(name)?;
        let reading = |error: &dyn std::fmt::Display| anyhow!("reading `{path}`: {error}");
        let metadata = entry.metadata().map_err(|error| reading(&error))?;
        let kind = match metadata.file_type() {
            FileType::Regular => {
                let telling = TELLING.contains(&path.as_str());
                let mut sha256 = None;
                if digests || telling {
                    let bytes = ext4.read(path.as_str()).map_err(|error| reading(&error))?;
                    let digest = Digest::of(&bytes);
                    found.telling.extend(telling.then_some((digest, bytes)));
                    sha256 = Some(digest);
                }
                Kind::File(FoundContent::Bytes { size: metadata.len(), sha256 })
            }
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = ext4.read_link(path.as_str()).map_err(|error| reading(&error))?;
                Kind::Symlink(target.display().to_string())
            }
            FileType::Fifo => Kind::Fifo,
            _ => Kind::File(FoundContent::Special),
        };
        let directory = kind == Kind::Directory;
        found.tree.entries.insert(path.clone(), found_entry(kind, &metadata));
        if directory {
            walk(ext4, &path, digests, found)?;
        }
    }
    Ok(())
}
