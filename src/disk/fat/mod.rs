//! Writes a FAT file system (Microsoft, "FAT: General Overview of On-Disk Format", fatgen103).
//!
//! ```text
//! reserved sectors   boot sector with the volume's measures; FAT32: free clusters, and copies of both
//! two tables         the next cluster of each cluster
//! root directory     FAT16 alone: 512 entries
//! clusters           directories, then files, each in one piece
//! ```
//!
//! The number of clusters makes a volume FAT16 or FAT32. From about 33 MiB on it is FAT32, as UEFI wants its system
//! partition; smaller ones are FAT16, which every reader of a small volume knows.

mod names;

use super::{
    bytes::Fields as _,
    map::{Data, Map},
};
use crate::error::UserError;
use anyhow::{Result, bail, ensure};
use names::Names;
use std::collections::BTreeMap;

const SECTOR: u64 = 512;
const ENTRY: usize = 32;
const TABLES: u64 = 2;
const MEDIA: u8 = 0xf8;
const ROOT_ENTRIES: u64 = 512;
/// FAT16 has fewer clusters than this, FAT32 at least as many; both stay away from the border, as readers err there.
const FAT32_CLUSTERS: u64 = 65525;
const FAT16_CLUSTERS: u64 = 4085;
const MARGIN: u64 = 16;
/// Sectors in a cluster, at most.
const LARGEST_CLUSTER: u64 = 8;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME: u8 = 0x08;

/// What a volume is made with, besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its size in bytes.
    pub size: u64,
    /// Its label: up to 11 upper-case characters.
    pub label: String,
    /// Its serial number.
    pub serial: u32,
    /// The time of every file, in seconds since 1970, UTC.
    pub epoch: i64,
    /// Sectors of the disk before it.
    pub first_sector: u64,
}

/// Lays out a FAT volume with these files, by paths such as `EFI/BOOT/BOOTX64.EFI`.
///
/// # Errors
/// [`UserError`] when the volume is too small, with the size that is needed; when FAT cannot hold a name.
pub fn format(files: &BTreeMap<String, Data>, options: &Options) -> Result<Map> {
    let label = label(&options.label)?;
    let Some(layout) = Layout::new(options.size) else {
        let smallest = (FAT16_CLUSTERS + MARGIN) * SECTOR + (64 << 10);
        let message = format!("a FAT volume has {smallest} bytes at least, not {}", options.size);
        return Err(UserError::usage(message).into());
    };
    let mut root = Folder::default();
    for (path, data) in files {
        root.add(path, data)?;
    }
    let mut volume = Volume {
        clusters: vec![layout.media_entry(), layout.end()],
        map: Map::new(options.size),
        stamp: Stamp::of(options.epoch),
        layout,
    };
    let mut entries = vec![volume.entry(label, VOLUME, 0, 0)];
    entries.extend(volume.contents(&root, 0)?);
    let first = volume.root(&entries)?;
    let used = (volume.clusters.len() as u64 - 2) * volume.layout.cluster_size();
    if used > volume.layout.room() {
        let needed = enough(used, options.size);
        let message = format!("the FAT volume `{}` needs {needed} bytes, not {}", options.label, options.size);
        return Err(UserError::usage(message).into());
    }
    volume.tables();
    volume.front(first, label, options);
    volume.map.finish()
}

/// The size of a volume, larger than `size`, whose clusters have room for `used` bytes.
fn enough(used: u64, mut size: u64) -> u64 {
    loop {
        size += SECTOR;
        let missing = Layout::new(size).map_or(0, |layout| used.saturating_sub(layout.room()));
        if missing == 0 {
            return size;
        }
        size += missing;
    }
}

fn label(text: &str) -> Result<[u8; 11]> {
    let mut label = [b' '; 11];
    let good = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "-_ ".contains(c);
    ensure!((1..=11).contains(&text.len()) && text.chars().all(good), "`{text}` is not a label for a FAT volume");
    label[..text.len()].copy_from_slice(text.as_bytes());
    Ok(label)
}

