//! Data that are in the way are set aside: renamed on the same file system, and kept.
//!
//! `<folder>.aside-<UTC>-<why>` lies beside the folder that it was. A rename is atomic and needs no room; with the folder
//! above synced, a power cut leaves the old name or the new one. Nothing of ours removes what was set aside: a person does,
//! by `pgha-node aside remove`.
//!
//! A folder that is a mount point cannot be renamed, and moving what is in it one by one would leave half of it in each
//! place when the power fails. Nor would PostgreSQL take such a folder afterwards: it refuses one with anything in it,
//! hidden files too. So a mount point is refused, with the way that works: the volume is mounted one level higher, where the
//! image's own folders lie.
//!
//! Tablespaces do not move with the data folder: `pg_tblspc` leads to them, and a copy of the database has them at the
//! same places. So a database with tablespaces elsewhere is not set aside for a copy until a person has seen to them.

use super::{begun::HALF_GONE, database::Database};
use crate::{
    clock,
    error::UserError,
    files::{Presence, sync_folder},
    log,
    model::status::{Aside, AsideSize},
};
use anyhow::{Context as _, Result};
use rustix::{
    fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx},
    io::Errno,
};
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// What stands between a folder's name and when and why it was set aside.
const MARK: &str = ".aside-";
/// How many files of an aside are counted for its size, so that `status` answers soon.
const COUNTED: u64 = 50_000;

/// An aside in a line, for people.
pub fn line(aside: &Aside) -> String {
    let Aside { path, since, why, size, .. } = aside;
    let half = if half(aside).is_some() { ", may be half of a database" } else { "" };
    format!("{} ({size}, {why}, since {}{half})", path.display(), clock::utc(*since))
}

/// The word for half of a database in the place of which a copy was being made.
pub const HALF_REPLACED: &str = "half-replaced";
/// The word for a first database that was not finished.
pub const UNFINISHED: &str = "unfinished";
/// The word for a copy that was not finished.
pub const UNFINISHED_CLONE: &str = "unfinished-clone";
/// The word for what Patroni has renamed.
const FAILED: &str = "failed";

/// Why an aside may be half of a database, if it may.
pub fn half(aside: &Aside) -> Option<&'static str> {
    // etcd's data have such words too, and never held anything then.
    if !aside.was.ends_with("main") {
        return None;
    }
    match aside.why.as_str() {
        HALF_REPLACED => Some(HALF_GONE),
        UNFINISHED => Some("the first database was being made there, and was not finished"),
        UNFINISHED_CLONE => Some("a copy was being made there, and was not finished"),
        FAILED => Some("Patroni has renamed it when it could not make or remove it"),
        _ => None,
    }
}

/// The disk space of everything below `folder`; no more than `most` files are counted. What cannot be read is left out.
pub fn measure(folder: &Path, most: u64) -> AsideSize {
    let mut size = AsideSize::default();
    let mut folders = vec![folder.to_owned()];
    let mut counted = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            size.more = true;
            continue;
        };
        for entry in entries.flatten() {
            counted += 1;
            if counted > most {
                return AsideSize { more: true, ..size };
            }
            let Ok(found) = entry.metadata() else {
                size.more = true;
                continue;
            };
            size.bytes += found.blocks() * 512;
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    size
}

/// Sets `folder` aside and returns its new path. `why` is a word or two, such as `diverged`.
///
/// # Errors
/// When there is no such folder, it is a mount point or a symbolic link, or the disk does not allow it. Nothing has moved
/// then.
pub fn set_aside(folder: &Path, why: &str) -> Result<PathBuf> {
    set_aside_as(folder, folder, why)
}

