//! The keys that a cluster keeps in its new incarnation, and those that it must not.
//!
//! What hangs on a lease says who was there: the leader, the members, Patroni's requests. None of it is true any more. Who
//! was synchronous and how far the last primary had come protects commits that were acknowledged, as long as the database
//! may come from any node; when a person has said from which it comes, it would keep that node from becoming the
//! primary. So it is said anew, of that node: how far its database has come, and which timelines it has left. A copy
//! that has less does not become the primary then, by Patroni's `maximum_lag_on_failover` and `check_timeline`.
//!
//! In maintenance mode (`pause`), Patroni starts no server and gives up the leader's key of one that does not run: a
//! cluster that begins in it never gets a primary.

use super::{
    plan::Kept,
    timeline::{History, Place, parse_position},
};
use crate::{
    etcd::{Client, KeyValue},
    log,
    node::database::Lsn,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Whether it hangs on a lease.
    #[serde(default)]
    pub leased: bool,
}

impl Entry {
    /// A key as etcd tells it; `None` if it is not text, which none of ours and Patroni's is.
    pub fn of(found: KeyValue) -> Option<Entry> {
        let name = String::from_utf8_lossy(&found.key).into_owned();
        match (String::from_utf8(found.key), String::from_utf8(found.value)) {
            (Ok(key), Ok(value)) => Some(Entry { key, value, leased: found.lease != 0 }),
            _ => {
                log::warning!("etcd's key {name} is not text and is left behind");
                None
            }
        }
    }

    fn new(key: String, value: impl Into<String>) -> Entry {
        Entry { key, value: value.into(), leased: false }
    }
}

/// All that etcd has kept of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// etcd's revision.
    pub revision: u64,
    /// The keys, in order.
    pub entries: Vec<Entry>,
}

/// What is written about a cluster's last recovery: `/pgha/<cluster>/recovered`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The node from which the cluster went on.
    pub node: String,
    /// When, in seconds since 1970.
    pub time: i64,
    /// The incarnation that began then.
    pub incarnation: String,
    /// The ids of the clusters of etcd that it replaced, in hexadecimal digits, oldest first.
    pub replaces: Vec<String>,
    /// The database from which it went on; `None` if only etcd did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Origin>,
}

/// A database from which a cluster went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its system identifier.
    pub system: String,
    /// The timeline that began then: a copy belongs to the cluster if it is in its history.
    pub timeline: u32,
    /// The timelines before it; the last is the one that it left, and where.
    pub history: History,
}

impl Recovered {
    /// What etcd says of the last recovery; `None` if there was none.
    ///
    /// # Errors
    /// When etcd does not answer, or what it says is not understood.
    pub fn ask(etcd: &Client, names: Names<'_>) -> Result<Option<Recovered>> {
        let Some(found) = etcd.get(&names.recovered())? else { return Ok(None) };
        serde_json::from_slice(&found.value).map(Some).context("reading what etcd says of the last recovery")
    }
}

/// Where the keys of a cluster lie.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a>(pub &'a str);

impl Names<'_> {
    /// The prefix of Patroni's keys.
    pub fn patroni(&self) -> String {
        format!("/service/{}/", self.0)
    }

    /// The prefix of ours.
    pub fn own(&self) -> String {
        format!("/pgha/{}/", self.0)
    }

    /// The key of the last recovery.
    pub fn recovered(&self) -> String {
        format!("{}recovered", self.own())
    }

    fn initialize(&self) -> String {
        format!("{}initialize", self.patroni())
    }

    fn config(&self) -> String {
        format!("{}config", self.patroni())
    }

    fn status(&self) -> String {
        format!("{}status", self.patroni())
    }

    fn history(&self) -> String {
        format!("{}history", self.patroni())
    }

    fn sync(&self) -> String {
        format!("{}sync", self.patroni())
    }

    /// The key of Patroni's leader.
    pub fn leader(&self) -> String {
        format!("{}leader", self.patroni())
    }

    /// The key in which Patroni tells of the member `name`.
    pub fn member(&self, name: &str) -> String {
        format!("{}members/{name}", self.patroni())
    }

    fn first(&self) -> String {
        format!("{}first", self.own())
    }
}

