//! Gathers what this node has, and what each of the others reports.
//!
//! Nothing here changes anything. A node tells what it has on Patroni's port, as long as Patroni does not run there: etcd's
//! port is etcd's own while it waits for a quorum. Where Patroni runs, its status tells it. What does not answer, or in no
//! way that is understood, is unknown.

use super::{
    account::Account,
    incarnation::Etcd as PrivateEtcd,
    keys::{Contents, Entry, Names},
    lineage::{self, Lineage},
    order::{self, RecoveryOrder},
    plan::{Copy, Database, Etcd, Keys, KnownNode, Obstacle, View},
    rival::{self, Quorum},
    timeline::{History, Place, Reach, parse_position},
    wal::Wal,
};
use crate::{
    clock,
    etcd::{RangeRequest, RangeResult},
    files::Presence,
    model::{
        Member, Node,
        scope::{client_url, host_port, peer_url, ports},
    },
    node::{
        aside,
        begun::{BEGUN_PATH, Begun, HALF_GONE, What},
        database,
        database::Lsn,
        etcd_data::EtcdData,
        peers::{Facts, TlsCredentials},
        state::{ETCD_DATA, POSTGRESQL_DATA},
    },
};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How long a connection may take.
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);
/// How long another node may take to tell what it has.
const TELLS_WITHIN: Duration = Duration::from_secs(30);
/// How long the WAL of this node may be read while another node waits that asks.
pub const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// How long it may be read otherwise: on a slow disk, what a server has written since its last checkpoint.
pub const READ_WITHIN: Duration = Duration::from_secs(600);
/// How long a server may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The path at which a node tells what it has.
pub const PATH: &str = "/pgha/facts";

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its database.
    pub database: Database,
    /// Its etcd's data.
    pub etcd: Etcd,
    /// An order to go on from it, which is not carried out yet.
    pub order: Option<String>,
    /// The incarnation of the cluster that it was part of last, if that began by such an order.
    #[serde(default)]
    pub lineage: Option<Lineage>,
}

/// This node, and where its files are.
#[derive(Debug)]
pub struct Here<'a> {
    /// This machine's cluster and member.
    pub node: &'a Node,
    /// Where its files are: `/`.
    pub root: PathBuf,
    /// The major version of the image's PostgreSQL.
    pub version: u32,
    /// Its certificates.
    pub credentials: TlsCredentials,
}

