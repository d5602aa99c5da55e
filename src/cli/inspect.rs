//! `pgha-image inspect`.

use super::print;
use crate::{
    inspect::{Image, Summary},
    progress::size,
};
use anyhow::Result;
use std::{fmt::Write as _, path::PathBuf};

/// Show what is in an image: partitions, file systems, how it boots, packages, overlays, digests.
///
/// Reads raw and qcow2 disks, OCI archives and OCI layouts, without mounting them or running programs in them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pgha-image inspect out/ha-postgres-amd64.qcow2")]
pub struct Args {
    /// The image.
    image: PathBuf,
    /// Print JSON, with every package.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let summary = Image::open(&self.image, false)?.summary;
        if self.json {
            return print(&format!("{}\n", serde_json::to_string_pretty(&summary)?));
        }
        print(&describe(&summary))
    }
}

fn describe(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("format", &format!("{}, {}", summary.format, size(summary.file_size)));
    line("digest", &summary.sha256.to_string());
    if let Some(disk) = summary.disk_size {
        line("disk", &size(disk));
    }
    for partition in &summary.partitions {
        let file_system = partition.file_system.as_deref().unwrap_or("no file system");
        let (number, kind, id) = (partition.number, &partition.kind, &partition.id);
        line("partition", &format!("{number:>2}  {kind:<5} {:>10}  {id}  {file_system}", size(partition.size)));
    }
    for layer in &summary.layers {
        line("layer", &layer.to_string());
    }
    if let Some(boot) = &summary.boot {
        boot.kernels.iter().for_each(|kernel| line("kernel", kernel));
        boot.command.iter().for_each(|command| line("starts", command));
        boot.mounts.iter().for_each(|mount| line("mounts", mount));
    }
    line("files", &format!("{} paths, {}", summary.paths, size(summary.bytes)));
    line("overlays", &summary.overlays.join(" "));
    line("packages", &summary.packages.len().to_string());
    for (name, version) in &summary.packages {
        line("", &format!("{name} {version}"));
    }
    text
}