/// A directory to be written.
#[derive(Debug, Default)]
struct Folder<'d> {
    folders: BTreeMap<String, Folder<'d>>,
    files: BTreeMap<String, &'d Data>,
}

impl<'d> Folder<'d> {
    fn add(&mut self, path: &str, data: &'d Data) -> Result<()> {
        let (folder, name) = match path.split_once('/') {
            None => (None, path),
            Some((folder, rest)) => (Some(folder), rest),
        };
        match folder {
            Some(folder) => {
                ensure!(!self.files.contains_key(folder), "`{folder}` is both a file and a folder of the FAT volume");
                self.folders.entry(folder.to_owned()).or_default().add(name, data)
            }
            None => {
                ensure!(!self.folders.contains_key(name), "`{name}` is both a file and a folder of the FAT volume");
                self.files.insert(name.to_owned(), data);
                Ok(())
            }
        }
    }
}

/// The measures of a volume.
#[derive(Debug)]
struct Layout {
    fat32: bool,
    sectors: u64,
    reserved: u64,
    table: u64,
    root: u64,
    cluster_sectors: u64,
    clusters: u64,
}

impl Layout {
    fn new(size: u64) -> Option<Layout> {
        let sectors = (size / SECTOR).min(u64::from(u32::MAX));
        let mut sizes = (0..=LARGEST_CLUSTER.ilog2()).map(|bits| 1 << bits);
        let fat32 = |layout: &Layout| layout.clusters >= FAT32_CLUSTERS + MARGIN;
        let fat16 = |layout: &Layout| (FAT16_CLUSTERS + MARGIN..FAT32_CLUSTERS - MARGIN).contains(&layout.clusters);
        sizes
            .clone()
            .rev()
            .find_map(|size| Layout::with(true, sectors, size).filter(fat32))
            .or_else(|| sizes.find_map(|size| Layout::with(false, sectors, size).filter(fat16)))
    }

    fn with(fat32: bool, sectors: u64, cluster_sectors: u64) -> Option<Layout> {
        let (width, reserved, root) = if fat32 { (4, 32, 0) } else { (2, 1, ROOT_ENTRIES * ENTRY as u64 / SECTOR) };
        let clusters =
            |table: u64| sectors.checked_sub(reserved + root + TABLES * table).map(|left| left / cluster_sectors);
        let mut table = 1;
        loop {
            let needed = ((clusters(table)? + 2) * width).div_ceil(SECTOR);
            if needed <= table {
                return Some(Layout {
                    fat32,
                    sectors,
                    reserved,
                    table,
                    root,
                    cluster_sectors,
                    clusters: clusters(table)?,
                });
            }
            table = needed;
        }
    }

    fn cluster_size(&self) -> u64 {
        self.cluster_sectors * SECTOR
    }

    /// Bytes in all clusters.
    fn room(&self) -> u64 {
        self.clusters * self.cluster_size()
    }

    /// Where a cluster begins, in bytes.
    fn offset(&self, cluster: u32) -> u64 {
        let first = self.reserved + TABLES * self.table + self.root;
        (first + (u64::from(cluster) - 2) * self.cluster_sectors) * SECTOR
    }

    /// Marks the last cluster of a file, and a volume that was left in order.
    fn end(&self) -> u32 {
        if self.fat32 { 0x0fff_ffff } else { 0xffff }
    }

    fn media_entry(&self) -> u32 {
        self.end() & !0xff | u32::from(MEDIA)
    }
}

struct Volume {
    layout: Layout,
    map: Map,
    /// The table: the next cluster of each.
    clusters: Vec<u32>,
    stamp: Stamp,
}

