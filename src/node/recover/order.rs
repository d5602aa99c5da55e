//! A person's order to continue from this node, and how far it is carried out: recorded before each step.
//!
//! The order lies on the disk from the moment at which it is given until its new incarnation is in place; then it is kept
//! under another name, so that this node knows which clusters of etcd its own has replaced. Whoever finds it, `pgha-node
//! recover` or `init` at the next boot, goes on with the step that it names.

use super::{
    branch::Branch,
    keys::{Origin, Recovered},
    timeline::{History, Reach},
};
use crate::{
    files::{Doubt, Presence, sync_folder, write_private},
    node::etcd_data::Ids,
};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// Where an order is that is not carried out yet.
pub const PATH: &str = "/var/lib/pgha/recover.json";
/// Where the keys are that go along.
pub const KEYS_PATH: &str = "/var/lib/pgha/recover-keys.json";
/// Where the last order is that was carried out.
pub const DONE_PATH: &str = "/var/lib/pgha/recovered.json";
/// Where the last order is that was dropped.
pub const DROPPED_PATH: &str = "/var/lib/pgha/recover-dropped.json";
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
pub struct RecoveryOrder {
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
    /// The nodes that have more, or of which that is not known, as the person was told.
    pub accepts: Vec<String>,
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
    /// The number that the new timeline gets, once it is drawn.
    #[serde(default)]
    pub number: Option<u32>,
    /// The oldest timeline that the database got by orders of which none has been carried out.
    #[serde(default)]
    pub since: Option<u32>,
    /// The new timeline of the database.
    #[serde(default)]
    pub branch: Option<Branch>,
    /// The ids of the new incarnation, once it is made.
    #[serde(default)]
    pub ids: Option<Ids>,
    /// Why it was dropped, if it was.
    #[serde(default)]
    pub dropped: Option<String>,
}

