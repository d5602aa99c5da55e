//! `pgha-image explain`.

use super::{
    print,
    project::{ArchiveArgs, ProjectArgs, StoreArgs},
};
use crate::{
    error::UserError,
    model::GuestPath,
    pipeline::{self, Access},
    plan::{Explanation, explain},
    progress::{Progress, Style},
};
use anyhow::Result;
use serde_json::json;
use std::fmt::Write as _;

/// Show where a path of an image comes from: its package or overlay, its source file, and what writes it.
///
/// Paths of packages are known once the image has been built on this machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pgha-image explain /etc/haproxy/haproxy.cfg")]
pub struct Args {
    /// The path inside the image.
    path: GuestPath,
    /// The recipe: a name in the project's recipes/ folder, or a path.
    #[arg(default_value = "ha-postgres")]
    recipe: String,
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let draft = self.project.draft(&self.recipe)?;
        let store = self.store.open()?;
        let overlays = explain(draft.plan(), &self.path);
        // Without a package index in the store, nothing was built here either.
        let access = Access { offline: true, ..self.archive.access()? };
        let base = match pipeline::plan(draft, &access, &store, &Progress::new(Style::Silent)) {
            Ok(plan) => pipeline::owner_in_base(&plan, &store, &self.path)?,
            Err(_) => None,
        };
        if self.json {
            return print(&format!("{}\n", json!({"path": self.path, "overlays": overlays, "base": base})));
        }
        let mut text = String::new();
        overlays.iter().for_each(|explanation| describe(explanation, &mut text));
        match (&base, overlays.is_empty()) {
            (Some(owner), true) => {
                let _ = writeln!(text, "{:<8} {owner}", "package");
            }
            (Some(owner), false) => {
                let _ = writeln!(text, "{:<8} {owner}, which has it too", "package");
            }
            (None, true) => {
                let problem = UserError::runtime(format!("no overlay of `{}` has {}", self.recipe, self.path));
                return Err(problem
                    .hint("files of packages are known once the image has been built on this machine")
                    .into());
            }
            (None, false) => {}
        }
        print(&text)
    }
}

fn describe(explanation: &Explanation, text: &mut String) {
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<8} {value}");
    };
    line("what", &explanation.what);
    line("overlay", &explanation.overlay);
    if let Some(source) = &explanation.source {
        line("source", source);
    }
    line("writer", &explanation.writer);
    if let (Some(owner), Some(mode)) = (&explanation.owner, &explanation.mode) {
        line("owner", owner);
        line("mode", mode);
    }
    if !explanation.check.is_empty() {
        line("check", &explanation.check.join(" "));
    }
}