impl Volume {
    /// The entries of a folder, whose contents are placed on the way. `own` is its first cluster.
    fn contents(&mut self, folder: &Folder<'_>, own: u32) -> Result<Vec<[u8; ENTRY]>> {
        let mut names = Names::default();
        let mut entries = Vec::new();
        for (name, inner) in &folder.folders {
            let name = names.add(name)?;
            let first = self.directory(inner, own)?;
            entries.extend(name.long);
            entries.push(self.entry(name.short, DIRECTORY, first, 0));
        }
        for (name, data) in &folder.files {
            let name = names.add(name)?;
            let Ok(size) = u32::try_from(data.size()) else {
                bail!(UserError::usage("a file of 4 GiB or more does not fit on a FAT volume"));
            };
            let first = self.place((*data).clone());
            entries.extend(name.long);
            entries.push(self.entry(name.short, ARCHIVE, first, size));
        }
        Ok(entries)
    }

    /// Places a folder and all in it; returns its first cluster.
    fn directory(&mut self, folder: &Folder<'_>, parent: u32) -> Result<u32> {
        // Its own number is known before its contents are: they come behind it.
        let slots = slots(folder)? + 2;
        let first = self.take((slots * ENTRY) as u64);
        let mut entries =
            vec![self.entry(*b".          ", DIRECTORY, first, 0), self.entry(*b"..         ", DIRECTORY, parent, 0)];
        entries.extend(self.contents(folder, first)?);
        self.map.put(self.layout.offset(first), Data::Bytes(entries.concat()));
        Ok(first)
    }

    /// Places the root directory; returns its first cluster, if it has one.
    fn root(&mut self, entries: &[[u8; ENTRY]]) -> Result<u32> {
        let bytes = entries.concat();
        if self.layout.fat32 {
            return Ok(self.place(Data::Bytes(bytes)));
        }
        ensure!(
            entries.len() as u64 <= ROOT_ENTRIES,
            "the root of a FAT16 volume holds {ROOT_ENTRIES} entries at most"
        );
        let at = (self.layout.reserved + TABLES * self.layout.table) * SECTOR;
        self.map.put(at, Data::Bytes(bytes));
        Ok(0)
    }

    /// Places data; returns its first cluster, which is zero if there is no data.
    fn place(&mut self, data: Data) -> u32 {
        if data.size() == 0 {
            return 0;
        }
        let first = self.take(data.size());
        self.map.put(self.layout.offset(first), data);
        first
    }

    /// Takes clusters for `size` bytes, at least one; returns the first.
    fn take(&mut self, size: u64) -> u32 {
        let first = self.clusters.len() as u32;
        let count = size.div_ceil(self.layout.cluster_size()) as u32;
        self.clusters.extend(first + 1..first + count);
        self.clusters.push(self.layout.end());
        first
    }

    fn entry(&self, name: [u8; 11], attributes: u8, first: u32, size: u32) -> [u8; ENTRY] {
        let Stamp { date, time } = self.stamp;
        let mut entry = [0; ENTRY];
        entry.put(0, name);
        entry[11] = attributes;
        // Creation, last access (a day), last write.
        for at in [14, 22] {
            entry.put(at, time.to_le_bytes());
        }
        for at in [16, 18, 24] {
            entry.put(at, date.to_le_bytes());
        }
        entry.put(20, ((first >> 16) as u16).to_le_bytes());
        entry.put(26, (first as u16).to_le_bytes());
        entry.put(28, size.to_le_bytes());
        entry
    }

    fn tables(&mut self) {
        let table: Vec<u8> = match self.layout.fat32 {
            true => self.clusters.iter().flat_map(|next| next.to_le_bytes()).collect(),
            false => self.clusters.iter().flat_map(|next| (*next as u16).to_le_bytes()).collect(),
        };
        for copy in 0..TABLES {
            let at = (self.layout.reserved + copy * self.layout.table) * SECTOR;
            self.map.put(at, Data::Bytes(table.clone()));
        }
    }

