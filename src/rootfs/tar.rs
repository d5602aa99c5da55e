//! The canonical tar stream of a layer, and the contents that lie in it.
//!
//! Entries come in path order, with numeric owners and no names, whole seconds, and PAX records only where the ustar
//! header has no room (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"): long names, large
//! numbers, extended attributes (`SCHILY.xattr.NAME`, as Docker, Podman and GNU tar read them). A removed path is an
//! empty file `.wh.NAME` (OCI image specification, layer.md, "Whiteouts"). Equal layers give equal bytes.

use super::{Change, Content, Entry, Kind, Layer};
use crate::{
    model::{Digest, GuestPath, Sha256},
    store::{BlobReader, BlobWriter, CachedResult, Store, lost_blob},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, hash_map},
    io::{self, BufWriter, Read, Write},
};

const BLOCK: u64 = 512;

/// What the name of a removed path's marker begins with.
const WHITEOUT: &str = ".wh.";

/// The marker in a directory of which nothing from the layers below is left; we write none.
const OPAQUE: &str = ".wh..wh..opq";

/// What an entry of a layer's stream stands for, by its name (OCI image specification, layer.md, "Whiteouts").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryName {
    /// An entry of its own.
    Path(GuestPath),
    /// This path of the layers below is gone, with all that was in it.
    Removed(GuestPath),
    /// All that this directory had in the layers below is gone.
    Emptied(GuestPath),
}

impl EntryName {
    /// What the entry `path` stands for.
    ///
    /// # Errors
    /// When it is a whiteout of something that is not a path.
    pub fn of(path: GuestPath) -> Result<EntryName> {
        let Some(directory) = path.parent() else { return Ok(EntryName::Path(path)) };
        match path.file_name().strip_prefix(WHITEOUT) {
            None => Ok(EntryName::Path(path)),
            Some(_) if path.file_name() == OPAQUE => Ok(EntryName::Emptied(directory)),
            Some("" | "." | "..") => bail!("the layer has the whiteout `{path}`, which names nothing"),
            Some(name) => Ok(EntryName::Removed(directory.join(name)?)),
        }
    }
}

/// A layer that the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLayer {
    /// The canonical tar stream. Its digest is also the layer's `diff_id` in an OCI image.
    pub tar: Digest,
    /// Size of the tar stream in bytes.
    pub size: u64,
    /// The [`Layer`] itself, as JSON.
    pub index: Digest,
}

impl CachedResult for StoredLayer {
    const KIND: &'static str = "layer";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.tar, self.index]
    }
}

impl StoredLayer {
    /// The layer's changes.
    ///
    /// # Errors
    /// When the store no longer has them whole.
    pub fn load(&self, store: &Store) -> Result<Layer> {
        let index = store.get_blob(&self.index)?.ok_or_else(|| lost_blob(&self.index))?;
        serde_json::from_slice(&index).context("reading a layer's index")
    }
}

/// Writes a layer into the store, path by path, in order.
#[derive(Debug)]
pub struct LayerWriter {
    store: Store,
    out: BufWriter<BlobWriter>,
    position: u64,
    layer: Layer,
    contents: Contents,
}

