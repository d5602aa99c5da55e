//! Signed releases and the package indices that they vouch for.

use super::BlobSink;
use crate::{
    debian::{Source, index::Index, release::Release, signature::Keyring},
    error::UserError,
    http::{Client, Fetch},
    model::Digest,
    progress::{Progress, Step, Unit},
    store::{CachedResult, Store, lost_blob},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    io::{self, Read},
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, SystemTime},
};

/// Bytes of an `InRelease` file: Debian's are below 200 KiB.
const MAX_RELEASE: u64 = 16 << 20;
/// Bytes of a compressed index, and of an expanded one: Debian's are below 60 MiB.
const MAX_INDEX: u64 = 2 << 30;

/// When the network is used.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Never: what the store has must do, however old it is.
    pub offline: bool,
    /// Even if what the store has is fresh.
    pub refresh: bool,
    /// How long a fetched release counts as the newest.
    pub fresh_for: Duration,
}

/// What some archives hold at one moment.
#[derive(Debug, Clone)]
pub struct Releases {
    sources: Vec<Source>,
    releases: Vec<Release>,
    digest: Digest,
    offline: bool,
}

/// A release that was fetched and verified.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The text that was signed.
    text: Digest,
    /// In seconds since 1970.
    fetched: i64,
}

impl CachedResult for Kept {
    const KIND: &'static str = "release";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.text]
    }
}

/// The newest release that was ever seen of an archive.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    /// In seconds since 1970.
    date: i64,
}

impl CachedResult for Seen {
    const KIND: &'static str = "release-seen";

    fn blobs(&self) -> Vec<Digest> {
        Vec::new()
    }
}

/// An index that was expanded.
#[derive(Debug, Serialize, Deserialize)]
struct Expanded {
    text: Digest,
}

impl CachedResult for Expanded {
    const KIND: &'static str = "index";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.text]
    }
}

/// Makes sure of the releases of all `sources`, fetching in parallel what is not fresh.
///
/// # Errors
/// When a release cannot be fetched, is not signed by a known key, is outdated, or goes back in time.
pub fn releases(
    store: &Store,
    http: &Client,
    sources: &[Source],
    policy: &Policy,
    progress: &Progress,
) -> Result<Releases> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    releases_at(now, store, http, sources, policy, progress)
}

