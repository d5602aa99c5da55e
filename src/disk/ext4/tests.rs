use super::{
    super::{
        Data, Map,
        testing::{Bench, ask, noise, run},
    },
    *,
};
use crate::{
    model::GuestPath,
    rootfs::{Entry, Kind, Tree},
};
use ext4_view::{Ext4, FileType};
use proptest::prelude::*;
use std::{fs::OpenOptions, path::Path};

const MIB: u64 = 1 << 20;

fn options(size: u64) -> Options {
    Options {
        size,
        uuid: Uuid::of(0x0123_4567_89ab_4def_8123_4567_89ab_cdef),
        hash_seed: Uuid::of(0x7061_7272_6f74_4123_8567_6865_7861_6772),
        label: "test".to_owned(),
        epoch: 1_750_000_000,
        order: Vec::new(),
    }
}

fn empty() -> Tree {
    let mut tree = Tree::default();
    tree.entries.insert(GuestPath::root(), Entry::directory(0o755, 1_740_000_000));
    tree
}

fn set(tree: &mut Tree, path: &str, entry: Entry) {
    tree.entries.insert(path.parse().unwrap(), entry);
}

fn file(bench: &Bench, bytes: &[u8]) -> Entry {
    Entry::file(bench.content(bytes), 0o644, 1_740_000_001)
}

fn link_target(length: usize) -> String {
    "directory/".chars().cycle().take(length).collect()
}

fn made(bench: &Bench, tree: &Tree, size: u64) -> std::path::PathBuf {
    let image = bench.raw("root.ext4", &format(tree, &options(size)).unwrap());
    ask("e2fsck -fn {}", &image);
    image
}

/// Reads the image with another's reader and compares everything it knows with the tree.
fn compare(tree: &Tree, bench: &Bench, image: &Path) {
    let view = Ext4::load_from_path(image).unwrap();
    let mut contents = crate::rootfs::tar::Contents::new(&bench.store);
    let mut listed = vec![GuestPath::root()];
    let mut at = 0;
    while let Some(directory) = listed.get(at).cloned() {
        at += 1;
        if view.symlink_metadata(directory.as_str()).unwrap().is_dir() {
            for entry in view.read_dir(directory.as_str()).unwrap() {
                let name = entry.unwrap().file_name().as_str().unwrap().to_owned();
                if name != "." && name != ".." {
                    listed.push(directory.join(&name).unwrap());
                }
            }
        }
    }
    listed.retain(|path| path.as_str() != "/lost+found" || tree.get("/lost+found").is_some());
    listed.sort();
    assert!(listed.iter().eq(tree.entries.keys()), "the names on the disk are not those of the tree");
    for (path, entry) in &tree.entries {
        let found = view.symlink_metadata(path.as_str()).unwrap();
        assert_eq!((found.uid(), found.gid()), (entry.uid, entry.gid), "{path}");
        assert_eq!(u32::from(found.mode() & 0o7777), entry.mode, "{path}");
        let kind = match &entry.kind {
            Kind::Directory => FileType::Directory,
            Kind::Fifo => FileType::Fifo,
            Kind::Symlink(target) => {
                let read = view.read_link(path.as_str()).unwrap();
                assert_eq!(read.to_str().unwrap(), target);
                FileType::Symlink
            }
            Kind::File(_) | Kind::Hardlink(_) => {
                let content = tree.content(path.as_str()).unwrap();
                let read = view.read(path.as_str()).unwrap();
                assert!(read == contents.read(content).unwrap(), "{path} has other bytes");
                FileType::Regular
            }
        };
        assert_eq!(found.file_type(), kind, "{path}");
    }
}

