//! A replica that cannot follow is cloned again.
//!
//! Patroni gives up on such a replica: after a failed `pg_rewind`, or when the primary has recycled the WAL that it needs,
//! it starts the server again and again, which runs and never streams. Its own way out is to remove the data, which is
//! turned off. The agent asks the primary, and only when there is a doubt: as long as the replica streams, one question to
//! Patroni on this node is all. What is done is [`decide`]'s; how, is here:
//!
//! Patroni is stopped, a lost slot is dropped on the primary (Patroni makes its members' slots again), the data are set
//! aside, and `pgha-node init` runs again: it is the one that starts Patroni without a database, and marks what that begins.
//! What was begun is in `/var/lib/pgha/repair.json`; whoever finds it there goes on with it.

pub mod decide;

use super::{
    Attention, Concern, World,
    patroni::Cluster,
    sql::{At, literal, lsn},
    turn::{self, Turns},
};
use crate::{
    clock,
    error::UserError,
    exec::Run,
    files::{Doubt, NewFile, Presence},
    log,
    node::{
        aside,
        begun::{self, BEGUN_PATH, Begun, Replaced, What},
        database::{self, Database, Lsn},
        lock,
        state::POSTGRESQL_DATA,
        units,
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use decide::{NoRoom, Own, Primary, Server, Slot, Step, Turn, View, Way, Why, next};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use decide::CloneOrder;

const INTERVAL: Duration = Duration::from_secs(15);
/// Where it is kept what was begun, and when this node was repaired last.
const RECORD_PATH: &str = "/var/lib/pgha/repair.json";
const PATRONI_UNIT: &str = "patroni.service";
const NODE_UNIT: &str = "pgha-node.service";
/// How long a replica must not stream before the primary is asked.
const ASK_AFTER: Duration = Duration::from_secs(45);
/// Patroni's own words for a server that somebody is at work on.
const BUSY: [&str; 6] = [
    "creating replica",
    "initializing new cluster",
    "running custom bootstrap script",
    "stopping",
    "restarting",
    "promoting",
];
/// What Patroni writes when `pg_rewind` has failed although the primary is well.
const REWIND_FAILED: &str = "Failed to rewind from healthy primary";
/// How long a server must run with data that were to be replaced before they are whole after all: Patroni stops it
/// first.
const KEPT_AFTER: Duration = Duration::from_secs(60);
/// How long a replica may stand still after its clone.
const CLONED_WITHIN: Duration = Duration::from_secs(600);
/// The longest timeline history file that is read, in bytes.
const LONGEST_HISTORY: u64 = 1 << 20;
/// How long back its journal is looked through, in seconds.
const JOURNAL: u64 = 7200;
/// Room that stays free beside a clone, in bytes, on top of a tenth of it.
const MARGIN: u64 = 512 << 20;
/// The size of a file of the WAL, unless a server was made with another, in bytes.
const USUAL_SEGMENT: u64 = 16 << 20;
/// How many databases are set aside by the agent at most; a person makes room for more.
const ASIDES: usize = 2;

/// The concern.
#[derive(Debug, Default)]
pub struct Repair {
    absent: Option<Instant>,
    /// How far the replica had come when it moved last, and when that was.
    moved: Option<(u64, Instant)>,
    restarted: bool,
    dropped: bool,
    /// The mark of data that were to be replaced and with which a server runs, and since when that is seen.
    kept: Option<(Begun, Instant)>,
}

impl Concern for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn tick(&mut self, world: &World, now: Instant) -> Result<Vec<Attention>> {
        if world.postgresql.is_none() {
            return Ok(Vec::new());
        }
        let record = Record::current(Path::new(RECORD_PATH))?;
        if record.is_some_and(|record| record.phase == Phase::Begun) {
            return resume(world);
        }
        let kept = self.kept.take();
        let server = match world.server() {
            Ok(server) => server,
            // Before the node is up, nobody can expect an answer.
            Err(_) if !world.settled() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if server.leads() || server.streams() {
            *self = Repair { kept, ..Repair::default() };
            self.keep(world, now)?;
            return finish(world);
        }
        self.look_closer(world, &server, now)
    }
}

impl Repair {
    fn look_closer(&mut self, world: &World, server: &super::patroni::Server, now: Instant) -> Result<Vec<Attention>> {
        let absent = now.duration_since(*self.absent.get_or_insert(now));
        let processes = Processes::look()?;
        let place = place(server, &processes);
        if !matches!(place, Server::Apart(_)) {
            // Whoever is at work on it has begun again.
            self.moved = None;
        }
        if let Some(record) = Record::load(Path::new(RECORD_PATH)).known()?
            && record.phase == Phase::Cloning
        {
            let position = server.position().unwrap_or_default();
            if matches!(place, Server::Apart(_)) && self.still(position, now) >= CLONED_WITHIN {
                let error = Some(format!("it does not stream after it was cloned: {}", server.words()));
                Record { phase: Phase::Failed, error, ..record }.store(Path::new(RECORD_PATH))?;
                Turns::of(world, "repair").give_back()?;
            } else {
                // The turn stays ours as long as it takes.
                Turns::of(world, "repair").take()?;
                return Ok(vec![Attention::serious("repair/apart", record.words(server))]);
            }
        }
        if absent < ASK_AFTER {
            return Ok(Vec::new());
        }
        let seen = Seen { server, processes, place };
        let view = self.gather(world, seen, now, None)?;
        let step = next(&view);
        let told = match &step {
            Step::Nothing => return Ok(Vec::new()),
            Step::Tell(why) => format!("this replica does not stream: {why}{}", last_error()?),
            Step::DropSlot => format!("this replica does not stream: {}", Why::SlotLost),
            Step::Restart => "this replica does not stream: its server is restarted".to_owned(),
            Step::Repair(why, _) => format!("this replica does not stream, and is cloned again: {why}"),
        };
        match step {
            Step::DropSlot => {
                self.dropped = true;
                drop_lost_slot(world, &view)?;
            }
            Step::Restart => {
                let (_held, _) = hold(world, "agent", &view, || self.look(world, None))?;
                self.restarted = true;
                log::warning!("this replica does not move: its server is restarted");
                units::restart(PATRONI_UNIT)?;
            }
            Step::Repair(why, way) => repair(world, &view, why, way, || self.look(world, None))?,
            Step::Nothing | Step::Tell(_) => {}
        }
        Ok(vec![Attention::serious("repair/apart", told)])
    }

    /// Everything that decides, seen now. With an order, Patroni may be down: the others know the cluster, and etcd who
    /// leads.
    fn look(&mut self, world: &World, order: Option<CloneOrder>) -> Result<View> {
        let stopped = || super::patroni::Server {
            role: "replica".to_owned(),
            state: "stopped".to_owned(),
            ..super::patroni::Server::default()
        };
        let server = match world.server() {
            Ok(server) => server,
            Err(_) if order.is_some() => stopped(),
            Err(error) => return Err(error),
        };
        let processes = Processes::look()?;
        let place = place(&server, &processes);
        self.gather(world, Seen { server: &server, processes, place }, Instant::now(), order)
    }

    /// Everything that decides; the primary is asked.
    fn gather(
        &mut self,
        world: &World,
        Seen { server, processes, place }: Seen<'_>,
        now: Instant,
        order: Option<CloneOrder>,
    ) -> Result<View> {
        let cluster = world.cluster()?;
        let own = own(world, &place);
        let asked = primary(world, &cluster);
        let extent = asked.as_ref().map(|(_, extent)| *extent).unwrap_or_default();
        let recovers = processes.recovery.as_ref().and_then(|recovery| recovery.start(extent.segment));
        let reached = own.as_ref().ok().map(|own| own.position.0).max(recovers.map(|start| start.0));
        let still = self.still(server.position().max(reached).unwrap_or_default(), now);
        let exact = own.as_ref().is_ok_and(|own| own.exact);
        let last = Record::load(Path::new(RECORD_PATH)).known()?.map(|record| record.until(super::unix_now()));
        Ok(View {
            absent: self.absent.map(|since| now.duration_since(since)).unwrap_or_default(),
            still,
            paused: cluster.pause || server.pause,
            primary: asked.map(|(primary, _)| primary),
            own,
            rewind_failed: matches!(place, Server::Apart(_)) && !exact && rewind_failed(last.as_ref())?,
            waits: recovers.filter(|_| processes.recovery.is_some_and(|recovery| recovery.waits)),
            server: place,
            restarted: self.restarted,
            dropped: self.dropped,
            room: room(&folder(world)?, extent.size)?,
            turn: match Turns::of(world, "repair").look()? {
                turn::Turn::Taken(by) => Turn::Taken(by),
                turn::Turn::Free | turn::Turn::Ours(_) => Turn::Ours,
            },
            last: last.map(|record| Duration::from_secs(super::unix_now().saturating_sub(record.time))),
            order,
        })
    }

    /// Takes the mark from data that were to be replaced and never were: Patroni stops the server before it removes
    /// anything, and is not started with half of them.
    fn keep(&mut self, world: &World, now: Instant) -> Result<()> {
        let path = Path::new(BEGUN_PATH);
        let mark = || -> Result<Option<Begun>> {
            let Some(begun) = Begun::load(path).known()?.filter(|begun| begun.replaces.is_some()) else {
                return Ok(None);
            };
            let here = Replaced::of(&folder(world)?)?;
            Ok((begun.replaces == Some(here)).then_some(begun))
        };
        let Some(begun) = mark()? else { return Ok(()) };
        if self.kept_for(&begun, now) < KEPT_AFTER {
            return Ok(());
        }
        let _held = lock::hold_now("agent")?;
        if mark()? == Some(begun) {
            log::warning!("Patroni has not replaced this node's database: it counts as whole again");
            begun::forget(path)?;
        }
        Ok(())
    }

    /// For how long a server has run with the data of this mark.
    fn kept_for(&mut self, mark: &Begun, now: Instant) -> Duration {
        match &self.kept {
            Some((known, since)) if known == mark => now.duration_since(*since),
            _ => {
                self.kept = Some((mark.clone(), now));
                Duration::ZERO
            }
        }
    }

    /// For how long the replica has not come further.
    fn still(&mut self, position: u64, now: Instant) -> Duration {
        match self.moved {
            Some((best, since)) if position <= best => now.duration_since(since),
            _ => {
                self.moved = Some((position, now));
                (self.restarted, self.dropped) = (false, false);
                Duration::ZERO
            }
        }
    }
}

/// What a look at this node gave.
struct Seen<'a> {
    server: &'a super::patroni::Server,
    processes: Processes,
    place: Server,
}

/// What was begun, or when this node was repaired last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    phase: Phase,
    /// When it began, in seconds since 1970.
    time: u64,
    why: Why,
    way: Way,
    /// From whom it clones.
    from: String,
    /// Where the data are that were set aside.
    aside: Option<PathBuf>,
    /// Why it failed.
    error: Option<String>,
}

