//! Reads container images: the sum of their layers (OCI image specification).

use super::{Found, FoundContent, FoundEntry, FoundTree, TELLING};
use crate::{
    model::{Digest, GuestPath, Sha256},
    rootfs::{Change, Entry, Kind, Layer, tar::EntryName},
};
use anyhow::{Context as _, Result, bail};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    ops::Bound,
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
    found.tree.entries.insert(GuestPath::root(), Entry::directory(0o755, 0));
    for layer in &manifest.layers {
        let name = blob(&layer.digest);
        let packed = blobs.open(&name)?;
        let bytes: Box<dyn Read> = match layer.media_type.rsplit_once('+').map(|(_, packing)| packing) {
            Some("gzip") => Box::new(MultiGzDecoder::new(io::BufReader::new(packed))),
            Some("zstd") => Box::new(zstd::Decoder::new(packed).context("starting the decompressor")?),
            _ => packed,
        };
        let reading = || format!("reading the layer {}", layer.digest);
        let changes = read_layer(bytes, &found.tree, &mut found.telling).with_context(reading)?;
        found.tree.apply(&changes).with_context(reading)?;
        found.layers.push(layer.digest);
    }
    let size = manifest.layers.iter().map(|layer| layer.size).sum();
    Ok((found, descriptor.digest, size))
}

/// The changes that a layer makes to `below` (layer.md, "Representing Changes"); the bytes of telling files go to
/// `telling`.
fn read_layer(
    bytes: impl Read,
    below: &FoundTree,
    telling: &mut BTreeMap<Digest, Vec<u8>>,
) -> Result<Layer<FoundContent>> {
    let mut layer = Layer::default();
    let (mut removed, mut emptied) = (Vec::new(), Vec::new());
    let mut archive = Archive::new(bytes);
    for entry in archive.entries().context("reading the layer")? {
        let mut entry = entry.context("reading the layer")?;
        match EntryName::of(guest_path(&entry.path_bytes())?)? {
            EntryName::Removed(path) => removed.push(path),
            EntryName::Emptied(path) => emptied.push(path),
            EntryName::Path(path) => {
                let found = found_entry(&mut entry, &path, below, &layer, telling)
                    .with_context(|| format!("reading `{path}`"))?;
                layer.changes.insert(path, Change::Set(found));
            }
        }
    }
    // Whiteouts concern the layers below only: what this layer has itself stays.
    for path in removed {
        match layer.changes.get(&path) {
            None if !has_below(&layer, &path) => _ = layer.changes.insert(path, Change::Remove),
            None | Some(Change::Set(Entry { kind: Kind::Directory, .. })) => emptied.push(path),
            Some(_) => {}
        }
    }
    for directory in emptied {
        for (path, _) in below.below(&directory) {
            if !layer.changes.contains_key(path) && !has_below(&layer, path) {
                layer.changes.insert(path.clone(), Change::Remove);
            }
        }
    }
    add_parents(&mut layer, below);
    Ok(layer)
}

fn guest_path(name: &[u8]) -> Result<GuestPath> {
    Ok(format!("/{}", String::from_utf8_lossy(name)).parse()?)
}

/// Whether the layer puts something into the directory `path`.
fn has_below(layer: &Layer<FoundContent>, path: &GuestPath) -> bool {
    let first = format!("{}/", path.as_str().trim_end_matches('/'));
    let after = layer.changes.range::<str, _>((Bound::Included(first.as_str()), Bound::Unbounded));
    after.take_while(|(inner, _)| inner.is_within(path)).any(|(_, change)| matches!(change, Change::Set(_)))
}

/// Adds the directories that a layer leaves out, as engines make them.
fn add_parents(layer: &mut Layer<FoundContent>, below: &FoundTree) {
    let set = layer.changes.iter().filter(|(_, change)| matches!(change, Change::Set(_)));
    let parents: BTreeSet<GuestPath> =
        set.flat_map(|(path, _)| std::iter::successors(path.parent(), GuestPath::parent)).collect();
    for path in parents.into_iter().filter(|path| below.get(path.as_str()).is_none()) {
        layer.changes.entry(path).or_insert(Change::Set(Entry::directory(0o755, 0)));
    }
}

