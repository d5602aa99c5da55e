//! Work inside namespaces: as root, or as an ordinary user with a range of ids, and nothing of the host in sight.
//!
//! Namespaces are entered by a process with one thread, so this program starts itself again, with [`ARGUMENT`] as its
//! first argument. There are two kinds of such processes:
//!
//! - A **job** ([`Sandbox::work`]) is this program's own code where files can have any owner: the job is root there,
//!   and the other ids are the user's subordinate ones. It has a mount namespace of its own. What it asks for comes
//!   as one JSON line on its standard input, what it has to tell goes as JSON lines to its standard output.
//! - A **program** ([`SandboxRoot::run`]) is foreign code that a job runs with a root file system of its own. It sees that root,
//!   `/proc`, a `/dev` of seven harmless devices, empty `/run` and `/tmp`; no network, no process but its own, no
//!   capability that reaches beyond the root, no terminal. It cannot wait for the disk, since everything here is
//!   either published by rename or thrown away. When it ends, runs out of time, or this program dies, every process
//!   that it started is killed.

mod ids;
mod init;
mod job;
mod run;

pub use job::{Job, Reporter, entry};
pub use run::{Bind, Ending, SandboxRoot};

use crate::error::{ErrorKind, UserError};
use anyhow::{Context as _, Result, anyhow, bail};
use ids::Mapping;
use job::{Event, REMOVE};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

/// The first argument of this program when it is started to work in namespaces; [`entry`] serves it.
pub const ARGUMENT: &str = "__sandbox";

/// A way into the namespaces.
#[derive(Debug, Clone)]
pub struct Sandbox {
    program: OsString,
}

/// Who listens to a job.
pub trait Listener {
    /// Receives a report of the job.
    fn on_event(&mut self, event: serde_json::Value);

    /// Replies to a question of the job.
    ///
    /// # Errors
    /// When there is no reply; the job is then ended, and this is its error.
    fn reply(&mut self, question: serde_json::Value) -> Result<serde_json::Value>;
}

/// Nobody listens.
struct Nobody;

impl Listener for Nobody {
    fn on_event(&mut self, _: serde_json::Value) {}

    fn reply(&mut self, question: serde_json::Value) -> Result<serde_json::Value> {
        bail!("there is no reply to {question}")
    }
}

/// How the namespaces can be entered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// As root, with the ids as they are.
    Root,
    /// Through a user namespace.
    User(Mapping),
}

/// Why a job failed.
enum Failure {
    /// The system does not let this user into the namespaces.
    Refused(anyhow::Error),
    /// Everything else.
    Other(anyhow::Error),
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::new()
    }
}

impl Sandbox {
    /// Jobs are done by the running program itself, whose `main` must call [`entry`] before anything else.
    pub fn new() -> Sandbox {
        Sandbox::with_program("/proc/self/exe")
    }

    /// Jobs are done by `program`, whose `main` must call [`entry`] before anything else.
    pub fn with_program(program: impl Into<OsString>) -> Sandbox {
        Sandbox { program: program.into() }
    }

    /// Whether this machine lets this user work in namespaces.
    ///
    /// # Errors
    /// A [`UserError`] with what is missing and how to get it.
    pub fn probe(&self) -> Result<()> {
        self.work(job::PROBE, &(), &mut Nobody)
    }

    /// Removes `folder` and all that is in it, whichever of this user's ids owns it.
    ///
    /// # Errors
    /// When the namespaces cannot be entered, or something cannot be removed.
    pub fn remove_tree(&self, folder: &Path) -> Result<()> {
        self.work(REMOVE, &folder, &mut Nobody)
    }

    /// Runs the job named `job` in namespaces and returns its answer; `listener` receives its reports meanwhile.
    ///
    /// # Errors
    /// When the namespaces cannot be entered (a [`UserError`] with a hint), and the job's own error.
    pub fn work<A: DeserializeOwned>(
        &self,
        job: &str,
        request: &impl Serialize,
        listener: &mut dyn Listener,
    ) -> Result<A> {
        let request = serde_json::to_string(request)?;
        let answer = match self.try_work(&ids::way()?, job, &request, listener) {
            // Root of a container often lacks what it takes, but has ids enough for a user namespace.
            Err(Failure::Refused(first)) if rustix::process::geteuid().is_root() => {
                self.try_work(&Way::User(Mapping::identity()), job, &request, listener).map_err(|second| match second {
                    Failure::Refused(_) => first,
                    Failure::Other(error) => error,
                })
            }
            Err(Failure::Refused(error) | Failure::Other(error)) => Err(error),
            Ok(answer) => Ok(answer),
        }?;
        serde_json::from_value(answer).context("reading the result of a sandboxed job")
    }

