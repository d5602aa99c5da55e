//! The differences between two images.

use super::{FoundContent, FoundEntry, Image};
use crate::rootfs::{Differing, Kind};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// The difference of one thing between two images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The second alone has it.
    Added(String),
    /// The first alone has it.
    Removed(String),
    /// Both have it: what it is in the first, and in the second.
    Changed(String, String),
}

/// Everything that differs, by what it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Packages and their versions.
    pub packages: BTreeMap<String, Change>,
    pub overlays: BTreeMap<String, Change>,
    /// The disk and its partitions, kernels, and what GRUB starts.
    pub boot: BTreeMap<String, Change>,
    /// Paths: kind, mode, owners, size, digest or target.
    pub files: BTreeMap<String, Change>,
}

impl Difference {
    /// What differs from `first` to `second`, both read with digests. A container has no disk, and none is missed.
    pub fn of(first: &Image, second: &Image) -> Difference {
        let overlays = |image: &Image| -> BTreeMap<String, String> {
            image.summary.overlays.iter().map(|name| (name.clone(), name.clone())).collect()
        };
        // A file system's own; no tree has it.
        let files = first.tree.differing(&second.tree).filter(|differing| differing.path.as_str() != "/lost+found");
        Difference {
            packages: changes(&first.summary.packages, &second.summary.packages),
            overlays: changes(&overlays(first), &overlays(second)),
            boot: changes(&boot(first), &boot(second)),
            files: files.filter_map(file_change).collect(),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, changes)| changes.is_empty())
    }

    /// Every part with its name.
    pub fn parts(&self) -> [(&'static str, &BTreeMap<String, Change>); 4] {
        [("package", &self.packages), ("overlay", &self.overlays), ("boot", &self.boot), ("file", &self.files)]
    }
}

fn changes(first: &BTreeMap<String, String>, second: &BTreeMap<String, String>) -> BTreeMap<String, Change> {
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let change = |name: &String| match (first.get(name), second.get(name)) {
        (Some(first), Some(second)) if first == second => None,
        (Some(first), Some(second)) => Some(Change::Changed(first.clone(), second.clone())),
        (Some(first), None) => Some(Change::Removed(first.clone())),
        (None, second) => second.map(|second| Change::Added(second.clone())),
    };
    names.into_iter().filter_map(|name| Some((name.clone(), change(name)?))).collect()
}

/// What decides how an image boots, by name.
fn boot(image: &Image) -> BTreeMap<String, String> {
    let summary = &image.summary;
    let mut facts = BTreeMap::new();
    facts.extend(summary.disk_size.map(|size| ("disk size".to_owned(), size.to_string())));
    for partition in &summary.partitions {
        let file_system = partition.file_system.as_deref().unwrap_or("no file system");
        let fact = format!(
            "{} at {}, {} bytes, {}, {file_system}",
            partition.kind, partition.offset, partition.size, partition.id
        );
        facts.insert(format!("partition {}", partition.number), fact);
    }
    if let Some(boot) = &summary.boot {
        facts.insert("kernels".to_owned(), boot.kernels.join(", "));
        facts.insert("command".to_owned(), boot.command.clone().unwrap_or_default());
        facts.insert("mounts".to_owned(), boot.mounts.join("; "));
    }
    facts
}

fn file_change(differing: Differing<'_, FoundContent>) -> Option<(String, Change)> {
    let change = match (differing.before.map(describe), differing.after.map(describe)) {
        (Some(before), Some(after)) => Change::Changed(before, after),
        (Some(before), None) => Change::Removed(before),
        (None, after) => Change::Added(after?),
    };
    Some((differing.path.to_string(), change))
}

/// Kind, mode, owners, size, digest or target of an entry.
fn describe(entry: &FoundEntry) -> String {
    let kind = match entry.kind {
        Kind::Directory => "directory",
        Kind::File(FoundContent::Bytes { .. }) | Kind::Hardlink(_) => "file",
        Kind::File(FoundContent::Special) => "other",
        Kind::Symlink(_) => "link",
        Kind::Fifo => "pipe",
    };
    let mut text = format!("{kind} {:04o} {}:{}", entry.mode, entry.uid, entry.gid);
    let _ = match &entry.kind {
        Kind::File(FoundContent::Bytes { size, sha256: None }) => write!(text, " {size} bytes"),
        Kind::File(FoundContent::Bytes { size, sha256: Some(digest) }) => {
            write!(text, " {size} bytes {}", &digest.hex()[..16])
        }
        Kind::Symlink(target) => write!(text, " -> {target}"),
        _ => Ok(()),
    };
    text
}
