//! The verbs that make a machine a member of its cluster and keep it one.

use super::data::confirm;
use crate::{
    error::UserError,
    model::Time,
    node::{
        check as checks, init as first_boot, leader, leave as leaving, renew as certificates,
        state::{STATE_PATH, State},
        status::{self, Lines},
    },
};
use anyhow::Result;
use clap::{Arg, ArgAction, Command, value_parser};
use std::{ffi::OsString, io::Write as _, path::Path, process::ExitCode};

/// How `init` is described.
pub fn init_command() -> Command {
    Command::new("init")
        .about("Makes this machine a member: reads its document, writes the configuration, starts the services in order")
        .arg(Arg::new("changed").long("changed").action(ArgAction::SetTrue).help(
            "The document was given on purpose just now: it is the newest, even if the cluster has seen it before",
        ))
        .after_help(
            "Safe to run again at any time. Exit status: 0 ready, 75 try again, 77 another cluster's data is here, 78 the \
             document is wrong.",
        )
}

/// Runs `init`.
///
/// # Errors
/// When the arguments are wrong; how the work went is told by the status.
pub fn init(arguments: Vec<OsString>) -> Result<ExitCode> {
    let changed = init_command().try_get_matches_from(arguments)?.get_flag("changed");
    Ok(first_boot::run(changed))
}

/// How `status` is described.
pub fn status_command() -> Command {
    Command::new("status")
        .about("Shows the status of this node, what it waits for and why")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints JSON"))
        .after_help("Exit status: 0 ready, 1 not ready or not as it should be.")
}

/// Runs `status`.
///
/// # Errors
/// When systemd or the image cannot be asked.
pub fn status(arguments: Vec<OsString>) -> Result<ExitCode> {
    let json = status_command().try_get_matches_from(arguments)?.get_flag("json");
    let status = status::look(!json)?;
    let text = if json { format!("{}\n", serde_json::to_string_pretty(&status)?) } else { Lines(&status).to_string() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if status.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How `check` is described.
pub fn check_command() -> Command {
    Command::new("check")
        .about("Checks whether a service is healthy, or whether this node's database may be started")
        .arg(Arg::new("service").required(true).value_parser(["confd", "database", "haproxy", "patroni"]))
        .arg(
            Arg::new("within")
                .long("within")
                .value_name("TIME")
                .value_parser(value_parser!(Time))
                .default_value("2s")
                .help("How long HAProxy may take to answer"),
        )
}

/// Runs `check`.
///
/// # Errors
/// When the service is not well, with how it stands.
pub fn check(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = check_command().try_get_matches_from(arguments)?;
    let within = matches.get_one::<Time>("within").map_or(std::time::Duration::from_secs(2), |time| time.0);
    match matches.get_one::<String>("service").map(String::as_str) {
        Some("confd") => checks::confd(),
        Some("database") => checks::database(),
        Some("haproxy") => checks::haproxy(within),
        _ => checks::patroni(&state()?),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// How `renew` is described.
pub fn renew_command() -> Command {
    Command::new("renew").about("Renews certificates that end soon, without restarting a service")
}

/// Runs `renew`.
///
/// # Errors
/// When certificates cannot be renewed or taken up.
pub fn renew(arguments: Vec<OsString>) -> Result<ExitCode> {
    renew_command().try_get_matches_from(arguments)?;
    certificates::run().map(|()| ExitCode::SUCCESS)
}

/// How `move-etcd-leader` is described.
pub fn move_etcd_leader_command() -> Command {
    Command::new("move-etcd-leader")
        .about("Moves etcd's leadership to another member if this node also has the primary")
        // Patroni tells its callbacks action, role and cluster; nothing is decided by them.
        .arg(Arg::new("callback").num_args(0..).hide(true))
}

/// Runs `move-etcd-leader`.
///
/// # Errors
/// When Patroni or etcd does not answer.
pub fn move_etcd_leader(arguments: Vec<OsString>) -> Result<ExitCode> {
    move_etcd_leader_command().try_get_matches_from(arguments)?;
    leader::move_away(&state()?).map(|()| ExitCode::SUCCESS)
}

/// How `leave` is described.
pub fn leave_command() -> Command {
    Command::new("leave")
        .about("Removes this node from its cluster: stops its services and informs the others; its data stay")
        .arg(Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Does not ask"))
        .arg(
            Arg::new("force")
                .long("force")
                .action(ArgAction::SetTrue)
                .help("Leaves even if no other member has a good copy of the data, or writes stop without this node"),
        )
        .after_help(
            "A primary hands over first. A node whose data no other member has does not leave without --force. A node that \
             the document still names joins again at its next boot.",
        )
}

/// Runs `leave`.
///
/// # Errors
/// When nobody can be told, or a service does not stop.
pub fn leave(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = leave_command().try_get_matches_from(arguments)?;
    let state = state()?;
    let (node, cluster) = (&state.node, &state.cluster);
    let question = format!("{node} will leave the cluster {cluster}: its services stop, and its data stay here.");
    confirm(matches.get_flag("yes"), &question, node)?;
    leaving::leave(&state, matches.get_flag("force"))?;
    writeln!(
        std::io::stdout(),
        "{node} has left the cluster {cluster}. It joins again at its next boot as long as its document names it: give the \
         others a document without it, and switch it off."
    )?;
    Ok(ExitCode::SUCCESS)
}

/// How `save-haproxy-state` is described.
pub fn save_haproxy_state_command() -> Command {
    Command::new("save-haproxy-state").about("Saves the states of HAProxy's servers before a reload").hide(true)
}

/// Runs `save-haproxy-state`.
///
/// # Errors
/// When HAProxy does not answer.
pub fn save_haproxy_state(arguments: Vec<OsString>) -> Result<ExitCode> {
    save_haproxy_state_command().try_get_matches_from(arguments)?;
    checks::save_haproxy_state().map(|()| ExitCode::SUCCESS)
}

fn state() -> Result<State> {
    let state = State::load(Path::new(STATE_PATH))?;
    state.ok_or_else(|| {
        UserError::runtime("this machine is not a member of a cluster yet").hint("pgha-node init").into()
    })
}