    fn try_work(
        &self,
        way: &Way,
        job: &str,
        request: &str,
        listener: &mut dyn Listener,
    ) -> Result<serde_json::Value, Failure> {
        let mut child = self.start(way, job).map_err(Failure::Other)?;
        let answer = converse(&mut child, way, request, listener);
        // Only a child that got everything and answered ends by itself.
        if answer.is_err() {
            child.kill();
        }
        let (ended, said) = child.wait().map_err(Failure::Other)?;
        match answer? {
            Some(answer) if ended.success() => Ok(answer),
            _ => {
                Err(Failure::Other(anyhow!("the sandboxed job `{job}` ended unexpectedly ({ended}): {}", said.trim())))
            }
        }
    }

    fn start(&self, way: &Way, job: &str) -> Result<JobProcess> {
        let way = match way {
            Way::Root => "root",
            Way::User(_) => "user",
        };
        let mut child = Command::new(&self.program)
            .args([ARGUMENT, "job", way, job])
            .env_clear()
            .current_dir("/")
            // Ctrl-C is for this process, which ends the job by going away.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {} again to work in namespaces", self.program.display()))?;
        let stderr = child.stderr.take();
        let said = thread::spawn(move || {
            let mut said = String::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(64 << 10).read_to_string(&mut said);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            said
        });
        Ok(JobProcess { child, said: Some(said) })
    }
}

/// A running job; killed when dropped.
struct JobProcess {
    child: Child,
    said: Option<thread::JoinHandle<String>>,
}

impl JobProcess {
    fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// How it ended, and what it said on standard error.
    fn wait(mut self) -> Result<(std::process::ExitStatus, String)> {
        drop(self.child.stdin.take());
        let status = self.child.wait().context("waiting for a sandboxed job")?;
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        Ok((status, said))
    }
}

impl Drop for JobProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Talks with a job up to its answer; `None` if it ended without one.
fn converse(
    child: &mut JobProcess,
    way: &Way,
    request: &str,
    listener: &mut dyn Listener,
) -> Result<Option<serde_json::Value>, Failure> {
    let other = |error: anyhow::Error| Failure::Other(error);
    let stdout = child.child.stdout.take().context("a job without output").map_err(other)?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading from a sandboxed job").map_err(other)?;
        let event: Event =
            serde_json::from_str(&line).with_context(|| format!("a sandboxed job printed `{line}`")).map_err(other)?;
        match event {
            Event::Ready => {
                if let Way::User(mapping) = way {
                    mapping.apply(child.child.id()).map_err(Failure::Refused)?;
                }
                say(child, &request)?;
            }
            Event::Refused { what, errno } => return Err(Failure::Refused(ids::refused(&what, errno))),
            Event::Report(event) => listener.on_event(event),
            Event::Question(question) => {
                let reply = listener.reply(question).map_err(other)?;
                say(child, &reply)?;
            }
            Event::Answer(answer) => return Ok(Some(answer)),
            Event::Failed { usage, chain, hint } => return Err(Failure::Other(retell(usage, chain, hint))),
        }
    }
    Ok(None)
}

/// Gives a job a line of input.
fn say(child: &mut JobProcess, line: &dyn std::fmt::Display) -> Result<(), Failure> {
    let stdin = child.child.stdin.as_mut().context("a job without input").map_err(Failure::Other)?;
    // A job that has ended by now reported why.
    let _ = writeln!(stdin, "{line}");
    Ok(())
}

/// The error that a job had, as one of this process.
fn retell(usage: bool, chain: Vec<String>, hint: Option<String>) -> anyhow::Error {
    let mut causes = chain.into_iter().rev();
    let message = causes.next().unwrap_or_default();
    let kind = if usage { ErrorKind::Usage } else { ErrorKind::Runtime };
    causes.fold(anyhow::Error::new(UserError { kind, message, hint }), anyhow::Error::context)
}

/// Removes a tree from inside a job, or as far as this process may.
fn remove_tree_here(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => bail!(anyhow::Error::new(error).context(format!("removing {}", folder.display()))),
    }
}
