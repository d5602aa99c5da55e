//! Bills of materials: what an image is made of, for programs that look for vulnerabilities and licences.
//!
//! Two documents of the same content, SPDX 2.3 and CycloneDX 1.6, each as JSON. They hold nothing that differs from one
//! build to the next: their names derive from their content, their time is the image's.

mod cyclonedx;
mod spdx;

pub use cyclonedx::cyclonedx;
pub use spdx::spdx;

use crate::model::{Arch, Digest};
use anyhow::Result;
use serde::Serialize;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Materials {
    /// The image's name.
    pub name: String,
    /// Its version, if it has one.
    pub version: Option<String>,
    /// What it is for, in one line.
    pub description: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// The machines it runs on.
    pub arch: Arch,
    /// The distribution's release by its code name: `trixie`.
    pub release: String,
    /// Its packages, in any order.
    pub packages: Vec<PackageMaterial>,
    /// Its overlays, in order.
    pub overlays: Vec<OverlayMaterial>,
}

/// A package of the distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PackageMaterial {
    pub name: String,
    /// Its version, with epoch and revision.
    pub version: String,
    /// Its architecture, `all` among them.
    pub architecture: String,
    /// The source package it is built from, if its name is another one.
    pub source: Option<String>,
    /// The SHA-256 of the .deb.
    pub sha256: Digest,
}

/// A component that is not a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverlayMaterial {
    /// The overlay's name.
    pub name: String,
    /// What it is for, in one line.
    pub description: String,
    /// The SHA-256 of its layer's tar stream; `None` if it brings packages only.
    pub layer: Option<Digest>,
}

impl PackageMaterial {
    /// The package URL (purl specification, type `deb`).
    pub fn purl(&self, release: &str) -> String {
        let [name, version, arch, release] =
            [&self.name, &self.version, &self.architecture, release].map(percent_encoded);
        format!("pkg:deb/debian/{name}@{version}?arch={arch}&distro={release}")
    }
}

/// Encodes all but letters, digits, `.-_~` and the colon, which the purl specification leaves alone.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

impl Materials {
    /// The packages in the order of their names.
    fn sorted_packages(&self) -> Vec<&PackageMaterial> {
        let mut packages: Vec<_> = self.packages.iter().collect();
        packages.sort();
        packages
    }

    /// A UUID that equal materials have (RFC 9562, version 8).
    fn uuid(&self) -> Result<String> {
        let mut sorted = self.clone();
        sorted.packages.sort();
        let digest = Digest::of_json(&sorted)?;
        let mut bytes = digest.bytes()[..16].to_vec();
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
    }
}

/// A document as people may read it, too.
fn text(document: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

#[cfg(test)]
mod tests;
