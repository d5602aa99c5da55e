//! Acts before the disk of the databases is full.
//!
//! PostgreSQL stops when it cannot write its WAL, starts again, and stops again; Patroni lets it try, and where etcd shares
//! the disk, etcd stops too. So the guard acts earlier: it warns, hands the primary over to a replica that has room, and
//! otherwise makes the database read-only while there is still room to mend things, and opens it again by itself.
//!
//! Read-only is `default_transaction_read_only`, in a file of Patroni's configuration of this node alone: it outlives a
//! restart of the server, does not close another primary, and is gone when Patroni is stopped or the machine boots. Sessions
//! that write get PostgreSQL's own error; transactions that were writing are ended; the superuser may write, and anybody may
//! who says `BEGIN READ WRITE`, to free space.
//!
//! etcd has a file in reserve, which goes when its disk is full and is made again when there is room.

use super::{
    Attention, Concern, World,
    sql::{At, literal},
};
use crate::{
    files::{NewFile, Presence, sync_folder},
    log,
    node::{state::POSTGRESQL_DATA, units},
};
use anyhow::{Context as _, Result};
use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(5);
/// Patroni reads every file of this folder, in the order of their names; this one comes after `config.yml`. The folder goes
/// with the unit (`patroni.service.d/pgha.conf`).
const CLOSED_PATH: &str = "/run/patroni/read-only.yml";
const CLOSED: &str = "\
# Written by pgha-node agent, which takes it away again: the disk of the database is nearly full.
postgresql:
  parameters:
    default_transaction_read_only: \"on\"
";
const PATRONI_UNIT: &str = "patroni.service";
const ETCD: &str = "/var/lib/etcd";
/// How long after a hand-over there is no other.
const BETWEEN: Duration = Duration::from_secs(3600);
/// When Patroni has had its server read the parameter.
const IN_FORCE: Duration = Duration::from_secs(20);
/// How far behind a replica may be that takes over, in bytes.
const LAG: u64 = 16 << 20;
/// etcd's file in reserve.
const RESERVE_PATH: &str = "/var/lib/etcd/reserve";
const RESERVE: u64 = 64 << 20;

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Bytes that may still be written by a user without privileges.
    pub free: u64,
    /// How much of what such a user may use is used, in hundredths.
    pub percent: f64,
}

impl Usage {
    fn of(path: &Path) -> Result<Usage> {
        let disk =
            rustix::fs::statvfs(path).with_context(|| format!("measuring the free space of {}", path.display()))?;
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        let all = used.saturating_add(disk.f_bavail).max(1);
        Ok(Usage { free: disk.f_bavail.saturating_mul(disk.f_frsize), percent: used as f64 * 100.0 / all as f64 })
    }

    fn words(&self) -> String {
        format!("{:.0} % full, {} MiB are free", self.percent.floor(), self.free >> 20)
    }
}

/// How full it is, for decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There is room.
    #[default]
    Low,
    /// A person is told.
    Warn,
    /// The primary is handed over.
    High,
    /// The database is read-only.
    Full,
}

impl Level {
    /// From what fullness on it is reached, and below which it is left.
    fn bounds(self) -> (f64, f64) {
        match self {
            Level::Low => (0.0, 0.0),
            Level::Warn => (80.0, 78.0),
            Level::High => (90.0, 88.0),
            Level::Full => (95.0, 90.0),
        }
    }

    /// The level after `self` at this fullness.
    fn next(self, percent: f64) -> Level {
        let is = |level: &Level| {
            let (from, below) = level.bounds();
            percent >= if *level <= self { below } else { from }
        };
        [Level::Full, Level::High, Level::Warn].into_iter().find(is).unwrap_or(Level::Low)
    }
}

/// What is seen of the database's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    level: Level,
    /// Whether the database of this node is read-only by the guard.
    closed: bool,
    /// Whether this node is the primary; nothing if that is not known.
    primary: Option<bool>,
    /// Patroni's maintenance mode.
    paused: bool,
    /// A replica that streams and has room.
    candidate: Option<String>,
    /// Whether the primary was handed over a while ago.
    lately: bool,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Hand the primary over to this replica.
    HandOver(String),
    /// Make the database read-only.
    Close,
    /// Let it be written again.
    Open,
}

