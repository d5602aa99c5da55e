//! Decides about a database that returns to a cluster that has continued from another node meanwhile.
//!
//! A recovery has said with which data the cluster goes on. A copy that has not gone past the position from which it did
//! follows, as any replica does. One that has gone past it has what the cluster has given up, and Patroni would rewind it:
//! what it has more would be overwritten. So it is set aside before Patroni starts, and the node gets a copy. Once a copy
//! has the timeline of the recovery in its history, it is the cluster's own, and Patroni does with it as with any other.
//!
//! Until then, no copy starts before a primary runs that has that timeline: Patroni would let one that has less become
//! the primary where the server of the chosen node does not come up, and the data that a person has chosen would be
//! given up.

use super::{
    keys::{Names, Origin, Recovered},
    lineage::{self, Lineage},
    look::{Here, READ_WITHIN},
    plan::{self, Database},
    timeline::{History, Place, Reach, Relation, relation},
    wal::Wal,
};
use crate::{
    etcd::Client,
    log,
    node::{
        aside::{self, measure},
        begun::{BEGUN_PATH, Begun, What},
        database,
    },
};
use anyhow::Result;

/// How many files are counted to learn how large a copy is.
const COUNTED: u64 = 1_000_000;

/// How a database stands to the recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a copy of the cluster's since then, or of another database.
    Belongs,
    /// It has nothing that the cluster has not, and ends where the recovery began or before.
    Behind,
    /// It has more, from this place on.
    Past(Place),
    /// It is not known, and why.
    Unknown(String),
}

/// How a copy of a database stands to the one from which the cluster went on.
pub fn standing(own: &Reach, origin: &Origin) -> Standing {
    // Another database is refused later, by the gate before Patroni.
    if own.system != origin.system || is_since(own, origin) {
        return Standing::Belongs;
    }
    let Some(left) = origin.history.0.last() else { return Standing::Belongs };
    let end = Place { timeline: origin.timeline, position: left.position };
    let branch = Reach { system: origin.system.clone(), end, exact: true, history: Some(origin.history.clone()) };
    match relation(own, &branch) {
        Relation::Strange => Standing::Belongs,
        Relation::Same | Relation::Behind => Standing::Behind,
        Relation::Ahead => Standing::Past(end),
        Relation::Parted(parting) => Standing::Past(parting.at),
        Relation::Unknown(why) => Standing::Unknown(why),
    }
}

/// Whether the timeline of the recovery is the copy's own or in its history. The number alone does not say it: another node
/// may have been given it by an order that was dropped.
fn is_since(own: &Reach, origin: &Origin) -> bool {
    own.history.as_ref().is_some_and(|history| descends(own.end.timeline, history, origin))
}

/// Whether a timeline with this history is that of the recovery, or has it in its history.
fn descends(timeline: u32, history: &History, origin: &Origin) -> bool {
    let before = history.0.iter().take_while(|place| place.timeline < origin.timeline);
    let is_there = timeline == origin.timeline || history.left(origin.timeline).is_some();
    is_there && before.eq(origin.history.0.iter())
}

