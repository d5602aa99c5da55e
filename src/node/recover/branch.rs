//! Gives the database from which a cluster continues a timeline of its own.
//!
//! A promotion takes the next number that the node knows to be free. A node that is not there may have been promoted too
//! and have taken the same number, from the same position: then nothing tells the two timelines apart, neither Patroni nor
//! `pg_rewind` nor a WAL receiver, and that node, when it comes back, replays records of the one over data of the other. So
//! the database from which a cluster goes on is promoted here, before Patroni starts with it, to a number that is far above
//! all known ones: [`GAP`] further. From then on a copy belongs to the cluster if that timeline is in its history.
//!
//! PostgreSQL takes the first number of which there is no history file (`findNewestTimeLine`), so such files are made for
//! the numbers between. They say that each of those timelines began where the database left its own, and had nothing: what
//! is derived from them is right. Replicas fetch them with the others.

use super::{
    account::Account,
    timeline::{History, Place},
    wal::Wal,
};
use crate::{
    error::UserError,
    files::{NewFile, Presence, sync_folder},
    log,
    node::database::{self, Database, Facts, ServerState},
};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How many numbers are left free for timelines that nobody here knows of.
pub const GAP: u32 = 64;
/// No cluster has more members with a database.
const MEMBERS: u32 = 16;
/// How long recovery and the checkpoint after it may take: a checkpoint's distance of WAL, on a slow disk.
const PROMOTED_WITHIN: Duration = Duration::from_secs(3600);
/// How long the checkpoint at the end may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(600);
/// How long the WAL is read to find its end.
const READ_WITHIN: Duration = Duration::from_secs(600);
/// More than the lock file of a server has, in bytes.
const LONGEST_LOCK_FILE: u64 = 1 << 16;
const PAUSE: Duration = Duration::from_millis(100);
/// What the history files say for which there is no WAL.
const SKIPPED: &str = "skipped by pgha-node recover";

/// A database whose server does not run, and the programs for it.
#[derive(Debug)]
pub struct StoppedDatabase {
    /// The folder of the data.
    pub data: PathBuf,
    /// The folder of PostgreSQL's programs.
    pub programs: PathBuf,
    /// An empty folder of the database's owner, for sockets.
    pub sockets: PathBuf,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// The end of its WAL, on the new timeline.
    pub end: Place,
    /// The timelines before it; the last is the one that it left, and where.
    pub history: History,
}

impl StoppedDatabase {
    /// The facts of the database.
    ///
    /// # Errors
    /// When there is none that a server can use.
    pub fn facts(&self) -> Result<Facts> {
        match Database::look(&self.data) {
            Database::Present(facts) => Ok(facts),
            other => bail!("the database in {}: {}", self.data.display(), other.words()),
        }
    }

    fn wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    fn history_file(&self, timeline: u32) -> PathBuf {
        self.wal().join(format!("{timeline:08X}.history"))
    }

    /// A number for the new timeline on the member `own` of the document, if `known` is the newest that others have. No other
    /// member draws the same, whatever it knows.
    ///
    /// # Errors
    /// When the WAL cannot be read.
    pub fn number(&self, known: u32, own: usize) -> Result<u32> {
        let waldump = self.programs.join("pg_waldump");
        let newest = Wal { folder: self.wal(), pg_waldump: &waldump }.newest()?;
        Ok(drawn(known.max(newest).max(self.facts()?.reached().0), own))
    }

    /// Brings the database to a timeline from `number` on, unless it is there; its server does not run afterwards. May be
    /// cut off anywhere and called again.
    ///
    /// # Errors
    /// When the database does not come up; nothing of it is lost then.
    pub fn branch(&self, number: u32) -> Result<Branch> {
        database::stop_server(&self.data)?;
        let waldump = self.programs.join("pg_waldump");
        let wal = Wal { folder: self.wal(), pg_waldump: &waldump };
        let facts = self.facts()?;
        if facts.timeline < number {
            let end = wal.end(&facts, READ_WITHIN)?;
            let mut history = end.history;
            history.0.push(end.at);
            self.skip(&history, number)?;
            log::info!("recovering the database, whose WAL ends at {}, and giving it timeline {number}", end.at);
            self.ask_for_promotion()?;
            self.run(&format!("recovery_target_timeline={}", end.at.timeline))?;
        } else if facts.state != ServerState::ShutDown {
            self.run("recovery_target_timeline=latest")?;
        }
        let facts = self.facts()?;
        if facts.timeline < number || facts.state != ServerState::ShutDown {
            bail!("the database did not get timeline {number}: {facts}");
        }
        let history = wal.history(facts.timeline)?;
        // Now it is known where the old timeline was left.
        self.skip(&history, facts.timeline)?;
        Ok(Branch { end: wal.end(&facts, READ_WITHIN)?.at, history })
    }

    /// The timeline from `number` on that the database has got, if it has, by a promotion that may have been cut off;
    /// its server does not run afterwards. If it has not, what was prepared for the promotion is withdrawn.
    ///
    /// # Errors
    /// When that is not known; nothing is changed then.
    pub fn settle(&self, number: u32) -> Result<Option<Branch>> {
        database::stop_server(&self.data)?;
        let facts = match Database::look(&self.data) {
            Database::Present(facts) => facts,
            Database::Absent => return Ok(None),
            other => bail!("the database in {}: {}", self.data.display(), other.words()),
        };
        let waldump = self.programs.join("pg_waldump");
        let end = Wal { folder: self.wal(), pg_waldump: &waldump }.end(&facts, READ_WITHIN)?;
        ensure!(end.exact, "not all of the WAL in {} has been looked through", self.wal().display());
        if end.at.timeline >= number {
            return Ok(Some(Branch { end: end.at, history: end.history }));
        }
        self.withdraw(end.at.timeline, number)?;
        Ok(None)
    }