impl Contents {
    fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }

    /// The last recovery, if there was one.
    pub fn recovered(&self, names: Names<'_>) -> Option<Recovered> {
        serde_json::from_str(self.get(&names.recovered())?).ok()
    }

    /// The system identifier that `initialize` or `first` names.
    pub fn system(&self, names: Names<'_>) -> Option<String> {
        #[derive(Deserialize)]
        struct First {
            system: Option<String>,
        }
        let made = self.get(&names.initialize()).filter(|value| !value.is_empty()).map(ToOwned::to_owned);
        made.or_else(|| serde_json::from_str::<First>(self.get(&names.first())?).ok()?.system)
    }

    /// What a plan wants to know.
    pub fn kept(&self, names: Names<'_>) -> Kept {
        #[derive(Deserialize)]
        struct Sync {
            leader: Option<String>,
            sync_standby: Option<String>,
            #[serde(default)]
            quorum: u64,
        }
        let sync = self.get(&names.sync()).and_then(|text| serde_json::from_str::<Sync>(text).ok());
        let synchronous = sync.map_or_else(Vec::new, |sync| {
            // Where a quorum of standbys has acknowledged, no one of them has everything.
            let standbys = sync.sync_standby.filter(|_| sync.quorum == 0).unwrap_or_default();
            let standbys =
                standbys.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect::<Vec<_>>();
            sync.leader.into_iter().chain(standbys).collect()
        });
        let paused = self.get(&names.config()).is_some_and(|config| without_pause(config).is_some());
        Kept { system: self.system(names), synchronous, paused, revision: self.revision }
    }

    /// The history of the timeline `of`, as Patroni has written it down.
    pub fn history(&self, names: Names<'_>, of: u32) -> Option<History> {
        history(self.get(&names.history())?, of)
    }
}

/// Reads Patroni's key `history` up to the timeline `of`: lists of timeline, position, reason and more.
fn history(text: &str, of: u32) -> Option<History> {
    let lines: Vec<Vec<serde_json::Value>> = serde_json::from_str(text).ok()?;
    let mut places = Vec::new();
    for line in lines {
        let timeline = u32::try_from(line.first()?.as_u64()?).ok()?;
        let position = match line.get(1)? {
            serde_json::Value::String(text) => parse_position(text)?,
            number => Lsn(number.as_u64()?),
        };
        if timeline < of {
            places.push(Place { timeline, position });
        }
    }
    // The last line is that of the timeline before; without it, this is the history of another.
    (places.last()?.timeline + 1 == of).then_some(History(places))
}

/// Patroni's configuration `config` without maintenance mode; `None` if it is not in that mode, or cannot be read.
fn without_pause(config: &str) -> Option<String> {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(config).ok()?;
    let is_off = |value: &serde_json::Value| matches!(value, serde_json::Value::Null | serde_json::Value::Bool(false));
    let paused = config.remove("pause").is_some_and(|value| !is_off(&value));
    paused.then(|| serde_json::to_string(&config).ok()).flatten()
}

/// Patroni's key `history` of a database with this history. The lines of `old` that are true of it have more in them.
fn written_history(history: &History, old: Option<&str>) -> serde_json::Value {
    let known: Vec<serde_json::Value> = old.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let line = |Place { timeline, position }: &Place| {
        let is_its = |line: &&serde_json::Value| line[0] == *timeline && line[1] == position.0;
        known.iter().find(is_its).cloned().unwrap_or_else(|| json!([timeline, position.0, "pgha-node recover"]))
    };
    history.0.iter().map(line).collect()
}

/// What begins with a new incarnation.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// The recovery.
    pub recovered: &'a Recovered,
    /// Where the WAL of its database ends.
    pub end: Option<Lsn>,
}