/// Looks, on a node where neither Patroni nor a server runs, whether its database may follow, and sets it aside if it has
/// what the cluster has given up. `Some` when Patroni must not start yet, and why.
///
/// # Errors
/// When the disk fails, or what etcd says is not understood.
pub fn admit(here: &Here<'_>, etcd: &Client) -> Result<Option<String>> {
    let names = Names(&here.node.spec.cluster);
    let recovered = match Recovered::ask(etcd, names) {
        Ok(recovered) => recovered,
        Err(error) => return Ok(Some(format!("etcd does not say from where the cluster went on: {error:#}"))),
    };
    let folder = here.data();
    // What is absent, damaged or unknown is the gate's affair.
    let database::Database::Present(facts) = database::Database::look(&folder) else { return Ok(None) };
    if let Some(known) = Lineage::load(&here.below(lineage::PATH)).known()?
        && !lineage::may_follow(Some(&known), recovered.as_ref())
        && let Some(origin) = &known.recovered.database
        && has_timeline(here, &facts, origin)?
    {
        return Ok(Some(format!(
            "the cluster that answers does not know of {}, of which this node's database is: two clusters of one name. Nothing \
             is changed. Stop one of them. If this node's data are not wanted: `pgha-node aside make database`",
            known.words()
        )));
    }
    let Some(Recovered { node, database: Some(origin), .. }) = &recovered else { return Ok(None) };
    let begun = Begun::load(&here.below(BEGUN_PATH)).known()?;
    // Half of what this node has begun itself is the gate's affair, too.
    let is_half = facts.unstarted_copy || begun.is_some_and(|begun| begun.what == What::Bootstrap);
    if is_half || has_timeline(here, &facts, origin)? {
        return Ok(None);
    }
    let own = match here.database(READ_WITHIN) {
        Database::Present(plan::Copy { reach, .. }) => reach,
        Database::Unknown { why } => {
            return Ok(Some(format!("whether this node's database may follow is not known: {why}")));
        }
        Database::Absent | Database::Unusable { .. } => return Ok(None),
    };
    let at = match standing(&own, origin) {
        Standing::Belongs => return Ok(None),
        Standing::Behind => return Ok(no_primary(etcd, names, origin).map(|why| waits_behind(node, &own.end, &why))),
        Standing::Unknown(why) => {
            return Ok(Some(format!("whether this node's database may follow is not known: {why}")));
        }
        Standing::Past(at) => at,
    };
    let more = format!("the cluster went on from {node} without what this node has from {at} to {}", own.end);
    if let Some(why) = no_primary(etcd, names, origin) {
        return Ok(Some(format!("{more}: this node's database is kept in its place until a primary runs ({why})")));
    }
    if !has_room(&folder) {
        return Ok(Some(format!(
            "{more}, and there may be no room for another copy beside it: make room, such as by `pgha-node aside remove`"
        )));
    }
    match aside::elsewhere(&folder) {
        Ok(None) => {}
        Ok(Some(elsewhere)) => return Ok(Some(format!("{more}, and {elsewhere}"))),
        Err(error) => return Ok(Some(format!("{more}, and whether it has tablespaces is not known: {error:#}"))),
    }
    log::warning!("{more}: it is set aside");
    aside::set_database_aside(&folder, "before-recovery")?;
    Ok(None)
}

/// Why a copy that ends at `end` does not start, and the way out where the node with more never comes up again.
fn waits_behind(node: &str, end: &Place, why: &str) -> String {
    format!(
        "the cluster went on from {node}, which has more than this node (up to {end}): this node follows as soon as a \
         primary runs ({why}). See why none does: pgha-node status, on {node}. If {node} has lost its database for \
         good: `systemctl stop pgha-node etcd` on all other nodes, and then here: pgha-node recover"
    )
}

/// Why it is not known that a primary runs that has the data with which the cluster went on; `None` if one does.
fn no_primary(etcd: &Client, names: Names<'_>, origin: &Origin) -> Option<String> {
    let ask = |key: &str| match etcd.get(key) {
        Ok(Some(found)) => Ok(String::from_utf8_lossy(&found.value).into_owned()),
        Ok(None) => Err(format!("there is no {key}")),
        Err(error) => Err(error.to_string()),
    };
    let told = ask(&names.leader()).and_then(|leader| Ok((ask(&names.member(&leader))?, leader)));
    match told {
        Ok((text, leader)) => is_primary(&text, origin).err().map(|why| format!("{leader}: {why}")),
        Err(why) => Some(why),
    }
}

/// Whether what Patroni tells of the leader is that it runs as the primary, on the timeline of the recovery or a later one.
fn is_primary(text: &str, origin: &Origin) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Member {
        #[serde(default)]
        state: String,
        #[serde(default)]
        role: String,
        timeline: Option<u32>,
    }
    let member: Member = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let is_leader = matches!(member.role.as_str(), "primary" | "master");
    match member.timeline {
        Some(timeline) if is_leader && member.state == "running" && timeline >= origin.timeline => Ok(()),
        timeline => {
            let timeline = timeline.map_or_else(|| "none".to_owned(), |timeline| timeline.to_string());
            Err(format!("role {}, {}, timeline {timeline}", member.role, member.state))
        }
    }
}

/// Whether the database is the cluster's own since the recovery.
///
/// # Errors
/// When its history cannot be read.
fn has_timeline(here: &Here<'_>, facts: &database::Facts, origin: &Origin) -> Result<bool> {
    let (timeline, _) = facts.reached();
    if facts.system != origin.system || timeline < origin.timeline {
        return Ok(false);
    }
    let pg_waldump = here.programs().join("pg_waldump");
    let wal = Wal { folder: here.data().join("pg_wal"), pg_waldump: &pg_waldump };
    Ok(descends(timeline, &wal.history(timeline)?, origin))
}

