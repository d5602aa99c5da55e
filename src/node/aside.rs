//! Data that are in the way are set aside: renamed on the same file system, and kept.

use super::{clock::Civil, log};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Sets `folder` aside and returns its new path. `why` is a word or two, such as `diverged`.
///
/// # Errors
/// When there is no such folder, or the disk does not allow it. Nothing has moved then.
pub fn set_aside(folder: &Path, why: &str) -> Result<PathBuf> {
    let doing = || format!("setting {} aside", folder.display());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = Civil::from_unix(i64::try_from(now).unwrap_or_default(), 0);
    let stamp =
        format!("{:04}{:02}{:02}T{:02}{:02}{:02}Z", now.year, now.month, now.day, now.hour, now.minute, now.second);
    let path = PathBuf::from(format!("{}.aside-{stamp}-{why}", folder.display()));
    fs::rename(folder, &path).with_context(doing)?;
    let above = folder.parent().unwrap_or(Path::new("/"));
    File::open(above).and_then(|above| above.sync_all()).with_context(doing)?;
    log::warning!("set {} aside ({why}): it is {} now", folder.display(), path.display());
    Ok(path)
}
