//! Which ids a user may have in a user namespace, and what to do where the system refuses.

use super::Way;
use crate::{accounts, error::UserError, exec::Run};
use anyhow::{Context as _, Result};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// How many ids a Debian system needs: 0 to 65535, of which 65534 is `nobody`.
const IDS: u32 = 1 << 16;

/// A run of consecutive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// The ids outside a user namespace for those inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    users: Vec<Range>,
    groups: Vec<Range>,
    /// The set-user-id programs that write the maps; without them they are written directly.
    helpers: Option<[PathBuf; 2]>,
}

impl Mapping {
    /// Every id maps to itself, for root.
    pub fn identity() -> Mapping {
        let all = vec![Range { inside: 0, outside: 0, count: IDS }];
        Mapping { users: all.clone(), groups: all, helpers: None }
    }

    /// Gives the ids to the user namespace that the process `pid` has just made.
    pub fn apply(&self, pid: u32) -> Result<()> {
        let maps = [("uid_map", &self.users), ("gid_map", &self.groups)];
        for (at, (file, ranges)) in maps.into_iter().enumerate() {
            match &self.helpers {
                Some(helpers) => {
                    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
                    Run::new(&helpers[at])
                        .arg(pid.to_string())
                        .args(numbers.map(|number| number.to_string()))
                        .capture()
                        .context("mapping subordinate ids into a user namespace")
                        .context(refusal_hint(None))?;
                }
                None => {
                    let text: String = ranges
                        .iter()
                        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
                        .collect();
                    let path = format!("/proc/{pid}/{file}");
                    fs::write(&path, text).with_context(|| format!("writing {path}")).context(refusal_hint(None))?;
                }
            }
        }
        Ok(())
    }
}

/// How this user gets into the namespaces.
///
/// # Errors
/// A [`UserError`] with what this user lacks and how to get it.
pub(super) fn way() -> Result<Way> {
    let uid = rustix::process::geteuid().as_raw();
    if uid == 0 {
        return Ok(Way::Root);
    }
    let name = user_name(uid);
    let helpers = [helper("newuidmap")?, helper("newgidmap")?];
    let users = subordinate(Path::new("/etc/subuid"), name.as_deref(), uid)?;
    let gid = rustix::process::getegid().as_raw();
    let groups = subordinate(Path::new("/etc/subgid"), name.as_deref(), uid)?;
    Ok(Way::User(Mapping { users: map(uid, &users), groups: map(gid, &groups), helpers: Some(helpers) }))
}

/// The path of a set-user-id helper.
fn helper(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        UserError::runtime(format!("the program `{name}` is not installed; without it only root can build"))
            .hint("sudo apt-get install uidmap     (Fedora, openSUSE, Arch: the package `shadow` or `shadow-utils`)")
            .into()
    })
}

fn user_name(uid: u32) -> Option<String> {
    let listed =
        fs::read_to_string("/etc/passwd").ok().and_then(|text| accounts::name_of(&text, uid).map(str::to_owned));
    // Users of a directory service are not in the file.
    listed.or_else(|| env::var("USER").ok()).filter(|name| !name.is_empty())
}

/// The ranges of `file` (subuid(5)) that belong to the user, enough of them.
fn subordinate(file: &Path, name: Option<&str>, uid: u32) -> Result<Vec<(u32, u32)>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let ranges = ranges_of(&text, name, uid);
    let have: u64 = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
    if have >= u64::from(IDS - 1) {
        return Ok(ranges);
    }
    let shown = name.map_or_else(|| uid.to_string(), str::to_owned);
    let (first, last) = unused(&text);
    Err(UserError::runtime(format!(
        "{} gives the user `{shown}` {have} subordinate ids; {} are needed, without them only root can build",
        file.display(),
        IDS - 1
    ))
    .hint(format!("sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {shown}"))
    .into())
}

