//! Packages: downloaded and expanded at the same time, the largest first.

use super::BlobSink;
use crate::{
    debian::deb::{self, ExpandedDeb, Limits},
    error::UserError,
    http::{Client, Fetch},
    model::Digest,
    progress::{Progress, Step, Unit, size},
    store::{CachedResult, Store, lost_blob},
};
use anyhow::{Context as _, Result};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write as _},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Files that are downloaded at the same time.
const CONNECTIONS: usize = 8;

/// A package to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadRequest {
    pub name: String,
    pub version: String,
    /// Its architecture, or `all`.
    pub architecture: String,
    /// The .deb's SHA-256.
    pub sha256: Digest,
    /// The .deb's size in bytes.
    pub size: u64,
    /// The .deb's path below a mirror's base URI.
    pub path: String,
    /// The base URIs of the mirrors that have it.
    pub mirrors: Vec<String>,
}

impl DownloadRequest {
    /// As people know it.
    fn label(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version, self.architecture)
    }

    /// Changes whenever the same package would be expanded to something else.
    fn key(&self) -> Digest {
        Digest::of(format!("expanded deb 1 {}", self.sha256))
    }
}

impl CachedResult for ExpandedDeb {
    const KIND: &'static str = "deb";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.expanded]
    }
}

/// Gets all packages into the store, expanded, on `jobs` threads; the results come in the order of `wanted`.
///
/// # Errors
/// When one cannot be fetched, is not what the index says, or is hostile; with `offline`, when the store lacks one.
pub fn packages(
    store: &Store,
    http: &Client,
    wanted: &[DownloadRequest],
    offline: bool,
    jobs: usize,
    progress: &Progress,
) -> Result<Vec<ExpandedDeb>> {
    let mut done: Vec<Option<ExpandedDeb>> = wanted.iter().map(|package| store.action(&package.key())).collect();
    let mut missing: Vec<usize> = (0..wanted.len()).filter(|&at| done[at].is_none()).collect();
    missing.sort_by_key(|&at| Reverse(wanted[at].size));
    if !missing.is_empty() {
        for (at, expanded) in get(store, http, wanted, &missing, offline, jobs, progress)? {
            done[at] = Some(expanded);
        }
    }
    done.into_iter().map(|expanded| expanded.context("a package was not downloaded")).collect()
}

fn get(
    store: &Store,
    http: &Client,
    wanted: &[DownloadRequest],
    missing: &[usize],
    offline: bool,
    jobs: usize,
    progress: &Progress,
) -> Result<Vec<(usize, ExpandedDeb)>> {
    let here = |at: &usize| store.blob_size(&wanted[*at].sha256) == Some(wanted[*at].size);
    let (ready, remote): (Vec<usize>, Vec<usize>) = missing.iter().copied().partition(here);
    if offline && !remote.is_empty() {
        return Err(not_in_store(wanted, &remote));
    }
    let bytes: u64 = remote.iter().map(|&at| wanted[at].size).sum();
    let download = (!remote.is_empty()).then(|| progress.step("download", bytes, Unit::Bytes));
    let expand = progress.step("expand", missing.len() as u64, Unit::Items);
    let line = Line {
        store,
        http,
        wanted,
        offline,
        download: download.as_ref(),
        stop: AtomicBool::new(false),
        state: Mutex::new(State {
            ready: ready.iter().map(|&at| (wanted[at].size, at)).collect(),
            coming: remote.len(),
            done: Vec::with_capacity(missing.len()),
            error: None,
        }),
        changed: Condvar::new(),
    };
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let loaders: Vec<_> =
            (0..CONNECTIONS.min(remote.len())).map(|_| scope.spawn(|| line.load(&remote, &next))).collect();
        for _ in 0..jobs.clamp(1, missing.len()) {
            scope.spawn(|| line.expand(&expand));
        }
        for loader in loaders {
            if loader.join().is_err() {
                line.fail(anyhow::anyhow!("a download thread panicked"));
            }
        }
        if let Some(step) = download.clone().filter(|_| !line.stop.load(Ordering::Relaxed)) {
            step.finish(format!("{} packages, {}", remote.len(), size(bytes)));
        }
    });
    let state = line.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(error) = state.error {
        return Err(error);
    }
    let total = state.done.iter().map(|(_, expanded)| expanded.size).sum();
    expand.finish(format!("{} packages, {}", state.done.len(), size(total)));
    Ok(state.done)
}