/// The same for what lies at `folder` for a moment and was at `was`, beside it.
///
/// # Errors
/// As [`set_aside`].
pub fn set_aside_as(folder: &Path, was: &Path, why: &str) -> Result<PathBuf> {
    let doing = || format!("setting {} aside", folder.display());
    let found = fs::symlink_metadata(folder).with_context(doing)?;
    if !found.is_dir() {
        return Err(UserError::runtime(format!("{} is not a folder", folder.display()))
            .hint("what a symbolic link leads to is set aside by a person, where it lies")
            .into());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let path = rename_free(folder, &format!("{}{MARK}{}-{}", was.display(), clock::stamp(now), slug(why)))?;
    sync_folder(above(folder)).with_context(doing)?;
    let size = measure(&path, COUNTED);
    log::warning!("set {} aside ({why}, {size}): it is {} now", was.display(), path.display());
    Ok(path)
}

/// Refuses what could not be renamed: a symbolic link, what is not a folder, and a mount point. What is not there is
/// nothing to rename.
///
/// # Errors
/// What it is and what can be done about it; also when that is not known.
pub fn must_be_movable(folder: &Path) -> Result<(), UserError> {
    let unknown = |error: &dyn fmt::Display| {
        UserError::runtime(format!("whether {} can be renamed is not known: {error}", folder.display()))
            .hint("a volume may not be mounted, or a disk may be damaged")
    };
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unknown(&error)),
        Ok(found) if found.is_symlink() => Err(UserError::runtime(format!(
            "{} is a symbolic link, and what it leads to cannot change places with anything",
            folder.display()
        ))
        .hint(format!("move what it leads to into its place, or make {} the link instead", above(folder).display()))),
        Ok(found) if !found.is_dir() => {
            Err(UserError::runtime(format!("{} is not a folder", folder.display())).hint("move it away by hand"))
        }
        Ok(_) if is_mount_point(folder).map_err(|error| unknown(&error))? => Err(mount_point(folder)),
        Ok(_) => Ok(()),
    }
}

fn is_mount_point(folder: &Path) -> rustix::io::Result<bool> {
    let look = |path| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    let found = look(folder)?;
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // A kernel before 5.8 does not tell.
    let outside = look(above(folder))?;
    Ok((found.stx_dev_major, found.stx_dev_minor) != (outside.stx_dev_major, outside.stx_dev_minor))
}

/// Tablespaces of a database that do not lie in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The folder of the database.
    pub data: PathBuf,
    /// Where they are; at least one.
    pub tablespaces: Vec<PathBuf>,
    /// Whether Patroni was to replace the database, not this program to set it aside.
    pub in_place: bool,
}

impl Elsewhere {
    /// The same where Patroni was to replace the database in its place.
    pub fn in_place(self) -> Elsewhere {
        Elsewhere { in_place: true, ..self }
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Elsewhere { data, tablespaces, in_place } = self;
        let one = tablespaces.len() == 1;
        let names: Vec<String> = tablespaces.iter().map(|path| path.display().to_string()).collect();
        let first = names.first().map_or("", String::as_str);
        write!(
            f,
            "{} is not {}: the tablespace{} {}. Rename {} by hand, such as `mv {first} {first}.kept`, and then: \
             pgha-node aside make database",
            data.display(),
            match (in_place, one) {
                (false, _) =>
                    "set aside, as it has data outside that do not move with it and that the next copy would overwrite",
                (true, true) =>
                    "replaced in its place, as it has a folder outside that Patroni would remove with all that is in it",
                (true, false) =>
                    "replaced in its place, as it has folders outside that Patroni would remove with all that is in them",
            },
            if one { "" } else { "s" },
            names.join(", "),
            if one { "it" } else { "each" },
        )
    }
}

impl std::error::Error for Elsewhere {}

/// The tablespaces of the database in `data` that do not lie in it; `None` if there are none.
///
/// # Errors
/// When that is not known.
pub fn elsewhere(data: &Path) -> Result<Option<Elsewhere>> {
    let folder = data.join("pg_tblspc");
    let doing = || format!("looking for tablespaces in {}", folder.display());
    let mut targets = Vec::new();
    for name in entries(&folder)? {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).with_context(doing)?.is_symlink() {
            targets.push(fs::read_link(&path).with_context(doing)?);
        }
    }
    let tablespaces = outside(data, &targets);
    Ok((!tablespaces.is_empty()).then(|| Elsewhere { data: data.to_owned(), tablespaces, in_place: false }))
}

/// Those of the links' `targets` in the `pg_tblspc` of `data` that do not lie in `data`, whether they are there or not:
/// a volume may not be mounted.
fn outside(data: &Path, targets: &[PathBuf]) -> Vec<PathBuf> {
    let folder = data.join("pg_tblspc");
    let mut all: Vec<PathBuf> = targets.iter().map(|target| plain(&folder.join(target))).collect();
    all.retain(|target| !target.starts_with(plain(data)));
    all.sort();
    all.dedup();
    all
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, component| {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
        plain
    })
}

