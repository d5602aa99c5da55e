//! Starts programs that end with this one, or that outlive it.
//!
//! The kernel kills a tied program when this one ends, however it ends. It does so at the end of the thread that
//! started the program (prctl(2), PR_SET_PDEATHSIG), so one thread that never ends starts them all. What must happen in
//! the child before the program begins is done by this program itself, started in a hidden mode.

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitCode},
    sync::{LazyLock, Mutex, mpsc},
    thread,
};

/// The first argument of this program when it is started for a machine; `machine::entry` serves it.
pub(crate) const ARGUMENT: &str = "__machine";

/// How long a started program lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it or this program ends.
    Tied,
    /// Until it ends; it has no terminal and outlives this program.
    Detached,
}

impl Lifetime {
    fn word(self) -> &'static str {
        match self {
            Lifetime::Tied => "tied",
            Lifetime::Detached => "detached",
        }
    }
}

/// Starts tied and detached programs.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: OsString,
}

impl Default for Launcher {
    fn default() -> Launcher {
        Launcher::new()
    }
}

impl Launcher {
    /// By the running program itself, whose `main` must call `machine::entry` before anything else.
    pub fn new() -> Launcher {
        Launcher::with_program("/proc/self/exe")
    }

    /// By `program`, whose `main` must call `machine::entry` before anything else.
    pub fn with_program(program: impl Into<OsString>) -> Launcher {
        Launcher { program: program.into() }
    }

    /// A command that does `what` with `lifetime`; [`spawn`] starts it.
    pub(crate) fn command(&self, lifetime: Lifetime, what: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(ARGUMENT).arg(lifetime.word()).arg(std::process::id().to_string()).arg(what);
        command
    }
}

type StartRequest = (Command, mpsc::Sender<io::Result<Child>>);

static STARTER: LazyLock<Mutex<mpsc::Sender<StartRequest>>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<StartRequest>();
    thread::spawn(move || {
        for (mut command, reply) in requests {
            let _ = reply.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

/// Starts a command of [`Launcher::command`].
pub(crate) fn spawn(command: Command) -> Result<Child> {
    let (reply, started) = mpsc::channel();
    let sender = STARTER.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    let program = command.get_program().to_owned();
    // The thread that receives never ends.
    let _ = sender.send((command, reply));
    let child = started.recv().context("starting a program")?;
    child.with_context(|| format!("starting `{}`", program.display()))
}

/// Gives this process the lifetime that the arguments of [`Launcher::command`] ask for.
pub(crate) fn settle(lifetime: &str, parent: &str) -> Result<()> {
    if lifetime == Lifetime::Detached.word() {
        rustix::process::setsid().context("leaving the terminal")?;
        return Ok(());
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tying a program to its parent")?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    anyhow::ensure!(now.as_deref() == Some(parent), "the parent ended before");
    Ok(())
}

/// Executes another program in place of this one.
pub(crate) fn become_program(arguments: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = arguments.split_first() else { return ExitCode::from(2) };
    let error = Command::new(program).args(arguments).exec();
    complain(&anyhow::Error::new(error).context(format!("starting `{}`", program.display())))
}

/// Prints an error on standard error, which the parent reads.
pub(crate) fn complain(error: &anyhow::Error) -> ExitCode {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "{error:#}");
    ExitCode::FAILURE
}
