//! What this node remembers from boot to boot, and whether the data on its disks is its cluster's.

use super::{etcd_data::Ids, join::Begun};
use crate::{
    error::Fault,
    files::{NewFile, read_text},
    spec::{ClusterSpec, keys::Keys, scope::EtcdStart},
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{fs::Permissions, io::Write as _, net::IpAddr, os::unix::fs::PermissionsExt as _, path::Path};

/// Where it remembers.
pub const STATE_PATH: &str = "/var/lib/pgha/state.json";
/// etcd's data.
pub const ETCD_DATA: &str = "/var/lib/etcd/default";
/// PostgreSQL's data, one folder for each major version.
pub const POSTGRESQL_DATA: &str = "/var/lib/postgresql";

/// What is remembered. All of it can be derived again, but for whose data this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The version of this shape: 1.
    pub schema: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's derived identity.
    pub identity: String,
    /// This node's name.
    pub node: String,
    /// This node's address.
    pub address: IpAddr,
    /// How its etcd member started.
    pub etcd: EtcdStart,
    /// The ids that its etcd member began with, where they were kept.
    #[serde(default)]
    pub etcd_ids: Option<Ids>,
    /// Whether its etcd member has ever answered. An older version did not keep it: it has, for all that is known.
    #[serde(default = "yes")]
    pub etcd_seen: bool,
    /// Whether every service has been ready once.
    pub complete: bool,
}

fn yes() -> bool {
    true
}

impl State {
    /// The state of a node that is about to start its etcd member for the first time.
    pub fn new(spec: &ClusterSpec, own: usize, etcd: EtcdStart) -> State {
        State {
            schema: 1,
            cluster: spec.cluster.clone(),
            identity: Keys::new(spec).identity(),
            node: spec.members[own].name.clone(),
            address: spec.members[own].address,
            etcd,
            etcd_ids: None,
            etcd_seen: false,
            complete: false,
        }
    }

    /// How its etcd member began.
    pub fn begun(&self) -> Begun {
        Begun { start: self.etcd.clone(), ids: self.etcd_ids, seen: self.etcd_seen }
    }

    /// The same with another beginning of its etcd member.
    pub fn begin(self, begun: Begun) -> State {
        State { etcd: begun.start, etcd_ids: begun.ids, etcd_seen: begun.seen, ..self }
    }

    /// The same with the node's name and address in `spec`.
    pub fn named(self, spec: &ClusterSpec, own: usize) -> State {
        State { node: spec.members[own].name.clone(), address: spec.members[own].address, ..self }
    }

    /// Reads it from `path`; `None` at first boot.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Option<State>> {
        if !path.try_exists().with_context(|| format!("looking for {}", path.display()))? {
            return Ok(None);
        }
        let text = read_text(path)?;
        serde_json::from_str(&text).map(Some).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes it to `path`, unless it says so already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        if State::load(path).ok().flatten().as_ref() == Some(self) {
            return Ok(());
        }
        let mut new = NewFile::beside(path)?;
        new.write_all(serde_json::to_string_pretty(self)?.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        // Nothing in it is secret, and Patroni's callbacks read it.
        new.file().set_permissions(Permissions::from_mode(0o644))?;
        new.publish(path)
    }
}

/// Which data this machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// etcd's.
    pub etcd: bool,
    /// A PostgreSQL server's.
    pub postgresql: bool,
}

impl Data {
    /// Looks for data below `root`.
    pub fn look(root: &Path) -> Data {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let servers = std::fs::read_dir(below(POSTGRESQL_DATA)).into_iter().flatten().flatten();
        Data {
            etcd: below(ETCD_DATA).join("member").exists(),
            postgresql: servers.into_iter().any(|version| version.path().join("main/PG_VERSION").exists()),
        }
    }

    fn words(self) -> &'static str {
        match (self.etcd, self.postgresql) {
            (true, true) => "etcd's and PostgreSQL's data",
            (true, false) => "etcd's data",
            _ => "PostgreSQL's data",
        }
    }
}

