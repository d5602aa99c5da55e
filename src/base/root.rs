//! Files of a root file system on disk, named by guest paths that never lead out of it.

use crate::model::GuestPath;
use anyhow::{Context as _, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

/// The folder that holds a root file system; links in it are followed as if it were `/`.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    folder: OwnedFd,
}

/// The owner, group and mode that a path gets.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970; `None` leaves the time at which it was written.
    pub mtime: Option<i64>,
}

impl Attributes {
    /// Of something that root owns.
    pub fn root(mode: u32) -> Attributes {
        Attributes { mode, uid: 0, gid: 0, mtime: None }
    }
}

/// A directory inside the root, and a name in it.
type Place = (OwnedFd, String);

impl Root {
    /// The root in the folder `path`.
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder =
            rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))?;
        Ok(Root { path: path.to_owned(), folder })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn resolve(&self, path: &GuestPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let relative = if path.relative().is_empty() { "." } else { path.relative() };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.folder, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory that holds `path`, links followed, and its last name, which is not followed.
    fn place(&self, path: &GuestPath) -> Result<Place> {
        let parent = path.parent().context("the root directory has no name to create")?;
        let folder = self
            .resolve(&parent, OFlags::PATH | OFlags::DIRECTORY)
            .with_context(|| format!("opening `{parent}` of the root"))?;
        Ok((folder, path.file_name().to_owned()))
    }

    /// What is at `path`, if anything; a link is not followed.
    pub fn stat(&self, path: &GuestPath) -> Result<Option<Stat>> {
        let parent = path.parent().unwrap_or_else(GuestPath::root);
        let folder = match self.resolve(&parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening `{parent}` of the root")),
        };
        let name = if path.file_name().is_empty() { "." } else { path.file_name() };
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("looking at `{path}`")),
        }
    }

    /// Whether something is at `path`.
    pub fn exists(&self, path: &GuestPath) -> Result<bool> {
        Ok(self.stat(path)?.is_some())
    }

    /// The text at `path`; `None` if nothing is there.
    pub fn read(&self, path: &GuestPath) -> Result<Option<String>> {
        let file = match self.resolve(path, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening `{path}`")),
        };
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).with_context(|| format!("reading `{path}`"))?;
        Ok(Some(text))
    }

    /// Makes a directory; one that is there keeps what it has.
    pub fn make_directory(&self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let making = || format!("making the directory `{path}`");
        let (folder, name) = self.place(path)?;
        match rustix::fs::mkdirat(&folder, &name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let made = open_at(&folder, &name, OFlags::RDONLY | OFlags::DIRECTORY).with_context(making)?;
                set_attributes(&made, attributes).with_context(making)
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).with_context(making),
        }
    }

    /// Makes the directories that lead to `path`, of root, where they are missing.
    pub fn make_parents(&self, path: &GuestPath) -> Result<()> {
        let Some(parent) = path.parent().filter(|parent| parent.as_str() != "/") else { return Ok(()) };
        if self.resolve(&parent, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
            return Ok(());
        }
        self.make_parents(&parent)?;
        self.make_directory(&parent, Attributes::root(0o755))
    }

    /// Makes a file with the bytes of `bytes`, in the place of whatever is there but a directory.
    pub fn write(&self, path: &GuestPath, attributes: Attributes, mut bytes: impl Read) -> Result<()> {
        let writing = || format!("writing `{path}`");
        let (folder, name) = self.place(path)?;
        unlink(&folder, &name).with_context(writing)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(open_at(&folder, &name, flags).with_context(writing)?);
        io::copy(&mut bytes, &mut file).and_then(|_| file.flush()).with_context(writing)?;
        set_attributes(&file, attributes).with_context(writing)
    }

    /// Makes a symbolic link, in the place of whatever is there but a directory.
    pub fn symlink(&self, path: &GuestPath, target: &str, attributes: Attributes) -> Result<()> {
        let making = || format!("making the link `{path}`");
        let (folder, name) = self.place(path)?;
        unlink(&folder, &name).with_context(making)?;
        rustix::fs::symlinkat(target, &folder, &name).with_context(making)?;
        let (uid, gid) = owners(attributes);
        rustix::fs::chownat(&folder, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).with_context(making)?;
        let Some(mtime) = attributes.mtime else { return Ok(()) };
        rustix::fs::utimensat(&folder, &name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).with_context(making)
    }

    /// Makes `path` another name of the file `target`.
    pub fn hard_link(&self, path: &GuestPath, target: &GuestPath) -> Result<()> {
        let making = || format!("making `{path}` a hard link to `{target}`");
        let (from, from_name) = self.place(target)?;
        let (folder, name) = self.place(path)?;
        unlink(&folder, &name).with_context(making)?;
        rustix::fs::linkat(&from, &from_name, &folder, &name, AtFlags::empty()).with_context(making)
    }

    /// Makes a named pipe.
    pub fn fifo(&self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let making = || format!("making the pipe `{path}`");
        let (folder, name) = self.place(path)?;
        unlink(&folder, &name).with_context(making)?;
        rustix::fs::mkfifoat(&folder, &name, Mode::from_raw_mode(0o600)).with_context(making)?;
        let pipe = open_at(&folder, &name, OFlags::RDONLY | OFlags::NONBLOCK).with_context(making)?;
        set_attributes(&pipe, attributes).with_context(making)
    }

    /// Sets an extended attribute of a file or directory.
    pub fn set_xattr(&self, path: &GuestPath, name: &str, value: &[u8]) -> Result<()> {
        let file = self.resolve(path, OFlags::RDONLY).with_context(|| format!("opening `{path}`"))?;
        rustix::fs::fsetxattr(&file, name, value, rustix::fs::XattrFlags::empty())
            .with_context(|| format!("setting {name} of `{path}`"))
    }

    /// Sets a directory's time.
    pub fn set_mtime(&self, path: &GuestPath, mtime: i64) -> Result<()> {
        let folder = self.resolve(path, OFlags::RDONLY).with_context(|| format!("opening `{path}`"))?;
        rustix::fs::futimens(&folder, &times(mtime)).with_context(|| format!("setting the time of `{path}`"))
    }

    /// Sets mode and owners of the root directory itself.
    pub fn set_top(&self, attributes: Attributes) -> Result<()> {
        let top = self.resolve(&GuestPath::root(), OFlags::RDONLY).context("opening `/`")?;
        set_attributes(&top, attributes).context("setting the attributes of `/`")
    }

    /// Removes `path` and all that is in it, if anything is there.
    pub fn remove(&self, path: &GuestPath) -> Result<()> {
        let Some(stat) = self.stat(path)? else { return Ok(()) };
        let (folder, name) = self.place(path)?;
        let host = Path::new("/proc/self/fd").join(folder.as_fd().as_raw_fd().to_string()).join(name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => std::fs::remove_dir_all(&host),
            _ => std::fs::remove_file(&host),
        }
        .with_context(|| format!("removing `{path}`"))
    }

    /// The names in the directory `path`, sorted; none if it is not there.
    pub fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        let folder = match self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("opening `{path}`")),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder).with_context(|| format!("reading `{path}`"))? {
            let entry = entry.with_context(|| format!("reading `{path}`"))?;
            match entry.file_name().to_string_lossy().into_owned() {
                name if name == "." || name == ".." => {}
                name => names.push(name),
            }
        }
        names.sort();
        Ok(names)
    }
}

