//! The lock: the packages that a build rests on, so that another one builds exactly the same.

use super::{Package, Plan, Request};
use crate::{
    document::Document,
    error::Fault,
    recipe::{Archive, Source},
    spec::Arch,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// What was asked for.
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
    /// The components.
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
        let mut packages = plan.packages.clone();
        packages.iter_mut().for_each(|package| package.reason.clear());
        Lock {
            schema: 1,
            recipe: plan.name.clone(),
            arch: plan.arch,
            sources: plan.sources.clone(),
            requests: plan.requests.clone(),
            packages,
        }
    }

    /// The lock as its file has it: JSON that people can read and compare.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a lock file; errors call it `name`.
    ///
    /// # Errors
    /// A wrong request, shown with its line, when it is none.
    pub fn parse(name: &str, text: &str) -> Result<Lock, Fault> {
        // JSON is YAML, and the reader of YAML shows lines.
        let lock: Lock = Document::new(name, text).parse()?;
        if lock.schema != 1 {
            let message = format!("{name}: the lock has the schema {}, this program knows 1", lock.schema);
            return Err(Fault::request(message).hint("build once without --locked to make a new lock"));
        }
        Ok(lock)
    }

    /// Refuses a lock that was made for something else than `plan`.
    pub(super) fn check(&self, plan: &Plan, name: &str) -> Result<(), Fault> {
        let hint = "build once without --locked to make a new lock";
        let wrong = |what: String| {
            Err(Fault::request(format!("the lock {name} does not fit the recipe `{}`: {what}", plan.name)).hint(hint))
        };
        if self.arch != plan.arch {
            return wrong(format!("it is for {}, this build for {}", self.arch, plan.arch));
        }
        let asked = |requests: &[Request]| -> Vec<String> {
            let mut names: Vec<String> = requests.iter().map(|request| request.package.clone()).collect();
            names.sort();
            names.dedup();
            names
        };
        let (locked, wanted) = (asked(&self.requests), asked(&plan.requests));
        if let Some(package) = wanted.iter().find(|package| !locked.contains(package)) {
            return wrong(format!("the recipe asks for `{package}`, the lock was made without"));
        }
        if let Some(package) = locked.iter().find(|package| !wanted.contains(package)) {
            return wrong(format!("the lock was made for `{package}`, the recipe does not ask for it"));
        }
        for package in &self.packages {
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
