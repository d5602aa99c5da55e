//! Reads facts about this node's PostgreSQL data without a server.
//!
//! `global/pg_control` says it: whose data they are (the system identifier), how far they have come, and whether the server
//! was shut down. It is read here rather than by `pg_controldata`, because that program understands the data of its own
//! major version only, and an image has one version: the data that another image left, and those that were set aside, would
//! be unreadable. It also tells a file that is not there from one that cannot be read by nothing but words. The layout up to
//! the position of the checkpoint has been the same since PostgreSQL 13; the checksum at its end, whose place each version
//! of the layout fixes, proves that the file is whole and that the place is right.

use crate::{
    clock,
    files::{Doubt, Presence},
    log,
};
use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, Serializer};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The first byte of the checksum in each known version of the layout (`pg_control_version`): PostgreSQL 13 to 16, 17, 18.
const CHECKSUMS: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];
/// The size of `pg_control`, whatever its layout.
const CONTROL_SIZE: u64 = 8192;
/// More than a copy's label has.
const LABEL_SIZE: u64 = 64 * 1024;
/// More than a server's lock file has.
const LOCK_SIZE: u64 = 64 * 1024;
/// How often a file is read whose checksum is wrong: a running server may be writing it just then.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server may take to shut down, of each kind of shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A position in the write-ahead log, as PostgreSQL writes it: `0/17497C0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How the server left the data, or how it uses them now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It was starting.
    StartingUp,
    /// It was shut down as a primary.
    ShutDown,
    /// It was shut down as a replica.
    ShutDownInRecovery,
    /// It was shutting down.
    ShuttingDown,
    /// It was recovering from a crash.
    InCrashRecovery,
    /// It runs as a replica, or ended as one without being shut down.
    InArchiveRecovery,
    /// It runs as a primary, or ended as one without being shut down.
    InProduction,
}

impl ServerState {
    fn from_number(number: u32) -> Option<ServerState> {
        use ServerState::*;
        let all =
            [StartingUp, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction];
        all.get(number as usize).copied()
    }

    /// The state in the words of `pg_controldata`.
    pub fn words(self) -> &'static str {
        match self {
            ServerState::StartingUp => "starting up",
            ServerState::ShutDown => "shut down",
            ServerState::ShutDownInRecovery => "shut down in recovery",
            ServerState::ShuttingDown => "shutting down",
            ServerState::InCrashRecovery => "in crash recovery",
            ServerState::InArchiveRecovery => "in archive recovery",
            ServerState::InProduction => "in production",
        }
    }
}

/// What `pg_control` and the folder say of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// PostgreSQL's major version.
    pub version: u32,
    /// The system identifier, as Patroni writes it: all copies of one database have the same.
    pub system: String,
    /// The timeline of the last checkpoint.
    pub timeline: u32,
    /// How the server left them, or how it uses them.
    pub state: ServerState,
    /// The position of the last checkpoint.
    pub checkpoint: Lsn,
    /// The time of the last checkpoint, in seconds since 1970.
    pub checkpoint_time: i64,
    /// How far a replica must replay before its data are consistent; 0 on a primary.
    pub recovery_end: Lsn,
    /// The timeline of that position; 0 on a primary.
    pub recovery_timeline: u32,
    /// Whether there is a `backup_label`: the data are a copy with which no server has started yet.
    pub unstarted_copy: bool,
}

impl Facts {
    /// The newest position that the data are known to contain, with its timeline. What was written after the last
    /// checkpoint of a primary is not in it.
    pub fn reached(&self) -> (u32, Lsn) {
        (self.timeline, self.checkpoint).max((self.recovery_timeline, self.recovery_end))
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (timeline, position) = self.reached();
        write!(
            f,
            "PostgreSQL {}, system {}, timeline {timeline}, at least up to {position}, {}, last checkpoint {}",
            self.version,
            self.system,
            self.state.words(),
            clock::utc(self.checkpoint_time)
        )
    }
}

/// What is known of the data in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// There is nothing.
    Absent,
    /// There is a database.
    Present(Facts),
    /// There is something, which no server can use; what it lacks.
    Damaged(String),
    /// Nobody knows.
    Unknown(Doubt),
}

