//! `pgha-image completions` and `pgha-image man`.

use super::print;
use crate::{document::suggest, error::UserError};
use anyhow::Result;
use clap::Command;
use clap_complete::Shell;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "pgha-image", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}

/// Print the manual page, of the program or of one verb.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The verb; without it, the program.
    verb: Option<String>,
}

impl Man {
    pub(super) fn run(self, command: Command) -> Result<()> {
        let command = match &self.verb {
            None => command,
            Some(verb) => {
                let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
                let Some(found) = command.find_subcommand(verb) else {
                    let hint = suggest(verb, names.iter().map(String::as_str), "verbs are");
                    return Err(UserError { hint, ..UserError::usage(format!("there is no verb `{verb}`")) }.into());
                };
                found.clone().bin_name(format!("pgha-image {verb}")).display_name(format!("pgha-image-{verb}"))
            }
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        print(&String::from_utf8_lossy(&page))
    }
}