    /// Removes the history files that `skip` has made for timelines above `last` and below `number`: a replica would
    /// wait for a primary that is on the newest of them.
    fn withdraw(&self, last: u32, number: u32) -> Result<()> {
        for timeline in last + 1..number {
            let path = self.history_file(timeline);
            let text = Presence::of_text(&path, 1 << 20).known()?;
            if text.is_some_and(|text| text.contains(SKIPPED)) {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        sync_folder(&self.wal())
    }

    /// Makes the history files of the timelines between the last in `history` and `number`, where there is none of another
    /// origin.
    fn skip(&self, history: &History, number: u32) -> Result<()> {
        let Some(Place { timeline: last, .. }) = history.0.last() else { return Ok(()) };
        let text = history.text(SKIPPED);
        let owner = Account::owner_of(&self.wal())?;
        for timeline in last + 1..number {
            let path = self.history_file(timeline);
            match Presence::of_text(&path, 1 << 20).known()? {
                Some(known) if known == text || !known.contains(SKIPPED) => continue,
                _ => {}
            }
            let mut new = NewFile::beside(&path)?;
            new.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
            owner.own(new.path())?;
            new.publish(&path)?;
        }
        Ok(())
    }

    /// Runs a server that nobody can reach until it is ready, which it is when recovery and promotion are done; then stops
    /// it.
    fn run(&self, target: &str) -> Result<()> {
        let owner = Account::owner_of(&self.data)?;
        private_to(&self.sockets, owner)?;
        let mut server = owner
            .run(self.programs.join("postgres"))
            .arg("-D")
            .arg(&self.data)
            .args(settings(target, &self.sockets))
            .env("LC_ALL", "C.UTF-8")
            .start()?;
        let reader = server.stdout().map(drain);
        let deadline = Instant::now() + PROMOTED_WITHIN;
        while !server.ended() && !self.is_ready(server.id())? && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        let ready = self.is_ready(server.id())?;
        // A fast shutdown: the last checkpoint is written.
        server.signal(Signal::INT);
        let ended = server.finish(STOPPED_WITHIN);
        drop(reader);
        let why = match ended {
            Ok(_) if ready => return Ok(()),
            Ok(said) => said,
            Err(error) => error.to_string(),
        };
        Err(UserError::runtime(format!("the database in {} does not come up: {why}", self.data.display()))
            .hint("nothing of it is lost: PostgreSQL's own words say what is missing")
            .into())
    }

    /// Whether the server that is the process `id` accepts connections (PostgreSQL, `pidfile.h`).
    fn is_ready(&self, id: u32) -> Result<bool> {
        let text = Presence::of_text(&self.data.join("postmaster.pid"), LONGEST_LOCK_FILE).known()?.unwrap_or_default();
        let mut lines = text.lines();
        let is_its = lines.next().is_some_and(|line| line.trim() == id.to_string());
        Ok(is_its && lines.nth(6).is_some_and(|line| line.trim() == "ready"))
    }

    /// Makes the server recover to the end of its WAL and be promoted, whatever it was before.
    fn ask_for_promotion(&self) -> Result<()> {
        let (standby, recovery) = (self.data.join("standby.signal"), self.data.join("recovery.signal"));
        if Presence::of(&standby).known()?.is_some() {
            fs::rename(&standby, &recovery).with_context(|| format!("renaming {}", standby.display()))?;
        } else if Presence::of(&recovery).known()?.is_none() {
            let new = NewFile::beside(&recovery)?;
            Account::owner_of(&self.data)?.own(new.path())?;
            new.publish(&recovery)?;
        }
        sync_folder(&self.data)
    }
}

/// The first number above `newest` and the gap that is the member `own`'s.
fn drawn(newest: u32, own: usize) -> u32 {
    let (first, own) = (newest + GAP, own as u32 % MEMBERS);
    first + (MEMBERS + own - first % MEMBERS) % MEMBERS
}

/// Settings of a server that nobody reaches, that follows nobody, and that changes nothing but what recovery needs.
fn settings(target: &str, sockets: &Path) -> Vec<String> {
    let sockets = format!("unix_socket_directories={}", sockets.display());
    let all = [
        "listen_addresses=",
        &sockets,
        target,
        // There is none: the WAL that is here is all.
        "restore_command=false",
        "recovery_target=",
        "recovery_target_action=promote",
        "recovery_min_apply_delay=0",
        "recovery_end_command=",
        "archive_cleanup_command=",
        "primary_conninfo=",
        "synchronous_standby_names=",
        // Without it, fewer connections than the former primary had do not matter.
        "hot_standby=off",
        "autovacuum=off",
        "ssl=off",
        "huge_pages=try",
        "logging_collector=off",
        "log_destination=stderr",
    ];
    all.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]).collect()
}

/// Makes a folder that only `owner` may look into.
fn private_to(folder: &Path, owner: Account) -> Result<()> {
    let doing = || format!("making the folder {}", folder.display());
    if Presence::of(folder).known()?.is_none() {
        fs::create_dir_all(folder).with_context(doing)?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(doing)?;
    owner.own(folder)
}

fn drain(mut output: impl std::io::Read + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let _ = std::io::copy(&mut output, &mut std::io::sink());
    })
}

#[cfg(test)]
mod tests;
