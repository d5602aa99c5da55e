//! Whole disks and both image formats.

use super::{
    testing::{Bench, ask, noise},
    *,
};
use crate::{
    error::{ErrorKind, kind_of, report},
    model::{Arch, Digest},
    rootfs::{Entry, Tree},
};
use grub::BiosImages;
use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering},
};

const MIB: u64 = 1 << 20;

fn tree(bench: &Bench) -> Tree {
    let mut tree = Tree::default();
    for path in ["/", "/usr", "/usr/lib", "/usr/lib/shim", "/usr/lib/grub", "/usr/lib/grub/x86_64-efi-signed"] {
        tree.entries.insert(path.parse().unwrap(), Entry::directory(0o755, 1));
    }
    let noise = noise(3_000_000);
    for (path, bytes) in [
        ("/usr/lib/shim/shimx64.efi.signed", &b"MZ shim"[..]),
        ("/usr/lib/shim/mmx64.efi.signed", b"MZ mm"),
        ("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", &noise[..200_000]),
        ("/text", &b"the same line again and again\n".repeat(200_000)),
        ("/noise", &noise),
        ("/zeros", &[0; 1_000_000]),
    ] {
        tree.entries.insert(path.parse().unwrap(), Entry::file(bench.content(bytes), 0o644, 1));
    }
    tree
}

fn bios() -> BiosImages {
    let mut boot = vec![0x90; 510];
    boot.extend([0x55, 0xaa]);
    BiosImages { boot, core: vec![0xcc; 150_000] }
}

fn disk(mib: u64) -> Disk {
    let identity = Identity::of(&Digest::of("plan"));
    let bios = Some(bios());
    Disk { arch: Arch::Amd64, size: mib * MIB, identity, epoch: 1_750_000_000, bios, order: Vec::new() }
}

#[test]
fn partition_tools_find_nothing_wrong() {
    let bench = Bench::new();
    let disk = disk(300);
    let image = bench.raw("disk.raw", &disk.layout(&tree(&bench)).unwrap());
    for words in ["sfdisk --verify {}", "sgdisk -v {}"] {
        if let Some(said) = ask(words, &image) {
            assert!(said.contains("No errors detected") || said.contains("No problems found"), "{said}");
        }
    }
    if let Some(said) = ask("sfdisk --dump {}", &image) {
        let identity = &disk.identity;
        for expected in [
            format!("label-id: {}", identity.disk.to_string().to_uppercase()),
            format!(
                "1 : start=      262144, size=      350208, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid={}, name=\"root\"",
                identity.root_partition.to_string().to_uppercase()
            ),
            "14 : start=        2048, size=        6144, type=21686148-6449-6E6F-744E-656564454649".to_owned(),
            "15 : start=        8192, size=      253952, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B".to_owned(),
        ] {
            assert!(said.contains(&expected), "{expected}: {said}");
        }
    }
    assert_eq!(gpt::Table::read(&mut File::open(&image).unwrap()).unwrap(), disk.table());
}

#[test]
fn each_partition_holds_what_it_should() {
    let bench = Bench::new();
    let disk = disk(300);
    let bytes = std::fs::read(bench.raw("disk.raw", &disk.layout(&tree(&bench)).unwrap())).unwrap();
    let part = |number| {
        let table = disk.table();
        let partition = table.partition(number).unwrap();
        bytes[partition.offset() as usize..][..partition.size() as usize].to_vec()
    };
    assert_eq!(bytes[0x5c..0x64], 2048u64.to_le_bytes());
    assert_eq!(part(14)[..0x1f4], [0xcc; 0x1f4]);
    for (number, words) in [(1, "e2fsck -fn {}"), (15, "fsck.vfat -n {}")] {
        let image = bench.path("part");
        std::fs::write(&image, part(number)).unwrap();
        ask(words, &image);
    }
    let summary = ext4::Summary::read(&mut std::io::Cursor::new(&bytes), 128 * MIB).unwrap();
    assert_eq!((summary.uuid, summary.size), (disk.identity.root, 171 * MIB));
    let efi = String::from_utf8_lossy(&part(15)).contains(&format!("search.fs_uuid {} root", disk.identity.root));
    assert!(efi, "GRUB on the ESP looks for the root file system by its identifier");
}