/// Refuses a document whose cluster is not that of the data on this machine.
///
/// # Errors
/// A wrong request, where there is data that belongs to another cluster or node, or to nobody known.
pub fn claim(spec: &ClusterSpec, own: usize, state: Option<&State>, data: Data) -> Result<(), Fault> {
    if data == Data::default() {
        return Ok(());
    }
    let what = data.words();
    let identity = Keys::new(spec).identity();
    let fault = match state {
        None => format!("there is {what} on this machine, and nothing says of which cluster it is"),
        Some(state) if state.cluster != spec.cluster => {
            format!(
                "{what} on this machine is that of the cluster `{}`, the document is that of `{}`",
                state.cluster, spec.cluster
            )
        }
        Some(state) if state.identity != identity => {
            format!("{what} on this machine was made with another secret of the cluster `{}`", state.cluster)
        }
        Some(state) if state.node != spec.members[own].name => format!(
            "{what} on this machine is that of the node `{}`, the document makes it `{}`",
            state.node, spec.members[own].name
        ),
        Some(_) => return Ok(()),
    };
    Err(Fault::request(fault).hint(format!(
        "give the node its own document again, or, to lose the data: remove {ETCD_DATA}, {POSTGRESQL_DATA}/*/main and {STATE_PATH}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Secret, samples};

    const BOTH: Data = Data { etcd: true, postgresql: true };

    #[test]
    fn what_is_stored_is_read_back_and_not_written_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let spec = samples::three();
        let state = State::new(&spec, 1, EtcdStart::together(&spec));
        state.store(&path).unwrap();
        assert_eq!(State::load(&path).unwrap().as_ref(), Some(&state));
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        state.store(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
        std::fs::write(&path, "{").unwrap();
        assert!(State::load(&path).is_err());
    }

    #[test]
    fn a_state_of_an_older_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let old = r#"{"schema": 1, "cluster": "demo", "identity": "12d36ecdd9623cec", "node": "pg-1", "address": "10.0.0.11",
            "etcd": {"existing": false, "members": [["pg-1", "https://10.0.0.11:2380"]]}, "complete": true}"#;
        std::fs::write(&path, old).unwrap();
        let state = State::load(&path).unwrap().unwrap();
        assert_eq!((state.etcd.token.as_str(), state.etcd_ids, state.etcd_seen), ("", None, true));
        assert!(state.begun().seen && state.complete);
    }

    #[test]
    fn data_of_another_cluster_is_refused() {
        let spec = samples::three();
        let state = State::new(&spec, 1, EtcdStart::together(&spec));
        assert!(claim(&spec, 1, Some(&state), BOTH).is_ok());
        assert!(claim(&spec, 1, None, Data::default()).is_ok());
        let mut renamed = spec.clone();
        renamed.cluster = "other".into();
        let mut rekeyed = spec.clone();
        rekeyed.secret = Secret::new("CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=");
        let text = [
            claim(&renamed, 1, Some(&state), BOTH),
            claim(&rekeyed, 1, Some(&state), Data { etcd: true, postgresql: false }),
            claim(&spec, 0, Some(&state), Data { etcd: false, postgresql: true }),
            claim(&spec, 1, None, BOTH),
        ]
        .map(|outcome| outcome.unwrap_err().to_string());
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn data_is_found_where_the_services_keep_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Data::look(root.path()), Data::default());
        std::fs::create_dir_all(root.path().join("var/lib/etcd/default/member")).unwrap();
        std::fs::create_dir_all(root.path().join("var/lib/postgresql/17/main")).unwrap();
        assert_eq!(Data::look(root.path()), Data { etcd: true, postgresql: false });
        std::fs::write(root.path().join("var/lib/postgresql/17/main/PG_VERSION"), "17").unwrap();
        assert_eq!(Data::look(root.path()), BOTH);
    }
}
