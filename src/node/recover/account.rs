//! Runs programs as the users who own their data.

use crate::exec::Run;
use anyhow::{Context as _, Result};
use std::{ffi::OsString, fs, os::unix::fs::MetadataExt as _, path::Path};

/// A user and a group of this system, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

impl Account {
    /// The owner of a file or folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn owner_of(path: &Path) -> Result<Account> {
        let found = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
        Ok(Account { user: found.uid(), group: found.gid() })
    }

    /// The program, to be run as this user, and interrupted when this process dies.
    pub fn run(self, program: impl Into<OsString>) -> Run {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if (user, group) == (self.user, self.group) {
            // Nobody but root may leave its groups.
            return Run::new("setpriv").args(["--pdeathsig", "INT", "--"]).arg(program);
        }
        Run::new("setpriv")
            .args(["--reuid", &self.user.to_string(), "--regid", &self.group.to_string()])
            .args(["--clear-groups", "--pdeathsig", "INT", "--"])
            .arg(program)
    }

    /// Makes this the owner of a file.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.user), Some(self.group))
            .with_context(|| format!("changing the owner of {}", path.display()))
    }
}
