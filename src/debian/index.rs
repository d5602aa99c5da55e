//! `Packages` indices: the binary packages of one component of a suite.
//!
//! An index is some 50 MB of text, of which a build needs a few hundred paragraphs. Reading records the position of
//! each paragraph, its name, and what decides whether it matters; everything else is parsed on demand.

use super::deb822::{self, Paragraph};
use crate::{
    error::UserError,
    model::{Arch, Digest},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How important Debian thinks a package is (Debian policy 2.5), from most to least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A system without it is broken.
    Required,
    /// Expected on any Unix system.
    Important,
    /// A small text-mode system has it.
    Standard,
    /// All others.
    Optional,
    /// Conflicts with others, or of special use; no longer assigned.
    Extra,
}

/// How a package may be combined with those of other architectures (deb-control(5), `Multi-Arch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiArch {
    /// Not at all.
    No,
    /// Installable for several architectures at once.
    Same,
    /// Satisfies dependencies of any architecture.
    Foreign,
    /// Satisfies dependencies of any architecture that say `:any`.
    Allowed,
}

/// The packages of one index that can be installed on one architecture.
#[derive(Debug)]
pub struct Index {
    text: String,
    slots: Vec<Slot>,
    arch: Arch,
    origin: usize,
}

/// One package of an index.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    index: &'a Index,
    slot: &'a Slot,
}

/// Where a paragraph and its first needed fields lie in the text, and its flags.
#[derive(Debug)]
struct Slot {
    paragraph: Range<u32>,
    name: Range<u32>,
    version: Range<u32>,
    provides: Range<u32>,
    priority: Priority,
    multi_arch: MultiArch,
    essential: bool,
    protected: bool,
}

/// What is recorded of a chosen package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Its architecture, or `all`.
    pub architecture: String,
    /// The name of the source package it was built from.
    pub source: String,
    /// That source package's version.
    pub source_version: String,
    /// The first line of its description.
    pub description: String,
    /// The path of its .deb below a mirror's base URI.
    pub filename: String,
    /// The .deb's size in bytes.
    pub size: u64,
    /// The .deb's SHA-256.
    pub sha256: Digest,
    /// The room it takes when installed, in KiB, as estimated by its maker.
    pub installed_size: u64,
}

impl Index {
    /// Reads a `Packages` file, keeping the packages for `arch`. `origin` is a number of the caller's own;
    /// [`Entry::origin`] returns it.
    ///
    /// # Errors
    /// When a paragraph has no name or version.
    pub fn parse(text: String, arch: Arch, origin: usize) -> Result<Index> {
        if u32::try_from(text.len()).is_err() {
            return Err(UserError::runtime("the index has more than 4 GiB").into());
        }
        let mut slots = Vec::with_capacity(text.len() / 700);
        let mut at = 0;
        while at < text.len() {
            at = read_paragraph(&text, at, arch, &mut slots)?;
        }
        Ok(Index { text, slots, arch, origin })
    }

    /// How many packages there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The architecture that it was read for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The packages, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.slots.iter().map(|slot| Entry { index: self, slot })
    }

    /// The whole text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn slice(&self, range: &Range<u32>) -> &str {
        &self.text[range.start as usize..range.end as usize]
    }
}

impl<'a> Entry<'a> {
    /// The package's name.
    pub fn name(&self) -> &'a str {
        self.index.slice(&self.slot.name)
    }

    /// Its version, as written.
    pub fn version(&self) -> &'a str {
        self.index.slice(&self.slot.version)
    }

    /// Whether it must always be installed.
    pub fn essential(&self) -> bool {
        self.slot.essential
    }

    /// Whether it should not be removed, as one that makes a system boot.
    pub fn protected(&self) -> bool {
        self.slot.protected
    }

    pub fn priority(&self) -> Priority {
        self.slot.priority
    }

    /// How it combines with other architectures.
    pub fn multi_arch(&self) -> MultiArch {
        self.slot.multi_arch
    }

    /// The field `Provides`, empty where there is none.
    pub fn provides(&self) -> &'a str {
        self.index.slice(&self.slot.provides)
    }

    /// The value of any field.
    pub fn get(&self, field: &str) -> Option<&'a str> {
        Paragraph::of(self.index.slice(&self.slot.paragraph)).get(field)
    }

    /// The number that the index was read with.
    pub fn origin(&self) -> usize {
        self.index.origin
    }

    /// What is recorded of the package.
    ///
    /// # Errors
    /// When a field is missing or wrong.
    pub fn package(&self) -> Result<Package> {
        let needed = |field: &str| {
            self.get(field)
                .ok_or_else(|| UserError::runtime(format!("`{}` has no field `{field}` in the index", self.name())))
        };
        let wrong =
            |field: &str| UserError::runtime(format!("the field `{field}` of `{}` is wrong in the index", self.name()));
        // `Source: name (version)`, each part only where it differs.
        let source = self.get("Source").unwrap_or(self.name());
        let (source, source_version) = match source.split_once(" (") {
            Some((name, version)) => (name, version.trim_end_matches(')')),
            None => (source, self.version()),
        };
        let filename = needed("Filename")?;
        if filename.starts_with('/') || filename.split('/').any(|part| part == "..") {
            return Err(wrong("Filename").into());
        }
        Ok(Package {
            name: self.name().into(),
            version: self.version().into(),
            architecture: needed("Architecture")?.into(),
            source: source.into(),
            source_version: source_version.into(),
            description: self.get("Description").unwrap_or_default().lines().next().unwrap_or_default().into(),
            filename: filename.trim_start_matches("./").into(),
            size: needed("Size")?.parse().with_context(|| wrong("Size"))?,
            sha256: needed("SHA256")?.parse().with_context(|| wrong("SHA256"))?,
            installed_size: self.get("Installed-Size").and_then(|size| size.parse().ok()).unwrap_or(0),
        })
    }
}

