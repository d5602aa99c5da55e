//! Gets what Debian archives have into the store: indices, whose signatures it checks, and packages, which it expands.
//!
//! What is in the store is not fetched again. A release in the store is used for as long as the caller allows
//! ([`Policy::fresh_for`]); until then the network is not touched.

mod packages;
mod releases;

pub use packages::{DownloadRequest, packages};
pub use releases::{Policy, Releases, releases};

use crate::{
    http,
    model::Digest,
    store::{BlobWriter, Store},
};
use anyhow::{Context as _, Result};
use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

/// Where a download with a known digest goes: a blob.
struct BlobSink<'a> {
    store: &'a Store,
    blob: BlobWriter,
    expected: Digest,
    /// Set when another thread has failed, so that all stop.
    stop: &'a AtomicBool,
}

impl<'a> BlobSink<'a> {
    fn new(store: &'a Store, expected: Digest, stop: &'a AtomicBool) -> Result<BlobSink<'a>> {
        Ok(BlobSink { store, blob: store.write_blob()?, expected, stop })
    }
}

impl http::Sink for BlobSink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            anyhow::bail!("stopped, because something else failed");
        }
        self.blob.write_all(bytes).context("writing to the store")
    }

    fn restart(&mut self) -> Result<()> {
        self.blob = self.store.write_blob()?;
        Ok(())
    }

    fn verify(&mut self) -> Result<Option<String>> {
        let blob = std::mem::replace(&mut self.blob, self.store.write_blob()?);
        let size = blob.size();
        if blob.finish_as(&self.expected)? {
            return Ok(None);
        }
        Ok(Some(format!("sent {size} bytes whose SHA-256 is not {}", self.expected.hex())))
    }
}

#[cfg(test)]
mod tests;
