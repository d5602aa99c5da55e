//! Reads and checks an overlay's folder.

use super::{Directory, FileRule, Mode, OverlayFile, Writer};
use crate::{
    document::{Document, suggest},
    error::UserError,
    files,
    model::{CONFD_TEMPLATES_PATH, Group, GuestPath, Service, TEMPLATES_PATH, User},
    render,
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use serde_saphyr::Spanned;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// An overlay, checked as far as it can be on its own.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// The folder's name.
    pub name: String,
    /// What it is for, in one line.
    pub description: String,
    /// Debian packages, parameters put in.
    pub packages: Vec<String>,
    /// Overlays that must be in the image too.
    pub needs: Vec<String>,
    /// Overlays whose service starts before this one's.
    pub after: Vec<String>,
    /// Debconf answers, parameters put in.
    pub preseed: Vec<String>,
    /// Users with fixed numbers.
    pub users: BTreeMap<String, User>,
    /// Groups with fixed numbers.
    pub groups: BTreeMap<String, Group>,
    /// Its files, by the path that they have in the running guest.
    pub files: BTreeMap<GuestPath, File>,
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
    /// The document, for errors about it that show later.
    pub document: Document,
}

/// One file of an overlay.
#[derive(Debug, Clone)]
pub struct File {
    /// Where its bytes come from.
    pub origin: Origin,
    /// Where the build puts it; differs from its path in the running guest if a template makes it.
    pub installed: GuestPath,
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
}

/// Where a file's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A file of the overlay's folder.
    File(PathBuf),
    /// A program that was built beside this one.
    Program(String),
}

impl Overlay {
    /// Every guest path that the overlay claims for itself, with what it does there.
    pub fn claims(&self) -> impl Iterator<Item = (&GuestPath, &'static str)> {
        let files = self.files.keys().map(|path| (path, "a file"));
        let links = self.links.keys().map(|path| (path, "a link"));
        // A package's file may go so that a template's takes its place in the running guest.
        let is_template = |path: &GuestPath| self.files.get(path).is_some_and(|file| file.writer != Writer::Image);
        let removals = self.remove.iter().filter(move |path| !is_template(path)).map(|path| (path, "a removal"));
        files.chain(links).chain(removals)
    }
}

