use super::*;
use crate::{error::report, exec::Run, testing::require_program};
use ::tar::{EntryType, Header};

/// An entry of a made-up package.
pub(crate) struct Piece<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: EntryType,
    pub(crate) link: &'a str,
    pub(crate) content: &'a [u8],
}

pub(crate) fn file<'a>(path: &'a str, content: &'a [u8]) -> Piece<'a> {
    Piece { path, kind: EntryType::Regular, link: "", content }
}

fn folder(path: &str) -> Piece<'_> {
    Piece { path, kind: EntryType::Directory, link: "", content: b"" }
}

fn link<'a>(path: &'a str, kind: EntryType, target: &'a str) -> Piece<'a> {
    Piece { path, kind, link: target, content: b"" }
}

/// A tar archive of pieces, whatever their names.
pub(crate) fn tar_of(pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for piece in pieces {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..piece.path.len()].copy_from_slice(piece.path.as_bytes());
        header.as_mut_bytes()[157..157 + piece.link.len()].copy_from_slice(piece.link.as_bytes());
        header.set_entry_type(piece.kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000 + tar.len() as u64);
        header.set_size(piece.content.len() as u64);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(piece.content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn ar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut deb = Vec::new();
    ar::write_magic(&mut deb).unwrap();
    for (name, content) in members {
        ar::write_member(&mut deb, name, content.len() as u64, &mut &content[..]).unwrap();
    }
    deb
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut packed).unwrap();
    packed
}

pub(crate) const CONTROL: &str =
    "Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: Somebody\nDescription: demo\n more\n";

fn control_tar() -> Vec<u8> {
    tar_of(&[folder("./"), file("./control", CONTROL.as_bytes())])
}

/// A package with the given data.
pub(crate) fn deb_of(data: &[Piece<'_>]) -> Vec<u8> {
    ar_of(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &xz(&control_tar())), ("data.tar.xz", &xz(&tar_of(data)))])
}

fn try_expand(deb: &[u8], limits: &Limits) -> Result<(Expanded, Vec<u8>)> {
    let scratch = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let expanded = expand(deb, limits, scratch.path(), &mut out)?;
    assert_eq!(expanded.size, out.len() as u64);
    Ok((expanded, out))
}

fn refused(deb: &[u8]) -> String {
    report(&try_expand(deb, &Limits::default()).unwrap_err())
}

/// What stands between the first and the last line, which are the same for all.
fn reason(deb: &[u8]) -> String {
    let text = refused(deb);
    let text = text.strip_suffix(
        "\n\nhint: the package is damaged or hostile, and was not used; report it to the archive's maintainers",
    );
    let text = text.unwrap_or_else(|| panic!("{text:?}"));
    text.strip_prefix("error: in its member `data.tar.xz`\n  because: ")
        .or(text.strip_prefix("error: "))
        .unwrap()
        .into()
}

#[test]
fn a_package_is_packed_again_without_compression() {
    let data = [folder("./"), folder("./usr/"), file("./usr/a", b"aaa"), link("./usr/b", EntryType::Symlink, "/etc/b")];
    let (control, data) = (control_tar(), tar_of(&data));
    let plain = ar_of(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)]);
    let gz = |bytes: &[u8]| {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        packed
    };
    for (suffix, pack) in [
        ("", Box::new(|bytes: &[u8]| bytes.to_vec()) as Box<dyn Fn(&[u8]) -> Vec<u8>>),
        (".xz", Box::new(xz)),
        (".gz", Box::new(gz)),
        (".zst", Box::new(|bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap())),
    ] {
        let deb = ar_of(&[
            ("debian-binary", b"2.0\n"),
            ("_future", b"odd"),
            (&format!("control.tar{suffix}"), &pack(&control)),
            (&format!("data.tar{suffix}"), &pack(&data)),
        ]);
        let (expanded, out) = try_expand(&deb, &Limits::default()).unwrap();
        assert!(out == plain, "{suffix}");
        assert_eq!(expanded.control["Package"], "demo");
        assert_eq!(expanded.control["Description"], "demo\n more");
        assert_eq!(expanded.newest, 1_700_000_000 + 4 * 512);
    }
}