impl<'a> Here<'a> {
    /// Where the files of `node` are on this machine.
    pub fn of_the_node(node: &'a Node, version: u32) -> Here<'a> {
        let credentials = TlsCredentials::of_the_node();
        Here { node, root: "/".into(), version, credentials }
    }

    /// This node's member.
    pub fn me(&self) -> &Member {
        self.node.member()
    }

    /// A path of this node's.
    pub fn below(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The folder of the database.
    pub fn data(&self) -> PathBuf {
        self.below(POSTGRESQL_DATA).join(self.version.to_string()).join("main")
    }

    /// The folder of PostgreSQL's programs.
    pub fn programs(&self) -> PathBuf {
        PathBuf::from(format!("/usr/lib/postgresql/{}/bin", self.version))
    }

    /// The folder of etcd's data.
    pub fn etcd_data(&self) -> PathBuf {
        self.below(ETCD_DATA)
    }

    /// etcd, as it is run for a moment.
    ///
    /// # Errors
    /// When the folder of its data is not there.
    pub fn private_etcd(&self) -> Result<PrivateEtcd> {
        let data = self.etcd_data();
        let loopback: IpAddr =
            if self.me().address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        Ok(PrivateEtcd {
            program: "etcd".into(),
            tls: Some(self.credentials.folder().to_owned()),
            loopback,
            account: Account::owner_of(data.parent().unwrap_or(Path::new("/")))?,
        })
    }

    /// What this node tells of itself, if its database is this one.
    pub fn told(&self, database: Database) -> Told {
        let order = order::pending(&self.below(order::PATH));
        let (database, lineage) = match Lineage::load(&self.below(lineage::PATH)) {
            Presence::Present(lineage) => (database, Some(lineage)),
            Presence::Absent => (database, None),
            // Then nothing may be decided about the rest.
            Presence::Unknown(doubt) => (Database::Unknown { why: doubt.to_string() }, None),
        };
        Told { database, etcd: self.etcd(), order, lineage }
    }

    /// This node's etcd's data.
    pub fn etcd(&self) -> Etcd {
        let hex = |id: u64| Some(format!("{id:x}"));
        match EtcdData::look(&self.etcd_data()) {
            EtcdData::Absent | EtcdData::Unborn => Etcd::Absent,
            EtcdData::Data(ids) => Etcd::Present { cluster: hex(ids.cluster), member: hex(ids.member) },
            EtcdData::Unknown(why) => Etcd::Unknown { why },
        }
    }

    /// This node's database; its WAL is read no longer than about `limit`. A timeline that it got by an order that has not
    /// been carried out is left out: nothing was written on it.
    pub fn database(&self, limit: Duration) -> Database {
        match self.database_as_it_is(limit) {
            Database::Present(copy) => match self.before_orders(copy) {
                Ok(copy) => Database::Present(copy),
                Err(error) => Database::Unknown { why: format!("{error:#}") },
            },
            other => other,
        }
    }

    /// The same with such a timeline.
    pub fn database_as_it_is(&self, limit: Duration) -> Database {
        let folder = self.data();
        let facts = match database::of_version(self.version, database::Database::look(&folder)) {
            database::Database::Present(facts) => facts,
            database::Database::Absent => return self.of_another_version(),
            database::Database::Damaged(why) => return Database::Unusable { why },
            database::Database::Unknown(doubt) => return Database::Unknown { why: doubt.to_string() },
        };
        match Begun::load(&self.below(BEGUN_PATH)) {
            Presence::Absent => {}
            Presence::Unknown(doubt) => return Database::Unknown { why: doubt.to_string() },
            Presence::Present(begun) if begun.version != self.version => {}
            Presence::Present(begun) if begun.may_be_half_gone(self.version, &folder) => {
                return Database::Unusable { why: HALF_GONE.to_owned() };
            }
            Presence::Present(Begun { what: What::Bootstrap, .. }) => {
                return Database::Unusable { why: "it was being made and may not be whole".to_owned() };
            }
            Presence::Present(_) => {}
        }
        if facts.unstarted_copy {
            return Database::Unusable { why: "it is a copy with which no server has started yet".to_owned() };
        }
        match self.copy(&folder, &facts, limit) {
            Ok(copy) => Database::Present(copy),
            Err(error) => Database::Unknown { why: format!("{error:#}") },
        }
    }

    /// The copy as it was before the orders that were not carried out.
    fn before_orders(&self, copy: Copy) -> Result<Copy> {
        for path in [order::PATH, order::DROPPED_PATH] {
            if let Some(order) = RecoveryOrder::load(&self.below(path)).known()?
                && let Some(before) = order.before(&copy.reach)
            {
                return Ok(Copy { reach: before, ..copy });
            }
        }
        Ok(copy)
    }

    fn of_another_version(&self) -> Database {
        match database::all(&self.below(POSTGRESQL_DATA)) {
            Presence::Absent => Database::Absent,
            Presence::Unknown(doubt) => Database::Unknown { why: doubt.to_string() },
            Presence::Present(held) => {
                let versions: Vec<String> = held.iter().map(|held| held.version.to_string()).collect();
                let why = format!("it is of PostgreSQL {}, the image has {}", versions.join(", "), self.version);
                Database::Unusable { why }
            }
        }
    }

    /// How far the database in `folder` has come.
    fn copy(&self, folder: &Path, facts: &database::Facts, limit: Duration) -> Result<Copy> {
        let pg_waldump = self.programs().join("pg_waldump");
        let wal = Wal { folder: folder.join("pg_wal"), pg_waldump: &pg_waldump };
        if database::server(folder)?.is_some() {
            let Answer { mut end, commit, is_receiving } = self.ask_server(folder)?;
            if !is_receiving {
                end.timeline = end.timeline.max(wal.followed(facts, end.position)?);
            }
            let history = Some(wal.history(end.timeline)?);
            let reach = Reach { system: facts.system.clone(), end, exact: true, history };
            return Ok(Copy { reach, last: commit.or(Some(facts.checkpoint_time)) });
        }
        let end = wal.end(facts, limit)?;
        Ok(Copy {
            reach: Reach { system: facts.system.clone(), end: end.at, exact: end.exact, history: Some(end.history) },
            last: end.commit.or(Some(facts.checkpoint_time)),
        })
    }

    /// Where the WAL of the server that runs with the data in `folder` ends, and the time of the last commit that it has
    /// replayed.
    fn ask_server(&self, folder: &Path) -> Result<Answer> {
        const ASK: &str = "select case when pg_is_in_recovery() \
            then coalesce((select max(received_tli) from pg_stat_wal_receiver), 0) \
            else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end, \
            (select timeline_id from pg_control_checkpoint()), \
            (select coalesce(min_recovery_end_timeline, 0) from pg_control_recovery()), \
            case when pg_is_in_recovery() then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
            else pg_current_wal_flush_lsn() end, \
            coalesce(extract(epoch from pg_last_xact_replay_timestamp())::bigint::text, 'none')";
        let run = Account::owner_of(folder)?
            .run(self.programs().join("psql"))
            .args(["-XAtq", "-F", " ", "-h", "/var/run/postgresql", "-U", "postgres", "-d", "postgres", "-c", ASK])
            .env("PGCONNECT_TIMEOUT", "5");
        let text = run.limit(2 * ANSWERS_WITHIN).text().context("asking the server of this node")?;
        read_answer(&text)
    }

    /// What is known of all nodes, and what this node's etcd has kept.
    pub fn view(&self) -> (View, Contents) {
        let kept = self.keys();
        let contents = kept.as_ref().ok().cloned().flatten().unwrap_or_default();
        let names = Names(&self.node.spec.cluster);
        let keys = match kept {
            Ok(None) => Keys::Absent,
            Ok(Some(contents)) => Keys::Read(contents.kept(names)),
            Err(error) => Keys::Unknown(format!("{error:#}")),
        };
        let (mut nodes, quorums) = thread::scope(|scope| {
            let nodes: Vec<_> =
                self.node.spec.members.iter().map(|member| (member, scope.spawn(|| self.ask(member)))).collect();
            let quorums = scope.spawn(|| self.quorums());
            let nodes = nodes
                .into_iter()
                .map(|(member, asked)| asked.join().unwrap_or_else(|_| silent(member, "asking it failed".to_owned())));
            let nodes: Vec<KnownNode> = nodes.collect();
            // That none answered must have been asked.
            (nodes, quorums.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        // What Patroni does not say of a timeline, its key may.
        for copy in nodes.iter_mut().filter_map(|node| match &mut node.database {
            Database::Present(copy) => Some(copy),
            _ => None,
        }) {
            if copy.reach.history.is_none() {
                copy.reach.history = contents.history(names, copy.reach.end.timeline);
            }
        }
        (View { me: self.me().name.clone(), nodes, quorums, keys, obstacle: self.obstacle() }, contents)
    }

    /// Why etcd's data here cannot change places with others.
    fn obstacle(&self) -> Option<Obstacle> {
        let error = aside::must_be_movable(&self.etcd_data()).err()?;
        Some(Obstacle { way_out: error.hint.unwrap_or_default(), what: error.message })
    }

    /// What this node's etcd has kept; `None` if it has no data.
    ///
    /// # Errors
    /// When that is not known.
    pub fn keys(&self) -> Result<Option<Contents>> {
        match self.etcd() {
            Etcd::Absent => return Ok(None),
            Etcd::Unknown { why } => bail!(why),
            Etcd::Present { .. } => {}
        }
        let names = Names(&self.node.spec.cluster);
        let prefixes = [names.patroni(), names.own()];
        if let Ok(contents) = self.ask_etcd(&prefixes) {
            return Ok(Some(contents));
        }
        self.private_etcd()?.read(&self.etcd_data(), &prefixes).map(Some)
    }

    /// The same from an etcd that runs, without its quorum.
    fn ask_etcd(&self, prefixes: &[String]) -> Result<Contents> {
        let agent = self.credentials.agent(ANSWERS_WITHIN)?;
        let mut contents = Contents::default();
        for prefix in prefixes {
            let mut body = RangeRequest::prefix(prefix.as_str()).json();
            body["serializable"] = true.into();
            let mut answer = agent.post(format!("{}/v3/kv/range", client_url(self.me()))).send_json(&body)?;
            if answer.status() != 200 {
                bail!("etcd answers with the status {}", answer.status());
            }
            let range: RangeResult = answer.body_mut().with_config().limit(64 * LONGEST).read_json()?;
            contents.revision = contents.revision.max(range.header.revision);
            contents.entries.extend(range.kvs.into_iter().filter_map(Entry::of));
        }
        contents.entries.sort();
        Ok(contents)
    }

    /// The clusters of etcd whose quorum answers.
    fn quorums(&self) -> Vec<Quorum> {
        let all: Vec<&Member> = self.node.spec.members.iter().collect();
        rival::ask(&all, &self.credentials)
    }

    /// What is known of a node of the document.
    fn ask(&self, member: &Member) -> KnownNode {
        let of = |told: Told, patroni: bool, primary: bool| KnownNode {
            name: member.name.clone(),
            silent: None,
            database: told.database,
            etcd: told.etcd,
            patroni,
            primary,
            order: told.order,
            lineage: told.lineage,
        };
        if member.name == self.me().name {
            let told = self.told(self.database(READ_WITHIN));
            let status = self.ask_patroni(member).ok();
            return of(told, status.is_some(), status.is_some_and(|status| status.is_primary()));
        }
        let node = match self.ask_patroni(member) {
            Ok(status) => self.with_patroni(member, &status),
            Err(NoAnswer::Silent(why)) => silent(member, why),
            Err(NoAnswer::Unclear(why)) => match self.ask_for_facts(member) {
                Ok(told) => of(told, false, false),
                // The machine is on. It may have more, and whoever looks after it can say so.
                Err(_) => KnownNode { silent: None, ..silent(member, why) },
            },
        };
        self.with_etcd(member, node)
    }

    /// What the node tells of itself.
    fn ask_for_facts(&self, member: &Member) -> Result<Told> {
        let agent = self.credentials.agent(TELLS_WITHIN)?;
        let url = format!("https://{}{PATH}", host_port(member.address, ports::PATRONI));
        let facts: Facts = agent.get(&url).call()?.body_mut().with_config().limit(LONGEST).read_json()?;
        if facts.schema != 1 || facts.node != member.name {
            bail!("{} answers at the address of {}", facts.node, member.name);
        }
        let told = facts.recover.with_context(|| format!("{} does not tell what it has", member.name))?;
        serde_json::from_value(told).with_context(|| format!("reading what {} has", member.name))
    }

    /// Patroni's status.
    fn ask_patroni(&self, member: &Member) -> Result<Patroni, NoAnswer> {
        reach(member.address, ports::PATRONI)?;
        let unclear = |error: String| NoAnswer::Unclear(format!("what answers there is not understood: {error}"));
        let agent = self.credentials.agent(ANSWERS_WITHIN).map_err(|error| unclear(format!("{error:#}")))?;
        let url = format!("https://{}/patroni", host_port(member.address, ports::PATRONI));
        let mut answer = agent.get(&url).call().map_err(|error| unclear(error.to_string()))?;
        answer.body_mut().with_config().limit(LONGEST).read_json().map_err(|error| unclear(error.to_string()))
    }

    fn with_patroni(&self, member: &Member, status: &Patroni) -> KnownNode {
        let database = status.database().unwrap_or_else(|why| Database::Unknown { why });
        KnownNode {
            name: member.name.clone(),
            silent: None,
            database,
            etcd: Etcd::Unknown { why: "it does not answer".to_owned() },
            patroni: true,
            primary: status.is_primary(),
            order: None,
            lineage: None,
        }
    }

    /// Adds what the node's etcd says, if it runs.
    fn with_etcd(&self, member: &Member, node: KnownNode) -> KnownNode {
        if !matches!(node.etcd, Etcd::Unknown { .. }) || reach(member.address, ports::ETCD_PEER).is_err() {
            return node;
        }
        let agent = self.credentials.agent(ANSWERS_WITHIN);
        let asked = agent.ok().and_then(|agent| agent.get(format!("{}/members", peer_url(member))).call().ok());
        let Some(answer) = asked.filter(|answer| answer.status() == 200) else { return node };
        let cluster = answer.headers().get("X-Etcd-Cluster-ID").and_then(|id| id.to_str().ok());
        let etcd = Etcd::Present { cluster: cluster.map(ToOwned::to_owned), member: None };
        // Its etcd answers: it is there, whatever else is not known.
        KnownNode { silent: None, etcd, ..node }
    }
}

fn silent(member: &Member, why: String) -> KnownNode {
    KnownNode {
        name: member.name.clone(),
        database: Database::Unknown { why: why.clone() },
        etcd: Etcd::Unknown { why: why.clone() },
        silent: Some(why),
        patroni: false,
        primary: false,
        order: None,
        lineage: None,
    }
}

/// Why a node did not say what it was asked.
enum NoAnswer {
    /// Nothing came back: it may be off, or gone.
    Silent(String),
    /// The machine is on, and does not say it.
    Unclear(String),
}

/// Whether anything takes connections there.
fn reach(address: IpAddr, port: u16) -> Result<(), NoAnswer> {
    match TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECTS_WITHIN) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(NoAnswer::Unclear("the machine is on, and neither pgha-node nor Patroni runs there".to_owned()))
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::HostUnreachable) => {
            Err(NoAnswer::Silent("no answer".to_owned()))
        }
        Err(error) => Err(NoAnswer::Silent(error.to_string())),
    }
}

/// Patroni's status of its node.
#[derive(Debug, Deserialize)]
struct Patroni {
    state: String,
    #[serde(default)]
    role: String,
    timeline: Option<u32>,
    #[serde(default)]
    xlog: Xlog,
    database_system_identifier: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Xlog {
    location: Option<u64>,
    received_location: Option<u64>,
    replayed_location: Option<u64>,
    replayed_timestamp: Option<String>,
}

impl Patroni {
    fn is_primary(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "master") && self.xlog.location.is_some()
    }

    fn database(&self) -> Result<Database, String> {
        let Xlog { location, received_location, replayed_location, replayed_timestamp } = &self.xlog;
        let position = (*location).max(*received_location).max(*replayed_location);
        let (Some(system), Some(timeline), Some(position)) =
            (&self.database_system_identifier, self.timeline, position)
        else {
            return Err(format!("its server does not answer Patroni ({})", self.state));
        };
        let end = Place { timeline, position: Lsn(position) };
        let history = (timeline == 1).then(History::default);
        // `2026-11-27 01:26:24.994269+00:00`, in the server's time zone.
        let last = replayed_timestamp.as_deref().and_then(time);
        Ok(Database::Present(Copy { reach: Reach { system: system.clone(), end, exact: true, history }, last }))
    }
}

/// The time in `2026-11-27 01:26:24.994269+00:00`.
fn time(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix([' ', 'T'])?.split_at_checked(8)?;
    let utc = clock::from_stamp(&format!("{}T{}Z", date.replace('-', ""), time.replace(':', "")))?;
    let zone = &rest[rest.find(['+', '-'])?..];
    let (hours, minutes) = zone[1..].split_once(':')?;
    let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    Some(if zone.starts_with('-') { utc + offset } else { utc - offset })
}

/// How far a server has come.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    end: Place,
    /// The time of the last commit that it has replayed, in seconds since 1970.
    commit: Option<i64>,
    /// Whether it writes or receives WAL, so that its timeline is known. A replica without a sender does not say which it
    /// follows.
    is_receiving: bool,
}

/// Reads a server's three timelines, its position, and the seconds of its last replayed commit or `none`.
fn read_answer(text: &str) -> Result<Answer> {
    let read = || -> Option<Answer> {
        let [received, checkpoint, recovery, position, time] = text.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        let [received, checkpoint, recovery] = [received, checkpoint, recovery].map(|word| word.parse::<u32>().ok());
        let timeline = received?.max(checkpoint?).max(recovery?);
        let commit = match time {
            "none" => None,
            seconds => Some(seconds.parse().ok()?),
        };
        let end = Place { timeline, position: parse_position(position)? };
        Some(Answer { end, commit, is_receiving: received? > 0 })
    };
    read().with_context(|| format!("the server's answer is not understood: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::samples,
        node::{begun::Replaced, database::samples::database},
    };

    #[test]
    fn nothing_goes_on_from_half_of_a_database() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::new(samples::three(), 0);
        let here = Here { root: root.path().to_owned(), ..Here::of_the_node(&node, 17) };
        let mark = here.below(BEGUN_PATH);
        std::fs::create_dir_all(mark.parent().unwrap()).unwrap();
        let look = || here.database_as_it_is(TOLD_WITHIN);
        database(&here.data(), 7);
        let begun = |version, replaces| Begun { what: What::Clone, version, revision: 9, time: 0, replaces };
        let replaces = Some(Replaced::of(&here.data()).unwrap());
        for other in [begun(17, None), begun(16, replaces)] {
            other.store(&mark).unwrap();
            assert!(!matches!(look(), Database::Unusable { .. }), "{other:?}");
        }
        begun(17, replaces).store(&mark).unwrap();
        assert_eq!(look(), Database::Unusable { why: HALF_GONE.to_owned() });
    }

    #[test]
    fn what_a_server_says_is_understood() {
        let answer = |timeline, position, commit, is_receiving| Answer {
            end: Place { timeline, position: Lsn(position) },
            commit,
            is_receiving,
        };
        let read = |text| read_answer(text).unwrap();
        assert_eq!(read("67 67 0 0/7001C40 none"), answer(67, 0x700_1C40, None, true));
        assert_eq!(read("0 1 2 1/0 1795741700"), answer(2, 1 << 32, Some(1_795_741_700), false));
        for wrong in
            ["", "67 67 0 0/7001C40", "67 67 0 0/7001C40 ", "1 x 0 0/0 none", "1 1 0 nowhere none", "1 1 1 0/0 soon"]
        {
            assert!(read_answer(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_patroni_says_is_understood() {
        let read = |text: &str| serde_json::from_str::<Patroni>(text).unwrap();
        // As Patroni 4.0.7 says it.
        let replica = read(
            r#"{"state": "running", "postmaster_start_time": "2026-11-27 01:00:00.0+00:00", "role": "replica",
                "server_version": 170012, "xlog": {"received_location": 67109016, "replayed_location": 67108864,
                "replayed_timestamp": "2026-11-27 03:26:24.994269+02:00", "paused": false}, "timeline": 2,
                "cluster_unlocked": true, "dcs_last_seen": 1795741700, "database_system_identifier": "7712652082925278041",
                "patroni": {"version": "4.0.7", "scope": "demo", "name": "pg-2"}}"#,
        );
        let Database::Present(Copy { reach, last }) = replica.database().unwrap() else { panic!("{replica:?}") };
        assert_eq!(reach.end, Place { timeline: 2, position: Lsn(67_109_016) });
        assert_eq!((reach.history, last.map(clock::utc).as_deref()), (None, Some("2026-11-27T01:26:24Z")));
        assert!(!replica.is_primary());
        let primary = read(
            r#"{"state": "running", "role": "primary", "xlog": {"location": 5}, "timeline": 1,
                "database_system_identifier": "7"}"#,
        );
        assert!(primary.is_primary() && primary.database().is_ok());
        let stopped = read(r#"{"state": "stopped", "role": "replica", "database_system_identifier": "7"}"#);
        assert_eq!(stopped.database().unwrap_err(), "its server does not answer Patroni (stopped)");
        assert!(serde_json::from_str::<Patroni>(r#"{"schema": 1, "node": "pg-2"}"#).is_err());
    }
}
