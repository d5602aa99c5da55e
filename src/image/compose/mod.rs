//! Makes layers of overlays.
//!
//! A layer has the overlay's own entries, and with them every directory above one: a new one is 0755 and root's, one
//! that is there is repeated with its own metadata, because engines give a directory that a layer leaves out a mode of
//! their own making. Names of owners are those of the tree below. What `systemctl` would do to a running machine's units
//! is done here with links (see [`units`]).
//!
//! Equal trees and overlays give equal layers; the store remembers each.

mod accounts;
mod overlay_view;
pub mod units;

pub use overlay_view::OverlayView;

use crate::{
    error::UserError,
    model::{Digest, GuestPath},
    rootfs::{
        Change, Content, Entry, Kind, Layer, Tree,
        tar::{LayerWriter, StoredLayer},
    },
    store::Store,
};
use accounts::Accounts;
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

/// Raised whenever the same changes give another layer than before.
const FORMAT: u32 = 1;

/// What one overlay does to the image.
#[derive(Debug, Clone, Default)]
pub struct OverlayFiles {
    /// The overlay's name, for errors.
    pub name: String,
    /// What the overlay puts at each path.
    pub places: BTreeMap<GuestPath, Place>,
    /// Units that start at every boot, as `systemctl enable` takes them.
    pub enable: Vec<String>,
    /// Units that do not start by themselves, as `systemctl disable` takes them.
    pub disable: Vec<String>,
    /// Units that nothing may start, as `systemctl mask` takes them.
    pub mask: Vec<String>,
}

/// What an overlay puts at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A regular file.
    File {
        /// What is in it.
        bytes: Bytes,
        /// Whose it is.
        owner: Owner,
        /// The permission bits, at most 0o7777.
        mode: u32,
    },
    /// A directory; what is in it stays.
    Directory {
        /// Whose it is.
        owner: Owner,
        /// The permission bits, at most 0o7777.
        mode: u32,
    },
    /// A symbolic link with this target.
    Link(String),
    /// Nothing: what is there goes, with all that is in it.
    Remove,
}

/// The names of an owner and a group in the image, or their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

impl Owner {
    /// `root` and `root`.
    pub fn root() -> Owner {
        Owner { user: "root".to_owned(), group: "root".to_owned() }
    }
}

/// Where the bytes of a file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// They are these.
    Here(Vec<u8>),
    /// A file on this machine, whose bytes are known already.
    At {
        path: PathBuf,
        /// The SHA-256 of its bytes.
        digest: Digest,
        /// Their number.
        size: u64,
    },
}

/// The result of composing an overlay.
#[derive(Debug, Clone)]
pub struct Composed {
    /// Its layer in the store.
    pub layer: StoredLayer,
    /// Files and links of the tree below that were replaced or removed; an image's description should list them.
    pub overridden: Vec<GuestPath>,
}

/// Puts an overlay on top of the tree `below`, which is then the tree with it. New entries are dated `epoch`, in seconds
/// since 1970. `None` if the overlay changes nothing.
///
/// # Errors
/// When an entry does not fit the tree, an owner or unit is not there, a source file is not what it was, or the store
/// cannot be written; `below` is then as it was.
pub fn compose(store: &Store, below: &mut Tree, overlay: &OverlayFiles, epoch: i64) -> Result<Option<Composed>> {
    let places = with_units(store, below, overlay)?;
    let (changes, overridden) = resolve(store, below, &overlay.name, &places, epoch)?;
    if changes.changes.is_empty() {
        return Ok(None);
    }
    let key = Digest::of(format!("composed-layer\n{FORMAT}\n{}", serde_json::to_string(&changes)?));
    let (layer, _) = store
        .memoise(&key, || write(store, &changes, &places))
        .with_context(|| format!("making the layer of the overlay `{}`", overlay.name))?;
    below.apply(&layer.load(store)?).with_context(|| format!("putting the overlay `{}` on top", overlay.name))?;
    Ok(Some(Composed { layer, overridden }))
}

