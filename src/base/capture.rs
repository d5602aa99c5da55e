//! Makes a layer of the store from a root file system on disk.
//!
//! Nothing runs in the root any more, so its paths are read without fear of races; links are never followed.

use super::root::Root;
use crate::{
    model::{Digest, GuestPath},
    rootfs::{
        Change, Content, Entry, Kind, Layer, Tree,
        tar::{LayerWriter, StoredLayer},
    },
    store::Store,
};
use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::CStr,
    fs::{self, File, Metadata},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What identifies a file without reading it: device, inode, and the time of its last change in seconds and
/// nanoseconds.
pub type Identity = (u64, u64, i64, i64);

/// What a file is known by.
pub fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

/// The tree that the root was made from.
#[derive(Debug, Default)]
pub struct Before {
    pub tree: Tree,
    /// Its files as they were put there, by path: one that is still the same need not be read.
    pub untouched: HashMap<GuestPath, Identity>,
}

/// Which times are not kept.
#[derive(Debug, Clone, Copy)]
pub struct Clamp {
    /// What takes their place, and the latest time that is kept.
    pub epoch: i64,
    /// When the work in the root began. A later time is that of the work, not that of a file.
    pub began: i64,
}

impl Clamp {
    fn apply(self, mtime: i64) -> i64 {
        let kept = if mtime >= self.began { self.epoch } else { mtime.min(self.epoch) };
        // ext4 has times before 1970, tar has not.
        kept.max(0)
    }
}

/// Keeps the difference between `before` and the root as a layer; returns it, and the whole tree.
///
/// # Errors
/// When something in the root has no place in an image, or the store cannot be written.
pub fn capture(store: &Store, root: &Root, before: &Before, clamp: Clamp) -> Result<(StoredLayer, Tree)> {
    let found = walk(root.path())?;
    let mut after = Tree::default();
    let mut names: HashMap<(u64, u64), GuestPath> = HashMap::new();
    for (path, metadata) in &found {
        let host = host_path(root, path);
        let entry =
            entry(&host, path, metadata, before, clamp, &mut names).with_context(|| format!("capturing `{path}`"))?;
        after.entries.insert(path.clone(), entry);
    }
    let difference = before.tree.difference(&after);
    let mut writer = LayerWriter::new(store)?;
    for (path, change) in &difference.changes {
        match change {
            Change::Remove => writer.remove(path.clone())?,
            Change::Set(entry) => match &entry.kind {
                Kind::File(content) => {
                    let mut file = open(&host_path(root, path)).with_context(|| format!("opening `{path}`"))?;
                    writer.set_file(path.clone(), entry.clone(), content.size, &mut file)?;
                }
                _ => writer.set(path.clone(), entry.clone())?,
            },
        }
    }
    let (stored, layer) = writer.finish()?;
    settle(&mut after, &layer);
    Ok((stored, after))
}

/// Gives the tree's new files the contents that the layer holds.
fn settle(tree: &mut Tree, layer: &Layer) {
    for (path, change) in &layer.changes {
        if let Change::Set(entry) = change {
            tree.entries.insert(path.clone(), entry.clone());
        }
    }
}

fn host_path(root: &Root, path: &GuestPath) -> PathBuf {
    root.path().join(path.relative())
}

/// Every path of the root, in order.
fn walk(root: &Path) -> Result<BTreeMap<GuestPath, Metadata>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![GuestPath::root()];
    found.insert(GuestPath::root(), fs::symlink_metadata(root)?);
    while let Some(folder) = folders.pop() {
        let host = root.join(folder.relative());
        for entry in fs::read_dir(&host).with_context(|| format!("reading the directory `{folder}`"))? {
            let entry = entry.with_context(|| format!("reading the directory `{folder}`"))?;
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("the name {name:?} in `{folder}` is not UTF-8"))?;
            let path = folder.join(name)?;
            let metadata = entry.metadata().with_context(|| format!("looking at `{path}`"))?;
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, metadata);
        }
    }
    Ok(found)
}

fn entry(
    host: &Path,
    path: &GuestPath,
    metadata: &Metadata,
    before: &Before,
    clamp: Clamp,
    names: &mut HashMap<(u64, u64), GuestPath>,
) -> Result<Entry> {
    let kind = metadata.file_type();
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        let target = fs::read_link(host)?;
        Kind::Symlink(target.to_str().context("the link's target is not UTF-8")?.to_owned())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_file() {
        match names.get(&(metadata.dev(), metadata.ino())) {
            Some(first) => Kind::Hardlink(first.clone()),
            None => {
                if metadata.nlink() > 1 {
                    names.insert((metadata.dev(), metadata.ino()), path.clone());
                }
                Kind::File(content(host, path, metadata, before)?)
            }
        }
    } else if kind.is_socket() {
        bail!("a socket cannot be in an image; the program that listened on it has ended");
    } else {
        bail!("a device node cannot be in an image; the running system creates its own");
    };
    let mode = if kind == Kind::Fifo || !matches!(kind, Kind::Symlink(_)) { metadata.mode() & 0o7777 } else { 0o777 };
    Ok(Entry {
        kind,
        mode,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: clamp.apply(metadata.mtime()),
        xattrs: xattrs(host)?,
    })
}

/// What a file holds. Where it lies in the store is known later, unless it was there before.
fn content(host: &Path, path: &GuestPath, metadata: &Metadata, before: &Before) -> Result<Content> {
    let old = before.tree.content(path.as_str());
    if let Some(old) = old
        && before.untouched.get(path) == Some(&identity(metadata))
    {
        return Ok(*old);
    }
    let size = metadata.len();
    let unknown = Content { digest: Digest::ZEROS, size, blob: Digest::ZEROS, offset: 0 };
    let Some(old) = old.filter(|old| old.size == size) else { return Ok(unknown) };
    let digest = Digest::of_reader(open(host)?)?;
    Ok(if old.digest == digest { *old } else { unknown })
}