/// Sets the database in `folder` aside, so that a copy gets its place.
///
/// # Errors
/// [`Elsewhere`] when it has tablespaces elsewhere, and as [`set_aside`].
pub fn set_database_aside(folder: &Path, why: &str) -> Result<PathBuf> {
    match elsewhere(folder)? {
        Some(elsewhere) => Err(elsewhere.into()),
        None => set_aside(folder, why),
    }
}

/// The same by a person's order, who has renamed the tablespaces before; `why` as in [`set_aside`].
///
/// # Errors
/// [`Elsewhere`] when there is still something where they were, and as [`set_aside`].
pub fn set_database_aside_by_hand(folder: &Path, why: &str) -> Result<PathBuf> {
    if let Some(Elsewhere { data, tablespaces, in_place }) = elsewhere(folder)? {
        let mut left = Vec::new();
        for path in tablespaces {
            if Presence::of_folder(&path).known()?.is_some() {
                left.push(path);
            }
        }
        if !left.is_empty() {
            return Err(Elsewhere { data, tablespaces: left, in_place }.into());
        }
    }
    set_aside(folder, why)
}

/// Renames `folder` to `wanted`, or to `wanted` with a number where that is taken.
fn rename_free(folder: &Path, wanted: &str) -> Result<PathBuf> {
    for number in 1..100 {
        let path = PathBuf::from(if number == 1 { wanted.to_owned() } else { format!("{wanted}.{number}") });
        let renamed = match renameat_with(CWD, folder, CWD, &path, RenameFlags::NOREPLACE) {
            // Not every file system knows the flag. A folder never replaces another that has something in it.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(folder, &path),
            other => other,
        };
        match renamed {
            Ok(()) => return Ok(path),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(Errno::BUSY) => return Err(mount_point(folder).into()),
            Err(error) => return Err(error).with_context(|| format!("setting {} aside", folder.display())),
        }
    }
    Err(UserError::runtime(format!("{wanted} and 99 names like it are taken")).into())
}

fn mount_point(folder: &Path) -> UserError {
    UserError::runtime(format!("{} is a mount point: it cannot be set aside", folder.display())).hint(format!(
        "mount the volume at {} with {} as a folder in it; PostgreSQL's manual advises against a mount point as data \
         folder, too",
        above(folder).display(),
        folder.file_name().unwrap_or_default().display()
    ))
}

/// The folder that `path` lies in.
fn above(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `why` as a part of a file's name.
fn slug(why: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = why.chars().take(40).map(plain).collect();
    let words: Vec<&str> = text.split('-').filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "unnamed".to_owned() } else { words.join("-") }
}

/// How many times `folder` was set aside and is kept.
///
/// # Errors
/// When the folder above cannot be read.
pub fn count(folder: &Path) -> Result<usize> {
    let above = above(folder);
    let prefix = format!("{}{MARK}", folder.file_name().unwrap_or_default().to_string_lossy());
    let names = entries(above)?;
    Ok(names.iter().filter(|name| name.to_string_lossy().starts_with(&prefix)).count())
}

/// Everything that was set aside in the folders of data below `root`, oldest first; also what earlier versions
/// (`default.removed-1`) and Patroni (`main.failed`) left.
///
/// # Errors
/// When a folder cannot be read.
pub fn list(root: &Path) -> Result<Vec<Aside>> {
    let mut found = Vec::new();
    for folder in homes(root)? {
        for entry in entries(&folder)? {
            let path = folder.join(&entry);
            let Some(Name { was, since, why }) = entry.to_str().and_then(parse) else { continue };
            // A symbolic link is not what was set aside, and must not lead elsewhere.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_dir() {
                continue;
            }
            let (what, facts) = match Database::look(&path) {
                Database::Present(facts) => (Some(facts.to_string()), Some(facts)),
                Database::Damaged(_) | Database::Absent | Database::Unknown(_) => (None, None),
            };
            found.push(Aside {
                was: folder.join(was),
                since: since.unwrap_or(metadata.ctime()),
                why: why.to_owned(),
                size: measure(&path, COUNTED),
                what,
                timeline: facts.as_ref().map(|facts| facts.reached().0),
                system: facts.map(|facts| facts.system),
                path,
            });
        }
    }
    found.sort_by(|one, other| (one.since, &one.path).cmp(&(other.since, &other.path)));
    Ok(found)
}

/// The folders in which data lie that may be set aside.
fn homes(root: &Path) -> Result<Vec<PathBuf>> {
    let versions = root.join("var/lib/postgresql");
    let mut homes = vec![root.join("var/lib/etcd"), root.join("var/lib/pgha")];
    for entry in entries(&versions)? {
        let path = versions.join(&entry);
        let is_version = entry.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if is_version && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            homes.push(path);
        }
    }
    Ok(homes)
}

