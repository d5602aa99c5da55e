//! The GUID partition table (UEFI specification 2.10, chapter 5).
//!
//! ```text
//! sector 0          protective master boot record: one partition of type 0xee over the whole disk
//! sector 1          header: its own checksum, the table's, where the other header lies
//! sectors 2..34     128 entries of 128 bytes: type, identifier, first and last sector, attributes, name in UTF-16
//! …                 partitions
//! last 33 sectors   the same entries, then the other header
//! ```

use super::{
    bytes::{CRC32, Fields as _},
    map::{Data, Map},
    uuid::Uuid,
};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{Read, Seek, SeekFrom};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Sectors at each end of a disk that no partition may use, on the safe side at the front.
pub const RESERVED_SECTORS: u64 = 34;
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const TABLE_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;

/// Types of partitions (UEFI 5.3.3; Discoverable Partitions Specification; GRUB manual, "BIOS installation").
pub mod kinds {
    use super::Uuid;
    /// Where GRUB's core image lies for a BIOS to load.
    pub const BIOS_BOOT: Uuid = Uuid::of(0x21686148_6449_6e6f_744e_656564454649);
    /// The EFI system partition.
    pub const ESP: Uuid = Uuid::of(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
    /// The root file system of a 64-bit x86 machine.
    pub const ROOT_AMD64: Uuid = Uuid::of(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);
    /// The root file system of a 64-bit ARM machine.
    pub const ROOT_ARM64: Uuid = Uuid::of(0xb921b045_1df0_41c3_af44_4c6f280d3fae);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1: the slot of the table that it fills.
    pub number: u32,
    /// What it is for.
    pub kind: Uuid,
    /// Its identifier, `PARTUUID`.
    pub id: Uuid,
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// Its name: up to 36 UTF-16 units.
    pub name: String,
}

impl Partition {
    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        self.first * SECTOR
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        (self.last + 1 - self.first) * SECTOR
    }
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's identifier.
    pub disk: Uuid,
    /// The disk's size in sectors.
    pub sectors: u64,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// The last sector that a partition may use.
    pub fn last_usable(&self) -> u64 {
        self.sectors - RESERVED_SECTORS
    }

