//! QEMU on this host: where it is, and whether it is new enough.

use crate::{
    error::UserError,
    exec::{ExecError, Run},
    model::Arch,
};
use anyhow::{Context as _, Result};
use std::{ffi::OsString, fmt, io::ErrorKind, time::Duration};

/// What QEMU is called and where it comes from.
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGES: &str = "qemu-system-x86 (Debian, Ubuntu), qemu-system-x86-core (Fedora), qemu-system-x86 (Arch Linux)";

/// Joining machines by `-netdev stream` begins with this version.
const OLDEST: Version = Version(7, 2);
/// Before this version, threads of the emulator translate a page while another thread changes it, and kernels such as
/// Debian 13's crash ("accel/tcg: Always lock pages before translation", QEMU commit deba78709a).
const OLDEST_EMULATOR: Version = Version(8, 1);

/// A version of QEMU: major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// QEMU on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    pub program: OsString,
    pub version: Version,
}

impl Qemu {
    /// Finds QEMU in PATH.
    ///
    /// # Errors
    /// A wrong request when it is missing or too old, naming the package; when it does not print its version.
    pub fn find() -> Result<Qemu> {
        if Arch::HOST != Arch::Amd64 {
            let message = format!("machines are amd64 so far, and images built here are {}", Arch::HOST);
            return Err(UserError::usage(message).into());
        }
        Qemu::with_program(PROGRAM)
    }

    /// QEMU as the program `program`.
    ///
    /// # Errors
    /// As [`Qemu::find`].
    pub fn with_program(program: impl Into<OsString>) -> Result<Qemu> {
        let program = program.into();
        let asked = Run::new(&program).arg("--version").limit(Duration::from_secs(30)).text();
        let text = match asked {
            Ok(text) => text,
            Err(ExecError::Start { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let message = format!("QEMU ({}) is not installed here", program.display());
                return Err(UserError::usage(message).hint(format!("install the package {PACKAGES}")).into());
            }
            Err(error) => return Err(error).context("asking QEMU for its version"),
        };
        let version = parse(&text).with_context(|| format!("QEMU prints an unknown version: {text}"))?;
        let qemu = Qemu { program, version };
        qemu.require(OLDEST, "joining machines")?;
        Ok(qemu)
    }

    /// Whether this QEMU can emulate a machine without KVM.
    ///
    /// # Errors
    /// A wrong request when it is too old.
    pub fn require_emulator(&self) -> Result<()> {
        self.require(OLDEST_EMULATOR, "running machines without KVM (older ones crash Debian 13's kernel)")
    }

    fn require(&self, oldest: Version, purpose: &str) -> Result<()> {
        if self.version >= oldest {
            return Ok(());
        }
        let message = format!("QEMU {} is too old: {purpose} needs {oldest} or newer", self.version);
        let hint = format!("install a newer {PACKAGES}; Debian 12 has one in its suite bookworm-backports");
        Err(UserError::usage(message).hint(hint).into())
    }
}

/// The version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some(Version(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn versions_are_read_and_compared() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse(debian), Some(Version(10, 0)));
        assert_eq!(parse("QEMU emulator version 7.2.22 (v7.2)"), Some(Version(7, 2)));
        assert_eq!(parse("bash"), None);
        assert!(Version(10, 0) > OLDEST_EMULATOR && Version(7, 2) < OLDEST_EMULATOR);
    }

    #[test]
    fn a_missing_or_old_qemu_is_told_with_its_package() {
        let error = Qemu::with_program("qemu-that-nobody-has").unwrap_err();
        let told =
            "error: QEMU (qemu-that-nobody-has) is not installed here\n\nhint: install the package qemu-system-x86";
        assert!(error::report(&error).starts_with(told), "{}", error::report(&error));
        let old = Qemu { program: "qemu".into(), version: Version(7, 2) };
        let error = old.require_emulator().unwrap_err();
        assert_eq!(error::kind_of(&error), error::ErrorKind::Usage);
        assert!(error.to_string().starts_with("QEMU 7.2 is too old: running machines without KVM"), "{error}");
        assert!(error::report(&error).contains("bookworm-backports"));
    }
}
