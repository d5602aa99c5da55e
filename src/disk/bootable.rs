//! A whole disk: partitions, boot loader, root file system.

use super::{
    Uuid, ext4, fat,
    gpt::{self, Partition, Table, kinds},
    grub::{self, BiosImages},
    map::{Data, Map},
};
use crate::{
    error::UserError,
    model::{Arch, Digest},
    rootfs::Tree,
};
use anyhow::{Context as _, Result};

const MIB: u64 = 1 << 20;
const ROOT: u32 = 1;
const BIOS_BOOT: u32 = 14;
const ESP: u32 = 15;
const BIOS_FIRST: u64 = 2048;
const BIOS_SECTORS: u64 = 6144;
const ESP_FIRST: u64 = 8192;
const ESP_SECTORS: u64 = 253_952;
const ROOT_FIRST: u64 = 262_144;
/// Free space on the root file system of a disk whose recipe gives no size.
const FREE_MIB: u64 = 64;
/// A size that no recipe gives is a multiple of this.
const STEP_MIB: u64 = 128;

/// The identifiers that differ between the disks of two builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub disk: Uuid,
    /// The root partition, `PARTUUID`.
    pub root_partition: Uuid,
    /// The EFI system partition.
    pub esp_partition: Uuid,
    /// The BIOS boot partition.
    pub bios_partition: Uuid,
    /// The root file system, `UUID`.
    pub root: Uuid,
    /// What the names in its directories are hashed with.
    pub hash_seed: Uuid,
    /// The serial number of the EFI system partition's file system.
    pub esp_serial: u32,
}

impl Identity {
    /// The identity of what is built from a plan with this digest.
    pub fn of(plan: &Digest) -> Identity {
        let derive = |role| Uuid::derive(plan, role);
        let [a, b, c, d, ..] = derive("esp").0;
        Identity {
            disk: derive("disk"),
            root_partition: derive("root-partition"),
            esp_partition: derive("esp-partition"),
            bios_partition: derive("bios-partition"),
            root: derive("root"),
            hash_seed: derive("hash-seed"),
            esp_serial: u32::from_be_bytes([a, b, c, d]),
        }
    }

    /// The `UUID` of the EFI system partition's file system, as `blkid` writes it.
    pub fn esp_uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.esp_serial >> 16, self.esp_serial & 0xffff)
    }

    /// `/etc/fstab`.
    pub fn fstab(&self) -> String {
        format!(
            "UUID={} / ext4 discard,errors=remount-ro,x-systemd.growfs 0 1\nUUID={} /boot/efi vfat umask=0077,nofail 0 1\n",
            self.root,
            self.esp_uuid()
        )
    }
}

/// A bootable disk in the layout of Debian's cloud images: the root partition has number 1 and lies last, so that it
/// can grow; 14 is for a BIOS, 15 for UEFI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The machine.
    pub arch: Arch,
    /// The disk's size in bytes: whole MiB.
    pub size: u64,
    /// Its identifiers.
    pub identity: Identity,
    /// When it was made, in seconds since 1970.
    pub epoch: i64,
    /// GRUB for machines with a BIOS; `None` where there are none.
    pub bios: Option<BiosImages>,
    /// The blobs of its files, those that change least first.
    pub order: Vec<Digest>,
}

impl Disk {
    /// The partitions.
    pub fn table(&self) -> Table {
        let sectors = self.size / gpt::SECTOR;
        let root_kind = match self.arch {
            Arch::Amd64 => kinds::ROOT_AMD64,
            Arch::Arm64 => kinds::ROOT_ARM64,
        };
        let Identity { disk, root_partition, esp_partition, bios_partition, .. } = self.identity;
        let partition = |number, kind, id, first, last, name: &str| Partition {
            number,
            kind,
            id,
            first,
            last,
            attributes: 0,
            name: name.to_owned(),
        };
        let root_last = ROOT_FIRST + self.root_size() / gpt::SECTOR;
        let mut partitions = vec![partition(ROOT, root_kind, root_partition, ROOT_FIRST, root_last - 1, "root")];
        if self.bios.is_some() {
            let last = BIOS_FIRST + BIOS_SECTORS - 1;
            partitions.push(partition(BIOS_BOOT, kinds::BIOS_BOOT, bios_partition, BIOS_FIRST, last, "bios"));
        }
        partitions.push(partition(ESP, kinds::ESP, esp_partition, ESP_FIRST, ESP_FIRST + ESP_SECTORS - 1, "esp"));
        Table { disk, sectors, partitions }
    }

