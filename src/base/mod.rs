//! Makes the base layer: packages, installed and configured.
//!
//! dpkg runs inside the root that it makes ([`crate::sandbox`]), so the host needs nothing of Debian. All that touches
//! the root happens in one job:
//!
//! 1. **bootstrap**: the data of the essential packages is put into the empty root, so that dpkg and a shell run there;
//! 2. **install**: dpkg installs the essential packages properly; then users with fixed numbers and answers to debconf's
//!    questions are put in, then everything else is unpacked in as few runs as Pre-Depends allow, and configured;
//! 3. **initramfs**: made once, when there is a kernel; then whatever programs the [`BaseSpec`] names;
//! 4. **clean**: what would be the same in every copy of an image, or shows when it was made, is removed;
//! 5. **capture**: the root becomes a layer, and is checked for what step 4 should have taken.
//!
//! The layer depends on nothing but its [`BaseSpec`]: not on who makes it, where, or when.

mod accounts;
mod bootstrap;
mod capture;
mod clean;
mod dpkg;
mod job;
mod materialise;
mod order;
mod patterns;
mod root;

pub use accounts::{Group, User};
pub use clean::lint;

use crate::{
    debian::deb::ExpandedDeb,
    error::UserError,
    model::{Digest, GuestPath},
    progress::{Progress, Step, Unit},
    rootfs::tar::StoredLayer,
    sandbox::{self, Job, Sandbox},
    store::Store,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::Path,
    time::Duration,
};

/// The job that [`build`] has done in namespaces; `main` offers it to [`crate::sandbox::entry`].
pub const JOB: Job = Job { name: "base", work: job::work };

/// Changes when the same [`BaseSpec`] gives another layer than before.
pub const ENGINE: u32 = 5;

/// What a base layer is made of; its digest is the layer's cache key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BaseSpec {
    /// The packages, in any order; each one's dependencies are among them, or in the layers below.
    pub packages: Vec<Package>,
    /// Files put in place before packages are installed; a package's configuration file gives way to one.
    pub skeleton: Vec<SkeletonFile>,
    /// Answers to debconf's questions, in the form of debconf-set-selections(1).
    pub preseed: String,
    /// Patterns of paths that are left out (dpkg(1), `path-exclude`).
    pub exclude: Vec<String>,
    /// Patterns of paths that stay though `exclude` has them (dpkg(1), `path-include`).
    pub include: Vec<String>,
    /// Users that are there before the packages that would make them.
    pub users: Vec<User>,
    /// Groups likewise.
    pub groups: Vec<Group>,
    /// Programs of the root that are run, one after the other, when everything is configured: their argument vectors.
    #[serde(default)]
    pub programs: Vec<Vec<String>>,
    /// No file is dated later than this, in seconds since 1970.
    pub epoch: i64,
    /// The longest time that one run of dpkg may take. No part of the key.
    pub limit: Duration,
    /// Where the root lies while it is made. No part of the key.
    #[serde(default)]
    pub place: Place,
}

/// Where a root lies while it is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In memory if there is several times as much as the root takes, else in the store.
    #[default]
    Auto,
    /// In the store's folder for work in progress.
    Disk,
    /// In memory that is given back when the work ends.
    Memory,
}

/// A package to be installed, with its control fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The SHA-256 of the .deb as the archive has it.
    pub original: Digest,
    /// The fields of its control file; those of the archive's index are as good.
    pub control: BTreeMap<String, String>,
}

impl From<&ExpandedDeb> for Package {
    fn from(package: &ExpandedDeb) -> Package {
        Package { original: package.original, control: package.control.clone() }
    }
}

/// Where packages come from while the layer is being made: waits until those with these digests are expanded, and
/// returns the digests of the expanded ones ([`ExpandedDeb::expanded`]) in the same order.
///
/// It is called for a few packages at a time, in the order of [`BaseSpec::order`], so that installing can begin when
/// the first ones are there.
pub type Supply<'a> = dyn FnMut(&[Digest]) -> Result<Vec<Digest>> + 'a;

/// A supply of packages that are all there already.
pub fn at_hand(packages: &[ExpandedDeb]) -> impl FnMut(&[Digest]) -> Result<Vec<Digest>> + use<> {
    let known: HashMap<Digest, Digest> = packages.iter().map(|package| (package.original, package.expanded)).collect();
    move |wanted| wanted.iter().map(|original| known.get(original).copied().context("a package is missing")).collect()
}

/// A file that is there before any package is installed; root owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkeletonFile {
    /// Where it is.
    pub path: GuestPath,
    /// Its permission bits.
    pub mode: u32,
    /// What it holds.
    pub bytes: Vec<u8>,
}

impl BaseSpec {
    /// The key under which the layer is kept: everything that it depends on.
    ///
    /// # Errors
    /// When a value has no form in JSON.
    pub fn key(&self, below: &[StoredLayer]) -> Result<Digest> {
        // A field that is added must be named here: part of the key, or left out on purpose.
        let BaseSpec {
            packages,
            skeleton,
            preseed,
            exclude,
            include,
            users,
            groups,
            programs,
            epoch,
            limit: _,
            place: _,
        } = self;
        let mut packages: Vec<_> = packages.iter().map(|package| package.original).collect();
        packages.sort();
        let key = (
            (ENGINE, packages, skeleton, preseed, exclude, include),
            (users, groups, programs, epoch),
            below.iter().map(|layer| layer.tar).collect::<Vec<_>>(),
        );
        Digest::of_json(&key).context("computing the key of a base layer")
    }

