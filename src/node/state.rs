//! The state that this node keeps from boot to boot, and whether the data on its disks belong to its cluster.

use super::{
    database::{self, Held},
    etcd_data::Ids,
    promise::Begun,
};
use crate::{
    error::UserError,
    files::{NewFile, Presence, read_text},
    model::{Node, keys::Keys, scope::EtcdStart},
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
    pub fn new(node: &Node, etcd: EtcdStart) -> State {
        State {
            schema: 1,
            cluster: node.spec.cluster.clone(),
            identity: Keys::new(&node.spec).identity(),
            node: node.member().name.clone(),
            address: node.member().address,
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

    /// The same before a person takes etcd's data away: for all that is known, its member has voted, and is never started
    /// again without what it has written.
    pub fn without_etcd(self) -> State {
        State { etcd_seen: true, ..self }
    }

    /// The same with the name and address that `node` has in its document.
    pub fn named(self, node: &Node) -> State {
        State { node: node.member().name.clone(), address: node.member().address, ..self }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// etcd's.
    pub etcd: Presence<()>,
    /// PostgreSQL's, of each major version of which there are any.
    pub postgresql: Presence<Vec<Held>>,
}

impl Data {
    /// Looks for data below `root`.
    pub fn look(root: &Path) -> Data {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        Data {
            etcd: Presence::of(&below(ETCD_DATA).join("member")).map(drop),
            postgresql: database::all(&below(POSTGRESQL_DATA)),
        }
    }

    /// Which there are; nothing if there are none.
    ///
    /// # Errors
    /// Failed work, to be tried later, when that is not known.
    fn words(&self) -> Result<Option<&'static str>, UserError> {
        let (etcd, postgresql) = (self.etcd.clone().known()?, self.postgresql.clone().known()?);
        Ok(match (etcd, postgresql) {
            (Some(()), Some(_)) => Some("etcd's and PostgreSQL's data"),
            (Some(()), None) => Some("etcd's data"),
            (None, Some(_)) => Some("PostgreSQL's data"),
            (None, None) => None,
        })
    }

    /// What a node that was complete does not have any more, such as the data of a volume that is not mounted.
    pub fn missing(&self, state: Option<&State>) -> Option<String> {
        state.filter(|state| state.complete)?;
        let lost = [(self.etcd.is_absent(), ETCD_DATA), (self.postgresql.is_absent(), POSTGRESQL_DATA)];
        let lost: Vec<&str> = lost.into_iter().filter(|(lost, _)| *lost).map(|(_, path)| path).collect();
        let them = lost.join(" and ");
        (!lost.is_empty()).then(|| {
            format!("this node was complete once, and there are no data at {them} any more: is a volume not mounted?")
        })
    }
}

/// Refuses a document whose cluster is not that of the data on this machine, and data that the image's PostgreSQL, whose
/// major version is `version`, cannot use.
///
/// # Errors
/// A wrong request, where there are data that belong to another cluster or node, or to nobody known, or are of another
/// version; failed work, to be tried later, where it is not known what there is.
pub fn verify_ownership(
    node: &Node,
    state: Option<&State>,
    data: &Data,
    version: Option<u32>,
) -> Result<(), UserError> {
    let Some(what) = data.words()? else { return Ok(()) };
    let (spec, name) = (&node.spec, &node.member().name);
    let identity = Keys::new(spec).identity();
    let problem = match state {
        None => format!("there are {what} on this machine, and nothing says of which cluster they are"),
        Some(state) if state.cluster != spec.cluster => {
            format!(
                "{what} on this machine are those of the cluster `{}`, the document is that of `{}`",
                state.cluster, spec.cluster
            )
        }
        Some(state) if state.identity != identity => {
            format!("{what} on this machine were made with another secret of the cluster `{}`", state.cluster)
        }
        Some(state) if state.node != *name => {
            format!("{what} on this machine are those of the node `{}`, the document makes it `{}`", state.node, name)
        }
        Some(_) => return usable(data, version),
    };
    Err(UserError::usage(problem).hint(
        "give the node its own document again. If the data are to be this node's, such as those of a volume that was kept: \
         `pgha-node claim`. If they are not wanted: `pgha-node aside make database` and `pgha-node aside make etcd` set them aside. Then: systemctl restart pgha-node",
    ))
}

/// Refuses databases of other major versions where there is none of the image's.
fn usable(data: &Data, version: Option<u32>) -> Result<(), UserError> {
    let (Presence::Present(held), Some(version)) = (&data.postgresql, version) else { return Ok(()) };
    let Some(other) = held.iter().rfind(|held| held.version != version) else { return Ok(()) };
    if held.iter().any(|held| held.version == version) {
        return Ok(());
    }
    let (theirs, folder) = (other.version, other.folder.display());
    Err(UserError::usage(format!(
        "there is a database of PostgreSQL {theirs} on this machine, and this image has PostgreSQL {version}, which cannot \
         use it: {}",
        other.database.words()
    ))
    .hint(format!(
        "it is not changed. Boot an image with PostgreSQL {theirs} again. Only where the cluster's primary runs PostgreSQL \
         {version} already: `pgha-node aside make {folder}`, then `systemctl restart pgha-node`, and this node gets a copy"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::ErrorKind,
        files::Doubt,
        model::{ClusterSpec, Secret, samples},
        node::database::Database,
    };

    /// Data of etcd, if `etcd`, and of these versions of PostgreSQL.
    fn data(etcd: bool, versions: &[u32]) -> Data {
        let held = |version: &u32| Held {
            version: *version,
            folder: format!("{POSTGRESQL_DATA}/{version}/main").into(),
            database: Database::Damaged("it has no global/pg_control".into()),
        };
        let held: Vec<Held> = versions.iter().map(held).collect();
        Data {
            etcd: if etcd { Presence::Present(()) } else { Presence::Absent },
            postgresql: if held.is_empty() { Presence::Absent } else { Presence::Present(held) },
        }
    }

    #[test]
    fn what_is_stored_is_read_back_and_not_written_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let spec = samples::three();
        let state = State::new(&Node::new(spec.clone(), 1), EtcdStart::together(&spec));
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
    fn a_member_whose_data_a_person_takes_away_is_not_started_again_as_it_began() {
        let spec = samples::three();
        let state = State::new(&Node::new(spec.clone(), 1), EtcdStart::together(&spec));
        let own = crate::node::promise::Own {
            etcd: crate::node::etcd_data::EtcdData::Absent,
            idle: false,
            database: crate::node::promise::Found::Absent,
            begun: Some(state.begun()),
            marked: true,
            complete: false,
            promises: crate::node::promise::Promises::default(),
        };
        assert!(own.may_start(&state.begun()), "it was cut off before its etcd had started");
        assert!(!own.may_start(&state.without_etcd().begun()));
    }

    #[test]
    fn data_of_another_cluster_is_refused() {
        let spec = samples::three();
        let state = State::new(&Node::new(spec.clone(), 1), EtcdStart::together(&spec));
        let verified = |spec: &ClusterSpec, index, state: Option<&State>, data: Data| {
            super::verify_ownership(&Node::new(spec.clone(), index), state, &data, Some(17))
        };
        assert!(verified(&spec, 1, Some(&state), data(true, &[17])).is_ok());
        assert!(verified(&spec, 1, None, data(false, &[])).is_ok());
        let mut renamed = spec.clone();
        renamed.cluster = "other".into();
        let mut rekeyed = spec.clone();
        rekeyed.secret = Secret::new("CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=");
        let text = [
            verified(&renamed, 1, Some(&state), data(true, &[17])),
            verified(&rekeyed, 1, Some(&state), data(true, &[])),
            verified(&spec, 0, Some(&state), data(false, &[17])),
            verified(&spec, 1, None, data(true, &[17])),
        ]
        .map(|outcome| outcome.unwrap_err().to_string());
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn data_of_another_version_are_refused_unless_there_are_some_of_the_image_too() {
        let spec = samples::three();
        let state = State::new(&Node::new(spec.clone(), 1), EtcdStart::together(&spec));
        let verified = |versions: &[u32]| {
            super::verify_ownership(&Node::new(spec.clone(), 1), Some(&state), &data(true, versions), Some(18))
        };
        let problem = verified(&[16, 17]).unwrap_err();
        assert_eq!(problem.kind, ErrorKind::Usage);
        insta::assert_snapshot!(crate::error::report(&problem.into()));
        assert!(verified(&[17, 18]).is_ok());
        assert!(verified(&[]).is_ok());
    }

    #[test]
    fn what_is_not_known_is_looked_at_later_and_never_taken_for_nothing() {
        let spec = samples::three();
        let unknown = || Doubt::new("looking at /var/lib/etcd/default/member: Structure needs cleaning (os error 117)");
        for data in [
            Data { etcd: Presence::Unknown(unknown()), ..data(false, &[]) },
            Data { postgresql: Presence::Unknown(unknown()), ..data(true, &[]) },
        ] {
            let problem = verify_ownership(&Node::new(spec.clone(), 1), None, &data, Some(17)).unwrap_err();
            assert_eq!((problem.kind, problem.message), (ErrorKind::Runtime, unknown().to_string()));
        }
    }

    #[test]
    fn a_complete_node_without_data_says_what_is_missing() {
        let spec = samples::three();
        let mut state = State::new(&Node::new(spec.clone(), 1), EtcdStart::together(&spec));
        assert_eq!(data(false, &[]).missing(Some(&state)), None);
        state.complete = true;
        assert_eq!(data(true, &[17]).missing(Some(&state)), None);
        assert_eq!(data(false, &[]).missing(None), None);
        let text = data(false, &[]).missing(Some(&state)).unwrap();
        assert!(text.contains("no data at /var/lib/etcd/default and /var/lib/postgresql any more"), "{text}");
    }

    #[test]
    fn data_is_found_where_the_services_keep_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Data::look(root.path()), data(false, &[]));
        std::fs::create_dir_all(root.path().join("var/lib/etcd/default/member")).unwrap();
        std::fs::create_dir_all(root.path().join("var/lib/postgresql/17/main")).unwrap();
        assert_eq!(Data::look(root.path()), data(true, &[]));
        database::samples::database(&root.path().join("var/lib/postgresql/17/main"), 7);
        let found = Data::look(root.path());
        assert!(matches!(&found.postgresql, Presence::Present(held) if held.len() == 1), "{found:?}");
        // What cannot be looked at is neither there nor not: a loop of links stands in for a damaged inode.
        std::fs::remove_dir_all(root.path().join("var/lib/etcd/default")).unwrap();
        std::os::unix::fs::symlink("default", root.path().join("var/lib/etcd/default")).unwrap();
        assert!(matches!(Data::look(root.path()).etcd, Presence::Unknown(_)));
    }
}
