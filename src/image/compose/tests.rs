use super::*;
use crate::error::report;
use std::fs;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\npostgres:x:106:110::/var/lib/postgresql:/bin/bash\n";
const GROUP: &str = "root:x:0:\npostgres:x:110:\nssl-cert:x:108:postgres\n";

pub(super) fn path(text: &str) -> GuestPath {
    text.parse().unwrap()
}

/// A tree in a store of its own.
pub(super) struct Base {
    folder: tempfile::TempDir,
    pub store: Store,
    pub tree: Tree,
}

/// Builds a tree of lines: `/a/` a directory, `/a -> b` a link, `/a => /b` a hard link, `/a` an empty file; and of files
/// with texts. Directories come by themselves.
pub(super) fn base(lines: &[&str], texts: &[(&str, &str)]) -> Base {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    let mut entries: BTreeMap<GuestPath, (Entry, &str)> = BTreeMap::new();
    let directory = || (Entry::directory(0o755, 7), "");
    let file = || Entry::directory(0o644, 7);
    entries.insert(GuestPath::root(), directory());
    for line in lines {
        let (at, entry) = match line.split_once(" => ") {
            Some((at, first)) => (at, (Entry { kind: Kind::Hardlink(path(first)), ..file() }, "")),
            None => match line.split_once(" -> ") {
                Some((at, target)) => (at, (Entry::symlink(target, 7), "")),
                None if line.ends_with('/') => (*line, directory()),
                None => (*line, (file(), "file")),
            },
        };
        entries.insert(path(at), entry);
    }
    entries.extend(texts.iter().map(|(at, text)| (path(at), (file(), *text))));
    for at in entries.keys().cloned().collect::<Vec<_>>() {
        for above in std::iter::successors(at.parent(), GuestPath::parent) {
            entries.entry(above).or_insert_with(directory);
        }
    }
    let mut writer = LayerWriter::new(&store).unwrap();
    for (at, (entry, text)) in entries {
        if entry.kind == Kind::Directory && entry.mode == 0o644 {
            let text = if text == "file" { "" } else { text };
            writer.set_file(at, entry, text.len() as u64, &mut text.as_bytes()).unwrap();
        } else {
            writer.set(at, entry).unwrap();
        }
    }
    let mut tree = Tree::default();
    tree.apply(&writer.finish().unwrap().1).unwrap();
    Base { folder, store, tree }
}

fn debian() -> Base {
    let mut base = base(
        &[
            "/bin -> usr/bin",
            "/usr/bin/perl",
            "/usr/bin/perl5 => /usr/bin/perl",
            "/etc/localtime -> /usr/share/zoneinfo/UTC",
            "/tmp/",
            "/opt -> nowhere",
        ],
        &[
            ("/etc/passwd", PASSWD),
            ("/etc/group", GROUP),
            ("/etc/hosts", "127.0.0.1 localhost\n"),
            ("/usr/share/doc/a/copyright", ""),
        ],
    );
    base.tree.entries.get_mut("/tmp").unwrap().mode = 0o1777;
    base
}

fn file(text: &str, user: &str, group: &str, mode: u32) -> Place {
    let owner = Owner { user: user.to_owned(), group: group.to_owned() };
    Place::File { bytes: Bytes::Here(text.into()), owner, mode }
}

fn directory(user: &str, mode: u32) -> Place {
    Place::Directory { owner: Owner { user: user.to_owned(), group: "root".to_owned() }, mode }
}

fn overlay<const N: usize>(places: [(&str, Place); N]) -> OverlayFiles {
    let places = places.into_iter().map(|(at, place)| (path(at), place)).collect();
    OverlayFiles { name: "demo".to_owned(), places, ..OverlayFiles::default() }
}

/// What composing says, in full, where it must fail.
fn refusal(overlay: &OverlayFiles) -> String {
    let mut base = debian();
    let before = base.tree.clone();
    let error = compose(&base.store, &mut base.tree, overlay, 9).unwrap_err();
    assert_eq!(base.tree, before, "the tree is as it was");
    assert_eq!(crate::error::kind_of(&error), crate::error::ErrorKind::Usage);
    report(&error)
}

