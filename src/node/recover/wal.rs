//! Finds the end of a database's WAL while no server runs.
//!
//! The last checkpoint, which `pg_control` names, is not the end: a primary that lost its power has written on, up to
//! minutes of work, and a replica has received what it has not replayed. `pg_waldump` reads the records from the checkpoint
//! on, as a server would that starts with these data; where it finds no further record is the end. A server follows the
//! newest timeline of whose history the data are a part (PostgreSQL, «recovery_target_timeline»); so does this.

use super::timeline::{History, Place, parse_position};
use crate::{
    clock,
    exec::{ExecError, Run},
    files::Presence,
    node::database::{Facts, Lsn},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The size of a page of WAL, with which Debian's PostgreSQL is built.
const PAGE: u64 = 8192;
/// The header of a page, and of the first page of a file.
const HEADER: u64 = 24;
const FIRST_HEADER: u64 = 40;
/// The longest history of a timeline.
const LONGEST: u64 = 1 << 20;

/// What was found in the WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where it ends.
    pub at: Place,
    /// Whether it was read to its end; otherwise there is more.
    pub exact: bool,
    /// The history of its timeline.
    pub history: History,
    /// The time of the last commit after the last checkpoint, in seconds since 1970.
    pub commit: Option<i64>,
}

/// The WAL of a database that no server uses.
#[derive(Debug)]
pub struct Wal<'a> {
    /// The folder of the WAL.
    pub folder: PathBuf,
    /// The program that reads it.
    pub pg_waldump: &'a Path,
}