impl LayerWriter {
    /// Starts an empty layer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn new(store: &Store) -> Result<LayerWriter> {
        Ok(LayerWriter {
            store: store.clone(),
            out: BufWriter::with_capacity(256 << 10, store.write_blob()?),
            position: 0,
            layer: Layer::default(),
            contents: Contents::new(store),
        })
    }

    /// Sets the entry of `path`. A regular file's bytes are copied from its content.
    ///
    /// # Errors
    /// When paths do not come in order, the bytes cannot be read, or the store cannot be written.
    pub fn set(&mut self, path: GuestPath, mut entry: Entry) -> Result<()> {
        if let Kind::File(content) = entry.kind {
            let mut bytes = self.contents.open(&content)?;
            self.set_file(path, entry, content.size, &mut bytes)
        } else {
            if matches!(entry.kind, Kind::Symlink(_)) {
                entry.mode = 0o777;
            }
            let (kind, link) = match &entry.kind {
                Kind::File(_) => (b'0', ""),
                Kind::Hardlink(target) => (b'1', target.relative()),
                Kind::Symlink(target) => (b'2', target.as_str()),
                Kind::Directory => (b'5', ""),
                Kind::Fifo => (b'6', ""),
            };
            self.header(&path, &entry, 0, kind, link)?;
            self.insert(path, Change::Set(entry))
        }
    }

    /// Makes `path` a regular file of exactly `size` bytes; everything of `entry` holds but its kind.
    ///
    /// # Errors
    /// When paths do not come in order, `bytes` has more or fewer bytes, or the store cannot be written.
    pub fn set_file(&mut self, path: GuestPath, entry: Entry, size: u64, bytes: &mut dyn Read) -> Result<()> {
        self.header(&path, &entry, size, b'0', "")?;
        let offset = self.position;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; size.min(128 << 10) as usize];
        let mut left = size;
        while left > 0 {
            let want = buffer.len().min(left as usize);
            let count = match bytes.read(&mut buffer[..want]) {
                Ok(0) => bail!("`{path}` ended {left} bytes early"),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("reading `{path}`")),
            };
            hasher.update(&buffer[..count]);
            self.write(&buffer[..count])?;
            left -= count as u64;
        }
        ensure!(bytes.read(&mut [0])? == 0, "`{path}` has more than {size} bytes");
        self.pad()?;
        // The blob's own digest is known at the end only.
        let content = Content { digest: hasher.finish(), size, blob: UNKNOWN, offset };
        self.insert(path, Change::Set(Entry { kind: Kind::File(content), ..entry }))
    }

    /// Makes `path`, and all that is in it, go away.
    ///
    /// # Errors
    /// When paths do not come in order, or the store cannot be written.
    pub fn remove(&mut self, path: GuestPath) -> Result<()> {
        let directory = path.parent().context("the root cannot be removed")?;
        let whiteout = directory.join(&format!("{WHITEOUT}{}", path.file_name()))?;
        let nothing = Entry { kind: Kind::Fifo, mode: 0o600, uid: 0, gid: 0, mtime: 0, xattrs: Default::default() };
        self.header(&whiteout, &nothing, 0, b'0', "")?;
        self.insert(path, Change::Remove)
    }

    /// Closes the stream and keeps the layer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish(mut self) -> Result<(StoredLayer, Layer)> {
        self.write(&[0; 2 * BLOCK as usize])?;
        let blob = self.out.into_inner().map_err(|error| error.into_error()).context("writing to the store")?;
        let (tar, size) = blob.finish()?;
        let mut layer = self.layer;
        for change in layer.changes.values_mut() {
            if let Change::Set(Entry { kind: Kind::File(content), .. }) = change {
                content.blob = tar;
            }
        }
        let index = self.store.put_blob(&serde_json::to_vec(&layer)?)?;
        Ok((StoredLayer { tar, size, index }, layer))
    }

    fn insert(&mut self, path: GuestPath, change: Change) -> Result<()> {
        if let Some((last, _)) = self.layer.changes.last_key_value() {
            ensure!(*last < path, "a layer's paths must come in order, `{path}` came after `{last}`");
        }
        self.layer.changes.insert(path, change);
        Ok(())
    }

    fn header(&mut self, path: &GuestPath, entry: &Entry, size: u64, kind: u8, link: &str) -> Result<()> {
        let header = encode_header(path, entry, size, kind, link)?;
        self.write(&header)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context("writing to the store")?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let padding = self.position.next_multiple_of(BLOCK) - self.position;
        self.write(&[0; BLOCK as usize][..padding as usize])
    }
}

/// A placeholder for a digest that is not known yet.
const UNKNOWN: Digest = Digest::ZEROS;

