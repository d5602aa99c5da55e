//! Every decision of a build, made before anything is built.
//!
//! A [`Plan`] is pure data: the same recipe, overlays, package index and parameters give the same plan on any host, and
//! only a plan reaches the engines. [`Draft`] is the plan without its packages, which come from the solver or from a
//! [`Lock`].

mod draft;
mod explain;
mod lock;
mod order;
mod template_check;

pub use draft::{Draft, Request};
pub use explain::{Explanation, explain};
pub use lock::{Lock, LockedDisk, LockedSource};

use crate::{
    model::{Arch, Component, Digest, Group, GuestPath, MANIFEST_PATH, Manifest, Service, Template, User},
    overlay::{Directory, Mode, Writer},
    recipe::{Oci, Paths, Size},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// The version of the plan's shape, part of every digest of one.
const SCHEMA: u32 = 1;

/// All decisions of one build.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The version of this shape.
    pub schema: u32,
    /// The recipe's name.
    pub name: String,
    /// What the image is for, in one line.
    pub description: String,
    /// The architecture.
    pub arch: Arch,
    /// The names of the recipes it is made of, the outermost base first.
    pub lineage: Vec<String>,
    /// The parameters as they are set.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Apt archives, by name.
    pub sources: BTreeMap<String, LockedSource>,
    /// The requested packages, in the order of recipes and overlays.
    pub requests: Vec<Request>,
    /// Packages that must not be installed.
    pub forbid: Vec<String>,
    /// Whether recommended packages are installed too.
    pub recommends: bool,
    /// The packages, by name.
    pub packages: Vec<Package>,
    /// Debconf answers.
    pub preseed: Vec<String>,
    /// Paths of packages that are left out.
    pub paths: Paths,
    /// Users with fixed numbers.
    pub users: BTreeMap<String, User>,
    /// Groups with fixed numbers.
    pub groups: BTreeMap<String, Group>,
    /// The latest time that anything in the image has, in seconds since 1970; that of its newest package if not given.
    pub epoch: Option<i64>,
    /// The overlays, each after those whose services start before its own.
    pub overlays: Vec<PlannedOverlay>,
    /// What VM images have in addition; `None` where none is built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<PlannedDisk>,
    /// OCI images.
    pub oci: Oci,
}

/// What VM images have in addition to what every image has.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedDisk {
    /// The disk's size; what the image needs if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Arguments of the kernel, in addition to those for its consoles.
    pub arguments: Vec<String>,
    /// The requested packages.
    pub requests: Vec<Request>,
    /// The packages that are installed on those of every image, by name.
    pub packages: Vec<Package>,
    /// Debconf answers.
    pub preseed: Vec<String>,
    /// The overlays, on top of all others.
    pub overlays: Vec<PlannedOverlay>,
}

/// One package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Its architecture: the image's own or `all`.
    pub architecture: String,
    /// The SHA-256 of the .deb.
    pub sha256: Digest,
    /// The size of the .deb in bytes.
    pub size: u64,
    /// The path of the .deb below its archive's base URI.
    pub path: String,
    /// The apt archive, by the name that the recipe gives it.
    pub source: String,
    /// The name of the source package, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_package: Option<String>,
    /// Why it is there; not part of a lock.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One overlay's part of the image.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedOverlay {
    pub name: String,
    /// What it is for, in one line.
    pub description: String,
    pub files: Vec<PlannedFile>,
    /// Directories that it makes or adjusts.
    pub directories: BTreeMap<GuestPath, Directory>,
    /// Symbolic links and their targets.
    pub links: BTreeMap<GuestPath, String>,
    /// Paths that it removes.
    pub remove: Vec<GuestPath>,
    /// Units that start at every boot.
    pub enable: Vec<String>,
    /// Units that do not start by themselves.
    pub disable: Vec<String>,
    /// Units that nothing may start.
    pub mask: Vec<String>,
    /// The service that the guest program starts.
    pub service: Option<Service>,
}

/// One file of an overlay.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedFile {
    /// Its path in the running guest.
    pub path: GuestPath,
    /// Where the build puts it.
    pub installed: GuestPath,
    /// Where its bytes come from, as people know it: a path from the project's folder, or a program's name.
    pub origin: String,
    /// The file on this machine. Its path does not matter, only its bytes.
    #[serde(skip)]
    pub source: PathBuf,
    /// Who writes it.
    pub writer: Writer,
    /// The owner's name.
    pub owner: String,
    /// The group's name.
    pub group: String,
    /// The permission bits.
    pub mode: Mode,
    /// A program that must succeed on the staged file.
    pub check: Vec<String>,
    /// It is there before any package is.
    pub before_packages: bool,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl Plan {
    /// The digest that equal plans have: the key under which finished work is remembered.
    ///
    /// Why a package is there changes nothing that is built, and is left out.
    ///
    /// # Errors
    /// When the plan has no form in JSON.
    pub fn digest(&self) -> serde_json::Result<Digest> {
        let mut bare = self.clone();
        bare.packages.iter_mut().for_each(|package| package.reason.clear());
        bare.requests.clear();
        if let Some(disk) = &mut bare.disk {
            disk.packages.iter_mut().for_each(|package| package.reason.clear());
            disk.requests.clear();
        }
        Digest::of_json(&bare)
    }

    /// The base name of everything that is built: `NAME-ARCH`.
    pub fn artifact_name(&self) -> String {
        format!("{}-{}", self.name, self.arch)
    }

    /// The files that are there before any package is, with the overlay that has them.
    pub fn skeleton(&self) -> impl Iterator<Item = &PlannedFile> {
        before_packages(&self.overlays)
    }

    /// The manifest for the guest program; `None` if no overlay has the guest program.
    pub fn manifest(&self) -> Option<Manifest> {
        let has_node = self.overlays.iter().any(|overlay| overlay.name == NODE_OVERLAY);
        has_node.then(|| Manifest {
            schema: 1,
            name: self.name.clone(),
            parameters: self.parameters.clone(),
            overlays: self.overlays.iter().map(PlannedOverlay::component).collect(),
        })
    }
}

impl PlannedDisk {
    /// The files that are there before any package of VM images is.
    pub fn skeleton(&self) -> impl Iterator<Item = &PlannedFile> {
        before_packages(&self.overlays)
    }
}

fn before_packages(overlays: &[PlannedOverlay]) -> impl Iterator<Item = &PlannedFile> {
    overlays.iter().flat_map(|overlay| &overlay.files).filter(|file| file.before_packages)
}

/// The overlay that brings the guest program, and with it the manifest.
pub const NODE_OVERLAY: &str = "node";

impl PlannedOverlay {
    fn component(&self) -> Component {
        let templates = self.files.iter().filter(|file| file.writer == Writer::Node).map(|file| Template {
            template: file.installed.clone(),
            target: file.path.clone(),
            owner: file.owner.clone(),
            group: file.group.clone(),
            mode: file.mode.0,
            check: file.check.clone(),
        });
        Component {
            name: self.name.clone(),
            description: self.description.clone(),
            files: templates.collect(),
            service: self.service.clone(),
        }
    }
}

/// The path of the manifest, as a guest path.
pub fn manifest_path() -> GuestPath {
    GuestPath::constant(MANIFEST_PATH)
}

#[cfg(test)]
mod tests;