fn open_at(folder: &OwnedFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
}

fn unlink(folder: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn owners(attributes: Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

/// Owners first: changing them clears the set-user-id bit.
fn set_attributes(file: &impl AsFd, attributes: Attributes) -> rustix::io::Result<()> {
    let (uid, gid) = owners(attributes);
    rustix::fs::fchown(file, uid, gid)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    attributes.mtime.map_or(Ok(()), |mtime| rustix::fs::futimens(file, &times(mtime)))
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    /// What this process may give away without being root.
    fn own(mode: u32) -> Attributes {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Attributes { mode, uid, gid, mtime: Some(1_000_000) }
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("host");
        let guest = folder.path().join("root");
        fs::create_dir(&host).unwrap();
        fs::create_dir_all(guest.join("usr/lib")).unwrap();
        let root = Root::open(&guest).unwrap();
        root.symlink(&path("/lib"), "/usr/lib", own(0o777)).unwrap();
        root.write(&path("/lib/a"), own(0o4755), &b"a"[..]).unwrap();
        assert_eq!(fs::read(guest.join("usr/lib/a")).unwrap(), b"a");
        assert_eq!(root.stat(&path("/usr/lib/a")).unwrap().unwrap().st_mode & 0o7777, 0o4755);

        for target in [host.to_str().unwrap(), "../host", "../../../../host"] {
            root.symlink(&path("/out"), target, own(0o777)).unwrap();
            assert!(root.write(&path("/out/evil"), own(0o644), &b"e"[..]).is_err(), "{target}");
            assert_eq!(root.read(&path("/out/evil")).unwrap(), None);
        }
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
        root.remove(&path("/out")).unwrap();
        assert!(host.exists() && !root.exists(&path("/out")).unwrap());
    }

    #[test]
    fn a_file_replaces_a_link_and_not_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        root.write(&path("/target"), own(0o644), &b"old"[..]).unwrap();
        root.symlink(&path("/link"), "target", own(0o777)).unwrap();
        root.write(&path("/link"), own(0o644), &b"new"[..]).unwrap();
        assert_eq!(root.read(&path("/target")).unwrap().unwrap(), "old");
        assert_eq!(root.read(&path("/link")).unwrap().unwrap(), "new");
    }

    #[test]
    fn parents_are_made_and_lists_are_sorted() {
        if !crate::testing::require_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        root.make_parents(&path("/a/b/c")).unwrap();
        root.write(&path("/a/b/c"), own(0o600), &b""[..]).unwrap();
        root.write(&path("/a/b/a"), own(0o600), &b""[..]).unwrap();
        assert_eq!(root.list(&path("/a/b")).unwrap(), ["a", "c"]);
        assert!(root.list(&path("/nothing")).unwrap().is_empty());
    }
}
