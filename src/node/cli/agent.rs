//! The verb of the resident part.

use crate::node::agent;
use anyhow::Result;
use clap::Command;
use std::{ffi::OsString, process::ExitCode};

/// How `agent` is described.
pub fn agent_command() -> Command {
    Command::new("agent")
        .about("Looks after this node: etcd's members and space, replicas that cannot follow, full disks")
        .after_help(
            "Runs until it is stopped, as the unit pgha-agent.service. `pgha-node status` shows what it has to tell.",
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
