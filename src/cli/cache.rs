//! `pgha-image cache`: what the store holds, and making it smaller.

use super::{print, project::StoreArgs};
use crate::{error::UserError, model::Time, progress::size, recipe::Size, store::Store};
use anyhow::Result;
use clap::Subcommand;
use serde_json::json;
use std::fmt::Write as _;

/// Show or shrink the store, in which builds keep their results.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the store's folder and how much it holds.
    Info,
    /// Remove what was not used recently.
    Gc {
        /// Remove what was not used for this long.
        #[arg(long, value_name = "TIME", default_value = "30d")]
        max_age: Time,
        /// Then remove the least recently used until this much is left, such as 4GiB.
        #[arg(long, value_name = "SIZE")]
        max_size: Option<Size>,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let folder = self.store.folder()?;
        match self.verb {
            Verb::Info => {
                let store = Store::open(&folder)?;
                let usage = store.usage()?;
                if self.json {
                    return print(&format!("{}\n", json!({"folder": store.root(), "usage": usage})));
                }
                let mut text = format!("folder   {}\n", store.root().display());
                let _ = writeln!(text, "blobs    {} in {}", size(usage.blob_bytes), usage.blobs);
                for (kind, count) in &usage.actions {
                    let _ = writeln!(text, "{kind:<8} {count}");
                }
                let _ = writeln!(text, "scratch  {}", size(usage.scratch_bytes));
                print(&text)
            }
            Verb::Gc { max_age, max_size } => {
                // Opening sweeps what killed programs left.
                drop(Store::open(&folder)?);
                let Some(collected) = Store::collect(&folder, Some(max_age.0), max_size.map(|size| size.0))? else {
                    let message = format!("a build is using the store {}", folder.display());
                    return Err(UserError::runtime(message).hint("try again when it is done").into());
                };
                if self.json {
                    return print(&format!("{}\n", json!(collected)));
                }
                let (objects, bytes, kept) = (collected.objects, size(collected.bytes), size(collected.kept_bytes));
                print(&format!("took away {objects} objects, {bytes}; {kept} are left\n"))
            }
        }
    }
}