/// The overlay's places, with the links that enable, disable and mask its units.
fn with_units(store: &Store, below: &Tree, overlay: &OverlayFiles) -> Result<BTreeMap<GuestPath, Place>> {
    let mut view = OverlayView::new(store, below, &overlay.places);
    let context = |what: &str, unit: &str| format!("the overlay `{}` {what}s the unit `{unit}`", overlay.name);
    let mut links = BTreeMap::new();
    for unit in &overlay.disable {
        let found = units::disable(&mut view, unit).with_context(|| context("disable", unit))?;
        links.extend(found.into_iter().map(|path| (path, Place::Remove)));
    }
    for unit in &overlay.enable {
        let made = units::enable(&mut view, unit).with_context(|| context("enable", unit))?;
        links.extend(made.into_iter().map(|(path, target)| (path, Place::Link(target))));
    }
    for unit in &overlay.mask {
        let (path, target) = units::mask(&view, unit).with_context(|| context("mask", unit))?;
        links.insert(path, Place::Link(target));
    }
    links.retain(|path, place| !matches!(place, Place::Link(target) if view.link(path) == Some(target)));
    if let Some(path) = links.keys().find(|path| overlay.places.contains_key(*path)) {
        let message = format!("the overlay `{}` has `{path}` itself, and as a unit's link", overlay.name);
        return Err(UserError::usage(message)
            .hint("`enable`, `disable` and `mask` make the links; leave them out")
            .into());
    }
    Ok(overlay.places.clone().into_iter().chain(links).collect())
}

/// The changes to the tree, in which the files' bytes are known but do not lie anywhere yet, and the paths that they
/// override.
fn resolve(
    store: &Store,
    below: &Tree,
    overlay: &str,
    places: &BTreeMap<GuestPath, Place>,
    epoch: i64,
) -> Result<(Layer, Vec<GuestPath>)> {
    let accounts = Accounts::read(&mut OverlayView::new(store, below, places))?;
    let mut resolver = Resolver { below, overlay, places, epoch, changes: Layer::default() };
    let mut overridden = Vec::new();
    for (path, place) in places {
        resolver.parents(path)?;
        let change = resolver.change(path, place, &accounts)?;
        if below.get(path.as_str()).is_some_and(|entry| entry.kind != Kind::Directory || change == Change::Remove) {
            overridden.push(path.clone());
        }
        resolver.changes.changes.insert(path.clone(), change);
    }
    resolver.other_names_stay()?;
    Ok((resolver.changes, overridden))
}

struct Resolver<'a> {
    below: &'a Tree,
    overlay: &'a str,
    places: &'a BTreeMap<GuestPath, Place>,
    epoch: i64,
    changes: Layer,
}

impl Resolver<'_> {
    /// Adds the directories above `path`, unless the overlay has them itself.
    fn parents(&mut self, path: &GuestPath) -> Result<()> {
        let above: Vec<GuestPath> = std::iter::successors(path.parent(), GuestPath::parent).collect();
        for directory in above.into_iter().rev().filter(|directory| directory.as_str() != "/") {
            let entry = match (self.places.get(&directory), self.below.get(directory.as_str())) {
                (Some(Place::Directory { .. }), _) => continue,
                (Some(_), _) => {
                    return Err(self
                        .error(format!("has `{path}` in `{directory}`, which it does not make a directory"))
                        .into());
                }
                (None, None) => Entry::directory(0o755, self.epoch),
                (None, Some(entry)) => match &entry.kind {
                    Kind::Directory => entry.clone(),
                    Kind::Symlink(_) => return Err(self.through_link(path, &directory).into()),
                    _ => return Err(self.error(format!("has `{path}`, but `{directory}` is a file")).into()),
                },
            };
            self.changes.changes.entry(directory).or_insert(Change::Set(entry));
        }
        Ok(())
    }

    fn change(&self, path: &GuestPath, place: &Place, accounts: &Accounts) -> Result<Change> {
        let there = self.below.get(path.as_str()).map(|entry| &entry.kind);
        let entry = |kind, mode, owner: &Owner| {
            let (uid, gid) = accounts.numbers(self.overlay, path, owner)?;
            let entry = Entry { kind, mode, uid, gid, mtime: self.epoch, xattrs: BTreeMap::new() };
            Ok::<_, UserError>(Change::Set(entry))
        };
        Ok(match (place, there) {
            (Place::Remove, None) => {
                return Err(self.error(format!("removes `{path}`, which the image does not have")).into());
            }
            (Place::Remove, Some(_)) => Change::Remove,
            (Place::Directory { .. }, Some(Kind::Symlink(_))) => return Err(self.through_link(path, path).into()),
            (Place::Directory { owner, mode }, None | Some(Kind::Directory)) => entry(Kind::Directory, *mode, owner)?,
            (Place::Directory { .. }, Some(_)) => {
                return Err(self.error(format!("makes `{path}` a directory, but it is a file")).into());
            }
            (Place::File { .. } | Place::Link(_), Some(Kind::Directory)) => {
                return Err(self.error(format!("makes `{path}` a file, but it is a directory")).into());
            }
            (Place::File { bytes, owner, mode }, _) => {
                let (digest, size) = bytes.named();
                entry(Kind::File(Content { digest, size, blob: Digest::ZEROS, offset: 0 }), *mode, owner)?
            }
            (Place::Link(target), _) => Change::Set(Entry::symlink(target, self.epoch)),
        })
    }

    /// A file with several names keeps its bytes under the first; the others would change with it.
    fn other_names_stay(&self) -> Result<()> {
        let gone: BTreeSet<&GuestPath> = self
            .changes
            .changes
            .iter()
            .filter(|(_, change)| !matches!(change, Change::Set(Entry { kind: Kind::Directory, .. })))
            .map(|(path, _)| path)
            .collect();
        let is_gone = |path: &GuestPath| {
            gone.contains(path)
                || std::iter::successors(path.parent(), GuestPath::parent)
                    .any(|above| self.changes.changes.get(&above) == Some(&Change::Remove))
        };
        for (path, entry) in &self.below.entries {
            if let Kind::Hardlink(first) = &entry.kind
                && is_gone(first)
                && !is_gone(path)
            {
                let message = format!("changes `{first}`, which has the other name `{path}`");
                return Err(self.error(message).hint(format!("change or remove `{path}`, too")).into());
            }
        }
        Ok(())
    }

    fn error(&self, what: String) -> UserError {
        UserError::usage(format!("the overlay `{}` {what}", self.overlay))
    }

    fn through_link(&self, path: &GuestPath, link: &GuestPath) -> UserError {
        let problem = self.error(format!("has `{path}`, but `{link}` is a symbolic link in the image"));
        match overlay_view::real_path(self.below, path) {
            Some(real) => problem.hint(format!("the real path is `{real}`")),
            None => problem.hint("the link's target does not exist; remove the link, or place the file elsewhere"),
        }
    }
}

