//! What several verbs need to know of the user's project and machine.

use crate::{
    error::UserError,
    files,
    pipeline::{Access, Mirrors},
    plan::Draft,
    recipe,
    store::Store,
};
use anyhow::{Context as _, Result};
use std::{
    env,
    path::{Path, PathBuf},
};

/// How a recipe is found and set.
#[derive(Debug, clap::Args)]
pub struct ProjectArgs {
    /// Set a parameter of the recipe.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// The folder that holds recipes/ and overlays/.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub project: PathBuf,
    /// The folder with the programs that overlays install [default: the folder of this program].
    #[arg(long, value_name = "DIR", env = "PGHA_IMAGE_PROGRAMS", hide_env_values = true)]
    pub programs: Option<PathBuf>,
}

impl ProjectArgs {
    /// Everything about the recipe `wanted` that can be decided without a package index.
    ///
    /// # Errors
    /// A wrong request when recipe, overlays or settings are wrong.
    pub fn draft(&self, wanted: &str) -> Result<Draft> {
        let recipe = recipe::load(&self.project, wanted, &self.settings)?;
        let programs = match &self.programs {
            Some(folder) => folder.clone(),
            None => own_folder()?,
        };
        Draft::new(recipe, &programs, source_date_epoch()?)
    }
}

/// Where packages come from.
#[derive(Debug, clap::Args)]
pub struct ArchiveArgs {
    /// A mirror of the Debian archive; several are tried in order [default: this machine's apt sources].
    #[arg(
        long = "mirror",
        value_name = "URI",
        env = "PGHA_IMAGE_MIRROR",
        value_delimiter = ',',
        hide_env_values = true
    )]
    mirrors: Vec<String>,
    /// Use only what is in the store, not the network.
    #[arg(long)]
    offline: bool,
    /// Fetch the newest package index, even if the one in the store is fresh.
    #[arg(long, conflicts_with = "offline")]
    refresh: bool,
}

impl ArchiveArgs {
    /// How the archive is reached.
    ///
    /// # Errors
    /// A wrong request when a mirror is not a URI.
    pub fn access(&self) -> Result<Access> {
        let mirrors = Mirrors::find(&self.mirrors, Path::new("/etc/apt"))?;
        Ok(Access { mirrors, offline: self.offline, refresh: self.refresh })
    }
}

/// The store, which keeps results from build to build.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// The store's folder [default: pgha-image in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "DIR", env = "PGHA_IMAGE_CACHE_DIR", hide_env_values = true, global = true)]
    cache_dir: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(self) -> Result<Store> {
        Store::open(&self.folder()?)
    }

    /// The store's folder: as given, else `pgha-image` in the user's cache folder.
    ///
    /// # Errors
    /// A wrong request when the user has no cache folder.
    pub fn folder(self) -> Result<PathBuf> {
        if let Some(folder) = self.cache_dir {
            return Ok(folder);
        }
        files::user_folder("XDG_CACHE_HOME", ".cache").ok_or_else(|| {
            UserError::usage("neither XDG_CACHE_HOME nor HOME is set, so there is no place for the store")
                .hint("name one with --cache-dir")
                .into()
        })
    }
}

/// The folder that this program is in.
fn own_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("finding this program's own file")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// `SOURCE_DATE_EPOCH`, if it is set (https://reproducible-builds.org/specs/source-date-epoch/).
fn source_date_epoch() -> Result<Option<i64>> {
    let Some(value) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let text = value.to_string_lossy();
    match text.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => {
            Err(UserError::usage(format!("SOURCE_DATE_EPOCH is `{text}`, which is not a number of seconds since 1970"))
                .into())
        }
    }
}
