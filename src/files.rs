//! Files that appear whole or not at all, and whether a file is there, is not there, or cannot be examined.

use crate::error::UserError;
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    env, fmt,
    fs::{self, File, Metadata, Permissions},
    io::{self, Read as _, Write},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};
use tempfile::{NamedTempFile, TempDir};

/// Files and folders that are being written; a program that must end at once removes them.
static UNPUBLISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes all that is being written and not published: for a program that ends without dropping its values.
pub fn discard_unpublished() {
    let paths = UNPUBLISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for path in paths.iter() {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Keeps a path in the list of unpublished ones.
#[derive(Debug)]
struct Unpublished(PathBuf);

impl Unpublished {
    fn new(path: &Path) -> Unpublished {
        UNPUBLISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(path.to_owned());
        Unpublished(path.to_owned())
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        UNPUBLISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&self.0);
    }
}

/// A file being written beside the one it will replace; dropped without [`NewFile::publish`], it leaves nothing.
#[derive(Debug)]
pub struct NewFile {
    file: NamedTempFile,
    _listed: Unpublished,
}

impl NewFile {
    /// Starts a file that only its owner can read, in the folder that `target` lies in.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn beside(target: &Path) -> Result<NewFile> {
        let folder = folder_of(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let file = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .tempfile_in(folder)
            .with_context(|| format!("writing in the folder {}", folder.display()))?;
        let listed = Unpublished::new(file.path());
        Ok(NewFile { file, _listed: listed })
    }

    /// The path that the file has until it is published.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file itself, to set its mode and owner.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Syncs the file, puts it in the place of `target`, and syncs the folder: after a power cut, `target` is the old
    /// file or the new one.
    ///
    /// # Errors
    /// When the disk is full or broken; `target` is then as it was.
    pub fn publish(self, target: &Path) -> Result<()> {
        self.file.as_file().sync_all().with_context(|| format!("writing {}", target.display()))?;
        self.file.persist(target).with_context(|| format!("writing {}", target.display()))?;
        sync_folder(folder_of(target))
    }
}

/// A folder being filled beside the one it will replace; dropped without [`NewFolder::publish`], it leaves nothing.
#[derive(Debug)]
pub struct NewFolder {
    folder: TempDir,
    _listed: Unpublished,
}

impl NewFolder {
    /// Starts an empty folder beside `target`.
    ///
    /// # Errors
    /// When the folder that `target` lies in cannot be written.
    pub fn beside(target: &Path) -> Result<NewFolder> {
        let parent = folder_of(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .tempdir_in(parent)
            .with_context(|| format!("writing in the folder {}", parent.display()))?;
        let listed = Unpublished::new(folder.path());
        Ok(NewFolder { folder, _listed: listed })
    }

    /// The path that the folder has until it is published.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces `target` with the folder, readable by all. What was there is renamed first and removed last, so that
    /// `target` is never half one and half the other.
    ///
    /// # Errors
    /// When the folders cannot be renamed; `target` is then as it was.
    pub fn publish(self, target: &Path) -> Result<()> {
        let publishing = || format!("writing {}", target.display());
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).with_context(publishing)?;
        let old = if target.exists() {
            let aside = NewFolder::beside(target)?;
            fs::rename(target, aside.path()).with_context(publishing)?;
            Some(aside)
        } else {
            None
        };
        if let Err(error) = fs::rename(self.path(), target) {
            if let Some(old) = &old {
                let _ = fs::rename(old.path(), target);
            }
            return Err(error).with_context(publishing);
        }
        sync_folder(folder_of(target))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// When it cannot be written; the old file then stays.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = NewFile::beside(path)?;
    let doing = || format!("writing {}", path.display());
    file.file().set_permissions(Permissions::from_mode(0o600)).with_context(doing)?;
    file.write_all(text.as_bytes()).with_context(doing)?;
    file.publish(path)
}

/// Makes a folder, and those above it, that only its owner can enter, unless it is there.
///
/// # Errors
/// When it cannot be made.
pub fn private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("making the folder {}", folder.display()))
}

/// A folder of the user's own for this project: `pgha-image` in the folder that `variable` names, or else in `below` the
/// home folder (XDG Base Directory Specification, where a relative path is invalid and ignored). `None` if neither is
/// known.
pub fn user_folder(variable: &str, below: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(below));
    named.or_else(home).map(|folder| folder.join("pgha-image"))
}

/// Reads a text file, with its path in the error.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Whether something is on a disk.
///
/// An error is not an absence: a damaged inode, a symbolic link to a volume that is not mounted, or a folder that this
/// process may not enter says nothing about what is there. Code that decides by a presence handles all three cases;
/// `exists()` and `is_dir()` hide the third.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence<T> {
    /// It is there.
    Present(T),
    /// It is not there: the system reports that there is no such file, or that a folder above it is not a folder.
    Absent,
    /// It cannot be examined.
    Unknown(Doubt),
}

