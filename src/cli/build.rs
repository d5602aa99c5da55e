//! `pgha-image build`.

use super::{
    print,
    project::{ArchiveArgs, ProjectArgs, StoreArgs},
};
use crate::{
    container_engine::Which,
    files,
    image::compress::Compression,
    interrupt,
    pipeline::{self, Build, Built, Format, Target},
    plan::Lock,
    progress::{Progress, Style, size},
    sandbox::Sandbox,
};
use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;
use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf};

/// Build an image from a recipe and its overlays.
///
/// The output folder gets the image, its lock file (the exact packages; build with --locked to get the same image
/// again) and its bills of materials. Files appear whole or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pgha-image build ha-postgres
  pgha-image build ha-postgres --format qcow2 --format raw --format oci
  pgha-image build ha-postgres --load --set postgres_version=17
  pgha-image build ha-postgres --locked out/ha-postgres.lock.json --offline")]
pub struct Args {
    /// The recipe: a name in the project's recipes/ folder, or a path.
    recipe: String,
    #[command(flatten)]
    project: ProjectArgs,
    /// The format of the image; may be given several times.
    #[arg(long = "format", value_name = "FORMAT", default_value = "oci")]
    formats: Vec<FormatArg>,
    /// The output folder.
    #[arg(short, long, value_name = "DIR", default_value = "out")]
    output: PathBuf,
    /// How layers are compressed: none, gzip, zstd, gzip:LEVEL or zstd:LEVEL.
    #[arg(long, value_name = "METHOD", default_value_t)]
    compress: Compression,
    /// Load the image into Docker or Podman.
    #[arg(long, value_name = "ENGINE", num_args = 0..=1, default_missing_value = "auto", require_equals = true)]
    load: Option<EngineArg>,
    /// Build exactly the packages of this lock file.
    #[arg(long, value_name = "FILE")]
    locked: Option<PathBuf>,
    #[command(flatten)]
    archive: ArchiveArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print progress and results as JSON Lines on standard output.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Do not print progress.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// An archive file that Docker and Podman load.
    Oci,
    /// An OCI image layout folder.
    OciLayout,
    /// A raw disk image; it is sparse.
    Raw,
    /// A compressed disk image for QEMU and the programs that are built on it.
    Qcow2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineArg {
    /// Docker if it answers, else Podman.
    Auto,
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

impl From<EngineArg> for Which {
    fn from(engine: EngineArg) -> Which {
        match engine {
            EngineArg::Auto => Which::Auto,
            EngineArg::Docker => Which::Docker,
            EngineArg::Podman => Which::Podman,
        }
    }
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Format {
        match format {
            FormatArg::Oci => Format::Oci,
            FormatArg::OciLayout => Format::OciLayout,
            FormatArg::Raw => Format::Raw,
            FormatArg::Qcow2 => Format::Qcow2,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let progress = match (self.json, self.quiet) {
            (true, _) => Progress::new(Style::Json),
            (_, true) => Progress::new(Style::Silent),
            _ => Progress::for_people(),
        };
        let draft = self.project.draft(&self.recipe)?;
        let locked = match &self.locked {
            Some(path) => {
                let name = path.display().to_string();
                Some((Lock::parse(&name, &files::read_text(path)?)?, name))
            }
            None => None,
        };
        let store = self.store.open()?;
        let cleaning = store.clone();
        interrupt::on_signal(move || {
            files::discard_unpublished();
            cleaning.abandon_scratch(|left| drop(Sandbox::new().remove_tree(left)))
        })?;
        let mut formats: BTreeSet<Format> = self.formats.into_iter().map(Format::from).collect();
        if self.load.is_some() {
            formats.insert(Format::Oci);
        }
        let target =
            Target { folder: self.output, formats, compression: self.compress, load: self.load.map(Which::from) };
        let build = Build { draft, locked, access: self.archive.access()?, target };
        let built = pipeline::run(build, &store, &progress)?;
        tell(&built, &progress)
    }
}

/// Prints what was built: paths for pipes, a table of timings for people, an event for programs.
fn tell(built: &Built, progress: &Progress) -> Result<()> {
    if progress.style() == Style::Json {
        let seconds = progress.elapsed().as_secs_f64();
        let mut done = serde_json::to_value(built)?;
        done["seconds"] = json!(seconds);
        done["timings"] = json!(progress.timings());
        progress.event("done", &done);
        return Ok(());
    }
    if progress.style() != Style::Silent {
        progress.note(&summary(built, progress));
    }
    let mut paths = String::new();
    for artifact in &built.artifacts {
        let _ = writeln!(paths, "{}", artifact.path.display());
    }
    print(&paths)
}

/// The time of each step, and the artifacts.
fn summary(built: &Built, progress: &Progress) -> String {
    let total = progress.elapsed().as_secs_f64();
    let mut text = String::new();
    let timings = progress.timings();
    if !built.unchanged && !timings.is_empty() {
        let _ = writeln!(text, "\nWhere the time went");
        for timing in timings {
            let share = (timing.seconds / total * 40.0).round() as usize;
            let _ = writeln!(text, "  {:<11} {:>6.1} s  {}", timing.step, timing.seconds, "▇".repeat(share));
        }
    }
    let unchanged = if built.unchanged { ", nothing changed" } else { "" };
    let _ = writeln!(text, "  {:<11} {total:>6.1} s{unchanged}", "all");
    for artifact in &built.artifacts {
        let (kind, size) = (artifact.kind, size(artifact.size));
        let _ = write!(text, "\n{kind:<11} {size:>10}  {}", artifact.sha256);
    }
    if let Some(loaded) = &built.loaded {
        let _ = write!(text, "\n\n{} has it as {} ({})", loaded.engine, loaded.reference, loaded.id);
    }
    text
}