impl Wal<'_> {
    /// Where the WAL of the database with these facts ends; reading takes at most about `limit`.
    ///
    /// # Errors
    /// When the WAL cannot be read, or does not have the last checkpoint.
    pub fn end(&self, facts: &Facts, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        for (timeline, history) in self.descendants(facts)? {
            let Some(begin) = history.0.last().map(|last| last.position) else { continue };
            if let Some(found) = self.read(timeline, begin, deadline)? {
                return Ok(found.ended(timeline, history));
            }
        }
        let history = self.history(facts.timeline)?;
        match self.read(facts.timeline, facts.checkpoint, deadline)? {
            Some(found) => Ok(found.ended(facts.timeline, history)),
            None => bail!(
                "the WAL in {} does not have the last checkpoint, {} on timeline {}",
                self.folder.display(),
                facts.checkpoint,
                facts.timeline
            ),
        }
    }

    /// The history of a timeline.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn history(&self, timeline: u32) -> Result<History> {
        if timeline == 1 {
            return Ok(History::default());
        }
        let path = self.folder.join(format!("{timeline:08X}.history"));
        let doing = || format!("reading the history of timeline {timeline}");
        let text = Presence::of_text(&path, LONGEST).known().with_context(doing)?;
        let text = text.with_context(|| format!("{} is not there", path.display()))?;
        History::parse(&text, timeline).map_err(anyhow::Error::msg).with_context(doing)
    }

    /// The newer timelines that have the last checkpoint in their history, and WAL: the newest first.
    fn descendants(&self, facts: &Facts) -> Result<Vec<(u32, History)>> {
        let mut found = Vec::new();
        let files = files(&self.folder)?;
        let mut timelines: Vec<u32> = files.iter().filter_map(|name| timeline_of(name)).collect();
        timelines.sort_unstable();
        timelines.dedup();
        for timeline in timelines.into_iter().rev().filter(|timeline| *timeline > facts.timeline) {
            // Without a history, no server follows them: a promotion was cut off.
            if !files.contains(&format!("{timeline:08X}.history")) {
                continue;
            }
            let history = self.history(timeline)?;
            if history.left(facts.timeline).is_some_and(|left| left > facts.checkpoint) {
                found.push((timeline, history));
            }
        }
        Ok(found)
    }

    /// The timeline on which a replica with these data has come as far as `position`: the newest with WAL that it follows
    /// and whose beginning it has passed. Its last restartpoint may still be on an older one.
    ///
    /// # Errors
    /// When the folder or a history cannot be read.
    pub fn followed(&self, facts: &Facts, position: Lsn) -> Result<u32> {
        let has_begun = |history: &History| history.0.last().is_some_and(|last| last.position <= position);
        let newest = self.descendants(facts)?.into_iter().find(|(_, history)| has_begun(history));
        Ok(newest.map_or(facts.timeline, |(timeline, _)| timeline))
    }

    /// The newest timeline of which there is a history or WAL.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn newest(&self) -> Result<u32> {
        let timeline =
            |name: &String| timeline_of(name).or_else(|| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok());
        Ok(files(&self.folder)?.iter().filter_map(timeline).max().unwrap_or(1))
    }

    /// Reads records from `start` on; `None` if there is none.
    fn read(&self, timeline: u32, start: Lsn, deadline: Instant) -> Result<Option<Found>> {
        let Some(size) = self.size_of_files()? else { return Ok(None) };
        let mut program = Run::new(self.pg_waldump)
            .args(["--timeline", &timeline.to_string(), "--start", &start.to_string(), "--path"])
            .arg(&self.folder)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .start()?;
        let Some(stdout) = program.stdout() else { bail!("the output of pg_waldump cannot be read") };
        let (send, lines) = mpsc::sync_channel(1024);
        let reader = thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.into_iter().try_for_each(|line| send.send(line)).ok();
        });
        let mut found: Option<Found> = None;
        let in_time = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => Record::parse(&line).into_iter().for_each(|record| Found::note(&mut found, &record, size)),
                Err(mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(mpsc::RecvTimeoutError::Timeout) => break false,
            }
        };
        if !in_time {
            drop((program, lines));
            let _ = reader.join();
            return match found {
                Some(found) => Ok(Some(Found { exact: false, ..found })),
                None => bail!("reading the WAL in {} takes too long", self.folder.display()),
            };
        }
        let _ = reader.join();
        match program.finish(Duration::from_secs(10)) {
            Ok(_) => {}
            // It always ends so, as no end was given.
            Err(ExecError::Failed { tail, .. }) if tail.contains("error in WAL record at") => {}
            Err(ExecError::Failed { tail, .. }) if tail.contains("could not find a valid record after") => {}
            Err(ExecError::Failed { tail, .. }) if self.is_last(timeline, found.as_ref(), start, size, &tail)? => {}
            Err(error) => return Err(error).context("reading WAL"),
        }
        Ok(found)
    }

    /// Whether `pg_waldump` ended because there is no further file of WAL.
    fn is_last(&self, timeline: u32, found: Option<&Found>, start: Lsn, size: u64, tail: &str) -> Result<bool> {
        if !tail.contains("could not find file") && !tail.contains("could not locate WAL file") {
            return Ok(false);
        }
        let end = found.map_or(start, |found| found.end).0;
        let (this, next) = (end / size, end.div_ceil(size));
        let name = |number: u64| {
            let in_one = (1_u64 << 32) / size;
            self.folder.join(format!("{timeline:08X}{:08X}{:08X}", number / in_one, number % in_one))
        };
        let is_absent = |number| Ok::<_, anyhow::Error>(Presence::of(&name(number)).known()?.is_none());
        // A record may begin in this file and end in the next.
        Ok(is_absent(this)? || is_absent(next.max(this + u64::from(found.is_some())))?)
    }

    /// The size of the files of WAL.
    fn size_of_files(&self) -> Result<Option<u64>> {
        for name in files(&self.folder)?.iter().filter(|name| timeline_of(name).is_some()) {
            let size = fs::metadata(self.folder.join(name)).context("reading WAL")?.len();
            if size.is_power_of_two() && size >= 1 << 20 {
                return Ok(Some(size));
            }
        }
        Ok(None)
    }
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let doing = || format!("reading the folder {}", folder.display());
    let names = fs::read_dir(folder).with_context(doing)?;
    names.map(|entry| Ok(entry.with_context(doing)?.file_name().to_string_lossy().into_owned())).collect()
}

/// The timeline of a file of WAL, by its name.
fn timeline_of(name: &str) -> Option<u32> {
    let is_wal = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_wal.then(|| u32::from_str_radix(&name[..8], 16).ok()).flatten()
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    end: Lsn,
    commit: Option<i64>,
    exact: bool,
}

impl Found {
    fn note(found: &mut Option<Found>, record: &Record, size: u64) {
        let commit = record.commit.or_else(|| found.as_ref()?.commit);
        *found = Some(Found { end: record.end(size), commit, exact: true });
    }

    fn ended(self, timeline: u32, history: History) -> End {
        End { at: Place { timeline, position: self.end }, exact: self.exact, history, commit: self.commit }
    }
}

/// A record, as `pg_waldump` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    begin: Lsn,
    length: u64,
    is_switch: bool,
    commit: Option<i64>,
}

impl Record {
    /// Reads a line such as `rmgr: Transaction len (rec/tot):     34/    34, tx:        739, lsn: 0/02000068, prev
    /// 0/02000028, desc: COMMIT 2026-11-27 01:26:24.994269 UTC`.
    fn parse(line: &str) -> Option<Record> {
        let (head, what) = line.split_once(", desc: ")?;
        let (lengths, rest) = head.split_once("len (rec/tot):")?.1.split_once(", tx:")?;
        let length = lengths.split_once('/')?.1.trim().parse().ok()?;
        let begin = parse_position(rest.split_once(", lsn: ")?.1.split(',').next()?.trim())?;
        let is_log = head.starts_with("rmgr: XLOG");
        let commit = what.strip_prefix("COMMIT").and_then(|text| text.split_once(' ')).and_then(|(_, text)| time(text));
        Some(Record { begin, length, is_switch: is_log && what.starts_with("SWITCH"), commit })
    }

