//! VM images: the layers' sum on a bootable disk.

use super::{Artifact, Format, Layers, Target};
use crate::{
    disk::{
        Compression, Disk, Identity, Outputs,
        grub::{BIOS_CORE, BIOS_MODULES, BiosImages, Menu},
    },
    error::UserError,
    files::NewFile,
    model::{Arch, Digest, GuestPath},
    plan::{Plan, PlannedDisk},
    progress::{Progress, Unit, size},
    rootfs::{Tree, tar::Contents},
    store::Store,
};
use anyhow::{Context as _, Result, anyhow};
use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// How long GRUB shows its menu, in seconds.
const MENU_SECONDS: u32 = 1;

/// The system's name in GRUB's menu.
const TITLE: &str = "Debian GNU/Linux";

/// How often what was written so far is sent to the disk.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// The identifiers of the disks of `plan`. They depend on the packages only: after an edit of an overlay, all blocks but
/// those of its files stay in place, and compressed clusters are found in the store.
fn identity(plan: &Plan, disk: &PlannedDisk) -> Result<Identity> {
    let packages: Vec<_> = plan.packages.iter().chain(&disk.packages).map(|package| package.sha256).collect();
    Ok(Identity::of(&Digest::of_json(&(&plan.name, plan.arch, packages))?))
}

/// Files of a VM image that depend on its disk, by path.
///
/// # Errors
/// When the plan has no form in JSON.
pub fn boot_files(plan: &Plan, disk: &PlannedDisk) -> Result<Vec<(GuestPath, String)>> {
    let identity = identity(plan, disk)?;
    let arguments: Vec<&str> = disk.arguments.iter().map(String::as_str).collect();
    let menu = Menu { arch: plan.arch, title: TITLE, arguments: &arguments, timeout: MENU_SECONDS };
    Ok(vec![
        (GuestPath::constant("/etc/fstab"), identity.fstab()),
        (GuestPath::constant("/boot/grub/grub.cfg"), menu.config(&identity)),
        (GuestPath::constant("/etc/default/grub.d/60-pgha.cfg"), menu.defaults()),
    ])
}

/// Writes every VM image that `target` wants, in one pass.
///
/// # Errors
/// When the disk is too small for the image, the image lacks what it boots with, or the output cannot be written; no
/// file is changed then.
pub fn write(
    plan: &Plan,
    planned: &PlannedDisk,
    layers: &Layers,
    target: &Target,
    store: &Store,
    progress: &Progress,
) -> Result<Vec<Artifact>> {
    let mut disk = Disk {
        arch: plan.arch,
        size: planned.size.map_or(0, |size| size.0),
        identity: identity(plan, planned)?,
        epoch: layers.epoch,
        bios: bios(plan.arch, &layers.tree, store)?,
        order: layers.layers.iter().map(|(_, layer)| layer.tar).collect(),
    };
    if planned.size.is_none() {
        disk.size = disk.fitting_size(&layers.tree)?;
    }
    let map = disk.layout(&layers.tree)?;
    let total = map.ranges(1).iter().map(|range| range.end - range.start).sum();
    let step = progress.step("disk", total, Unit::Bytes);
    let begin = |format: Format, suffix: &str| -> Result<Option<(NewFile, PathBuf)>> {
        if !target.formats.contains(&format) {
            return Ok(None);
        }
        let path = target.folder.join(format!("{}.{suffix}", plan.artifact_name()));
        Ok(Some((NewFile::beside(&path)?, path)))
    };
    let raw = begin(Format::Raw, "raw")?;
    let qcow2 = begin(Format::Qcow2, "qcow2")?;
    let outputs = Outputs {
        raw: raw.as_ref().map(|(file, _)| file.file()),
        qcow2: qcow2.as_ref().map(|(file, _)| (file.file(), Compression::default())),
    };
    let files: Vec<&File> = raw.iter().chain(&qcow2).map(|(file, _)| file.file()).collect();
    let written = flushing(&files, || map.write(store, outputs, &|count| step.advance(count)));
    let raw_digest = written.context("writing the disk")?;
    let mut artifacts = Vec::new();
    for (kind, output, known) in [("raw", raw, raw_digest), ("qcow2", qcow2, None)] {
        let Some((file, path)) = output else { continue };
        file.file().set_permissions(Permissions::from_mode(0o644)).context("setting the mode of an image")?;
        // The disk writes what it has while the digest is taken; what is left to sync is little then.
        let (measured, synced) = thread::scope(|scope| {
            let sync = scope.spawn(|| file.file().sync_data());
            (measure(&file, known), sync.join())
        });
        let (sha256, size) = measured?;
        synced
            .map_err(|_| anyhow!("the thread that writes {} panicked", path.display()))?
            .context("writing an image")?;
        file.publish(&path)?;
        artifacts.push(Artifact { kind, path, sha256, size });
    }
    step.finish(format!("{} of {}", size(total), size(disk.size)));
    Ok(artifacts)
}

/// Does `work`, which fills `files`, and has the system write what is there to its disk meanwhile: so much is left to
/// do at the end otherwise that it takes as long as the work.
fn flushing<T>(files: &[&File], work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (working, ended) = channel::<()>();
        scope.spawn(move || {
            while ended.recv_timeout(FLUSH_EVERY) == Err(RecvTimeoutError::Timeout) {
                // The sync at the end reports errors.
                files.iter().for_each(|file| drop(file.sync_data()));
            }
        });
        let done = work();
        drop(working);
        done
    })
}

/// The digest of a file that was written, unless it is known, and its size.
fn measure(file: &NewFile, known: Option<Digest>) -> Result<(Digest, u64)> {
    let reading = || format!("reading {} again", file.path().display());
    let again = File::open(file.path()).with_context(reading)?;
    let size = again.metadata().with_context(reading)?.len();
    let digest = known.map_or_else(|| Digest::of_reader(again), Ok).with_context(reading)?;
    Ok((digest, size))
}

/// GRUB for a BIOS, as the image has it; `None` on machines that have no BIOS.
fn bios(arch: Arch, tree: &Tree, store: &Store) -> Result<Option<BiosImages>> {
    if arch != Arch::Amd64 {
        return Ok(None);
    }
    let mut contents = Contents::new(store);
    let mut read = |path: &str| -> Result<Vec<u8>> {
        let content = tree.content(path).ok_or_else(|| {
            UserError::usage(format!("the image has no `{path}` to boot with"))
                .hint("add the packages `grub-pc-bin` and `grub-common` to the recipe's `disk`")
        })?;
        contents.read(content)
    };
    Ok(Some(BiosImages { boot: read(&format!("{BIOS_MODULES}/boot.img"))?, core: read(BIOS_CORE)? }))
}
