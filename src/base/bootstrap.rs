//! Unpacks packages into an empty root without running programs, until dpkg can run there.
//!
//! dpkg then installs the same packages once more, properly.

use super::{
    patterns::Patterns,
    root::{Attributes, Root},
};
use crate::{
    model::{Digest, GuestPath},
    store::{BlobReader, Store, lost_blob},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{self, Read};

/// Puts the files of `package` that are not left out into `root`.
pub fn unpack(store: &Store, root: &Root, package: &Digest, patterns: Patterns<'_>) -> Result<()> {
    let blob = store.read_blob(package)?.ok_or_else(|| lost_blob(package))?;
    let mut archive = ::tar::Archive::new(io::BufReader::with_capacity(256 << 10, data(blob)?));
    for entry in archive.entries().context("reading a package's files")? {
        let mut entry = entry.context("reading a package's files")?;
        let path = guest_path(&entry.path_bytes())?;
        if path.as_str() == "/" || patterns.leave_out(path.as_str()) {
            continue;
        }
        let header = entry.header();
        let attributes = Attributes {
            mode: header.mode()? & 0o7777,
            uid: u32::try_from(header.uid()?)?,
            gid: u32::try_from(header.gid()?)?,
            mtime: Some(i64::try_from(header.mtime()?)?),
        };
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default();
        match entry.header().entry_type() {
            ::tar::EntryType::Directory => {
                root.make_parents(&path)?;
                // Its time is that of the last file put in.
                root.make_directory(&path, Attributes { mtime: None, ..attributes })?;
            }
            ::tar::EntryType::Regular | ::tar::EntryType::Continuous => {
                root.make_parents(&path)?;
                root.write(&path, attributes, &mut entry)?;
            }
            ::tar::EntryType::Symlink => {
                root.make_parents(&path)?;
                root.symlink(&path, &link, attributes)?;
            }
            ::tar::EntryType::Link => root.hard_link(&path, &guest_path(link.as_bytes())?)?,
            other => bail!("`{path}` is neither file, directory nor link ({other:?})"),
        }
    }
    Ok(())
}

/// A path of a package, which begins with `./`.
fn guest_path(bytes: &[u8]) -> Result<GuestPath> {
    let text = std::str::from_utf8(bytes).context("a package's path is not UTF-8")?;
    Ok(format!("/{}", text.trim_start_matches("./").trim_start_matches('/')).parse()?)
}

/// The member `data.tar` of a package (ar(5), deb(5)).
fn data(mut blob: BlobReader) -> Result<io::Take<BlobReader>> {
    let mut magic = [0; 8];
    blob.read_exact(&mut magic)?;
    ensure!(&magic == b"!<arch>\n", "the store's expanded package is not an archive");
    loop {
        let mut header = [0; 60];
        blob.read_exact(&mut header).context("an expanded package has no data.tar")?;
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
        let size: u64 = text(48..58).parse().context("a damaged archive")?;
        if text(0..16).trim_end_matches('/') == "data.tar" {
            return Ok(blob.take(size));
        }
        io::copy(&mut (&mut blob).take(size + size % 2), &mut io::sink())?;
    }
}