/// Reads the paragraph at `start` and returns where the next one begins.
fn read_paragraph(text: &str, start: usize, arch: Arch, slots: &mut Vec<Slot>) -> Result<usize> {
    let bytes = text.as_bytes();
    let mut slot = Slot {
        paragraph: 0..0,
        name: 0..0,
        version: 0..0,
        provides: 0..0,
        priority: Priority::Extra,
        multi_arch: MultiArch::No,
        essential: false,
        protected: false,
    };
    let mut fits = true;
    let mut at = start;
    while let Some(end) = deb822::line_end(text, at) {
        if matches!(bytes[at], b'\n' | b'\r') {
            break;
        }
        // Only these letters begin a field that matters here.
        if matches!(bytes[at], b'A' | b'E' | b'M' | b'P' | b'V' | b'a' | b'e' | b'm' | b'p' | b'v') {
            let line = &text[at..end];
            let colon = line.find(':').unwrap_or(0);
            let name = &line[..colon];
            let is = |field: &str| name.eq_ignore_ascii_case(field);
            if is("Provides") {
                let end = continued_end(text, end);
                slot.provides = value(text, at + colon + 1, end);
            } else if is("Package") {
                slot.name = value(text, at + colon + 1, end);
            } else if is("Version") {
                slot.version = value(text, at + colon + 1, end);
            } else if is("Architecture") {
                let value = line[colon + 1..].trim();
                fits = value == "all" || value == arch.debian();
            } else if is("Priority") {
                slot.priority = read_priority(line[colon + 1..].trim());
            } else if is("Multi-Arch") {
                slot.multi_arch = read_multi_arch(line[colon + 1..].trim());
            } else if is("Essential") {
                slot.essential = line[colon + 1..].trim() == "yes";
            } else if is("Protected") {
                slot.protected |= line[colon + 1..].trim() == "yes";
            }
        }
        at = end;
    }
    if at > start && fits {
        if slot.name.is_empty() || slot.version.is_empty() {
            let line = text[..start].matches('\n').count() + 1;
            return Err(UserError::runtime(format!("the paragraph at line {line} has no name or no version")).into());
        }
        slot.paragraph = start as u32..at as u32;
        slots.push(slot);
    }
    // Past the empty line.
    Ok(deb822::line_end(text, at).unwrap_or(at))
}

/// The end of a field's last continuation line, where its first line ends at `end`.
fn continued_end(text: &str, mut end: usize) -> usize {
    while let Some(next) = deb822::line_end(text, end).filter(|_| matches!(text.as_bytes()[end], b' ' | b'\t')) {
        end = next;
    }
    end
}

/// The range without white space around it.
fn value(text: &str, start: usize, end: usize) -> Range<u32> {
    let raw = &text[start..end];
    let start = start + (raw.len() - raw.trim_start().len());
    start as u32..(start + raw.trim().len()) as u32
}

fn read_priority(text: &str) -> Priority {
    match text {
        "required" => Priority::Required,
        "important" => Priority::Important,
        "standard" => Priority::Standard,
        "optional" => Priority::Optional,
        _ => Priority::Extra,
    }
}

fn read_multi_arch(text: &str) -> MultiArch {
    match text {
        "same" => MultiArch::Same,
        "foreign" => MultiArch::Foreign,
        "allowed" => MultiArch::Allowed,
        _ => MultiArch::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Package: a\nSource: src (1.0)\nVersion: 1.0+b1\nArchitecture: amd64\nEssential: yes\n\
        Priority: required\nMulti-Arch: foreign\nProvides: x (= 1),\n y\nDescription: first\n second\n\
        Filename: ./pool/a.deb\nSize: 12\nInstalled-Size: 34\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n\
        Package: other\nVersion: 1\nArchitecture: riscv64\n\n\n\
        Package: b\nVersion: 2\nArchitecture: all\nProtected: yes\nFilename: ../b.deb";

    #[test]
    fn an_index_keeps_what_fits_the_architecture() {
        let index = Index::parse(TEXT.into(), Arch::Amd64, 7).unwrap();
        let entries: Vec<_> = index.entries().collect();
        assert_eq!(
            entries.iter().map(|entry| (entry.name(), entry.version())).collect::<Vec<_>>(),
            [("a", "1.0+b1"), ("b", "2")]
        );
        let a = entries[0];
        assert!(a.essential() && !a.protected() && entries[1].protected());
        assert_eq!((a.priority(), a.multi_arch(), a.origin()), (Priority::Required, MultiArch::Foreign, 7));
        assert_eq!(a.provides(), "x (= 1),\n y");
        assert_eq!(entries[1].priority(), Priority::Extra);
        let package = a.package().unwrap();
        assert_eq!((package.source.as_str(), package.source_version.as_str()), ("src", "1.0"));
        assert_eq!((package.filename.as_str(), package.size, package.installed_size), ("pool/a.deb", 12, 34));
        assert_eq!(package.description, "first");
    }

    #[test]
    fn wrong_indices_are_errors() {
        let error = Index::parse("Package: a\nVersion: 1\n\nPackage: b\n".into(), Arch::Amd64, 0).unwrap_err();
        assert_eq!(error.to_string(), "the paragraph at line 4 has no name or no version");
        let index = Index::parse(TEXT.into(), Arch::Amd64, 0).unwrap();
        let error = index.entries().nth(1).unwrap().package().unwrap_err();
        assert_eq!(error.to_string(), "the field `Filename` of `b` is wrong in the index");
    }
}