/// As [`releases`], at the time `now`, in seconds since 1970.
pub(super) fn releases_at(
    now: i64,
    store: &Store,
    http: &Client,
    sources: &[Source],
    policy: &Policy,
    progress: &Progress,
) -> Result<Releases> {
    let known: Vec<Option<Kept>> = sources.iter().map(|source| store.action(&kept_key(source))).collect();
    let fresh = |kept: &Kept| {
        let age = now - kept.fetched;
        !policy.refresh && (0..policy.fresh_for.as_secs() as i64).contains(&age)
    };
    let stale = known.iter().filter(|kept| !kept.as_ref().is_some_and(fresh)).count();
    let step = (stale > 0 && !policy.offline).then(|| progress.step("releases", stale as u64, Unit::Items));
    let read = &|source: &Source, kept: Option<&Kept>| -> Result<(Digest, Release)> {
        let text = match kept {
            Some(kept) if policy.offline || fresh(kept) => store.get_blob(&kept.text)?,
            _ => None,
        };
        let text = match text {
            Some(text) => text,
            None if policy.offline => return Err(not_offline(source)),
            None => {
                let text = fetch_release(store, http, source, now)?;
                step.iter().for_each(|step| step.advance(1));
                text
            }
        };
        let release = std::str::from_utf8(&text).context("it is not UTF-8").and_then(Release::parse)?;
        Ok((Digest::of(&text), release))
    };
    let results: Vec<Result<(Digest, Release)>> = thread::scope(|scope| {
        let threads: Vec<_> = sources
            .iter()
            .zip(&known)
            .map(|(source, kept)| {
                scope.spawn(move || {
                    read(source, kept.as_ref()).with_context(|| format!("reading the release of {source}"))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut releases = Vec::new();
    let mut identity = String::from("releases 1\n");
    for (result, source) in results.into_iter().zip(sources) {
        let (digest, release) = result?;
        identity += &format!("{digest} {} {} {}\n", source.suite, source.components.join(","), source.arch);
        releases.push(release);
    }
    if let Some(step) = step {
        step.finish(format!("{stale} checked"));
    }
    Ok(Releases { sources: sources.to_vec(), releases, digest: Digest::of(identity), offline: policy.offline })
}

fn not_offline(source: &Source) -> anyhow::Error {
    UserError::runtime(format!("the store has no release of {source}, and the network must not be used"))
        .hint("build once without --offline")
        .into()
}

/// Stands for a source, its keys and how it is checked.
fn kept_key(source: &Source) -> Digest {
    let keys: Vec<String> = source.keys.iter().map(|key| Digest::of(key).hex()).collect();
    Digest::of(format!("{}\n{}\n{}", seen_key(source), source.check_valid_until, keys.join("\n")))
}

/// The key of an archive in the store, whatever its releases say.
fn seen_key(source: &Source) -> Digest {
    let mirrors: BTreeSet<&str> = source.mirrors.iter().map(|mirror| mirror.trim_end_matches('/')).collect();
    Digest::of(format!("{}\n{}", source.suite, mirrors.into_iter().collect::<Vec<_>>().join("\n")))
}

/// Fetches a release from the first mirror that has a good one, and keeps it.
fn fetch_release(store: &Store, http: &Client, source: &Source, now: i64) -> Result<Vec<u8>> {
    let keyring = Keyring::read(source.keys.iter().map(Vec::as_slice)).context("reading the keys of the archive")?;
    let path = format!("dists/{}/InRelease", source.suite.trim_matches('/'));
    let mut mirrors = source.mirrors.as_slice();
    let mut first = None;
    loop {
        let mut document = Vec::new();
        let fetch = Fetch { mirrors, path: &path, size: None, limit: MAX_RELEASE };
        let number = match http.fetch(&fetch, &mut document, &|_| ()) {
            Ok(number) => number,
            Err(error) => return Err(first.unwrap_or(error)),
        };
        match check_release(store, source, &keyring, &document, now) {
            Ok(text) => return Ok(text.into_bytes()),
            Err(error) => {
                let error = error.context(format!("checking {}/{path}", mirrors[number].trim_end_matches('/')));
                mirrors = &mirrors[number + 1..];
                if mirrors.is_empty() {
                    return Err(first.unwrap_or(error));
                }
                first.get_or_insert(error);
            }
        }
    }
}

fn check_release(store: &Store, source: &Source, keyring: &Keyring, document: &[u8], now: i64) -> Result<String> {
    let text = keyring.verify(document, now)?;
    let release = Release::parse(&text)?;
    release.check(&source.suite, now, !source.check_valid_until)?;
    let seen_key = seen_key(source);
    // Two builds at once must not make a newer date older again.
    let _lock = store.lock(Seen::KIND, &seen_key)?;
    if let Some(seen) = store.action::<Seen>(&seen_key) {
        release.check_order(seen.date)?;
    }
    store.put_action(&seen_key, &Seen { date: release.date })?;
    let kept = Kept { text: store.put_blob(text.as_bytes())?, fetched: now };
    store.put_action(&kept_key(source), &kept)?;
    Ok(text)
}

impl Releases {
    /// Stands for everything that the archives hold: equal digests, equal indices.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The package indices of all sources, in their order; each index's origin is the number of its source.
    ///
    /// # Errors
    /// When an index is missing, cannot be fetched, or is wrong.
    pub fn indices(&self, store: &Store, http: &Client, progress: &Progress) -> Result<Vec<Index>> {
        let files = self.files()?;
        let missing: u64 =
            files.iter().filter(|file| store.action::<Expanded>(&file.digest).is_none()).map(|file| file.size).sum();
        let step = (missing > 0 && !self.offline).then(|| progress.step("indices", missing, Unit::Bytes));
        let results: Vec<Result<Index>> = thread::scope(|scope| {
            let threads: Vec<_> = files
                .iter()
                .map(|file| {
                    let step = step.as_ref();
                    scope.spawn(move || {
                        let source = &self.sources[file.source];
                        self.index(store, http, source, file, step)
                            .with_context(|| format!("reading `{}` of {source}", file.name))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let indices: Vec<Index> = results.into_iter().collect::<Result<_>>()?;
        if let Some(step) = step {
            step.finish(format!("{} packages", indices.iter().map(Index::len).sum::<usize>()));
        }
        Ok(indices)
    }

    /// The index files to read.
    fn files(&self) -> Result<Vec<IndexFile>> {
        let mut files = Vec::new();
        for (number, (source, release)) in self.sources.iter().zip(&self.releases).enumerate() {
            let arch = source.arch.debian();
            if !release.architectures.iter().any(|known| known == arch) {
                let known = release.architectures.join(", ");
                return Err(UserError::usage(format!("{source} has no packages for {arch}, only for {known}")).into());
            }
            for component in &source.components {
                if !release.components.contains(component) {
                    let known = release.components.join(", ");
                    return Err(
                        UserError::usage(format!("{source} has no component `{component}`, only {known}")).into()
                    );
                }
                files.push(index_file(release, (number, source), component, arch).with_context(|| {
                    UserError::runtime(format!("the release of {source} lists no index of `{component}` for {arch}"))
                })?);
                if release.all_apart {
                    files.extend(index_file(release, (number, source), component, "all"));
                }
            }
        }
        Ok(files)
    }

    fn index(
        &self,
        store: &Store,
        http: &Client,
        source: &Source,
        file: &IndexFile,
        step: Option<&Step>,
    ) -> Result<Index> {
        // The second time, what was damaged in the store has been dropped.
        for _ in 0..2 {
            let (expanded, _) = store.memoise(&file.digest, || self.fetch_index(store, http, source, file, step))?;
            if let Some(text) = store.get_blob(&expanded.text)? {
                let text = String::from_utf8(text).map_err(|_| UserError::runtime("it is not UTF-8"))?;
                return Index::parse(text, source.arch, file.source);
            }
        }
        Err(UserError::runtime("the store could not keep it").hint("check the disk of the store").into())
    }

    fn fetch_index(
        &self,
        store: &Store,
        http: &Client,
        source: &Source,
        file: &IndexFile,
        step: Option<&Step>,
    ) -> Result<Expanded> {
        if self.offline {
            return Err(not_offline(source));
        }
        let stop = AtomicBool::new(false);
        let mut sink = BlobSink::new(store, file.digest, &stop)?;
        let fetch = Fetch { mirrors: &source.mirrors, path: &file.path, size: Some(file.size), limit: MAX_INDEX };
        http.fetch(&fetch, &mut sink, &|count| step.iter().for_each(|step| step.advance(count)))?;
        let packed = store.read_blob(&file.digest)?.ok_or_else(|| lost_blob(&file.digest))?;
        let mut text = io::BufWriter::with_capacity(1 << 20, store.write_blob()?);
        let mut unpacked = unpack(&file.name, packed)?.take(MAX_INDEX);
        io::copy(&mut unpacked, &mut text).context("unpacking it")?;
        let text = text.into_inner().map_err(io::IntoInnerError::into_error).context("writing to the store")?;
        let (text, _) = text.finish()?;
        // Only the text is ever read again.
        store.drop_blob(&file.digest);
        Ok(Expanded { text })
    }
}

/// An index as a release names it.
struct IndexFile {
    source: usize,
    /// Its path below the suite's folder.
    name: String,
    /// Its path below the mirror.
    path: String,
    digest: Digest,
    size: u64,
}

fn index_file(release: &Release, source: (usize, &Source), component: &str, arch: &str) -> Option<IndexFile> {
    let (source, suite) = (source.0, source.1.suite.trim_matches('/'));
    let folder = format!("{component}/binary-{arch}");
    [".xz", ".gz", ""].iter().find_map(|suffix| {
        let name = format!("{folder}/Packages{suffix}");
        let &(digest, size) = release.files.get(&name)?;
        let path = match release.by_hash {
            true => format!("dists/{suite}/{folder}/by-hash/SHA256/{}", digest.hex()),
            false => format!("dists/{suite}/{name}"),
        };
        Some(IndexFile { source, name, path, digest, size })
    })
}

fn unpack<'a>(name: &str, packed: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    Ok(match name.rsplit_once('.') {
        Some((_, "xz")) => Box::new(liblzma::read::XzDecoder::new_multi_decoder(packed)),
        Some((_, "gz")) => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        _ => Box::new(packed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<Kept>(
            r#"{"text":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","fetched":1750000000}"#,
        );
        assert_still_read::<Seen>(r#"{"date":1750000000}"#);
        assert_still_read::<Expanded>(
            r#"{"text":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee"}"#,
        );
    }
}
