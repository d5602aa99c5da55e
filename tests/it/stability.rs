//! What is made of fixed inputs, and under which keys the store keeps it.
//!
//! The store outlives the program that filled it, so equal keys must give equal bytes in every version. When a test here
//! fails, something that is built has changed. If that is intended, raise the version that is part of the key (the test
//! names it), so that nobody gets what an older version made, and then accept the new digests.

use crate::support::digests;
use pgha_image::{
    disk::{self, Disk, Identity, Outputs},
    image::{
        compose::{Bytes, OverlayFiles, Owner, Place, compose},
        compress::{Compression, pack_layer},
        oci::{OciImage, OciLayer, OciSpec},
    },
    model::{Arch, Digest, GuestPath},
    progress::{Progress, Style, Unit},
    rootfs::{
        Content, Entry, Kind, Tree,
        tar::{LayerWriter, StoredLayer},
    },
    store::Store,
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    path::Path,
};
use tempfile::TempDir;

const EPOCH: i64 = 1_750_000_000;

fn path(text: &str) -> GuestPath {
    text.parse().unwrap()
}

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

struct Bench {
    folder: TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        Bench { folder, store }
    }

    /// A layer with an entry of every kind, and all that the tar format has extensions for.
    fn base(&self) -> StoredLayer {
        let special = |kind, mode| Entry { kind, ..Entry::directory(mode, EPOCH) };
        let long = "n".repeat(120);
        let mut marked = Entry::directory(0o4755, EPOCH);
        marked.xattrs.insert("security.capability".to_owned(), vec![1, 0, 0, 2, 0, 4, 0, 0]);
        let mut owned = Entry::directory(0o640, EPOCH - 1);
        (owned.uid, owned.gid) = (3_000_000, 100);
        let entries = [
            ("/", Entry::directory(0o755, EPOCH), None),
            ("/dev", Entry::directory(0o755, EPOCH), None),
            ("/etc", Entry::directory(0o755, EPOCH), None),
            ("/etc/group", Entry::directory(0o644, EPOCH), Some("root:x:0:\nstaff:x:50:\n")),
            ("/etc/passwd", Entry::directory(0o644, EPOCH), Some("root:x:0:0:root:/root:/bin/sh\n")),
            ("/etc/shadow", owned, Some("root:*:20000::::::\n")),
            ("/run", Entry::directory(0o1777, EPOCH), None),
            ("/run/pipe", special(Kind::Fifo, 0o600), None),
            ("/usr", Entry::directory(0o755, EPOCH), None),
            ("/usr/first", marked, Some("a program\n")),
            (&format!("/usr/{long}"), Entry::symlink(format!("../{long}/{long}"), EPOCH), None),
            ("/usr/second", special(Kind::Hardlink(path("/usr/first")), 0o4755), None),
        ];
        let mut layer = LayerWriter::new(&self.store).unwrap();
        let mut entries = entries.map(|(name, entry, text)| (path(name), entry, text));
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        for (path, entry, text) in entries {
            match text {
                Some(text) => layer.set_file(path, entry, text.len() as u64, &mut text.as_bytes()).unwrap(),
                None => layer.set(path, entry).unwrap(),
            }
        }
        layer.finish().unwrap().0
    }

    /// An overlay that adds, replaces, removes, links and masks.
    fn overlay(&self, below: &mut Tree) -> StoredLayer {
        let file = |text: &str| Place::File {
            bytes: Bytes::Here(text.into()),
            owner: Owner { user: "root".to_owned(), group: "staff".to_owned() },
            mode: 0o640,
        };
        let places = BTreeMap::from([
            (path("/etc/demo/demo.conf"), file("port = 5000\n")),
            (path("/etc/link"), Place::Link("demo/demo.conf".to_owned())),
            (path("/etc/shadow"), file("root:!:20000::::::\n")),
            (path("/run/pipe"), Place::Remove),
            (path("/srv"), Place::Directory { owner: Owner::root(), mode: 0o700 }),
        ]);
        let mask = vec!["demo.service".to_owned()];
        let overlay = OverlayFiles { name: "demo".to_owned(), places, mask, ..OverlayFiles::default() };
        compose(&self.store, below, &overlay, EPOCH).unwrap().unwrap().layer
    }

    fn layers(&self) -> (Tree, [StoredLayer; 2]) {
        let base = self.base();
        let mut tree = Tree::default();
        tree.apply(&base.load(&self.store).unwrap()).unwrap();
        let overlay = self.overlay(&mut tree);
        (tree, [base, overlay])
    }

    fn content(&self, bytes: &[u8]) -> Content {
        let blob = self.store.put_blob(bytes).unwrap();
        Content { digest: Digest::of(bytes), size: bytes.len() as u64, blob, offset: 0 }
    }

    /// The results of `kind` that the store has: a line with key and record for each.
    fn actions(&self, kind: &str) -> String {
        let files = fs::read_dir(self.store.root().join("actions").join(kind)).unwrap();
        let mut lines: Vec<String> = files
            .map(|file| {
                let file = file.unwrap();
                let record = fs::read_to_string(file.path()).unwrap();
                format!("{kind}/{} {record}\n", file.file_name().to_str().unwrap())
            })
            .collect();
        lines.sort();
        lines.concat()
    }
}

