//! The command line of `pgha-image`: one file per verb.
//!
//! Data goes to standard output, people's text and progress to standard error. Exit status: 0 done, 1 the work failed,
//! 2 the request is wrong, 130 and 143 ended by a signal.

mod build;
mod cache;
mod cluster;
mod diff;
mod explain;
mod inspect;
mod plan;
mod project;
mod recovery;
mod run;
mod schema;
mod seed;
mod shell;

use crate::{
    base,
    error::{self, ErrorKind},
    interrupt, machine, sandbox,
};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;

/// Builds appliance images in which a highly available PostgreSQL cluster assembles itself on first boot.
#[derive(Debug, Parser)]
#[command(name = "pgha-image", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Build(build::Args),
    Plan(plan::Args),
    Run(run::Args),
    Explain(explain::Args),
    Seed(seed::Args),
    Cluster(cluster::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Schema(schema::Args),
    Cache(cache::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Runs the program.
pub fn main() -> ExitCode {
    if let Some(code) = sandbox::entry(&[base::JOB]).or_else(machine::entry) {
        return code;
    }
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::Build(args) => args.run(),
        Verb::Plan(args) => args.run(),
        Verb::Run(args) => args.run(),
        Verb::Explain(args) => args.run(),
        Verb::Seed(args) => args.run(),
        Verb::Cluster(args) => args.run(),
        Verb::Inspect(args) => args.run(),
        Verb::Diff(args) => match args.run() {
            Ok(true) => Ok(()),
            // That there are differences is an answer, not a failure.
            Ok(false) => return ExitCode::from(1),
            Err(error) => Err(error),
        },
        Verb::Schema(args) => args.run(),
        Verb::Cache(args) => args.run(),
        Verb::Completions(args) => args.run(Cli::command()),
        Verb::Man(args) => args.run(Cli::command()),
    };
    interrupt::leave_the_end_to_the_signal();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            match error::kind_of(&error) {
                ErrorKind::Runtime => ExitCode::from(1),
                ErrorKind::Usage => ExitCode::from(2),
            }
        }
    }
}

/// Prints an error once, in colour where a person sees it.
fn complain(error: &anyhow::Error) {
    use std::io::Write as _;
    let text = error::report(error);
    let text = match text.strip_prefix("error:") {
        Some(rest) => format!("\x1b[1;31merror:\x1b[0m{rest}"),
        None => text,
    };
    let text = text.replace("\n\nhint:", "\n\n\x1b[1;36mhint:\x1b[0m");
    // There is nowhere to report it if standard error is gone.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Writes data to standard output; a reader that went away is not a failure.
fn print(text: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}
