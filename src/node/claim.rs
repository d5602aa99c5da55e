//! Claims the data of a kept volume for this node: a new machine with an old data volume has no state, or another's.
//!
//! Nothing says whose data those are, so that `init` refuses them. Here the cluster is asked: a quorum says which database
//! is its own and which members its etcd has. What fits is claimed when a person confirms it; what does not fit is refused;
//! what nobody can be asked about is claimed only by who says that this is known. Nothing is moved.

use super::{
    database::{self, Database},
    etcd_data::{EtcdData, Ids},
    first::{KEEP, Keys, Store, System},
    peers::TlsCredentials,
    pki::{self, Authority},
    state::{Data, ETCD_DATA, POSTGRESQL_DATA, STATE_PATH, State},
    this_node,
};
use crate::{
    error::UserError,
    etcd::{Client, Member, RangeRequest},
    files::Presence,
    log,
    model::{
        Node,
        scope::{EtcdStart, client_url, peer_url},
    },
};
use anyhow::{Context as _, Result};
use std::{
    fmt, fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the cluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// No quorum answers, and why.
    Nobody(String),
    /// A quorum answers.
    Quorum {
        /// The members of etcd.
        members: Vec<Member>,
        /// The keys that say which database is the cluster's, with the id of etcd's cluster.
        keys: Keys,
    },
}

/// What is known before data are claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's name.
    pub me: String,
    /// Where the node's etcd talks to its peers.
    pub peer_url: String,
    /// The newest database on this node.
    pub database: Database,
    /// etcd's data on this node.
    pub etcd: EtcdData,
    /// What the cluster says.
    pub told: Told,
}

/// Whether the data may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// They are the cluster's and the node's, by what a quorum says.
    Fits,
    /// Nothing speaks against it, and nobody can say that it is so; why.
    Unchecked(String),
    /// They are not; why, and the way out.
    Refused(String, String),
}

/// Whether the data are this node's to claim.
pub fn verdict(view: &View) -> Verdict {
    let outcomes = [of_etcd(view), of_database(view)];
    let refused = outcomes.iter().find(|verdict| matches!(verdict, Verdict::Refused(..)));
    let unchecked = outcomes.iter().find(|verdict| matches!(verdict, Verdict::Unchecked(_)));
    refused.or(unchecked).cloned().unwrap_or(Verdict::Fits)
}

const ETCD_AWAY: &str =
    "`pgha-node aside make etcd` sets etcd's data aside: the node joins etcd again. Then claim the rest";

fn of_etcd(view: &View) -> Verdict {
    let ids = match &view.etcd {
        EtcdData::Absent | EtcdData::Unborn => return Verdict::Fits,
        EtcdData::Unknown(why) => return unreadable("what etcd's data here are", why),
        EtcdData::Data(ids) => *ids,
    };
    let (members, keys) = match &view.told {
        Told::Nobody(why) => return Verdict::Unchecked(why.clone()),
        Told::Quorum { members, keys } => (members, keys),
    };
    let Ids { cluster, member } = ids;
    let refuse = |why: String| Verdict::Refused(why, ETCD_AWAY.to_owned());
    if cluster != keys.cluster {
        return refuse(format!(
            "etcd's data are of the cluster {cluster:x}, the members that answer are of the cluster {:x}",
            keys.cluster
        ));
    }
    match members.iter().find(|known| known.id == member) {
        None => refuse(format!("etcd's data are of the member {member:x}, which the cluster does not know any more")),
        Some(known) if known.name == view.me || known.peer_urls.contains(&view.peer_url) => Verdict::Fits,
        Some(known) => refuse(format!("etcd's data are of the member {}, not of {}", known.name, view.me)),
    }
}

