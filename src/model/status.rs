//! What a node reports of itself: the JSON of `pgha-node status --json`, which the builder and the tests read.
//!
//! Fields are added and never renamed. A reader takes the default for one that an older node does not send, and leaves
//! out what a newer node sends besides.

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The progress of its first boot.
    #[serde(flatten)]
    pub progress: BootProgress,
    /// Whether every service was ready once.
    #[serde(default)]
    pub complete: bool,
    /// Each service, in the order in which they start.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// What Patroni reports of the node; `None` if it does not answer.
    #[serde(default)]
    pub postgresql: Option<PostgresqlStatus>,
    /// The cluster's etcd as the node sees it; `None` if its own member does not answer.
    #[serde(default)]
    pub etcd: Option<EtcdStatus>,
    /// Whether the node holds the virtual address; `None` if the cluster has none.
    #[serde(default)]
    pub vip: Option<bool>,
    /// What a person should know, the serious first.
    #[serde(default)]
    pub attention: Vec<Attention>,
    /// Data that were set aside.
    #[serde(default)]
    pub asides: Vec<Aside>,
}

impl NodeStatus {
    /// Whether the node is ready, all its services run, and nothing serious is reported of it.
    pub fn is_good(&self) -> bool {
        self.progress.phase == Phase::Ready
            && self.services.iter().all(|service| service.settled)
            && self.etcd.as_ref().is_none_or(|etcd| etcd.leader.is_some() && etcd.alarms.is_empty())
            && !self.attention.iter().any(|attention| attention.serious)
    }
}

/// The kind of state in which the first boot is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is working on the step.
    Working,
    /// It waits for something outside of the node.
    Waiting,
    /// Every service is ready.
    Ready,
    /// It failed and will be tried again.
    Failed,
    /// It was refused and will not be tried again.
    Refused,
    /// Nothing has been reported yet, or something that this program does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The phase as a word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Unknown => "unknown",
            Phase::Working => "working",
            Phase::Waiting => "waiting",
            Phase::Ready => "ready",
            Phase::Failed => "failed",
            Phase::Refused => "refused",
        }
    }
}

/// The progress of a first boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootProgress {
    /// The kind of state.
    pub phase: Phase,
    /// What is being done.
    pub step: String,
    /// What it waits for, or why it failed; may have several lines.
    pub reason: String,
    /// The time of the last change of phase, step or reason, in seconds since 1970.
    pub since: u64,
    /// The cluster's name; empty until the document has been read.
    pub cluster: String,
    /// The member's name; empty until the node has found itself in the document.
    pub node: String,
    /// Doubts about the document.
    pub warnings: Vec<String>,
}

/// A service of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The overlay's name.
    pub name: String,
    /// Whether the service is running, or has nothing to do on this node.
    pub settled: bool,
    /// Its state in systemd's words, such as `active (running)`.
    pub state: String,
}

/// What Patroni reports of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlStatus {
    /// `primary`, `replica` or another of Patroni's roles.
    pub role: String,
    /// `running`, `streaming` or another of Patroni's states.
    pub state: String,
    /// Whether commits wait for this replica.
    pub synchronous: bool,
    /// How far it is behind the primary, in bytes; `None` if Patroni does not know.
    #[serde(default)]
    pub lag: Option<u64>,
    /// The timeline of its WAL.
    #[serde(default)]
    pub timeline: Option<u64>,
    /// Whether changed parameters wait for a restart of the server.
    #[serde(default)]
    pub pending_restart: bool,
}

/// The cluster's etcd, as a node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdStatus {
    /// The leader's name; `None` without a leader.
    pub leader: Option<String>,
    /// The number of members that have started, and of all members; without a leader 0, and how many there were when it
    /// began.
    pub members: (usize, usize),
    /// The alarms that are raised, such as `NOSPACE`.
    #[serde(default)]
    pub alarms: Vec<String>,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// What distinguishes it from all others and stays the same as long as it lasts, such as `disk/full`.
    pub key: String,
    /// A sentence; numbers in it may change while it lasts.
    pub text: String,
    /// Whether the node is not as good as it should be until this ends: `pgha-node status` ends with 1 then.
    pub serious: bool,
    /// When it began, in seconds since 1970.
    #[serde(default)]
    pub since: u64,
}

impl Attention {
    /// Something to know that does not impair the node.
    pub fn notice(key: &str, text: impl Into<String>) -> Attention {
        Attention { key: key.to_owned(), text: text.into(), serious: false, since: 0 }
    }

    /// Something that impairs the node.
    pub fn serious(key: &str, text: impl Into<String>) -> Attention {
        Attention { serious: true, ..Attention::notice(key, text) }
    }
}

/// Data that were set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The folder's path now.
    pub path: PathBuf,
    /// The folder's path before.
    pub was: PathBuf,
    /// When it was set aside, in seconds since 1970.
    pub since: i64,
    /// Why, in a word or two.
    pub why: String,
    /// The disk space that it takes.
    #[serde(flatten)]
    pub size: AsideSize,
    /// Which database it is, for a person; `None` if it is not one.
    #[serde(default)]
    pub what: Option<String>,
    /// The system identifier of the database.
    #[serde(default)]
    pub system: Option<String>,
    /// The newest timeline of the database.
    #[serde(default)]
    pub timeline: Option<u32>,
}

impl Aside {
    /// The folder's name, without those above.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The disk space of a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideSize {
    /// In bytes.
    pub bytes: u64,
    /// Whether there is more that was not counted.
    pub more: bool,
}

impl fmt::Display for AsideSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB"];
        let power = (1..units.len()).rev().find(|power| self.bytes >> (10 * (power + 1)) > 0).unwrap_or(0);
        let value = self.bytes as f64 / (1_u64 << (10 * (power + 1))) as f64;
        write!(f, "{}{value:.1} {}", if self.more { "more than " } else { "" }, units[power])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_version_is_read() {
        let old: NodeStatus = serde_json::from_str(r#"{"phase": "ready", "services": [], "complete": true}"#).unwrap();
        assert_eq!((old.progress.phase, old.complete, old.etcd), (Phase::Ready, true, None));
        let new: NodeStatus = serde_json::from_str(r#"{"phase": "meditating", "mood": {"good": true}}"#).unwrap();
        assert_eq!(new.progress.phase, Phase::Unknown);
    }

    #[test]
    fn phases_are_the_same_words_everywhere() {
        for phase in [Phase::Working, Phase::Waiting, Phase::Ready, Phase::Failed, Phase::Refused, Phase::Unknown] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.word());
        }
    }

    #[test]
    fn sizes_read_well() {
        let text = |bytes| AsideSize { bytes, more: false }.to_string();
        assert_eq!(
            [text(512), text(8 << 20), text(3 << 29), text(5 << 50)],
            ["0.5 KiB", "8.0 MiB", "1.5 GiB", "5120.0 TiB"]
        );
        assert_eq!(AsideSize { bytes: 1 << 30, more: true }.to_string(), "more than 1.0 GiB");
    }
}
