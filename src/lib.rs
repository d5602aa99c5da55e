//! `pgha-image` builds appliance images in which a highly available PostgreSQL cluster assembles itself.
//!
//! Two programs share this library: `pgha-image` (feature `builder`) runs on the builder's machine, `pgha-node`
//! (feature `node`) runs inside every image.
//!
//! # The house
//!
//! Imports go down only, and neither program's rooms lean on the other's; `tests/it/floors.rs` proves it.
//!
//! ```text
//!            builder                                                        node
//! 7 doors    cli/                                                           node/
//! 6 stories  build/  cluster/  inspect/
//! 5 engines  base/  image/  machine/  seed/  engine.rs
//! 4 plan     plan/  archive/
//! 3 nouns    recipe/  overlay/  debian/  disk/
//! 2 trees    rootfs/  sandbox/
//! 1 hands    store/  http.rs  progress.rs  interrupt.rs    document.rs  files.rs  pace.rs  render.rs  exec/   both
//! 0 words    spec/  error.rs                                                             both
//! ```
//!
//! `rootfs` stands below the other nouns because `disk`, `base` and `image` all speak of trees.

#[cfg(feature = "builder")]
pub mod archive;
#[cfg(feature = "builder")]
pub mod base;
#[cfg(feature = "builder")]
pub mod build;
#[cfg(feature = "builder")]
pub mod cli;
#[cfg(feature = "builder")]
pub mod cluster;
#[cfg(feature = "builder")]
pub mod debian;
#[cfg(feature = "builder")]
pub mod disk;
pub mod document;
#[cfg(feature = "builder")]
pub mod engine;
pub mod error;
pub mod exec;
pub mod files;
#[cfg(feature = "builder")]
pub mod http;
#[cfg(feature = "builder")]
pub mod image;
#[cfg(feature = "builder")]
pub mod inspect;
#[cfg(feature = "builder")]
pub mod interrupt;
#[cfg(feature = "builder")]
pub mod machine;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "builder")]
pub mod overlay;
pub mod pace;
#[cfg(feature = "builder")]
pub mod plan;
#[cfg(feature = "builder")]
pub mod progress;
#[cfg(feature = "builder")]
pub mod recipe;
pub mod render;
#[cfg(feature = "builder")]
pub mod rootfs;
#[cfg(feature = "builder")]
pub mod sandbox;
#[cfg(feature = "builder")]
pub mod seed;
pub mod spec;
#[cfg(feature = "builder")]
pub mod store;
