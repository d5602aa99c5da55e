//! Removes what an image must not have: what would be the same in every copy of it, or shows when and
//! where it was made.

use super::root::{Attributes, Root};
use crate::{
    error::UserError,
    model::GuestPath,
    rootfs::{Entry, Kind, Tree},
};
use anyhow::Result;
use rustix::fs::FileType;

/// Something that is cleaned away, and that the lint refuses.
struct Trace {
    /// Where it is.
    at: Place,
    /// Why it must not be there.
    reason: &'static str,
}

/// Where traces are.
enum Place {
    /// This path and all that is in it.
    Path(&'static str),
    /// Everything in this directory, but not itself.
    In(&'static str),
    /// Files in this directory and its directories; the directories stay.
    FilesIn(&'static str),
    /// Names in this directory that begin so and end so.
    Named(&'static str, &'static str, &'static str),
    /// Names anywhere that end so.
    Ending(&'static str),
}

use Place::{Ending, FilesIn, In, Named, Path};

const SECRET: &str = "a key that every copy of the image would share";
const IDENTITY: &str = "an identity that every copy of the image would share";
const LOG: &str = "a log of how the image was made";
const CACHE: &str = "a cache that is out of date or differs from build to build";
const BACKUP: &str = "a backup of a file that was changed while the image was made";
const LEFTOVER: &str = "needed only while packages are configured";

/// Everything that is cleaned away. The machine id is kept apart: its file stays, empty.
const TRACES: &[Trace] = &[
    Trace { at: Path("/etc/ssl/private/ssl-cert-snakeoil.key"), reason: SECRET },
    Trace { at: Path("/etc/ssl/certs/ssl-cert-snakeoil.pem"), reason: SECRET },
    Trace { at: Named("/etc/ssh", "ssh_host_", ""), reason: SECRET },
    Trace { at: Path("/var/lib/systemd/random-seed"), reason: SECRET },
    Trace { at: Path("/var/lib/systemd/credential.secret"), reason: SECRET },
    Trace { at: Path("/var/lib/dbus/machine-id"), reason: IDENTITY },
    Trace { at: Path("/etc/hostname"), reason: IDENTITY },
    Trace { at: Path("/var/lib/dhcpcd/duid"), reason: IDENTITY },
    Trace { at: Path("/var/lib/cloud"), reason: IDENTITY },
    Trace { at: FilesIn("/var/log"), reason: LOG },
    Trace { at: FilesIn("/var/lib/apt/lists"), reason: CACHE },
    Trace { at: FilesIn("/var/cache/apt"), reason: CACHE },
    Trace { at: Named("/var/cache/debconf", "", "-old"), reason: BACKUP },
    Trace { at: Named("/var/lib/dpkg", "", "-old"), reason: BACKUP },
    Trace { at: Path("/var/lib/dpkg/available"), reason: CACHE },
    Trace { at: Path("/var/lib/dpkg/lock"), reason: LEFTOVER },
    Trace { at: Path("/var/lib/dpkg/lock-frontend"), reason: LEFTOVER },
    Trace { at: Path("/var/lib/dpkg/triggers/Lock"), reason: LEFTOVER },
    Trace { at: Path("/var/cache/ldconfig/aux-cache"), reason: CACHE },
    Trace { at: Path("/etc/.pwd.lock"), reason: LEFTOVER },
    Trace { at: Path("/etc/passwd-"), reason: BACKUP },
    Trace { at: Path("/etc/group-"), reason: BACKUP },
    Trace { at: Path("/etc/shadow-"), reason: BACKUP },
    Trace { at: Path("/etc/gshadow-"), reason: BACKUP },
    Trace { at: Path("/etc/subuid-"), reason: BACKUP },
    Trace { at: Path("/etc/subgid-"), reason: BACKUP },
    Trace { at: Ending(".dpkg-new"), reason: BACKUP },
    Trace { at: Ending(".dpkg-old"), reason: BACKUP },
    Trace { at: Ending(".dpkg-dist"), reason: BACKUP },
    Trace { at: Ending(".dpkg-tmp"), reason: BACKUP },
    Trace { at: Ending(".dpkg-bak"), reason: BACKUP },
    Trace { at: Ending(".ucf-new"), reason: BACKUP },
    Trace { at: Ending(".ucf-old"), reason: BACKUP },
    Trace { at: Ending(".ucf-dist"), reason: BACKUP },
    Trace { at: Named("/var/lib/ucf", "hashfile.", ""), reason: BACKUP },
    Trace { at: Named("/var/lib/ucf", "registry.", ""), reason: BACKUP },
    Trace { at: Path(POLICY), reason: LEFTOVER },
    Trace { at: Path("/root/.rnd"), reason: SECRET },
    Trace { at: In("/tmp"), reason: LEFTOVER },
    Trace { at: In("/run"), reason: LEFTOVER },
    Trace { at: In("/var/tmp"), reason: LEFTOVER },
];

/// What keeps services from being started while packages are configured (invoke-rc.d(8)).
pub const POLICY: &str = "/usr/sbin/policy-rc.d";

const MACHINE_ID: &str = "/etc/machine-id";
const DEBCONF_ANSWERS: &str = "/var/cache/debconf/config.dat";

/// Links that lead to a file that the running system makes.
const LINKS_ARE_WELL: [&str; 1] = ["/var/lib/dbus/machine-id"];

/// Takes everything away that has no place in an image.
pub fn clean(root: &Root) -> Result<()> {
    let mut anywhere = Vec::new();
    for trace in TRACES {
        match trace.at {
            Path(path) => {
                let path = guest(path)?;
                let stat = root.stat(&path)?;
                let is_link = stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                if !(is_link && LINKS_ARE_WELL.contains(&path.as_str())) {
                    root.remove(&path)?;
                }
            }
            In(folder) => {
                let folder = guest(folder)?;
                for name in root.list(&folder)? {
                    root.remove(&folder.join(&name)?)?;
                }
            }
            FilesIn(folder) => remove_files(root, &guest(folder)?, &|_| true)?,
            Named(folder, prefix, suffix) => {
                let folder = guest(folder)?;
                for name in root.list(&folder)? {
                    if name.starts_with(prefix) && name.ends_with(suffix) {
                        root.remove(&folder.join(&name)?)?;
                    }
                }
            }
            Ending(suffix) => anywhere.push(suffix),
        }
    }
    for folder in ["/etc", "/usr", "/var", "/boot"] {
        remove_files(root, &guest(folder)?, &|name| anywhere.iter().any(|suffix| name.ends_with(suffix)))?;
    }
    let machine_id = guest(MACHINE_ID)?;
    if root.exists(&machine_id)? {
        root.write(&machine_id, Attributes::root(0o444), &b""[..])?;
    }
    rewrite(root, &guest(DEBCONF_ANSWERS)?, without_temporary_names)
}

/// Rewrites a text file that is there.
fn rewrite(root: &Root, path: &GuestPath, change: fn(&str) -> String) -> Result<()> {
    if let (Some(stat), Some(text)) = (root.stat(path)?, root.read(path)?) {
        let attributes = Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: None };
        root.write(path, attributes, change(&text).as_bytes())?;
    }
    Ok(())
}

/// The answers to debconf's questions, without the random names of files that were compared when ucf(1) asked.
fn without_temporary_names(answers: &str) -> String {
    answers.split_inclusive('\n').filter(|line| !(line.starts_with(' ') && line.contains(" = /tmp/"))).collect()
}

fn guest(path: &str) -> Result<GuestPath> {
    Ok(path.parse()?)
}

/// Removes what `is_trace` in `folder` and its directories, which stay.
fn remove_files(root: &Root, folder: &GuestPath, is_trace: &dyn Fn(&str) -> bool) -> Result<()> {
    for name in root.list(folder)? {
        let path = folder.join(&name)?;
        let Some(stat) = root.stat(&path)? else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            remove_files(root, &path, is_trace)?;
        } else if is_trace(&name) {
            root.remove(&path)?;
        }
    }
    Ok(())
}

/// What `tree` holds and must not, one line each: the path and why.
pub fn lint(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, entry) in &tree.entries {
        let traces = TRACES.iter().filter(|trace| trace.at.holds(path, entry)).map(|trace| trace.reason);
        found.extend(traces.chain(special(path, entry)).map(|reason| format!("`{path}`: {reason}")));
    }
    found
}

/// Why `path` must not be in an image, where that takes more than its name.
fn special(path: &GuestPath, entry: &Entry) -> Option<&'static str> {
    let has_bytes = matches!(&entry.kind, Kind::File(content) if content.size > 0);
    match path.as_str() {
        MACHINE_ID if has_bytes => Some(IDENTITY),
        "/etc/resolv.conf" if matches!(entry.kind, Kind::File(_)) => {
            Some("name servers of the machine that made the image")
        }
        path => {
            let in_cluster = path.strip_prefix("/var/lib/postgresql/").is_some_and(|rest| rest.contains('/'));
            in_cluster.then_some("a database cluster that every copy of the image would share")
        }
    }
}

/// Fails if `tree` holds what has no place in an image.
pub fn check(tree: &Tree) -> Result<()> {
    let found = lint(tree);
    if found.is_empty() {
        return Ok(());
    }
    let message = format!("the configured packages left what has no place in an image:\n  {}", found.join("\n  "));
    Err(UserError::runtime(message).into())
}

impl Place {
    fn holds(&self, path: &GuestPath, entry: &Entry) -> bool {
        let text = path.as_str();
        let is_in = |folder: &str| text.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let is_directory = entry.kind == Kind::Directory;
        match self {
            Path(at) => {
                let link_is_well = matches!(entry.kind, Kind::Symlink(_)) && LINKS_ARE_WELL.contains(at);
                text == *at && !link_is_well
            }
            In(folder) => is_in(folder),
            FilesIn(folder) => is_in(folder) && !is_directory,
            Named(folder, prefix, suffix) => text
                .strip_prefix(folder)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|name| !name.contains('/') && name.starts_with(prefix) && name.ends_with(suffix)),
            Ending(suffix) => !is_directory && text.ends_with(suffix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Digest, rootfs::Content};
    use std::fs;

    const DIRTY: [&str; 16] = [
        "/boot/x.dpkg-bak",
        "/etc/.pwd.lock",
        "/etc/app.conf.dpkg-dist",
        "/etc/hostname",
        "/etc/passwd-",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssl/private/ssl-cert-snakeoil.key",
        "/usr/sbin/policy-rc.d",
        "/var/cache/apt/pkgcache.bin",
        "/var/cache/debconf/config.dat-old",
        "/var/cache/ldconfig/aux-cache",
        "/var/lib/apt/lists/partial/x",
        "/var/lib/dbus/machine-id",
        "/var/lib/dpkg/status-old",
        "/var/lib/systemd/random-seed",
        "/var/log/apt/history.log",
    ];
    const CLEAN: [&str; 5] = [
        "/etc/ssh/sshd_config",
        "/etc/passwd",
        "/var/lib/dpkg/status",
        "/var/cache/debconf/config.dat",
        "/etc/app.conf",
    ];

    fn tree(paths: &[&str]) -> Tree {
        let content = Content { digest: Digest::of("x"), size: 1, blob: Digest::of("x"), offset: 0 };
        let entries = paths.iter().map(|path| (path.parse().unwrap(), Entry::file(content, 0o644, 0)));
        Tree { entries: entries.collect() }
    }

    #[test]
    fn the_lint_names_every_trace_and_nothing_else() {
        let all: Vec<&str> = DIRTY.iter().chain(&CLEAN).copied().collect();
        let found = lint(&tree(&all));
        let mut named: Vec<&str> = found.iter().map(|line| line.split('`').nth(1).unwrap()).collect();
        named.dedup();
        assert_eq!(named, DIRTY);
        assert!(lint(&tree(&CLEAN)).is_empty());
        assert_eq!(
            lint(&tree(&["/etc/machine-id", "/etc/resolv.conf", "/var/lib/postgresql/17/main"])),
            [
                "`/etc/machine-id`: an identity that every copy of the image would share",
                "`/etc/resolv.conf`: name servers of the machine that made the image",
                "`/var/lib/postgresql/17/main`: a database cluster that every copy of the image would share",
            ]
        );
        let mut link = tree(&[]);
        link.entries.insert("/var/lib/dbus/machine-id".parse().unwrap(), Entry::symlink("/etc/machine-id", 0));
        assert!(lint(&link).is_empty());
    }

    #[test]
    fn answers_keep_everything_but_random_names() {
        let answers = "Name: ucf/changeprompt\nFlags: seen\nVariables:\n FILE = /etc/x\n NEW = /tmp/x.aBc\n\nName: y\n";
        let expected = "Name: ucf/changeprompt\nFlags: seen\nVariables:\n FILE = /etc/x\n\nName: y\n";
        assert_eq!(without_temporary_names(answers), expected);
    }

    #[test]
    fn cleaning_leaves_nothing_for_the_lint() {
        if !crate::testing::require_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        for path in DIRTY.iter().chain(&CLEAN).chain(&["/etc/machine-id", "/tmp/x", "/run/y/z"]) {
            let path = guest(path).unwrap();
            root.make_parents(&path).unwrap();
            root.write(&path, Attributes::root(0o644), &b"x"[..]).unwrap();
        }
        clean(&root).unwrap();
        let gone = DIRTY.iter().all(|path| !root.exists(&guest(path).unwrap()).unwrap());
        let kept = CLEAN.iter().all(|path| root.exists(&guest(path).unwrap()).unwrap());
        assert!(gone && kept);
        assert!(folder.path().join("var/log/apt").is_dir(), "directories of logs stay");
        assert_eq!(fs::read(folder.path().join("etc/machine-id")).unwrap(), b"");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }
}