/// How far a repair has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// Patroni may be stopped, and the data may be set aside.
    Begun,
    /// Patroni clones.
    Cloning,
    /// The replica streams.
    Done,
    /// It could not be begun.
    Failed,
}

impl Record {
    fn load(path: &Path) -> Presence<Record> {
        Presence::of_text(path, 1 << 16).and_then(|text| match serde_json::from_str(&text) {
            Ok(record) => Presence::Present(record),
            Err(error) => Presence::Unknown(Doubt::new(format!("reading {}: {error}", path.display()))),
        })
    }

    /// The record at `path`. After the clock was set back, a time that is yet to come is written down as this moment,
    /// so that nothing waits until the clock has caught up.
    fn current(path: &Path) -> Result<Option<Record>> {
        let Some(record) = Record::load(path).known()? else { return Ok(None) };
        let dated = record.clone().until(super::unix_now());
        if dated != record {
            dated.store(path)?;
        }
        Ok(Some(dated))
    }

    /// The record with a time no later than `now`.
    fn until(self, now: u64) -> Record {
        Record { time: self.time.min(now), ..self }
    }

    fn store(&self, path: &Path) -> Result<()> {
        let mut new = NewFile::beside(path)?;
        new.write_all(&serde_json::to_vec_pretty(self)?).with_context(|| format!("writing {}", path.display()))?;
        new.publish(path)
    }