fn not_in_store(wanted: &[DownloadRequest], remote: &[usize]) -> anyhow::Error {
    let mut names: Vec<String> = remote.iter().map(|&at| wanted[at].label()).collect();
    names.sort();
    let more = names.len().saturating_sub(5);
    names.truncate(5);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    UserError::runtime(format!("the store lacks packages, and the network must not be used:\n  {}", names.join("\n  ")))
        .hint("build once without --offline")
        .into()
}

/// Where loaders put packages, and expanders take them.
struct Line<'a> {
    store: &'a Store,
    http: &'a Client,
    wanted: &'a [DownloadRequest],
    offline: bool,
    download: Option<&'a Step>,
    /// Something failed, so that all stop.
    stop: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// In the store, waiting to be expanded: size and place.
    ready: BinaryHeap<(u64, usize)>,
    /// How many are still to be downloaded.
    coming: usize,
    done: Vec<(usize, ExpandedDeb)>,
    /// What failed first.
    error: Option<anyhow::Error>,
}

impl Line<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn fail(&self, error: anyhow::Error) {
        // In this order, so that no thread that stops for it can be first.
        self.state().error.get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Downloads one package after the other.
    fn load(&self, remote: &[usize], next: &AtomicUsize) {
        while let Some(&at) = remote.get(next.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.fetch(&self.wanted[at]) {
                return self.fail(error);
            }
            let mut state = self.state();
            state.coming -= 1;
            state.ready.push((self.wanted[at].size, at));
            drop(state);
            self.changed.notify_all();
        }
    }

    fn fetch(&self, package: &DownloadRequest) -> Result<()> {
        let mut sink = BlobSink::new(self.store, package.sha256, &self.stop)?;
        let fetch =
            Fetch { mirrors: &package.mirrors, path: &package.path, size: Some(package.size), limit: package.size };
        self.http.fetch(&fetch, &mut sink, &|count| self.download.iter().for_each(|step| step.advance(count)))?;
        Ok(())
    }

    /// Expands one package after the other.
    fn expand(&self, step: &Step) {
        while let Some(at) = self.next() {
            let package = &self.wanted[at];
            step.detail(package.name.as_str());
            match self.store.memoise(&package.key(), || self.expand_one(package)) {
                Ok((expanded, _)) => self.state().done.push((at, expanded)),
                Err(error) => return self.fail(error.context(format!("expanding {}", package.label()))),
            }
            step.advance(1);
        }
    }

    /// The largest package that waits; `None` when none will come any more.
    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some((_, at)) = state.ready.pop() {
                return Some(at);
            }
            if state.coming == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn expand_one(&self, package: &DownloadRequest) -> Result<ExpandedDeb> {
        match self.try_expand(package) {
            // The store's copy was damaged and is dropped by now: nothing is wrong with the package itself.
            Err(_) if self.store.blob_size(&package.sha256).is_none() && !self.offline => {
                self.fetch(package)?;
                self.try_expand(package)
            }
            result => result,
        }
    }

    fn try_expand(&self, package: &DownloadRequest) -> Result<ExpandedDeb> {
        let mut blob = self.store.read_blob(&package.sha256)?.ok_or_else(|| lost_blob(&package.sha256))?;
        let mut out = io::BufWriter::with_capacity(256 << 10, self.store.write_blob()?);
        let expanded = deb::expand(&mut blob, &Limits::default(), &self.store.scratch_root(), &mut out);
        // Only at the end of the blob it turns out whether it was damaged.
        io::copy(&mut blob, &mut io::sink()).context("reading the package")?;
        let expanded = expanded?;
        for (field, value) in
            [("Package", &package.name), ("Version", &package.version), ("Architecture", &package.architecture)]
        {
            if expanded.control.get(field) != Some(value) {
                let found = expanded.control.get(field).map_or("nothing", String::as_str);
                return Err(UserError::runtime(format!(
                    "its field `{field}` is `{found}`, but `{value}` in the index"
                ))
                .hint("the archive contradicts itself; report it to its maintainers")
                .into());
            }
        }
        out.flush().context("writing to the store")?;
        let blob = out.into_inner().map_err(io::IntoInnerError::into_error).context("writing to the store")?;
        let (digest, size) = blob.finish()?;
        Ok(ExpandedDeb {
            original: package.sha256,
            expanded: digest,
            size,
            control: expanded.control,
            newest: expanded.newest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<ExpandedDeb>(
            r#"{"original":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","expanded":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","size":20480,"control":{"Architecture":"amd64","Package":"apt"},"newest":1750000000}"#,
        );
    }
}
