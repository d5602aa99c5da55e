//! Reads container images: the sum of their layers (OCI image specification).

use super::{Found, Node, TELLING};
use crate::model::{Digest, Sha256};
use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::PathBuf,
};
use tar::{Archive, EntryType};

/// A description of a larger size is none (the specification's manifests have a few KiB).
const LARGEST_DOCUMENT: u64 = 4 << 20;

/// Where an image's blobs are.
#[derive(Debug)]
pub(super) enum Blobs {
    /// In a layout folder.
    Folder(PathBuf),
    /// In an archive file: where each member begins, and its size.
    Archive(File, BTreeMap<String, (u64, u64)>),
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

impl Blobs {
    /// The members of an archive file; `None` if it is not one.
    pub(super) fn of_archive(file: &File) -> Result<Option<Blobs>> {
        let mut magic = [0; 262];
        let mut start = file.try_clone()?;
        start.rewind()?;
        if start.read_exact(&mut magic).is_err() || &magic[257..] != b"ustar" {
            return Ok(None);
        }
        start.rewind()?;
        let mut members = BTreeMap::new();
        for entry in Archive::new(&start).entries_with_seek().context("reading the archive")? {
            let entry = entry.context("reading the archive")?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            members.insert(name, (entry.raw_file_position(), entry.size()));
        }
        start.rewind()?;
        Ok(Some(Blobs::Archive(start, members)))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + '_>> {
        match self {
            Blobs::Folder(folder) => {
                let path = folder.join(name);
                Ok(Box::new(File::open(&path).with_context(|| format!("opening {}", path.display()))?))
            }
            Blobs::Archive(file, members) => {
                let (at, size) = members.get(name).with_context(|| format!("the archive has no `{name}`"))?;
                let mut file: &File = file;
                file.seek(SeekFrom::Start(*at))?;
                Ok(Box::new(file.take(*size)))
            }
        }
    }

    fn document<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<T> {
        let mut bytes = Vec::new();
        self.open(name)?.take(LARGEST_DOCUMENT).read_to_end(&mut bytes).with_context(|| format!("reading `{name}`"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading `{name}`"))
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Sums an image's layers; also returns the digest of its manifest and the size of its blobs.
pub(super) fn read(blobs: &Blobs) -> Result<(Found, Digest, u64)> {
    let index: Index = blobs.document("index.json")?;
    let [descriptor] = &index.manifests[..] else {
        bail!("it holds {} images, and only one can be read", index.manifests.len())
    };
    let manifest: Manifest = blobs.document(&blob(&descriptor.digest))?;
    let mut found = Found::default();
    for layer in &manifest.layers {
        let name = blob(&layer.digest);
        let packed = blobs.open(&name)?;
        let bytes: Box<dyn Read> = match layer.media_type.rsplit_once('+').map(|(_, packing)| packing) {
            Some("gzip") => Box::new(MultiGzDecoder::new(io::BufReader::new(packed))),
            Some("zstd") => Box::new(zstd::Decoder::new(packed).context("starting the decompressor")?),
            _ => packed,
        };
        apply(bytes, &mut found).with_context(|| format!("reading the layer {}", layer.digest))?;
        found.layers.push(layer.digest);
    }
    let size = manifest.layers.iter().map(|layer| layer.size).sum();
    Ok((found, descriptor.digest, size))
}

/// Puts a layer on top (layer.md, "Representing Changes").
fn apply(bytes: impl Read, found: &mut Found) -> Result<()> {
    let mut archive = Archive::new(bytes);
    for entry in archive.entries().context("reading the layer")? {
        let mut entry = entry.context("reading the layer")?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = format!("/{}", name.trim_start_matches("./").trim_matches('/'));
        if path == "/" {
            continue;
        }
        let (folder, last) = path.rsplit_once('/').unwrap_or(("", &path));
        if let Some(gone) = last.strip_prefix(".wh.") {
            let gone = format!("{folder}/{gone}");
            remove(found, &gone);
            continue;
        }
        let header = entry.header();
        let (mode, uid, gid) = (header.mode()? & 0o7777, header.uid()? as u32, header.gid()? as u32);
        let mut telling = None;
        let mut node = Node { kind: "other", mode, uid, gid, size: 0, sha256: None, target: None };
        match header.entry_type() {
            EntryType::Directory => node.kind = "directory",
            EntryType::Fifo => node.kind = "pipe",
            EntryType::Symlink => {
                node.kind = "link";
                node.target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
                let target = format!("/{}", target.unwrap_or_default().trim_start_matches("./").trim_matches('/'));
                node = found.nodes.get(&target).with_context(|| format!("`{path}` is a link to nothing"))?.clone();
                telling = found.telling.get(&target).cloned();
            }
            kind if kind.is_file() => {
                (node.kind, node.size) = ("file", entry.size());
                let mut hashed = HashingReader { inner: &mut entry, hasher: Sha256::new() };
                if TELLING.contains(&path.as_str()) {
                    let mut bytes = Vec::new();
                    hashed.read_to_end(&mut bytes)?;
                    telling = Some(bytes);
                } else {
                    io::copy(&mut hashed, &mut io::sink())?;
                }
                node.sha256 = Some(hashed.hasher.finish());
            }
            _ => {}
        }
        if node.kind != "directory" {
            remove(found, &path);
        }
        found.telling.extend(telling.map(|bytes| (path.clone(), bytes)));
        found.nodes.insert(path, node);
    }
    ensure!(!found.nodes.is_empty(), "the layer is empty");
    Ok(())
}

/// Removes a path and all that is in it.
fn remove(found: &mut Found, path: &str) {
    let below = format!("{path}/");
    found.nodes.retain(|known, _| known != path && !known.starts_with(&below));
    found.telling.remove(path);
}

/// Hashes what is read.
struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