    /// Lays out the disk with `tree` as its root file system.
    ///
    /// # Errors
    /// [`UserError`] when the disk is too small, with the size that is enough; when the tree lacks what it boots with, or
    /// holds what ext4 cannot.
    pub fn layout(&self, tree: &Tree) -> Result<Map> {
        if !self.size.is_multiple_of(MIB) {
            let message = format!("a disk of {} bytes cannot be made", self.size);
            return Err(UserError::usage(message).hint("give `disk.size` in whole MiB").into());
        }
        let root = self.root_file_system(tree)?;
        let esp = self.esp(tree)?;
        let table = self.table();
        let mut disk = Map::new(self.size);
        let mut mbr = table.protective_mbr();
        if let Some(bios) = &self.bios {
            let core = bios.embed(&mut mbr, BIOS_FIRST, BIOS_SECTORS).context("embedding GRUB for a BIOS")?;
            disk.put(BIOS_FIRST * gpt::SECTOR, Data::Bytes(core));
        }
        disk.put(0, Data::Bytes(mbr.to_vec()));
        table.put(&mut disk)?;
        disk.put_map(ESP_FIRST * gpt::SECTOR, esp);
        disk.put_map(ROOT_FIRST * gpt::SECTOR, root);
        disk.finish()
    }

    /// The size in bytes, of [`Disk::size`]'s unit, that holds `tree` and leaves some room for a machine whose disk is
    /// no larger. It comes in steps, so that few edits of the tree change where everything lies.
    ///
    /// # Errors
    /// When the tree holds what ext4 cannot.
    pub fn fitting_size(&self, tree: &Tree) -> Result<u64> {
        let needed = ext4::needed(tree, &self.root_options()).context("laying out the root file system")?;
        Ok((disk_mib(needed) + FREE_MIB).next_multiple_of(STEP_MIB) * MIB)
    }

    fn root_options(&self) -> ext4::Options {
        ext4::Options {
            size: self.root_size(),
            uuid: self.identity.root,
            hash_seed: self.identity.hash_seed,
            label: "root".to_owned(),
            epoch: self.epoch,
            order: self.order.clone(),
        }
    }

    fn root_file_system(&self, tree: &Tree) -> Result<Map> {
        ext4::format(tree, &self.root_options()).map_err(|error| match error.downcast_ref::<ext4::TooSmall>() {
            None => error.context("laying out the root file system"),
            Some(small) => {
                let needed = disk_mib(small.needed);
                let message =
                    format!("a disk of {} MiB is too small for the image: it needs {needed} MiB", self.size / MIB);
                UserError::usage(message).hint(format!("set `disk.size` to {needed}MiB or more")).into()
            }
        })
    }

    fn esp(&self, tree: &Tree) -> Result<Map> {
        let files = grub::esp_files(tree, self.arch, &self.identity)?;
        let options = fat::Options {
            size: ESP_SECTORS * gpt::SECTOR,
            label: "ESP".to_owned(),
            serial: self.identity.esp_serial,
            epoch: self.epoch,
            first_sector: ESP_FIRST,
        };
        fat::format(&files, &options).context("laying out the EFI system partition")
    }

    /// Up to the last whole MiB that the backup of the partition table leaves free.
    fn root_size(&self) -> u64 {
        (self.size / MIB).saturating_sub(1 + ROOT_FIRST * gpt::SECTOR / MIB) * MIB
    }
}

/// The whole MiB of a disk whose root file system has `root` bytes, the backup of the partition table included.
fn disk_mib(root: u64) -> u64 {
    (ROOT_FIRST * gpt::SECTOR + root).div_ceil(MIB) + 1
}
