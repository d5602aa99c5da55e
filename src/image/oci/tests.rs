use super::*;
use crate::{error::report, exec::Run, model::GuestPath, progress::Style, rootfs::tar::LayerWriter};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

fn path(text: &str) -> GuestPath {
    text.parse().unwrap()
}

struct Fixture {
    folder: tempfile::TempDir,
    store: Store,
    spec: OciSpec,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    let mut base = LayerWriter::new(&store).unwrap();
    base.set(GuestPath::root(), Entry::directory(0o755, 0)).unwrap();
    base.set(path("/etc"), Entry::directory(0o755, 0)).unwrap();
    base.set_file(path("/etc/hostname"), Entry::directory(0o644, 0), 5, &mut &b"node\n"[..]).unwrap();
    let mut overlay = LayerWriter::new(&store).unwrap();
    overlay.set(path("/etc"), Entry::directory(0o755, 0)).unwrap();
    overlay.set(path("/etc/localtime"), Entry::symlink("/usr/share/zoneinfo/UTC", 0)).unwrap();
    let layers = [("base", base), ("overlay time", overlay)]
        .map(|(title, writer)| OciLayer { title: title.to_owned(), layer: writer.finish().unwrap().0 });
    let spec = OciSpec {
        references: vec!["demo:1".parse().unwrap()],
        arch: Arch::Amd64,
        created: 1_700_000_000,
        layers: layers.into(),
        compression: Compression::GZIP,
        ports: vec![5000, 22],
        annotations: BTreeMap::from([("org.opencontainers.image.title".to_owned(), "demo".to_owned())]),
    };
    Fixture { folder, store, spec }
}

impl Fixture {
    fn image(&self) -> OciImage {
        OciImage::assemble(&self.store, &self.spec, &silent()).unwrap()
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What lies in the folder besides the store.
    fn outputs(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "store")
            .collect();
        names.sort();
        names
    }
}

fn unpacked(archive: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in ::tar::Archive::new(fs::File::open(archive).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.push((entry.path().unwrap().to_str().unwrap().to_owned(), bytes));
    }
    files
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn an_archive_leads_from_its_index_to_every_layer() {
    let fixture = fixture();
    let image = fixture.image();
    let artifact = image.write_archive(&fixture.output("demo.tar"), &silent()).unwrap();
    assert_eq!(artifact.digest, Digest::of(fs::read(&artifact.path).unwrap()));
    assert_eq!(artifact.size, fs::metadata(&artifact.path).unwrap().len());

    let files = unpacked(&artifact.path);
    assert!(files.is_sorted_by_key(|(name, _)| name), "{files:?}");
    let files: BTreeMap<_, _> = files.into_iter().collect();
    for (name, bytes) in &files {
        if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            assert_eq!(hex, Digest::of(bytes).hex());
        }
    }
    let blob = |descriptor: &Value| {
        let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &files[&format!("blobs/sha256/{hex}")];
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    };
    let index = json(&files["index.json"]);
    let manifest = json(blob(&index["manifests"][0]));
    let config = json(blob(&manifest["config"]));
    let docker = json(&files["manifest.json"]);
    for (i, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&blob(layer)[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][i], Digest::of(tar).to_string());
        assert_eq!(docker[0]["Layers"][i], layer["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/"));
    }
    assert_eq!(docker[0]["Config"], format!("blobs/sha256/{}", image.config().hex()));
    assert_eq!(index["manifests"][0]["digest"], image.manifest().to_string());
}