    /// The order in which packages are asked for, by their place in [`BaseSpec::packages`].
    ///
    /// # Errors
    /// When the packages are not a base, though there are no layers below, or pre-depend on each other.
    pub fn order(&self, below: &[StoredLayer]) -> Result<Vec<usize>> {
        let mut sorted: Vec<usize> = (0..self.packages.len()).collect();
        sorted.sort_by_cached_key(|&at| order::identity(&self.packages[at]));
        let packages: Vec<Package> = sorted.iter().map(|&at| self.packages[at].clone()).collect();
        let batches = order::plan(&packages, below.is_empty())?;
        Ok(batches.unpacked().map(|at| sorted[at]).collect())
    }
}

/// Makes the base layer of `spec`, or finds it in the store; also says whether it was found.
///
/// With layers `below`, the packages are installed on top of those, and the result is what changes.
///
/// # Errors
/// When the namespaces cannot be entered, a package cannot be installed, or the store cannot be written.
pub fn build(
    store: &Store,
    progress: &Progress,
    sandbox: &Sandbox,
    below: &[StoredLayer],
    spec: &BaseSpec,
    supply: &mut Supply<'_>,
) -> Result<(StoredLayer, bool)> {
    store.memoise(&spec.key(below)?, || {
        sweep(store, sandbox);
        let scratch = Scratch::new(store, sandbox)?;
        let mut spec = spec.clone();
        // dpkg's records keep the order in which packages came.
        spec.packages.sort_by_cached_key(order::identity);
        let request = job::Request {
            store: store.root().to_owned(),
            scratch: scratch.folder.clone(),
            below: below.to_vec(),
            spec,
        };
        let originals = request.spec.packages.iter().map(|package| package.original).collect();
        let mut listener = Listener { progress, current: None, originals, supply };
        let layer = sandbox.work(JOB.name, &request, &mut listener);
        layer.context("building the base layer")
    })
}

/// The folder where a root is made; locked, so that other programs do not take it for one that was left behind.
struct Scratch<'a> {
    folder: std::path::PathBuf,
    _lock: File,
    sandbox: &'a Sandbox,
}

const SCRATCH: &str = "base";

impl Scratch<'_> {
    fn new<'a>(store: &Store, sandbox: &'a Sandbox) -> Result<Scratch<'a>> {
        loop {
            let folder = store.scratch(SCRATCH)?.keep();
            let lock = File::open(&folder).with_context(|| format!("opening {}", folder.display()))?;
            // Between the two, another program may have taken the folder for one that was left.
            if lock.try_lock().is_ok() && folder.exists() {
                return Ok(Scratch { folder, _lock: lock, sandbox });
            }
        }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        remove(self.sandbox, &self.folder);
    }
}

/// Removes what builds that were killed left: files of subordinate ids, which the store's own sweep cannot remove.
fn sweep(store: &Store, sandbox: &Sandbox) {
    let Ok(entries) = std::fs::read_dir(store.scratch_root()) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(&format!("{SCRATCH}-"));
        if ours
            && let Ok(folder) = File::open(entry.path())
            && folder.try_lock().is_ok()
        {
            remove(sandbox, &entry.path());
        }
    }
}

/// Removes a scratch folder. One that cannot be removed does no harm.
fn remove(sandbox: &Sandbox, folder: &Path) {
    // The job has removed the root already, unless it was killed.
    if std::fs::remove_dir_all(folder).is_err() {
        let _ = sandbox.remove_tree(folder);
    }
}

/// Tells of the job's steps, and supplies it with packages.
struct Listener<'a, 'b> {
    progress: &'a Progress,
    current: Option<Step>,
    originals: Vec<Digest>,
    supply: &'a mut Supply<'b>,
}

impl sandbox::Listener for Listener<'_, '_> {
    fn on_event(&mut self, event: serde_json::Value) {
        let Ok(told) = serde_json::from_value::<job::JobReport>(event) else { return };
        match told {
            job::JobReport::Begin { step, total } => {
                self.current = Some(self.progress.step(step.name(), total, Unit::Items));
            }
            job::JobReport::Advance { count, detail } => {
                if let Some(step) = &self.current {
                    step.advance(count);
                    step.detail(detail);
                }
            }
            job::JobReport::End { outcome } => {
                if let Some(step) = self.current.take() {
                    step.finish(outcome);
                }
            }
        }
    }

    fn reply(&mut self, question: serde_json::Value) -> Result<serde_json::Value> {
        let wanted: Vec<usize> = serde_json::from_value(question)?;
        let wanted: Vec<Digest> = wanted.iter().filter_map(|&at| self.originals.get(at).copied()).collect();
        Ok(serde_json::to_value((self.supply)(&wanted)?)?)
    }
}

/// Refuses a clock that would date files before the packages they came with.
fn check_epoch(epoch: i64, now: i64) -> Result<()> {
    if epoch < 0 {
        return Err(UserError::usage(format!("the latest time of files, {epoch}, is before 1970")).into());
    }
    if epoch > now {
        return Err(UserError::usage(format!("the latest time of files, {epoch}, is in the future"))
            .hint("check the machine's clock and SOURCE_DATE_EPOCH")
            .into());
    }
    Ok(())
}
