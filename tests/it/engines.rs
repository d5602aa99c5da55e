//! The engines of this machine load what we write.

use crate::testing::require;
use pgha_image::{
    container_engine::{Engine, Which},
    error::report,
    image::{
        compress::Compression,
        oci::{OciImage, OciLayer, OciSpec},
    },
    model::Arch,
    progress::{Progress, Style},
    rootfs::{Entry, tar::LayerWriter},
    store::Store,
};
use std::{fs, path::Path};

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

/// An image of two layers, of which the upper one takes a file away, under a name of this process's own.
fn image(folder: &Path, name: &str) -> OciImage {
    let store = Store::open(&folder.join("store")).unwrap();
    let mut base = LayerWriter::new(&store).unwrap();
    let file = Entry::directory(0o644, 0);
    base.set("/etc".parse().unwrap(), Entry::directory(0o755, 0)).unwrap();
    base.set_file("/etc/gone".parse().unwrap(), file.clone(), 4, &mut &b"gone"[..]).unwrap();
    base.set_file("/etc/stays".parse().unwrap(), file, 5, &mut &b"stays"[..]).unwrap();
    let mut overlay = LayerWriter::new(&store).unwrap();
    overlay.set("/etc".parse().unwrap(), Entry::directory(0o755, 0)).unwrap();
    overlay.remove("/etc/gone".parse().unwrap()).unwrap();
    let layers = [("base", base), ("overlay", overlay)]
        .map(|(title, writer)| OciLayer { title: title.to_owned(), layer: writer.finish().unwrap().0 });
    let spec = OciSpec {
        references: vec![format!("{name}:{}", std::process::id()).parse().unwrap()],
        arch: Arch::HOST,
        created: 1_700_000_000,
        layers: layers.into(),
        compression: Compression::GZIP,
        ports: vec![],
        annotations: Default::default(),
    };
    OciImage::assemble(&store, &spec, &silent()).unwrap()
}

#[test]
fn real_engines_load_the_archive() {
    for (name, which) in [("docker", Which::Docker), ("podman", Which::Podman)] {
        let engine = match Engine::connect(which) {
            Ok(engine) => engine,
            Err(error) => {
                require(name, false, error);
                continue;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), "pgha-image-test-load");
        let archive = image.write_archive(&folder.path().join("image.tar"), &silent()).unwrap().path;
        let loaded = engine.load(&archive, &silent()).unwrap();
        assert_eq!(loaded.len(), 1, "{loaded:?}");
        assert!(loaded[0].reference.ends_with(&image.references()[0].to_string()), "{loaded:?}");
        // The id is the configuration's digest, or the manifest's where containerd keeps the images.
        assert!(
            [image.config(), image.manifest()].map(|digest| digest.hex()).iter().any(|hex| loaded[0].id.ends_with(hex))
        );
        engine.remove_image(&loaded[0].reference).unwrap();
        assert_eq!(engine.image_id(&loaded[0].reference).unwrap(), None);

        let broken = folder.path().join("broken.tar");
        fs::write(&broken, vec![b'x'; 2 << 20]).unwrap();
        let error = engine.load(&broken, &silent()).unwrap_err();
        assert!(report(&error).contains(&format!("{} refused: ", engine.kind())), "{}", report(&error));
    }
}
