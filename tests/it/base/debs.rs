//! Packages for tests: real ones of Debian 13, fetched by the host's apt once, and small ones made here.

use pgha_image::{debian::deb::ExpandedDeb, spec::Digest, store::Store};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

/// What every base needs: `Essential: yes` in Debian 13, and apt.
const ESSENTIAL: &str = "apt base-files base-passwd bash bsdutils coreutils dash debianutils diffutils dpkg findutils grep gzip hostname \
                         init-system-helpers libc-bin login mawk ncurses-base ncurses-bin passwd perl-base sed sysvinit-utils tar util-linux";

/// The packages of a minimal Debian 13, expanded into `store`; `None`, with a message, where they cannot be had.
pub fn essential(store: &Store) -> Option<Vec<ExpandedDeb>> {
    let folder = cache().join("debs");
    let lock = File::create(cache().join("debs.lock")).unwrap();
    lock.lock().unwrap();
    let done = folder.join("done");
    if !done.exists()
        && let Err(why) = fetch(&folder)
    {
        super::skip(&format!("the packages of Debian 13 cannot be fetched: {why}"));
        return None;
    }
    fs::write(&done, "").unwrap();
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    Some(
        paths
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "deb"))
            .map(|path| expand(store, path))
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

/// The first mirror in the host's list of sources.
fn mirror() -> Option<String> {
    let text = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("URIs:"))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// The members of a .deb: name and bytes.
fn members(deb: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    let mut at = 8;
    while at + 60 <= deb.len() {
        let field = |from: usize, to: usize| std::str::from_utf8(&deb[at + from..at + to]).unwrap().trim().to_owned();
        let size: usize = field(48, 58).parse().unwrap();
        members.push((field(0, 16).trim_end_matches('/').to_owned(), deb[at + 60..at + 60 + size].to_vec()));
        at += 60 + size.next_multiple_of(2);
    }
    members
}

fn decompress(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match name.rsplit_once('.').unwrap().1 {
        "xz" => drop(liblzma::read::XzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
        "zst" => drop(zstd::Decoder::new(bytes).unwrap().read_to_end(&mut plain).unwrap()),
        "gz" => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
        _ => plain.extend_from_slice(bytes),
    }
    plain
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

fn fields(text: &str) -> BTreeMap<String, String> {
    text.replace("\n ", "\0")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().replace('\0', "\n ")))
        .collect()
}

fn control_text(control_tar: &[u8]) -> String {
    let mut archive = tar::Archive::new(control_tar);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().file_name().is_some_and(|name| name == "control") {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            return text;
        }
    }
    panic!("no control file");
}

/// Puts a .deb into the store, expanded.
pub fn expand(store: &Store, path: &Path) -> ExpandedDeb {
    let deb = fs::read(path).unwrap();
    let (mut control, mut data) = (Vec::new(), Vec::new());
    for (name, bytes) in members(&deb) {
        match name.split('.').next().unwrap() {
            "control" => control = decompress(&name, &bytes),
            "data" => data = decompress(&name, &bytes),
            _ => {}
        }
    }
    keep(store, &control, &data)
}

fn keep(store: &Store, control: &[u8], data: &[u8]) -> ExpandedDeb {
    let expanded = pack(&[("debian-binary", b"2.0\n"), ("control.tar", control), ("data.tar", data)]);
    let digest = store.put_blob(&expanded).unwrap();
    ExpandedDeb {
        original: Digest::of(&expanded),
        size: expanded.len() as u64,
        expanded: digest,
        control: fields(&control_text(control)),
        newest: 1_700_000_000,
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
    keep(store, &tarball(&archive), &tarball(&data))
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
