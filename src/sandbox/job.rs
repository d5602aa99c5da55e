//! The side of a job that runs inside the namespaces.

use super::{ARGUMENT, init, remove_tree_here};
use crate::error::{self, ErrorKind, UserError};
use anyhow::{Context as _, Result, ensure};
use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    process::{Gid, Signal, Uid},
    thread::UnshareFlags,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

/// The job that does nothing: that it could be started is the answer.
pub(super) const PROBE: &str = "probe";
/// The job that removes a tree.
pub(super) const REMOVE: &str = "remove";

/// Work that can be done in namespaces: a name, and a function from the request to the answer, both JSON.
#[derive(Clone, Copy)]
pub struct Job {
    /// What [`super::Sandbox::work`] calls it by.
    pub name: &'static str,
    /// Does the work.
    pub work: fn(serde_json::Value, &Reporter) -> Result<serde_json::Value>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.name).finish()
    }
}

/// What a job says, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// It waits for its request, and, in a user namespace, for its ids.
    Ready,
    /// The system did not let it in.
    Refused { what: String, errno: i32 },
    /// A report while it works.
    Report(serde_json::Value),
    /// What it needs to know to go on; the reply is the next line of its input.
    Question(serde_json::Value),
    /// The result.
    Answer(serde_json::Value),
    /// Why it failed: whether the request is wrong, the chain of causes, the hint.
    Failed { usage: bool, chain: Vec<String>, hint: Option<String> },
}

/// Reports to the process that started the job.
#[derive(Debug)]
pub struct Reporter(());

impl Reporter {
    /// Tells `event`, any JSON value.
    pub fn report(&self, event: serde_json::Value) {
        say(&Event::Report(event));
    }

    /// Asks that process a question and waits for the reply.
    ///
    /// # Errors
    /// When that process goes away.
    pub fn ask(&self, question: serde_json::Value) -> Result<serde_json::Value> {
        say(&Event::Question(question));
        read_line().context("reading a reply")
    }
}

/// One line of input.
fn read_line() -> Result<serde_json::Value> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    // The other side is gone, or could not give this process its ids.
    ensure!(!line.is_empty(), "the other side is gone");
    Ok(serde_json::from_str(&line)?)
}

fn say(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let mut out = io::stdout().lock();
        // Nobody listens any more: this process is about to be killed.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Serves `jobs` if this process was started to work in namespaces; `None` if it was not.
///
/// To be called first thing in `main`, while there is one thread.
pub fn entry(jobs: &[Job]) -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return None;
    }
    let arguments: Vec<String> = arguments.collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Some(match arguments[..] {
        ["job", way @ ("root" | "user"), name] => serve(way == "user", name, jobs),
        ["init"] => init::serve(),
        _ => ExitCode::from(2),
    })
}

fn serve(user: bool, name: &str, jobs: &[Job]) -> ExitCode {
    let code = match enter(user).and_then(|request| work(name, request, jobs)) {
        Ok(answer) => {
            say(&Event::Answer(answer));
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    match code.downcast_ref::<Refusal>() {
        Some(refusal) => say(&Event::Refused { what: refusal.what.to_owned(), errno: refusal.errno.raw_os_error() }),
        None => say(&failed(&code)),
    }
    ExitCode::FAILURE
}

fn failed(error: &anyhow::Error) -> Event {
    let hint = error
        .downcast_ref::<UserError>()
        .into_iter()
        .chain(error.chain().filter_map(|cause| cause.downcast_ref::<UserError>()))
        .find_map(|problem| problem.hint.clone());
    Event::Failed {
        usage: error::kind_of(error) == ErrorKind::Usage,
        chain: error.chain().map(|cause| cause.to_string()).collect(),
        hint,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be entered")]
struct Refusal {
    what: &'static str,
    errno: Errno,
}

/// Enters the namespaces and returns the request.
fn enter(user: bool) -> Result<serde_json::Value> {
    if user {
        unshare(UnshareFlags::NEWUSER).map_err(|errno| Refusal { what: "a user namespace", errno })?;
    } else {
        unshare(UnshareFlags::NEWNS).map_err(|errno| Refusal { what: "a mount namespace", errno })?;
    }
    die_with_parent()?;
    say(&Event::Ready);
    let request = read_line().context("reading a request")?;
    if user {
        rustix::thread::set_thread_groups(&[]).context("leaving the user's groups")?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context("becoming root")?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context("becoming root")?;
        unshare(UnshareFlags::NEWNS).map_err(|errno| Refusal { what: "a mount namespace", errno })?;
        // Changing ids forgets it.
        die_with_parent()?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| Refusal { what: "a mount namespace", errno })?;
    Ok(request)
}

fn work(name: &str, request: serde_json::Value, jobs: &[Job]) -> Result<serde_json::Value> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match name {
        PROBE => Ok(serde_json::Value::Null),
        REMOVE => {
            remove_tree_here(&serde_json::from_value::<PathBuf>(request)?)?;
            Ok(serde_json::Value::Null)
        }
        _ => {
            let job = jobs
                .iter()
                .find(|job| job.name == name)
                .with_context(|| format!("there is no sandboxed job `{name}`"))?;
            (job.work)(request, &Reporter(()))
        }
    }
}

/// Enters new namespaces with this thread.
pub(super) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!namespaces.contains(UnshareFlags::FILES));
    // SAFETY: the thread goes on sharing its file descriptors, which is all that could go wrong.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(namespaces)
    }
}

/// Has the kernel kill this process when the thread that started it ends.
///
/// That thread may have ended before; the process then gets no request and ends by itself.
pub(super) fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("making a job end with its parent")
}