impl Database {
    /// What the folder of a server's data has.
    pub fn look(folder: &Path) -> Database {
        match Presence::of_folder(folder) {
            Presence::Absent => Database::Absent,
            Presence::Unknown(doubt) => Database::Unknown(doubt),
            Presence::Present(()) => read(folder),
        }
    }

    /// What it is, for a person.
    pub fn words(&self) -> String {
        match self {
            Database::Absent => "nothing".to_owned(),
            Database::Present(facts) => facts.to_string(),
            Database::Damaged(why) => format!("a damaged database: {why}"),
            Database::Unknown(doubt) => format!("not known: {doubt}"),
        }
    }
}

/// The data of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The major version, by the folder's name.
    pub version: u32,
    /// The folder of the server's data.
    pub folder: PathBuf,
    /// What it has.
    pub database: Database,
}

/// The data of every major version below `root`, where there are any, in the order of versions.
pub fn all(root: &Path) -> Presence<Vec<Held>> {
    let names = || -> std::io::Result<Vec<u32>> {
        let mut versions = Vec::new();
        for entry in fs::read_dir(root)? {
            versions.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        versions.sort_unstable();
        Ok(versions)
    };
    Presence::of(root).and_then(|_| match names() {
        Err(error) => Presence::Unknown(Doubt::new(format!("reading the folder {}: {error}", root.display()))),
        Ok(versions) => {
            let held = versions.into_iter().map(|version| {
                let folder = root.join(version.to_string()).join("main");
                Held { version, database: of_version(version, Database::look(&folder)), folder }
            });
            let held: Vec<Held> = held.filter(|held| held.database != Database::Absent).collect();
            if held.is_empty() { Presence::Absent } else { Presence::Present(held) }
        }
    })
}

/// A folder of one version holds data of that version or something that was put there by mistake.
pub fn of_version(version: u32, database: Database) -> Database {
    match database {
        Database::Present(facts) if facts.version != version => {
            Database::Damaged(format!("it is of PostgreSQL {} in the folder of {version}", facts.version))
        }
        other => other,
    }
}

/// Reads the data of a folder that has something in it.
fn read(folder: &Path) -> Database {
    let version = match Presence::of_text(&folder.join("PG_VERSION"), 64) {
        Presence::Absent => return Database::Damaged("it has no PG_VERSION".to_owned()),
        Presence::Unknown(doubt) => return Database::Unknown(doubt),
        Presence::Present(text) => match text.trim().parse::<u32>() {
            Ok(version) => version,
            Err(_) => return Database::Damaged("its PG_VERSION names no version".to_owned()),
        },
    };
    let unstarted_copy = match Presence::of(&folder.join("backup_label")) {
        Presence::Present(_) => true,
        Presence::Absent => false,
        Presence::Unknown(doubt) => return Database::Unknown(doubt),
    };
    let path = folder.join("global/pg_control");
    for attempt in 1.. {
        let bytes = match Presence::of_bytes(&path, CONTROL_SIZE) {
            Presence::Absent => return Database::Damaged("it has no global/pg_control".to_owned()),
            Presence::Unknown(doubt) => return Database::Unknown(doubt),
            Presence::Present(bytes) => bytes,
        };
        match parse(&bytes) {
            Ok(control) => return Database::Present(Facts { version, unstarted_copy, ..control }),
            Err(UserError::Layout(number)) => {
                return Database::Unknown(Doubt::new(format!(
                    "{} has the layout {number}, which this program does not know",
                    path.display()
                )));
            }
            Err(UserError::Torn) if attempt < TRIES => thread::sleep(PAUSE),
            Err(UserError::Torn) => break,
        }
    }
    Database::Damaged("the checksum of its global/pg_control is wrong".to_owned())
}

/// Whether a server may have started with a copy in `folder`: it renames the copy's `backup_label` when it has taken it up.
/// The label is the first file of a copy and the control file the last, so one without both is not whole yet.
///
/// `pg_rewind` writes a label too, into data with which a server has run, and a copy of a copy has the renamed label of
/// the first: so a label is read. One that says nothing was cut off when it was written.
pub fn may_have_started(folder: &Path) -> bool {
    let is_there = |name: &str| Presence::of(&folder.join(name));
    let label = Presence::of_text(&folder.join("backup_label"), LABEL_SIZE);
    let method = |text: &String| {
        let method = text.lines().find_map(|line| line.strip_prefix("BACKUP METHOD: "));
        method.map(|method| method.trim_end().to_owned())
    };
    if let Presence::Present(text) = &label
        && let Some(method) = method(text)
    {
        return method != "streamed";
    }
    let used = is_there("backup_label.old");
    !used.is_absent() || !(label.is_present() || (label.is_absent() && is_there("global/pg_control").is_absent()))
}

/// The process that runs a server in `folder`: the one that its lock file names, if it works in that folder.
///
/// # Errors
/// When that is not known.
pub fn server(folder: &Path) -> Result<Option<Pid>> {
    let Some(text) = Presence::of_text(&folder.join("postmaster.pid"), LOCK_SIZE).known()? else { return Ok(None) };
    let number = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    let Some(pid) = number.and_then(Pid::from_raw) else { return Ok(None) };
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let canonical = folder.canonicalize().with_context(|| format!("looking at {}", folder.display()))?;
    match fs::read_link(format!("{process}/cwd")) {
        Ok(works_in) => return Ok((works_in == canonical).then_some(pid)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // Root in a container may not trace processes, so that it does not see their folders.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error).with_context(|| format!("looking at {process}")),
    }
    let command = match fs::read(format!("{process}/cmdline")) {
        Ok(command) => command,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("looking at {process}")),
    };
    match serves(&command, &[folder, &canonical]) {
        Some(serves) => Ok(serves.then_some(pid)),
        None => anyhow::bail!(
            "the process {} may be the server in {}: {}",
            pid.as_raw_nonzero(),
            folder.display(),
            String::from_utf8_lossy(&command).replace('\0', " ")
        ),
    }
}

/// Whether a process with this command line, whose words end with NUL, is a server with its data in one of `names`; `None` if
/// the command line does not tell.
fn serves(command: &[u8], names: &[&Path]) -> Option<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let program = Path::new(std::ffi::OsStr::from_bytes(words[0]));
    // A zombie has no command line, and the children of a server have a title, such as `postgres: checkpointer`.
    if program.file_name().is_none_or(|name| name != "postgres") {
        return Some(false);
    }
    let data = words.windows(2).find(|pair| pair[0] == b"-D").map(|pair| pair[1]);
    let data =
        data.or_else(|| words.iter().find_map(|word| word.strip_prefix(b"-D")).filter(|data| !data.is_empty()))?;
    let data = Path::new(std::ffi::OsStr::from_bytes(data));
    if names.contains(&data) { Some(true) } else { data.is_absolute().then_some(false) }
}