#[test]
fn dpkg_accepts_what_is_written() {
    if !require_program("dpkg-deb") {
        return;
    }
    // Larger than what stays in memory, and a size that needs padding.
    let large = vec![7; IN_MEMORY + 4321];
    let (_, out) = try_expand(&deb_of(&[folder("./"), file("./large", &large)]), &Limits::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.deb");
    std::fs::write(&path, out).unwrap();
    assert_eq!(Run::new("dpkg-deb").arg("--field").arg(&path).arg("Version").text().unwrap(), "1.0");
    Run::new("dpkg-deb").arg("--extract").arg(&path).arg(folder.path()).capture().unwrap();
    assert!(std::fs::read(folder.path().join("large")).unwrap() == large);
}

#[test]
fn long_names_are_followed_in_either_convention() {
    let long = format!("./{}/{}", "d".repeat(60), "f".repeat(90));
    let zero_ended = [long.as_bytes(), b"\0"].concat();
    let gnu = Piece { path: "././@LongLink", kind: EntryType::GNULongName, link: "", content: &zero_ended };
    let record = format!("{} path={long}\n", long.len() + 10);
    let pax = Piece { path: "PaxHeaders/x", kind: EntryType::XHeader, link: "", content: record.as_bytes() };
    for first in [gnu, pax] {
        try_expand(&deb_of(&[first, file("cut", b"x")]), &Limits::default()).unwrap();
    }
    let evil = b"./a/../../evil\0";
    for (kind, content) in [(EntryType::GNULongName, &evil[..]), (EntryType::XHeader, b"23 path=./a/../../evil\n")] {
        let first = Piece { path: "x", kind, link: "", content };
        assert_eq!(
            reason(&deb_of(&[first, file("harmless", b"x")])),
            "the path `./a/../../evil` leads out of the package"
        );
    }
    let smuggled = Piece { path: "x", kind: EntryType::XHeader, link: "", content: b"12 size=1024\n" };
    assert_eq!(reason(&deb_of(&[smuggled, file("x", b"x")])), "the pax header of an entry is wrong");
    let too_long = vec![b'a'; 70_000];
    let first = Piece { path: "x", kind: EntryType::GNULongName, link: "", content: &too_long };
    assert_eq!(reason(&deb_of(&[first, file("x", b"x")])), "the name of an entry is too long");
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    for (pieces, why) in [
        (vec![file("../evil", b"x")], "the path `../evil` leads out of the package"),
        (vec![file("./usr/../../evil", b"x")], "the path `./usr/../../evil` leads out of the package"),
        (vec![file("/etc/passwd", b"x")], "the path `/etc/passwd` is absolute"),
        (vec![file("./a\nb", b"x")], "the path `./a\\nb` has control characters"),
        (
            vec![link("./lib", EntryType::Symlink, "/"), file("./lib/evil", b"x")],
            "`lib/evil` leads through the link `lib` of the same package",
        ),
        (
            vec![file("./lib/evil", b"x"), link("./lib", EntryType::Symlink, "/")],
            "`lib` is not a folder, but something lies in it",
        ),
        (vec![file("./a", b"x"), file("./a/b", b"x")], "`a/b` lies in `a`, which is not a folder"),
        (vec![file("./a", b"x"), file("a", b"y")], "`a` is there twice"),
        (
            vec![link("./shadow", EntryType::Link, "./etc/shadow")],
            "`shadow` is a hard link to `etc/shadow`, which is not a file of the same package",
        ),
        (vec![link("./shadow", EntryType::Link, "../shadow")], "the path `../shadow` leads out of the package"),
        (vec![link("./sda", EntryType::Block, "")], "`sda` is a device"),
        (vec![link("./null", EntryType::Char, "")], "`null` is a device"),
        (vec![link("./s", EntryType::GNUSparse, "")], "`s` is a sparse file, which dpkg does not know"),
        (vec![link("./z", EntryType::new(b'Z'), "")], "`z` is of the unknown kind `Z`"),
    ] {
        assert_eq!(reason(&deb_of(&pieces)), why);
    }
    insta::assert_snapshot!(refused(&deb_of(&[file("../evil", b"x")])));
}

#[test]
fn bombs_are_refused() {
    let zeros = vec![0; 1 << 20];
    let deb = deb_of(&[file("./zeros", &zeros)]);
    let limits = Limits { free: 1000, ..Limits::default() };
    insta::assert_snapshot!(report(&try_expand(&deb, &limits).unwrap_err()));
    let limits = Limits { size: 64 << 10, ..Limits::default() };
    let error = report(&try_expand(&deb, &limits).unwrap_err());
    assert!(error.contains("it expands to more than 64.0 KiB"), "{error}");
    let paths: Vec<String> = (0..100).map(|n| format!("./{n}")).collect();
    let many: Vec<_> = paths.iter().map(|path| file(path, b"")).collect();
    let limits = Limits { entries: 99, ..Limits::default() };
    let error = report(&try_expand(&deb_of(&many), &limits).unwrap_err());
    assert!(error.contains("it has more than 99 entries"), "{error}");
    let limits = Limits { memory: 1 << 20, ..Limits::default() };
    let error = report(&try_expand(&deb, &limits).unwrap_err());
    assert!(error.contains("it cannot be unpacked"), "{error}");
}

#[test]
fn a_package_that_is_cut_off_is_refused() {
    let deb = deb_of(&[file("./a", b"content"), file("./b", b"content")]);
    insta::assert_snapshot!(refused(&deb[..deb.len() - 100]));
    for length in (0..deb.len() - 1).step_by(7) {
        let text = refused(&deb[..length]);
        assert!(
            ["is cut off", "it has no", "cannot be unpacked"].iter().any(|what| text.contains(what)),
            "{length}: {text}"
        );
    }
    let tar = tar_of(&[file("./a", b"content")]);
    let cut =
        ar_of(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar()), ("data.tar", &tar[..tar.len() - 1024])]);
    assert!(refused(&cut).contains("it is cut off"));
}

