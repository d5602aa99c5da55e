//! Firmware that machines boot with; `qemu/firmware.yaml` has the paths.

use crate::{document::Document, error::UserError};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("../../qemu/firmware.yaml");

/// Which firmware a machine boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF that boots only what is signed by a key it trusts.
    UefiSecureBoot,
}

/// The files of a UEFI firmware on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UefiFiles {
    /// The firmware itself.
    pub code: PathBuf,
    /// The variables that a new machine starts with.
    pub variables: PathBuf,
    /// Whether it protects its variables by system management mode and enforces Secure Boot.
    pub secure_boot: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    uefi: Vec<Place>,
    secure_boot: Vec<Place>,
    packages: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    code: PathBuf,
    variables: PathBuf,
    #[allow(dead_code, reason = "people read it in the table")]
    on: String,
}

impl Firmware {
    /// The firmware's files on this host; `None` for the BIOS, which QEMU finds itself.
    ///
    /// # Errors
    /// A wrong request when it is not installed, naming the package.
    pub fn find(self) -> Result<Option<UefiFiles>> {
        self.find_below(Path::new("/"))
    }

    fn find_below(self, root: &Path) -> Result<Option<UefiFiles>> {
        let table: Table = Document::new("qemu/firmware.yaml", TABLE).parse()?;
        let (places, name) = match self {
            Firmware::Bios => return Ok(None),
            Firmware::Uefi => (table.uefi, "UEFI firmware (OVMF)"),
            Firmware::UefiSecureBoot => (table.secure_boot, "UEFI firmware (OVMF) with Secure Boot keys"),
        };
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        for place in places {
            let (code, variables) = (below(&place.code), below(&place.variables));
            if code.is_file() && variables.is_file() {
                return Ok(Some(UefiFiles { code, variables, secure_boot: self == Firmware::UefiSecureBoot }));
            }
        }
        let hint = format!("install the package: {}; or boot with --firmware bios", table.packages);
        Err(UserError::usage(format!("no {name} is installed here")).hint(hint).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;
    use std::fs;

    #[test]
    fn the_first_place_with_both_files_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let error = Firmware::Uefi.find_below(root.path()).unwrap_err();
        assert_eq!(error::kind_of(&error), error::ErrorKind::Usage);
        assert!(error::report(&error).contains("hint: install the package: ovmf (Debian, Ubuntu)"));
        let folder = root.path().join("usr/share/OVMF");
        fs::create_dir_all(&folder).unwrap();
        for file in ["OVMF_CODE_4M.fd", "OVMF_CODE.fd", "OVMF_VARS.fd"] {
            fs::write(folder.join(file), "").unwrap();
        }
        let found = Firmware::Uefi.find_below(root.path()).unwrap().unwrap();
        let expected =
            UefiFiles { code: folder.join("OVMF_CODE.fd"), variables: folder.join("OVMF_VARS.fd"), secure_boot: false };
        assert_eq!(found, expected);
        assert!(Firmware::UefiSecureBoot.find_below(root.path()).is_err());
        assert_eq!(Firmware::Bios.find_below(root.path()).unwrap(), None);
    }
}
