//! What tests of the whole program share.

use crate::testing::require;
use pgha_image::poll::PollInterval;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The builder.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pgha-image");

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The builder, to be run in the project's folder with nothing of the user's settings but the mirror.
pub fn builder() -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(project())
        .env_remove("PGHA_IMAGE_CACHE_DIR")
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::null());
    command
}

/// A store that all tests of one run share, so that packages are fetched once.
pub fn shared_store() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("store")
}

/// What a program that was run said, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Ran {
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")).into()
    }

    /// Runs `command`, which must end well.
    pub fn well(command: &mut Command) -> Ran {
        let ran = Ran::of(command);
        assert_eq!(ran.status, Some(0), "{command:?}\n{}\n{}", ran.stdout, ran.stderr);
        ran
    }
}

/// Requires that a Debian mirror is known here.
pub fn require_mirror() -> bool {
    let ran = Ran::of(builder().args(["plan", "minimal", "--cache-dir"]).arg(shared_store()));
    let missing = ran.stderr.contains("no mirror of the Debian archive is known");
    require("mirror", !missing, "no Debian mirror is known here (set PGHA_IMAGE_MIRROR)")
}

/// Waits until `look` sees what it waits for; panics with the last state seen when it takes longer than `within`.
pub fn wait<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + within;
    let mut poll = PollInterval::new(Duration::from_millis(100));
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(state) if Instant::now() > end => panic!("{what} did not happen within {within:?}; last seen: {state}"),
            Err(_) => poll.wait(),
        }
    }
}

/// The SHA-256 of every file in `folder`, by name.
pub fn digests(folder: &Path) -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let file = fs::File::open(entry.path()).unwrap();
        let digest = pgha_image::model::Digest::of_reader(file).unwrap();
        digests.insert(entry.file_name().into_string().unwrap(), digest.hex());
    }
    digests
}
