//! From packages and overlays to layers.

use super::{Access, packages};
use crate::{
    base::{self, BaseSpec, SkeletonFile},
    debian::deb::ExpandedDeb,
    image::compose::{self, Bytes, OverlayFiles, Owner, Place},
    overlay::Writer,
    plan::{self, Plan, PlannedFile, PlannedOverlay},
    progress::{Progress, Unit},
    recipe::Source,
    rootfs::{
        Change, Kind, Tree,
        tar::{Contents, StoredLayer},
    },
    sandbox::Sandbox,
    spec::{Digest, GuestPath, User},
    store::{Outcome, Store},
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
}

/// A base layer, remembered under what it was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Base {
    layer: StoredLayer,
    epoch: i64,
}

impl Outcome for Base {
    const KIND: &'static str = "base";

    fn blobs(&self) -> Vec<Digest> {
        self.layer.blobs()
    }
}

impl Layers {
    /// Makes the layers of `plan`, or finds them in the store.
    ///
    /// # Errors
    /// Whatever goes wrong with packages, maintainer scripts, overlays or the store.
    pub fn make(
        plan: &Plan,
        sources: &BTreeMap<String, Source>,
        access: &Access,
        store: &Store,
        sandbox: &Sandbox,
        progress: &Progress,
    ) -> Result<Layers> {
        let (base, known) = store.memoise(&base_key(plan), || {
            let packages = packages::fetch(plan, sources, access, store, progress)?;
            let newest = packages.iter().map(|package| package.newest).max().unwrap_or(0);
            let epoch = plan.epoch.unwrap_or(newest);
            let (layer, _) = base::build(store, progress, sandbox, &[], &base_spec(plan, packages, epoch)?)?;
            Ok(Base { layer, epoch })
        })?;
        if known {
            progress.note("base        nothing changed");
        }
        let Base { layer, epoch } = base;
        let step = progress.step("overlays", plan.overlays.len() as u64, Unit::Items);
        let mut tree = Tree::default();
        tree.apply(&layer.load(store)?).context("reading the base layer")?;
        let mut layers = vec![("base".to_owned(), layer)];
        for overlay in &plan.overlays {
            step.detail(&overlay.name);
            if let Some(composed) = compose::compose(store, &mut tree, &overlay_files(overlay), epoch)? {
                layers.push((overlay_title(&overlay.name), composed.layer));
            }
            step.advance(1);
        }
        if let Some(manifest) = manifest(plan)? {
            let composed = compose::compose(store, &mut tree, &manifest, epoch)?;
            layers.extend(composed.map(|composed| ("manifest".to_owned(), composed.layer)));
        }
        step.finish(format!("{} layers on the base", layers.len() - 1));
        Ok(Layers { layers, epoch })
    }
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
    let skeleton: Vec<_> = plan.skeleton().map(|(_, file)| (&file.path, file.mode, file.sha256)).collect();
    let rest = (&plan.preseed, &plan.paths, &plan.users, &plan.groups, plan.epoch);
    Digest::of(serde_json::to_vec(&(base::ENGINE, packages, skeleton, rest)).unwrap_or_default())
}

fn base_spec(plan: &Plan, packages: Vec<ExpandedDeb>, epoch: i64) -> Result<BaseSpec> {
    let skeleton = plan.skeleton().map(|(_, file)| {
        let bytes = fs::read(&file.source).with_context(|| format!("reading {}", file.source.display()))?;
        Ok(SkeletonFile { path: file.path.clone(), mode: file.mode.0, bytes })
    });
    Ok(BaseSpec {
        packages,
        skeleton: skeleton.collect::<Result<_>>()?,
        preseed: plan.preseed.iter().map(|answer| format!("{answer}\n")).collect(),
        exclude: plan.paths.exclude.clone(),
        include: plan.paths.include.clone(),
        users: plan.users.iter().map(|(name, user)| user_of(name, user)).collect(),
        groups: plan.groups.iter().map(|(name, group)| base::Group { name: name.clone(), gid: group.gid }).collect(),
        epoch,
        limit: DPKG_LIMIT,
        place: base::Place::Auto,
    })
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

fn overlay_files(overlay: &PlannedOverlay) -> OverlayFiles {
    let mut places = BTreeMap::new();
    // What is there before packages are is part of the base.
    for file in overlay.files.iter().filter(|file| !file.before_packages) {
        places.insert(file.installed.clone(), place(file));
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
    Ok(Some(OverlayFiles { name: "the manifest".to_owned(), places, ..OverlayFiles::default() }))
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