impl Bytes {
    fn named(&self) -> (Digest, u64) {
        match self {
            Bytes::Here(bytes) => (Digest::of(bytes), bytes.len() as u64),
            Bytes::At { digest, size, .. } => (*digest, *size),
        }
    }
}

/// Writes the layer, and sees to it that the source files are still what they were.
fn write(store: &Store, changes: &Layer, places: &BTreeMap<GuestPath, Place>) -> Result<StoredLayer> {
    let mut writer = LayerWriter::new(store)?;
    for (path, change) in &changes.changes {
        match (change, places.get(path)) {
            (Change::Remove, _) => writer.remove(path.clone())?,
            (Change::Set(entry), Some(Place::File { bytes: Bytes::Here(bytes), .. })) => {
                writer.set_file(path.clone(), entry.clone(), bytes.len() as u64, &mut bytes.as_slice())?;
            }
            (Change::Set(entry), Some(Place::File { bytes: Bytes::At { path: source, size, .. }, .. })) => {
                copy_file(&mut writer, path, entry, source, *size)?;
            }
            (Change::Set(entry), _) => writer.set(path.clone(), entry.clone())?,
        }
    }
    let (stored, written) = writer.finish()?;
    for (path, place) in places {
        if let Place::File { bytes: Bytes::At { path: source, digest, .. }, .. } = place
            && written.changes.get(path).and_then(self::digest) != Some(*digest)
        {
            return Err(changed(source).into());
        }
    }
    Ok(stored)
}

fn copy_file(writer: &mut LayerWriter, path: &GuestPath, entry: &Entry, source: &Path, size: u64) -> Result<()> {
    let mut file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let now = file.metadata().with_context(|| format!("reading {}", source.display()))?.len();
    ensure!(now == size, changed(source));
    writer
        .set_file(path.clone(), entry.clone(), size, &mut file)
        .with_context(|| format!("copying {}", source.display()))
}

fn digest(change: &Change) -> Option<Digest> {
    match change {
        Change::Set(Entry { kind: Kind::File(content), .. }) => Some(content.digest),
        _ => None,
    }
}

fn changed(source: &Path) -> UserError {
    UserError::runtime(format!("{} was changed while the image was being built", source.display())).hint("build again")
}

#[cfg(test)]
mod tests;
