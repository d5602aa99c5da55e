//! Patroni's key `initialize`, which says that the cluster has a database, and which.
//!
//! As long as there is a leader, its Patroni writes the key again. Without a leader, a Patroni that does not find it takes
//! the cluster for one that has no database yet: one that has no data would make a database of its own. The key
//! `/pgha/<cluster>/first` remembers the system identifier, so the agent writes the key back, in one transaction that holds
//! only while there is no leader and both keys are as they were read. Which agent does it does not matter.

use super::{Attention, Concern, World};
use crate::{
    log,
    node::{
        database::{self, Database},
        first::{Keys, Store},
        state::POSTGRESQL_DATA,
    },
};
use anyhow::{Context as _, Result};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(5);

/// The concern.
#[derive(Debug, Default)]
pub struct Initialize;

impl Concern for Initialize {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn tick(&mut self, world: &World, _: Instant) -> Result<Vec<Attention>> {
        let Some(version) = world.postgresql.filter(|_| world.settled()) else { return Ok(Vec::new()) };
        let store = Store { client: &world.etcd, cluster: &world.node.spec.cluster };
        if store.leader().context("asking etcd for the leader")?.is_some() {
            return Ok(Vec::new());
        }
        let keys = store.read().context("asking etcd which database is the cluster's")?;
        let folder = Path::new(POSTGRESQL_DATA).join(version.to_string()).join("main");
        match restore(&keys, &database::of_version(version, Database::look(&folder))) {
            KeyStep::Nothing => Ok(Vec::new()),
            KeyStep::Restore(system) => {
                if store.restore(&keys, system).context("writing Patroni's key `initialize` back")? {
                    log::warning!("Patroni's key `initialize` was gone while there is no leader: it is written back");
                }
                Ok(Vec::new())
            }
            KeyStep::Tell(text) => Ok(vec![Attention::serious("keys/contradiction", text)]),
        }
    }
}

/// What is done about the key while there is no leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStep<'a> {
    /// Nothing.
    Nothing,
    /// It is to have this system identifier again.
    Restore(&'a str),
    /// Nothing, and a person must look.
    Tell(String),
}

/// What is done about the key while there is no leader, on a node that has the database `own`.
pub fn restore<'a>(keys: &'a Keys, own: &Database) -> KeyStep<'a> {
    let named = keys.initialize.as_ref().map(|key| key.value.as_str()).filter(|value| !value.is_empty());
    let Some(system) = keys.first.as_ref().and_then(|first| first.value.system.as_deref()) else {
        return KeyStep::Nothing;
    };
    match (named, own) {
        (Some(_), _) => KeyStep::Nothing,
        (None, Database::Present(facts)) if facts.system != system => KeyStep::Tell(format!(
            "Patroni's key `initialize` is gone, and this node's database has the system identifier {}, the cluster's {system}: \
             nothing is written; see `pgha-node recover`",
            facts.system
        )),
        (None, _) => KeyStep::Restore(system),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        files::Doubt,
        node::{
            database::samples,
            first::{First, Key},
        },
    };

    fn key<T>(value: T) -> Key<T> {
        Key { value, created: 1, changed: 1 }
    }

    #[test]
    fn only_a_key_that_is_gone_is_written_back_and_only_with_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let present = |system| {
            let main = folder.path().join(format!("{system}"));
            samples::database(&main, system);
            Database::look(&main)
        };
        let databases = [
            (Database::Absent, true),
            (Database::Damaged("it has no global/pg_control".into()), true),
            (Database::Unknown(Doubt::new("an error")), true),
            (present(7), true),
            (present(8), false),
        ];
        let pinned = |system: Option<&str>| First { node: "pg-1".into(), system: system.map(str::to_owned) };
        for first in [None, Some(pinned(None)), Some(pinned(Some("7")))] {
            for initialize in [None, Some(""), Some("7"), Some("8")] {
                for (own, fits) in &databases {
                    let keys = Keys {
                        first: first.clone().map(key),
                        initialize: initialize.map(|value| key(value.to_owned())),
                        ..Keys::default()
                    };
                    let is_known = first.as_ref().is_some_and(|first| first.system.is_some());
                    let is_gone = initialize.is_none_or(str::is_empty);
                    match restore(&keys, own) {
                        KeyStep::Restore(system) => {
                            assert!(system == "7" && is_known && is_gone && *fits, "{keys:?} {own:?}")
                        }
                        KeyStep::Tell(_) => assert!(is_known && is_gone && !fits, "{keys:?} {own:?}"),
                        KeyStep::Nothing => assert!(!is_known || !is_gone, "{keys:?} {own:?}"),
                    }
                }
            }
        }
    }
}
