//! The command line of `pgha-node`.

use super::{
    check, init, leader, renew,
    state::{STATE_PATH, State},
    status::Status,
};
use crate::{
    error::{Blame, Fault, blame, report},
    spec::Time,
};
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use std::{ffi::OsString, io::Write as _, path::Path, process::ExitCode};

/// Makes one booted machine a member of its PostgreSQL cluster, and keeps it one.
#[derive(Debug, Parser)]
#[command(name = "pgha-node", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a member: read its document, write the configuration, start the services in order
    ///
    /// Safe to run again at any time. Exit status: 0 ready, 75 try again, 77 another cluster's data is here, 78 the
    /// document is wrong.
    Init,
    /// Show where this node stands, what it waits for and why
    ///
    /// Exit status: 0 ready, 1 not ready.
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask one service whether it is well
    Check {
        /// Which one
        service: Checked,
        /// How long HAProxy may take to answer
        #[arg(long, default_value = "2s")]
        within: Time,
    },
    /// Renew certificates that end soon, without restarting a service
    Renew,
    /// Give etcd's leadership away if this node has both it and the primary
    MoveEtcdLeader {
        /// What Patroni tells its callbacks: action, role and cluster; nothing else to be decided by
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        callback: Vec<OsString>,
    },
    /// Keep which servers HAProxy holds for up, before it is reloaded
    #[command(hide = true)]
    SaveHaproxyState,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Checked {
    /// confd has written its files
    Confd,
    /// HAProxy's front ends are open and it answers
    Haproxy,
    /// Patroni's PostgreSQL runs
    Patroni,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Init => return init::run(),
        Verb::Status { json } => status(json),
        Verb::Check { service: Checked::Confd, .. } => check::confd().map(|()| ExitCode::SUCCESS),
        Verb::Check { service: Checked::Haproxy, within } => check::haproxy(within.0).map(|()| ExitCode::SUCCESS),
        Verb::Check { service: Checked::Patroni, .. } => with_state(check::patroni),
        Verb::Renew => renew::run().map(|()| ExitCode::SUCCESS),
        Verb::MoveEtcdLeader { .. } => with_state(leader::move_away),
        Verb::SaveHaproxyState => check::save_haproxy_state().map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        // The journal may be gone; there is nobody else to tell.
        let _ = writeln!(std::io::stderr(), "{}", report(&error));
        ExitCode::from(if blame(&error) == Blame::Request { 2 } else { 1 })
    })
}

fn status(json: bool) -> Result<ExitCode> {
    let status = Status::look()?;
    let text = if json { format!("{}\n", serde_json::to_string_pretty(&status)?) } else { status.to_string() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if status.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn with_state(act: fn(&State) -> Result<()>) -> Result<ExitCode> {
    let state = State::load(Path::new(STATE_PATH))?;
    let state = state.ok_or_else(|| Fault::work("this machine is no member of a cluster yet").hint("pgha-node init"))?;
    act(&state).map(|()| ExitCode::SUCCESS)
}
