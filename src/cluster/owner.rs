//! The owner of a container or network: all users of a machine share an engine, and may use the same names.
//!
//! Each container and network that this program makes has labels: the cluster's name, the node's, who made it, and the
//! cluster's creation id. That id is random, drawn by the call that makes the cluster and kept in the cluster's record,
//! so it alone says that a thing belongs to the cluster of a state folder. A name says nothing: two users may choose the
//! same. Things made before there were creation ids prove themselves by the secret in the document that they hold.

use super::record::{Record, StateDir};
use crate::{accounts, model::keys::Keys, seed::Seeds};
use anyhow::{Result, anyhow};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{collections::BTreeMap, fmt, path::Path};

/// The label of everything of a cluster; its value is the cluster's name.
pub const CLUSTER_LABEL: &str = "io.pgha.cluster";
/// The label of a node; its value is the node's name.
pub const NODE_LABEL: &str = "io.pgha.node";
/// The label with the creation id of the cluster.
pub const CREATION_LABEL: &str = "io.pgha.creation";
/// The label that names the user who made it.
pub const OWNER_LABEL: &str = "io.pgha.owner";
/// The label that names the machine of that user.
pub const HOST_LABEL: &str = "io.pgha.host";
/// The label that names the folder where that user's clusters are remembered.
pub const FOLDER_LABEL: &str = "io.pgha.folder";

/// The labels of a thing.
pub type Labels = BTreeMap<String, String>;

/// Somebody who makes clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user: `ada (1000)`.
    pub user: String,
    /// The machine's name.
    pub host: String,
    /// The folder where the clusters are remembered.
    pub folder: String,
}

impl Owner {
    /// Whoever runs this program, with the clusters of `state_dir`.
    pub fn of_this_process(state_dir: &StateDir) -> Owner {
        let id = rustix::process::getuid().as_raw();
        let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Owner {
            user: accounts::name_of(&text, id).map_or_else(|| id.to_string(), |name| format!("{name} ({id})")),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            folder: absolute(state_dir.place()),
        }
    }

    /// Who made the thing with these labels; `None` if they do not tell.
    fn of(labels: &Labels) -> Option<Owner> {
        let label = |name: &str| labels.get(name).cloned();
        Some(Owner {
            user: label(OWNER_LABEL)?,
            host: label(HOST_LABEL).unwrap_or_default(),
            folder: label(FOLDER_LABEL)?,
        })
    }

    /// Whether it is the same user with the same folder. Machines change their names.
    fn is(&self, other: &Owner) -> bool {
        self.user == other.user && self.folder == other.folder
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}, whose clusters are remembered in {}", self.user, self.host, self.folder)
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// What a state folder may call its own: one cluster, and whoever uses the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's creation id.
    pub creation: String,
    /// Says which secret the cluster has: the document's identity.
    pub identity: String,
    /// Whether the record was rebuilt from what the engine had.
    pub adopted: bool,
    /// Who makes what is made now.
    pub owner: Owner,
}

/// Whose a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Title {
    /// This cluster's, and made for this state folder.
    Mine,
    /// This cluster's, but made by another user or for another state folder.
    Adopted,
    /// Nothing says that it is this cluster's.
    Foreign,
}

impl Claim {
    /// The claim of the cluster that `record` and `seeds` describe.
    pub fn new(state_dir: &StateDir, record: &Record, seeds: &Seeds) -> Claim {
        let identity = Keys::new(&seeds.spec).identity();
        Claim {
            cluster: seeds.spec.cluster.clone(),
            // One that was made before there were creation ids has the same whenever it is asked for.
            creation: record.creation.clone().unwrap_or_else(|| format!("of-{identity}")),
            identity,
            adopted: record.adopted,
            owner: Owner::of_this_process(state_dir),
        }
    }

    /// The labels of what is made for the cluster.
    pub fn labels(&self) -> Labels {
        [
            (CLUSTER_LABEL, &self.cluster),
            (CREATION_LABEL, &self.creation),
            (OWNER_LABEL, &self.owner.user),
            (HOST_LABEL, &self.owner.host),
            (FOLDER_LABEL, &self.owner.folder),
        ]
        .map(|(label, value)| (label.to_owned(), value.clone()))
        .into()
    }

