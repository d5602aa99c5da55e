//! A person's order to go on from this node, as far as it is carried out: written down before each step.
//!
//! The order lies on the disk from the moment at which it is given until its new incarnation is in place; then it is kept
//! under another name, so that this node knows which clusters of etcd its own has replaced. Whoever finds it, `pgha-node
//! recover` or `init` at the next boot, goes on with the step that it names.

use super::branch::Branch;
use crate::{
    files::{Doubt, Presence, sync_folder, write_private},
    node::etcd_data::Ids,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// Where an order is that is not carried out yet.
pub const PATH: &str = "/var/lib/pgha/recover.json";
/// Where the keys are that go along.
pub const KEYS_PATH: &str = "/var/lib/pgha/recover-keys.json";
/// Where the last order is that was carried out.
pub const DONE_PATH: &str = "/var/lib/pgha/recovered.json";
/// More than an order has, in bytes.
const LONGEST: u64 = 1 << 20;

/// How far an order is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It was given.
    Ordered,
    /// What etcd had kept is written down.
    Read,
    /// The database has its new timeline.
    Branched,
    /// The new incarnation of etcd is made, and not in its place.
    Made,
}

/// The order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The version of this shape: 1.
    pub schema: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's derived identity.
    pub identity: String,
    /// This node's name.
    pub node: String,
    /// When it was given, in seconds since 1970.
    pub time: i64,
    /// Whether the person insisted.
    pub force: bool,
    /// How far it is carried out.
    pub phase: Phase,
    /// The new incarnation: 128 random bits in hexadecimal digits.
    pub incarnation: String,
    /// The system identifier of the database that goes along; `None` if there is none here.
    pub system: Option<String>,
    /// Whether what etcd has kept goes along.
    pub keys: bool,
    /// The newest timeline of any node that answered.
    pub newest: u32,
    /// The clusters of etcd that end, in hexadecimal digits, oldest first.
    pub replaces: Vec<String>,
    /// The number that the new timeline shall have, once it is drawn.
    #[serde(default)]
    pub number: Option<u32>,
    /// The new timeline of the database.
    #[serde(default)]
    pub branch: Option<Branch>,
    /// The ids of the new incarnation, once it is made.
    #[serde(default)]
    pub ids: Option<Ids>,
}

impl Order {
    /// Reads it.
    pub fn load(path: &Path) -> Presence<Order> {
        Presence::of_text(path, LONGEST).and_then(|text| match serde_json::from_str(&text) {
            Ok(order) => Presence::Present(order),
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

    /// etcd's token in the new incarnation.
    pub fn token(&self) -> String {
        format!("{}-{}", self.identity, self.incarnation)
    }

    /// How far it is, for a person.
    pub fn words(&self) -> &'static str {
        match self.phase {
            Phase::Ordered => "the order is given, and nothing has changed",
            Phase::Read => "etcd's keys are written down",
            Phase::Branched => "the database has its new timeline",
            Phase::Made => "the new incarnation of etcd is made",
        }
    }
}

/// An order that is not carried out yet, for a person; also one that cannot be read.
pub fn pending(path: &Path) -> Option<String> {
    match Order::load(path) {
        Presence::Present(order) => Some(order.words().to_owned()),
        Presence::Absent => None,
        Presence::Unknown(doubt) => Some(format!("whether there is an order is not known: {doubt}")),
    }
}

/// Why this node does not leave its cluster of etcd, whose id is `own`, for the one with the id `other`: because a person
/// had it replace that one. `None` if it may leave.
///
/// # Errors
/// When it is not known whether it did.
pub fn stays(done: &Path, own: u64, other: u64) -> Result<Option<String>> {
    let Some(order) = Order::load(done).known()? else { return Ok(None) };
    let is_own = order.ids.is_some_and(|ids| ids.cluster == own);
    if !is_own || !order.replaces.contains(&format!("{other:x}")) {
        return Ok(None);
    }
    Ok(Some(format!(
        "a quorum of the cluster of etcd answers that this node replaced by a person's order ({}): two clusters of one name. \
         Stop one of them: pgha-node help recover",
        crate::clock::utc(order.time)
    )))
}

/// Moves a file of this module's to another name, or takes it away; both are on the disk then.
///
/// # Errors
/// When the disk does not allow it.
pub fn retire(path: &Path, to: Option<&Path>) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let moved = match to {
        Some(to) => fs::rename(path, to),
        None => fs::remove_file(path),
    };
    match moved {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => other.with_context(doing)?,
    }
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{
        database::Lsn,
        recover::timeline::{History, Place},
    };

    fn order() -> Order {
        Order {
            schema: 1,
            cluster: "demo".into(),
            identity: "feed".into(),
            node: "pg-1".into(),
            time: 1_795_741_749,
            force: false,
            phase: Phase::Branched,
            incarnation: "12".into(),
            system: Some("77".into()),
            keys: true,
            newest: 2,
            replaces: vec!["1f".into()],
            number: Some(66),
            branch: Some(Branch { timeline: 66, history: History(vec![Place { timeline: 2, position: Lsn(0x5000) }]) }),
            ids: Some(Ids { cluster: 0x2f, member: 7 }),
        }
    }

    #[test]
    fn an_order_is_read_back_and_half_an_order_is_pending_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recover.json");
        assert_eq!((Order::load(&path), pending(&path)), (Presence::Absent, None));
        order().store(&path).unwrap();
        assert_eq!(Order::load(&path), Presence::Present(order()));
        assert_eq!(pending(&path).as_deref(), Some("the database has its new timeline"));
        fs::write(&path, "{").unwrap();
        assert!(pending(&path).is_some());
        retire(&path, None).unwrap();
        retire(&path, None).unwrap();
        assert_eq!(pending(&path), None);
    }

    #[test]
    fn a_node_does_not_go_back_to_what_it_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, done) = (folder.path().join("recover.json"), folder.path().join("recovered.json"));
        assert_eq!(stays(&done, 0x2f, 0x1f).unwrap(), None);
        order().store(&path).unwrap();
        retire(&path, Some(&done)).unwrap();
        assert!(stays(&done, 0x2f, 0x1f).unwrap().unwrap().contains("2026-11-27"));
        // It has left that incarnation, or the other is a later one.
        assert_eq!(stays(&done, 0x3f, 0x1f).unwrap(), None);
        assert_eq!(stays(&done, 0x2f, 0x3f).unwrap(), None);
        fs::write(&done, "{").unwrap();
        assert!(stays(&done, 0x2f, 0x1f).is_err());
    }
}