impl Beginning<'_> {
    /// The keys of the new incarnation, of those of the old.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    pub fn entries(&self, old: &Contents) -> Result<Vec<Entry>> {
        let Beginning { cluster, recovered, end } = *self;
        let names = Names(cluster);
        let node = &recovered.node;
        let dropped = |key: &str| match key.strip_prefix(&names.patroni()) {
            Some("failover" | "leader") => true,
            Some(name) if name.starts_with("members/") => true,
            // How far the last primary had come, and who was synchronous then.
            Some(name) if name.starts_with("optime/") => recovered.database.is_some(),
            Some("status" | "failsafe" | "history" | "sync" | "initialize") => recovered.database.is_some(),
            Some(_) => false,
            None => key == names.recovered() || (key == names.first()),
        };
        let kept = old.entries.iter().filter(|entry| !entry.leased && !dropped(&entry.key));
        let mut entries: Vec<Entry> = kept.cloned().collect();
        for entry in entries.iter_mut().filter(|entry| entry.key == names.config()) {
            if let Some(config) = without_pause(&entry.value) {
                entry.value = config;
            }
        }
        let json = |value| serde_json::to_string(&value).context("writing the keys of the cluster");
        if let Some(origin) = &recovered.database {
            entries.push(Entry::new(names.initialize(), &origin.system));
            // Nobody else is synchronous with what it has.
            entries.push(Entry::new(names.sync(), json(json!({"leader": node, "sync_standby": null, "quorum": 0}))?));
            // One that has less does not lead in its stead. Slots are made again by what they are for.
            if let Some(Lsn(end)) = end {
                entries.push(Entry::new(names.status(), json(json!({"optime": end, "slots": null}))?));
            }
            let history = written_history(&origin.history, old.get(&names.history()));
            entries.push(Entry::new(names.history(), json(history)?));
            // Before any other node sees the new incarnation, this one holds the leader's key. Its Patroni takes it up.
            entries.push(Entry { leased: true, ..Entry::new(names.leader(), node) });
        }
        let system = recovered.database.as_ref().map(|origin| origin.system.clone()).or_else(|| old.system(names));
        entries.push(Entry::new(names.first(), json(json!({"node": node, "system": system}))?));
        // Where only etcd goes on, an earlier recovery still says which databases belong to the cluster.
        let earlier = || old.recovered(names).and_then(|earlier| earlier.database);
        let written = Recovered { database: recovered.database.clone().or_else(earlier), ..recovered.clone() };
        entries.push(Entry::new(names.recovered(), json(json!(written))?));
        entries.sort();
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::first::First;

    const OLD: &[(&str, &str, bool)] = &[
        ("/pgha/demo/document", r#"{"generation": 4}"#, false),
        ("/pgha/demo/first", r#"{"node": "pg-3", "system": "77"}"#, false),
        ("/service/demo/config", r#"{"ttl": 30}"#, false),
        ("/service/demo/failover", r#"{"leader": "pg-2"}"#, false),
        ("/service/demo/failsafe", "{}", false),
        (
            "/service/demo/history",
            r#"[[1,83886232,"no recovery target specified","2026","pg-1"],[2,167772312,"x"]]"#,
            false,
        ),
        ("/service/demo/initialize", "77", false),
        ("/service/demo/leader", "pg-2", true),
        ("/service/demo/members/pg-2", "{}", true),
        ("/service/demo/members/pg-9", "{}", false),
        ("/service/demo/status", r#"{"optime": 9}"#, false),
        ("/service/demo/sync", r#"{"leader": "pg-2", "sync_standby": "pg-3,pg-1", "quorum": 0}"#, false),
    ];

    fn old() -> Contents {
        let entries = OLD.iter().map(|(key, value, leased)| Entry {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
            leased: *leased,
        });
        Contents { revision: 9, entries: entries.collect() }
    }

    fn recovered(database: bool) -> Recovered {
        let history = History(vec![Place { timeline: 3, position: Lsn(0x9000) }]);
        Recovered {
            node: "pg-1".into(),
            time: 1_795_741_749,
            incarnation: "feed".into(),
            replaces: vec!["1f".into()],
            database: database.then(|| Origin { system: "77".into(), timeline: 67, history }),
        }
    }

    fn beginning(recovered: &Recovered) -> Beginning<'_> {
        Beginning { cluster: "demo", recovered, end: recovered.database.as_ref().map(|_| Lsn(0x9140)) }
    }

    fn keys(old: &Contents, database: bool) -> Vec<String> {
        let recovered = recovered(database);
        let entries = beginning(&recovered).entries(old).unwrap();
        let name = |entry: &Entry| format!("{}{}", entry.key, if entry.leased { " (lease)" } else { "" });
        entries.iter().map(name).collect()
    }

    #[test]
    fn what_was_true_only_then_is_not_taken_along() {
        assert_eq!(
            keys(&old(), true),
            [
                "/pgha/demo/document",
                "/pgha/demo/first",
                "/pgha/demo/recovered",
                "/service/demo/config",
                "/service/demo/history",
                "/service/demo/initialize",
                "/service/demo/leader (lease)",
                "/service/demo/status",
                "/service/demo/sync",
            ]
        );
        assert_eq!(
            keys(&old(), false),
            [
                "/pgha/demo/document",
                "/pgha/demo/first",
                "/pgha/demo/recovered",
                "/service/demo/config",
                "/service/demo/failsafe",
                "/service/demo/history",
                "/service/demo/initialize",
                "/service/demo/status",
                "/service/demo/sync",
            ]
        );
        assert_eq!(
            keys(&Contents::default(), true),
            [
                "/pgha/demo/first",
                "/pgha/demo/recovered",
                "/service/demo/history",
                "/service/demo/initialize",
                "/service/demo/leader (lease)",
                "/service/demo/status",
                "/service/demo/sync",
            ]
        );
        let recovered = recovered(true);
        let entries = beginning(&recovered).entries(&old()).unwrap();
        let sync = entries.iter().find(|entry| entry.key.ends_with("/sync")).unwrap();
        assert_eq!(sync.value, r#"{"leader":"pg-1","sync_standby":null,"quorum":0}"#);
    }

    #[test]
    fn who_has_less_than_the_chosen_node_does_not_lead_by_what_patroni_checks() {
        let value = |old: &Contents, database: bool, key: &str| {
            let entries = beginning(&recovered(database)).entries(old).unwrap();
            let found = entries.into_iter().find(|entry| entry.key == format!("/service/demo/{key}"));
            serde_json::from_str::<serde_json::Value>(&found.unwrap().value).unwrap()
        };
        // Patroni compares a copy's position with `optime`, and its timeline with that after the last of `history`.
        for old in [old(), Contents::default()] {
            assert_eq!(value(&old, true, "status"), json!({"optime": 0x9140, "slots": null}));
            assert_eq!(value(&old, true, "history"), json!([[3, 0x9000, "pgha-node recover"]]));
        }
        let history = History(vec![
            Place { timeline: 1, position: Lsn(83_886_232) },
            Place { timeline: 2, position: Lsn(167_772_313) },
        ]);
        let old_history = old();
        let written = written_history(&history, old_history.get("/service/demo/history"));
        let known = json!([1, 83_886_232, "no recovery target specified", "2026", "pg-1"]);
        assert_eq!(written, json!([known, [2, 167_772_313, "pgha-node recover"]]));
        // Without a database, what is known of the last primary still holds.
        assert_eq!(value(&old(), false, "status"), json!({"optime": 9}));
        assert_eq!(value(&old(), false, "history")[1], json!([2, 167_772_312, "x"]));
    }

    #[test]
    fn maintenance_mode_ends() {
        let config = |text: &str, database: bool| {
            let mut old = old();
            old.entries.iter_mut().find(|entry| entry.key.ends_with("/config")).unwrap().value = text.to_owned();
            let entries = beginning(&recovered(database)).entries(&old).unwrap();
            let config = entries.into_iter().find(|entry| entry.key.ends_with("/config")).unwrap().value;
            (config, old.kept(Names("demo")).paused)
        };
        for database in [true, false] {
            assert_eq!(config(r#"{"ttl": 30, "pause": true}"#, database), (r#"{"ttl":30}"#.into(), true));
            for same in [r#"{"ttl": 30}"#, r#"{"ttl": 30, "pause": false}"#, r#"{"pause": null}"#, "{", "[]"] {
                assert_eq!(config(same, database), (same.to_owned(), false));
            }
        }
    }

    #[test]
    fn the_gate_before_patroni_understands_the_key() {
        let entries = beginning(&recovered(true)).entries(&old()).unwrap();
        let first = entries.iter().find(|entry| entry.key == "/pgha/demo/first").unwrap();
        let read: First = serde_json::from_str(&first.value).unwrap();
        assert_eq!(read, First { node: "pg-1".into(), system: Some("77".into()) });
    }

    #[test]
    fn who_was_synchronous_is_read() {
        let names = Names("demo");
        let kept = old().kept(names);
        assert_eq!(
            kept,
            Kept {
                system: Some("77".into()),
                synchronous: vec!["pg-2".into(), "pg-3".into(), "pg-1".into()],
                paused: false,
                revision: 9
            }
        );
        let mut quorum = old();
        let sync = quorum.entries.iter_mut().find(|entry| entry.key.ends_with("/sync")).unwrap();
        sync.value = r#"{"leader": "pg-2", "sync_standby": "pg-3,pg-1", "quorum": 1}"#.into();
        assert_eq!(quorum.kept(names).synchronous, ["pg-2"]);
        assert_eq!(Contents::default().kept(names), Kept::default());
        let mut begun = old();
        begun.entries.retain(|entry| !entry.key.ends_with("/initialize"));
        assert_eq!(begun.system(names).as_deref(), Some("77"));
    }

    #[test]
    fn where_only_etcd_goes_on_the_database_of_the_recovery_before_counts() {
        let names = Names("demo");
        let earlier = Recovered { incarnation: "before".into(), ..recovered(true) };
        let mut old = old();
        old.entries.push(Entry::new(names.recovered(), serde_json::to_string(&earlier).unwrap()));
        let written = |recovered: &Recovered| {
            let entries = beginning(recovered).entries(&old).unwrap();
            Contents { revision: 1, entries }.recovered(names).unwrap()
        };
        let etcd = recovered(false);
        assert_eq!(written(&etcd), Recovered { database: earlier.database.clone(), ..etcd });
        let mut new = recovered(true);
        new.database.as_mut().unwrap().timeline = 131;
        assert_eq!(written(&new), new);
    }

    #[test]
    fn the_history_of_patroni_is_that_of_one_timeline() {
        let names = Names("demo");
        let places = |of| old().history(names, of).map(|history| history.0.len());
        assert_eq!([places(1), places(2), places(3), places(4)], [None, Some(1), Some(2), None]);
        assert_eq!(old().history(names, 2).unwrap().left(1), Some(Lsn(83_886_232)));
    }
}
