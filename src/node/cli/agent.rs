//! The verbs of the agent and of its repairs.

use crate::{
    error::UserError,
    node::agent::{
        self,
        repair::{CloneOrder, Plan},
    },
};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, Command};
use std::{
    ffi::OsString,
    io::{BufRead as _, Write as _},
    process::ExitCode,
};

/// How `agent` is described.
pub fn agent_command() -> Command {
    Command::new("agent")
        .about("Maintains this node: etcd's members and space, replicas that cannot follow, full disks")
        .after_help(
            "Runs until it is stopped, as the unit pgha-agent.service. `pgha-node status` shows what it reports.",
        )
}

/// Runs `agent`.
///
/// # Errors
/// When this machine has no document or no certificates yet.
pub fn agent(arguments: Vec<OsString>) -> Result<ExitCode> {
    agent_command().try_get_matches_from(arguments)?;
    match agent::run()? {}
}

/// How `reclone` is described.
pub fn reclone_command() -> Command {
    Command::new("reclone")
        .about("Clones this replica's database again from the primary; the present data are set aside and kept")
        .arg(Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Does not ask for this node's name"))
        .arg(
            Arg::new("in-place")
                .long("in-place")
                .action(ArgAction::SetTrue)
                .help("Removes the present data if there is no room for both"),
        )
        .after_help(
            "Refuses on the primary, and while there is none. `pgha-node status` shows how far the clone has come.",
        )
}

/// Runs `reclone`.
///
/// # Errors
/// When this node cannot be cloned again now, or the name that is typed is not its.
pub fn reclone(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = reclone_command().try_get_matches_from(arguments)?;
    let plan = Plan::of(CloneOrder { in_place: matches.get_flag("in-place") })?;
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{}", plan.words()?)?;
    if !matches.get_flag("yes") {
        write!(stderr, "Type the name of this node to go on: ")?;
        stderr.flush()?;
        let mut typed = String::new();
        std::io::stdin().lock().read_line(&mut typed).context("reading the name")?;
        if typed.trim() != plan.node() {
            return Err(UserError::usage(format!("nothing was done: the name of this node is {}", plan.node())).into());
        }
    }
    plan.carry_out()?;
    Ok(ExitCode::SUCCESS)
}
