//! Relationship fields: `Depends`, `Conflicts`, `Provides` and their kin (Debian policy 7.1).

use super::version::{self, Relation, Version};
use crate::error::UserError;
use anyhow::{Context as _, Result};
use std::fmt;

/// One package of a relationship: name, architecture qualifier, version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency<'a> {
    /// The package's name.
    pub name: &'a str,
    /// What follows the name's colon: `any`, or an architecture.
    pub qualifier: Option<&'a str>,
    /// The versions that will do; all of them where nothing is said.
    pub version: Option<(Relation, Version)>,
}

impl<'a> Dependency<'a> {
    /// Reads `name`, `name:any` or `name (>= 1.2)`.
    ///
    /// # Errors
    /// When it is nothing of the kind.
    pub fn parse(text: &'a str) -> Result<Dependency<'a>> {
        Dependency::read(text.trim())
            .with_context(|| UserError::runtime(format!("`{}` is not a dependency", text.trim())))
    }

    fn read(text: &'a str) -> Option<Dependency<'a>> {
        let (name, rest) = match text.find(|c: char| c == '(' || c == '[' || c == '<' || c.is_ascii_whitespace()) {
            Some(at) => (&text[..at], text[at..].trim_start()),
            None => (text, ""),
        };
        let (name, qualifier) = match name.split_once(':') {
            Some((name, qualifier)) => (name, Some(qualifier)),
            None => (name, None),
        };
        let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        if name.is_empty() || !name.chars().all(well_formed) {
            return None;
        }
        let version = match rest.strip_prefix('(') {
            None if rest.is_empty() => None,
            None => return None,
            Some(rest) => {
                let inner = rest.strip_suffix(')')?.trim();
                let at = inner.find(|c| !matches!(c, '<' | '>' | '='))?;
                Some((Relation::parse(&inner[..at])?, version::parse(inner[at..].trim()).ok()?))
            }
        };
        Some(Dependency { name, qualifier, version })
    }

    /// Whether a package of version `version` will do, by its version alone.
    pub fn takes(&self, version: &Version) -> bool {
        self.version.as_ref().is_none_or(|(relation, bound)| relation.holds(version, bound))
    }
}

impl fmt::Display for Dependency<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        match &self.version {
            Some((relation, version)) => write!(f, " ({relation} {version})"),
            None => Ok(()),
        }
    }
}

/// The groups of a relationship field, split at commas.
pub fn groups(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').map(str::trim).filter(|group| !group.is_empty())
}

/// The alternatives of a group, in order.
///
/// # Errors
/// At the first that is not a dependency.
pub fn alternatives(group: &str) -> Result<Vec<Dependency<'_>>> {
    group.split('|').map(Dependency::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relationships_read_back_what_they_print() {
        let field = "libc6 (>= 2.36), default-mta | mail-transport-agent,python3:any (<<3.14~), a(=1:2-3),";
        let printed: Vec<String> = groups(field)
            .map(|group| alternatives(group).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "))
            .collect();
        assert_eq!(
            printed,
            ["libc6 (>= 2.36)", "default-mta | mail-transport-agent", "python3:any (<< 3.14~)", "a (= 1:2-3)"]
        );
    }

    #[test]
    fn what_is_no_dependency_is_refused() {
        for text in ["", "a b", "a (1)", "a (>= 1", "a (!= 1)", "a (>= )", "ä", "a [amd64]", "(= 1)"] {
            assert!(Dependency::parse(text).is_err(), "{text}");
        }
        assert_eq!(Dependency::parse("a (~ 1)").unwrap_err().to_string(), "`a (~ 1)` is not a dependency");
    }
}