fn dump(store: &Store, composed: &Composed) -> String {
    let mut text = String::new();
    for (path, change) in composed.layer.load(store).unwrap().changes {
        text += &match change {
            Change::Set(entry) => format!("{path} {entry}\n"),
            Change::Remove => format!("{path} removed\n"),
        };
    }
    text
}

#[test]
fn a_layer_has_the_overlays_entries_and_the_directories_above_them() {
    let mut base = debian();
    let overlay = overlay([
        ("/etc/new/deep/file", file("text", "postgres", "ssl-cert", 0o640)),
        ("/etc/hosts", file("::1 localhost\n", "root", "root", 0o644)),
        ("/etc/localtime", Place::Link("/usr/share/zoneinfo/Europe/Berlin".into())),
        ("/tmp/spool", directory("106", 0o2750)),
        ("/usr/share/doc", Place::Remove),
    ]);
    let composed = compose(&base.store, &mut base.tree, &overlay, 9).unwrap().unwrap();
    insta::assert_snapshot!(dump(&base.store, &composed), @r#"
    /etc d 0755 0:0 7
    /etc/hosts f 0644 0:0 9 14 sha256:bb99f7ca5bc76dec7f5ffdc1d620a0dcf0671cc36acdbb39bfbbf7868ddd75c3
    /etc/localtime l 0777 0:0 9 -> /usr/share/zoneinfo/Europe/Berlin
    /etc/new d 0755 0:0 9
    /etc/new/deep d 0755 0:0 9
    /etc/new/deep/file f 0640 106:108 9 4 sha256:982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1
    /tmp d 1777 0:0 7
    /tmp/spool d 2750 106:0 9
    /usr d 0755 0:0 7
    /usr/share d 0755 0:0 7
    /usr/share/doc removed
    "#);
    let overridden: Vec<_> = composed.overridden.iter().map(GuestPath::as_str).collect();
    assert_eq!(overridden, ["/etc/hosts", "/etc/localtime", "/usr/share/doc"]);
    assert_eq!(base.tree.get("/etc/new/deep").unwrap().mode, 0o755);
    assert!(base.tree.get("/usr/share/doc/a").is_none());
    assert!(base.tree.get("/usr/share").is_some());
}

#[test]
fn an_overlay_that_changes_nothing_makes_no_layer() {
    let mut base = debian();
    assert!(compose(&base.store, &mut base.tree, &overlay([]), 9).unwrap().is_none());
}

#[test]
fn a_layer_is_written_once() {
    let mut base = debian();
    let source = base.folder.path().join("source");
    fs::write(&source, "text").unwrap();
    let bytes = Bytes::At { path: source.clone(), digest: Digest::of("text"), size: 4 };
    let overlay = overlay([("/etc/x", Place::File { bytes, owner: Owner::root(), mode: 0o600 })]);
    let mut below = base.tree.clone();
    let first = compose(&base.store, &mut base.tree, &overlay, 9).unwrap().unwrap();
    fs::remove_file(source).unwrap();
    let second = compose(&base.store, &mut below, &overlay, 9).unwrap().unwrap();
    assert_eq!(first.layer, second.layer);
    assert_eq!(base.tree, below);
}

#[test]
fn a_source_that_changes_while_building_is_noticed() {
    let mut base = debian();
    let source = base.folder.path().join("source");
    for now in ["tixt", "tex", "texts"] {
        fs::write(&source, now).unwrap();
        let bytes = Bytes::At { path: source.clone(), digest: Digest::of("text"), size: 4 };
        let overlay = overlay([("/etc/x", Place::File { bytes, owner: Owner::root(), mode: 0o600 })]);
        let error = compose(&base.store, &mut base.tree, &overlay, 9).unwrap_err();
        let said = report(&error);
        let source = source.display();
        assert!(said.contains(&format!("{source} was changed while the image was being built")), "{said}");
        assert!(said.ends_with("hint: build again"), "{said}");
    }
}

#[test]
fn an_owner_that_is_not_there_is_refused_with_the_near_or_known_names() {
    insta::assert_snapshot!(refusal(&overlay([("/etc/x", file("", "postgers", "root", 0o644))])), @r#"
    error: the overlay `demo` gives `/etc/x` to the user `postgers`, which the image does not have

    hint: did you mean `postgres`?
    "#);
    insta::assert_snapshot!(refusal(&overlay([("/etc/x", file("", "root", "haproxy", 0o644))])), @r#"
    error: the overlay `demo` gives `/etc/x` to the group `haproxy`, which the image does not have

    hint: the groups there are `postgres`, `root`, `ssl-cert`
    "#);
}

#[test]
fn nothing_is_placed_through_a_link() {
    insta::assert_snapshot!(refusal(&overlay([("/bin/tool", file("", "root", "root", 0o755))])), @r#"
    error: the overlay `demo` has `/bin/tool`, but `/bin` is a symbolic link in the image

    hint: the real path is `/usr/bin/tool`
    "#);
    insta::assert_snapshot!(refusal(&overlay([("/bin", directory("root", 0o755))])), @r#"
    error: the overlay `demo` has `/bin`, but `/bin` is a symbolic link in the image

    hint: the real path is `/usr/bin`
    "#);
    insta::assert_snapshot!(refusal(&overlay([("/opt/x/y", file("", "root", "root", 0o755))])), @r#"
    error: the overlay `demo` has `/opt/x/y`, but `/opt` is a symbolic link in the image

    hint: the link's target does not exist; remove the link, or place the file elsewhere
    "#);
}

#[test]
fn what_a_path_is_cannot_be_turned_around() {
    let said: Vec<_> = [
        overlay([("/etc/hosts/x", file("", "root", "root", 0o644))]),
        overlay([("/etc/hosts", directory("root", 0o755))]),
        overlay([("/etc", file("", "root", "root", 0o644))]),
        overlay([("/etc", Place::Link("usr/etc".into()))]),
        overlay([("/etc/a", Place::Link("b".into())), ("/etc/a/x", directory("root", 0o755))]),
        overlay([("/tmp", Place::Remove), ("/tmp/x", directory("root", 0o755))]),
        overlay([("/etc/none", Place::Remove)]),
    ]
    .iter()
    .map(refusal)
    .collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    error: the overlay `demo` has `/etc/hosts/x`, but `/etc/hosts` is a file
    error: the overlay `demo` makes `/etc/hosts` a directory, but it is a file
    error: the overlay `demo` makes `/etc` a file, but it is a directory
    error: the overlay `demo` makes `/etc` a file, but it is a directory
    error: the overlay `demo` has `/etc/a/x` in `/etc/a`, which it does not make a directory
    error: the overlay `demo` has `/tmp/x` in `/tmp`, which it does not make a directory
    error: the overlay `demo` removes `/etc/none`, which the image does not have
    "#);
}

#[test]
fn the_other_names_of_a_changed_file_are_not_forgotten() {
    insta::assert_snapshot!(refusal(&overlay([("/usr/bin/perl", file("", "root", "root", 0o755))])), @r#"
    error: the overlay `demo` changes `/usr/bin/perl`, which has the other name `/usr/bin/perl5`

    hint: change or remove `/usr/bin/perl5`, too
    "#);
    let mut base = debian();
    let both = overlay([("/usr/bin/perl", Place::Remove), ("/usr/bin/perl5", Place::Remove)]);
    compose(&base.store, &mut base.tree, &both, 9).unwrap().unwrap();
}

#[test]
fn links_are_followed_inside_the_tree() {
    let base = base(
        &["/lib -> usr/lib", "/usr/lib/x", "/a/up -> ../lib", "/abs -> /a/up", "/loop -> loop", "/out -> ../../../usr"],
        &[],
    );
    let real = |at: &str| overlay_view::real_path(&base.tree, &path(at)).map(|path| path.to_string());
    assert_eq!(real("/lib/x").as_deref(), Some("/usr/lib/x"));
    assert_eq!(real("/abs/new").as_deref(), Some("/usr/lib/new"));
    assert_eq!(real("/out/lib").as_deref(), Some("/usr/lib"), "there is nothing above the root");
    assert_eq!(real("/loop/x"), None);
}
