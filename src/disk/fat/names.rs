//! Names in FAT directories: short ones, and long ones in entries before the short one (fatgen103, "FAT Long Directory
//! Entries").

use super::super::bytes::Fields as _;
use super::ENTRY;
use crate::error::UserError;
use anyhow::{Result, bail};
use std::collections::HashSet;

const LONG_NAME: u8 = 0x0f;
/// UTF-16 units in an entry of a long name, by their offsets.
const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Gives every name of one directory its short form.
#[derive(Debug, Default)]
pub(super) struct Names {
    short: HashSet<[u8; 11]>,
    folded: HashSet<String>,
}

/// A name, ready for a directory.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) short: [u8; 11],
    /// The entries that precede the short one.
    pub(super) long: Vec<[u8; ENTRY]>,
}

impl Names {
    /// Adds a name.
    ///
    /// # Errors
    /// When FAT cannot hold it, or not together with the names before: their case makes no difference.
    pub(super) fn add(&mut self, name: &str) -> Result<Name> {
        let units: Vec<u16> = name.encode_utf16().collect();
        let forbidden = |c: char| c.is_control() || "\"*/:<>?\\|".contains(c);
        if units.is_empty() || units.len() > 255 || name.ends_with(['.', ' ']) || name.contains(forbidden) {
            bail!(UserError::usage(format!("`{name}` is not a name for a file on a FAT volume")));
        }
        if !self.folded.insert(name.to_lowercase()) {
            bail!(UserError::usage(format!(
                "`{name}` is on the FAT volume already; upper and lower case are the same"
            )));
        }
        if let Some(short) = short(name).filter(|short| self.short.insert(*short)) {
            return Ok(Name { short, long: Vec::new() });
        }
        let short = self.alias(name);
        Ok(Name { short, long: long_entries(&units, checksum(&short)) })
    }

    /// A short name not yet in use: the beginning of the name, `~` and a number, the beginning of its suffix.
    fn alias(&mut self, name: &str) -> [u8; 11] {
        let name = name.trim_start_matches('.');
        let (stem, suffix) = name.rsplit_once('.').unwrap_or((name, ""));
        let fold = |text: &str| -> Vec<u8> {
            let known = |c: char| if is_short(c) { c as u8 } else { b'_' };
            text.chars().filter(|c| !matches!(c, ' ' | '.')).map(|c| known(c.to_ascii_uppercase())).collect()
        };
        let (stem, suffix) = (fold(stem), fold(suffix));
        let mut number = 1u32;
        loop {
            let tail = format!("~{number}");
            let kept = stem.len().min(8 - tail.len());
            let mut short = [b' '; 11];
            short[..kept].copy_from_slice(&stem[..kept]);
            short[kept..kept + tail.len()].copy_from_slice(tail.as_bytes());
            let suffix = &suffix[..suffix.len().min(3)];
            short[8..8 + suffix.len()].copy_from_slice(suffix);
            if self.short.insert(short) {
                return short;
            }
            number += 1;
        }
    }
}

/// The name as a short one, if it is one.
fn short(name: &str) -> Option<[u8; 11]> {
    let (stem, suffix) = name.split_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&stem.len()) && suffix.len() <= 3 && (suffix.is_empty() != name.contains('.'));
    if !fits || !stem.chars().chain(suffix.chars()).all(is_short) {
        return None;
    }
    let mut short = [b' '; 11];
    short[..stem.len()].copy_from_slice(stem.as_bytes());
    short[8..8 + suffix.len()].copy_from_slice(suffix.as_bytes());
    Some(short)
}

fn is_short(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || "!#$%&'()-@^_`{}~".contains(c)
}

/// Ties the entries of a long name to its short one.
fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The entries of a long name, last part first.
fn long_entries(units: &[u16], checksum: u8) -> Vec<[u8; ENTRY]> {
    let parts = units.chunks(UNITS.len());
    let count = parts.len();
    let mut entries: Vec<[u8; ENTRY]> = parts
        .zip(1u8..)
        .map(|(part, number)| {
            let mut entry = [0; ENTRY];
            entry[0] = number | if usize::from(number) == count { 0x40 } else { 0 };
            entry[11] = LONG_NAME;
            entry[13] = checksum;
            // A zero ends the name, ones fill the rest.
            let filled = part.iter().copied().chain([0]).chain(std::iter::repeat(u16::MAX));
            for (at, unit) in UNITS.into_iter().zip(filled) {
                entry.put(at, unit.to_le_bytes());
            }
            entry
        })
        .collect();
    entries.reverse();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shorts(names: &[&str]) -> Vec<String> {
        let mut known = Names::default();
        names.iter().map(|name| String::from_utf8(known.add(name).unwrap().short.to_vec()).unwrap()).collect()
    }

    #[test]
    fn short_names_are_unique() {
        assert_eq!(
            shorts(&[
                "BOOTX64.EFI",
                "EFI",
                "grub.cfg",
                "user-data",
                "user-data.old",
                "user-data.older",
                ".rc",
                "ä b.x"
            ]),
            [
                "BOOTX64 EFI",
                "EFI        ",
                "GRUB~1  CFG",
                "USER-D~1   ",
                "USER-D~1OLD",
                "USER-D~2OLD",
                "RC~1       ",
                "_B~1    X  "
            ]
        );
    }

    #[test]
    fn many_aliases_of_one_stem_stay_apart() {
        let mut known = Names::default();
        let shorts: HashSet<[u8; 11]> =
            (0..1200).map(|number| known.add(&format!("long name {number}")).unwrap().short).collect();
        assert_eq!(shorts.len(), 1200);
    }

    #[test]
    fn names_that_fat_cannot_hold_are_refused() {
        let mut known = Names::default();
        for name in ["", "a:b", "dot.", "space ", "tab\t", &"x".repeat(256)] {
            assert!(known.add(name).is_err(), "{name:?}");
        }
        known.add("README").unwrap();
        assert!(known.add("readme").unwrap_err().to_string().contains("upper and lower case"));
    }
}