fn open(host: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(host)
}

/// The extended attributes that belong to the image; others are the host's, such as those of SELinux.
fn xattrs(host: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut list = Vec::with_capacity(64 << 10);
    match rustix::fs::llistxattr(host, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).context("listing its extended attributes"),
    }
    let mut xattrs = BTreeMap::new();
    for name in list.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name)?.to_str().context("an attribute's name is not UTF-8")?;
        let kept = name == CAPABILITY || name.starts_with("user.") || name.starts_with("system.posix_acl_");
        if kept {
            let mut value = Vec::with_capacity(64 << 10);
            rustix::fs::lgetxattr(host, name, rustix::buffer::spare_capacity(&mut value))
                .with_context(|| format!("reading its attribute {name}"))?;
            xattrs.insert(name.to_owned(), if name == CAPABILITY { without_root_id(value) } else { value });
        }
    }
    Ok(xattrs)
}

const CAPABILITY: &str = "security.capability";

/// File capabilities as real root sees them. Set in a user namespace, they are of revision 3 and end with the number
/// of that namespace's root (linux/capability.h, `vfs_ns_cap_data`); without it they are of revision 2.
fn without_root_id(mut value: Vec<u8>) -> Vec<u8> {
    const REVISION: usize = 3;
    if value.len() == 24 && value[REVISION] == 3 {
        value[REVISION] = 2;
        value.truncate(20);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::root::Attributes;
    use std::os::unix::fs::symlink;

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    const CLAMP: Clamp = Clamp { epoch: 1_000_000, began: 2_000_000 };

    fn own(mtime: i64) -> Attributes {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Attributes { mode: 0o644, uid, gid, mtime: Some(mtime) }
    }

    #[test]
    fn a_root_becomes_a_tree() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let host = folder.path().join("root");
        fs::create_dir_all(host.join("a")).unwrap();
        let root = Root::open(&host).unwrap();
        root.write(&path("/a/x"), own(5), &b"xx"[..]).unwrap();
        root.write(&path("/a-b"), own(3_000_000), &b"y"[..]).unwrap();
        root.hard_link(&path("/a/z"), &path("/a/x")).unwrap();
        symlink("x", host.join("a/l")).unwrap();
        root.fifo(&path("/p"), own(7)).unwrap();
        rustix::fs::setxattr(host.join("a-b"), "user.note", b"n", rustix::fs::XattrFlags::empty()).unwrap();
        let (stored, tree) = capture(&store, &root, &Before::default(), CLAMP).unwrap();

        let paths: Vec<&str> = tree.entries.keys().map(GuestPath::as_str).collect();
        assert_eq!(paths, ["/", "/a", "/a-b", "/a/l", "/a/x", "/a/z", "/p"]);
        assert_eq!(tree.get("/a/x").unwrap().mtime, 5);
        assert_eq!(tree.get("/a-b").unwrap().mtime, 1_000_000, "later than the epoch");
        assert_eq!(tree.get("/a-b").unwrap().xattrs["user.note"], b"n");
        assert_eq!(tree.get("/a/z").unwrap().kind, Kind::Hardlink(path("/a/x")));
        assert_eq!(tree.content("/a/z").unwrap().digest, Digest::of("xx"));
        let mut again = Tree::default();
        again.apply(&stored.load(&store).unwrap()).unwrap();
        assert_eq!(again, tree);
    }

    #[test]
    fn only_what_changed_is_in_a_difference() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let root = Root::open(folder.path().join("root").as_path());
        assert!(root.is_err());
        fs::create_dir(folder.path().join("root")).unwrap();
        let root = Root::open(&folder.path().join("root")).unwrap();
        for name in ["/same", "/rewritten", "/changed", "/gone"] {
            root.write(&path(name), own(1), &b"old"[..]).unwrap();
        }
        let (_, tree) = capture(&store, &root, &Before::default(), CLAMP).unwrap();
        let untouched = ["/same", "/rewritten", "/changed"]
            .map(|name| (path(name), identity(&fs::metadata(host_path(&root, &path(name))).unwrap())))
            .into();
        root.write(&path("/rewritten"), own(1), &b"old"[..]).unwrap();
        root.write(&path("/changed"), own(1), &b"new"[..]).unwrap();
        root.write(&path("/new"), own(1), &b"new"[..]).unwrap();
        root.remove(&path("/gone")).unwrap();
        let (stored, after) = capture(&store, &root, &Before { tree: tree.clone(), untouched }, CLAMP).unwrap();
        let layer = stored.load(&store).unwrap();
        assert_eq!(layer.changes.keys().map(GuestPath::as_str).collect::<Vec<_>>(), ["/changed", "/gone", "/new"]);
        let mut sum = tree;
        sum.apply(&layer).unwrap();
        assert_eq!(sum, after);
    }

    #[test]
    fn what_has_no_place_in_an_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        let root = Root::open(&folder.path().join("root")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("root/agent")).unwrap();
        let error = capture(&store, &root, &Before::default(), CLAMP).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "capturing `/agent`: a socket cannot be in an image; the program that listened on it has ended"
        );
    }

    #[test]
    fn capabilities_set_in_a_user_namespace_look_like_roots() {
        let mut revision_3 = vec![1, 0, 0, 3];
        revision_3.extend([7; 16]);
        revision_3.extend(1000_u32.to_le_bytes());
        let mut revision_2 = vec![1, 0, 0, 2];
        revision_2.extend([7; 16]);
        assert_eq!(without_root_id(revision_3), revision_2);
        assert_eq!(without_root_id(revision_2.clone()), revision_2);
    }
}
