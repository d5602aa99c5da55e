//! Reads from Patroni on this node the state of its server and of the cluster.

use super::World;
use crate::model::{
    self,
    keys::Keys,
    scope::{host_port, ports},
};
use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::time::Duration;

/// For an answer of Patroni.
const PATIENCE: Duration = Duration::from_secs(5);
/// For something that Patroni does before it answers; a switchover takes as long as a server takes to stop.
const LONG_PATIENCE: Duration = Duration::from_secs(90);

/// This node's server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Server {
    /// `primary`, `replica`, `uninitialized` …
    pub role: String,
    /// `running`, `starting`, `creating replica` …
    pub state: String,
    /// `streaming` or `in archive recovery`; nothing on a primary and on a replica that does neither.
    pub replication_state: Option<String>,
    /// How far it has come.
    pub xlog: Positions,
    /// Whether Patroni is paused.
    pub pause: bool,
    /// Whether the cluster has no leader.
    pub cluster_unlocked: bool,
}

/// Positions in the WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Positions {
    /// A replica's, of what it has received.
    pub received_location: Option<u64>,
    /// A replica's, of what it has replayed.
    pub replayed_location: Option<u64>,
}

impl Server {
    /// Whether it runs as a primary; Patroni 3 says `master`.
    pub fn leads(&self) -> bool {
        self.state == "running" && matches!(self.role.as_str(), "primary" | "master" | "standby_leader")
    }

    /// Whether it is a replica that streams.
    pub fn streams(&self) -> bool {
        self.replication_state.as_deref() == Some("streaming")
    }

    /// Whether it does its part: as a primary, as a replica that streams, or as one that has nobody to stream from.
    pub fn is_ready(&self) -> bool {
        self.leads() || self.streams() || (self.state == "running" && self.cluster_unlocked)
    }

    /// How far a replica has come, if that is known.
    pub fn position(&self) -> Option<u64> {
        self.xlog.received_location.max(self.xlog.replayed_location)
    }

    /// How it stands, for a person.
    pub fn words(&self) -> String {
        match &self.replication_state {
            Some(state) => format!("PostgreSQL is {state}"),
            None if self.state == "running" && !self.leads() => "PostgreSQL runs and does not stream".to_owned(),
            None => format!("PostgreSQL is {} ({})", self.state, self.role),
        }
    }
}

/// The cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// Its members.
    pub members: Vec<Member>,
    /// Whether Patroni is paused.
    pub pause: bool,
}

/// A member of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// `leader`, `replica`, `sync_standby` …
    pub role: String,
    /// `running`, `streaming` …
    pub state: String,
    /// How far it is behind the primary, in bytes; a word where Patroni does not know.
    pub lag: Option<serde_json::Value>,
}

impl Cluster {
    /// The primary, if one runs.
    pub fn primary(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.role == "leader" && member.state == "running")
    }
}

impl World {
    fn ask_patroni<T: serde::de::DeserializeOwned>(&self, member: &model::Member, path: &str) -> Result<T> {
        let url = format!("https://{}/{path}", host_port(member.address, ports::PATRONI));
        let asking = || format!("asking Patroni on {}", member.name);
        let mut answer = self.credentials.agent(PATIENCE)?.get(&url).call().with_context(asking)?;
        answer.body_mut().read_json().with_context(|| format!("reading the answer of Patroni on {}", member.name))
    }

    /// Has Patroni on this node do something; returns what it says.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn tell_patroni(&self, path: &str, body: &serde_json::Value) -> Result<String> {
        let keys = Keys::new(&self.node.spec);
        let login = STANDARD.encode(format!("patroni:{}", keys.rest().expose()));
        let url = format!("https://{}/{path}", host_port(self.me().address, ports::PATRONI));
        let mut answer = self
            .credentials
            .agent(LONG_PATIENCE)?
            .post(&url)
            .header("Authorization", format!("Basic {login}"))
            .header("Content-Type", "application/json")
            .send(body.to_string())
            .with_context(|| format!("telling Patroni: {path}"))?;
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        ensure!(answer.status().is_success(), "Patroni refuses ({path}): {} {}", answer.status(), text.trim());
        Ok(text)
    }

    /// This node's server.
    ///
    /// # Errors
    /// When Patroni on this node does not answer, or not in its words.
    pub fn server(&self) -> Result<Server> {
        self.ask_patroni(self.me(), "patroni")
    }

    /// The cluster, as Patroni on this node knows it, or else another.
    ///
    /// # Errors
    /// When none answers.
    pub fn cluster(&self) -> Result<Cluster> {
        let own = self.ask_patroni(self.me(), "cluster");
        own.or_else(|error| self.others().find_map(|member| self.ask_patroni(member, "cluster").ok()).ok_or(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Patroni 4.0.7 answers.
    #[test]
    fn servers_are_read() {
        let replica: Server = serde_json::from_str(
            r#"{"state": "running", "postmaster_start_time": "2026-11-27 01:00:00.000000+00:00", "role": "replica",
                "server_version": 170012, "xlog": {"received_location": 83886656, "replayed_location": 83886600,
                "replayed_timestamp": null, "paused": false}, "sync_standby": true, "timeline": 2,
                "replication_state": "streaming", "dcs_last_seen": 1795741749,
                "patroni": {"version": "4.0.7", "scope": "demo", "name": "pg-2"}}"#,
        )
        .unwrap();
        assert!(replica.streams() && !replica.leads());
        assert_eq!(replica.position(), Some(83886656));
        let primary: Server =
            serde_json::from_str(r#"{"state": "running", "role": "primary", "xlog": {"location": 83886656}}"#).unwrap();
        assert!(primary.leads() && !primary.streams());
        let stuck: Server = serde_json::from_str(r#"{"state": "running", "role": "replica"}"#).unwrap();
        assert_eq!(stuck.words(), "PostgreSQL runs and does not stream");
        assert!(replica.is_ready() && primary.is_ready() && !stuck.is_ready());
        assert!(Server { cluster_unlocked: true, ..stuck }.is_ready(), "nobody can stream from nobody");
        let cloning: Server =
            serde_json::from_str(r#"{"state": "creating replica", "role": "replica", "pause": true}"#).unwrap();
        assert_eq!((cloning.words().as_str(), cloning.pause), ("PostgreSQL is creating replica (replica)", true));
        assert_eq!(cloning.position(), None);
    }

    #[test]
    fn a_cluster_is_read() {
        let cluster: Cluster = serde_json::from_str(
            r#"{"members": [
                {"name": "pg-1", "role": "leader", "state": "running", "api_url": "https://10.0.0.11:8008/patroni",
                 "host": "10.0.0.11", "port": 5432, "timeline": 2},
                {"name": "pg-2", "role": "sync_standby", "state": "streaming", "lag": 0},
                {"name": "pg-3", "role": "replica", "state": "start failed", "lag": "unknown"}], "scope": "demo"}"#,
        )
        .unwrap();
        assert_eq!(cluster.primary().map(|member| member.name.as_str()), Some("pg-1"));
        assert!(Cluster::default().primary().is_none());
    }
}
