//! Makes layers of packages and overlays.

use super::{Access, packages};
use crate::{
    base::{self, BaseSpec, SkeletonFile},
    debian::deb::ExpandedDeb,
    disk::grub,
    error::UserError,
    image::compose::{self, Bytes, OverlayFiles, Owner, Place},
    model::{Arch, Digest, Group, GuestPath, User},
    overlay::Writer,
    plan::{self, Package, Plan, PlannedDisk, PlannedFile, PlannedOverlay},
    progress::{Progress, Unit},
    recipe::{Paths, Source},
    rootfs::{
        Change, Kind, Tree,
        tar::{Contents, StoredLayer},
    },
    sandbox::Sandbox,
    store::{CachedResult, Store},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// The longest time that one run of dpkg may take.
const DPKG_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The layers of an image, lowest first.
#[derive(Debug)]
pub struct Layers {
    /// What each is, and the layer.
    pub layers: Vec<(String, StoredLayer)>,
    /// The latest time of anything in them, in seconds since 1970.
    pub epoch: i64,
    /// Their sum.
    pub tree: Tree,
}

/// Installed packages, remembered under what they were made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Base {
    layer: StoredLayer,
    epoch: i64,
}

impl CachedResult for Base {
    const KIND: &'static str = "base";

    fn blobs(&self) -> Vec<Digest> {
        self.layer.blobs()
    }
}

/// Where layers are made.
#[derive(Debug, Clone, Copy)]
pub struct BuildContext<'a> {
    /// What is built.
    pub plan: &'a Plan,
    /// Apt archives, by name.
    pub sources: &'a BTreeMap<String, Source>,
    /// How they are reached.
    pub access: &'a Access,
    /// Where results are kept.
    pub store: &'a Store,
    /// Where progress is reported.
    pub progress: &'a Progress,
}

impl BuildContext<'_> {
    /// Makes the base layer, which all images have, or finds it in the store.
    ///
    /// # Errors
    /// Whatever goes wrong with packages, maintainer scripts or the store.
    pub fn base(&self) -> Result<Base> {
        let inputs = PackageLayer::base(self.plan);
        let (base, known) = self.store.memoise(&inputs.key()?, || {
            let packages = self.fetch(&self.plan.packages)?;
            self.install(&[], inputs.spec(&packages, newest(&packages))?, &packages)
        })?;
        if known {
            self.progress.note("base        nothing changed");
        }
        Ok(base)
    }

    /// Makes the layers of container images.
    ///
    /// # Errors
    /// Whatever goes wrong with overlays or the store.
    pub fn container(&self, base: &Base) -> Result<Layers> {
        self.compose(base, None)
    }

    /// Makes the layers of VM images: above the base the packages that they boot with, above the overlays of all images
    /// those of disks.
    ///
    /// # Errors
    /// Whatever goes wrong with packages, maintainer scripts, overlays or the store.
    pub fn disk(&self, base: &Base, disk: &PlannedDisk) -> Result<Layers> {
        let inputs = PackageLayer::boot(self.plan, disk, base);
        let (boot, known) = self.store.memoise(&inputs.key()?, || {
            let packages = self.fetch(&disk.packages)?;
            let spec = inputs.spec(&packages, newest(&packages).max(base.epoch))?;
            self.install(std::slice::from_ref(&base.layer), spec, &packages)
        })?;
        if known {
            self.progress.note("boot        nothing changed");
        }
        self.compose(base, Some((&boot, disk)))
    }

    fn fetch(&self, packages: &[Package]) -> Result<Vec<ExpandedDeb>> {
        packages::fetch(packages, self.sources, self.access, self.store, self.progress)
    }

    fn install(&self, below: &[StoredLayer], spec: BaseSpec, packages: &[ExpandedDeb]) -> Result<Base> {
        let supply = &mut base::at_hand(packages);
        let (layer, _) = base::build(self.store, self.progress, &Sandbox::new(), below, &spec, supply)?;
        Ok(Base { layer, epoch: spec.epoch })
    }

    /// Puts overlays on top of packages.
    fn compose(&self, base: &Base, boot: Option<(&Base, &PlannedDisk)>) -> Result<Layers> {
        let store = self.store;
        let of_disk = boot.map_or(&[][..], |(_, disk)| &disk.overlays);
        let overlays = || self.plan.overlays.iter().chain(of_disk);
        let step = self.progress.step("overlays", overlays().count() as u64, Unit::Items);
        let mut tree = Tree::default();
        let mut layers = Vec::new();
        let mut epoch = base.epoch;
        tree.apply(&base.layer.load(store)?).context("reading the base layer")?;
        layers.push(("base".to_owned(), base.layer.clone()));
        if let Some((boot, _)) = boot {
            tree.apply(&boot.layer.load(store)?).context("reading the boot layer")?;
            layers.push(("boot".to_owned(), boot.layer.clone()));
            epoch = boot.epoch;
        }
        for overlay in overlays() {
            step.detail(&overlay.name);
            let files = overlay_files(overlay, &tree);
            if let Some(composed) = compose::compose(store, &mut tree, &files, base.epoch)? {
                layers.push((overlay_title(&overlay.name), composed.layer));
            }
            step.advance(1);
        }
        let generated = [manifest(self.plan)?, boot.map(|(_, disk)| boot_files(self.plan, disk)).transpose()?];
        for files in generated.into_iter().flatten() {
            let composed = compose::compose(store, &mut tree, &files, base.epoch)?;
            layers.extend(composed.map(|composed| (files.name, composed.layer)));
        }
        step.finish(format!("{} layers on the packages", layers.len() - 1 - usize::from(boot.is_some())));
        Ok(Layers { layers, epoch, tree })
    }
}