/// Shuts down the server that runs with the data in `folder`, if one does: Patroni can end without it.
///
/// # Errors
/// When it does not stop, or it is not known whether one runs.
pub fn stop_server(folder: &Path) -> Result<()> {
    for signal in [Signal::INT, Signal::QUIT] {
        let Some(server) = server(folder)? else { return Ok(()) };
        log::warning!("stopping the server in {}", folder.display());
        kill_process(server, signal).with_context(|| format!("stopping the server in {}", folder.display()))?;
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline {
            if self::server(folder)?.is_none() {
                return Ok(());
            }
            thread::sleep(5 * PAUSE);
        }
    }
    anyhow::bail!("the server in {} does not stop", folder.display())
}

/// Why bytes are not a control file.
#[derive(Debug, PartialEq, Eq)]
enum UserError {
    /// Too short, or the checksum is wrong: damaged, or half written.
    Torn,
    /// A layout that is not known.
    Layout(u32),
}

/// Reads a control file; what it does not say (version, copy) is left empty.
fn parse(bytes: &[u8]) -> std::result::Result<Facts, UserError> {
    let four = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let eight = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let short = UserError::Torn;
    let layout = four(8).ok_or(UserError::Torn)?;
    let Some((_, checksum)) = CHECKSUMS.into_iter().find(|(known, _)| *known == layout) else {
        // A file of zeros, as a power cut leaves one, has no layout.
        return Err(if layout == 0 { UserError::Torn } else { UserError::Layout(layout) });
    };
    if four(checksum) != Some(crc32c(bytes.get(..checksum).ok_or(UserError::Torn)?)) {
        return Err(UserError::Torn);
    }
    let facts = || {
        Some(Facts {
            version: 0,
            system: eight(0)?.to_string(),
            state: ServerState::from_number(four(16)?)?,
            checkpoint: Lsn(eight(32)?),
            timeline: four(48)?,
            checkpoint_time: eight(104)? as i64,
            recovery_end: Lsn(eight(136)?),
            recovery_timeline: four(144)?,
            unstarted_copy: false,
        })
    };
    facts().ok_or(short)
}

