//! Chooses the packages of a build, and fetches them.

use super::Mirrors;
use crate::{
    archive::{self, DownloadRequest},
    debian::{self, deb::ExpandedDeb, solve},
    http,
    model::Digest,
    plan::{Draft, Package, Plan, Request},
    progress::{Progress, Unit, size},
    recipe::Source,
    store::{CachedResult, Store},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

/// How long a fetched package index counts as the newest. Debian publishes four times a day.
const FRESH_FOR: Duration = Duration::from_secs(3600);

/// How archives are reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where mirrors of Debian's archives are.
    pub mirrors: Mirrors,
    /// Use what the store has, and no network.
    pub offline: bool,
    /// Ask for a newer index, even if the one in the store is fresh.
    pub refresh: bool,
}

/// What a solver chose.
#[derive(Debug, Serialize, Deserialize)]
struct Selection {
    packages: Vec<Package>,
}

impl CachedResult for Selection {
    const KIND: &'static str = "choice";

    fn blobs(&self) -> Vec<Digest> {
        Vec::new()
    }
}

/// Completes `draft` with the newest packages that satisfy it. The further packages of VM images are chosen last, on
/// top of the packages of every image, which do not change.
///
/// # Errors
/// When an archive cannot be reached or trusted, and when no set of packages satisfies the draft.
pub fn plan(draft: Draft, access: &Access, store: &Store, progress: &Progress) -> Result<Plan> {
    let names: Vec<&String> = draft.sources().keys().collect();
    let sources = draft
        .sources()
        .values()
        .map(|source| described(source, draft.plan().arch, access))
        .collect::<Result<Vec<_>>>()?;
    let policy = archive::Policy { offline: access.offline, refresh: access.refresh, fresh_for: FRESH_FOR };
    let http = http::Client::new(http::Policy::default());
    let releases = archive::releases(store, &http, &sources, &policy, progress)?;
    let choose = |packages: Vec<String>, recommends: bool| -> Result<Vec<Package>> {
        let request =
            solve::Request { packages, exclude: draft.plan().forbid.clone(), recommends, ..solve::Request::default() };
        let key = (1, releases.digest(), &names, &request.packages, &request.exclude, request.recommends);
        let key = Digest::of_json(&key)?;
        let (chosen, _) = store.memoise(&key, || {
            let indices = releases.indices(store, &http, progress)?;
            let step = progress.step("resolve", 0, Unit::Items);
            let choices = solve::solve(&indices, &request).context("choosing packages")?;
            let packages: Vec<Package> =
                choices.into_iter().map(|choice| package(choice, |origin| names[origin].clone())).collect();
            let download = packages.iter().map(|package| package.size).sum();
            step.finish(format!("{} packages, {}", packages.len(), size(download)));
            Ok(Selection { packages })
        })?;
        Ok(chosen.packages)
    };
    let asked = |requests: &[Request]| requests.iter().map(|request| request.package.clone()).collect();
    let packages = choose(asked(&draft.plan().requests), draft.plan().recommends)?;
    let of_disk = match &draft.plan().disk {
        None => Vec::new(),
        Some(disk) => {
            let mut wanted: Vec<String> =
                packages.iter().map(|package| format!("{} (= {})", package.name, package.version)).collect();
            wanted.extend(asked(&disk.requests));
            // What the base was not given as recommended, it is not given now.
            let all = choose(wanted, false).context("choosing the further packages of VM images")?;
            let known: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
            all.into_iter().filter(|package| !known.contains(package.name.as_str())).collect()
        }
    };
    Ok(draft.with_packages(packages, of_disk))
}

/// Gets `packages` into the store, expanded, in this order.
///
/// # Errors
/// When one cannot be fetched, or is not what the plan says.
pub fn fetch(
    packages: &[Package],
    sources: &BTreeMap<String, Source>,
    access: &Access,
    store: &Store,
    progress: &Progress,
) -> Result<Vec<ExpandedDeb>> {
    let mut mirrors = BTreeMap::new();
    for (name, source) in sources {
        // Without the network, no mirror is needed.
        let uris = if access.offline { Vec::new() } else { uris(source, access)? };
        mirrors.insert(name, uris);
    }
    let wanted: Vec<DownloadRequest> = packages
        .iter()
        .map(|package| DownloadRequest {
            name: package.name.clone(),
            version: package.version.clone(),
            architecture: package.architecture.clone(),
            sha256: package.sha256,
            size: package.size,
            path: package.path.clone(),
            mirrors: mirrors.get(&package.source).cloned().unwrap_or_default(),
        })
        .collect();
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let http = http::Client::new(http::Policy::default());
    archive::packages(store, &http, &wanted, access.offline, jobs, progress)
}

fn described(source: &Source, arch: crate::model::Arch, access: &Access) -> Result<debian::Source> {
    Ok(debian::Source {
        mirrors: uris(source, access)?,
        suite: source.suite.clone(),
        components: source.components.clone(),
        keys: source.keys.iter().map(|(_, bytes)| bytes.clone()).collect(),
        arch,
        check_valid_until: true,
    })
}

fn uris(source: &Source, access: &Access) -> Result<Vec<String>> {
    match &source.uri {
        Some(uri) => Ok(vec![uri.trim_end_matches('/').to_owned()]),
        None => Ok(access.mirrors.of(source.archive)?),
    }
}

fn package(choice: solve::Choice, source: impl Fn(usize) -> String) -> Package {
    let reason = choice.reason.to_string();
    let chosen = choice.package;
    Package {
        source_package: (chosen.source != chosen.name).then_some(chosen.source),
        name: chosen.name,
        version: chosen.version,
        architecture: chosen.architecture,
        sha256: chosen.sha256,
        size: chosen.size,
        path: chosen.filename,
        source: source(choice.origin),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::assert_still_read;

    #[test]
    fn records_of_an_earlier_version_are_read() {
        assert_still_read::<Selection>(
            r#"{"packages":[{"name":"apt","version":"3.0","architecture":"amd64","sha256":"sha256:1c8b63a1b1d9b3a8c0e7a0b0a6d4f5e2d3c4b5a697887766554433221100ffee","size":3,"path":"pool/main/a/apt/apt_3.0_amd64.deb","source":"debian","source_package":"apt-source","reason":"requested"}]}"#,
        );
    }
}