#[test]
fn members_that_do_not_belong_are_refused() {
    let (control, data) = (control_tar(), tar_of(&[file("./a", b"a")]));
    let version = ("debian-binary", &b"2.0\n"[..]);
    let (control, data) = (("control.tar", &control[..]), ("data.tar", &data[..]));
    for (members, why) in [
        (vec![version, control, data, data], "the member `data.tar` has no business there"),
        (vec![version, control, control, data], "the member `control.tar` has no business there"),
        (vec![version, data, control], "the member `data.tar` has no business there"),
        (vec![version, control, data, ("evil.sh", b"x")], "the member `evil.sh` has no business there"),
        (vec![version, control], "it has no `data.tar`"),
        (vec![version], "it has no `control.tar`"),
        (vec![], "it has no `debian-binary`"),
        (vec![("debian-binary", b"3.0\n"), control, data], "it is of version `3.0` of the format, known is 2"),
        (
            vec![version, control, ("data.tar.lzma", b"x")],
            "the member `data.tar.lzma` is compressed in a way that dpkg does not know",
        ),
    ] {
        assert_eq!(reason(&ar_of(&members)), why);
    }
    assert_eq!(reason(b"<html>not found</html>"), "it is not a Debian package: no `!<arch>` at its beginning");
    let without = tar_of(&[file("./md5sums", b"")]);
    assert_eq!(reason(&ar_of(&[version, ("control.tar", &without), data])), "its `control.tar` has no `control`");
    let wrong = tar_of(&[file("./control", b"Package: a\nnonsense\n")]);
    assert_eq!(
        reason(&ar_of(&[version, ("control.tar", &wrong), data])),
        "its `control` is wrong: line 2: `nonsense` is not a field"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]
    #[test]
    fn no_bytes_make_the_reader_panic(at in 0usize..6000, byte: u8, cut in 0usize..6000) {
        let tar = tar_of(&[folder("./"), file("./a", &[1; 700]), link("./b", EntryType::Symlink, "a")]);
        let mut deb = ar_of(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar()), ("data.tar", &tar)]);
        let end = deb.len().saturating_sub(cut % 3);
        deb.truncate(end);
        let at = at % deb.len();
        deb[at] = byte;
        let _ = try_expand(&deb, &Limits::default());
    }
}