/// The names in a folder; none if it is not there.
fn entries(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    if Presence::of(folder).known()?.is_none() {
        return Ok(Vec::new());
    }
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>();
    read().with_context(|| format!("reading the folder {}", folder.display()))
}

/// The name of an aside, in its parts.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    was: &'a str,
    since: Option<i64>,
    why: &'a str,
}

fn parse(name: &str) -> Option<Name<'_>> {
    if let Some((was, rest)) = name.split_once(MARK) {
        let (since, why) = rest.split_once('-')?;
        // Where a name was taken, a number follows.
        let why = why.split('.').next().unwrap_or(why);
        return (!was.is_empty()).then_some(Name { was, since: Some(clock::from_stamp(since)?), why });
    }
    let earlier =
        [("default", ".removed-1", "removed"), ("default", ".removed-2", "removed"), ("main", ".failed", "failed")];
    let is = |(was, end, _): &(&'static str, &str, &str)| name.strip_prefix(was) == Some(end);
    earlier.into_iter().find(is).map(|(was, _, why)| Name { was: &name[..was.len()], since: None, why })
}

/// The aside that a person means: by its path, or by its name if that is the only one.
///
/// # Errors
/// A wrong request, when there is none or more than one.
pub fn find(root: &Path, wanted: &str) -> Result<Aside> {
    let all = list(root)?;
    let mut fitting =
        all.into_iter().filter(|aside| aside.path == Path::new(wanted) || aside.name() == wanted).collect::<Vec<_>>();
    let hint = "pgha-node aside list";
    match fitting.len() {
        1 => Ok(fitting.remove(0)),
        0 => Err(UserError::usage(format!("nothing that was set aside is called `{wanted}`")).hint(hint).into()),
        _ => Err(UserError::usage(format!("`{wanted}` is the name of more than one: give the whole path"))
            .hint(hint)
            .into()),
    }
}

/// Puts an aside back where it was. The service that uses the data must not run.
///
/// # Errors
/// When there is something in its place, or the disk does not allow it.
pub fn restore(aside: &Aside) -> Result<()> {
    let (from, to) = (aside.path.display(), aside.was.display());
    if Presence::of_folder(&aside.was).known()?.is_some() {
        return Err(UserError::usage(format!("there is something at {to}"))
            .hint(format!("set it aside first: pgha-node aside make {to}"))
            .into());
    }
    // An empty folder is replaced; one that has got something in it meanwhile is not.
    fs::rename(&aside.path, &aside.was).with_context(|| format!("putting {from} back"))?;
    sync_folder(above(&aside.was))?;
    log::warning!("put {from} back: it is {to} again");
    Ok(())
}