fn next(view: &View) -> Step {
    let hand_over = view.candidate.as_ref().filter(|_| !view.paused && !view.lately);
    match view.primary {
        None => Step::Nothing,
        // What closes a primary must not close the next one.
        Some(false) if view.closed => Step::Open,
        Some(false) => Step::Nothing,
        Some(true) if view.closed && view.level < Level::Full => Step::Open,
        Some(true) => match hand_over {
            Some(candidate) if view.level >= Level::High => Step::HandOver(candidate.clone()),
            _ if view.level == Level::Full && !view.closed => Step::Close,
            _ => Step::Nothing,
        },
    }
}

/// The concern.
#[derive(Debug, Default)]
pub struct Disk {
    level: Level,
    etcd: Level,
    /// The level that the others know.
    published: Option<Level>,
    handed_over: Option<Instant>,
    /// When the database was closed, if its writers have not been ended yet: here, and in seconds since 1970.
    closing: Option<(Instant, u64)>,
}

/// What the others know of a node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    level: Level,
}

impl Concern for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn tick(&mut self, world: &World, now: Instant) -> Result<Vec<Attention>> {
        let etcd = self.look_after_etcd()?;
        if world.postgresql.is_none() {
            return Ok(etcd.into_iter().collect());
        }
        let data = Path::new(POSTGRESQL_DATA);
        let usage = Usage::of(data)?;
        self.level = self.level.next(usage.percent);
        let closed = Presence::of(Path::new(CLOSED_PATH)).known()?.is_some();
        let mut told = tell(self.level, &usage, closed);
        // On a disk that both share, once is enough.
        if data.metadata()?.dev() != Path::new(ETCD).metadata()?.dev() {
            told.extend(etcd);
        }
        if self.published != Some(self.level) && world.settled() {
            publish(world, self.level)?;
            self.published = Some(self.level);
        }
        if closed || self.level >= Level::High {
            self.guard(world, closed, now)?;
        }
        Ok(told)
    }
}

impl Disk {
    fn guard(&mut self, world: &World, closed: bool, now: Instant) -> Result<()> {
        let view = self.gather(world, closed, now)?;
        match next(&view) {
            Step::Nothing => {}
            Step::HandOver(candidate) => {
                self.handed_over = Some(now);
                log::warning!("the disk of the primary is nearly full: handing over to {candidate}, which has room");
                let body = serde_json::json!({"leader": world.me().name, "candidate": candidate});
                world.tell_patroni("switchover", &body)?;
            }
            Step::Close => {
                close(world)?;
                self.closing = Some((now, super::unix_now()));
            }
            Step::Open => {
                open()?;
                self.closing = None;
            }
        }
        if let Some((since, unix)) = self.closing
            && now.duration_since(since) >= IN_FORCE
        {
            self.closing = None;
            end_writers(world, unix)?;
        }
        Ok(())
    }

    fn gather(&self, world: &World, closed: bool, now: Instant) -> Result<View> {
        let server = world.server().ok();
        let primary = server.as_ref().map(super::patroni::Server::leads);
        let (candidate, paused) = if primary == Some(true) { candidate(world)? } else { (None, false) };
        Ok(View {
            level: self.level,
            closed,
            primary,
            paused,
            candidate,
            lately: self.handed_over.is_some_and(|at| now.duration_since(at) < BETWEEN),
        })
    }

    /// Lets etcd's reserve go, or makes it again; returns what is to be told of its disk.
    fn look_after_etcd(&mut self) -> Result<Option<Attention>> {
        let usage = Usage::of(Path::new(ETCD))?;
        self.etcd = self.etcd.next(usage.percent);
        let path = Path::new(RESERVE_PATH);
        let there = Presence::of(path).known()?.is_some();
        match reserve(there, &usage) {
            Reserve::Keep => {}
            Reserve::LetGo => {
                fs::remove_file(path).with_context(|| format!("removing {RESERVE_PATH}"))?;
                sync_folder(Path::new(ETCD))?;
                log::warning!("etcd's disk is full: its reserve of {} MiB is free now", RESERVE >> 20);
            }
            Reserve::Make => make_reserve(path)?,
        }
        Ok((self.etcd > Level::Low).then(|| {
            let text = format!("etcd's disk ({ETCD}) is {}", usage.words());
            Attention { serious: self.etcd >= Level::High, ..Attention::notice("disk/etcd", text) }
        }))
    }
}

/// What becomes of etcd's reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reserve {
    Keep,
    LetGo,
    Make,
}

fn reserve(there: bool, usage: &Usage) -> Reserve {
    if there && (usage.free < RESERVE / 4 || usage.percent >= 99.0) {
        Reserve::LetGo
    } else if !there && usage.percent < 85.0 && usage.free > 8 * RESERVE {
        Reserve::Make
    } else {
        Reserve::Keep
    }
}

