//! The plan without its packages.

use super::{
    Lock, LockedSource, Package, Plan, PlannedDisk, PlannedFile, PlannedOverlay, SCHEMA, order, template_check,
};
use crate::{
    document::suggest,
    error::UserError,
    model::{Arch, Digest, Group, GuestPath, User},
    overlay::{self, Origin, Overlay, Writer},
    recipe::{Disk, Recipe, Source},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

/// A requested package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The package's name, maybe with a version constraint: `haproxy (>= 3.0)`.
    pub package: String,
    /// The requester: `recipe NAME` or `overlay NAME`.
    pub by: String,
}

/// A plan that still needs its packages.
#[derive(Debug, Clone)]
pub struct Draft {
    plan: Plan,
    sources: BTreeMap<String, Source>,
}

impl Draft {
    /// Plans `recipe`: reads its overlays and the files in them. `programs` is the folder of the programs that overlays
    /// name; `epoch` the latest time that anything in the image may have.
    ///
    /// # Errors
    /// A wrong request when overlays are missing, do not fit together, or name what is not there.
    pub fn new(recipe: Recipe, programs: &Path, epoch: Option<i64>) -> Result<Draft> {
        let (overlays, of_disk) = load_overlays(&recipe)?;
        let mut users = recipe.users.clone();
        let mut groups = recipe.groups.clone();
        let mut preseed = recipe.preseed.clone();
        let by = format!("recipe {}", recipe.name);
        let mut requests = asked(&recipe.packages, &by);
        for overlay in &overlays {
            requests.extend(asked(&overlay.packages, &format!("overlay {}", overlay.name)));
            preseed.extend(overlay.preseed.iter().cloned());
            join(&mut users, &overlay.users, "user", overlay)?;
            join(&mut groups, &overlay.groups, "group", overlay)?;
        }
        one_number_each(&users, &groups)?;
        let planned =
            overlays.into_iter().map(|overlay| plan_overlay(overlay, programs)).collect::<Result<Vec<_>>>()?;
        let disk = recipe.disk.map(|disk| plan_disk(disk, &by, of_disk, programs)).transpose()?;
        let sources = recipe.sources.iter().map(|(name, source)| (name.clone(), LockedSource::of(source))).collect();
        let draft = Draft {
            plan: Plan {
                schema: SCHEMA,
                name: recipe.name,
                description: recipe.description,
                arch: Arch::HOST,
                lineage: recipe.lineage,
                parameters: recipe.parameters,
                sources,
                requests,
                forbid: recipe.forbid,
                recommends: recipe.recommends,
                packages: Vec::new(),
                preseed,
                paths: recipe.paths,
                users,
                groups,
                epoch,
                overlays: planned,
                disk,
                oci: recipe.oci,
            },
            sources: recipe.sources,
        };
        template_check::render_all(&draft.plan)?;
        Ok(draft)
    }

    /// What is known already; its list of packages is empty.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Apt archives with their keys, by name.
    pub fn sources(&self) -> &BTreeMap<String, Source> {
        &self.sources
    }

    /// The draft of a build that makes no VM image.
    pub fn without_disk(mut self) -> Draft {
        self.plan.disk = None;
        self
    }

    /// The plan with the packages that a solver chose: those of every image, and the further ones of VM images.
    pub fn with_packages(self, packages: Vec<Package>, of_disk: Vec<Package>) -> Plan {
        let disk = self.plan.disk.map(|disk| PlannedDisk { packages: of_disk, ..disk });
        Plan { packages, disk, ..self.plan }
    }

    /// The plan with exactly the packages of `lock`, which errors call `name`.
    ///
    /// # Errors
    /// A wrong request when the lock was made for other requests, sources or another architecture.
    pub fn with_lock(self, lock: Lock, name: &str) -> Result<Plan, UserError> {
        lock.check(&self.plan, name)?;
        Ok(self.with_packages(lock.packages, lock.disk.map(|disk| disk.packages).unwrap_or_default()))
    }
}

/// The overlays of all images, and those of disks alone, each after those that it waits for.
fn load_overlays(recipe: &Recipe) -> Result<(Vec<Overlay>, Vec<Overlay>)> {
    let mut overlays = Vec::new();
    let of_disk = recipe.disk.iter().flat_map(|disk| &disk.overlays);
    for (name, site) in recipe.overlays.iter().chain(of_disk) {
        if !recipe.overlay_folder.join(name).is_dir() {
            return Err(no_overlay(&recipe.overlay_folder, name, site).into());
        }
        overlays.push(overlay::load(&recipe.overlay_folder, name, &recipe.parameters)?);
    }
    let overlays = order::sort(overlays, &recipe.name)?;
    one_owner_each(&overlays)?;
    let is_of_disk =
        |overlay: &Overlay| recipe.disk.iter().flat_map(|disk| &disk.overlays).any(|(name, _)| *name == overlay.name);
    let (of_disk, overlays) = overlays.into_iter().partition(is_of_disk);
    Ok((overlays, of_disk))
}

fn asked(packages: &[String], by: &str) -> Vec<Request> {
    packages.iter().map(|package| Request { package: package.clone(), by: by.to_owned() }).collect()
}

