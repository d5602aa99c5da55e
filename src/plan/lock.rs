//! The lock file: the packages of a build, so that another build uses exactly the same.

use super::{Package, Plan, Request};
use crate::{
    document::Document,
    error::UserError,
    model::Arch,
    recipe::{Archive, Source},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A lock file: `NAME.lock.json`. It names no mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of this shape: 1.
    pub schema: u32,
    /// The recipe's name.
    pub recipe: String,
    /// The architecture.
    pub arch: Arch,
    /// Apt archives, by the names that the recipe gives them.
    pub sources: BTreeMap<String, LockedSource>,
    /// The requested packages.
    pub requests: Vec<Request>,
    /// The packages, by name.
    pub packages: Vec<Package>,
    /// The further packages of VM images, if one was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<LockedDisk>,
}

/// The packages that VM images alone have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedDisk {
    /// The requested packages.
    pub requests: Vec<Request>,
    /// The packages, by name.
    pub packages: Vec<Package>,
}

/// An apt archive: which one, not where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSource {
    /// Which of Debian's archives; `None` for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// The suite or its codename.
    pub suite: String,
    pub components: Vec<String>,
}

impl LockedSource {
    /// What a lock says of `source`.
    pub fn of(source: &Source) -> LockedSource {
        LockedSource {
            archive: source.uri.is_none().then_some(source.archive),
            suite: source.suite.clone(),
            components: source.components.clone(),
        }
    }
}

impl Lock {
    /// The lock of a plan.
    pub fn of(plan: &Plan) -> Lock {
        let bare = |packages: &[Package]| -> Vec<Package> {
            packages.iter().map(|package| Package { reason: String::new(), ..package.clone() }).collect()
        };
        let disk = plan
            .disk
            .as_ref()
            .map(|disk| LockedDisk { requests: disk.requests.clone(), packages: bare(&disk.packages) });
        Lock {
            schema: 1,
            recipe: plan.name.clone(),
            arch: plan.arch,
            sources: plan.sources.clone(),
            requests: plan.requests.clone(),
            packages: bare(&plan.packages),
            disk,
        }
    }

    /// The lock as its file has it: JSON that people can read and compare.
    ///
    /// # Errors
    /// When the lock has no form in JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads a lock file; errors call it `name`.
    ///
    /// # Errors
    /// A wrong request, shown with its line, when it is none.
    pub fn parse(name: &str, text: &str) -> Result<Lock, UserError> {
        // JSON is YAML, and the reader of YAML shows lines.
        let lock: Lock = Document::new(name, text).parse()?;
        if lock.schema != 1 {
            let message = format!("{name}: the lock has the schema {}, this program knows 1", lock.schema);
            return Err(UserError::usage(message).hint("build once without --locked to make a new lock"));
        }
        Ok(lock)
    }

    /// Refuses a lock that was made for something else than `plan`.
    pub(super) fn check(&self, plan: &Plan, name: &str) -> Result<(), UserError> {
        let hint = "build once without --locked to make a new lock";
        let wrong = |what: String| {
            Err(UserError::usage(format!("the lock {name} does not fit the recipe `{}`: {what}", plan.name)).hint(hint))
        };
        if self.arch != plan.arch {
            return wrong(format!("it is for {}, this build for {}", self.arch, plan.arch));
        }
        if let Some(what) = difference(&self.requests, &plan.requests) {
            return wrong(what);
        }
        if let Some(disk) = &plan.disk {
            let Some(locked) = &self.disk else {
                return wrong("it was made without a VM image".to_owned());
            };
            if let Some(what) = difference(&locked.requests, &disk.requests) {
                return wrong(what);
            }
        }
        for package in self.packages.iter().chain(self.disk.iter().flat_map(|disk| &disk.packages)) {
            match plan.sources.get(&package.source) {
                Some(source) if Some(source) == self.sources.get(&package.source) => {}
                _ => {
                    return wrong(format!(
                        "`{}` comes from the source `{}`, which the recipe has otherwise or not at all",
                        package.name, package.source
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The first difference between two lists of requests.
fn difference(locked: &[Request], wanted: &[Request]) -> Option<String> {
    let names =
        |requests: &[Request]| -> BTreeSet<String> { requests.iter().map(|request| request.package.clone()).collect() };
    let (locked, wanted) = (names(locked), names(wanted));
    if let Some(package) = wanted.difference(&locked).next() {
        return Some(format!("the recipe requests `{package}`, the lock was made without it"));
    }
    let package = locked.difference(&wanted).next()?;
    Some(format!("the lock was made for `{package}`, which the recipe does not request"))
}
