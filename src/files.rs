//! Files that appear whole or not at all.

use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    env,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};
use tempfile::{NamedTempFile, TempDir};

/// What is being written and not published; a program that must end at once takes it away.
static UNPUBLISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Takes away all that is being written and not published: for a program that ends without dropping its values.
pub fn discard_unpublished() {
    let paths = UNPUBLISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for path in paths.iter() {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Holds a path in the list of what is not published.
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

    /// Puts the folder in the place of `target`, readable by all. What was there is moved aside first and taken away
    /// last, so that there is never half of one and half of the other.
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

/// Writes a file that nobody else may read.
///
/// # Errors
/// When it cannot be written; what was there stays then.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = NewFile::beside(path)?;
    let doing = || format!("writing {}", path.display());
    file.file().set_permissions(Permissions::from_mode(0o600)).with_context(doing)?;
    file.write_all(text.as_bytes()).with_context(doing)?;
    file.publish(path)
}

/// Makes a folder, and those above it, that nobody else may look into, unless it is there.
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
/// When it cannot be read or is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn sync_folder(folder: &Path) -> Result<()> {
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