/// The header blocks of one entry: the ustar header, before it a pax header if something does not fit. `kind` is the
/// type flag, `size` the number of bytes that follow.
pub(crate) fn encode_header(path: &GuestPath, entry: &Entry, size: u64, kind: u8, link: &str) -> Result<Vec<u8>> {
    let mut name = match path.relative() {
        "" => ".".to_owned(),
        relative => relative.to_owned(),
    };
    if kind == b'5' {
        name.push('/');
    }
    let mut records = Vec::new();
    let mut header = ::tar::Header::new_ustar();
    let ustar = header.as_ustar_mut().context("a ustar header")?;
    match split_name(&name) {
        Some((prefix, rest)) => {
            ustar.prefix[..prefix.len()].copy_from_slice(prefix.as_bytes());
            ustar.name[..rest.len()].copy_from_slice(rest.as_bytes());
        }
        None => {
            record(&mut records, "path", name.as_bytes());
            let cut = name.len().min(100);
            ustar.name[..cut].copy_from_slice(&name.as_bytes()[..cut]);
        }
    }
    if link.len() > 100 {
        record(&mut records, "linkpath", link.as_bytes());
    }
    let cut = link.len().min(100);
    ustar.linkname[..cut].copy_from_slice(&link.as_bytes()[..cut]);
    const OCTAL7: u64 = 0o7777777;
    for (key, value) in [("uid", entry.uid), ("gid", entry.gid)] {
        if u64::from(value) > OCTAL7 {
            record(&mut records, key, value.to_string().as_bytes());
        }
    }
    if size > 0o77777777777 {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    header.set_entry_type(::tar::EntryType::new(kind));
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(u64::from(entry.uid).min(OCTAL7));
    header.set_gid(u64::from(entry.gid).min(OCTAL7));
    header.set_mtime(u64::try_from(entry.mtime).with_context(|| format!("`{path}` is dated before 1970"))?);
    header.set_size(size.min(0o77777777777));
    header.set_device_major(0)?;
    header.set_device_minor(0)?;
    header.set_cksum();

    let mut blocks = Vec::with_capacity(3 * BLOCK as usize);
    if !records.is_empty() {
        let mut extended = ::tar::Header::new_ustar();
        extended.set_entry_type(::tar::EntryType::XHeader);
        extended.as_ustar_mut().context("a ustar header")?.name[..9].copy_from_slice(b"PaxHeader");
        extended.set_mode(0o644);
        extended.set_uid(0);
        extended.set_gid(0);
        extended.set_mtime(0);
        extended.set_size(records.len() as u64);
        extended.set_device_major(0)?;
        extended.set_device_minor(0)?;
        extended.set_cksum();
        blocks.extend_from_slice(extended.as_bytes());
        blocks.extend_from_slice(&records);
        blocks.resize(blocks.len().next_multiple_of(BLOCK as usize), 0);
    }
    blocks.extend_from_slice(header.as_bytes());
    Ok(blocks)
}

/// Splits a name over the ustar fields `prefix` (155 bytes) and `name` (100 bytes); `None` if it does not fit.
fn split_name(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    // The last slash stays with a directory's name.
    let body = name.strip_suffix('/').unwrap_or(name);
    let earliest = name.len().saturating_sub(101);
    let slash = body.match_indices('/').map(|(at, _)| at).find(|&at| at >= earliest)?;
    (slash <= 155).then(|| (&name[..slash], &name[slash + 1..]))
}

/// Adds a pax record `LENGTH KEY=VALUE\n`, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Reads contents out of the store, keeping its blobs open.
#[derive(Debug)]
pub struct Contents {
    store: Store,
    open: HashMap<Digest, BlobReader>,
}

impl Contents {
    /// Reads from `store`.
    pub fn new(store: &Store) -> Contents {
        Contents { store: store.clone(), open: HashMap::new() }
    }

    /// Opens a content; the read that reaches its end fails with [`io::ErrorKind::InvalidData`] if it is not what its
    /// digest says.
    ///
    /// # Errors
    /// When the blob is gone.
    pub fn open(&mut self, content: &Content) -> Result<ContentReader> {
        let blob = self.blob(content)?.try_clone()?;
        Ok(ContentReader {
            store: self.store.clone(),
            blob,
            content: *content,
            position: 0,
            hasher: Some(Sha256::new()),
        })
    }

    /// Fills `buffer` with a content's bytes from its byte `skip` on, unchecked: for readers that take parts of it in
    /// any order and check the whole by themselves.
    ///
    /// # Errors
    /// When the blob is gone or too short.
    pub fn read_at(&mut self, content: &Content, skip: u64, buffer: &mut [u8]) -> Result<()> {
        self.blob(content)?.read_exact_at(buffer, content.offset + skip).context("reading from the store")
    }

    fn blob(&mut self, content: &Content) -> Result<&BlobReader> {
        match self.open.entry(content.blob) {
            hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            hash_map::Entry::Vacant(new) => {
                let blob = self.store.read_blob(&content.blob)?.ok_or_else(|| lost_blob(&content.blob))?;
                Ok(new.insert(blob))
            }
        }
    }

    /// A whole content in memory, checked.
    ///
    /// # Errors
    /// When it is gone or damaged.
    pub fn read(&mut self, content: &Content) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(content.size as usize);
        self.open(content)?.read_to_end(&mut bytes).context("reading from the store")?;
        Ok(bytes)
    }
}

/// Reads one content from its beginning.
#[derive(Debug)]
pub struct ContentReader {
    store: Store,
    blob: BlobReader,
    content: Content,
    position: u64,
    hasher: Option<Sha256>,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.size - self.position;
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if count > 0 {
            self.blob.read_exact_at(&mut buffer[..count], self.content.offset + self.position)?;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            self.position += count as u64;
        }
        if self.position == self.content.size
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.content.digest
        {
            self.store.drop_blob(&self.content.blob);
            let message =
                format!("the store's blob {} was damaged and has been dropped; build again", self.content.blob);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, fs};

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    fn file(mode: u32) -> Entry {
        Entry { mode, ..Entry::directory(0, 1_700_000_000) }
    }

