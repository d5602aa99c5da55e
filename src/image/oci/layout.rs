//! Writes an image as a layout folder.

use super::OciImage;
use crate::error::UserError;
use anyhow::{Context as _, Result};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

impl OciImage {
    /// Writes the image as an OCI image layout into the folder `target`, which appears at the end and replaces a layout
    /// that is there. Blobs are copies, so that edits do not reach the store.
    ///
    /// # Errors
    /// When `target` is something else than a layout, the store lost a layer, or the disk is full.
    pub fn write_layout(&self, target: &Path) -> Result<()> {
        let replaces = is_replaceable(target)?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .with_context(|| format!("writing in the folder {}", parent.display()))?;
        self.fill(folder.path()).with_context(|| format!("writing {}", target.display()))?;
        put(folder.path(), target, replaces).with_context(|| format!("writing {}", target.display()))?;
        if !replaces {
            // Moved away, nothing is left to be cleaned up; otherwise the replaced layout is.
            let _ = folder.keep();
        }
        sync(parent)
    }

    fn fill(&self, folder: &Path) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
        for (digest, blob) in &self.blobs {
            let mut file = create(&blobs.join(digest.hex()))?;
            self.copy_blob(digest, blob, &mut file)?;
            file.sync_all()?;
        }
        for (name, document) in &self.documents {
            let mut file = create(&folder.join(name))?;
            file.write_all(document)?;
            file.sync_all()?;
        }
        sync(&blobs)?;
        sync(folder)
    }
}

/// Whether there is a layout to be replaced.
fn is_replaceable(target: &Path) -> Result<bool> {
    match fs::symlink_metadata(target) {
        Ok(_) if target.join("oci-layout").is_file() => Ok(true),
        Ok(_) => Err(UserError::usage(format!("{} exists and is not an OCI image layout", target.display()))
            .hint("name another folder, or remove this one")
            .into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading {}", target.display())),
    }
}

/// Puts the folder `new` at `target`; what was there is then at `new`.
fn put(new: &Path, target: &Path, replaces: bool) -> io::Result<()> {
    if !replaces {
        return fs::rename(new, target);
    }
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => put_in_steps(new, target),
        result => Ok(result?),
    }
}

/// The same on a file system that cannot exchange: for a moment there is nothing at `target`.
pub(super) fn put_in_steps(new: &Path, target: &Path) -> io::Result<()> {
    let old = new.with_extension("old");
    fs::rename(target, &old)?;
    fs::rename(new, target)?;
    fs::rename(&old, new)
}

fn create(path: &Path) -> Result<File> {
    let file = File::create_new(path).with_context(|| format!("making {}", path.display()))?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("writing the folder {}", folder.display()))
}