/// One of everything.
fn sample(bench: &Bench) -> Tree {
    let mut tree = empty();
    for directory in ["/a", "/a/b", "/a/b/c", "/big"] {
        set(&mut tree, directory, Entry::directory(0o1777, 1_740_000_000));
    }
    for size in [0, 1, 4095, 4096, 4097, 100_000] {
        set(&mut tree, &format!("/a/file-{size}"), file(bench, &noise(size)));
    }
    let mut ping = Entry { mode: 0o4755, uid: 100_000, gid: 3_000_000_000, ..file(bench, b"ping") };
    let capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ping.xattrs.insert("security.capability".into(), capability);
    set(&mut tree, "/a/ping", ping.clone());
    set(&mut tree, "/a/pong", Entry { kind: Kind::Hardlink("/a/ping".parse().unwrap()), ..ping });
    let mut marked = Entry::directory(0o2750, 1_740_000_000);
    marked.xattrs.insert("user.long".into(), noise(3000));
    marked.xattrs.insert("user.empty".into(), vec![]);
    marked.xattrs.insert("trusted.t".into(), b"odd".to_vec());
    // Owner, the user 1000, group, mask, others.
    let list = [(1u16, 7u16, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (0x10, 5, u32::MAX), (0x20, 0, u32::MAX)];
    let entries = list
        .iter()
        .flat_map(|(tag, bits, id)| tag.to_le_bytes().into_iter().chain(bits.to_le_bytes()).chain(id.to_le_bytes()));
    marked.xattrs.insert("system.posix_acl_default".into(), 2u32.to_le_bytes().into_iter().chain(entries).collect());
    set(&mut tree, "/marked", marked);
    for length in [1, 59, 60, 4000] {
        set(&mut tree, &format!("/a/link-{length}"), Entry::symlink(link_target(length), 1));
    }
    set(&mut tree, "/a/b/pipe", Entry { kind: Kind::Fifo, ..Entry::directory(0o600, 1) });
    for number in 0..300 {
        set(&mut tree, &format!("/big/{number}-{}", "ö".repeat(number % 100)), file(bench, b""));
    }
    tree
}

#[test]
fn a_tree_of_everything_is_clean_and_reads_back() {
    let bench = Bench::new();
    let tree = sample(&bench);
    let image = made(&bench, &tree, 64 * MIB);
    compare(&tree, &bench, &image);
    let summary = Summary::read(&mut std::fs::File::open(&image).unwrap(), 0).unwrap();
    assert_eq!((summary.uuid, summary.label.as_str(), summary.made), (options(0).uuid, "test", 1_750_000_000));
    assert_eq!(summary.size, 64 * MIB);
    let used = tree.entries.values().filter(|entry| !matches!(entry.kind, Kind::Hardlink(_))).count() as u32;
    assert_eq!(
        summary.inodes - summary.free_inodes,
        used + 10,
        "ten inodes are special, root is one of them and lost+found another"
    );
}

#[test]
fn attributes_are_where_other_programs_look() {
    let bench = Bench::new();
    let mut tree = sample(&bench);
    set(&mut tree, "/late", Entry { mtime: 3_000_000_000, ..file(&bench, b"2065") });
    let image = made(&bench, &tree, 64 * MIB);
    for (command, expected) in [
        ("ea_list /a/ping", "security.capability (20) = 01 00 00 02 00 20 00"),
        ("ea_list /marked", "system.posix_acl_default (28) = 01 00 00 00 01 00 07 00 02 00 05 00 e8 03 00 00 04 00"),
        ("ea_list /marked", "trusted.t (3) = \"odd\""),
        ("ea_list /marked", "user.empty (0)"),
        ("ea_list /marked", "user.long (3000)"),
        ("stat /a/pong", "Links: 2"),
        ("stat /big", "Flags: 0x81000"),
        ("stat /late", "mtime: 0xb2d05e00:00000001"),
    ] {
        let Some(said) = debugfs(&image, command) else { return };
        assert!(said.contains(expected), "{command}: {expected}: {said}");
    }
}

#[test]
fn the_disk_says_what_it_is_made_of() {
    let bench = Bench::new();
    let image = made(&bench, &sample(&bench), 300 * MIB);
    if let Some(said) = ask("dumpe2fs -h {}", &image) {
        let field = |name: &str| {
            let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {said}"));
            line[name.len()..].trim_start_matches(':').trim().to_owned()
        };
        assert_eq!(
            field("Filesystem features"),
            "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file \
             dir_nlink extra_isize metadata_csum"
        );
        assert_eq!(field("Filesystem state"), "clean");
        assert_eq!(field("Filesystem UUID"), "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(field("Directory Hash Seed"), "70617272-6f74-4123-8567-686578616772");
        assert_eq!(field("Total journal blocks"), "16384");
        assert_eq!(field("Block count"), "76800");
    }
}

#[test]
fn names_hash_as_other_programs_hash_them() {
    let bench = Bench::new();
    let image = made(&bench, &empty(), 16 * MIB);
    let seed = options(0).hash_seed;
    for name in [
        "a",
        "abc",
        "four",
        "lost+found",
        &"0123456789".repeat(4),
        &"x".repeat(255),
        "naïve",
        "größe-des-verzeichnisses-ö",
    ] {
        let Some(said) = debugfs(&image, &format!("dx_hash -h half_md4 -s {seed} {name}")) else { return };
        let (hash, minor) = hash::half_md4(name.as_bytes(), seed);
        assert!(said.contains(&format!("0x{hash:x} (minor 0x{minor:x})")), "{name}: {hash:x} {minor:x}: {said}");
    }
}

fn debugfs(image: &Path, command: &str) -> Option<String> {
    let script = image.with_extension("debugfs");
    std::fs::write(&script, command).unwrap();
    ask(&format!("debugfs -f {} {{}}", script.display()), image)
}

#[test]
fn a_directory_of_many_names_is_a_tree_that_finds_each() {
    let bench = Bench::new();
    let mut tree = empty();
    set(&mut tree, "/many", Entry::directory(0o755, 1));
    for number in 0..60_000 {
        // Long names fill more leaves than one index block can point to.
        let name = format!("/many/{number:0>40}-{}", "n".repeat(200));
        set(&mut tree, &name, Entry::symlink("x", 1));
    }
    set(&mut tree, "/small", Entry::directory(0o755, 1));
    set(&mut tree, "/small/one", Entry::symlink("x", 1));
    let image = made(&bench, &tree, 200 * MIB);
    let view = Ext4::load_from_path(&image).unwrap();
    for path in tree.entries.keys().step_by(37) {
        assert!(view.symlink_metadata(path.as_str()).is_ok(), "{path}");
    }
    assert!(!view.exists("/many/nothing").unwrap());
    if let Some(said) = debugfs(&image, "htree_dump /many") {
        assert!(said.contains("Indirect levels: 1"), "{}", &said[..300]);
    }
}

#[test]
fn a_file_of_many_extents_has_a_tree_of_them() {
    let runs: Vec<Run> = (0..1000).map(|number| Run { start: 10 * number, blocks: 3 }).collect();
    let mut next = 5_000_000_000;
    let extent::Extents { root, nodes } = extent::tree(&runs, Seed(1), || {
        next += 1;
        next
    });
    assert_eq!(
        nodes.iter().map(|(place, _)| *place).collect::<Vec<_>>(),
        [5_000_000_001, 5_000_000_002, 5_000_000_003]
    );
    // Three entries of four, one level below.
    assert_eq!(root[..8], [0x0a, 0xf3, 3, 0, 4, 0, 1, 0]);
    assert_eq!(u32::from_le_bytes(root.field(12 + 12)), 340 * 3, "the first block that the second leaf holds");
    let many: Vec<Run> = (0..340 * 4 + 1).map(|number| Run { start: 10 * number, blocks: 1 }).collect();
    assert_eq!(extent::tree(&many, Seed(1), || 1).nodes.len(), 6, "five leaves, and one block above them");
    let more: Vec<Run> = (0..340 * 340 * 2).map(|number| Run { start: 10 * number, blocks: 1 }).collect();
    assert_eq!(extent::tree(&more, Seed(1), || 1).root[6], 2, "two levels below the root");
    let long = [Run { start: 0, blocks: 5 * 32768 }];
    assert_eq!(extent::tree(&long, Seed(1), || 1).nodes.len(), 1, "an extent has 32768 blocks at most");
}

#[test]
fn files_go_around_what_lies_in_every_group() {
    let bench = Bench::new();
    let mut tree = empty();
    let content = bench.content(&noise(40 << 20));
    for number in 0..10 {
        set(&mut tree, &format!("/{number}"), Entry::file(content, 0o644, 1));
    }
    let image = made(&bench, &tree, 640 * MIB);
    compare(&tree, &bench, &image);
}

#[test]
fn many_sizes_and_ratios_are_clean() {
    let bench = Bench::new();
    let tree = sample(&bench);
    // Around the borders of groups; and so many inodes that fewer groups' tables fit together.
    for size in
        [16 * MIB, 127 * MIB, 128 * MIB, 129 * MIB, 131 * MIB, 2048 * MIB, 2049 * MIB, 2116 * MIB, 5000 * MIB + 4096]
    {
        made(&bench, &tree, size);
    }
    let mut crowded = sample(&bench);
    for number in 0..50_000 {
        set(&mut crowded, &format!("/a/{number}"), Entry::symlink("x", 1));
    }
    for size in [200 * MIB, 500 * MIB] {
        let image = made(&bench, &crowded, size);
        assert!(Ext4::load_from_path(&image).unwrap().exists("/a/49999").is_ok());
    }
}

#[test]
fn a_volume_that_is_too_small_is_told_what_is_enough() {
    let bench = Bench::new();
    let mut tree = sample(&bench);
    set(&mut tree, "/large", file(&bench, &noise(30 << 20)));
    for size in [0, 4096, MIB, 20 * MIB] {
        let error = format(&tree, &options(size)).unwrap_err();
        let TooSmall { needed, size: had } = *error.downcast_ref().unwrap();
        assert_eq!(had, size);
        assert!((30 * MIB..40 * MIB).contains(&needed), "{needed}");
        made(&bench, &tree, needed);
        assert!(format(&tree, &options(needed - MIB)).is_err(), "{needed} is more than is needed");
    }
}

#[test]
fn what_ext4_cannot_hold_is_refused_by_name() {
    let bench = Bench::new();
    let cases: [(&str, Entry, &str); 4] = [
        (&format!("/{}", "n".repeat(256)), Entry::directory(0o755, 1), "longer than 255 bytes"),
        ("/lost+found", Entry::symlink("x", 1), "must be a directory"),
        ("/link", Entry::symlink("x".repeat(4096), 1), "a symbolic link of 4096 bytes"),
        (
            "/hard",
            Entry { kind: Kind::Hardlink("/nothing".parse().unwrap()), ..file(&bench, b"") },
            "which is not there",
        ),
    ];
    for (path, entry, reason) in cases {
        let mut tree = empty();
        set(&mut tree, path, entry);
        let error = format!("{:#}", format(&tree, &options(16 * MIB)).unwrap_err());
        assert!(error.contains(reason), "{error}");
    }
    for (name, value, reason) in [
        ("user.big", vec![0; 5000], "do not fit"),
        ("strange.name", vec![], "strange.name"),
        ("system.posix_acl_access", vec![1], "not an access control list"),
    ] {
        let mut tree = empty();
        let mut marked = file(&bench, b"");
        marked.xattrs.insert(name.into(), value);
        set(&mut tree, "/marked", marked);
        let error = format!("{:#}", format(&tree, &options(16 * MIB)).unwrap_err());
        assert!(error.contains(reason) && error.contains("/marked"), "{error}");
    }
}

#[test]
fn a_lost_and_found_of_the_trees_own_is_kept() {
    let bench = Bench::new();
    let mut tree = empty();
    set(&mut tree, "/lost+found", Entry { uid: 5, ..Entry::directory(0o711, 1) });
    set(&mut tree, "/lost+found/x", file(&bench, b"x"));
    let image = made(&bench, &tree, 16 * MIB);
    compare(&tree, &bench, &image);
}

#[test]
fn the_file_system_grows_to_more_than_a_tebibyte() {
    let bench = Bench::new();
    let tree = sample(&bench);
    let image = made(&bench, &tree, 300 * MIB);
    for size in [20u64 << 30, 1200 << 30] {
        OpenOptions::new().write(true).open(&image).unwrap().set_len(size).unwrap();
        if ask("resize2fs {}", &image).is_none() {
            return;
        }
        ask("e2fsck -fn {}", &image);
        let summary = Summary::read(&mut std::fs::File::open(&image).unwrap(), 0).unwrap();
        assert_eq!(summary.size, size);
    }
    compare(&tree, &bench, &image);
}

#[test]
fn equal_trees_give_equal_bytes_and_leave_the_rest_out() {
    let bench = Bench::new();
    let map = format(&sample(&bench), &options(300 * MIB)).unwrap();
    assert_eq!(map, format(&sample(&bench), &options(300 * MIB)).unwrap());
    let written: u64 = map.ranges(BLOCK).iter().map(|range| range.end - range.start).sum();
    assert!(written < 6 * MIB, "{written}");
}

#[test]
fn a_damaged_superblock_is_noticed() {
    let bench = Bench::new();
    let image = made(&bench, &empty(), 16 * MIB);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[1024 + 4] ^= 1;
    let error = Summary::read(&mut std::io::Cursor::new(&bytes), 0).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    std::fs::write(&image, &bytes).unwrap();
    if let Some(said) = run("e2fsck -fn {}", &image) {
        assert!(said.is_err(), "a check that never fails proves nothing");
    }
    assert!(Summary::read(&mut std::io::Cursor::new(vec![0; 4096]), 0).is_err());
}

/// Random trees: nested directories, names of many lengths, all kinds, links, attributes.
fn trees() -> impl Strategy<Value = Vec<(usize, String, u8, usize, u16)>> {
    prop::collection::vec(
        (
            any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20)),
            "[a-zé]{1,60}",
            0u8..8,
            0usize..70_000,
            any::<u16>(),
        ),
        1..150,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_clean_and_reads_back(entries in trees(), mib in 16u64..300) {
        let bench = Bench::new();
        let mut tree = empty();
        let mut directories = vec![GuestPath::root()];
        let mut files: Vec<GuestPath> = vec![];
        for (place, name, kind, size, bits) in entries {
            let path = directories[place % directories.len()].join(&name).unwrap();
            if tree.entries.contains_key(&path) {
                continue;
            }
            let target = files.iter().rfind(|file| **file < path).cloned();
            let mut entry = match (kind, target) {
                (0..2, _) => {
                    directories.push(path.clone());
                    Entry::directory(0o755, 1)
                }
                (2, _) => Entry::symlink(link_target(1 + size % 4000), 1),
                (3, _) => Entry { kind: Kind::Fifo, ..Entry::directory(0o600, 1) },
                (4, Some(target)) => Entry { kind: Kind::Hardlink(target.clone()), ..tree.entries[&target].clone() },
                _ => {
                    files.push(path.clone());
                    file(&bench, &noise(size))
                }
            };
            if !matches!(entry.kind, Kind::Symlink(_) | Kind::Hardlink(_)) {
                entry.mode = u32::from(bits) & 0o7777;
                entry.uid = u32::from(bits) * 7;
                if bits % 3 == 0 {
                    entry.xattrs.insert(format!("user.{name}"), noise(usize::from(bits) % 500));
                }
            }
            tree.entries.insert(path, entry);
        }
        let image = made(&bench, &tree, mib * MIB);
        compare(&tree, &bench, &image);
    }
}

#[test]
fn a_map_keeps_files_in_the_store() {
    let bench = Bench::new();
    let mut tree = empty();
    set(&mut tree, "/f", file(&bench, &noise(5000)));
    let map: Map = format(&tree, &options(16 * MIB)).unwrap();
    let pieces: Vec<_> = map.pieces().iter().filter(|piece| matches!(piece.data, Data::Content(_))).collect();
    assert_eq!(pieces.len(), 1);
    assert_eq!((pieces[0].length, pieces[0].skip), (5000, 0));
}