fn newest(packages: &[ExpandedDeb]) -> i64 {
    packages.iter().map(|package| package.newest).max().unwrap_or(0)
}

impl Layers {
    /// The layer of an overlay; `None` if it changes no path.
    pub fn of_overlay(&self, name: &str) -> Option<&StoredLayer> {
        let title = overlay_title(name);
        self.layers.iter().find(|(known, _)| *known == title).map(|(_, layer)| layer)
    }
}

fn overlay_title(name: &str) -> String {
    format!("overlay {name}")
}

/// Everything of a plan that a layer of packages depends on: its digest is the layer's key, and its [`BaseSpec`] is made
/// from nothing else.
#[derive(Debug, Clone, Serialize)]
struct PackageLayer<'a> {
    /// Raised when equal inputs give another layer than before.
    engine: u32,
    /// The layer below, if there is one.
    below: Option<&'a StoredLayer>,
    /// Names and digests of packages.
    packages: Vec<(&'a str, Digest)>,
    /// Files that are there before packages are: path, mode, digest.
    skeleton: Vec<(&'a GuestPath, u32, Digest)>,
    /// Where those files are on this machine; their digests say what they hold.
    #[serde(skip)]
    sources: Vec<&'a Path>,
    preseed: &'a [String],
    paths: &'a Paths,
    users: &'a BTreeMap<String, User>,
    groups: &'a BTreeMap<String, Group>,
    /// Programs that are run when everything is configured.
    programs: Vec<Vec<String>>,
    /// The time that no file may be later than; without, that of the newest package or of the layer below.
    epoch: Option<i64>,
}

impl<'a> PackageLayer<'a> {
    /// The layer that all images have.
    fn base(plan: &'a Plan) -> PackageLayer<'a> {
        let skeleton = plan.skeleton().collect();
        PackageLayer {
            users: &plan.users,
            groups: &plan.groups,
            ..PackageLayer::new(plan, &plan.packages, skeleton, &plan.preseed)
        }
    }

    /// The layer that VM images boot with, on top of `below`.
    fn boot(plan: &'a Plan, disk: &'a PlannedDisk, below: &'a Base) -> PackageLayer<'a> {
        let skeleton = disk.skeleton().collect();
        PackageLayer {
            below: Some(&below.layer),
            programs: boot_programs(plan.arch),
            ..PackageLayer::new(plan, &disk.packages, skeleton, &disk.preseed)
        }
    }

    fn new(
        plan: &'a Plan,
        packages: &'a [Package],
        skeleton: Vec<&'a PlannedFile>,
        preseed: &'a [String],
    ) -> PackageLayer<'a> {
        static NO_USERS: BTreeMap<String, User> = BTreeMap::new();
        static NO_GROUPS: BTreeMap<String, Group> = BTreeMap::new();
        PackageLayer {
            engine: base::ENGINE,
            below: None,
            packages: packages.iter().map(|package| (package.name.as_str(), package.sha256)).collect(),
            sources: skeleton.iter().map(|file| file.source.as_path()).collect(),
            skeleton: skeleton.into_iter().map(|file| (&file.path, file.mode.0, file.sha256)).collect(),
            preseed,
            paths: &plan.paths,
            users: &NO_USERS,
            groups: &NO_GROUPS,
            programs: Vec::new(),
            epoch: plan.epoch,
        }
    }

    fn key(&self) -> Result<Digest> {
        Digest::of_json(self).context("computing the key of a layer of packages")
    }

    /// What the layer is made of, with these `packages` and a time for those without [`PackageLayer::epoch`].
    fn spec(&self, packages: &[ExpandedDeb], newest: i64) -> Result<BaseSpec> {
        let skeleton = self.skeleton.iter().zip(&self.sources);
        Ok(BaseSpec {
            packages: packages.iter().map(base::Package::from).collect(),
            skeleton: skeleton.map(|(file, source)| skeleton_file(*file, source)).collect::<Result<_>>()?,
            preseed: self.preseed.iter().map(|answer| format!("{answer}\n")).collect(),
            exclude: self.paths.exclude.clone(),
            include: self.paths.include.clone(),
            users: self.users.iter().map(|(name, user)| user_of(name, user)).collect(),
            groups: self
                .groups
                .iter()
                .map(|(name, group)| base::Group { name: name.clone(), gid: group.gid })
                .collect(),
            programs: self.programs.clone(),
            epoch: self.epoch.unwrap_or(newest),
            limit: DPKG_LIMIT,
            place: base::Place::Auto,
        })
    }
}

/// What is run when the packages that VM images boot with are configured: GRUB for a BIOS is put together, as
/// `grub-install` does it, but for no device.
fn boot_programs(arch: Arch) -> Vec<Vec<String>> {
    match arch {
        Arch::Amd64 => {
            let folder = ["mkdir", "--parents", grub::BIOS_FOLDER].map(str::to_owned).to_vec();
            vec![folder, grub::core_image_argv(grub::BIOS_CORE)]
        }
        Arch::Arm64 => Vec::new(),
    }
}

fn skeleton_file((path, mode, sha256): (&GuestPath, u32, Digest), source: &Path) -> Result<SkeletonFile> {
    let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    if Digest::of(&bytes) != sha256 {
        return Err(UserError::runtime(format!("{} changed during the build", source.display()))
            .hint("build again, without changing files meanwhile")
            .into());
    }
    Ok(SkeletonFile { path: path.clone(), mode, bytes })
}

fn user_of(name: &str, user: &User) -> base::User {
    base::User {
        name: name.to_owned(),
        uid: user.uid,
        group: user.group.clone().unwrap_or_else(|| name.to_owned()),
        groups: user.groups.clone(),
        home: user.home.clone(),
        shell: user.shell.clone(),
        comment: user.comment.clone(),
    }
}

/// What an overlay puts on `below`.
fn overlay_files(overlay: &PlannedOverlay, below: &Tree) -> OverlayFiles {
    let mut places = BTreeMap::new();
    // What is there before packages are is part of the base.
    for file in overlay.files.iter().filter(|file| !file.before_packages) {
        places.insert(file.installed.clone(), place(file));
        // A package's own file in the place of one that is rendered on the node would be taken for a rendered one.
        if file.writer == Writer::Confd && below.get(file.path.as_str()).is_some() {
            places.insert(file.path.clone(), Place::Remove);
        }
    }
    for (path, directory) in &overlay.directories {
        let owner = Owner { user: directory.owner.clone(), group: directory.group.clone() };
        places.insert(path.clone(), Place::Directory { owner, mode: directory.mode.0 });
    }
    for (path, target) in &overlay.links {
        places.insert(path.clone(), Place::Link(target.clone()));
    }
    for path in &overlay.remove {
        places.insert(path.clone(), Place::Remove);
    }
    OverlayFiles {
        name: overlay.name.clone(),
        places,
        enable: overlay.enable.clone(),
        disable: overlay.disable.clone(),
        mask: overlay.mask.clone(),
    }
}

fn place(file: &PlannedFile) -> Place {
    let bytes = Bytes::At { path: file.source.clone(), digest: file.sha256, size: file.size };
    match file.writer {
        Writer::Image => {
            let owner = Owner { user: file.owner.clone(), group: file.group.clone() };
            Place::File { bytes, owner, mode: file.mode.0 }
        }
        // A template belongs to root; the overlay's owner and mode are those of the rendered file.
        Writer::Node | Writer::Confd => Place::File { bytes, owner: Owner::root(), mode: 0o644 },
    }
}

/// The layer with the image's manifest.
fn manifest(plan: &Plan) -> Result<Option<OverlayFiles>> {
    let Some(manifest) = plan.manifest() else { return Ok(None) };
    let mut bytes = serde_json::to_vec_pretty(&manifest)?;
    bytes.push(b'\n');
    let file = Place::File { bytes: Bytes::Here(bytes), owner: Owner::root(), mode: 0o644 };
    let places = BTreeMap::from([(plan::manifest_path(), file)]);
    Ok(Some(OverlayFiles { name: "manifest".to_owned(), places, ..OverlayFiles::default() }))
}

/// The layer with what a VM image's file systems are known by, and how it boots.
fn boot_files(plan: &Plan, disk: &PlannedDisk) -> Result<OverlayFiles> {
    let files = super::disk::boot_files(plan, disk)?.into_iter().map(|(path, text)| {
        let file = Place::File { bytes: Bytes::Here(text.into_bytes()), owner: Owner::root(), mode: 0o644 };
        (path, file)
    });
    Ok(OverlayFiles { name: "disk".to_owned(), places: files.collect(), ..OverlayFiles::default() })
}

/// Which package of the base has `path`, if the base was built on this machine.
///
/// # Errors
/// When the store cannot be read.
pub fn owner_in_base(plan: &Plan, store: &Store, path: &GuestPath) -> Result<Option<String>> {
    let Some(base) = store.action::<Base>(&PackageLayer::base(plan).key()?) else { return Ok(None) };
    let layer = base.layer.load(store)?;
    let mut contents = Contents::new(store);
    for (list, change) in &layer.changes {
        // dpkg's database has one list of paths for each package (dpkg(1), FILES).
        let Some(name) = list.as_str().strip_prefix("/var/lib/dpkg/info/").and_then(|name| name.strip_suffix(".list"))
        else {
            continue;
        };
        let Change::Set(entry) = change else { continue };
        let Kind::File(content) = &entry.kind else { continue };
        let paths = contents.read(content)?;
        if paths.split(|byte| *byte == b'\n').any(|line| line == path.as_str().as_bytes()) {
            return Ok(Some(name.split(':').next().unwrap_or(name).to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<Base>(
            r#"{"layer":{"tar":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","size":7680,"index":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee"},"epoch":1750000000}"#,
        );
    }
}
