//! `pgha-node form`: a person lets the cluster form without members that do not come.

use crate::{
    error::UserError,
    node::{form::Forming, order, peers::TlsCredentials, this_node},
};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, Command};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{BufRead as _, Write as _},
    path::Path,
    process::ExitCode,
};

/// How it is described.
pub fn command() -> Command {
    Command::new("form")
        .about("Lets the cluster form for the first time without members that do not come")
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("NAME")
                .required(true)
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("A member to leave out; it must be switched off"),
        )
        .arg(Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Does not ask for the cluster's name"))
        .after_help(
            "A cluster forms by itself when all members of its document are here and empty. Give this order on the first \
             member that is not left out; the others must be a majority. Who was left out joins when it comes.",
        )
}

/// Runs it.
///
/// # Errors
/// When the order cannot be given here, or the person does not confirm it.
pub fn run(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = command().try_get_matches_from(arguments)?;
    let without: BTreeSet<String> = matches.get_many::<String>("without").into_iter().flatten().cloned().collect();
    let node = this_node::find()?;
    let forming = Forming::new(&node, Path::new("/"), TlsCredentials::of_the_node())?;
    let view = forming.survey().context("asking the other members")?;
    let order = order::give(&view, &without)?;
    let cluster = &node.spec.cluster;
    let mut out = std::io::stdout();
    write!(out, "{}", order::meaning(&view, cluster, &order))?;
    if !matches.get_flag("yes") {
        write!(out, "Type the cluster's name to go on: ")?;
        out.flush()?;
        let mut typed = String::new();
        std::io::stdin().lock().read_line(&mut typed)?;
        if typed.trim() != cluster {
            return Err(UserError::usage("the cluster's name was not typed: nothing has changed")
                .hint("pgha-node form --yes does not ask")
                .into());
        }
    }
    forming.write_order(&order)?;
    writeln!(out, "The order is given; how it goes on: pgha-node status")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_with_commas_or_one_by_one() {
        let names = |arguments: &[&str]| -> Vec<String> {
            let matches = command().try_get_matches_from(arguments).unwrap();
            matches.get_many::<String>("without").unwrap().cloned().collect()
        };
        assert_eq!(names(&["form", "--without", "pg-2,pg-3"]), ["pg-2", "pg-3"]);
        assert_eq!(names(&["form", "--without", "pg-2", "--without", "pg-3"]), ["pg-2", "pg-3"]);
        assert!(command().try_get_matches_from(["form"]).is_err());
    }
}
