//! Reads what is in an image, whoever made it, without mounting it or running any of it.

mod difference;
mod disk;
mod oci;

pub use difference::{Change, Difference};

use crate::{
    debian::deb822,
    error::UserError,
    model::{Digest, GuestPath, MANIFEST_PATH},
    rootfs::{Entry, Kind, Tree},
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::{collections::BTreeMap, fs::File, io::Seek as _, path::Path};

/// Files whose contents describe an image.
const TELLING: [&str; 4] = [STATUS, MANIFEST_PATH, GRUB, FSTAB];
/// dpkg's database.
const STATUS: &str = "/var/lib/dpkg/status";
const GRUB: &str = "/boot/grub/grub.cfg";
const FSTAB: &str = "/etc/fstab";

/// An image's summary.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// `raw`, `qcow2`, `oci` or `oci-layout`.
    pub format: &'static str,
    /// The file's size in bytes; all blobs of a layout.
    pub file_size: u64,
    /// The SHA-256 of the file; of the manifest of a layout.
    pub sha256: Digest,
    /// The disk's size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// The disk's partitions.
    pub partitions: Vec<Partition>,
    /// The container image's layers: the digest of each blob.
    pub layers: Vec<Digest>,
    /// How it boots, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Installed packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// Overlays of the recipe; empty if the image does not list them.
    pub overlays: Vec<String>,
    /// Paths in the root file system.
    pub paths: usize,
    /// Bytes in its regular files.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    pub number: u32,
    pub name: String,
    /// What it is for: `bios`, `esp`, `root`, or the identifier of its type.
    pub kind: String,
    /// Its identifier.
    pub id: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its file system and that one's identifier: `ext4 UUID`, `vfat 1234-ABCD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
}

/// How an image boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Boot {
    pub kernels: Vec<String>,
    /// What GRUB's menu starts first, with all arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// `/etc/fstab`.
    pub mounts: Vec<String>,
}

/// What is known of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundContent {
    /// A regular file's.
    Bytes {
        /// Their number.
        size: u64,
        /// Their SHA-256, where it was requested.
        sha256: Option<Digest>,
    },
    /// A device node or socket has none.
    Special,
}

/// The root file system of an image. A hard link is a file like its other names; times and extended attributes are not
/// read.
pub type FoundTree = Tree<FoundContent>;

/// The entry of a path in an image.
pub type FoundEntry = Entry<FoundContent>;

/// An image that was read.
#[derive(Debug)]
pub struct Image {
    pub summary: Summary,
    /// Its root file system; without a path if it has none.
    pub tree: FoundTree,
}

/// What a reader of one format finds.
#[derive(Debug, Default)]
struct Found {
    disk_size: Option<u64>,
    partitions: Vec<Partition>,
    layers: Vec<Digest>,
    tree: FoundTree,
    /// The bytes of the [`TELLING`] files, by their digest.
    telling: BTreeMap<Digest, Vec<u8>>,
}

impl Found {
    /// The text of one of the [`TELLING`] files.
    fn text(&self, path: &str) -> Option<String> {
        let FoundContent::Bytes { sha256: Some(digest), .. } = self.tree.content(path)? else { return None };
        self.telling.get(digest).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

impl Image {
    /// Reads the image at `path`; with `digests`, every file of it too.
    ///
    /// # Errors
    /// A wrong request when there is no image that is known here; failed work when it is damaged.
    pub fn open(path: &Path, digests: bool) -> Result<Image> {
        let reading = || format!("reading {}", path.display());
        if !path.exists() {
            return Err(UserError::usage(format!("there is no image {}", path.display())).into());
        }
        let (format, found, sha256, file_size) = if path.is_dir() {
            let (found, manifest, size) = oci::read(&oci::Blobs::Folder(path.to_owned())).with_context(reading)?;
            ("oci-layout", found, manifest, size)
        } else {
            let mut file = File::open(path).with_context(reading)?;
            let size = file.metadata().with_context(reading)?.len();
            let (format, found) = match oci::Blobs::of_archive(&file).with_context(reading)? {
                Some(blobs) => ("oci", oci::read(&blobs).with_context(reading)?.0),
                None => disk::read(path, digests).with_context(reading)?,
            };
            // Looking for an archive's table has moved on in the file.
            file.rewind().with_context(reading)?;
            (format, found, Digest::of_reader(file).with_context(reading)?, size)
        };
        let summary = Summary {
            format,
            file_size,
            sha256,
            disk_size: found.disk_size,
            boot: boot(&found),
            packages: found.text(STATUS).map(|text| packages(&text)).unwrap_or_default(),
            overlays: found.text(MANIFEST_PATH).map(|text| overlays(&text)).transpose()?.unwrap_or_default(),
            paths: found.tree.below(&GuestPath::root()).count(),
            bytes: found.tree.entries.values().map(bytes).sum(),
            partitions: found.partitions,
            layers: found.layers,
        };
        Ok(Image { summary, tree: found.tree })
    }
}

/// The number of bytes of a regular file, else 0.
fn bytes(entry: &FoundEntry) -> u64 {
    match entry.kind {
        Kind::File(FoundContent::Bytes { size, .. }) => size,
        _ => 0,
    }
}

fn boot(found: &Found) -> Option<Boot> {
    let paths = found.tree.entries.keys();
    let kernels: Vec<String> =
        paths.filter_map(|path| Some(path.as_str().strip_prefix("/boot/vmlinuz-")?.to_owned())).collect();
    if kernels.is_empty() {
        return None;
    }
    let first = |text: String| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .find_map(|line| line.strip_prefix("linux ").map(str::to_owned))
    };
    let lines = |text: String| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let (command, mounts) = (found.text(GRUB).and_then(first), found.text(FSTAB).map(lines).unwrap_or_default());
    Some(Boot { kernels, command, mounts })
}

/// The installed packages of dpkg's database, by name.
fn packages(status: &str) -> BTreeMap<String, String> {
    let mut packages = BTreeMap::new();
    for paragraph in deb822::paragraphs(status) {
        let field = |name: &str| paragraph.get(name).unwrap_or_default().to_owned();
        if field("Status").ends_with(" installed") {
            packages.insert(field("Package"), field("Version"));
        }
    }
    packages
}

fn overlays(manifest: &str) -> Result<Vec<String>> {
    let manifest: crate::model::Manifest = serde_json::from_str(manifest).context("reading the image's manifest")?;
    Ok(manifest.overlays.into_iter().map(|component| component.name).collect())
}
