//! Runs a program with a root file system of its own.

use super::{
    ARGUMENT,
    init::{GO, READY, TOO_MANY},
    job,
};
use crate::model::GuestPath;
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// A folder of the host that a program sees, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The folder.
    pub host: PathBuf,
    /// Where it is seen: below `/run`, which is empty and new for each program.
    pub guest: GuestPath,
}

/// Where programs run: a root file system, and what is the same for each of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRoot {
    /// The folder that is `/`.
    pub root: PathBuf,
    /// Folders of the host that are seen.
    pub binds: Vec<Bind>,
    /// Variables in addition to those of every program.
    pub environment: Vec<(String, String)>,
    /// The longest time that one program may run.
    pub limit: Duration,
    /// How many processes may be there at once.
    pub processes: usize,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status; 128 and more: by the signal with that number less 128.
    Status(u8),
    /// It was killed when its time was up.
    OutOfTime,
    /// It was killed for starting too many processes.
    TooManyProcesses,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Status(status) => write!(f, "ended with status {status}"),
            Ending::OutOfTime => f.write_str("was killed when its time was up"),
            Ending::TooManyProcesses => f.write_str("was killed for starting too many processes"),
        }
    }
}

/// The request to the first process of a program's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub sandbox_root: SandboxRoot,
    pub arguments: Vec<String>,
}

/// The longest line that is passed on whole; a longer one comes in pieces.
const LINE: u64 = 16 << 10;

impl SandboxRoot {
    /// Runs the program `arguments[0]` to its end, from within a job. `on_line` is called with each line of its
    /// standard output and error, which are one stream; bytes that are not UTF-8 are replaced.
    ///
    /// When this returns, no process of it is left.
    ///
    /// # Errors
    /// When the namespaces cannot be set up or the program cannot be started; how it ends is not an error here.
    pub fn run(&self, arguments: &[&str], on_line: &mut dyn FnMut(&str)) -> Result<Ending> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let request = serde_json::to_string(&Request { sandbox_root: self.clone(), arguments })?;
        let (send, lines) = mpsc::sync_channel(1024);
        thread::scope(|scope| {
            // The thread that starts the first process must outlive it, and its namespaces are its own.
            let (started, child) = mpsc::sync_channel(1);
            let (release, hold) = mpsc::channel::<()>();
            scope.spawn(move || {
                let _ = started.send(start());
                let _ = hold.recv();
            });
            let mut first = FirstProcess(child.recv().context("starting a sandboxed program")??);
            let mut stdout = BufReader::new(first.0.stdout.take().context("a program without output")?);
            first.go(&request, &mut stdout)?;
            scope.spawn(move || listen(stdout, &send));
            let in_time = receive(&lines, Instant::now() + self.limit, on_line);
            if !in_time {
                first.kill();
            }
            let status = first.0.wait().context("waiting for a sandboxed program")?;
            drop(release);
            Ok(match (in_time, status.code(), status.signal()) {
                (false, ..) => Ending::OutOfTime,
                (true, Some(code), _) if code == i32::from(TOO_MANY) => Ending::TooManyProcesses,
                (true, Some(code), _) => Ending::Status(code as u8),
                (true, None, signal) => Ending::Status(128 + signal.unwrap_or_default() as u8),
            })
        })
    }
}

/// Starts the process that will be the first of new namespaces.
fn start() -> Result<Child> {
    job::unshare(UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)
        .context("making namespaces for a program")?;
    Command::new("/proc/self/exe")
        .args([ARGUMENT, "init"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting this program again to run another")
}

/// The first process of a program's namespaces; dropped, it and all the others are killed.
struct FirstProcess(Child);

impl FirstProcess {
    /// Has the process run what `request` says.
    fn go(&mut self, request: &str, stdout: &mut BufReader<ChildStdout>) -> Result<()> {
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if line.trim_end() == READY
            && let Some(mut stdin) = self.0.stdin.take()
        {
            // If it is gone it said why.
            let _ = writeln!(stdin, "{request}");
            line.clear();
            stdout.read_line(&mut line)?;
        }
        if line.trim_end() == GO {
            return Ok(());
        }
        stdout.read_to_string(&mut line)?;
        bail!(anyhow!("{}", line.trim()).context("setting a sandbox up"))
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
    }
}

impl Drop for FirstProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// Passes lines on until every process that could write is gone.
fn listen(mut stdout: BufReader<ChildStdout>, lines: &mpsc::SyncSender<String>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stdout).take(LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                // Nobody reads it any more, but the writers must not block.
                let _ = lines.send(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            }
        }
    }
}

/// Hears lines until the last, or until `deadline`; returns whether it was the last.
fn receive(lines: &mpsc::Receiver<String>, deadline: Instant, on_line: &mut dyn FnMut(&str)) -> bool {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
        // A program that never stops talking runs out of time too.
        if Instant::now() >= deadline {
            return false;
        }
    }
}

/// Whether `path` can be bound: what is below `/run` goes with it.
pub(super) fn is_below_run(path: &GuestPath) -> bool {
    Path::new(path.as_str()).starts_with("/run") && path.as_str() != "/run"
}