/// Plans what VM images have in addition. `by` is the recipe that requests it.
fn plan_disk(disk: Disk, by: &str, overlays: Vec<Overlay>, programs: &Path) -> Result<PlannedDisk> {
    let mut requests = asked(&disk.packages, by);
    let mut preseed = Vec::new();
    for overlay in &overlays {
        // Templates, services and accounts are the same in every image of a recipe, so that they are tested once.
        let templates = overlay.files.values().any(|file| file.writer != Writer::Image);
        let accounts = !overlay.users.is_empty() || !overlay.groups.is_empty();
        if templates || accounts || overlay.service.is_some() {
            let name = &overlay.document.name;
            let message = format!("{name}: an overlay of disks alone has templates, users, groups or a service");
            return Err(UserError::usage(message).hint("move it from `disk.overlays` to `overlays`").into());
        }
        requests.extend(asked(&overlay.packages, &format!("overlay {}", overlay.name)));
        preseed.extend(overlay.preseed.iter().cloned());
    }
    let overlays = overlays.into_iter().map(|overlay| plan_overlay(overlay, programs)).collect::<Result<Vec<_>>>()?;
    let Disk { size, arguments, .. } = disk;
    Ok(PlannedDisk { size, arguments, requests, packages: Vec::new(), preseed, overlays })
}

fn no_overlay(folder: &Path, name: &str, site: &UserError) -> UserError {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let message = site.message.replacen(
        &format!("the overlay `{name}`"),
        &format!("there is no overlay {}", folder.join(name).display()),
        1,
    );
    UserError {
        hint: suggest(name, names.iter().map(String::as_str), "the overlays there are"),
        ..UserError::usage(message)
    }
}

/// One component owns one path; what it installs is its own, too.
fn one_owner_each(overlays: &[Overlay]) -> Result<(), UserError> {
    let mut owners: BTreeMap<&GuestPath, (&str, &str)> = BTreeMap::new();
    for overlay in overlays {
        for (path, what) in overlay.claims() {
            if let Some((other, their)) = owners.insert(path, (&overlay.name, what)) {
                let name = &overlay.name;
                let message = if other == name {
                    format!("{}: `{path}` is {their} and {what} at once", overlay.document.name)
                } else {
                    format!("two overlays own `{path}`: `{other}` has it as {their}, `{name}` as {what}")
                };
                return Err(
                    UserError::usage(message).hint("each path belongs to one component: remove it from one of them")
                );
            }
        }
    }
    Ok(())
}

fn join<T: Clone + PartialEq>(
    all: &mut BTreeMap<String, T>,
    more: &BTreeMap<String, T>,
    what: &str,
    overlay: &Overlay,
) -> Result<(), UserError> {
    for (name, value) in more {
        if all.insert(name.clone(), value.clone()).is_some_and(|earlier| earlier != *value) {
            let message = format!(
                "{}: the {what} `{name}` is declared otherwise by the recipe or another overlay",
                overlay.document.name
            );
            return Err(UserError::usage(message));
        }
    }
    Ok(())
}

fn one_number_each(users: &BTreeMap<String, User>, groups: &BTreeMap<String, Group>) -> Result<(), UserError> {
    let uids = users.iter().map(|(name, user)| ("user", name, user.uid));
    let gids = groups.iter().map(|(name, group)| ("group", name, group.gid));
    let mut seen: BTreeMap<(&str, u32), &String> = BTreeMap::new();
    for (what, name, number) in uids.chain(gids) {
        if let Some(other) = seen.insert((what, number), name) {
            return Err(UserError::usage(format!("the {what}s `{other}` and `{name}` have the same number, {number}")));
        }
    }
    Ok(())
}

fn plan_overlay(overlay: Overlay, programs: &Path) -> Result<PlannedOverlay> {
    let name = overlay.name;
    let mut files = Vec::with_capacity(overlay.files.len());
    for (path, file) in overlay.files {
        let (source, origin) = match file.origin {
            Origin::File(source) => {
                let origin = format!("overlays/{name}/rootfs{path}{}", file.writer.suffix());
                (source, origin)
            }
            Origin::Program(program) => {
                let source = programs.join(&program);
                if !source.is_file() {
                    let message = format!("overlay `{name}`: the program {} is not there", source.display());
                    let hint = "build the whole project (cargo build --release), or name the folder with --programs";
                    return Err(UserError::usage(message).hint(hint).into());
                }
                (source, format!("program {program}"))
            }
        };
        let reading = || format!("reading {}", source.display());
        let opened = File::open(&source).with_context(reading)?;
        let size = opened.metadata().with_context(reading)?.len();
        let sha256 = Digest::of_reader(opened).with_context(reading)?;
        files.push(PlannedFile {
            path,
            installed: file.installed,
            origin,
            source,
            writer: file.writer,
            owner: file.owner,
            group: file.group,
            mode: file.mode,
            check: file.check,
            before_packages: file.before_packages,
            sha256,
            size,
        });
    }
    Ok(PlannedOverlay {
        name,
        description: overlay.description,
        files,
        directories: overlay.directories,
        links: overlay.links,
        remove: overlay.remove,
        enable: overlay.enable,
        disable: overlay.disable,
        mask: overlay.mask,
        service: overlay.service,
    })
}