    /// Where the next record begins, or the page if it would be the first of one.
    fn end(&self, size: u64) -> Lsn {
        if self.is_switch {
            return Lsn((self.begin.0 / size + 1) * size);
        }
        let (mut at, mut rest) = (self.begin.0, self.length);
        loop {
            let room = PAGE - at % PAGE;
            if rest <= room {
                return Lsn((at + rest).next_multiple_of(8));
            }
            rest -= room;
            at += room;
            at += if at.is_multiple_of(size) { FIRST_HEADER } else { HEADER };
        }
    }
}

/// The time in `2026-11-27 01:26:24.994269 UTC`, perhaps with words before or after it.
fn time(text: &str) -> Option<i64> {
    let text = text.split(['.', ';']).next()?;
    let (date, time) = text[text.len().checked_sub(19)?..].split_once(' ')?;
    clock::from_stamp(&format!("{}T{}Z", date.replace('-', ""), time.replace(':', "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_pg_waldump_shows_them() {
        let commit = Record::parse(
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        739, lsn: 0/02000068, prev 0/02000028, \
             desc: COMMIT 2026-11-27 01:26:24.994269 UTC; inval msgs: catcache 80",
        )
        .unwrap();
        assert_eq!(clock::utc(commit.commit.unwrap()), "2026-11-27T01:26:24Z");
        assert_eq!((commit.begin, commit.end(1 << 24)), (Lsn(0x2000068), Lsn(0x2000090)));
        let switch = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/0152F500, prev 0/0152F368, \
                      desc: SWITCH ";
        assert_eq!(Record::parse(switch).unwrap().end(1 << 24), Lsn(0x2000000));
        assert_eq!(Record::parse("pg_waldump: error: no"), None);
    }

    #[test]
    fn a_record_that_crosses_pages_ends_behind_their_headers() {
        let record = |begin, length| Record { begin: Lsn(begin), length, is_switch: false, commit: None };
        assert_eq!(record(0x1000, 100).end(1 << 24), Lsn(0x1068));
        assert_eq!(record(8192 - 8, 100).end(1 << 24), Lsn((8192 + 24 + 92_u64).div_ceil(8) * 8));
        assert_eq!(record((1 << 24) - 8, 16).end(1 << 24), Lsn((1 << 24) + 40 + 8));
        assert_eq!(record(8192 - 8, 8).end(1 << 24), Lsn(8192));
        assert_eq!(record(0, 8192 + 8168 + 1).end(1 << 24), Lsn(2 * 8192 + 24 + 8));
    }

    #[test]
    fn a_replica_without_a_restartpoint_has_followed_the_newest_timeline_that_it_has_reached() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("main");
        crate::node::database::samples::database(&data, 7);
        let crate::node::database::Database::Present(facts) = crate::node::database::Database::look(&data) else {
            panic!("the sample is a database")
        };
        let facts = Facts { timeline: 1, checkpoint: Lsn(0x600_0028), ..facts };
        let wal = Wal { folder: folder.path().join("pg_wal"), pg_waldump: Path::new("pg_waldump") };
        let file = |name: &str, text: &str| fs::write(wal.folder.join(name), text).unwrap();
        fs::create_dir(&wal.folder).unwrap();
        file("000000010000000000000006", "");
        file("00000051.history", "1\t0/7000000\tno recovery target specified\n");
        let followed = |position| wal.followed(&facts, Lsn(position)).unwrap();
        assert_eq!(followed(0x700_2320), 1, "it knows of a timeline, and has no WAL of it");
        file("000000510000000000000007", "");
        assert_eq!((followed(0x6FF_FFF8), followed(0x700_0000), followed(0x700_2320)), (1, 81, 81));
        // Left before the last checkpoint: the data are not a part of it.
        file("00000091.history", "1\t0/6000000\tno recovery target specified\n");
        file("000000910000000000000007", "");
        assert_eq!(followed(0x700_2320), 81);
    }

    #[test]
    fn files_name_their_timeline() {
        assert_eq!(timeline_of("0000000A0000000000000003"), Some(10));
        for other in ["0000000A.history", "0000000A0000000000000003.partial", "archive_status"] {
            assert_eq!(timeline_of(other), None);
        }
    }
}