/// Loads the overlay `name` from the folder `overlays`; `parameters` are put where it names them.
///
/// # Errors
/// A wrong request, shown with its line, when the folder or the document is not as it must be.
pub fn load(overlays: &Path, name: &str, parameters: &BTreeMap<String, Value>) -> Result<Overlay> {
    let folder = overlays.join(name);
    refuse_link(&folder)?;
    let path = folder.join("overlay.yaml");
    refuse_link(&path)?;
    let document = Document::new(path.display().to_string(), files::read_text(&path)?);
    let written: OverlayFile = document.parse()?;
    if written.schema.value != 1 {
        return Err(document.error_at(written.schema.referenced, "the only schema there is has the number 1").into());
    }
    let put_in = |text: &str| render::render(&document.name, text, parameters);
    let packages = written
        .packages
        .iter()
        .map(|package| {
            put_in(&package.value).map_err(|error| {
                let message = format!("{:#}", error.root_cause());
                anyhow::Error::new(document.error_at(package.referenced, &message))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let preseed = written.preseed.iter().map(|line| put_in(line)).collect::<Result<Vec<_>>>()?;
    let mut found = BTreeMap::new();
    let rootfs = folder.join("rootfs");
    if rootfs.is_dir() {
        refuse_link(&rootfs)?;
        walk(&rootfs, &GuestPath::root(), &mut found)?;
    }
    let files = files_of(name, &document, written.files, found)?;
    let values = |list: Vec<Spanned<String>>| list.into_iter().map(|entry| entry.value).collect();
    Ok(Overlay {
        name: name.to_owned(),
        description: written.description,
        packages,
        needs: values(written.needs),
        after: values(written.after),
        preseed,
        users: written.users,
        groups: written.groups,
        files,
        directories: written.directories,
        links: written.links,
        remove: written.remove,
        enable: written.enable,
        disable: written.disable,
        mask: written.mask,
        service: written.service,
        document,
    })
}

/// What a walk found: the file, whether it is executable, and the writer that its suffix names.
struct Found {
    path: PathBuf,
    executable: bool,
    writer: Writer,
}

fn walk(folder: &Path, at: &GuestPath, found: &mut BTreeMap<GuestPath, Found>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    let mut entries =
        fs::read_dir(folder).with_context(reading)?.collect::<Result<Vec<_>, _>>().with_context(reading)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("{} has a name that is not UTF-8", path.display()))?;
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        if metadata.is_dir() {
            walk(&path, &at.join(name)?, found)?;
            continue;
        }
        if metadata.is_symlink() {
            refuse_link(&path)?;
        }
        if !metadata.is_file() {
            return Err(UserError::usage(format!("{} is neither a file nor a folder", path.display())).into());
        }
        let (name, writer) = Writer::of(name);
        let executable = metadata.permissions().mode() & 0o100 != 0;
        let file = Found { path, executable, writer };
        match found.entry(at.join(name)?) {
            Entry::Vacant(vacant) => {
                vacant.insert(file);
            }
            Entry::Occupied(first) => {
                let paths = (first.get().path.display(), file.path.display());
                let message = format!("{} and {} would both become {}", paths.0, paths.1, first.key());
                return Err(UserError::usage(message).hint("keep the one whose suffix names the right writer").into());
            }
        }
    }
    Ok(())
}

fn files_of(
    overlay: &str,
    document: &Document,
    mut rules: BTreeMap<GuestPath, FileRule>,
    found: BTreeMap<GuestPath, Found>,
) -> Result<BTreeMap<GuestPath, File>> {
    let names: Vec<String> = found.keys().map(|path| path.to_string()).collect();
    let mut files = BTreeMap::new();
    for (path, found) in found {
        let rule = rules.remove(&path).unwrap_or_default();
        let wrong = |message: String| UserError::usage(format!("{}: `{path}` {message}", document.name));
        if let Some(writer) = rule.writer.filter(|writer| *writer != found.writer) {
            let is = found.path.display();
            return Err(wrong(format!("should be written by {writer}, but {is} is written by {}", found.writer))
                .hint(format!("the suffix names the writer: rename it to {}{}", path.file_name(), writer.suffix()))
                .into());
        }
        if rule.program.is_some() {
            return Err(wrong(format!("is a program, but {} is there too", found.path.display())).into());
        }
        if rule.before_packages && (found.writer != Writer::Image || rule.owner.is_some() || rule.group.is_some()) {
            let message = "is there before packages are, so the build must write it and root must own it";
            return Err(wrong(message.to_owned()).into());
        }
        let installed = match found.writer {
            Writer::Image => path.clone(),
            Writer::Node => format!("{TEMPLATES_PATH}/{overlay}{path}.hbs").parse()?,
            Writer::Confd => format!("{CONFD_TEMPLATES_PATH}{path}.tmpl").parse()?,
        };
        let default = Mode(if found.executable { 0o755 } else { 0o644 });
        files.insert(path, file(rule, Origin::File(found.path), installed, found.writer, default));
    }
    for (path, mut rule) in rules {
        let Some(program) = rule.program.take() else {
            let message = format!("{}: there is no file `{path}` below rootfs/", document.name);
            let hint = suggest(path.as_str(), names.iter().map(String::as_str), "the files there are");
            return Err(UserError { hint, ..UserError::usage(message) }.into());
        };
        files.insert(path.clone(), file(rule, Origin::Program(program), path, Writer::Image, Mode(0o755)));
    }
    Ok(files)
}

fn file(rule: FileRule, origin: Origin, installed: GuestPath, writer: Writer, mode: Mode) -> File {
    let root = || "root".to_owned();
    File {
        origin,
        installed,
        writer,
        owner: rule.owner.unwrap_or_else(root),
        group: rule.group.unwrap_or_else(root),
        mode: rule.mode.unwrap_or(mode),
        check: rule.check,
        before_packages: rule.before_packages,
    }
}

/// An overlay consists of the files in its folder; a link could lead anywhere.
fn refuse_link(path: &Path) -> Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(());
    }
    let target = fs::read_link(path).unwrap_or_default();
    let message =
        format!("{} is a symbolic link (to {}), which could lead out of the overlay", path.display(), target.display());
    Err(UserError::usage(message)
        .hint("put the file itself there; links of the guest belong under `links:` in overlay.yaml")
        .into())
}