fn ranges_of(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    entries(text)
        .filter(|(owner, ..)| Some(*owner) == name || owner.parse() == Ok(uid))
        .map(|(_, first, count)| (first, count))
        .collect()
}

fn entries(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some((fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// A range that is free, above 100000 as useradd(8) begins.
fn unused(text: &str) -> (u64, u64) {
    let first = entries(text).map(|(_, first, count)| u64::from(first) + u64::from(count)).fold(100_000, std::cmp::max);
    (first, first + u64::from(IDS) - 1)
}

/// 0 is the user itself, the rest is taken from the subordinate ranges.
fn map(own: u32, subordinate: &[(u32, u32)]) -> Vec<Range> {
    let mut ranges = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut inside = 1;
    for &(outside, count) in subordinate {
        let count = count.min(IDS - inside);
        if count > 0 {
            ranges.push(Range { inside, outside, count });
        }
        inside += count;
    }
    ranges
}

/// The error for a namespace that the system does not give.
pub(super) fn refused(what: &str, errno: i32) -> anyhow::Error {
    let error = io::Error::from_raw_os_error(errno);
    anyhow::Error::new(error).context(format!("entering {what}")).context(refusal_hint(Some(errno)))
}

/// What most likely keeps a user out of the namespaces.
fn refusal_hint(errno: Option<i32>) -> UserError {
    let setting = |name: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let problem = UserError::runtime("this machine does not allow this user to create user namespaces");
    if rustix::process::geteuid().is_root() {
        return problem.hint(
            "this looks like a container without rights; run it with `--privileged`, or with \
             `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN`",
        );
    }
    if setting("user/max_user_namespaces") == Some(0) {
        return problem.hint("sudo sysctl -w user.max_user_namespaces=15000");
    }
    if setting("kernel/unprivileged_userns_clone") == Some(0) {
        return problem.hint("sudo sysctl -w kernel.unprivileged_userns_clone=1");
    }
    if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return problem.hint("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
    }
    match errno {
        Some(libc::ENOSYS) => problem.hint("the kernel has no user namespaces; build as root"),
        _ => problem.hint("build as root, or allow this user to create user namespaces"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "# comment\nann:100000:65536\n1000:300000:10\nbob:200000:65536\nann:bad:1\n";
        assert_eq!(ranges_of(text, Some("ann"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(ranges_of(text, None, 1000), [(300_000, 10)]);
        assert_eq!(unused(text), (300_010, 365_545));
        assert_eq!(unused(""), (100_000, 165_535));
    }

    #[test]
    fn ids_are_mapped_from_several_ranges_and_no_more_than_needed() {
        assert_eq!(
            map(1000, &[(100_000, 65536)]),
            [Range { inside: 0, outside: 1000, count: 1 }, Range { inside: 1, outside: 100_000, count: 65535 }]
        );
        let two = map(1000, &[(100_000, 1000), (200_000, 70_000)]);
        assert_eq!(two[2], Range { inside: 1001, outside: 200_000, count: 64535 });
        assert_eq!(two.iter().map(|range| range.count).sum::<u32>(), IDS);
    }

    #[test]
    fn a_user_without_ids_is_told_how_to_get_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subuid");
        fs::write(&file, "bob:100000:65536\nann:165536:1000\n").unwrap();
        let error = subordinate(&file, Some("ann"), 1000).unwrap_err();
        let problem = error.downcast_ref::<UserError>().unwrap();
        assert!(problem.message.contains("gives the user `ann` 1000 subordinate ids; 65535 are needed"), "{problem}");
        assert_eq!(
            problem.hint.as_deref(),
            Some("sudo usermod --add-subuids 166536-232071 --add-subgids 166536-232071 ann")
        );
        assert!(subordinate(&file, Some("bob"), 1001).is_ok());
        assert!(subordinate(&folder.path().join("none"), Some("ann"), 1000).is_err());
    }

    #[test]
    fn a_users_name_stands_beside_its_number() {}
}