/// Raise `FORMAT` in `image/compose/mod.rs` for layers of overlays, `ENGINE` in `base/mod.rs` for those of packages.
#[test]
fn layers_stay_what_they_are() {
    let bench = Bench::new();
    let (tree, [base, overlay]) = bench.layers();
    insta::assert_snapshot!(format!("base {}\noverlay {}\n{}", base.tar, overlay.tar, bench.actions("layer")), @r#"
    base sha256:4b9aa090d7d63b1d670cf90937e868c7cfe97db4775a049ad40b7758422a87c9
    overlay sha256:78cd9ab172864f34a57d5b36c3d4fc224429042e6766f102d42948fc2fd4ba42
    layer/75b980a692ff8021c61be43140e6fe2fc0b0f7ff5cc4fef189d63f9005c312e3 {"tar":"sha256:78cd9ab172864f34a57d5b36c3d4fc224429042e6766f102d42948fc2fd4ba42","size":7680,"index":"sha256:131fe9df9821eb75424f4d5737617d8368682c8bca34099c3b153ea626d817fa"}
    "#);
    insta::assert_snapshot!(Digest::of(tree.dump()), @"sha256:c7b9ec574598925a0d58a7496385d62e01d77a457cf30ed60fc189bee5633820");
}

/// Raise `FORMAT` in `image/compress.rs`.
#[test]
fn packed_layers_stay_what_they_are() {
    let bench = Bench::new();
    let mut writer = LayerWriter::new(&bench.store).unwrap();
    // More than one block of the compressor that works in parallel.
    let text: String = (0..200_000u64).fold(String::new(), |mut text, number| {
        writeln!(text, "{number} {}", number * number).unwrap();
        text
    });
    writer.set(GuestPath::root(), Entry::directory(0o755, EPOCH)).unwrap();
    writer.set_file(path("/numbers"), Entry::directory(0o644, EPOCH), text.len() as u64, &mut text.as_bytes()).unwrap();
    let layer = writer.finish().unwrap().0;
    let progress = silent();
    for compression in [Compression::GZIP, Compression::ZSTD] {
        pack_layer(&bench.store, &layer, compression, &progress.step("pack", layer.size, Unit::Bytes)).unwrap();
    }
    insta::assert_snapshot!(bench.actions("packed-layer"), @r#"
    packed-layer/9f9447d6fc69128f84224717ba345dc427b04b6272b539c026d55bd647bfebb3 {"diff_id":"sha256:3030ea800685480ad41dfe6bade7f0082304e22baf8d9f00ff2792a99b160f33","digest":"sha256:45412d031b3fec9f1001fe1726f34b05be40c8b5a3024b06f214a4098b00e706","size":1316747,"compression":"zstd:3"}
    packed-layer/fda6ea57e8ab6cb447cc1c74b34d00b4161800fabf4a9a6d5f2374214ad319d1 {"diff_id":"sha256:3030ea800685480ad41dfe6bade7f0082304e22baf8d9f00ff2792a99b160f33","digest":"sha256:43553a1d3a1509ff013c1fb9acf69130357e79562c47b64dca0e10e019ef13b4","size":1490292,"compression":"gzip:2"}
    "#);
}

/// Raise `VERSION` in `pipeline/up_to_date.rs`, by which finished builds are known.
#[test]
fn oci_images_stay_what_they_are() {
    let bench = Bench::new();
    let (_, layers) = bench.layers();
    let [base, overlay] = layers.map(|layer| OciLayer { title: layer.tar.hex(), layer });
    let spec = OciSpec {
        references: vec!["demo:1".parse().unwrap()],
        arch: Arch::Amd64,
        created: EPOCH,
        layers: vec![base, overlay],
        compression: Compression::GZIP,
        ports: vec![5000],
        annotations: BTreeMap::from([("org.opencontainers.image.title".to_owned(), "demo".to_owned())]),
    };
    let image = OciImage::assemble(&bench.store, &spec, &silent()).unwrap();
    let archive = image.write_archive(&bench.folder.path().join("demo.tar"), &silent()).unwrap();
    insta::assert_snapshot!(
        format!("manifest {}\nconfig {}\narchive {}", image.manifest(), image.config(), archive.digest),
        @r#"
        manifest sha256:b9099823cb3b5b206174226ec04bb6bad178a414fbd523f7b0d4c8202fceb302
        config sha256:3c6b67b4361614cb77f58b59c200f05d8e4093703b7b9820e134deb7e49695c6
        archive sha256:0947f100b096451b1f1c3f85b53114457a8d355c7fa9b32a76ad6d8ed58eb4e6
        "#
    );
}

/// Raise `VERSION` in `disk/memory.rs` if chunks of equal contents change, and that of `pipeline/up_to_date.rs`.
#[test]
fn disks_stay_what_they_are() {
    let bench = Bench::new();
    let (mut tree, _) = bench.layers();
    for folder in ["/usr/lib", "/usr/lib/grub", "/usr/lib/grub/arm64-efi-signed", "/usr/lib/shim"] {
        tree.entries.insert(path(folder), Entry::directory(0o755, EPOCH));
    }
    for (file, bytes) in [
        ("/usr/lib/shim/shimaa64.efi.signed", &b"MZ shim"[..]),
        ("/usr/lib/shim/mmaa64.efi.signed", b"MZ mm"),
        ("/usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed", &b"MZ grub".repeat(20_000)),
        ("/usr/lib/text", &b"the same line again and again\n".repeat(50_000)),
    ] {
        tree.entries.insert(path(file), Entry::file(bench.content(bytes), 0o644, EPOCH));
    }
    let disk = Disk {
        arch: Arch::Arm64,
        size: 300 << 20,
        identity: Identity::of(&Digest::of("plan")),
        epoch: EPOCH,
        bios: None,
        order: Vec::new(),
    };
    let map = disk.layout(&tree).unwrap();
    let images = bench.folder.path().join("images");
    fs::create_dir(&images).unwrap();
    let made = |name: &str| File::create(images.join(name)).unwrap();
    let (raw, zstd, zlib) = (made("demo.raw"), made("zstd.qcow2"), made("zlib.qcow2"));
    let write = |outputs| map.write(&bench.store, outputs, &|_| ()).unwrap();
    write(Outputs { raw: Some(&raw), qcow2: Some((&zstd, disk::Compression::default())) });
    write(Outputs { raw: None, qcow2: Some((&zlib, disk::Compression::Zlib(6))) });
    insta::assert_snapshot!(list(&images), @r#"
    demo.raw abebd18abb3767238ca65a8094e092178a4fad14cbc5d1f0e3a5c4bfe3abec9e
    zlib.qcow2 5765a0050a0b3de6698e4d33c7d2460f95d7949c485c22bfdd8e797307ad818c
    zstd.qcow2 f93bc77d5b9db64c707cbe8cf09e9442eddae4b6c2a5da2cc3e17cc024caa57c
    "#);
    insta::assert_snapshot!(bench.actions("checked"), @r#"
    checked/520a1480d4a885c6af56885a94b4645320f92e52cbedaaad8aaa41a6e5e2701b {"xxh3":[9728847511198614021,6481385494850118873]}
    checked/58f4ec5b34b68b2e30d55a12a0a9019a61e500862e03d7a9012e91b43ad49799 {"xxh3":[3573407383953891809,4590059487536864983]}
    checked/82d3a48ecd129e284f6ea71a0a411f85212f49f68d718ede8346b5f6825488da {"xxh3":[13377801138513408788,16100185214739782680]}
    checked/8729b03f33d2be43ecd621a47af74e7a44c9dbac25abe40d2315dfd4ec187720 {"xxh3":[11971686972293454667,17552920648289556419]}
    checked/90eaee0ec8f47875e43e85f2a57d9fb0ab6c0a83a0093efe1dbbf996a7a70239 {"xxh3":[1769405267903460025,10323984595599039138]}
    checked/957b0421fbd7f042fe4047fd40ee7367fc83cdce5e3a9152b747f60666535433 {"xxh3":[12970921219352456821,5990245281762519645]}
    checked/9f874ec918d17e9066118b20ed8d0fedf6f71162cdea3ea237e0743bc04b853f {"xxh3":[8962133075521593239,7947799607217575791]}
    checked/a70246e6078690f59a1c190bc9ff780008a83082d3c50b6074b4ce9d7105d1ea {"xxh3":[5896345613226764537,6353144468104319605]}
    checked/c238e94d59617e9cf3c2a2651d733ee1996cc11f0124bdc6749048f5754491f2 {"xxh3":[7838469746390534980,537232996868873050]}
    checked/cc595acf332eb09a740dd8d8be8e0e7fa66de8516113ee36212fa8bfd293b480 {"xxh3":[13453082775789429404,13806176444950788757]}
    "#);
}

fn list(folder: &Path) -> String {
    digests(folder).iter().map(|(name, digest)| format!("{name} {digest}\n")).collect()
}