#[test]
fn the_documents_say_what_the_image_is() {
    let fixture = fixture();
    let image = fixture.image();
    let Blob::Document(config) = &image.blobs[image.config()] else { panic!() };
    insta::assert_snapshot!(serde_json::to_string_pretty(&json(config)).unwrap(), @r#"
    {
      "created": "2023-11-14T22:13:20Z",
      "architecture": "amd64",
      "os": "linux",
      "config": {
        "ExposedPorts": {
          "22/tcp": {},
          "5000/tcp": {}
        },
        "Env": [
          "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
          "container=oci"
        ],
        "Cmd": [
          "/sbin/init"
        ],
        "WorkingDir": "/",
        "Labels": {
          "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
          "org.opencontainers.image.title": "demo"
        },
        "StopSignal": "SIGRTMIN+3"
      },
      "rootfs": {
        "type": "layers",
        "diff_ids": [
          "sha256:c1d6d9d9fd6f320b140656b49422b9a40e72a48df0212a7740ff272062d5740c",
          "sha256:02bf2013b3bf4b1808e5ad3c159abc3e1456f72f2187ee08be19828439ec19f7"
        ]
      },
      "history": [
        {
          "created": "2023-11-14T22:13:20Z",
          "created_by": "pgha-image base"
        },
        {
          "created": "2023-11-14T22:13:20Z",
          "created_by": "pgha-image overlay time"
        }
      ]
    }
    "#);
    let Blob::Document(manifest) = &image.blobs[image.manifest()] else { panic!() };
    insta::assert_snapshot!(serde_json::to_string_pretty(&json(manifest)).unwrap(), @r#"
    {
      "schemaVersion": 2,
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": "sha256:d2717bcfa83b4516701cba47b5738a98698730fbda8298fea2e211fc70ed0e9a",
        "size": 729
      },
      "layers": [
        {
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "digest": "sha256:3ec2a1394d4d9f4ca51b62becfd922e6e9d34bff4607f8da26e278aa7e1899db",
          "size": 156
        },
        {
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "digest": "sha256:afd7fa8866b4bf6eb33e41f5e24742250d011d40dbad4ecf485d7b47cc461820",
          "size": 150
        }
      ],
      "annotations": {
        "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
        "org.opencontainers.image.title": "demo"
      }
    }
    "#);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json(&image.documents["index.json"])).unwrap(), @r#"
    {
      "schemaVersion": 2,
      "mediaType": "application/vnd.oci.image.index.v1+json",
      "manifests": [
        {
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "digest": "sha256:e88e3982e7690e46accd99cdb1f94e206f2ff46f8ef399fa7bc05794e8d011d4",
          "size": 669,
          "annotations": {
            "io.containerd.image.name": "docker.io/library/demo:1",
            "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
            "org.opencontainers.image.ref.name": "1"
          },
          "platform": {
            "architecture": "amd64",
            "os": "linux"
          }
        }
      ]
    }
    "#);
    insta::assert_snapshot!(String::from_utf8_lossy(&image.documents["manifest.json"]), @r#"
    [{"Config":"blobs/sha256/d2717bcfa83b4516701cba47b5738a98698730fbda8298fea2e211fc70ed0e9a","RepoTags":["demo:1"],"Layers":["blobs/sha256/3ec2a1394d4d9f4ca51b62becfd922e6e9d34bff4607f8da26e278aa7e1899db","blobs/sha256/afd7fa8866b4bf6eb33e41f5e24742250d011d40dbad4ecf485d7b47cc461820"]}]
    "#);
}

#[test]
fn equal_images_are_equal_files() {
    let (one, other) = (fixture(), fixture());
    let write = |fixture: &Fixture| fixture.image().write_archive(&fixture.output("a.tar"), &silent()).unwrap();
    assert_eq!(write(&one).digest, write(&other).digest);
    assert_eq!(write(&one).digest, write(&one).digest, "nothing changes the second time");
}

#[test]
fn an_image_without_compression_carries_the_streams_themselves() {
    let mut fixture = fixture();
    fixture.spec.compression = Compression::None;
    let image = fixture.image();
    for layer in &fixture.spec.layers {
        assert!(image.blobs.contains_key(&layer.layer.tar));
    }
}

#[test]
fn a_damaged_blob_ends_in_no_file() {
    let fixture = fixture();
    let image = fixture.image();
    let target = fixture.output("demo.tar");
    fs::write(&target, "old").unwrap();
    let damage = |blob: &Digest, bytes: &[u8]| fs::write(fixture.store.blob_path(blob), bytes).unwrap();
    let packed = pack_layers(&fixture.store, &fixture.spec, &silent()).unwrap();
    let whole = fixture.store.get_blob(&packed[0].digest).unwrap().unwrap();
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    for damaged in [&flipped[..], &whole[1..], b""] {
        damage(&packed[0].digest, damaged);
        let error = image.write_archive(&target, &silent()).unwrap_err();
        let said = report(&error);
        let lost = format!("the blob {} is missing from the store, or was damaged", packed[0].digest);
        assert!(said.contains(&lost) && said.ends_with("hint: build again: what is missing is made again"), "{said}");
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fixture.outputs(), ["demo.tar"]);
        assert!(image.write_layout(&fixture.output("layout")).is_err());
        assert_eq!(fixture.outputs(), ["demo.tar"]);
    }
    // What the hint promises.
    fixture.image().write_archive(&target, &silent()).unwrap();
}

#[test]
fn a_layout_appears_whole_and_replaces_only_a_layout() {
    let mut fixture = fixture();
    let target = fixture.output("layout");
    fixture.image().write_layout(&target).unwrap();
    let first = fs::read(target.join("index.json")).unwrap();
    fixture.spec.created += 1;
    let image = fixture.image();
    image.write_layout(&target).unwrap();
    assert_ne!(fs::read(target.join("index.json")).unwrap(), first);
    assert_eq!(fixture.outputs(), ["layout"]);
    let blobs = fs::read_dir(target.join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs, image.blobs.len(), "nothing of the first image is left");
    assert_eq!(fs::read(target.join("oci-layout")).unwrap(), br#"{"imageLayoutVersion":"1.0.0"}"#);

    let foreign = fixture.output("precious");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let error = image.write_layout(&foreign).unwrap_err();
    assert!(error.to_string().ends_with("exists and is not an OCI image layout"), "{error}");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}

#[test]
fn a_file_system_that_cannot_exchange_still_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let (new, target) = (folder.path().join(".new"), folder.path().join("target"));
    for (folder, name) in [(&new, "new"), (&target, "old")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(name), "").unwrap();
    }
    layout::put_in_steps(&new, &target).unwrap();
    assert!(target.join("new").exists() && new.join("old").exists());
}

#[test]
fn a_layer_without_its_directories_is_refused() {
    let mut fixture = fixture();
    let mut writer = LayerWriter::new(&fixture.store).unwrap();
    writer.set(path("/etc"), Entry::directory(0o755, 0)).unwrap();
    writer.remove(path("/etc/ssl/old")).unwrap();
    fixture.spec.layers[1].layer = writer.finish().unwrap().0;
    let error = OciImage::assemble(&fixture.store, &fixture.spec, &silent()).unwrap_err();
    assert_eq!(error.to_string(), "the layer `overlay time` has `/etc/ssl/old` without its directory `/etc/ssl`");
}

#[test]
fn skopeo_reads_the_archive_as_both_of_its_kinds() {
    if !crate::testing::require_program("skopeo") {
        return;
    }
    let fixture = fixture();
    let artifact = fixture.image().write_archive(&fixture.output("demo.tar"), &silent()).unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        let said = Run::new("skopeo").args(["inspect", &format!("{kind}:{}", artifact.path.display())]).text().unwrap();
        let said = json(said.as_bytes());
        assert_eq!(said["Labels"]["org.opencontainers.image.title"], "demo", "{kind}");
        assert_eq!(said["Layers"].as_array().unwrap().len(), 2, "{kind}");
    }
}