#[test]
fn one_pass_writes_equal_images_of_both_formats() {
    let bench = Bench::new();
    // The last cluster is not whole.
    let mut map = Map::new(1025 * MIB + 512);
    map.put_map(0, disk(300).layout(&tree(&bench)).unwrap());
    map.put(1025 * MIB, Data::Bytes(vec![7; 512]));
    let map = map.finish().unwrap();
    for (name, compression) in [("zstd", Compression::default()), ("zlib", Compression::Zlib(6))] {
        let (raw, qcow2) = (bench.path("disk.raw"), bench.path(name));
        let (raw_file, qcow2_file) = (File::create(&raw).unwrap(), File::create(&qcow2).unwrap());
        let done = AtomicU64::new(0);
        let outputs = Outputs { raw: Some(&raw_file), qcow2: Some((&qcow2_file, compression)) };
        let digest = map.write(&bench.store, outputs, &|count| _ = done.fetch_add(count, Ordering::Relaxed)).unwrap();
        assert_eq!(digest, Some(Digest::of_reader(File::open(&raw).unwrap()).unwrap()));
        let expected: u64 = map.ranges(64 << 10).iter().map(|range| range.end - range.start).sum();
        assert_eq!(done.into_inner(), expected);
        if let Some(said) = ask("qemu-img check {}", &qcow2) {
            assert!(said.contains("No errors were found"), "{said}");
        }
        ask(&format!("qemu-img compare -f raw -F qcow2 {} {{}}", raw.display()), &qcow2);
        let size = std::fs::metadata(&qcow2).unwrap().len();
        assert!((3 * MIB..6 * MIB).contains(&size), "noise stays, the rest shrinks: {size}");
        let again = bench.path("again");
        let outputs = Outputs { raw: None, qcow2: Some((&File::create(&again).unwrap(), compression)) };
        map.write(&bench.store, outputs, &|_| ()).unwrap();
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&qcow2).unwrap(), "the same map, other bytes");
    }
}

fn qcow2(bench: &Bench, map: &Map) -> anyhow::Result<Vec<u8>> {
    let path = bench.path("written");
    let file = File::create(&path).unwrap();
    let outputs = Outputs { raw: None, qcow2: Some((&file, Compression::default())) };
    map.write(&bench.store, outputs, &|_| ())?;
    Ok(std::fs::read(path).unwrap())
}

#[test]
fn what_was_compressed_before_is_not_even_read_again() {
    let bench = Bench::new();
    let tree = tree(&bench);
    let map = disk(300).layout(&tree).unwrap();
    let first = qcow2(&bench, &map).unwrap();
    bench.store.drop_blob(&tree.content("/noise").unwrap().blob);
    assert!(qcow2(&bench, &map).unwrap() == first, "other bytes when the clusters are remembered");

    // Another file in front of it moves it: its clusters are others now.
    let mut moved = tree.clone();
    moved.entries.insert("/new".parse().unwrap(), Entry::file(bench.content(&[1; 100]), 0o644, 1));
    let error = qcow2(&bench, &disk(300).layout(&moved).unwrap()).unwrap_err();
    assert!(format!("{error:#}").contains("is missing from the store"), "{error:#}");
    // Not so if it is known to change less.
    let order = vec![tree.content("/noise").unwrap().blob];
    let ordered = |tree: &Tree| Disk { order: order.clone(), ..disk(300) }.layout(tree).unwrap();
    let place = |map: &Map| {
        let is_noise = |piece: &&Piece| matches!(&piece.data, Data::Content(content) if content.blob == order[0]);
        map.pieces().iter().find(is_noise).unwrap().offset
    };
    assert_eq!(place(&ordered(&tree)), place(&ordered(&moved)));
}

#[test]
fn clusters_of_an_image_that_failed_are_not_remembered() {
    let bench = Bench::new();
    let tree = tree(&bench);
    let map = disk(300).layout(&tree).unwrap();
    let path = bench.store.blob_path(&tree.content("/noise").unwrap().blob);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bad).unwrap();
    assert!(qcow2(&bench, &map).is_err());
    std::fs::write(&path, good).unwrap();
    let elsewhere = Bench::new();
    let clean = qcow2(&elsewhere, &disk(300).layout(&self::tree(&elsewhere)).unwrap()).unwrap();
    assert!(qcow2(&bench, &map).unwrap() == clean, "damage was remembered");
}

#[test]
fn an_empty_volume_is_an_image_too() {
    let bench = Bench::new();
    let map = Map::new(10 << 40).finish().unwrap();
    let path = bench.path("empty");
    let outputs = Outputs { raw: None, qcow2: Some((&File::create(&path).unwrap(), Compression::default())) };
    map.write(&bench.store, outputs, &|_| ()).unwrap();
    if let Some(said) = ask("qemu-img info {}", &path) {
        assert!(said.contains("virtual size: 10 TiB") && said.contains("compression type: zstd"), "{said}");
    }
    ask("qemu-img check {}", &path);
}

