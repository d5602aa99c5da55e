//! From packages and overlays to layers.

use super::{Access, packages};
use crate::{
    base::{self, BaseSpec, SkeletonFile},
    debian::deb::ExpandedDeb,
    disk::grub,
    image::compose::{self, Bytes, OverlayFiles, Owner, Place},
    model::{Arch, Digest, GuestPath, User},
    overlay::Writer,
    plan::{self, Package, Plan, PlannedDisk, PlannedFile, PlannedOverlay},
    progress::{Progress, Unit},
    recipe::Source,
    rootfs::{
        Change, Kind, Tree,
        tar::{Contents, StoredLayer},
    },
    sandbox::Sandbox,
    store::{CachedResult, Store},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, time::Duration};

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
    /// Who is told.
    pub progress: &'a Progress,
}

impl BuildContext<'_> {
    /// Makes the base layer, which all images have, or finds it in the store.
    ///
    /// # Errors
    /// Whatever goes wrong with packages, maintainer scripts or the store.
    pub fn base(&self) -> Result<Base> {
        let (base, known) = self.store.memoise(&base_key(self.plan), || {
            let packages = self.fetch(&self.plan.packages)?;
            let epoch = self.plan.epoch.unwrap_or(newest(&packages));
            self.install(&[], base_spec(self.plan, &packages, epoch)?, &packages)
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

    /// Makes the layers of VM images: above the base lies what they boot with, above the overlays of all images those of
    /// disks.
    ///
    /// # Errors
    /// Whatever goes wrong with packages, maintainer scripts, overlays or the store.
    pub fn disk(&self, base: &Base, disk: &PlannedDisk) -> Result<Layers> {
        let (boot, known) = self.store.memoise(&boot_key(self.plan, base, disk)?, || {
            let packages = self.fetch(&disk.packages)?;
            let epoch = self.plan.epoch.unwrap_or(newest(&packages).max(base.epoch));
            let spec = boot_spec(self.plan, disk, &packages, epoch)?;
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
            tree.apply(&boot.layer.load(store)?).context("reading the layer that boots")?;
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
        let generated = [manifest(self.plan)?, boot.map(|(_, disk)| boot_files(self.plan, disk))];
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

/// The key of the base layer: everything of the plan that it is made of.
fn base_key(plan: &Plan) -> Digest {
    let packages: Vec<_> = plan.packages.iter().map(|package| (&package.name, package.sha256)).collect();
    let skeleton: Vec<_> = plan.skeleton().map(|file| (&file.path, file.mode, file.sha256)).collect();
    let rest = (&plan.preseed, &plan.paths, &plan.users, &plan.groups, plan.epoch);
    Digest::of(serde_json::to_vec(&(base::ENGINE, packages, skeleton, rest)).unwrap_or_default())
}

/// The key of the layer that VM images boot with.
fn boot_key(plan: &Plan, base: &Base, disk: &PlannedDisk) -> Result<Digest> {
    let packages: Vec<_> = disk.packages.iter().map(|package| (&package.name, package.sha256)).collect();
    let skeleton: Vec<_> = disk.skeleton().map(|file| (&file.path, file.mode, file.sha256)).collect();
    let rest = (&disk.preseed, &plan.paths, boot_programs(plan.arch), plan.epoch);
    let key = (base::ENGINE, "boot", &base.layer, packages, skeleton, rest);
    Ok(Digest::of(serde_json::to_vec(&key)?))
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

fn base_spec(plan: &Plan, packages: &[ExpandedDeb], epoch: i64) -> Result<BaseSpec> {
    Ok(BaseSpec {
        packages: packages.iter().map(base::Package::from).collect(),
        skeleton: plan.skeleton().map(skeleton_file).collect::<Result<_>>()?,
        preseed: plan.preseed.iter().map(|answer| format!("{answer}\n")).collect(),
        exclude: plan.paths.exclude.clone(),
        include: plan.paths.include.clone(),
        users: plan.users.iter().map(|(name, user)| user_of(name, user)).collect(),
        groups: plan.groups.iter().map(|(name, group)| base::Group { name: name.clone(), gid: group.gid }).collect(),
        programs: Vec::new(),
        epoch,
        limit: DPKG_LIMIT,
        place: base::Place::Auto,
    })
}

fn boot_spec(plan: &Plan, disk: &PlannedDisk, packages: &[ExpandedDeb], epoch: i64) -> Result<BaseSpec> {
    Ok(BaseSpec {
        packages: packages.iter().map(base::Package::from).collect(),
        skeleton: disk.skeleton().map(skeleton_file).collect::<Result<_>>()?,
        preseed: disk.preseed.iter().map(|answer| format!("{answer}\n")).collect(),
        exclude: plan.paths.exclude.clone(),
        include: plan.paths.include.clone(),
        programs: boot_programs(plan.arch),
        epoch,
        limit: DPKG_LIMIT,
        ..BaseSpec::default()
    })
}

fn skeleton_file(file: &PlannedFile) -> Result<SkeletonFile> {
    let bytes = fs::read(&file.source).with_context(|| format!("reading {}", file.source.display()))?;
    Ok(SkeletonFile { path: file.path.clone(), mode: file.mode.0, bytes })
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
        // A template is nobody's but root's; owner and mode are those of what it becomes.
        Writer::Node | Writer::Confd => Place::File { bytes, owner: Owner::root(), mode: 0o644 },
    }
}

/// The layer with what the image tells the guest program about itself.
fn manifest(plan: &Plan) -> Result<Option<OverlayFiles>> {
    let Some(manifest) = plan.manifest() else { return Ok(None) };
    let mut bytes = serde_json::to_vec_pretty(&manifest)?;
    bytes.push(b'\n');
    let file = Place::File { bytes: Bytes::Here(bytes), owner: Owner::root(), mode: 0o644 };
    let places = BTreeMap::from([(plan::manifest_path(), file)]);
    Ok(Some(OverlayFiles { name: "manifest".to_owned(), places, ..OverlayFiles::default() }))
}

/// The layer with what a VM image's file systems are known by, and how it boots.
fn boot_files(plan: &Plan, disk: &PlannedDisk) -> OverlayFiles {
    let files = super::disk::boot_files(plan, disk).into_iter().map(|(path, text)| {
        let file = Place::File { bytes: Bytes::Here(text.into_bytes()), owner: Owner::root(), mode: 0o644 };
        (path, file)
    });
    OverlayFiles { name: "disk".to_owned(), places: files.collect(), ..OverlayFiles::default() }
}

/// Which package of the base has `path`, if the base was built on this machine.
///
/// # Errors
/// When the store cannot be read.
pub fn owner_in_base(plan: &Plan, store: &Store, path: &GuestPath) -> Result<Option<String>> {
    let Some(base) = store.action::<Base>(&base_key(plan)) else { return Ok(None) };
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