fn of_database(view: &View) -> Verdict {
    let own = match &view.database {
        Database::Absent => return Verdict::Fits,
        Database::Unknown(doubt) => return unreadable("which database is here", doubt),
        Database::Damaged(why) => {
            return Verdict::Refused(
                format!("it cannot be told which database is here: {why}"),
                "nothing is changed. `pgha-node aside make database` sets it aside".to_owned(),
            );
        }
        Database::Present(facts) => &facts.system,
    };
    let keys = match &view.told {
        Told::Nobody(why) => return Verdict::Unchecked(why.clone()),
        Told::Quorum { keys, .. } => keys,
    };
    match keys.system() {
        System::Known(system) if system == own => Verdict::Fits,
        System::Known(system) => Verdict::Refused(
            format!("the database here has the system identifier {own}, that of the cluster has {system}"),
            "nothing is changed. `pgha-node aside make database` sets it aside, and the node gets a copy of the cluster's"
                .to_owned(),
        ),
        System::Contradiction { made, pinned } => Verdict::Refused(
            format!(
                "the cluster says that its database has the system identifier {made}, and that it has {pinned}; the one here \
                 has {own}"
            ),
            format!("a person must say which of them is right. {KEEP}"),
        ),
        System::Unknown => Verdict::Unchecked("the cluster does not know yet which database is its own".to_owned()),
    }
}

fn unreadable(what: &str, why: impl fmt::Display) -> Verdict {
    Verdict::Refused(format!("it is not known {what}: {why}"), "try again when it can be read".to_owned())
}

/// Data that a person may claim.
#[derive(Debug)]
pub struct Claim {
    node: Node,
    data: Data,
    /// What is known.
    pub view: View,
}

impl Claim {
    /// Looks at the data, and asks the cluster about them.
    ///
    /// # Errors
    /// A wrong request, where there is nothing to claim or the data are the node's already; failed work, where it cannot
    /// be found out what there is.
    pub fn look() -> Result<Claim> {
        let node = this_node::find()?;
        let data = Data::look(Path::new("/"));
        let me = node.member();
        let state = State::load(Path::new(STATE_PATH))?;
        if data.etcd.clone().known()?.is_none() && data.postgresql.clone().known()?.is_none() {
            return Err(UserError::usage("there are no data on this machine that could be claimed")
                .hint(format!("they are looked for at {ETCD_DATA} and {POSTGRESQL_DATA}/VERSION/main"))
                .into());
        }
        if super::state::verify_ownership(&node, state.as_ref(), &data, None).is_ok() {
            let problem = UserError::usage(format!("the data on this machine are those of {} already", me.name));
            return Err(problem.hint("pgha-node status").into());
        }
        let database = match &data.postgresql {
            Presence::Present(held) => held.last().map_or(Database::Absent, |held| held.database.clone()),
            Presence::Absent | Presence::Unknown(_) => Database::Absent,
        };
        let view = View {
            me: me.name.clone(),
            peer_url: peer_url(me),
            database,
            etcd: EtcdData::look(Path::new(ETCD_DATA)),
            told: ask(&node)?,
        };
        Ok(Claim { node, data, view })
    }

    /// What there is, for a person.
    pub fn words(&self) -> String {
        let etcd = match &self.view.etcd {
            EtcdData::Absent => "nothing".to_owned(),
            EtcdData::Unborn => "a beginning that never had a vote".to_owned(),
            EtcdData::Data(Ids { cluster, member }) => format!("the member {member:x} of the cluster {cluster:x}"),
            EtcdData::Unknown(why) => format!("not known: {why}"),
        };
        let mut text = format!("etcd        {etcd}\n");
        if let Presence::Present(held) = &self.data.postgresql {
            for database::Held { folder, database, .. } in held {
                text.push_str(&format!("postgresql  {}: {}\n", folder.display(), database.words()));
            }
        }
        text
    }

    /// Writes down that the data are this node's; an earlier state is kept beside the new one.
    ///
    /// # Errors
    /// When the disk does not allow it.
    pub fn write(&self) -> Result<()> {
        let path = Path::new(STATE_PATH);
        if Presence::of(path).known()?.is_some() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
            let kept = path.with_file_name(format!("state.json.before-{}", crate::clock::stamp(now)));
            fs::copy(path, &kept).with_context(|| format!("keeping {}", kept.display()))?;
        }
        // It was a member once: it resumes with etcd's data or joins, and never forms a cluster.
        let start = EtcdStart { existing: true, ..EtcdStart::together(&self.node.spec) };
        let mut state = State::new(&self.node, start);
        state.complete = self.data.postgresql.is_present();
        // For all that is known, its member has voted: without etcd's data it is never started again as it began.
        state.etcd_seen = true;
        if let EtcdData::Data(ids) = &self.view.etcd {
            state.etcd_ids = Some(*ids);
        }
        state.store(path)?;
        log::warning!("the data on this machine are those of {} now, by a person's order", self.view.me);
        Ok(())
    }
}

