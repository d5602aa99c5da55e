//! Trees and layers.

use crate::model::{Digest, GuestPath};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    ops::Bound,
};

/// The bytes of a regular file: what they are, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// The store's blob that holds them.
    pub blob: Digest,
    /// Where in that blob they begin, in bytes.
    pub offset: u64,
}

/// What an entry is. `C` is what is known of a regular file's bytes: a [`Content`] for trees that are built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind<C = Content> {
    Directory,
    /// A regular file.
    File(C),
    /// A symbolic link and its target, as written.
    Symlink(String),
    /// Another name of the regular file at a path that sorts before this one; mode, owners, time and attributes repeat
    /// that file's.
    Hardlink(GuestPath),
    /// A named pipe.
    Fifo,
}

/// The entry of a path in a tree. An image does not have device nodes and sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<C = Content> {
    /// Directory, file, link.
    pub kind: Kind<C>,
    /// The permission bits, with set-user-id, set-group-id and sticky: at most 0o7777. Always 0o777 for a symbolic link.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The time of last modification, in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name, such as `security.capability`; values are raw bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl<C> Entry<C> {
    /// A directory that root owns.
    pub fn directory(mode: u32, mtime: i64) -> Entry<C> {
        Entry { kind: Kind::Directory, mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    /// A regular file that root owns.
    pub fn file(content: C, mode: u32, mtime: i64) -> Entry<C> {
        Entry { kind: Kind::File(content), mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    /// A symbolic link that root owns.
    pub fn symlink(target: impl Into<String>, mtime: i64) -> Entry<C> {
        Entry { kind: Kind::Symlink(target.into()), mode: 0o777, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }
}

/// The whole of a guest's `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tree<C = Content> {
    /// Every path, the root included; a path's parent is always there and a directory.
    pub entries: BTreeMap<GuestPath, Entry<C>>,
}

/// What one layer does to one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change<C = Content> {
    /// The path is this now. A directory that stays a directory keeps what is in it.
    Set(Entry<C>),
    /// The path is gone, with all that was in it (an OCI whiteout).
    Remove,
}

/// The change that one step of a build makes to a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layer<C = Content> {
    /// What changes, by path.
    pub changes: BTreeMap<GuestPath, Change<C>>,
}

/// A layer that does not fit the tree below it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// Something is put where there is no directory to hold it.
    #[error("`{path}` has no parent directory: `{parent}` is {found}")]
    NoParent {
        /// What should be put.
        path: GuestPath,
        /// Where it should lie.
        parent: GuestPath,
        /// What is there instead.
        found: &'static str,
    },
    /// A hard link to a path that is not a regular file.
    #[error("`{path}` is a hard link to `{target}`, which is not a regular file")]
    DeadLink {
        /// The link.
        path: GuestPath,
        /// Where it leads.
        target: GuestPath,
    },
}

/// Without any path, not even a root.
impl<C> Default for Tree<C> {
    fn default() -> Tree<C> {
        Tree { entries: BTreeMap::new() }
    }
}

impl<C> Default for Layer<C> {
    fn default() -> Layer<C> {
        Layer { changes: BTreeMap::new() }
    }
}