fn make_reserve(path: &Path) -> Result<()> {
    let doing = || format!("making {}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).with_context(doing)?;
    if let Err(error) = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE) {
        drop(file);
        let _ = fs::remove_file(path);
        return Err(error).with_context(doing);
    }
    Ok(())
}

/// What is told of the disk of the databases.
fn tell(level: Level, usage: &Usage, closed: bool) -> Vec<Attention> {
    let words = usage.words();
    let disk = format!("the disk of the databases ({POSTGRESQL_DATA}) is {words}");
    if closed {
        let text = format!(
            "the database is read-only, for {disk}: free space (the superuser may write), or give it a larger disk; it opens \
             by itself below 90 %"
        );
        return vec![Attention::serious("disk/full", text)];
    }
    match level {
        Level::Low => Vec::new(),
        Level::Warn => vec![Attention::notice("disk/full", disk)],
        Level::High | Level::Full => vec![Attention::serious(
            "disk/full",
            format!("{disk}; a primary is handed over to a replica that has room, and is read-only from 95 % on"),
        )],
    }
}

fn publish(world: &World, level: Level) -> Result<()> {
    let key = world.key(&format!("disk/{}", world.me().name));
    let value = serde_json::to_vec(&Told { level })?;
    let known = world.etcd.get(&key).context("reading the record of this node's disk from etcd")?;
    if known.is_none_or(|known| known.value != value) {
        world.etcd.put(&key, value, 0).context("recording in etcd how full this node's disk is")?;
    }
    Ok(())
}

/// A replica that streams, is not far behind and has room, one that holds all commits first; and whether Patroni is
/// paused.
fn candidate(world: &World) -> Result<(Option<String>, bool)> {
    let cluster = world.cluster()?;
    let mut fit: Vec<(bool, String)> = Vec::new();
    for member in &cluster.members {
        let synchronous = matches!(member.role.as_str(), "sync_standby" | "quorum_standby");
        let near = member.lag.as_ref().and_then(serde_json::Value::as_u64).is_some_and(|lag| lag <= LAG);
        if member.state != "streaming" || !near || member.name == world.me().name {
            continue;
        }
        let key = world.key(&format!("disk/{}", member.name));
        let told = world.etcd.get(&key)?.and_then(|key| serde_json::from_slice::<Told>(&key.value).ok());
        // Who has told nothing may be full as well.
        if told.is_some_and(|told| told.level == Level::Low) {
            fit.push((synchronous, member.name.clone()));
        }
    }
    // Where commits wait for a replica, Patroni hands over to one that holds them all.
    let waits = cluster.members.iter().any(|member| matches!(member.role.as_str(), "sync_standby" | "quorum_standby"));
    let fit = fit.into_iter().filter(|(synchronous, _)| *synchronous || !waits).max().map(|(_, name)| name);
    Ok((fit, cluster.pause))
}

fn close(world: &World) -> Result<()> {
    // The role's own setting outdoes the server's: whoever mends things may write.
    let spare = "BEGIN READ WRITE; ALTER ROLE postgres SET default_transaction_read_only = off; COMMIT";
    if let Err(error) = world.query(At::Own, spare) {
        log::warning!("letting the superuser write: {error:#}");
    }
    let path = Path::new(CLOSED_PATH);
    let mut new = NewFile::beside(path)?;
    new.write_all(CLOSED.as_bytes()).with_context(|| format!("writing {CLOSED_PATH}"))?;
    new.file().set_permissions(Permissions::from_mode(0o644))?;
    new.publish(path)?;
    log::error!("the disk of the database is nearly full: it is read-only until there is room");
    units::reload(PATRONI_UNIT)?;
    Ok(())
}

fn open() -> Result<()> {
    fs::remove_file(CLOSED_PATH).with_context(|| format!("removing {CLOSED_PATH}"))?;
    log::info!("the database may be written again");
    units::reload(PATRONI_UNIT)?;
    Ok(())
}

