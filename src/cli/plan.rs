//! `pgha-image plan`.

use super::{
    print,
    project::{ArchiveArgs, ProjectArgs, StoreArgs},
    recovery,
};
use crate::{
    document::Document,
    files::read_text,
    pipeline,
    plan::Plan,
    progress::{Progress, Style, size},
    recipe::Size,
    seed::with_secret,
};
use anyhow::Result;
use serde_json::json;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Print every decision of a build, before anything is built.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe: a name in the project's recipes/ folder, or a path.
    #[arg(required_unless_present = "cluster")]
    recipe: Option<String>,
    /// Also print the recovery times that follow from this cluster's document; without a recipe, only those.
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,
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
        if let Some(path) = &self.cluster {
            self.plan_cluster(path)?;
        }
        let Some(recipe) = &self.recipe else { return Ok(()) };
        let draft = self.project.draft(recipe)?;
        let store = self.store.open()?;
        let plan = pipeline::plan(draft, &self.archive.access()?, &store, &Progress::for_people())?;
        if self.json {
            return print(&format!("{}\n", serde_json::to_string_pretty(&plan)?));
        }
        print(&describe(&plan))
    }

    /// Checks the document at `path` and prints what follows from its timers.
    fn plan_cluster(&self, path: &Path) -> Result<()> {
        let document = Document::new(path.display().to_string(), read_text(path)?);
        // Times do not depend on the secret, which many documents get later.
        let (document, _) = with_secret(document, None)?;
        let (spec, warnings) = document.cluster()?;
        let progress = Progress::new(Style::Plain);
        warnings.iter().for_each(|warning| progress.warn(warning));
        if self.json {
            let timing = spec.timing.timing();
            let value = json!({"cluster": spec.cluster, "timing": timing, "recovery": timing.recovery()});
            return print(&format!("{value:#}\n"));
        }
        print(&recovery::text(&spec))
    }
}

/// The plan as text for people.
fn describe(plan: &Plan) -> String {
    let mut text = format!("{} ({}): {}\n", plan.name, plan.arch, plan.description);
    let _ = writeln!(text, "\nrecipes     {}", plan.lineage.join(" → "));
    for (name, value) in &plan.parameters {
        let _ = writeln!(text, "parameter   {name} = {value}");
    }
    for (name, source) in &plan.sources {
        let _ = writeln!(text, "source      {name}: {} {}", source.suite, source.components.join(" "));
    }
    let download = plan.packages.iter().map(|package| package.size).sum();
    let _ = writeln!(text, "\nbase: {} packages, {}", plan.packages.len(), size(download));
    let width = |of: fn(&crate::plan::Package) -> &str| plan.packages.iter().map(|p| of(p).len()).max().unwrap_or(0);
    let (name, version) = (width(|package| &package.name), width(|package| &package.version).min(32));
    for package in &plan.packages {
        let _ = writeln!(text, "  {:name$}  {:version$}  {}", package.name, package.version, package.reason);
    }
    for (user, what) in &plan.users {
        let _ = writeln!(text, "  user {user} has the number {}", what.uid);
    }
    for (group, what) in &plan.groups {
        let _ = writeln!(text, "  group {group} has the number {}", what.gid);
    }
    for answer in &plan.preseed {
        let _ = writeln!(text, "  answer {answer}");
    }
    for pattern in &plan.paths.exclude {
        let _ = writeln!(text, "  without {pattern}");
    }
    for pattern in &plan.paths.include {
        let _ = writeln!(text, "  but with {pattern}");
    }
    if let Some(disk) = &plan.disk {
        let download = disk.packages.iter().map(|package| package.size).sum();
        let _ = writeln!(
            text,
            "\ndisk {}: {} packages more, {}",
            disk.size.map_or("as large as it must be".to_owned(), |Size(bytes)| format!("of {}", size(bytes))),
            disk.packages.len(),
            size(download)
        );
        for package in &disk.packages {
            let _ = writeln!(text, "  {:name$}  {:version$}  {}", package.name, package.version, package.reason);
        }
        for argument in &disk.arguments {
            let _ = writeln!(text, "  kernel argument {argument}");
        }
    }
    for overlay in plan.overlays.iter().chain(plan.disk.iter().flat_map(|disk| &disk.overlays)) {
        let _ = writeln!(text, "\noverlay {}: {}", overlay.name, overlay.description);
        for file in &overlay.files {
            let moment = if file.before_packages { ", before packages" } else { "" };
            let (mode, owner, group) = (file.mode.0, &file.owner, &file.group);
            let _ = writeln!(text, "  {}  {mode:04o} {owner}:{group}, by {}{moment}", file.path, file.writer);
        }
        for (path, directory) in &overlay.directories {
            let (mode, owner, group) = (directory.mode.0, &directory.owner, &directory.group);
            let _ = writeln!(text, "  {path}/  {mode:04o} {owner}:{group}");
        }
        for (path, target) in &overlay.links {
            let _ = writeln!(text, "  {path} -> {target}");
        }
        for path in &overlay.remove {
            let _ = writeln!(text, "  without {path}");
        }
        for (verb, units) in [("enable", &overlay.enable), ("disable", &overlay.disable), ("mask", &overlay.mask)] {
            for unit in units {
                let _ = writeln!(text, "  {verb} {unit}");
            }
        }
        if let Some(service) = &overlay.service {
            let _ = writeln!(text, "  pgha-node starts {}", service.unit);
        }
    }
    text
}