    fn words(&self, server: &super::patroni::Server) -> String {
        let kept = match &self.aside {
            Some(path) => format!("; its earlier data are in {}", path.display()),
            None => String::new(),
        };
        format!(
            "this replica is cloned again from {}, since {}: {} ({}){kept}",
            self.from,
            clock::utc(self.time as i64),
            self.why,
            server.words()
        )
    }
}

/// What a repair that was cut off has stopped is started again, whatever it had come to: `init` finds out.
fn resume(world: &World) -> Result<Vec<Attention>> {
    // Nobody has cut off what still has the lock.
    let _held = lock::hold_now("agent")?;
    world.ensure_not_ordered()?;
    let record = Record::current(Path::new(RECORD_PATH))?;
    let Some(record) = record.filter(|record| record.phase == Phase::Begun) else { return Ok(Vec::new()) };
    // After a boot it is at work anyway.
    if world.settled() {
        units::run_again(NODE_UNIT).with_context(|| format!("restarting {NODE_UNIT}"))?;
    }
    let main_is_aside = record.aside.is_some();
    let phase = if main_is_aside { Phase::Cloning } else { Phase::Failed };
    let error = (!main_is_aside).then(|| "it was cut off".to_owned());
    Record { phase, error, ..record.clone() }.store(Path::new(RECORD_PATH))?;
    Ok(Vec::new())
}

/// The replica streams: what was begun is done.
fn finish(world: &World) -> Result<Vec<Attention>> {
    let path = Path::new(RECORD_PATH);
    let Some(record) = Record::load(path).known()? else { return Ok(Vec::new()) };
    if record.phase == Phase::Cloning {
        // A moment ago Patroni was asked to replace the data, and these may be the old ones.
        if let Some(begun) = Begun::load(Path::new(BEGUN_PATH)).known()?
            && begun.may_be_half_gone(world.postgresql.unwrap_or_default(), &folder(world)?)
        {
            return Ok(Vec::new());
        }
        Turns::of(world, "repair").give_back()?;
        Record { phase: Phase::Done, ..record.clone() }.store(path)?;
        let kept = record.aside.map(|path| format!("; its earlier data are in {}", path.display())).unwrap_or_default();
        log::info!("this replica streams again, cloned again from {}{kept}", record.from);
    }
    Ok(Vec::new())
}

/// Why the last repair failed, to be told with what is the matter now.
fn last_error() -> Result<String> {
    let record = Record::load(Path::new(RECORD_PATH)).known()?;
    let error = record.filter(|record| record.phase == Phase::Failed).and_then(|record| record.error);
    Ok(error.map(|error| format!("; the last try failed: {error}")).unwrap_or_default())
}

fn folder(world: &World) -> Result<PathBuf> {
    let version = world.postgresql.context("the image has no PostgreSQL")?;
    Ok(Path::new(POSTGRESQL_DATA).join(version.to_string()).join("main"))
}

/// Where this node's server stands. Only what is known to be a replica that nobody is at work on stands apart.
fn place(server: &super::patroni::Server, processes: &Processes) -> Server {
    let role = server.role.as_str();
    if server.leads() || matches!(role, "primary" | "master" | "promoted" | "standby_leader") {
        return Server::Primary;
    }
    if server.streams() {
        return Server::Streaming;
    }
    if processes.rewinding {
        return Server::Busy("pg_rewind is at work".to_owned());
    }
    if BUSY.contains(&server.state.as_str()) || !matches!(role, "replica" | "demoted") {
        return Server::Busy(server.words());
    }
    Server::Apart(server.words())
}

/// What the processes of this node tell that Patroni does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Processes {
    /// `pg_rewind` is at work.
    rewinding: bool,
    /// What the server's recovery is at.
    recovery: Option<Recovery>,
}

/// What a server's recovery is at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recovery {
    /// The file of the WAL.
    segment: String,
    /// Whether it looks for that file; otherwise it reads it.
    waits: bool,
}

impl Recovery {
    /// Where the file begins; `size` is that of each file, if the primary has told it.
    fn start(&self, size: u64) -> Option<Lsn> {
        segment_start(self.segment.get(8..)?, if size == 0 { USUAL_SEGMENT } else { size })
    }
}