/// Ends the transactions that have written and began before the database was closed.
fn end_writers(world: &World, closed: u64) -> Result<()> {
    let before = closed + IN_FORCE.as_secs() / 2;
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity JOIN pg_roles ON pg_roles.oid = usesysid
         WHERE backend_type = 'client backend' AND backend_xid IS NOT NULL AND NOT rolsuper
         AND xact_start < to_timestamp({})",
        literal(&before.to_string())
    );
    let ended = world.query(At::Own, &sql).context("ending the transactions that write")?;
    if ended != "0" {
        log::warning!("ended {ended} sessions that were writing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [Level; 4] = [Level::Low, Level::Warn, Level::High, Level::Full];

    #[test]
    fn a_level_is_left_below_where_it_is_reached() {
        let walk = |steps: &[u32]| {
            let mut level = Level::Low;
            let step = |percent: &u32| {
                level = level.next(f64::from(*percent));
                level
            };
            steps.iter().map(step).collect::<Vec<_>>()
        };
        use Level::*;
        assert_eq!(walk(&[79, 80, 79, 78, 77]), [Low, Warn, Warn, Warn, Low]);
        assert_eq!(walk(&[90, 89, 88, 87, 77]), [High, High, High, Warn, Low]);
        assert_eq!(walk(&[96, 94, 90, 89, 87]), [Full, Full, Full, High, Warn]);
        assert_eq!(walk(&[100, 10]), [Full, Low]);
    }

    #[test]
    fn every_case_of_a_disk_is_decided() {
        for level in LEVELS {
            for closed in [true, false] {
                for primary in [None, Some(true), Some(false)] {
                    for paused in [true, false] {
                        for candidate in [None, Some("pg-2".to_owned())] {
                            for lately in [true, false] {
                                let view =
                                    View { level, closed, primary, paused, candidate: candidate.clone(), lately };
                                check(&view);
                            }
                        }
                    }
                }
            }
        }
    }

    fn check(view: &View) {
        let may_hand_over = view.candidate.is_some() && !view.paused && !view.lately;
        match next(view) {
            Step::Close => {
                assert!(view.primary == Some(true) && view.level == Level::Full && !view.closed && !may_hand_over);
            }
            Step::Open => {
                assert!(view.closed && (view.primary == Some(false) || view.level < Level::Full), "{view:?}");
            }
            Step::HandOver(_) => {
                assert!(view.primary == Some(true) && view.level >= Level::High && may_hand_over, "{view:?}");
            }
            Step::Nothing => {
                // A primary on a full disk is closed; nobody stays closed who need not be.
                let writes = view.primary == Some(true) && view.level == Level::Full && !view.closed;
                let is_closed_in_vain = view.closed
                    && (view.primary == Some(false) || view.primary == Some(true) && view.level < Level::Full);
                assert!(!writes && !is_closed_in_vain, "{view:?}");
            }
        }
    }

    #[test]
    fn the_reserve_goes_when_the_disk_is_full_and_comes_back_when_there_is_room() {
        let usage = |percent: f64, mib: u64| Usage { percent, free: mib << 20 };
        assert_eq!(reserve(true, &usage(50.0, 10_000)), Reserve::Keep);
        assert_eq!(reserve(true, &usage(98.0, 100)), Reserve::Keep);
        assert_eq!(reserve(true, &usage(98.0, 15)), Reserve::LetGo);
        assert_eq!(reserve(true, &usage(100.0, 0)), Reserve::LetGo);
        assert_eq!(reserve(false, &usage(100.0, 0)), Reserve::Keep);
        assert_eq!(reserve(false, &usage(86.0, 10_000)), Reserve::Keep);
        assert_eq!(reserve(false, &usage(50.0, 400)), Reserve::Keep, "a small disk is not filled by it");
        assert_eq!(reserve(false, &usage(84.0, 600)), Reserve::Make);
    }

    #[test]
    fn the_reserve_takes_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reserve");
        match make_reserve(&path) {
            Ok(()) => assert_eq!(path.metadata().unwrap().blocks() * 512, RESERVE),
            // A file system that cannot do it leaves nothing behind.
            Err(_) => assert!(!path.try_exists().unwrap()),
        }
    }

    #[test]
    fn a_person_is_told_what_is_full_and_what_to_do() {
        let usage = Usage { percent: 96.4, free: 300 << 20 };
        let told = tell(Level::Full, &usage, true);
        assert!(
            told[0].serious && told[0].text.starts_with("the database is read-only, for the disk of the databases")
        );
        assert!(told[0].text.contains("96 % full, 300 MiB are free"), "{}", told[0].text);
        assert!(!tell(Level::Warn, &usage, false)[0].serious);
        assert_eq!(tell(Level::Low, &usage, false), []);
    }

    #[test]
    fn the_file_that_closes_is_yaml_that_patroni_merges() {
        let value: serde_json::Value = serde_saphyr::from_str(CLOSED).unwrap();
        assert_eq!(value["postgresql"]["parameters"]["default_transaction_read_only"], "on");
    }
}
