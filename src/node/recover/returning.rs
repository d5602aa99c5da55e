//! A database that comes back into a cluster that has gone on from another node meanwhile.
//!
//! A recovery has said with which data the cluster goes on. A copy that has not gone past the position from which it did
//! follows, as any replica does. One that has gone past it has what the cluster has given up, and Patroni would rewind it:
//! what it has more would be overwritten. So it is set aside before Patroni starts, and the node gets a copy. Once a copy
//! has the timeline of the recovery in its history, it is the cluster's own, and Patroni does with it as with any other.

use super::{
    keys::{Names, Origin, Recovered},
    look::Here,
    plan::{self, Database},
    timeline::{Place, Reach, Relation, relation},
    wal::Wal,
};
use crate::{
    etcd::Client,
    log,
    node::{
        aside::{self, Size},
        begun::{BEGUN_PATH, Begun},
        database,
    },
};
use anyhow::{Context as _, Result};

/// How many files are counted to learn how large a copy is.
const COUNTED: u64 = 1_000_000;

/// How a database stands to the recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a copy of the cluster's since then, or has nothing that the cluster has not.
    Belongs,
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
        Relation::Same | Relation::Behind | Relation::Strange => Standing::Belongs,
        Relation::Ahead => Standing::Past(end),
        Relation::Parted(parting) => Standing::Past(parting.at),
        Relation::Unknown(why) => Standing::Unknown(why),
    }
}

/// Whether the timeline of the recovery is the copy's own or in its history.
fn is_since(own: &Reach, origin: &Origin) -> bool {
    own.end.timeline == origin.timeline
        || own.history.as_ref().is_some_and(|history| history.left(origin.timeline).is_some())
}

/// Looks, on a node where neither Patroni nor a server runs, whether its database may follow, and sets it aside if it has
/// what the cluster has given up. `Some` when Patroni must not start yet, and why.
///
/// # Errors
/// When the disk fails.
pub fn admit(here: &Here<'_>, etcd: &Client) -> Result<Option<String>> {
    let names = Names(&here.spec.cluster);
    let recovered: Recovered = match etcd.get(&names.recovered()) {
        Err(error) => return Ok(Some(format!("etcd does not say from where the cluster went on: {error}"))),
        Ok(None) => return Ok(None),
        Ok(Some(key)) => serde_json::from_slice(&key.value).context("reading what etcd says of the last recovery")?,
    };
    let Some(origin) = &recovered.database else { return Ok(None) };
    let folder = here.data();
    // What is absent, damaged or unknown is the gate's affair, and what this node has begun itself.
    let database::Database::Present(facts) = database::Database::look(&folder) else { return Ok(None) };
    if facts.unstarted_copy || !Begun::load(&here.below(BEGUN_PATH)).is_absent() || has_timeline(here, &facts, origin) {
        return Ok(None);
    }
    let own = match here.database() {
        Database::Present(plan::Copy { reach, .. }) => reach,
        Database::Unknown { why } => {
            return Ok(Some(format!("whether this node's database may follow is not known: {why}")));
        }
        Database::Absent | Database::Unusable { .. } => return Ok(None),
    };
    match standing(&own, origin) {
        Standing::Belongs => Ok(None),
        Standing::Unknown(why) => Ok(Some(format!("whether this node's database may follow is not known: {why}"))),
        Standing::Past(at) => {
            if !has_room(&folder) {
                return Ok(Some(format!(
                    "the cluster went on from {} without what this node has from {at} on, and there may be no room for \
                     another copy beside it: make room, such as by `pgha-node aside remove`",
                    recovered.node
                )));
            }
            log::warning!(
                "the cluster went on from {} without what this node has from {at} to {}: it is set aside",
                recovered.node,
                own.end
            );
            aside::set_aside(&folder, "before-recovery")?;
            Ok(None)
        }
    }
}

/// Whether the history of the database's last checkpoint shows that it is the cluster's own since the recovery.
fn has_timeline(here: &Here<'_>, facts: &database::Facts, origin: &Origin) -> bool {
    let (timeline, _) = facts.reached();
    if timeline < origin.timeline {
        return false;
    }
    let pg_waldump = here.programs().join("pg_waldump");
    let wal = Wal { folder: here.data().join("pg_wal"), pg_waldump: &pg_waldump };
    timeline == origin.timeline || wal.history(timeline).is_ok_and(|history| history.left(origin.timeline).is_some())
}

/// Whether the file system of `folder` is known to have room for as much as is in `folder`.
fn has_room(folder: &std::path::Path) -> bool {
    let size = Size::of(folder, COUNTED);
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) > size.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{database::Lsn, recover::timeline::History};

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
            // Behind, on any of its timelines.
            (reach(1, 20, &[]), Standing::Belongs),
            (reach(2, 50, &[(1, 20)]), Standing::Belongs),
            // Past it.
            (reach(2, 51, &[(1, 20)]), past(2, 50)),
            (reach(1, 21, &[]), past(1, 20)),
            // Another promotion, of which the recovered node did not know: before, at and after the same position.
            (reach(3, 90, &[(1, 20), (2, 40)]), past(2, 40)),
            (reach(3, 90, &[(1, 20), (2, 50)]), past(2, 50)),
            (reach(3, 90, &[(1, 20), (2, 60)]), past(2, 50)),
            (reach(66, 90, &[(1, 20), (2, 60)]), past(2, 50)),
            // One with the same number is the cluster's own; nobody else takes it.
            (reach(67, 51, &[(1, 20), (2, 50)]), Standing::Belongs),
            (reach(68, 99, &[(1, 20), (2, 50), (67, 70)]), Standing::Belongs),
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
}