/// Removes an aside for good: by a person's order alone.
///
/// # Errors
/// When the disk does not allow it; what is left is still in the list.
pub fn remove(aside: &Aside) -> Result<()> {
    let path = aside.path.display();
    fs::remove_dir_all(&aside.path).with_context(|| format!("removing {path}"))?;
    sync_folder(above(&aside.path))?;
    log::warning!("removed {path} ({}, {}) by a person's order", aside.why, aside.size);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::database::samples;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["var/lib/postgresql/17", "var/lib/etcd", "var/lib/pgha"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    #[test]
    fn a_database_is_set_aside_listed_and_put_back() {
        let root = root();
        let main = root.path().join("var/lib/postgresql/17/main");
        samples::database(&main, 77);
        let path = set_aside(&main, "Diverged!").unwrap();
        assert_eq!(Presence::of(&main).map(drop), Presence::Absent);
        let listed = list(root.path()).unwrap();
        let [aside] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((&aside.path, &aside.was, aside.why.as_str()), (&path, &main, "diverged"));
        assert_eq!((aside.system.as_deref(), aside.timeline), (Some("77"), Some(1)));
        assert!(aside.size.bytes >= 8192 && !aside.size.more, "{:?}", aside.size);
        assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - aside.since < 60);

        fs::create_dir(&main).unwrap();
        let found = find(root.path(), &aside.name()).unwrap();
        restore(&found).unwrap();
        assert!(matches!(Database::look(&main), Database::Present(_)));
        assert_eq!(list(root.path()).unwrap(), []);
        assert!(find(root.path(), &aside.name()).is_err());
    }

    #[test]
    fn nothing_is_ever_replaced() {
        let root = root();
        let data = root.path().join("var/lib/etcd/default");
        let mut paths = Vec::new();
        for round in ["1", "2", "3"] {
            fs::create_dir(&data).unwrap();
            fs::write(data.join("round"), round).unwrap();
            paths.push(set_aside(&data, "removed").unwrap());
        }
        for (path, round) in paths.iter().zip(["1", "2", "3"]) {
            assert_eq!(fs::read_to_string(path.join("round")).unwrap(), round);
        }
        fs::create_dir(&data).unwrap();
        fs::write(data.join("newer"), "").unwrap();
        let oldest = find(root.path(), paths[0].to_str().unwrap()).unwrap();
        let error = crate::error::report(&restore(&oldest).unwrap_err());
        assert!(error.contains("there is something at"), "{error}");
        assert!(data.join("newer").exists() && paths[0].exists());
        remove(&oldest).unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 2);
        assert_eq!((count(&data).unwrap(), count(&root.path().join("none/main")).unwrap()), (2, 0));
    }

    #[test]
    fn only_real_asides_below_the_data_folders_are_found() {
        let root = root();
        let at = |path: &str| root.path().join(path);
        let stamp = "20261127T010909Z";
        for folder in [
            "var/lib/etcd/default.removed-1",
            "var/lib/postgresql/17/main.failed",
            "elsewhere",
            "var/lib/postgresql/17/main",
        ] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::create_dir_all(at(&format!("var/lib/x.aside-{stamp}-stray"))).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at(&format!("var/lib/etcd/default.aside-{stamp}-link"))).unwrap();
        fs::write(at(&format!("var/lib/pgha/x.aside-{stamp}-file")), "").unwrap();
        fs::create_dir_all(at("var/lib/pgha/x.aside-20261327T010909Z-when")).unwrap();
        let whys: Vec<String> = list(root.path()).unwrap().into_iter().map(|aside| aside.why).collect();
        assert_eq!(whys.len(), 2, "{whys:?}");
        assert!(whys.contains(&"removed".to_owned()) && whys.contains(&"failed".to_owned()), "{whys:?}");
        for wanted in ["../elsewhere", "main", "/", ""] {
            assert!(find(root.path(), wanted).is_err(), "{wanted}");
        }
    }

    #[test]
    fn a_link_and_a_file_stay_where_they_are() {
        let root = root();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("var", &link).unwrap();
        assert!(set_aside(&link, "x").is_err());
        assert!(set_aside(&root.path().join("none"), "x").is_err());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_mount_point_is_refused_with_the_way_that_works() {
        let device = |path: &str| fs::metadata(path).unwrap().dev();
        if !crate::testing::require_root()
            || !crate::testing::require("mounts", device("/") != device("/proc"), "/proc is not a mount point")
        {
            return;
        }
        let error = rename_free(Path::new("/proc"), "/proc.aside-20261127T010909Z-x").unwrap_err();
        let report = crate::error::report(&error);
        assert!(report.contains("mount point") && report.contains("hint: mount the volume at /"), "{report}");
    }

    #[test]
    fn what_cannot_be_renamed_is_seen_before() {
        let root = root();
        let (link, file) = (root.path().join("link"), root.path().join("file"));
        assert!(must_be_movable(&root.path().join("none")).is_ok());
        assert!(must_be_movable(&root.path().join("var/lib/etcd")).is_ok());
        for target in ["var", "nowhere"] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            let error = must_be_movable(&link).unwrap_err();
            assert!(error.message.contains(&format!("{} is a symbolic link", link.display())), "{error}");
            assert!(error.hint.unwrap().contains("into its place"));
            fs::remove_file(&link).unwrap();
        }
        fs::write(&file, "").unwrap();
        assert!(must_be_movable(&file).unwrap_err().message.contains("is not a folder"));
        assert!(must_be_movable(&file.join("in")).is_err(), "that is not known");
        let device = |path: &str| fs::metadata(path).unwrap().dev();
        if !crate::testing::require("mounts", device("/") != device("/proc"), "/proc is not a mount point") {
            return;
        }
        let error = must_be_movable(Path::new("/proc")).unwrap_err();
        assert!(error.message.contains("/proc is a mount point"), "{error}");
        assert!(error.hint.unwrap().contains("mount the volume at /"));
    }

    #[test]
    fn tablespaces_elsewhere_are_those_that_do_not_move_with_the_folder() {
        let main = Path::new("/var/lib/postgresql/17/main");
        let targets = |targets: &[&str]| {
            outside(main, &targets.iter().map(PathBuf::from).collect::<Vec<_>>())
                .into_iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(targets(&[]), Vec::<String>::new());
        assert_eq!(targets(&["/var/lib/postgresql/17/main/own", "../own"]), Vec::<String>::new());
        assert_eq!(targets(&["/srv/b", "/srv/a", "/srv/b"]), ["/srv/a", "/srv/b"]);
        // Beside it, or out of it by a way through it.
        assert_eq!(targets(&["/var/lib/postgresql/17/main2"]), ["/var/lib/postgresql/17/main2"]);
        assert_eq!(targets(&["../../ts"]), ["/var/lib/postgresql/17/ts"]);
        assert_eq!(targets(&["/var/lib/postgresql/17/main/../ts"]), ["/var/lib/postgresql/17/ts"]);
    }

    #[test]
    fn a_database_with_tablespaces_elsewhere_is_not_set_aside_until_a_person_has_seen_to_them() {
        let root = root();
        let (main, space) = (root.path().join("var/lib/postgresql/17/main"), root.path().join("srv/ts"));
        samples::database(&main, 77);
        // One in its place is a folder, not a link.
        fs::create_dir_all(main.join("pg_tblspc/16383")).unwrap();
        assert_eq!(elsewhere(&main).unwrap(), None);
        fs::create_dir_all(space.join("PG_17_202406281")).unwrap();
        std::os::unix::fs::symlink(&space, main.join("pg_tblspc/16384")).unwrap();
        let told = set_database_aside(&main, "diverged").unwrap_err().to_string();
        for part in [format!("mv {0} {0}.kept", space.display()), "pgha-node aside make database".to_owned()] {
            assert!(told.contains(&part), "`{part}` is not in {told}");
        }
        assert_eq!(set_database_aside_by_hand(&main, "by-hand").unwrap_err().to_string(), told);
        assert!(matches!(Database::look(&main), Database::Present(_)));

        // Where the link leads to nothing, its volume may not be mounted: only a person knows.
        fs::rename(&space, space.with_extension("kept")).unwrap();
        assert!(set_database_aside(&main, "diverged").unwrap_err().is::<Elsewhere>());
        set_database_aside_by_hand(&main, "by-hand").unwrap();
        assert_eq!(Database::look(&main), Database::Absent);
        assert!(space.with_extension("kept").join("PG_17_202406281").exists());

        // A folder that cannot be read is not one without tablespaces.
        samples::database(&main, 77);
        fs::write(main.join("pg_tblspc"), "").unwrap();
        assert!(set_database_aside(&main, "diverged").is_err());
    }

    #[test]
    fn what_may_be_half_of_a_database_is_told() {
        let root = root();
        let (main, etcd) = (root.path().join("var/lib/postgresql/17/main"), root.path().join("var/lib/etcd/default"));
        for why in [HALF_REPLACED, UNFINISHED, UNFINISHED_CLONE, "diverged", "by-hand"] {
            samples::database(&main, 77);
            set_aside(&main, why).unwrap();
        }
        fs::create_dir_all(root.path().join("var/lib/postgresql/17/main.failed")).unwrap();
        fs::create_dir(&etcd).unwrap();
        set_aside(&etcd, UNFINISHED).unwrap();
        let listed = list(root.path()).unwrap();
        assert_eq!(listed.len(), 7);
        for aside in &listed {
            let whole = aside.was == etcd || ["diverged", "by-hand"].contains(&aside.why.as_str());
            assert_eq!(half(aside).is_none(), whole, "{aside:?}");
            assert_eq!(line(aside).ends_with(", may be half of a database)"), !whole, "{}", line(aside));
        }
    }

    #[test]
    fn names_are_written_and_read() {
        assert_eq!(slug("WAL gone: slot `lost`"), "wal-gone-slot-lost");
        assert_eq!(slug("//"), "unnamed");
        let name = parse("main.aside-20261127T010909Z-wal-gone.2").unwrap();
        assert_eq!((name.was, name.since, name.why), ("main", Some(1_795_741_749), "wal-gone"));
        assert_eq!(parse("main.aside-x-y"), None);
        assert_eq!(parse(".aside-20261127T010909Z-y"), None);
    }
}
