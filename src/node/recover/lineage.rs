//! The incarnation of the cluster that this node was part of last, so that it never returns to one that was given up.
//!
//! Members of the old cluster that come back later may be a majority of it, and then they take writes again. A node that
//! knows of the recovery must not join them by itself: its database has what was written since, and Patroni would rewind
//! it to theirs. So each node keeps what `/pgha/<cluster>/recovered` says when its etcd serves, and follows another cluster
//! only if that is the same incarnation or says that it has replaced it.

use super::keys::Recovered;
use crate::files::{Doubt, Presence, write_private};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where it is kept.
pub const PATH: &str = "/var/lib/pgha/lineage.json";
/// More than it has, in bytes.
const LONGEST: u64 = 1 << 20;

/// An incarnation of the cluster, which began by a person's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// The id of its etcd's cluster, in hexadecimal digits.
    pub cluster: String,
    /// The recovery by which it began.
    pub recovered: Recovered,
}

impl Lineage {
    /// Reads it.
    pub fn load(path: &Path) -> Presence<Lineage> {
        Presence::of_text(path, LONGEST).and_then(|text| match serde_json::from_str(&text) {
            Ok(lineage) => Presence::Present(lineage),
            Err(error) => Presence::Unknown(Doubt::new(format!("reading {}: {error}", path.display()))),
        })
    }

    /// Writes it to the disk: it is there after a power cut.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        write_private(path, &serde_json::to_string_pretty(self)?)
    }

    /// Whether `other` is this incarnation or one that has replaced it.
    pub fn is_followed_by(&self, other: &Recovered) -> bool {
        self.recovered.incarnation == other.incarnation || other.replaces.contains(&self.cluster)
    }

    /// Which it is, for a person.
    pub fn words(&self) -> String {
        let Recovered { node, time, .. } = &self.recovered;
        format!("the cluster that went on from {node} by a person's order of {}", crate::clock::utc(*time))
    }
}

/// Whether a node that was part of `known` may be part of the cluster that says `theirs` of its last recovery.
pub fn may_follow(known: Option<&Lineage>, theirs: Option<&Recovered>) -> bool {
    known.is_none_or(|known| theirs.is_some_and(|theirs| known.is_followed_by(theirs)))
}

/// Remembers the recovery of the cluster whose etcd, with the id `cluster`, serves on this node. What is known of another
/// incarnation, which that one has not replaced, stays.
///
/// # Errors
/// When it is not known what is known, or it cannot be written.
pub fn learn(path: &Path, cluster: u64, theirs: Option<Recovered>) -> Result<()> {
    let Some(theirs) = theirs else { return Ok(()) };
    let known = Lineage::load(path).known()?;
    let new = Lineage { cluster: format!("{cluster:x}"), recovered: theirs };
    if known.as_ref() == Some(&new) || !may_follow(known.as_ref(), Some(&new.recovered)) {
        return Ok(());
    }
    new.store(path)
}

/// Why this node does not leave its cluster of etcd, whose id is `own`, for one that says `theirs` of its last recovery:
/// because a person had it replace that one. `None` if it may leave.
///
/// # Errors
/// When it is not known whether it did.
pub fn stays(path: &Path, own: u64, theirs: Option<&Recovered>) -> Result<Option<String>> {
    let known = Lineage::load(path).known()?.filter(|known| known.cluster == format!("{own:x}"));
    Ok(known.filter(|known| !may_follow(Some(known), theirs)).map(|known| {
        format!(
            "a quorum of another cluster of etcd answers, and this node is part of {}: two clusters of one name. Stop one of \
             them: pgha-node recover --help",
            known.words()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered(incarnation: &str, replaces: &[&str]) -> Recovered {
        Recovered {
            node: "pg-1".into(),
            time: 1_795_741_749,
            incarnation: incarnation.into(),
            replaces: replaces.iter().map(|id| (*id).to_owned()).collect(),
            database: None,
        }
    }

    #[test]
    fn a_node_follows_its_own_incarnation_and_what_has_replaced_it() {
        let known = Lineage { cluster: "2f".into(), recovered: recovered("a", &["1f"]) };
        let follows = |theirs: Option<&Recovered>| may_follow(Some(&known), theirs);
        assert!(may_follow(None, None) && may_follow(None, Some(&recovered("b", &[]))));
        assert!(follows(Some(&recovered("a", &["1f"]))));
        assert!(follows(Some(&recovered("b", &["1f", "2f"]))));
        // The old cluster, and one that went on from another node at the same time.
        assert!(!follows(None) && !follows(Some(&recovered("b", &["1f"]))));
    }

    #[test]
    fn what_is_known_is_replaced_by_what_has_replaced_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lineage.json");
        learn(&path, 0x1f, None).unwrap();
        assert!(Lineage::load(&path).is_absent());
        learn(&path, 0x2f, Some(recovered("a", &["1f"]))).unwrap();
        let known = || Lineage::load(&path).known().unwrap().unwrap();
        assert_eq!(known(), Lineage { cluster: "2f".into(), recovered: recovered("a", &["1f"]) });
        learn(&path, 0x1f, None).unwrap();
        learn(&path, 0x3f, Some(recovered("b", &["1f"]))).unwrap();
        assert_eq!(known().cluster, "2f");
        learn(&path, 0x4f, Some(recovered("c", &["1f", "2f"]))).unwrap();
        assert_eq!(known().cluster, "4f");
        std::fs::write(&path, "{").unwrap();
        assert!(learn(&path, 0x5f, Some(recovered("d", &[]))).is_err());
    }

    #[test]
    fn a_node_does_not_go_back_to_what_it_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lineage.json");
        assert_eq!(stays(&path, 0x2f, None).unwrap(), None);
        learn(&path, 0x2f, Some(recovered("a", &["1f"]))).unwrap();
        assert!(stays(&path, 0x2f, None).unwrap().unwrap().contains("2026-11-27"));
        assert!(stays(&path, 0x2f, Some(&recovered("b", &["1f"]))).unwrap().is_some());
        // A later one has replaced it, or it has left that incarnation.
        assert_eq!(stays(&path, 0x2f, Some(&recovered("b", &["2f"]))).unwrap(), None);
        assert_eq!(stays(&path, 0x3f, None).unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(stays(&path, 0x2f, None).is_err());
    }
}