    /// A layer with everything that a header can have trouble with.
    fn sample(store: &Store) -> (StoredLayer, Layer) {
        let long = format!("/d/{}", "long-name-".repeat(12));
        let deep = format!("/d/{}/{}", "p".repeat(140), "n".repeat(90));
        let mut writer = LayerWriter::new(store).unwrap();
        writer.set(GuestPath::root(), Entry::directory(0o755, 1)).unwrap();
        writer.set(path("/d"), Entry::directory(0o1777, 2)).unwrap();
        writer.remove(path("/d/gone")).unwrap();
        writer.set_file(path(&long), file(0o600), 3, &mut &b"abc"[..]).unwrap();
        writer.set(path(deep.rsplit_once('/').unwrap().0), Entry::directory(0o755, 2)).unwrap();
        writer.set_file(path(&deep), file(0o644), 0, &mut &b""[..]).unwrap();
        let mut ping = file(0o4755);
        ping.uid = 3_000_000;
        ping.xattrs = BTreeMap::from([("security.capability".to_owned(), b"\x01\0=\xff".to_vec())]);
        writer.set_file(path("/ping"), ping.clone(), 1000, &mut &[7; 1000][..]).unwrap();
        writer.set(path("/pong"), Entry { kind: Kind::Hardlink(path("/ping")), ..ping }).unwrap();
        writer.set(path("/sym"), Entry::symlink("x".repeat(120), 5)).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn other_programs_read_the_stream_back() {
        let (_folder, store) = store();
        let (stored, layer) = sample(&store);
        let mut seen = Vec::new();
        let mut archive = ::tar::Archive::new(fs::File::open(store.blob_path(&stored.tar)).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let xattrs: Vec<_> = entry
                .pax_extensions()
                .unwrap()
                .into_iter()
                .flatten()
                .map(|record| record.unwrap())
                .filter(|record| record.key().unwrap().starts_with("SCHILY"))
                .map(|record| record.value_bytes().to_vec())
                .collect();
            seen.push((
                String::from_utf8(entry.path_bytes().into_owned()).unwrap(),
                entry.header().entry_type(),
                entry.header().mode().unwrap(),
                entry.link_name_bytes().map(|link| link.len()),
                bytes.len(),
                xattrs,
            ));
        }
        use ::tar::EntryType::*;
        let name = |i: usize| layer.changes.keys().nth(i).unwrap().relative().to_owned();
        assert_eq!(seen.len(), layer.changes.len());
        assert_eq!(seen[0], ("./".into(), Directory, 0o755, None, 0, vec![]));
        assert_eq!(seen[1], ("d/".into(), Directory, 0o1777, None, 0, vec![]));
        assert_eq!(seen[2].0, "d/.wh.gone");
        assert_eq!((&seen[3].0, seen[3].4), (&name(3), 3));
        assert_eq!(seen[5].0, name(5));
        assert_eq!(seen[6], ("ping".into(), Regular, 0o4755, None, 1000, vec![b"\x01\0=\xff".to_vec()]));
        assert_eq!((seen[7].1, seen[7].3), (Link, Some(4)));
        assert_eq!((seen[8].1, seen[8].3), (Symlink, Some(120)));
    }

    #[test]
    fn equal_layers_have_equal_streams_and_reload_equal() {
        let (_folder, store) = store();
        let (first, layer) = sample(&store);
        assert_eq!(sample(&store), (first.clone(), layer.clone()));
        assert_eq!(first.load(&store).unwrap(), layer);
    }

    #[test]
    fn contents_lie_where_the_layer_says() {
        let (_folder, store) = store();
        let (stored, layer) = sample(&store);
        let mut contents = Contents::new(&store);
        let Change::Set(Entry { kind: Kind::File(content), .. }) = layer.changes["/ping"] else { panic!() };
        assert_eq!(contents.read(&content).unwrap(), [7; 1000]);

        let mut tar = fs::read(store.blob_path(&stored.tar)).unwrap();
        tar[content.offset as usize] = 8;
        fs::write(store.blob_path(&stored.tar), tar).unwrap();
        let error = Contents::new(&store).read(&content).unwrap_err();
        assert!(format!("{error:#}").contains("was damaged"), "{error:#}");
        assert_eq!(store.blob_size(&stored.tar), None);
    }

    #[test]
    fn a_layer_can_be_copied_out_of_another() {
        let (_folder, store) = store();
        let (first, layer) = sample(&store);
        let mut writer = LayerWriter::new(&store).unwrap();
        for (path, change) in layer.changes {
            match change {
                Change::Set(entry) => writer.set(path, entry).unwrap(),
                Change::Remove => writer.remove(path).unwrap(),
            }
        }
        assert_eq!(writer.finish().unwrap().0, first);
    }

    #[test]
    fn a_file_that_shrinks_or_grows_while_it_is_read_is_an_error() {
        let (_folder, store) = store();
        let mut writer = LayerWriter::new(&store).unwrap();
        let error = writer.set_file(path("/a"), file(0o644), 4, &mut &b"abc"[..]).unwrap_err();
        assert_eq!(error.to_string(), "`/a` ended 1 bytes early");
        let error = writer.set_file(path("/a"), file(0o644), 2, &mut &b"abc"[..]).unwrap_err();
        assert_eq!(error.to_string(), "`/a` has more than 2 bytes");
    }
}