/// A path at which two trees differ.
#[derive(Debug)]
pub struct Differing<'a, C = Content> {
    pub path: &'a GuestPath,
    /// Its entry in the first tree.
    pub before: Option<&'a Entry<C>>,
    /// Its entry in the second tree.
    pub after: Option<&'a Entry<C>>,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Option<&Entry<C>> {
        self.entries.get(path)
    }

    /// The content of the regular file at `path`, followed through hard links but not through symbolic ones.
    pub fn content(&self, path: &str) -> Option<&C> {
        match &self.get(path)?.kind {
            Kind::File(content) => Some(content),
            Kind::Hardlink(target) => self.content(target.as_str()),
            _ => None,
        }
    }

    /// Everything below the directory `path`, itself excluded, in order.
    pub fn below<'a>(&'a self, path: &'a GuestPath) -> impl Iterator<Item = (&'a GuestPath, &'a Entry<C>)> {
        // The names below `/a` begin with `/a/`, and `0` is the character after `/`.
        let first = format!("{}/", path.as_str().trim_end_matches('/'));
        let end = format!("{}0", path.as_str().trim_end_matches('/'));
        let range = (Bound::Included(first.as_str()), Bound::Excluded(end.as_str()));
        self.entries.range::<str, _>(range).filter(|(path, _)| path.as_str() != "/")
    }

    /// Applies a layer.
    ///
    /// # Errors
    /// [`Clash`] where the layer does not fit; the tree is then incomplete and useless.
    pub fn apply(&mut self, layer: &Layer<C>) -> Result<(), Clash> {
        for (path, change) in &layer.changes {
            match change {
                Change::Remove => self.remove(path),
                Change::Set(entry) => self.set(path, entry)?,
            }
        }
        Ok(())
    }

    /// The paths at which `after` differs, first those of `self` in order, then those of `after` alone.
    pub fn differing<'a>(&'a self, after: &'a Tree<C>) -> impl Iterator<Item = Differing<'a, C>> {
        let known = self.entries.iter().filter_map(|(path, entry)| {
            let other = after.entries.get(path);
            (other != Some(entry)).then_some(Differing { path, before: Some(entry), after: other })
        });
        let added = after.entries.iter().filter(|(path, _)| !self.entries.contains_key(*path));
        known.chain(added.map(|(path, entry)| Differing { path, before: None, after: Some(entry) }))
    }

    /// The layer that turns `self` into `after`.
    pub fn difference(&self, after: &Tree<C>) -> Layer<C> {
        let mut changes = BTreeMap::new();
        let mut gone: Option<&GuestPath> = None;
        for differing in self.differing(after) {
            let path = differing.path;
            if let Some(entry) = differing.after {
                changes.insert(path.clone(), Change::Set(entry.clone()));
                continue;
            }
            // What was in a directory goes with it, and what was in one that is now something else is not there at all.
            let replaced = path
                .parent()
                .is_some_and(|parent| after.entries.get(&parent).is_some_and(|entry| entry.kind != Kind::Directory));
            if !gone.is_some_and(|gone| path.is_within(gone)) && !replaced {
                changes.insert(path.clone(), Change::Remove);
                gone = Some(path);
            }
        }
        // A name goes with its file: the entry says only which file that is.
        for (path, entry) in &after.entries {
            if let Kind::Hardlink(target) = &entry.kind
                && matches!(changes.get(target), Some(Change::Set(_)))
            {
                changes.insert(path.clone(), Change::Set(entry.clone()));
            }
        }
        Layer { changes }
    }

    fn remove(&mut self, path: &GuestPath) {
        let below: Vec<GuestPath> = self.below(path).map(|(path, _)| path.clone()).collect();
        for path in below.iter().chain([path]) {
            self.entries.remove(path);
        }
    }

    fn set(&mut self, path: &GuestPath, entry: &Entry<C>) -> Result<(), Clash> {
        if let Some(parent) = path.parent() {
            let found = match self.entries.get(&parent).map(|entry| &entry.kind) {
                Some(Kind::Directory) => None,
                Some(Kind::Symlink(_)) => Some("a symbolic link"),
                Some(_) => Some("not a directory"),
                None => Some("not there"),
            };
            if let Some(found) = found {
                return Err(Clash::NoParent { path: path.clone(), parent, found });
            }
        }
        if let Kind::Hardlink(target) = &entry.kind
            && !matches!(self.entries.get(target).map(|entry| &entry.kind), Some(Kind::File(_)))
        {
            return Err(Clash::DeadLink { path: path.clone(), target: target.clone() });
        }
        if entry.kind != Kind::Directory {
            self.remove(path);
        }
        self.entries.insert(path.clone(), entry.clone());
        Ok(())
    }
}

