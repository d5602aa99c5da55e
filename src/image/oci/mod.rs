//! OCI images: a layout folder, or one archive file that every engine loads.
//!
//! The archive is an OCI image layout in a tar stream that also carries Docker's older `manifest.json`, so Docker
//! before 25, which knows nothing else, loads it as well as newer Docker and Podman. Documents follow the OCI image
//! specification 1.1 (image-layout.md, image-index.md, manifest.md, config.md, annotations.md).
//!
//! systemd is process 1: it is started by `Cmd`, so that `docker run IMAGE sh` still gives a shell; it is told with
//! `container=oci` that it runs in a container and finds out which (systemd's Container Interface); it shuts down on
//! `SIGRTMIN+3`. There are no `Volumes`: an anonymous volume for the database would outlive its container unseen.

mod archive;
mod documents;
mod layout;
mod reference;

pub use reference::Reference;

use super::compress::{Compression, PackedLayer, pack_layer};
use crate::{
    model::{Arch, Digest},
    progress::{Progress, Unit, size},
    rootfs::{Change, Entry, Kind, Layer, tar::StoredLayer},
    store::{Store, lost_blob},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::PathBuf,
};

/// What an OCI image is made of.
#[derive(Debug, Clone)]
pub struct OciSpec {
    /// The names under which engines know the image; the first is its own.
    pub references: Vec<Reference>,
    /// The machines it runs on.
    pub arch: Arch,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Its layers, lowest first.
    pub layers: Vec<OciLayer>,
    /// How they are compressed.
    pub compression: Compression,
    /// The TCP ports that it listens on.
    pub ports: Vec<u16>,
    /// Keys as of the specification's annotations.md, `org.opencontainers.image.title` and so on; they become labels of
    /// the image and annotations of its manifest. The time of creation is added.
    pub annotations: BTreeMap<String, String>,
}

/// One layer and what it is.
#[derive(Debug, Clone)]
pub struct OciLayer {
    /// Its line in the image's history: `base`, `overlay haproxy`.
    pub title: String,
    /// Its changes.
    pub layer: StoredLayer,
}

/// An image ready to be written.
#[derive(Debug)]
pub struct OciImage {
    store: Store,
    created: i64,
    references: Vec<Reference>,
    manifest: Digest,
    config: Digest,
    /// All blobs, in the order in which they are written.
    blobs: BTreeMap<Digest, Blob>,
    /// The documents beside the blobs, by file name.
    documents: BTreeMap<&'static str, Vec<u8>>,
}

#[derive(Debug)]
enum Blob {
    Document(Vec<u8>),
    Stored(u64),
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it is.
    pub path: PathBuf,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

impl OciImage {
    /// Compresses the layers and writes the documents, in memory and in the store only.
    ///
    /// # Errors
    /// When the store lost a layer, or a layer has a path without the directories above it.
    pub fn assemble(store: &Store, spec: &OciSpec, progress: &Progress) -> Result<OciImage> {
        let packed = pack_layers(store, spec, progress)?;
        let mut blobs: BTreeMap<Digest, Blob> =
            packed.iter().map(|layer| (layer.digest, Blob::Stored(layer.size))).collect();
        let mut keep = |document: Vec<u8>| {
            let digest = Digest::of(&document);
            let size = document.len() as u64;
            blobs.insert(digest, Blob::Document(document));
            (digest, size)
        };
        let config = keep(documents::config(spec, &packed)?);
        let manifest = keep(documents::manifest(spec, &packed, config)?);
        let documents = BTreeMap::from([
            ("index.json", documents::index(spec, manifest)?),
            ("manifest.json", documents::docker_manifest(spec, &packed, config.0)?),
            ("oci-layout", documents::LAYOUT.to_vec()),
        ]);
        Ok(OciImage {
            store: store.clone(),
            created: spec.created,
            references: spec.references.clone(),
            manifest: manifest.0,
            config: config.0,
            blobs,
            documents,
        })
    }

    /// The digest of the image's manifest: what registries name the image by.
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    /// The digest of the image's configuration: Docker's and Podman's image id.
    pub fn config(&self) -> &Digest {
        &self.config
    }

    /// The names under which engines will know the image.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// Size of all blobs in bytes.
    pub fn size(&self) -> u64 {
        self.blobs.values().map(Blob::size).sum()
    }

    /// Copies a blob, whose bytes are checked on the way.
    fn copy_blob(&self, digest: &Digest, blob: &Blob, output: &mut dyn Write) -> Result<()> {
        let size = match blob {
            Blob::Document(bytes) => return Ok(output.write_all(bytes)?),
            Blob::Stored(size) => *size,
        };
        let mut input = self.store.read_blob(digest)?.ok_or_else(|| lost_blob(digest))?;
        if input.size() != size {
            self.store.drop_blob(digest);
            return Err(lost_blob(digest).into());
        }
        let mut buffer = vec![0; 512 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => output.write_all(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(anyhow::Error::new(error).context(lost_blob(digest)));
                }
                Err(error) => return Err(error).with_context(|| format!("reading the blob {digest}")),
            }
        }
    }
}

impl Blob {
    fn size(&self) -> u64 {
        match self {
            Blob::Document(bytes) => bytes.len() as u64,
            Blob::Stored(size) => *size,
        }
    }
}

fn pack_layers(store: &Store, spec: &OciSpec, progress: &Progress) -> Result<Vec<PackedLayer>> {
    let total = spec.layers.iter().map(|layer| layer.layer.size).sum();
    let step = progress.step("compress", total, Unit::Bytes);
    let mut packed = Vec::with_capacity(spec.layers.len());
    for (level, OciLayer { title, layer }) in spec.layers.iter().enumerate() {
        if level > 0 {
            check_parents(title, &layer.load(store)?)?;
        }
        step.detail(title);
        packed.push(pack_layer(store, layer, spec.compression, &step).with_context(|| format!("the layer `{title}`"))?);
    }
    let packed_size = packed.iter().map(|layer| layer.size).sum();
    step.finish(format!("{} layers, {} -> {}", packed.len(), size(total), size(packed_size)));
    Ok(packed)
}

/// A layer that names a path but not the directories above it leaves their modes to the engine, and Docker makes them
/// 0755 and root's, whatever the layers below say.
fn check_parents(title: &str, layer: &Layer) -> Result<()> {
    for path in layer.changes.keys() {
        let Some(parent) = path.parent().filter(|parent| parent.as_str() != "/") else { continue };
        ensure!(
            matches!(layer.changes.get(&parent), Some(Change::Set(Entry { kind: Kind::Directory, .. }))),
            "the layer `{title}` has `{path}` without its directory `{parent}`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
