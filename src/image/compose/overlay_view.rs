//! The tree that an overlay will give, before its layer is made.

use super::{Bytes, Place};
use crate::{
    model::GuestPath,
    rootfs::{Kind, Tree, tar::Contents},
    store::Store,
};
use anyhow::{Context as _, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// The tree below with the overlay's entries on top.
#[derive(Debug)]
pub struct OverlayView<'a> {
    below: &'a Tree,
    places: &'a BTreeMap<GuestPath, Place>,
    contents: Contents,
}

impl<'a> OverlayView<'a> {
    /// Puts `places` on top of `below`, whose contents lie in `store`.
    pub fn new(store: &Store, below: &'a Tree, places: &'a BTreeMap<GuestPath, Place>) -> OverlayView<'a> {
        OverlayView { below, places, contents: Contents::new(store) }
    }

    /// The target of the symbolic link at `path`; `None` if it is not one.
    pub fn link(&self, path: &GuestPath) -> Option<&'a str> {
        match (self.places.get(path), self.below.get(path.as_str()).map(|entry| &entry.kind)) {
            (Some(Place::Link(target)), _) | (None, Some(Kind::Symlink(target))) => Some(target),
            _ => None,
        }
    }

    /// Whether there is anything at `path`.
    pub fn has(&self, path: &GuestPath) -> bool {
        match self.places.get(path) {
            Some(place) => *place != Place::Remove,
            None => self.below.entries.contains_key(path),
        }
    }

    /// The text of the regular file at `path`; `None` if it is not one. Bytes that are not UTF-8 are replaced.
    pub fn text(&mut self, path: &GuestPath) -> Result<Option<String>> {
        let bytes = match self.places.get(path) {
            Some(Place::File { bytes: Bytes::Here(bytes), .. }) => bytes.clone(),
            Some(Place::File { bytes: Bytes::At { path, .. }, .. }) => {
                fs::read(path).with_context(|| format!("reading {}", path.display()))?
            }
            Some(_) => return Ok(None),
            None => match self.below.content(path.as_str()) {
                Some(content) => {
                    self.contents.read(content).with_context(|| format!("reading `{path}` of the image"))?
                }
                None => return Ok(None),
            },
        };
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// All paths below the directory `path`.
    pub fn below(&self, path: &GuestPath) -> BTreeSet<GuestPath> {
        let places = self.places.keys().filter(|place| place.is_within(path) && *place != path);
        let all = self.below.below(path).map(|(path, _)| path).chain(places);
        all.filter(|path| self.has(path)).cloned().collect()
    }
}

/// Where `path` leads when every symbolic link above it is followed inside the tree, as the guest's kernel does; `None`
/// if a link leads to nothing, or in a circle.
pub(super) fn real_path(tree: &Tree, path: &GuestPath) -> Option<GuestPath> {
    let mut todo: Vec<String> = path.as_str().rsplit('/').map(str::to_owned).collect();
    let mut real = GuestPath::root();
    let mut followed = 0;
    while let Some(component) = todo.pop() {
        match component.as_str() {
            "" | "." => continue,
            ".." => {
                real = real.parent().unwrap_or(GuestPath::root());
                continue;
            }
            _ => {}
        }
        let next = real.join(&component).ok()?;
        match tree.get(next.as_str()).map(|entry| &entry.kind) {
            Some(Kind::Symlink(target)) => {
                followed += 1;
                // The kernel's own limit (path_resolution(7)).
                if followed > 40 {
                    return None;
                }
                if target.starts_with('/') {
                    real = GuestPath::root();
                }
                todo.extend(target.rsplit('/').map(str::to_owned));
            }
            None if followed > 0 && !todo.is_empty() => return None,
            _ => real = next,
        }
    }
    Some(real)
}