impl Processes {
    fn look() -> Result<Processes> {
        let mut found = Processes::default();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let folder = entry?.path();
            // Processes end while they are looked at, and not every entry is one.
            let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
            match name.trim_end() {
                "pg_rewind" => found.rewinding = true,
                "postgres" => {
                    if let Ok(title) = fs::read(folder.join("cmdline")) {
                        found.read(&String::from_utf8_lossy(&title));
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads a server process's title (PostgreSQL, `XLogFileRead`): `postgres: demo: startup recovering 0000...`.
    fn read(&mut self, title: &str) {
        let title = title.trim_end_matches('\0').trim_end();
        let Some((before, segment)) = title.rsplit_once(' ') else { return };
        if segment.len() != 24 || !segment.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return;
        }
        let waits = before.ends_with(" startup waiting for");
        if waits || before.ends_with(" startup recovering") {
            self.recovery = Some(Recovery { segment: segment.to_owned(), waits });
        }
    }
}

/// Whether Patroni has written that `pg_rewind` failed, since this node was repaired last.
fn rewind_failed(last: Option<&Record>) -> Result<bool> {
    let since = super::unix_now().saturating_sub(JOURNAL).max(last.map_or(0, |record| record.time));
    let journal = Run::new("journalctl")
        .args(["--unit", PATRONI_UNIT, "--output", "cat", "--quiet", "--lines", "5000", "--since"])
        .arg(format!("@{since}"))
        .limit(Duration::from_secs(30));
    Ok(journal.text().context("reading Patroni's journal")?.contains(REWIND_FAILED))
}

/// Our data: as the server says, or as its control file says.
fn own(world: &World, place: &Server) -> Result<Own, String> {
    let folder = folder(world).map_err(|error| format!("{error:#}"))?;
    let answers = matches!(place, Server::Apart(_) | Server::Streaming);
    if answers && let Ok(identity) = world.identify(At::OwnReplication) {
        return Ok(Own {
            history: own_history(&folder, identity.timeline)?,
            system: identity.system,
            timeline: identity.timeline,
            position: identity.position,
            exact: true,
        });
    }
    let version = world.postgresql.unwrap_or_default();
    match database::of_version(version, Database::look(&folder)) {
        Database::Present(facts) => {
            let (timeline, position) = facts.reached();
            let history = own_history(&folder, timeline)?;
            Ok(Own { system: facts.system, timeline, position, history, exact: false })
        }
        other => Err(other.words()),
    }
}

/// The timelines before `timeline` by our own files; nothing if the file is not there.
fn own_history(folder: &Path, timeline: u32) -> Result<Option<Vec<(u32, Lsn)>>, String> {
    if timeline == 1 {
        return Ok(Some(Vec::new()));
    }
    let path = folder.join(format!("pg_wal/{timeline:08X}.history"));
    match Presence::of_text(&path, LONGEST_HISTORY) {
        Presence::Absent => Ok(None),
        Presence::Unknown(doubt) => Err(doubt.to_string()),
        Presence::Present(text) => match history(&text) {
            Some(history) => Ok(Some(history)),
            None => Err(format!("{} is not understood", path.display())),
        },
    }
}

/// How large the primary's data and the files of its WAL are, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// All databases and the WAL.
    pub size: u64,
    /// One file of the WAL.
    pub segment: u64,
}

/// What the primary answers.
#[derive(Debug, Deserialize)]
struct Asked {
    system: String,
    recovery: bool,
    timeline: Option<u32>,
    position: Option<String>,
    slot: Option<String>,
    streaming: Vec<String>,
    size: u64,
    oldest: Option<String>,
    segment: u64,
    history: Option<String>,
}

/// Asks the primary about itself and about this node; also for the size of its data.
fn primary(world: &World, cluster: &Cluster) -> Result<(Primary, Extent), String> {
    let Some(name) = cluster.primary().map(|member| member.name.clone()) else {
        return Err("there is no running primary".to_owned());
    };
    let Some(member) = world.others().find(|member| member.name == name) else {
        return Err(format!("{name} is the primary, and this node's document does not name it"));
    };
    let doubt = |error: anyhow::Error| format!("{name}, the primary, does not answer: {error:#}");
    let answer = world.query(At::Other(member.address), &question(&world.me().name)).map_err(doubt)?;
    let refuses = world.identify(At::OtherReplication(member.address)).err().map(|error| format!("{error:#}"));
    let members: Vec<&str> = world.node.spec.members.iter().map(|member| member.name.as_str()).collect();
    read(&name, &world.me().name, &members, &answer, refuses)
}

/// Reads what the primary `name` answers to the member `me`'s [`question`]; also how large its data are. `refuses` is
/// why a replication connection to it fails. Of those that stream, the document's `members` have a copy, whom Patroni
/// has connect by their names; others receive WAL alone, or some tables.
///
/// # Errors
/// When the answer is not that of a primary; what it is then.
pub fn read(
    name: &str,
    me: &str,
    members: &[&str],
    answer: &str,
    refuses: Option<String>,
) -> Result<(Primary, Extent), String> {
    let not_understood = || format!("what {name} says of its WAL is not understood");
    let asked: Asked = serde_json::from_str(answer).map_err(|error| format!("{}: {error}", not_understood()))?;
    let extent = Extent { size: asked.size, segment: asked.segment };
    if asked.recovery {
        return Err(format!("{name} is about to become the primary"));
    }
    let position = asked.position.as_deref().and_then(lsn).ok_or_else(not_understood)?;
    let primary = Primary {
        name: name.to_owned(),
        system: asked.system,
        timeline: asked.timeline.ok_or_else(not_understood)?,
        position,
        history: history(asked.history.as_deref().unwrap_or_default()).ok_or_else(not_understood)?,
        oldest: asked.oldest.and_then(|name| segment_start(&name, asked.segment)).ok_or_else(not_understood)?,
        slot: match asked.slot.as_deref() {
            None => Slot::Missing,
            Some("lost") => Slot::Lost,
            Some(_) => Slot::Good,
        },
        others: members
            .iter()
            .filter(|member| **member != me && **member != name)
            .filter(|member| asked.streaming.iter().any(|streaming| streaming == *member))
            .count(),
        refuses,
    };
    Ok((primary, extent))
}

/// The name of a member's slot (Patroni, «Replication slots»): the member's with other characters for those that PostgreSQL
/// does not allow. Our names have letters, digits and hyphens.
fn slot_name(member: &str) -> String {
    member.replace('-', "_")
}

/// What the member `me` asks the primary.
pub fn question(me: &str) -> String {
    let slot = literal(&slot_name(me));
    format!(
        "SELECT json_build_object(
            'system', (SELECT system_identifier::text FROM pg_control_system()),
            'recovery', pg_is_in_recovery(),
            'timeline', tli, 'position', position,
            'slot', (SELECT coalesce(wal_status, 'unknown') FROM pg_replication_slots WHERE slot_name = {slot}),
            'streaming', (SELECT coalesce(json_agg(application_name), '[]') FROM pg_stat_replication
                WHERE state = 'streaming'),
            'size', (SELECT sum(pg_database_size(oid)) FROM pg_database) + (SELECT sum(size) FROM pg_ls_waldir()),
            'oldest', (SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$'),
            'segment', pg_size_bytes(current_setting('wal_segment_size')),
            'history', pg_read_file('pg_wal/' || lpad(upper(to_hex(tli)), 8, '0') || '.history', 0, 1048576, true))
         FROM (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn()::text END AS position,
                      CASE WHEN NOT pg_is_in_recovery() THEN
                          ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS tli) AS now"
    )
}

/// Reads a timeline history file (PostgreSQL, `src/backend/access/transam/timeline.c`): the timelines before, each with the
/// position at which the next begins.
fn history(text: &str) -> Option<Vec<(u32, Lsn)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, lsn(words.next()?)?))
        })
        .collect()
}