impl RecoveryOrder {
    /// Reads it.
    pub fn load(path: &Path) -> Presence<RecoveryOrder> {
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

    /// How far a copy had come before it got a timeline by this order, which has not been carried out; `None` if its end is
    /// not that timeline. Nothing was written on it, so that what others have more is more all the same, and has not been
    /// given up by any promotion.
    pub fn before(&self, own: &Reach) -> Option<Reach> {
        let number = self.number?;
        let is_its = match (&self.branch, &self.dropped) {
            (Some(branch), _) => own.end == branch.end,
            // It was cut off; no server but this order's has run since.
            (None, None) => own.end.timeline >= number,
            (None, Some(_)) => false,
        };
        let since = self.since.unwrap_or(number);
        let places = &own.history.as_ref()?.0;
        let kept = places.iter().take_while(|place| place.timeline < since).count();
        let (end, history) = places[..kept].split_last()?;
        let history = Some(History(history.to_vec()));
        is_its.then(|| Reach { system: own.system.clone(), end: *end, exact: true, history })
    }

    /// The order as it is kept when it is dropped because of `why`, where `made` is the timeline that the database got
    /// by it, if it got one. Without one, what an order before it (`earlier`), which was dropped too, says of the
    /// database's timelines is still true.
    pub fn dropped_for(self, why: &str, made: Option<Branch>, earlier: Option<RecoveryOrder>) -> RecoveryOrder {
        let (number, since, branch) = match made {
            Some(branch) => (self.number, self.since, Some(branch)),
            None => earlier.map_or((None, None, None), |earlier| (earlier.number, earlier.since, earlier.branch)),
        };
        RecoveryOrder { number, since, branch, dropped: Some(why.to_owned()), ..self }
    }

    /// What is written in etcd about the recovery.
    ///
    /// # Errors
    /// When the database has no timeline of its own yet.
    pub fn recovered(&self) -> Result<Recovered> {
        let database = match (&self.system, &self.branch) {
            (Some(system), Some(branch)) => {
                Some(Origin { system: system.clone(), timeline: branch.end.timeline, history: branch.history.clone() })
            }
            (None, _) => None,
            (Some(_), None) => bail!("the order names a database and not its timeline"),
        };
        Ok(Recovered {
            node: self.node.clone(),
            time: self.time,
            incarnation: self.incarnation.clone(),
            replaces: self.replaces.clone(),
            database,
        })
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
    match RecoveryOrder::load(path) {
        Presence::Present(order) => Some(order.words().to_owned()),
        Presence::Absent => None,
        Presence::Unknown(doubt) => Some(format!("whether there is an order is not known: {doubt}")),
    }
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
    use crate::node::{database::Lsn, recover::timeline::Place};

    fn order() -> RecoveryOrder {
        RecoveryOrder {
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
            accepts: vec!["pg-3".into()],
            newest: 2,
            replaces: vec!["1f".into()],
            number: Some(66),
            since: Some(66),
            branch: Some(Branch { end: place(66, 0x6000), history: History(vec![place(2, 0x5000)]) }),
            ids: Some(Ids { cluster: 0x2f, member: 7 }),
            dropped: None,
        }
    }

    fn place(timeline: u32, position: u64) -> Place {
        Place { timeline, position: Lsn(position) }
    }

    #[test]
    fn an_order_is_read_back_and_half_an_order_is_pending_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recover.json");
        assert_eq!((RecoveryOrder::load(&path), pending(&path)), (Presence::Absent, None));
        order().store(&path).unwrap();
        assert_eq!(RecoveryOrder::load(&path), Presence::Present(order()));
        assert_eq!(pending(&path).as_deref(), Some("the database has its new timeline"));
        fs::write(&path, "{").unwrap();
        assert!(pending(&path).is_some());
        retire(&path, None).unwrap();
        retire(&path, None).unwrap();
        assert_eq!(pending(&path), None);
    }

    #[test]
    fn a_timeline_on_which_nothing_was_written_is_left_out() {
        let reach = |end: Place, before: &[Place]| Reach {
            system: "77".into(),
            end,
            exact: true,
            history: Some(History(before.to_vec())),
        };
        let before = reach(place(2, 0x5000), &[place(1, 0x2000)]);
        let branched = reach(place(66, 0x6000), &[place(1, 0x2000), place(2, 0x5000)]);
        let dropped = RecoveryOrder { dropped: Some("why".into()), ..order() };
        assert_eq!(order().before(&branched), Some(before.clone()));
        assert_eq!(dropped.before(&branched), Some(before.clone()));
        assert_eq!(order().before(&before), None);
        // It has taken writes since, and been promoted.
        let written = reach(place(66, 0x7000), &[place(1, 0x2000), place(2, 0x5000)]);
        let promoted = reach(place(67, 0x8000), &[place(1, 0x2000), place(2, 0x5000), place(66, 0x7000)]);
        assert_eq!((dropped.before(&written), dropped.before(&promoted)), (None, None));
        // Cut off while it was promoted, to this number or the next that is free.
        let cut = RecoveryOrder { branch: None, ..order() };
        assert_eq!(cut.before(&written), Some(before.clone()));
        assert_eq!(RecoveryOrder { branch: None, ..dropped }.before(&written), None);
        // A second order, after one that was dropped.
        let again = RecoveryOrder {
            number: Some(130),
            branch: Some(Branch { end: place(130, 0x6800), history: History::default() }),
            ..order()
        };
        let twice = reach(place(130, 0x6800), &[place(1, 0x2000), place(2, 0x5000), place(66, 0x6000)]);
        assert_eq!(again.before(&twice), Some(before.clone()));
        // It was dropped after the promotion and before that was written down: what is found then is.
        let end = place(66, 0x7000);
        let found = Branch { end, history: History(vec![place(1, 0x2000), place(2, 0x5000)]) };
        let told = RecoveryOrder { branch: None, ..order() }.dropped_for("why", Some(found), None);
        assert_eq!(told.before(&written), Some(before.clone()));
        assert_eq!((told.number, told.dropped.as_deref()), (Some(66), Some("why")));
        // It was not promoted: whatever timeline it has later is its own.
        let never = RecoveryOrder { branch: None, ..order() }.dropped_for("why", None, None);
        assert_eq!((never.number, never.since, &never.branch, never.before(&written)), (None, None, &None, None));
        // One that is dropped before it has begun hides nothing of what one before it did.
        let second = RecoveryOrder { number: Some(130), branch: None, ..order() };
        let second = second.dropped_for("again", None, Some(told));
        assert_eq!(second.before(&written), Some(before.clone()));
        assert_eq!(second.dropped.as_deref(), Some("again"));
        // A database of one timeline.
        let only = RecoveryOrder { number: Some(65), since: None, branch: None, ..order() };
        assert_eq!(only.before(&reach(place(65, 0x30), &[place(1, 0x20)])).unwrap(), reach(place(1, 0x20), &[]));
    }
}
