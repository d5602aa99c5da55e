//! Chunks of volumes that the store has compressed or checked before.
//!
//! Nearly all of an image is as it was before an overlay was edited, and compressing it, or taking the SHA-256 of every
//! file in it, is most of the work of writing it. So a chunk is remembered under what lies in it: compressed, it is not
//! even read again; of one that is read, a fast checksum tells whether it is what it was when its files were checked.

use super::{
    map::{Data, Piece},
    qcow2::{Compression, Packed},
};
use crate::{
    model::{Digest, Sha256},
    store::{CachedResult, Store},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};
use twox_hash::XxHash3_128;

/// Changes when equal pieces give other bytes than before.
const VERSION: u64 = 1;

/// A chunk's clusters, as a qcow2 image has them.
#[derive(Debug, Serialize, Deserialize)]
struct Clusters {
    blob: Digest,
}

impl CachedResult for Clusters {
    const KIND: &'static str = "clusters";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.blob]
    }
}

/// The checksum of a chunk whose contents matched their digests.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    xxh3: [u64; 2],
}

impl CachedResult for Checked {
    const KIND: &'static str = "checked";

    fn blobs(&self) -> Vec<Digest> {
        Vec::new()
    }
}

impl Checked {
    fn of(chunk: &[u8]) -> Checked {
        let sum = XxHash3_128::oneshot(chunk);
        Checked { xxh3: [(sum >> 64) as u64, sum as u64] }
    }
}

/// The store's memory while an image is written.
pub(super) struct Memory<'a> {
    store: &'a Store,
    /// What is to be remembered once the whole image is known to be good.
    new: Mutex<New>,
}

#[derive(Default)]
struct New {
    clusters: Vec<(Digest, Clusters)>,
    checked: Vec<(Digest, Checked)>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(store: &'a Store) -> Memory<'a> {
        Memory { store, new: Mutex::default() }
    }

    /// The key of the chunk at `range`, which holds all of `pieces`.
    pub(super) fn key(range: &Range<u64>, pieces: &[Piece]) -> Digest {
        let mut hasher = Sha256::new();
        let note = |hasher: &mut Sha256, numbers: &[u64]| {
            numbers.iter().for_each(|number| hasher.update(&number.to_le_bytes()));
        };
        note(&mut hasher, &[VERSION, range.end - range.start]);
        for piece in pieces {
            let start = piece.offset.max(range.start);
            let end = piece.end().min(range.end);
            let skip = piece.skip + (start - piece.offset);
            let (digest, skip) = match &piece.data {
                Data::Content(content) => (content.digest, skip),
                Data::Bytes(bytes) => (Digest::of(&bytes[skip as usize..][..(end - start) as usize]), 0),
            };
            note(&mut hasher, &[start - range.start, end - start, skip]);
            hasher.update(digest.bytes());
        }
        hasher.finish()
    }

    /// The `count` clusters of a chunk, if they were compressed in the same way before.
    pub(super) fn clusters(&self, key: &Digest, compression: Compression, count: usize) -> Result<Option<Packed>> {
        let Some(known) = self.store.action::<Clusters>(&clusters_key(key, compression)) else { return Ok(None) };
        Ok(self.store.get_blob(&known.blob)?.map(|bytes| Packed::from_bytes(bytes, count)))
    }

    /// Keeps a chunk's clusters.
    pub(super) fn keep_clusters(&self, key: &Digest, compression: Compression, packed: &Packed) -> Result<()> {
        let blob = self.store.put_blob(packed.bytes())?;
        self.kept().clusters.push((clusters_key(key, compression), Clusters { blob }));
        Ok(())
    }

    /// Makes sure that a chunk's contents are what their digests say: by its checksum, or else with `check`.
    pub(super) fn check(&self, key: &Digest, chunk: &[u8], check: impl FnOnce() -> Result<()>) -> Result<()> {
        let now = Checked::of(chunk);
        if self.store.action::<Checked>(key).is_none_or(|known| known != now) {
            check()?;
            self.kept().checked.push((*key, now));
        }
        Ok(())
    }

    /// Remembers what was kept. Before all of an image is read, contents of it may turn out to be damaged.
    pub(super) fn commit(self) -> Result<()> {
        let remembering = || "remembering what an image is made of";
        let new = self.new.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (key, clusters) in &new.clusters {
            self.store.put_action(key, clusters).with_context(remembering)?;
        }
        for (key, checked) in &new.checked {
            self.store.put_action(key, checked).with_context(remembering)?;
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, New> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clusters_key(key: &Digest, compression: Compression) -> Digest {
    // Another version of a compressor may give other bytes.
    let (program, zstd) = (env!("CARGO_PKG_VERSION"), zstd::zstd_safe::version_number());
    Digest::of(format!("{key} {compression:?} {program} {zstd}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<Clusters>(
            r#"{"blob":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee"}"#,
        );
        assert_still_read::<Checked>(r#"{"xxh3":[9728847511198614021,1]}"#);
    }
}
