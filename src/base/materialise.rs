//! Makes a root file system on disk from layers of the store.

use super::{
    capture::{Before, identity},
    root::{Attributes, Root},
};
use crate::{
    model::GuestPath,
    rootfs::{
        Entry, Kind, Tree,
        tar::{Contents, StoredLayer},
    },
    store::Store,
};
use anyhow::{Context as _, Result};
use std::{collections::HashMap, fs};

/// Puts the sum of `layers` into the empty `root`.
///
/// # Errors
/// When the layers do not fit each other, the store lost them, or the root cannot be written.
pub fn materialise(store: &Store, root: &Root, layers: &[StoredLayer]) -> Result<Before> {
    let mut tree = Tree::default();
    for layer in layers {
        tree.apply(&layer.load(store)?).context("summing layers")?;
    }
    let mut contents = Contents::new(store);
    for (path, entry) in &tree.entries {
        put(root, &mut contents, path, entry)?;
    }
    // Only now nothing is put into them any more.
    for (path, entry) in tree.entries.iter().rev().filter(|(_, entry)| entry.kind == Kind::Directory) {
        root.set_mtime(path, entry.mtime)?;
    }
    let mut untouched = HashMap::new();
    for (path, entry) in &tree.entries {
        if matches!(entry.kind, Kind::File(_)) {
            let host = root.path().join(path.relative());
            let metadata = fs::symlink_metadata(&host).with_context(|| format!("looking at `{path}`"))?;
            untouched.insert(path.clone(), identity(&metadata));
        }
    }
    Ok(Before { tree, untouched })
}

fn put(root: &Root, contents: &mut Contents, path: &GuestPath, entry: &Entry) -> Result<()> {
    let attributes = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: Some(entry.mtime) };
    match &entry.kind {
        Kind::Directory if path.as_str() == "/" => root.set_top(attributes)?,
        Kind::Directory => root.make_directory(path, attributes)?,
        Kind::File(content) => root.write(path, attributes, contents.open(content)?)?,
        Kind::Symlink(target) => root.symlink(path, target, attributes)?,
        Kind::Hardlink(target) => root.hard_link(path, target)?,
        Kind::Fifo => root.fifo(path, attributes)?,
    }
    if matches!(entry.kind, Kind::Directory | Kind::File(_)) {
        entry.xattrs.iter().try_for_each(|(name, value)| root.set_xattr(path, name, value))?;
    }
    Ok(())
}