/// CRC-32C (Castagnoli), as PostgreSQL computes it.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    };
    !bytes.iter().fold(!0, step)
}

/// Made-up data for tests.
#[cfg(test)]
pub mod samples {
    use super::{CONTROL_SIZE, crc32c};
    use std::{fs, path::Path};

    /// A control file of PostgreSQL 17.
    pub fn control(system: u64, state: u32, timeline: u32, checkpoint: u64) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_SIZE as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &system.to_ne_bytes());
        put(8, &1700_u32.to_ne_bytes());
        put(16, &state.to_ne_bytes());
        put(32, &checkpoint.to_ne_bytes());
        put(48, &timeline.to_ne_bytes());
        put(104, &1_795_741_749_u64.to_ne_bytes());
        let checksum = crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&checksum.to_ne_bytes());
        bytes
    }

    /// A database of PostgreSQL 17 that was shut down, in the new folder `main`.
    pub fn database(main: &Path, system: u64) {
        fs::create_dir_all(main.join("global")).unwrap();
        fs::write(main.join("PG_VERSION"), "17\n").unwrap();
        fs::write(main.join("global/pg_control"), control(system, 1, 1, 0x17497c0)).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PostgreSQL 17.12 wrote, up to the checksum.
    const REAL: &str = include_str!("database/pg_control.hex");

    fn real() -> Vec<u8> {
        let digits: String = REAL.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_control_file_says_what_pg_controldata_says() {
        let facts = Facts { version: 17, ..parse(&real()).unwrap() };
        assert_eq!(
            facts.to_string(),
            "PostgreSQL 17, system 7712652082925278041, timeline 1, at least up to 0/17497C0, shut down, \
             last checkpoint 2026-11-27T01:09:09Z"
        );
        assert_eq!((facts.recovery_end, facts.recovery_timeline), (Lsn(0), 0));
    }

    #[test]
    fn one_wrong_bit_is_seen() {
        for bit in 0..real().len() * 8 {
            let mut bytes = real();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let outcome = parse(&bytes);
            assert!(matches!(outcome, Err(UserError::Torn | UserError::Layout(_))), "bit {bit}: {outcome:?}");
        }
        assert_eq!(parse(&real()[..200]), Err(UserError::Torn));
        assert_eq!(parse(&[0; 8192]), Err(UserError::Torn));
    }

    #[test]
    fn a_replica_has_reached_more_than_its_last_checkpoint() {
        let facts = Facts { recovery_end: Lsn(0x3000100), recovery_timeline: 2, ..parse(&real()).unwrap() };
        assert_eq!(facts.reached(), (2, Lsn(0x3000100)));
        assert_eq!(Lsn(0x1_0000_0abc).to_string(), "1/ABC");
    }

    #[test]
    fn a_copy_is_known_to_be_unstarted_or_may_have_started() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("17/main");
        fs::create_dir_all(main.join("global")).unwrap();
        assert!(!may_have_started(&main), "the copy has just begun");
        fs::write(main.join("backup_label"), "").unwrap();
        assert!(!may_have_started(&main));
        fs::write(main.join("global/pg_control"), "").unwrap();
        assert!(!may_have_started(&main), "it is there as a whole");
        fs::rename(main.join("backup_label"), main.join("backup_label.old")).unwrap();
        assert!(may_have_started(&main));
        fs::remove_file(main.join("global/pg_control")).unwrap();
        assert!(may_have_started(&main), "its control file was lost");
        fs::write(main.join("backup_label"), "").unwrap();
        assert!(may_have_started(&main), "it was rewound");
        fs::remove_file(main.join("backup_label")).unwrap();
        fs::remove_file(main.join("backup_label.old")).unwrap();
        fs::write(main.join("global/pg_control"), "").unwrap();
        assert!(may_have_started(&main), "nothing says that it has not");
        // A primary that initdb has made, rewound after it was down: cut off before its server has started again.
        fs::write(main.join("backup_label"), "CHECKPOINT LOCATION: 0/2000028\nBACKUP METHOD: pg_rewind\n").unwrap();
        assert!(may_have_started(&main), "it was rewound");
        fs::write(main.join("backup_label"), "CHECKPOINT LOCATION: 0/2000028\nBACKUP METHOD: streamed\n").unwrap();
        assert!(!may_have_started(&main));
        fs::write(main.join("backup_label.old"), "").unwrap();
        assert!(!may_have_started(&main), "a copy of a copy");
        fs::remove_file(main.join("backup_label")).unwrap();
        fs::remove_file(main.join("backup_label.old")).unwrap();
        // A loop of symbolic links fails as a damaged inode does, for root too.
        std::os::unix::fs::symlink("backup_label", main.join("backup_label")).unwrap();
        assert!(may_have_started(&main), "a doubt");
    }

    #[test]
    fn what_cannot_be_read_is_neither_whole_nor_damaged() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("17/main");
        let look = || Database::look(&main);
        assert_eq!(all(root.path()), Presence::Absent);
        fs::create_dir_all(&main).unwrap();
        assert_eq!(look(), Database::Absent, "an empty folder is not a database");
        assert_eq!(all(root.path()), Presence::Absent);
        fs::write(main.join("postgresql.conf"), "").unwrap();
        assert!(matches!(look(), Database::Damaged(_)), "no version");
        fs::write(main.join("PG_VERSION"), "17\n").unwrap();
        assert!(matches!(look(), Database::Damaged(_)), "no control file");
        // A loop of symbolic links fails as a damaged inode does, for root too.
        std::os::unix::fs::symlink("global", main.join("global")).unwrap();
        assert!(matches!(look(), Database::Unknown(_)), "{:?}", look());
        fs::remove_file(main.join("global")).unwrap();
        samples::database(&main, 7);
        let Presence::Present(held) = all(root.path()) else { panic!("not found") };
        assert!(matches!(&held[..], [Held { version: 17, database: Database::Present(_), .. }]), "{held:?}");
        fs::write(main.join("global/pg_control"), [0; 8192]).unwrap();
        assert!(matches!(look(), Database::Damaged(_)), "zeros, as a power cut leaves them");
    }

    #[test]
    fn data_in_the_folder_of_another_version_are_not_of_it() {
        let root = tempfile::tempdir().unwrap();
        samples::database(&root.path().join("16/main"), 7);
        let Presence::Present(held) = all(root.path()) else { panic!("not found") };
        assert!(matches!(&held[..], [Held { version: 16, database: Database::Damaged(_), .. }]), "{held:?}");
        std::os::unix::fs::symlink("18", root.path().join("18")).unwrap();
        let Presence::Present(held) = all(root.path()) else { panic!("not found") };
        assert!(matches!(held[1].database, Database::Unknown(_)), "{held:?}");
    }

    #[test]
    fn a_server_is_known_by_its_command_line_where_its_folder_is_not_seen() {
        let names = ["/var/lib/postgresql/17/main", "/data/17/main"].map(Path::new);
        let server = "/usr/lib/postgresql/17/bin/postgres";
        for (words, expected) in [
            (vec![server, "-D", "/var/lib/postgresql/17/main", "--port=5432"], Some(true)),
            (vec![server, "--port=5432", "-D/data/17/main"], Some(true)),
            (vec![server, "-D", "/var/lib/postgresql/17/other"], Some(false)),
            (vec![server, "-D", "main"], None),
            (vec![server], None),
            (vec!["postgres: checkpointer "], Some(false)),
            (vec!["/usr/bin/etcd", "-D", "/data/17/main"], Some(false)),
            (vec![""], Some(false)),
        ] {
            let command: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
            assert_eq!(serves(&command, &names), expected, "{words:?}");
        }
        assert_eq!(serves(b"", &names), Some(false), "a zombie");
    }
}