/// Asks the other members.
fn ask(node: &Node) -> Result<Told> {
    let others: Vec<String> = node.peers().map(client_url).collect();
    if others.is_empty() {
        return Ok(Told::Nobody("the document names no other member that could be asked".to_owned()));
    }
    // A new machine has no certificates yet.
    pki::Store::of_the_node().ensure(node, &Authority::of(&node.spec)?, SystemTime::now())?;
    let client = TlsCredentials::of_the_node().etcd(others)?;
    Ok(quorum(&client, &node.spec.cluster)
        .unwrap_or_else(|error| Told::Nobody(format!("no quorum answers: {error:#}"))))
}

fn quorum(client: &Client, cluster: &str) -> Result<Told> {
    // A list of members is not read through the quorum; a range is.
    client.range(&RangeRequest::key("/pgha"))?;
    let keys = Store { client, cluster }.read()?;
    Ok(Told::Quorum { members: client.members()?, keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        files::Doubt,
        node::{
            database::{Facts, Lsn, ServerState},
            first::{First, Key},
        },
    };

    const OURS: &str = "1000000001";

    fn present(system: &str) -> Database {
        Database::Present(Facts {
            version: 17,
            system: system.to_owned(),
            timeline: 1,
            state: ServerState::ShutDown,
            checkpoint: Lsn(1),
            checkpoint_time: 0,
            recovery_end: Lsn(0),
            recovery_timeline: 0,
            unstarted_copy: false,
        })
    }

    fn quorum(system: Option<&str>) -> Told {
        let member = |id: u64, name: &str| Member {
            id,
            name: name.to_owned(),
            peer_urls: vec![format!("https://10.0.0.1{id}:2380")],
            ..Member::default()
        };
        let first = First { node: "pg-2".into(), system: system.map(ToOwned::to_owned) };
        Told::Quorum {
            members: vec![member(1, "pg-1"), member(2, "pg-2")],
            keys: Keys { cluster: 7, first: Some(Key { value: first, created: 1, changed: 1 }), ..Keys::default() },
        }
    }

    #[test]
    fn only_what_a_quorum_knows_fits_and_silence_never_does() {
        let ids = |cluster, member| EtcdData::Data(Ids { cluster, member });
        let etcds = [
            (EtcdData::Absent, true),
            (ids(7, 1), true),
            (ids(7, 2), false),
            (ids(7, 9), false),
            (ids(8, 1), false),
            (EtcdData::Unknown("EIO".into()), false),
        ];
        let databases = [
            (Database::Absent, true),
            (present(OURS), true),
            (present("2000000002"), false),
            (Database::Damaged("no pg_control".into()), false),
            (Database::Unknown(Doubt::new("EIO")), false),
        ];
        let tolds = [quorum(Some(OURS)), quorum(None), Told::Nobody("no answer".into())];
        let mut texts = std::collections::BTreeSet::new();
        for (etcd, etcd_fits) in &etcds {
            for (database, database_fits) in &databases {
                for told in &tolds {
                    let (me, peer_url) = ("pg-1".into(), "https://10.0.0.11:2380".into());
                    let view =
                        View { me, peer_url, database: database.clone(), etcd: etcd.clone(), told: told.clone() };
                    let nothing = *etcd == EtcdData::Absent && *database == Database::Absent;
                    match verdict(&view) {
                        Verdict::Fits => {
                            assert!(*etcd_fits && *database_fits, "{view:?}");
                            assert!(nothing || matches!(told, Told::Quorum { .. }), "silence is unknown: {view:?}");
                        }
                        Verdict::Unchecked(why) => {
                            assert!(!matches!(database, Database::Damaged(_) | Database::Unknown(_)), "{view:?}");
                            texts.insert(format!("unchecked: {why}"));
                        }
                        Verdict::Refused(why, way_out) => {
                            assert!(!etcd_fits || !database_fits, "{view:?}");
                            texts.insert(format!("refused: {why}\n  hint: {way_out}"));
                        }
                    }
                }
            }
        }
        insta::assert_snapshot!(texts.into_iter().collect::<Vec<_>>().join("\n"));
    }
}
