//! The command line of `pgha-node`: one verb for each thing that a node does.
//!
//! Called under the name `confd`, the program is confd: the first argument is then a flag of confd, not a verb.

mod agent;
mod confd;
mod data;
mod form;
mod member;
mod recover;

use crate::error::{ErrorKind, kind_of, report};
use clap::Command;
use std::{env, ffi::OsString, io::Write as _, path::Path, process::ExitCode};

/// A verb: how it is described, and what it does with its own arguments.
type Verb = (fn() -> Command, fn(Vec<OsString>) -> anyhow::Result<ExitCode>);

/// All verbs.
const VERBS: [Verb; 15] = [
    (member::init_command, member::init),
    (member::status_command, member::status),
    (form::command, form::run),
    (recover::recover_command, recover::recover),
    (member::check_command, member::check),
    (member::renew_command, member::renew),
    (member::leave_command, member::leave),
    (data::aside_command, data::aside),
    (data::claim_command, data::verify_ownership),
    (data::first_command, data::first),
    (member::move_etcd_leader_command, member::move_etcd_leader),
    (member::save_haproxy_state_command, member::save_haproxy_state),
    (agent::reclone_command, agent::reclone),
    (agent::agent_command, agent::agent),
    (confd::command, confd::run),
];

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn dispatch(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let called = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_owned();
    let verb = |name: &OsString| VERBS.iter().find(|(command, _)| name.to_str() == Some(command().get_name()));
    if let Some((_, run)) = verb(&called) {
        return run(arguments);
    }
    // Each verb reads its own arguments: confd's are of another style than clap's.
    if let Some((_, run)) = arguments.get(1).and_then(verb) {
        return run(arguments[1..].to_vec());
    }
    let program = Command::new("pgha-node")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Makes this machine a member of its cluster, and keeps it one")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(VERBS.iter().map(|(command, _)| command()));
    program.try_get_matches_from(arguments)?;
    Ok(ExitCode::SUCCESS)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // Help and version are answers, not failures.
        let _ = usage.print();
        let is_answer =
            matches!(usage.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion);
        return if is_answer { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let _ = writeln!(std::io::stderr(), "{}", report(error));
    match kind_of(error) {
        ErrorKind::Usage => ExitCode::from(2),
        ErrorKind::Runtime => ExitCode::FAILURE,
    }
}