    /// Whose the thing with these labels is. Where there is no creation id, `proof` is asked for the identity of the
    /// document that the thing holds.
    ///
    /// # Errors
    /// When `proof` fails: what cannot be told is not taken for anything.
    pub fn title(&self, labels: &Labels, proof: impl FnOnce() -> Result<Option<String>>) -> Result<Title> {
        if labels.get(CLUSTER_LABEL) != Some(&self.cluster) {
            return Ok(Title::Foreign);
        }
        let belongs = match labels.get(CREATION_LABEL) {
            Some(creation) => *creation == self.creation,
            None => proof()?.is_some_and(|identity| identity == self.identity),
        };
        Ok(match Owner::of(labels) {
            _ if !belongs => Title::Foreign,
            Some(owner) if !owner.is(&self.owner) => Title::Adopted,
            None if self.adopted => Title::Adopted,
            _ => Title::Mine,
        })
    }
}

/// A new creation id: 128 random bits.
///
/// # Errors
/// When the kernel gives none.
pub fn fresh_creation() -> Result<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the kernel provides no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who made the thing with these labels and when, for people. `created` is a time as of RFC 3339.
pub fn made_by(labels: &Labels, created: &str) -> String {
    let who = match Owner::of(labels) {
        Some(owner) => format!("made by {owner}"),
        None if labels.contains_key(CLUSTER_LABEL) => "made by an earlier version of this program".to_owned(),
        None => "not made by this program".to_owned(),
    };
    format!("{who}, at {}", to_the_second(created))
}

/// A time as of RFC 3339 without fractions of a second.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, rest)) => format!("{seconds}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str, folder: &str) -> Owner {
        Owner { user: user.to_owned(), host: "host".to_owned(), folder: folder.to_owned() }
    }

    fn claim(adopted: bool) -> Claim {
        Claim {
            cluster: "demo".to_owned(),
            creation: "c1".to_owned(),
            identity: "i1".to_owned(),
            adopted,
            owner: owner("ada (1000)", "/a"),
        }
    }

    #[test]
    fn only_the_creation_id_or_the_secret_makes_a_thing_ours() {
        let mut seen = 0;
        for cluster in [None, Some("demo"), Some("other")] {
            for creation in [None, Some("c1"), Some("c2")] {
                for by in [None, Some(("ada (1000)", "/a")), Some(("ada (1000)", "/b")), Some(("bob (1001)", "/a"))] {
                    for proof in [None, Some("i1"), Some("i2")] {
                        for adopted in [false, true] {
                            let mut labels = Labels::new();
                            let mut label = |name: &str, value: Option<&str>| {
                                labels.extend(value.map(|value| (name.to_owned(), value.to_owned())));
                            };
                            label(CLUSTER_LABEL, cluster);
                            label(CREATION_LABEL, creation);
                            label(OWNER_LABEL, by.map(|by| by.0));
                            label(FOLDER_LABEL, by.map(|by| by.1));
                            let title = claim(adopted).title(&labels, || Ok(proof.map(ToOwned::to_owned))).unwrap();
                            let ours = cluster == Some("demo")
                                && (creation == Some("c1") || creation.is_none() && proof == Some("i1"));
                            let same = by == Some(("ada (1000)", "/a")) || by.is_none() && !adopted;
                            let right = match (ours, same) {
                                (false, _) => Title::Foreign,
                                (true, true) => Title::Mine,
                                (true, false) => Title::Adopted,
                            };
                            assert_eq!(title, right, "{cluster:?} {creation:?} {by:?} {proof:?} {adopted}");
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(seen, 3 * 3 * 4 * 3 * 2);
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let labels: Labels = [(CLUSTER_LABEL.to_owned(), "demo".to_owned())].into();
        assert!(claim(false).title(&labels, || Err(anyhow!("no answer"))).is_err());
    }

    #[test]
    fn what_a_claim_makes_is_its_own() {
        let labels = claim(true).labels();
        assert_eq!(claim(true).title(&labels, || unreachable!()).unwrap(), Title::Mine);
        assert_eq!(
            made_by(&labels, "2026-11-27T02:24:22.606301229Z"),
            "made by ada (1000) on host, whose clusters are remembered in /a, at 2026-11-27T02:24:22Z"
        );
        let strange = made_by(&Labels::new(), "2026-11-27T02:24:22+01:00");
        assert_eq!(strange, "not made by this program, at 2026-11-27T02:24:22+01:00");
    }

    #[test]
    fn creation_ids_differ() {
        let (one, other) = (fresh_creation().unwrap(), fresh_creation().unwrap());
        assert_eq!((one.len(), one != other), (32, true));
    }
}