    /// Puts the boot sector, and on FAT32 the sector of free clusters and copies of both.
    fn front(&mut self, root: u32, label: [u8; 11], options: &Options) {
        let boot = self.boot_sector(root, label, options);
        self.map.put(0, Data::Bytes(boot.clone()));
        if !self.layout.fat32 {
            return;
        }
        let mut free = vec![0; SECTOR as usize];
        free.put(0, *b"RRaA");
        free.put(484, *b"rrAa");
        let used = self.clusters.len() as u64 - 2;
        free.put(488, ((self.layout.clusters - used) as u32).to_le_bytes());
        free.put(492, (self.clusters.len() as u32).to_le_bytes());
        free.put(510, [0x55, 0xaa]);
        self.map.put(6 * SECTOR, Data::Bytes(boot));
        self.map.put(SECTOR, Data::Bytes(free.clone()));
        self.map.put(7 * SECTOR, Data::Bytes(free));
    }

    fn boot_sector(&self, root: u32, label: [u8; 11], options: &Options) -> Vec<u8> {
        let layout = &self.layout;
        let mut sector = vec![0; SECTOR as usize];
        sector.put(3, *b"MSWIN4.1");
        sector.put(11, (SECTOR as u16).to_le_bytes());
        sector[13] = layout.cluster_sectors as u8;
        sector.put(14, (layout.reserved as u16).to_le_bytes());
        sector[16] = TABLES as u8;
        sector[21] = MEDIA;
        // Sectors in a track and heads: unused since disks have numbered sectors.
        sector.put(24, 63u16.to_le_bytes());
        sector.put(26, 255u16.to_le_bytes());
        sector.put(28, (options.first_sector as u32).to_le_bytes());
        match u16::try_from(layout.sectors) {
            Ok(sectors) if !layout.fat32 => sector.put(19, sectors.to_le_bytes()),
            _ => sector.put(32, (layout.sectors as u32).to_le_bytes()),
        }
        let extended = if layout.fat32 {
            sector.put(36, (layout.table as u32).to_le_bytes());
            sector.put(44, root.to_le_bytes());
            sector.put(48, 1u16.to_le_bytes());
            sector.put(50, 6u16.to_le_bytes());
            64
        } else {
            sector.put(17, (ROOT_ENTRIES as u16).to_le_bytes());
            sector.put(22, (layout.table as u16).to_le_bytes());
            36
        };
        sector[extended] = 0x80;
        sector[extended + 2] = 0x29;
        sector.put(extended + 3, options.serial.to_le_bytes());
        sector.put(extended + 7, label);
        sector.put(extended + 18, if layout.fat32 { *b"FAT32   " } else { *b"FAT16   " });
        // Whoever boots from here is sent on to the next disk: jump, int 0x18.
        let code = extended + 26;
        sector.put(0, [0xeb, code as u8 - 2, 0x90]);
        sector.put(code, [0xcd, 0x18]);
        sector.put(510, [0x55, 0xaa]);
        sector
    }
}

/// The entries that a folder's names take.
fn slots(folder: &Folder<'_>) -> Result<usize> {
    let mut names = Names::default();
    folder.folders.keys().chain(folder.files.keys()).map(|name| Ok(names.add(name)?.long.len() + 1)).sum()
}

/// A time as FAT has it: days and two-second steps, from 1980 to 2107.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    date: u16,
    time: u16,
}

impl Stamp {
    fn of(epoch: i64) -> Stamp {
        const FIRST: i64 = 315_532_800;
        const LAST: i64 = 4_354_819_198;
        let epoch = epoch.clamp(FIRST, LAST);
        let (mut days, second) = (epoch / 86400, epoch % 86400);
        let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let mut year = 1970;
        while days >= 365 + i64::from(leap(year)) {
            days -= 365 + i64::from(leap(year));
            year += 1;
        }
        let february = 28 + i64::from(leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Stamp {
            date: ((year - 1980) << 9 | month << 5 | (days + 1)) as u16,
            time: ((second / 3600) << 11 | (second / 60 % 60) << 5 | (second % 60 / 2)) as u16,
        }
    }
}

#[cfg(test)]
mod tests;