#[test]
fn raw_images_are_sparse() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = Bench::new();
    let image = bench.raw("disk.raw", &disk(4096).layout(&tree(&bench)).unwrap());
    let metadata = std::fs::metadata(image).unwrap();
    assert_eq!(metadata.len(), 4096 * MIB);
    assert!(metadata.blocks() * 512 < 30 * MIB, "{} sectors", metadata.blocks());
}

#[test]
fn damage_in_the_store_never_reaches_an_image() {
    // One content within a chunk, one across several.
    for victim in ["/text", "/usr/lib/shim/mmx64.efi.signed"] {
        let bench = Bench::new();
        let tree = tree(&bench);
        let map = disk(300).layout(&tree).unwrap();
        let path = bench.store.blob_path(&tree.content(victim).unwrap().blob);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let raw = File::create(bench.path("disk.raw")).unwrap();
        let error = map.write(&bench.store, Outputs { raw: Some(&raw), qcow2: None }, &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("was damaged"), "{error:#}");
        assert!(!path.exists(), "a damaged blob is dropped, so that it is made again");
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_what_is_enough() {
    let bench = Bench::new();
    let tree = tree(&bench);
    for mib in [0, 1, 100, 140] {
        let error = disk(mib).layout(&tree).unwrap_err();
        assert_eq!(kind_of(&error), ErrorKind::Usage);
        let text = report(&error);
        let needed: u64 = text.rsplit("it needs ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(text.contains(&format!("hint: set `disk.size` to {needed}MiB")), "{text}");
        disk(needed).layout(&tree).unwrap();
        assert!(disk(needed - 1).layout(&tree).is_err());
    }
}

#[test]
fn a_disk_that_nobody_gave_a_size_fits_and_keeps_its_size() {
    let bench = Bench::new();
    let tree = tree(&bench);
    let size = disk(0).fitting_size(&tree).unwrap();
    assert_eq!(size % (128 * MIB), 0, "{size}");
    let disk = |size| Disk { size, ..disk(0) };
    disk(size).layout(&tree).unwrap();
    // What is in it, room to boot with, and no more than a step.
    let text = report(&disk(MIB).layout(&tree).unwrap_err());
    let needed: u64 = text.rsplit("it needs ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((needed + 64..needed + 64 + 128).contains(&(size / MIB)), "{needed} MiB, {size}");
}

#[test]
fn a_disk_of_odd_size_is_refused() {
    let bench = Bench::new();
    let odd = Disk { size: 300 * MIB + 512, ..disk(300) };
    assert_eq!(kind_of(&odd.layout(&tree(&bench)).unwrap_err()), ErrorKind::Usage);
}

#[test]
fn a_machine_without_a_bios_has_no_partition_for_one() {
    let disk = Disk { arch: Arch::Arm64, bios: None, ..disk(300) };
    let table = disk.table();
    assert_eq!(table.partitions.iter().map(|partition| partition.number).collect::<Vec<_>>(), [1, 15]);
    assert_eq!(table.partition(1).unwrap().kind, gpt::kinds::ROOT_ARM64);
}

#[test]
fn partitions_that_cannot_be_are_refused() {
    let table = disk(300).table();
    type Spoil = fn(&mut gpt::Table);
    let spoils: [Spoil; 5] = [
        |table| table.partitions[0].number = 0,
        |table| table.partitions[0].number = 14,
        |table| table.partitions[0].first = 8192,
        |table| table.partitions[0].last = table.sectors,
        |table| table.partitions[0].name = "n".repeat(37),
    ];
    for spoil in spoils {
        let mut table = table.clone();
        spoil(&mut table);
        assert!(table.put(&mut Map::new(300 * MIB)).is_err(), "{table:?}");
    }
}

#[test]
fn a_damaged_table_is_noticed() {
    let bench = Bench::new();
    let image = std::fs::read(bench.raw("disk.raw", &disk(300).layout(&tree(&bench)).unwrap())).unwrap();
    let read = |at: usize| {
        let mut image = image.clone();
        image[at] ^= 1;
        gpt::Table::read(&mut std::io::Cursor::new(image))
    };
    assert!(read(0).is_ok(), "the table says nothing of boot code");
    for at in [512, 512 + 60, 1024 + 40] {
        assert!(read(at).is_err(), "{at}");
    }
    assert!(gpt::Table::read(&mut std::io::Cursor::new(vec![0; 100])).is_err());
}

#[test]
fn a_guest_finds_its_file_systems_by_identifier() {
    let identity = Identity::of(&Digest::of("plan"));
    insta::assert_snapshot!(identity.fstab(), @r"
    UUID=a3fd2ea5-50d7-87e6-a43c-c54c0e10ca5b / ext4 discard,errors=remount-ro,x-systemd.growfs 0 1
    UUID=9291-50D0 /boot/efi vfat umask=0077,nofail 0 1
    ");
}
