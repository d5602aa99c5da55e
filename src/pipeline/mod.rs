//! Builds: from a recipe to artifacts.

mod disk;
mod layers;
mod mirror;
mod packages;
mod up_to_date;

pub use layers::owner_in_base;
pub use mirror::Mirrors;
pub use packages::{Access, plan};

use crate::{
    container_engine::{Engine, Which},
    error::UserError,
    files::NewFile,
    image::{
        compress::Compression,
        oci::{OciImage, OciLayer, OciSpec, Reference},
        sbom::{self, Materials, OverlayMaterial, PackageMaterial},
    },
    model::Digest,
    plan::{Draft, Lock, Package, Plan, PlannedDisk},
    progress::Progress,
    recipe::Archive,
    rootfs::tar::StoredLayer,
    store::Store,
};
use anyhow::{Context as _, Result};
use layers::{BuildContext, Layers};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use up_to_date::UpToDate;

/// What is to be built.
#[derive(Debug)]
pub struct Build {
    /// Everything but the packages.
    pub draft: Draft,
    /// The lock with the packages, and what errors call it; a solver chooses them if there is none.
    pub locked: Option<(Lock, String)>,
    /// Where packages come from.
    pub access: Access,
    /// What is written, and where.
    pub target: Target,
}

/// What is written, and where.
#[derive(Debug)]
pub struct Target {
    /// The folder that artifacts are put in.
    pub folder: PathBuf,
    /// Which artifacts.
    pub formats: BTreeSet<Format>,
    /// How layers are compressed.
    pub compression: Compression,
    /// The engine that the image is loaded into.
    pub load: Option<Which>,
}

/// A form that images are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An archive file that Docker and Podman load.
    Oci,
    /// An OCI image layout folder.
    OciLayout,
    /// A disk, byte for byte; holes take no room.
    Raw,
    /// A compressed disk for QEMU and what is built on it.
    Qcow2,
}

impl Format {
    /// Whether it is a VM image.
    pub fn is_disk(self) -> bool {
        matches!(self, Format::Raw | Format::Qcow2)
    }
}

/// The result of a build.
#[derive(Debug, Serialize)]
pub struct Built {
    /// The files and folders that are there now.
    pub artifacts: Vec<Artifact>,
    /// Whether all of them were there already.
    pub unchanged: bool,
    /// The image as the engine has it, if it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Loaded>,
}

/// A file or folder that a build wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// What it is: one of [`KINDS`].
    pub kind: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 of its bytes; of its manifest if it is a folder.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What artifacts are: images, the lock file, and bills of materials of the container and of the disk.
pub const KINDS: [&str; 9] =
    ["oci", "oci-layout", "raw", "qcow2", "lock", "spdx", "cyclonedx", "disk-spdx", "disk-cyclonedx"];

/// An image in an engine.
#[derive(Debug, Serialize)]
pub struct Loaded {
    /// Docker or Podman.
    pub engine: String,
    /// The image's name there.
    pub reference: String,
    /// Its id there.
    pub id: String,
}

/// Builds an image.
///
/// # Errors
/// A wrong request when recipe, overlays and packages do not fit together, and failed work from anything below. No
/// artifact is then changed but those that were finished.
pub fn run(build: Build, store: &Store, progress: &Progress) -> Result<Built> {
    let Build { draft, locked, access, target } = build;
    // Checked first: minutes of work for an image that the engine cannot load would be wasted.
    let engine = target.load.map(|which| engine_for(which, target.compression)).transpose()?;
    let sources = draft.sources().clone();
    let draft = fit(draft, &target)?;
    let plan = match locked {
        Some((lock, name)) => draft.with_lock(lock, &name)?,
        None => packages::plan(draft, &access, store, progress)?,
    };
    fs::create_dir_all(&target.folder).with_context(|| format!("making the folder {}", target.folder.display()))?;
    let up_to_date = UpToDate::of(&plan, &target)?;
    let (artifacts, unchanged) = match up_to_date.find(store) {
        Some(artifacts) => (artifacts, true),
        None => {
            let context = BuildContext { plan: &plan, sources: &sources, access: &access, store, progress };
            let artifacts = make(&context, &target)?;
            up_to_date.remember(store, &artifacts)?;
            (artifacts, false)
        }
    };
    let loaded = engine.map(|engine| load(&engine, &plan, &artifacts, progress)).transpose()?;
    Ok(Built { artifacts, unchanged, loaded })
}

/// The draft for `target`: packages of VM images are chosen only if one is built.
fn fit(draft: Draft, target: &Target) -> Result<Draft> {
    if !target.formats.iter().any(|format| format.is_disk()) {
        return Ok(draft.without_disk());
    }
    if draft.plan().disk.is_none() {
        let message = format!("the recipe `{}` has no `disk`, so no VM image can be built", draft.plan().name);
        let hint = "write `disk: {packages: […], overlays: […]}`, or extend a base that has it";
        return Err(UserError::usage(message).hint(hint).into());
    }
    Ok(draft)
}