impl Tree {
    /// The canonical text: one line per path with kind, mode, owners, time, and size and digest or target.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for (path, entry) in &self.entries {
            let _ = writeln!(text, "{path} {entry}");
        }
        text
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Directory => 'd',
            Kind::File(_) => 'f',
            Kind::Symlink(_) => 'l',
            Kind::Hardlink(_) => 'h',
            Kind::Fifo => 'p',
        };
        write!(f, "{kind} {:04o} {}:{} {}", self.mode, self.uid, self.gid, self.mtime)?;
        match &self.kind {
            Kind::File(content) => write!(f, " {} {}", content.size, content.digest)?,
            Kind::Symlink(target) => write!(f, " -> {target}")?,
            Kind::Hardlink(target) => write!(f, " => {target}")?,
            Kind::Directory | Kind::Fifo => {}
        }
        for (name, value) in &self.xattrs {
            write!(f, " {name}=")?;
            value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        let mut tree = Tree::default();
        tree.entries.insert(GuestPath::root(), Entry::directory(0o755, 0));
        for (at, entry) in entries {
            tree.entries.insert(path(at), entry.clone());
        }
        tree
    }

    fn directory() -> Entry {
        Entry::directory(0o755, 1)
    }

    fn file(text: &str) -> Entry {
        let digest = Digest::of(text);
        Entry::file(Content { digest, size: text.len() as u64, blob: digest, offset: 0 }, 0o644, 1)
    }

    #[test]
    fn the_difference_of_two_trees_turns_one_into_the_other() {
        let before = tree(&[
            ("/a", directory()),
            ("/a/gone", directory()),
            ("/a/gone/deep", file("x")),
            ("/a/kept", file("k")),
            ("/a-b", file("sorts between /a and /a/kept")),
            ("/becomes-file", directory()),
            ("/becomes-file/inner", file("i")),
            ("/becomes-directory", file("f")),
        ]);
        let after = tree(&[
            ("/a", directory()),
            ("/a/kept", file("changed")),
            ("/a-b", file("sorts between /a and /a/kept")),
            ("/becomes-file", file("now")),
            ("/becomes-directory", directory()),
            ("/becomes-directory/inner", file("i")),
            ("/link", Entry::symlink("a", 1)),
        ]);
        let layer = before.difference(&after);
        assert_eq!(
            layer
                .changes
                .iter()
                .filter(|(_, change)| **change == Change::Remove)
                .map(|(p, _)| p.as_str())
                .collect::<Vec<_>>(),
            ["/a/gone"],
            "one whiteout removes a whole directory"
        );
        assert!(!layer.changes.contains_key("/a-b"));
        let mut built = before;
        built.apply(&layer).unwrap();
        assert_eq!(built, after);
    }

    #[test]
    fn all_names_of_a_changed_file_are_in_the_difference() {
        let link = || Entry { kind: Kind::Hardlink(path("/a")), ..file("") };
        let before = tree(&[("/a", file("old")), ("/b", link()), ("/c", file("c"))]);
        let after = tree(&[("/a", file("new")), ("/b", link()), ("/c", file("c"))]);
        let layer = before.difference(&after);
        assert_eq!(layer.changes.keys().map(GuestPath::as_str).collect::<Vec<_>>(), ["/a", "/b"]);
    }

    #[test]
    fn a_layer_puts_nothing_through_a_symbolic_link() {
        let mut tree = tree(&[("/lib", Entry::symlink("usr/lib", 1))]);
        let layer = Layer { changes: [(path("/lib/evil"), Change::Set(file("e")))].into() };
        assert_eq!(
            tree.apply(&layer).unwrap_err().to_string(),
            "`/lib/evil` has no parent directory: `/lib` is a symbolic link"
        );
    }

    #[test]
    fn a_dump_has_one_line_per_path() {
        let mut ping = file("ping");
        ping.mode = 0o4755;
        ping.xattrs.insert("security.capability".into(), vec![1, 0xff]);
        let tree = tree(&[("/ping", ping), ("/l", Entry::symlink("ping", 2))]);
        insta::assert_snapshot!(tree.dump(), @r"
        / d 0755 0:0 0
        /l l 0777 0:0 2 -> ping
        /ping f 4755 0:0 1 4 sha256:758d61f26a44448384e5c4468a0dcb7a2abe456067b0f7b505bc28b9411fe931 security.capability=01ff
        ");
    }

    #[test]
    fn below_lists_a_directory_and_not_its_neighbours() {
        let tree = tree(&[("/a", directory()), ("/a-b", file("")), ("/a/x", file("")), ("/b", file(""))]);
        assert_eq!(tree.below(&path("/a")).map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["/a/x"]);
        assert_eq!(tree.below(&GuestPath::root()).count(), 4);
    }
}