/// Why it is unknown whether something is there: what was examined, and the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt(String);

impl Doubt {
    /// A doubt with this text, such as `reading /a/b: Input/output error (os error 5)`.
    pub fn new(text: impl Into<String>) -> Doubt {
        Doubt(text.into())
    }

    fn of(doing: &str, path: &Path, error: &io::Error) -> Doubt {
        Doubt(format!("{doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Doubt> for UserError {
    fn from(doubt: Doubt) -> UserError {
        UserError::runtime(doubt.0).hint("nothing is done until it is known what is there; it is read again later")
    }
}

impl Presence<Metadata> {
    /// Whether there is a file, a folder or anything else at `path`, through symbolic links.
    pub fn of(path: &Path) -> Presence<Metadata> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_symlink() => Presence::Present(found),
            // A link is there; where it leads must be there too. A link that leads nowhere is not an absence: its volume may
            // not be mounted.
            Ok(_) => match fs::metadata(path) {
                Ok(found) => Presence::Present(found),
                Err(error) => Presence::Unknown(Doubt::of("following the link", path, &error)),
            },
            Err(error) if is_absence(&error) => absent_below(path),
            Err(error) => Presence::Unknown(Doubt::of("looking at", path, &error)),
        }
    }
}

impl Presence<()> {
    /// Whether the folder at `path` has anything in it; an empty one is absent. `lost+found`, which a file system makes in
    /// its uppermost folder, is nothing.
    pub fn of_folder(path: &Path) -> Presence<()> {
        let read = || -> io::Result<bool> {
            for entry in fs::read_dir(path)? {
                if entry?.file_name() != "lost+found" {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match Presence::of(path) {
            Presence::Present(found) if !found.is_dir() => {
                Presence::Unknown(Doubt(format!("{} is not a folder", path.display())))
            }
            Presence::Present(_) => match read() {
                Ok(true) => Presence::Present(()),
                Ok(false) => Presence::Absent,
                Err(error) => Presence::Unknown(Doubt::of("reading the folder", path, &error)),
            },
            Presence::Absent => Presence::Absent,
            Presence::Unknown(doubt) => Presence::Unknown(doubt),
        }
    }
}

impl Presence<Vec<u8>> {
    /// The bytes of the file at `path`, which has no more than `most`.
    pub fn of_bytes(path: &Path, most: u64) -> Presence<Vec<u8>> {
        Presence::of_bytes_by(path, most, || {
            let mut bytes = Vec::new();
            File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// The same, where `read` reads the file.
    fn of_bytes_by(path: &Path, most: u64, mut read: impl FnMut() -> io::Result<Vec<u8>>) -> Presence<Vec<u8>> {
        let mut looks = 1;
        loop {
            match Presence::of(path) {
                Presence::Present(_) => {}
                Presence::Absent => return Presence::Absent,
                Presence::Unknown(doubt) => return Presence::Unknown(doubt),
            }
            match read() {
                Ok(bytes) if bytes.len() as u64 > most => {
                    return Presence::Unknown(Doubt(format!("{} is larger than {most} bytes", path.display())));
                }
                Ok(bytes) => return Presence::Present(bytes),
                // It was there a moment ago: another process takes it away, or replaces it. The next look tells.
                Err(error) if is_absence(&error) && looks < LOOKS => looks += 1,
                Err(error) => return Presence::Unknown(Doubt::of("reading", path, &error)),
            }
        }
    }
}

impl Presence<String> {
    /// The text of the file at `path`, which has no more than `most` bytes.
    pub fn of_text(path: &Path, most: u64) -> Presence<String> {
        Presence::of_bytes(path, most).and_then(|bytes| match String::from_utf8(bytes) {
            Ok(text) => Presence::Present(text),
            Err(_) => Presence::Unknown(Doubt(format!("{} is not UTF-8", path.display()))),
        })
    }
}

impl<T> Presence<T> {
    /// Whether it is known to be there.
    pub fn is_present(&self) -> bool {
        matches!(self, Presence::Present(_))
    }

    /// Whether it is known not to be there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Presence::Absent)
    }

    /// Converts what is there.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Presence<U> {
        self.and_then(|value| Presence::Present(change(value)))
    }

    /// What `next` finds, if it is there.
    pub fn and_then<U>(self, next: impl FnOnce(T) -> Presence<U>) -> Presence<U> {
        match self {
            Presence::Present(value) => next(value),
            Presence::Absent => Presence::Absent,
            Presence::Unknown(doubt) => Presence::Unknown(doubt),
        }
    }

    /// It, or `None` if it is not there.
    ///
    /// # Errors
    /// Failed work, to be tried later, when that is not known.
    pub fn known(self) -> Result<Option<T>, UserError> {
        match self {
            Presence::Present(value) => Ok(Some(value)),
            Presence::Absent => Ok(None),
            Presence::Unknown(doubt) => Err(doubt.into()),
        }
    }
}

/// How often it is looked again for a file that goes between the look and the reading.
const LOOKS: u32 = 3;

/// Whether the error means that there is no such file, or that a folder above it is not a folder.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The presence at `path` when the system reports that nothing is there: absent, unless a folder above it is a symbolic
/// link that leads nowhere.
fn absent_below(path: &Path) -> Presence<Metadata> {
    let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    for folder in above {
        match fs::symlink_metadata(folder) {
            Ok(found) if found.is_symlink() => {
                return match fs::metadata(folder) {
                    Ok(_) => Presence::Absent,
                    Err(error) => Presence::Unknown(Doubt::of("following the link", folder, &error)),
                };
            }
            Ok(_) => return Presence::Absent,
            Err(error) if is_absence(&error) => {}
            Err(error) => return Presence::Unknown(Doubt::of("looking at", folder, &error)),
        }
    }
    Presence::Absent
}

/// Syncs a folder: what was renamed or made in it is there after a power cut.
///
/// # Errors
/// When the disk is broken.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("writing the folder {}", folder.display()))
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "old").unwrap();
        let mut new = NewFile::beside(&target).unwrap();
        new.write_all(b"ne").unwrap();
        drop(new);
        assert_eq!(read_text(&target).unwrap(), "old");
        let mut new = NewFile::beside(&target).unwrap();
        new.write_all(b"new").unwrap();
        new.publish(&target).unwrap();
        assert_eq!(read_text(&target).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_the_system_says_is_not_there_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let look = |name: &str| Presence::of(&at(name)).map(drop);
        fs::write(at("file"), "text").unwrap();
        fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("folder", at("link")).unwrap();
        // A volume that is not mounted, and what stands in for a disk that cannot be read: no user can follow it.
        std::os::unix::fs::symlink("/no/such/volume", at("away")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        for name in ["file", "folder", "link"] {
            assert_eq!(look(name), Presence::Present(()), "{name}");
        }
        for name in ["none", "none/below", "file/below", "folder/none", "link/none"] {
            assert_eq!(look(name), Presence::Absent, "{name}");
        }
        for name in ["away", "away/below", "away/below/it", "loop", "loop/below"] {
            assert!(matches!(look(name), Presence::Unknown(_)), "{name}");
        }
        let Err(problem) = look("loop/below").known() else { panic!("known") };
        assert_eq!(crate::error::kind_of(&problem.into()), crate::error::ErrorKind::Runtime);
    }

    #[test]
    fn an_empty_folder_is_absent_and_a_file_is_not_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("folder/lost+found")).unwrap();
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert_eq!(Presence::of_folder(&at("folder")), Presence::Absent);
        assert_eq!(Presence::of_folder(&at("none")), Presence::Absent);
        assert!(matches!(Presence::of_folder(&at("file")), Presence::Unknown(_)));
        assert!(matches!(Presence::of_folder(&at("loop")), Presence::Unknown(_)));
        fs::write(at("folder/.hidden"), "").unwrap();
        assert_eq!(Presence::of_folder(&at("folder")), Presence::Present(()));
    }

    #[test]
    fn a_small_file_is_read_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "text").unwrap();
        fs::write(at("bytes"), [0xff]).unwrap();
        fs::create_dir(at("folder")).unwrap();
        assert_eq!(Presence::of_text(&at("file"), 4), Presence::Present("text".into()));
        assert_eq!(Presence::of_text(&at("none"), 4), Presence::Absent);
        for (name, most) in [("file", 3), ("bytes", 4), ("folder", 4)] {
            assert!(matches!(Presence::of_text(&at(name), most), Presence::Unknown(_)), "{name}");
        }
    }

    #[test]
    fn a_file_that_goes_before_it_is_read_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        fs::write(&path, "text").unwrap();
        let mut reads = 0;
        let replaced = Presence::of_bytes_by(&path, 4, || {
            reads += 1;
            if reads == 1 { Err(gone()) } else { fs::read(&path) }
        });
        assert_eq!((replaced, reads), (Presence::Present(b"text".to_vec()), 2));
        let never = Presence::of_bytes_by(&path, 4, || Err(gone()));
        assert!(matches!(never, Presence::Unknown(_)), "it is there, and is not");
        let removed = Presence::of_bytes_by(&path, 4, || {
            fs::remove_file(&path).unwrap();
            Err(gone())
        });
        assert_eq!(removed, Presence::Absent);
    }

    #[test]
    fn a_folder_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        for text in ["old", "new"] {
            let new = NewFolder::beside(&target).unwrap();
            fs::write(new.path().join("file"), text).unwrap();
            new.publish(&target).unwrap();
            assert_eq!(read_text(&target.join("file")).unwrap(), text);
        }
        drop(NewFolder::beside(&target).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