    /// The partition with this number.
    pub fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.number == number)
    }

    /// The protective master boot record, without boot code.
    pub fn protective_mbr(&self) -> [u8; SECTOR as usize] {
        let mut mbr = [0; SECTOR as usize];
        let partition = &mut mbr[446..462];
        // Cylinder, head and sector of the first sector, and the largest value that they can have.
        partition.put(0, [0x00, 0x00, 0x02, 0x00]);
        partition.put(4, [0xee, 0xff, 0xff, 0xff]);
        partition.put(8, 1u32.to_le_bytes());
        partition.put(12, u32::try_from(self.sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
        mbr.put(510, [0x55, 0xaa]);
        mbr
    }

    /// Puts both tables on the disk, but not the master boot record.
    ///
    /// # Errors
    /// When partitions do not fit the disk, the table, or each other.
    pub fn put(&self, disk: &mut Map) -> Result<()> {
        let entries = self.entries()?;
        let backup = self.sectors - 1;
        let header = |this, other, table| self.header(this, other, table, CRC32.checksum(&entries));
        disk.put(SECTOR, Data::Bytes(header(1, backup, 2)));
        disk.put(2 * SECTOR, Data::Bytes(entries.clone()));
        disk.put((backup - TABLE_SECTORS) * SECTOR, Data::Bytes(entries.clone()));
        disk.put(backup * SECTOR, Data::Bytes(header(backup, 1, backup - TABLE_SECTORS)));
        Ok(())
    }

    fn entries(&self) -> Result<Vec<u8>> {
        let mut table = vec![0; ENTRIES * ENTRY];
        let mut by_place: Vec<&Partition> = self.partitions.iter().collect();
        by_place.sort_by_key(|partition| partition.first);
        let mut free = RESERVED_SECTORS;
        for partition in by_place {
            let Partition { number, first, last, .. } = *partition;
            ensure!((1..=ENTRIES as u32).contains(&number), "there is no partition number {number}");
            ensure!(
                free <= first && first <= last && last <= self.last_usable(),
                "partition {number} cannot be on sectors {first} to {last} of a disk of {} sectors",
                self.sectors
            );
            free = last + 1;
            let entry = &mut table[(number as usize - 1) * ENTRY..][..ENTRY];
            ensure!(entry.iter().all(|byte| *byte == 0), "two partitions have the number {number}");
            entry.put(0, partition.kind.mixed_endian().0);
            entry.put(16, partition.id.mixed_endian().0);
            entry.put(32, first.to_le_bytes());
            entry.put(40, last.to_le_bytes());
            entry.put(48, partition.attributes.to_le_bytes());
            let name: Vec<u16> = partition.name.encode_utf16().collect();
            ensure!(name.len() <= 36, "the partition name `{}` is too long", partition.name);
            for (index, unit) in name.into_iter().enumerate() {
                entry.put(56 + 2 * index, unit.to_le_bytes());
            }
        }
        Ok(table)
    }

    fn header(&self, this: u64, other: u64, table: u64, checksum: u32) -> Vec<u8> {
        let mut header = vec![0; SECTOR as usize];
        header.put(0, *b"EFI PART");
        header.put(8, 0x0001_0000u32.to_le_bytes());
        header.put(12, 92u32.to_le_bytes());
        header.put(24, this.to_le_bytes());
        header.put(32, other.to_le_bytes());
        header.put(40, RESERVED_SECTORS.to_le_bytes());
        header.put(48, self.last_usable().to_le_bytes());
        header.put(56, self.disk.mixed_endian().0);
        header.put(72, table.to_le_bytes());
        header.put(80, (ENTRIES as u32).to_le_bytes());
        header.put(84, (ENTRY as u32).to_le_bytes());
        header.put(88, checksum.to_le_bytes());
        let own = CRC32.checksum(&header[..92]);
        header.put(16, own.to_le_bytes());
        header
    }

    /// Reads the primary table of a disk image, checked.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn read(disk: &mut (impl Read + Seek)) -> Result<Table> {
        let size = disk.seek(SeekFrom::End(0)).context("measuring the disk")?;
        let mut front = vec![0; (RESERVED_SECTORS * SECTOR) as usize];
        ensure!(size >= 2 * front.len() as u64, "the disk is too small for a partition table");
        disk.rewind().context("reading the partition table")?;
        disk.read_exact(&mut front).context("reading the partition table")?;
        let mut header = front[SECTOR as usize..][..92].to_vec();
        ensure!(header.starts_with(b"EFI PART"), "the disk has no GUID partition table");
        let checksum = u32::from_le_bytes(header.field(16));
        header.put(16, [0; 4]);
        let (count, entry) = (u32::from_le_bytes(header.field(80)), u32::from_le_bytes(header.field(84)));
        if CRC32.checksum(&header) != checksum || (count, entry) != (ENTRIES as u32, ENTRY as u32) {
            bail!("the header of the disk's partition table is damaged or foreign");
        }
        let entries = &front[2 * SECTOR as usize..];
        ensure!(
            CRC32.checksum(entries) == u32::from_le_bytes(header.field(88)),
            "the disk's partition table is damaged"
        );
        let sectors = size / SECTOR;
        let partitions: Vec<Partition> = entries
            .chunks(ENTRY)
            .zip(1..)
            .filter(|(entry, _)| entry[..16] != [0; 16])
            .map(|(entry, number)| Partition {
                number,
                kind: Uuid(entry.field(0)).mixed_endian(),
                id: Uuid(entry.field(16)).mixed_endian(),
                first: u64::from_le_bytes(entry.field(32)),
                last: u64::from_le_bytes(entry.field(40)),
                attributes: u64::from_le_bytes(entry.field(48)),
                name: name(&entry[56..]),
            })
            .collect();
        for Partition { number, first, last, .. } in &partitions {
            ensure!(first <= last && *last < sectors, "partition {number} is not on the disk");
        }
        Ok(Table { disk: Uuid(header.field(56)).mixed_endian(), sectors, partitions })
    }
}

fn name(field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(|unit| u16::from_le_bytes(unit.field(0))).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