/// Where the WAL segment begins whose name is `name` without the timeline.
fn segment_start(name: &str, size: u64) -> Option<Lsn> {
    let high = u64::from_str_radix(name.get(..8)?, 16).ok()?;
    let low = u64::from_str_radix(name.get(8..16)?, 16).ok()?;
    Some(Lsn((high << 32).checked_add(low.checked_mul(size)?)?))
}

/// Whether there is room for `size` bytes beside the data in `folder`; or what is missing.
fn room(folder: &Path, size: u64) -> Result<Result<(), NoRoom>> {
    let above = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let disk =
        rustix::fs::statvfs(above).with_context(|| format!("measuring the free space of {}", above.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let wanted = size.saturating_add(size / 10).saturating_add(MARGIN);
    let mib = |bytes: u64| bytes >> 20;
    let asides = aside::count(folder)?;
    if asides >= ASIDES {
        return Ok(Err(NoRoom {
            why: format!("{asides} databases are set aside on this node already"),
            hint: "remove what is not needed (`pgha-node aside list`)".to_owned(),
        }));
    }
    Ok(if free >= wanted {
        Ok(())
    } else {
        Err(NoRoom {
            why: format!("a clone beside its data needs {} MiB, {} are free", mib(wanted), mib(free)),
            hint: "make room (`pgha-node aside list`), or `pgha-node reclone --in-place`".to_owned(),
        })
    })
}

fn drop_lost_slot(world: &World, view: &View) -> Result<()> {
    let Ok(primary) = &view.primary else { return Ok(()) };
    let Some(member) = world.others().find(|member| member.name == primary.name) else { return Ok(()) };
    let slot = literal(&slot_name(&world.me().name));
    let sql = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = {slot} AND NOT active AND wal_status = 'lost'"
    );
    world.query(At::Other(member.address), &sql).context("dropping the lost slot on the primary")?;
    log::warning!("dropped this replica's slot on {}, which was lost; Patroni makes a new one", primary.name);
    Ok(())
}

/// Takes the node's lock for what was decided from `view`, and looks `again`: the first look may be a minute old, and
/// only from now on does nobody else change this node.
///
/// # Errors
/// When somebody else is at work on this node, or the second look leads to something else.
fn hold(world: &World, verb: &str, view: &View, again: impl FnOnce() -> Result<View>) -> Result<(lock::Held, View)> {
    let held = lock::hold_now(verb)?;
    world.ensure_not_ordered()?;
    let now = again()?;
    // Both looks and what follows may each take minutes.
    super::tell_systemd(&[sd_notify::NotifyState::Watchdog]);
    verify_same(view, &now)?;
    ensure_leads(world, &now)?;
    Ok((held, now))
}

/// Whether two looks lead to the same step, with the same primary.
fn verify_same(before: &View, now: &View) -> Result<(), UserError> {
    let primary =
        |view: &View| view.primary.as_ref().ok().map(|primary| (primary.name.clone(), primary.system.clone()));
    if next(before) == next(now) && primary(before) == primary(now) {
        return Ok(());
    }
    Err(UserError::runtime("this node or the primary has changed since it was decided what to do: nothing is done")
        .hint("see `pgha-node status`, and try again"))
}

/// Clones this node again. What fails is not tried again for an hour.
fn repair(world: &World, view: &View, why: Why, way: Way, again: impl FnOnce() -> Result<View>) -> Result<()> {
    match Turns::of(world, "repair").take()? {
        turn::Turn::Ours(_) => {}
        turn::Turn::Free | turn::Turn::Taken(_) => bail!("another node is repaired first"),
    }
    let (held, view) = hold(world, "reclone", view, again)?;
    let primary = view.primary.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = Path::new(RECORD_PATH);
    let mut record = Record {
        phase: Phase::Begun,
        time: super::unix_now(),
        why,
        way,
        from: primary.name.clone(),
        aside: None,
        error: None,
    };
    record.store(path)?;
    log::warning!("this replica is cloned again from {}: {why}", primary.name);
    let done = match way {
        Way::Aside => set_aside(world, &view, &mut record),
        Way::InPlace => replace(world, &view),
    };
    match &done {
        Ok(()) => record.phase = Phase::Cloning,
        Err(error) => (record.phase, record.error) = (Phase::Failed, Some(format!("{error:#}"))),
    }
    record.store(path)?;
    if done.is_err() {
        // The turn ends by itself if etcd does not answer.
        let _ = Turns::of(world, "repair").give_back();
    }
    drop(held);
    units::run_again(NODE_UNIT).with_context(|| format!("restarting {NODE_UNIT}"))?;
    done.context("cloning this replica again")
}

/// The last look before anything is touched, at what etcd says rather than at what Patroni said: the primary that was asked
/// is the leader still, and this node is not.
fn ensure_leads(world: &World, view: &View) -> Result<()> {
    let primary = view.primary.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let key = format!("/service/{}/leader", world.node.spec.cluster);
    let leader = world.etcd.get(&key).context("asking etcd for the leader")?;
    let leader = leader.map(|key| String::from_utf8_lossy(&key.value).into_owned());
    match leader {
        Some(leader) if leader == world.me().name => {
            Err(UserError::usage("this node is the leader").hint("hand over first").into())
        }
        Some(leader) if leader == primary.name => Ok(()),
        Some(leader) => Err(UserError::runtime(format!("{leader} leads now, no longer {}", primary.name)).into()),
        None => Err(UserError::runtime("the cluster has no leader now").into()),
    }
}

fn set_aside(world: &World, view: &View, record: &mut Record) -> Result<()> {
    let folder = folder(world)?;
    // Before anything stops: such data stay in their place.
    verify_movable(&folder, Way::Aside)?;
    units::stop(PATRONI_UNIT)?;
    ensure!(units::show(PATRONI_UNIT)?.active != "active", "{PATRONI_UNIT} does not stop");
    database::stop_server(&folder)?;
    if view.primary.as_ref().is_ok_and(|primary| primary.slot == Slot::Lost)
        && let Err(error) = drop_lost_slot(world, view)
    {
        log::warning!("{error:#}");
    }
    if Presence::of_folder(&folder).known()?.is_some() {
        record.aside = Some(aside::set_database_aside(&folder, record.why.word())?);
        record.store(Path::new(RECORD_PATH))?;
    }
    Ok(())
}

/// Refuses a database with tablespaces elsewhere. Beside a clone they would be overwritten; in place, Patroni
/// (`remove_data_directory`) removes the folders that they lead to with all that is in them, other data too.
fn verify_movable(folder: &Path, way: Way) -> Result<()> {
    match (aside::elsewhere(folder)?, way) {
        (None, _) => Ok(()),
        (Some(elsewhere), Way::Aside) => Err(elsewhere.into()),
        (Some(elsewhere), Way::InPlace) => Err(elsewhere.in_place().into()),
    }
}

/// What becomes of our data, for a person; `room` is whether there is some beside a clone.
fn kept(way: Way, room: &Result<(), NoRoom>) -> String {
    match (way, room) {
        (Way::Aside, _) => "they are set aside and kept (`pgha-node aside list`)".to_owned(),
        (Way::InPlace, Ok(())) => "they are REMOVED".to_owned(),
        (Way::InPlace, Err(NoRoom { why, .. })) => format!("they are REMOVED, not set aside, because {why}"),
    }
}

/// Lets Patroni replace the data. The mark tells the next boot that half a database in their place is a clone cut off,
/// and that what is there may be half of the data that Patroni was removing.
fn replace(world: &World, view: &View) -> Result<()> {
    let version = world.postgresql.context("the image has no PostgreSQL")?;
    verify_movable(&folder(world)?, Way::InPlace)?;
    // Nothing is marked for a Patroni that cannot be asked.
    world.server()?;
    if view.primary.as_ref().is_ok_and(|primary| primary.slot == Slot::Lost) {
        drop_lost_slot(world, view)?;
    }
    let revision = world.etcd.status(world.etcd.endpoint())?.header.revision;
    let time = super::unix_now() as i64;
    let replaces = Some(Replaced::of(&folder(world)?)?);
    Begun { what: What::Clone, version, revision, time, replaces }.store(Path::new(BEGUN_PATH))?;
    // Whatever it answers, it may have begun, so that the mark stays. [`Repair::keep`] removes it if it has not.
    world.tell_patroni("reinitialize", &serde_json::json!({"force": true})).map(drop)
}

/// What a person's order would do.
#[derive(Debug)]
pub struct Plan {
    world: World,
    order: CloneOrder,
    view: View,
    why: Why,
    way: Way,
}

impl Plan {
    /// Looks what the order means.
    ///
    /// # Errors
    /// When it cannot be carried out; why.
    pub fn of(order: CloneOrder) -> Result<Plan> {
        let world = World::open()?;
        if world.postgresql.is_none() {
            return Err(UserError::usage("the image of this node has no PostgreSQL").into());
        }
        world.ensure_not_ordered()?;
        let view = Repair::default().look(&world, Some(order))?;
        match next(&view) {
            Step::Repair(why, way) => {
                verify_movable(&folder(&world)?, way)?;
                Ok(Plan { world, order, view, why, way })
            }
            Step::Tell(why) => Err(UserError::usage(format!("this node is not cloned again: {why}")).into()),
            Step::Nothing | Step::DropSlot | Step::Restart => bail!("nothing is to be done"),
        }
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.world.me().name
    }

    /// What will be done, for a person.
    ///
    /// # Errors
    /// When the image has no PostgreSQL.
    pub fn words(&self) -> Result<String> {
        let from = self.view.primary.as_ref().map_or("the primary", |primary| primary.name.as_str());
        let folder = folder(&self.world)?;
        let own = match &self.view.own {
            Ok(own) => format!("system {}, timeline {}, {}", own.system, own.timeline, own.position),
            Err(why) => why.clone(),
        };
        let kept = kept(self.way, &self.view.room);
        Ok(format!("{} has {own}: {kept}. Then the database of {from} is cloned.", folder.display()))
    }

    /// Does it.
    ///
    /// # Errors
    /// When it cannot be begun.
    pub fn carry_out(&self) -> Result<()> {
        let again = || Repair::default().look(&self.world, Some(self.order));
        repair(&self.world, &self.view, self.why, self.way, again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primarys_answer_is_read() {
        let answer = r#"{"system" : "7712652082925278041", "recovery" : false, "timeline" : 3, "position" : "1/3000148",
            "slot" : "lost", "streaming" : ["pg-3", "pg-2", "pg-3"], "size" : 31222784, "oldest" : "00000001000000FE",
            "segment" : 16777216, "history" : "1\t0/5000000\tno recovery target specified\n\n2\t1/20000A0\tx\n"}"#;
        let members = ["pg-1", "pg-2", "pg-3"];
        let read = |answer: &str| read("pg-1", "pg-2", &members, answer, None);
        let (primary, extent) = read(answer).unwrap();
        assert_eq!(primary.history, [(1, Lsn(0x500_0000)), (2, Lsn(0x1_0200_00a0))]);
        assert_eq!((primary.oldest, primary.slot, primary.others), (Lsn(0x1_fe00_0000), Slot::Lost, 1));
        assert_eq!(extent, Extent { size: 31222784, segment: 16 << 20 });
        let empty = r#"{"system": "7", "recovery": true, "timeline": null, "position": null, "slot": null,
            "streaming": [], "size": 1, "oldest": null, "segment": 16777216, "history": null}"#;
        assert_eq!(read(empty), Err("pg-1 is about to become the primary".to_owned()));
        for odd in [&empty.replace("true", "false"), "", "{}"] {
            assert!(read(odd).unwrap_err().contains("is not understood"), "{odd}");
        }
    }

    #[test]
    fn only_the_other_members_have_another_copy() {
        let others = |streaming: &[&str]| {
            let answer = serde_json::json!({"system": "7", "recovery": false, "timeline": 1, "position": "0/3000148",
                "slot": null, "streaming": streaming, "size": 1, "oldest": "0000000000000001", "segment": 16777216,
                "history": null});
            read("pg-1", "pg-2", &["pg-1", "pg-2", "pg-3", "pg-4"], &answer.to_string(), None).unwrap().0.others
        };
        assert_eq!(others(&["pg-3", "pg-4"]), 2);
        assert_eq!(others(&["pg-2", "pg_receivewal", "pg_basebackup", "a_subscription", "pg-9", "pg-1", ""]), 0);
    }

    #[test]
    fn what_is_done_must_be_decided_twice() {
        let primary = |name: &str| decide::Primary {
            name: name.to_owned(),
            system: "7".into(),
            timeline: 3,
            position: Lsn(0x9000),
            history: Vec::new(),
            oldest: Lsn(0x4000),
            slot: Slot::Good,
            others: 1,
            refuses: None,
        };
        let hour = Duration::from_secs(3600);
        let view = View {
            server: Server::Apart("running".into()),
            absent: hour,
            still: hour,
            paused: false,
            primary: Ok(primary("pg-1")),
            own: Ok(Own { system: "7".into(), timeline: 3, position: Lsn(0x3000), history: Some(vec![]), exact: true }),
            waits: None,
            rewind_failed: false,
            restarted: false,
            dropped: false,
            room: Ok(()),
            turn: Turn::Ours,
            last: None,
            order: None,
        };
        assert_eq!(next(&view), Step::Repair(Why::WalGone, Way::Aside));
        let again = |change: fn(&mut View)| {
            let mut now = view.clone();
            change(&mut now);
            verify_same(&view, &now)
        };
        assert!(again(|_| {}).is_ok());
        assert!(again(|view| view.still += Duration::from_secs(60)).is_ok());
        let changes: [fn(&mut View); 7] = [
            |view| view.server = Server::Streaming,
            |view| view.server = Server::Primary,
            |view| view.still = Duration::ZERO,
            |view| view.paused = true,
            |view| view.primary = Err("there is no running primary".into()),
            |view| view.room = Err(NoRoom { why: "no room".into(), hint: "make some".into() }),
            |view| view.rewind_failed = true,
        ];
        for change in changes {
            assert!(again(change).unwrap_err().to_string().contains("nothing is done"));
        }
        let other = View { primary: Ok(primary("pg-3")), ..view.clone() };
        assert!(verify_same(&view, &other).is_err(), "another primary");
    }

    #[test]
    fn a_person_is_told_why_data_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("main");
        fs::create_dir(&main).unwrap();
        let why = |size| kept(Way::InPlace, &room(&main, size).unwrap());
        assert_eq!(room(&main, 0).unwrap(), Ok(()));
        assert!(why(u64::MAX).contains("REMOVED, not set aside, because a clone beside its data needs"));
        assert!(!why(u64::MAX).contains("--in-place"), "that is what was ordered");
        for number in 1..=ASIDES {
            fs::create_dir(root.path().join(format!("main.aside-20261127T01090{number}Z-x"))).unwrap();
        }
        assert!(why(0).ends_with("because 2 databases are set aside on this node already"), "{}", why(0));
        let told = room(&main, 0).unwrap().unwrap_err().to_string();
        assert!(told.ends_with("already: remove what is not needed (`pgha-node aside list`)"), "{told}");
        assert!(kept(Way::Aside, &Ok(())).contains("kept"));
    }

    #[test]
    fn tablespaces_elsewhere_stop_both_ways() {
        let root = tempfile::tempdir().unwrap();
        let (main, space) = (root.path().join("main"), root.path().join("ts"));
        fs::create_dir_all(main.join("pg_tblspc")).unwrap();
        for way in [Way::Aside, Way::InPlace] {
            verify_movable(&main, way).unwrap();
        }
        fs::create_dir(&space).unwrap();
        std::os::unix::fs::symlink(&space, main.join("pg_tblspc/16384")).unwrap();
        let told = |way| verify_movable(&main, way).unwrap_err().to_string();
        assert!(told(Way::Aside).contains("is not set aside"), "{}", told(Way::Aside));
        let told = told(Way::InPlace);
        for part in ["is not replaced in its place", "remove with all that is in it", "pgha-node aside make database"] {
            assert!(told.contains(part), "`{part}` is not in {told}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_repairs_until_it_has_caught_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repair.json");
        let now = super::super::unix_now();
        let record = Record {
            phase: Phase::Done,
            time: now + 86_400,
            why: Why::WalGone,
            way: Way::Aside,
            from: "pg-1".into(),
            aside: None,
            error: None,
        };
        assert_eq!(record.clone().until(now).time, now);
        assert_eq!(Record { time: now - 5, ..record.clone() }.until(now).time, now - 5);
        record.store(&path).unwrap();
        let written = Record::current(&path).unwrap().unwrap();
        assert!((now..now + 60).contains(&written.time), "{}", written.time);
        // It is on the disk, so that the hour passes.
        assert_eq!(Record::load(&path), Presence::Present(written));
    }

    #[test]
    fn a_mark_is_kept_as_long_as_patroni_may_be_about_to_begin() {
        let mut repair = Repair::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mark = |time| Begun { what: What::Clone, version: 17, revision: 9, time, replaces: None };
        assert_eq!(repair.kept_for(&mark(1), after(0)), Duration::ZERO);
        assert_eq!(repair.kept_for(&mark(1), after(60)), Duration::from_secs(60));
        assert_eq!(repair.kept_for(&mark(2), after(75)), Duration::ZERO, "it was asked again");
        assert_eq!(repair.kept_for(&mark(2), after(90)), Duration::from_secs(15));
    }

    #[test]
    fn what_moves_is_not_still() {
        let mut repair = Repair::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(repair.still(5, after(0)), Duration::ZERO);
        assert_eq!(repair.still(5, after(60)), Duration::from_secs(60));
        (repair.restarted, repair.dropped) = (true, true);
        assert_eq!(repair.still(0, after(90)), Duration::from_secs(90), "a server that does not answer does not move");
        assert!(repair.restarted && repair.dropped);
        assert_eq!(repair.still(6, after(100)), Duration::ZERO);
        assert!(!repair.restarted && !repair.dropped);
    }

    #[test]
    fn the_words_of_patroni_are_understood() {
        let server = |role: &str, state: &str, streaming: Option<&str>| super::super::patroni::Server {
            role: role.into(),
            state: state.into(),
            replication_state: streaming.map(str::to_owned),
            ..super::super::patroni::Server::default()
        };
        let idle = Processes::default();
        assert_eq!(place(&server("primary", "running", None), &idle), Server::Primary);
        for role in ["primary", "master", "promoted", "standby_leader"] {
            assert_eq!(place(&server(role, "starting", None), &idle), Server::Primary, "{role}");
        }
        assert_eq!(place(&server("replica", "running", Some("streaming")), &idle), Server::Streaming);
        assert!(matches!(place(&server("replica", "running", Some("in archive recovery")), &idle), Server::Apart(_)));
        let rewinding = Processes { rewinding: true, ..Processes::default() };
        assert!(matches!(place(&server("replica", "stopped", None), &rewinding), Server::Busy(_)));
        assert!(matches!(place(&server("replica", "creating replica", None), &idle), Server::Busy(_)));
        for state in ["running", "starting", "start failed", "crashed", "stopped", "unknown"] {
            for role in ["replica", "demoted"] {
                assert!(matches!(place(&server(role, state, None), &idle), Server::Apart(_)), "{state}");
            }
            // Nothing is done to what is not known.
            for role in ["uninitialized", "", "something new"] {
                assert!(matches!(place(&server(role, state, None), &idle), Server::Busy(_)), "{role}");
            }
        }
    }

    #[test]
    fn what_recovery_is_at_is_read_from_its_title() {
        let read = |title: &str| {
            let mut found = Processes::default();
            found.read(title);
            found.recovery
        };
        let recovery = |waits| Some(Recovery { segment: "00000003000000010000000A".into(), waits });
        assert_eq!(read("postgres: demo: startup recovering 00000003000000010000000A\0"), recovery(false));
        assert_eq!(read("postgres: demo: startup waiting for 00000003000000010000000A   "), recovery(true));
        for other in
            ["postgres: demo: startup ", "postgres: demo: walsender replicator 10.0.0.1(4) streaming 0/3000148", ""]
        {
            assert_eq!(read(other), None, "{other}");
        }
        let start = recovery(true).unwrap().start(0);
        assert_eq!(
            (start, recovery(true).unwrap().start(1 << 20)),
            (Some(Lsn(0x1_0a00_0000)), Some(Lsn(0x1_00a0_0000)))
        );
    }

    #[test]
    fn our_own_history_is_read_or_not_known() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        assert_eq!(own_history(folder.path(), 1), Ok(Some(vec![])));
        assert_eq!(own_history(folder.path(), 2), Ok(None));
        let path = folder.path().join("pg_wal/00000002.history");
        fs::write(&path, "1\t0/5000000\tno recovery target specified\n").unwrap();
        assert_eq!(own_history(folder.path(), 2), Ok(Some(vec![(1, Lsn(0x500_0000))])));
        fs::write(&path, "1").unwrap();
        assert!(own_history(folder.path(), 2).is_err());
    }

    #[test]
    fn a_record_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repair.json");
        assert_eq!(Record::load(&path), Presence::Absent);
        let record = Record {
            phase: Phase::Cloning,
            time: 1_795_741_749,
            why: Why::WalGone,
            way: Way::Aside,
            from: "pg-1".into(),
            aside: Some("/var/lib/postgresql/17/main.aside-20261127T010909Z-wal-gone".into()),
            error: None,
        };
        record.store(&path).unwrap();
        assert_eq!(Record::load(&path), Presence::Present(record));
        fs::write(&path, "{").unwrap();
        assert!(matches!(Record::load(&path), Presence::Unknown(_)));
    }
}