/// An entry of a layer that lies on `below`, of which `layer` was read so far.
fn found_entry(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &GuestPath,
    below: &FoundTree,
    layer: &Layer<FoundContent>,
    telling: &mut BTreeMap<Digest, Vec<u8>>,
) -> Result<FoundEntry> {
    let header = entry.header();
    let (mode, uid, gid) = (header.mode()? & 0o7777, header.uid()? as u32, header.gid()? as u32);
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Symlink => {
            let target = entry.link_name_bytes().context("it is a symbolic link without a target")?;
            Kind::Symlink(String::from_utf8_lossy(&target).into_owned())
        }
        EntryType::Link => {
            let target = guest_path(&entry.link_name_bytes().context("it is a hard link without a target")?)?;
            let other = match layer.changes.get(&target) {
                Some(Change::Set(other)) => Some(other),
                _ => below.get(target.as_str()),
            };
            return other.cloned().with_context(|| format!("it is a hard link to `{target}`, which is not there"));
        }
        kind if kind.is_file() => {
            let size = entry.size();
            let mut hashed = HashingReader { inner: entry, hasher: Sha256::new() };
            let mut bytes = Vec::new();
            let is_telling = TELLING.contains(&path.as_str());
            match is_telling {
                true => _ = hashed.read_to_end(&mut bytes)?,
                false => _ = io::copy(&mut hashed, &mut io::sink())?,
            }
            let digest = hashed.hasher.finish();
            telling.extend(is_telling.then_some((digest, bytes)));
            Kind::File(FoundContent::Bytes { size, sha256: Some(digest) })
        }
        _ => Kind::File(FoundContent::Special),
    };
    Ok(Entry { kind, mode, uid, gid, mtime: 0, xattrs: BTreeMap::new() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    /// A layer of these entries: a name and a type flag, with what a file holds or a link leads to.
    fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o700);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            match kind {
                EntryType::Link | EntryType::Symlink => archive.append_link(&mut header, name, text).unwrap(),
                _ => {
                    header.set_size(text.len() as u64);
                    archive.append_data(&mut header, name, text.as_bytes()).unwrap();
                }
            }
        }
        archive.into_inner().unwrap()
    }

    /// The sum of layers: each path, with the size of a file.
    fn sum(layers: &[Vec<u8>]) -> Result<Vec<String>> {
        let mut tree = FoundTree::default();
        tree.entries.insert(GuestPath::root(), Entry::directory(0o755, 0));
        for bytes in layers {
            let changes = read_layer(&bytes[..], &tree, &mut BTreeMap::new())?;
            tree.apply(&changes)?;
        }
        let root = GuestPath::root();
        let shown = tree.below(&root).map(|(path, entry)| match &entry.kind {
            Kind::Directory => format!("{path}/"),
            Kind::File(FoundContent::Bytes { size, .. }) => format!("{path} {size}"),
            kind => format!("{path} {kind:?}"),
        });
        Ok(shown.collect())
    }

    const FOLDER: EntryType = EntryType::Directory;
    const FILE: EntryType = EntryType::Regular;

    fn base() -> Vec<u8> {
        let file = |name| (name, FILE, "old");
        layer(&[
            ("./a/", FOLDER, ""),
            file("a/one"),
            file("a/two"),
            ("a/deep/", FOLDER, ""),
            file("a/deep/file"),
            file("b"),
        ])
    }

    #[test]
    fn a_whiteout_removes_what_lower_layers_have() {
        let top = layer(&[("a/.wh.deep", FILE, ""), (".wh.b", FILE, ""), ("a/.wh.never", FILE, "")]);
        assert_eq!(sum(&[base(), top]).unwrap(), ["/a/", "/a/one 3", "/a/two 3"]);
    }

    #[test]
    fn an_emptied_directory_keeps_what_its_own_layer_has() {
        for top in [
            [("a/.wh..wh..opq", FILE, ""), ("a/one", FILE, "newer"), ("a/deep/new", FILE, "")],
            [("a/one", FILE, "newer"), ("a/deep/new", FILE, ""), (".wh.a", FILE, "")],
        ] {
            assert_eq!(sum(&[base(), layer(&top)]).unwrap(), ["/a/", "/a/deep/", "/a/deep/new 0", "/a/one 5", "/b 3"]);
        }
    }

    #[test]
    fn entries_replace_each_other() {
        let top = layer(&[("a", FILE, "file"), ("b/", FOLDER, ""), ("b/inner", EntryType::Symlink, "../a")]);
        assert_eq!(sum(&[base(), top]).unwrap(), ["/a 4", "/b/", "/b/inner Symlink(\"../a\")"]);
    }

    #[test]
    fn a_hard_link_is_a_file_of_this_layer_or_of_one_below() {
        let top = layer(&[("c", EntryType::Link, "a/one"), ("d", FILE, "newer"), ("e", EntryType::Link, "./d")]);
        assert_eq!(
            sum(&[base(), top]).unwrap(),
            ["/a/", "/a/deep/", "/a/deep/file 3", "/a/one 3", "/a/two 3", "/b 3", "/c 3", "/d 5", "/e 5"]
        );
        let error = format!("{:#}", sum(&[layer(&[("c", EntryType::Link, "gone")])]).unwrap_err());
        assert_eq!(error, "reading `/c`: it is a hard link to `/gone`, which is not there");
    }

    #[test]
    fn directories_that_are_left_out_are_added_and_links_are_not_followed() {
        let one = layer(&[("x/y/z", FILE, ""), ("null", EntryType::Char, "")]);
        assert_eq!(sum(&[one]).unwrap(), ["/null File(Special)", "/x/", "/x/y/", "/x/y/z 0"]);
        let link = layer(&[("lib", EntryType::Symlink, "usr/lib")]);
        let error = sum(&[link, layer(&[("lib/evil", FILE, "")])]).unwrap_err().to_string();
        assert_eq!(error, "`/lib/evil` has no parent directory: `/lib` is a symbolic link");
    }

    #[test]
    fn a_path_that_climbs_is_refused() {
        // The writer refuses such a name, so it is put in place of another of the same length.
        let mut bytes = layer(&[("aa/evil", FILE, "")]);
        bytes[..7].copy_from_slice(b"../evil");
        let sum_of_header = bytes[..512].iter().enumerate().map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        let checksum = format!("{:06o}\0 ", sum_of_header.sum::<u32>());
        bytes[148..156].copy_from_slice(checksum.as_bytes());
        assert!(sum(&[bytes]).unwrap_err().to_string().contains("`..`"));
    }

    #[test]
    fn an_empty_layer_changes_nothing() {
        assert_eq!(sum(&[base(), layer(&[])]).unwrap(), sum(&[base()]).unwrap());
    }
}
