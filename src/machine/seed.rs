//! The seed that a machine's cloud-init reads: a FAT volume with the label CIDATA (cloud-init, NoCloud datasource).

use crate::{
    disk::{Data, fat},
    error::UserError,
    files::{NewFile, read_text},
};
use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, os::unix::fs::FileExt as _, path::Path};

/// The least size of a seed volume, in bytes.
const SIZE: u64 = 4 << 20;

/// Names that a seed's files have; the first two must be there.
const NAMES: [&str; 4] = ["user-data", "meta-data", "network-config", "vendor-data"];

/// A machine's seed: NoCloud's files by name, with their contents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seed {
    /// `user-data` (from the user), `meta-data` (about the machine), `network-config` (version 1 or 2; without it,
    /// cloud-init uses DHCP), `vendor-data` (from the provider).
    pub files: BTreeMap<String, String>,
}

impl Seed {
    /// Reads a seed from the files `user-data`, `meta-data`, `network-config` and `vendor-data` of a folder; the last
    /// two may be missing.
    ///
    /// # Errors
    /// A wrong request when the folder or one of the other files is not there.
    pub fn read(folder: &Path) -> Result<Seed> {
        let shown = folder.display();
        if !folder.is_dir() {
            return Err(UserError::usage(format!("there is no seed folder {shown}")).into());
        }
        let mut files = BTreeMap::new();
        for (index, name) in NAMES.iter().enumerate() {
            let path = folder.join(name);
            if path.exists() {
                files.insert((*name).to_owned(), read_text(&path)?);
            } else if index < 2 {
                let hint =
                    "a seed has the files user-data and meta-data, and network-config if the network has no DHCP";
                return Err(UserError::usage(format!("the seed {shown} has no file `{name}`")).hint(hint).into());
            }
        }
        Ok(Seed { files })
    }

    /// Writes the volume to the file `target`, readable by its owner only: a seed holds secrets.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, target: &Path) -> Result<()> {
        let data = |text: &String| Data::Bytes(text.clone().into_bytes());
        let files: BTreeMap<String, Data> = self.files.iter().map(|(name, text)| (name.clone(), data(text))).collect();
        let bytes: u64 = files.values().map(Data::size).sum();
        let options = fat::Options {
            size: SIZE + bytes.next_multiple_of(SIZE),
            label: "CIDATA".to_owned(),
            serial: 0x5047_4841,
            epoch: 0,
            first_sector: 0,
        };
        let writing = || format!("writing the seed {}", target.display());
        let volume = fat::format(&files, &options).with_context(writing)?;
        let file = NewFile::beside(target)?;
        file.file().set_len(volume.size()).with_context(writing)?;
        for piece in volume.pieces() {
            if let Data::Bytes(bytes) = &piece.data {
                let part = &bytes[piece.skip as usize..][..piece.length as usize];
                file.file().write_all_at(part, piece.offset).with_context(writing)?;
            }
        }
        file.publish(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error, exec::Run};
    use std::fs;

    #[test]
    fn a_seed_without_its_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Seed::read(&folder.path().join("nothing")).unwrap_err();
        assert!(missing.to_string().starts_with("there is no seed folder "), "{missing}");
        fs::write(folder.path().join("meta-data"), "instance-id: i-1\n").unwrap();
        let error = Seed::read(folder.path()).unwrap_err();
        assert_eq!(error::kind_of(&error), error::ErrorKind::Usage);
        assert!(error.to_string().ends_with("has no file `user-data`"), "{error}");
        fs::write(folder.path().join("user-data"), "#cloud-config\n").unwrap();
        let seed = Seed::read(folder.path()).unwrap();
        assert_eq!(seed.files.keys().collect::<Vec<_>>(), ["meta-data", "user-data"]);
    }

    #[test]
    fn other_programs_read_the_volume() {
        if !crate::testing::require_program("mtype") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("seed.img");
        let long = format!("#cloud-config\n# {}\n", "x".repeat(5 << 20));
        let files = [("user-data", long.as_str()), ("meta-data", "instance-id: i-1\n")];
        let seed = Seed { files: files.map(|(name, text)| (name.to_owned(), text.to_owned())).into() };
        seed.write(&target).unwrap();
        let read = |name: &str| {
            let said = Run::new("mtype").arg("-i").arg(&target).arg(format!("::{name}")).capture().unwrap();
            String::from_utf8(said.stdout).unwrap()
        };
        assert_eq!(read("meta-data"), "instance-id: i-1\n");
        assert!(read("user-data") == long);
        let label = Run::new("mlabel").arg("-s").arg("-i").arg(&target).arg("::").text().unwrap();
        assert!(label.contains("CIDATA"), "{label}");
    }
}
