//! Packages for tests: real ones of Debian 13, fetched by the host's apt once, and small ones made here.

use pgha_image::{
    debian::deb::{self, ExpandedDeb, Limits},
    model::Digest,
    store::Store,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// What every base needs: `Essential: yes` in Debian 13, and apt.
const ESSENTIAL: &str = "apt base-files base-passwd bash bsdutils coreutils dash debianutils diffutils dpkg findutils grep gzip hostname \
                         init-system-helpers libc-bin login mawk ncurses-base ncurses-bin passwd perl-base sed sysvinit-utils tar util-linux";

/// The packages of a minimal Debian 13, expanded into `store`; `None`, with a message, where they are not available.
pub fn essential(store: &Store) -> Option<Vec<ExpandedDeb>> {
    let folder = cache().join("debs");
    let lock = File::create(cache().join("debs.lock")).unwrap();
    lock.lock().unwrap();
    let done = folder.join("done");
    if !done.exists()
        && let Err(why) = fetch(&folder)
    {
        crate::testing::require("mirror", false, format_args!("the packages of Debian 13 cannot be fetched: {why}"));
        return None;
    }
    fs::write(&done, "").unwrap();
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    Some(
        paths
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "deb"))
            .map(|path| expand(store, &fs::read(path).unwrap()))
            .collect(),
    )
}

/// The folder for what is fetched or built once for all tests.
pub fn cache() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("base");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Fetches with the host's apt, from the mirror that the host uses, leaving the host's own state alone.
fn fetch(folder: &Path) -> Result<(), String> {
    let mirror = mirror().ok_or("this host has no mirror of Debian")?;
    let state = tempfile::tempdir().map_err(|error| error.to_string())?;
    let at = |name: &str| state.path().join(name);
    for name in ["lists/partial", "cache"] {
        fs::create_dir_all(at(name)).map_err(|error| error.to_string())?;
    }
    fs::create_dir_all(folder.join("partial")).map_err(|error| error.to_string())?;
    fs::write(at("status"), "").map_err(|error| error.to_string())?;
    fs::write(at("sources.list"), format!("deb [trusted=yes] {mirror} trixie main\n"))
        .map_err(|error| error.to_string())?;
    let apt = |arguments: &[&str]| {
        let options = [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::Status", at("status")),
            ("Dir::State::Extended_States", at("extended")),
            ("Dir::Cache", at("cache")),
            ("Dir::Cache::Archives", folder.to_owned()),
        ];
        let mut command = Command::new("apt-get");
        for (name, path) in options {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        let output = command
            .args([
                "-q",
                "-y",
                "-o",
                "APT::Sandbox::User=",
                "-o",
                "Acquire::Languages=none",
                "-o",
                "APT::Install-Recommends=false",
            ])
            .args(arguments)
            .output()
            .map_err(|error| format!("apt-get: {error}"))?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    };
    apt(&["update"])?;
    let names: Vec<&str> = ["--download-only", "install"].into_iter().chain(ESSENTIAL.split_whitespace()).collect();
    apt(&names)
}

/// The mirror that the environment names, or the first of the host's own.
fn mirror() -> Option<String> {
    if let Ok(mirror) = std::env::var("PGHA_IMAGE_MIRROR") {
        return Some(mirror);
    }
    let text = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("URIs:"))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// Packs members without compression.
fn pack(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut deb = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len());
        deb.extend_from_slice(header.as_bytes());
        deb.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            deb.push(b'\n');
        }
    }
    deb
}

/// Puts a .deb into the store, expanded.
fn expand(store: &Store, deb: &[u8]) -> ExpandedDeb {
    let mut blob = store.write_blob().unwrap();
    let expanded = deb::expand(deb, &Limits::default(), &store.scratch_root(), &mut blob).unwrap();
    ExpandedDeb {
        original: Digest::of(deb),
        expanded: blob.finish().unwrap().0,
        size: expanded.size,
        control: expanded.control,
        newest: expanded.newest,
    }
}

/// A small package: fields of its control file besides the name, control files (`postinst` is a script), files.
pub fn small(
    store: &Store,
    name: &str,
    extra: &str,
    control_files: &[(&str, &str)],
    files: &[(&str, &str)],
) -> ExpandedDeb {
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n{extra}"
    );
    let scripts: Vec<(String, &str, u32)> = control_files
        .iter()
        .map(|(name, text)| {
            ((*name).to_owned(), *text, if name.contains("inst") || name.contains("rm") { 0o755 } else { 0o644 })
        })
        .collect();
    let mut archive = vec![("./control".to_owned(), control.as_str(), 0o644)];
    archive.extend(scripts.iter().map(|(name, text, mode)| (format!("./{name}"), *text, *mode)));
    let data: Vec<(String, &str, u32)> = files.iter().map(|(path, text)| (format!(".{path}"), *text, 0o644)).collect();
    let members =
        [("debian-binary", &b"2.0\n"[..]), ("control.tar", &tarball(&archive)), ("data.tar", &tarball(&data))];
    expand(store, &pack(&members))
}

fn tarball(files: &[(String, &str, u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |path: &str, kind: tar::EntryType, mode: u32, size: u64| {
        let mut header = tar::Header::new_gnu();
        // As it is: dpkg takes the first `.` off before it looks at patterns, the library would have taken `./`.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_cksum();
        header
    };
    let mut directories = std::collections::BTreeSet::new();
    for (path, ..) in files {
        directories.extend(path.match_indices('/').map(|(at, _)| path[..=at].to_owned()));
    }
    for directory in directories {
        builder.append(&header(&directory, tar::EntryType::Directory, 0o755, 0), &[][..]).unwrap();
    }
    for (path, text, mode) in files {
        builder.append(&header(path, tar::EntryType::Regular, *mode, text.len() as u64), text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}
