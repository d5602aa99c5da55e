//! `pgha-image diff`.

use super::print;
use crate::inspect::{Change, Difference, Image};
use anyhow::Result;
use std::{fmt::Write as _, path::PathBuf};

/// Show how two images differ: packages, overlays, how they boot, and files with modes, owners and sizes.
///
/// The images may have different formats. The exit status is 0 if they are equal, 1 if they differ.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pgha-image diff old/ha-postgres-amd64.qcow2 out/ha-postgres-amd64.qcow2")]
pub struct Args {
    /// The first image.
    first: PathBuf,
    /// The second image.
    second: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether nothing differs.
    pub(super) fn run(self) -> Result<bool> {
        let difference = Difference::of(&Image::open(&self.first, true)?, &Image::open(&self.second, true)?);
        let text = match self.json {
            true => format!("{}\n", serde_json::to_string_pretty(&difference)?),
            false => describe(&difference),
        };
        print(&text)?;
        Ok(difference.is_empty())
    }
}

fn describe(difference: &Difference) -> String {
    let mut text = String::new();
    for (part, changes) in difference.parts() {
        for (name, change) in changes {
            let _ = match change {
                Change::Added(what) => writeln!(text, "+ {part:<8} {name}  {what}"),
                Change::Removed(what) => writeln!(text, "- {part:<8} {name}  {what}"),
                Change::Changed(first, second) => writeln!(text, "! {part:<8} {name}  {first} => {second}"),
            };
        }
    }
    text
}
