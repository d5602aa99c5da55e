//! Files that appear whole or not at all.

use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};
use tempfile::NamedTempFile;

/// A file being written beside the one it will replace; dropped without [`NewFile::publish`], it leaves nothing.
#[derive(Debug)]
pub struct NewFile(NamedTempFile);

impl NewFile {
    /// Starts a file that only its owner can read, in the folder that `target` lies in.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn beside(target: &Path) -> Result<NewFile> {
        let folder = folder_of(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .tempfile_in(folder)
            .map(NewFile)
            .with_context(|| format!("writing in the folder {}", folder.display()))
    }

    /// The path that the file has until it is published.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file itself, to set its mode and owner.
    pub fn file(&self) -> &File {
        self.0.as_file()
    }

    /// Syncs the file, puts it in the place of `target`, and syncs the folder: after a power cut, `target` is the old
    /// file or the new one.
    ///
    /// # Errors
    /// When the disk is full or broken; `target` is then as it was.
    pub fn publish(self, target: &Path) -> Result<()> {
        self.0.as_file().sync_all().with_context(|| format!("writing {}", target.display()))?;
        self.0.persist(target).with_context(|| format!("writing {}", target.display()))?;
        let folder = folder_of(target);
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("writing the folder {}", folder.display()))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Reads a text file, with its path in the error.
///
/// # Errors
/// When it cannot be read or is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
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
}