/// Whether the file system of `folder` is known to have room for as much as is in `folder`.
fn has_room(folder: &std::path::Path) -> bool {
    let size = measure(folder, COUNTED);
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) > size.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::database::Lsn;

    fn history(places: &[(u32, u64)]) -> History {
        let place = |(timeline, position): &(u32, u64)| Place { timeline: *timeline, position: Lsn(*position) };
        History(places.iter().map(place).collect())
    }

    fn reach(timeline: u32, position: u64, before: &[(u32, u64)]) -> Reach {
        let end = Place { timeline, position: Lsn(position) };
        Reach { system: "7".into(), end, exact: true, history: Some(history(before)) }
    }

    #[test]
    fn what_the_cluster_has_given_up_is_seen_and_everything_else_follows() {
        // Recovered from timeline 2 at 50, as timeline 67.
        let origin = Origin { system: "7".into(), timeline: 67, history: history(&[(1, 20), (2, 50)]) };
        let past = |timeline, position| Standing::Past(Place { timeline, position: Lsn(position) });
        let cases = [
            // Behind, on any of its timelines; and as far as it was.
            (reach(1, 20, &[]), Standing::Behind),
            (reach(2, 49, &[(1, 20)]), Standing::Behind),
            (reach(2, 50, &[(1, 20)]), Standing::Behind),
            // Past it.
            (reach(2, 51, &[(1, 20)]), past(2, 50)),
            (reach(1, 21, &[]), past(1, 20)),
            // Another promotion, of which the recovered node did not know: before, at and after the same position.
            (reach(3, 90, &[(1, 20), (2, 40)]), past(2, 40)),
            (reach(3, 90, &[(1, 20), (2, 50)]), past(2, 50)),
            (reach(3, 90, &[(1, 20), (2, 60)]), past(2, 50)),
            (reach(66, 90, &[(1, 20), (2, 60)]), past(2, 50)),
            // The cluster's own.
            (reach(67, 51, &[(1, 20), (2, 50)]), Standing::Belongs),
            (reach(68, 99, &[(1, 20), (2, 50), (67, 70)]), Standing::Belongs),
            // One that got the same number by an order that was dropped.
            (reach(67, 51, &[(1, 20), (2, 49)]), past(2, 49)),
            (reach(67, 61, &[(1, 20), (2, 60)]), past(2, 50)),
            (reach(68, 99, &[(1, 20), (2, 60), (67, 70)]), past(2, 50)),
            // One that went on by itself so often that it has passed the number.
            (reach(70, 99, &[(1, 20), (2, 60), (69, 80)]), past(2, 50)),
        ];
        for (own, expected) in cases {
            assert_eq!(standing(&own, &origin), expected, "{own:?}");
        }
        let strange = Reach { system: "8".into(), ..reach(2, 90, &[(1, 20)]) };
        assert_eq!(standing(&strange, &origin), Standing::Belongs);
        let unsure = Reach { exact: false, ..reach(2, 40, &[(1, 20)]) };
        assert!(matches!(standing(&unsure, &origin), Standing::Unknown(_)));
        let unsure = Reach { exact: false, ..reach(2, 51, &[(1, 20)]) };
        assert_eq!(standing(&unsure, &origin), past(2, 50));
    }

    #[test]
    fn data_are_set_aside_only_where_the_primary_of_the_recovery_runs() {
        let origin = Origin { system: "7".into(), timeline: 67, history: history(&[(1, 20)]) };
        let told = |text: &str| is_primary(text, &origin);
        // As Patroni 4.0.7 writes it.
        let primary = r#"{"conn_url":"postgres://10.0.0.11:5432/postgres","api_url":"https://10.0.0.11:8008/patroni",
            "state":"running","role":"primary","version":"4.0.7","xlog_location":67109016,"timeline":68}"#;
        assert_eq!(told(primary), Ok(()));
        for other in [
            r#"{"state":"running","role":"primary","timeline":66}"#,
            r#"{"state":"starting","role":"primary","timeline":68}"#,
            r#"{"state":"running","role":"replica","timeline":68}"#,
            r#"{"state":"running","role":"primary"}"#,
            "{}",
            "",
        ] {
            assert!(told(other).is_err(), "{other}");
        }
    }
}
