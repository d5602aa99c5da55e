//! Version numbers and how they relate (deb-version(7), Debian policy 7.1).

pub use debversion::Version;

use crate::error::UserError;
use anyhow::Result;
use std::{cmp::Ordering, fmt};

/// A relation between two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl Relation {
    /// Reads an operator; the old forms `<` and `>` mean `<=` and `>=`.
    pub fn parse(text: &str) -> Option<Relation> {
        Some(match text {
            "<<" => Relation::Earlier,
            "<=" | "<" => Relation::EarlierOrEqual,
            "=" => Relation::Equal,
            ">=" | ">" => Relation::LaterOrEqual,
            ">>" => Relation::Later,
            _ => return None,
        })
    }

    /// Whether `version` has this relation to `bound`.
    pub fn holds(self, version: &Version, bound: &Version) -> bool {
        let order = version.cmp(bound);
        match self {
            Relation::Earlier => order == Ordering::Less,
            Relation::EarlierOrEqual => order != Ordering::Greater,
            Relation::Equal => order == Ordering::Equal,
            Relation::LaterOrEqual => order != Ordering::Less,
            Relation::Later => order == Ordering::Greater,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Relation::Earlier => "<<",
            Relation::EarlierOrEqual => "<=",
            Relation::Equal => "=",
            Relation::LaterOrEqual => ">=",
            Relation::Later => ">>",
        })
    }
}

/// Reads a version.
///
/// # Errors
/// When it is not one.
pub fn parse(text: &str) -> Result<Version> {
    text.parse().map_err(|_| UserError::runtime(format!("`{text}` is not a version number")).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Run;
    use proptest::{
        strategy::Strategy,
        test_runner::{Config, TestCaseError, TestRunner},
    };

    #[test]
    fn relations_hold_as_policy_says() {
        let holds = |a: &str, relation: &str, b: &str| {
            Relation::parse(relation).unwrap().holds(&parse(a).unwrap(), &parse(b).unwrap())
        };
        assert!(holds("1.0~rc1", "<<", "1.0"));
        assert!(holds("1:0.1", ">>", "9.9"));
        assert!(holds("1.0-1", "=", "0:1.0-1"));
        assert!(holds("2.36-9+deb12u10", ">=", "2.36-9"));
        assert!(!holds("1.0", "<<", "1.0"));
        assert!(holds("1.0", "<", "1.0"), "the old form of `<=`");
        assert!(Relation::parse("!=").is_none());
        assert!(parse("not a version").is_err());
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let dpkg = |a: &str, operator: &str, b: &str| {
            Run::new("dpkg").args(["--compare-versions", a, operator, b]).capture().is_ok()
        };
        if !crate::testing::require_program("dpkg") {
            return;
        }
        let version = "([0-2]:)?[0-9][0-9a-c.+~]{0,5}(-[0-9a-c.+~]{1,4})?";
        let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
        let pairs = (version, version).prop_map(|(a, b)| (a, b));
        runner
            .run(&pairs, |(a, b)| {
                let order = parse(&a).unwrap().cmp(&parse(&b).unwrap());
                let theirs = match (dpkg(&a, "lt", &b), dpkg(&a, "eq", &b)) {
                    (true, _) => Ordering::Less,
                    (_, true) => Ordering::Equal,
                    _ => Ordering::Greater,
                };
                if order == theirs {
                    Ok(())
                } else {
                    Err(TestCaseError::fail(format!("{a} {b}: {order:?}, dpkg says {theirs:?}")))
                }
            })
            .unwrap();
    }
}