/// Makes every artifact.
fn make(context: &BuildContext<'_>, target: &Target) -> Result<Vec<Artifact>> {
    let BuildContext { plan, store, progress, .. } = *context;
    let base = context.base()?;
    let mut artifacts = Vec::new();
    let mut documents = Vec::new();
    let name = plan.artifact_name();
    let bills = |kinds: [&'static str; 2], suffix: &str, contents: &Materials| -> Result<_> {
        let spdx = (kinds[0], format!("{name}{suffix}.spdx.json"), sbom::spdx(contents)?);
        let cyclonedx = (kinds[1], format!("{name}{suffix}.cdx.json"), sbom::cyclonedx(contents)?);
        Ok([spdx, cyclonedx])
    };
    if target.formats.iter().any(|format| !format.is_disk()) {
        let layers = context.container(&base)?;
        artifacts.extend(write_oci(plan, &layers, target, store, progress)?);
        documents.extend(bills(["spdx", "cyclonedx"], "", &materials(plan, &layers, None))?);
    }
    if let Some(planned) = &plan.disk {
        let layers = context.disk(&base, planned)?;
        artifacts.extend(disk::write(plan, planned, &layers, target, store, progress)?);
        let contents = materials(plan, &layers, Some(planned));
        documents.extend(bills(["disk-spdx", "disk-cyclonedx"], ".disk", &contents)?);
    }
    documents.insert(0, ("lock", format!("{}.lock.json", plan.name), Lock::of(plan).to_json()?));
    for (kind, file, text) in documents {
        artifacts.push(write_document(kind, &target.folder.join(file), &text)?);
    }
    Ok(artifacts)
}

/// Writes every form of the container image.
fn write_oci(
    plan: &Plan,
    layers: &Layers,
    target: &Target,
    store: &Store,
    progress: &Progress,
) -> Result<Vec<Artifact>> {
    let name = plan.artifact_name();
    let mut artifacts = Vec::new();
    let image = OciImage::assemble(store, &oci_spec(plan, layers, target.compression)?, progress)?;
    if target.formats.contains(&Format::Oci) {
        let written = image.write_archive(&target.folder.join(format!("{name}.oci.tar")), progress)?;
        artifacts.push(Artifact { kind: "oci", path: written.path, sha256: written.digest, size: written.size });
    }
    if target.formats.contains(&Format::OciLayout) {
        let path = target.folder.join(format!("{name}.oci"));
        image.write_layout(&path)?;
        artifacts.push(Artifact { kind: "oci-layout", path, sha256: *image.manifest(), size: image.size() });
    }
    Ok(artifacts)
}

fn write_document(kind: &'static str, path: &Path, text: &str) -> Result<Artifact> {
    let writing = || format!("writing {}", path.display());
    let mut file = NewFile::beside(path)?;
    file.file().set_permissions(Permissions::from_mode(0o644)).with_context(writing)?;
    file.write_all(text.as_bytes()).with_context(writing)?;
    file.publish(path)?;
    Ok(Artifact { kind, path: path.to_owned(), sha256: Digest::of(text), size: text.len() as u64 })
}

/// What the image is made of, for its bills of materials.
fn materials(plan: &Plan, layers: &Layers, disk: Option<&PlannedDisk>) -> Materials {
    let on_disk = disk.iter().flat_map(|disk| &disk.packages);
    let mut packages: Vec<&Package> = plan.packages.iter().chain(on_disk).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    let packages = packages.into_iter().map(|package| PackageMaterial {
        name: package.name.clone(),
        version: package.version.clone(),
        architecture: package.architecture.clone(),
        source: package.source_package.clone(),
        sha256: package.sha256,
    });
    let overlays_on_disk = disk.iter().flat_map(|disk| &disk.overlays);
    let overlays = plan.overlays.iter().chain(overlays_on_disk).map(|overlay| OverlayMaterial {
        name: overlay.name.clone(),
        description: overlay.description.clone(),
        layer: layers.of_overlay(&overlay.name).map(|layer| layer.tar),
    });
    // Of Debian's suites (trixie, trixie-updates), the release is the one without more to its name.
    let suites = plan.sources.values().filter(|source| source.archive == Some(Archive::Debian));
    let release = suites.map(|source| source.suite.clone()).min_by_key(String::len).unwrap_or_default();
    Materials {
        name: plan.name.clone(),
        version: None,
        description: plan.description.clone(),
        created: layers.epoch,
        arch: plan.arch,
        release,
        packages: packages.collect(),
        overlays: overlays.collect(),
    }
}

fn oci_spec(plan: &Plan, layers: &Layers, compression: Compression) -> Result<OciSpec> {
    let mut annotations = BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), plan.name.clone()),
        ("org.opencontainers.image.description".to_owned(), plan.description.clone()),
    ]);
    annotations.extend(plan.oci.labels.clone());
    let layer = |(title, layer): &(String, StoredLayer)| OciLayer { title: title.clone(), layer: layer.clone() };
    Ok(OciSpec {
        references: vec![reference(plan)?],
        arch: plan.arch,
        created: layers.epoch,
        layers: layers.layers.iter().map(layer).collect(),
        compression,
        ports: plan.oci.ports.clone(),
        annotations,
    })
}

/// The image's name in engines: the recipe's.
fn reference(plan: &Plan) -> Result<Reference> {
    Ok(plan.name.parse()?)
}

/// The engine, which reads layers that are compressed so.
fn engine_for(which: Which, compression: Compression) -> Result<Engine> {
    let engine = Engine::connect(which)?;
    if matches!(compression, Compression::Zstd(_)) && !engine.reads_zstd() {
        return Err(UserError::usage(format!("{engine} cannot read layers compressed with zstd"))
            .hint("leave out --compress zstd: Docker reads it from version 23 on")
            .into());
    }
    Ok(engine)
}

/// Puts the image into an engine, from its archive file.
fn load(engine: &Engine, plan: &Plan, artifacts: &[Artifact], progress: &Progress) -> Result<Loaded> {
    let archive = artifacts.iter().find(|artifact| artifact.kind == "oci").context("an archive to load")?;
    let images = engine.load(&archive.path, progress)?;
    let wanted = reference(plan)?.to_string();
    let image = images
        .into_iter()
        .find(|image| image.reference.ends_with(&wanted))
        .with_context(|| format!("{} loaded the archive, but has no image {wanted}", engine.kind()))?;
    Ok(Loaded { engine: engine.kind().to_string(), reference: image.reference, id: image.id })
}
