//! `pgha-image` builds appliance images in which a highly available PostgreSQL cluster assembles itself.
//!
//! Two programs share this library: `pgha-image` (feature `builder`) runs on the builder's machine, `pgha-node`
//! (feature `node`) runs inside every image.
//!
//! # Layers
//!
//! A module imports from rows below its own only, and no module of one program from those of the other.
//! `tests/it/layers.rs` reads this table and proves it.
//!
//! ```text
//! layer           builder                                   both                               node
//! --------------  ----------------------------------------  ---------------------------------  -----------
//! entry points    cli                                                                          node
//! workflows       pipeline cluster inspect
//! engines         base image machine seed container_engine                                     confd
//!                 switch
//! domain          plan archive
//!                 recipe overlay debian disk
//!                 rootfs sandbox
//! infrastructure  store http progress interrupt                                                etcd
//!                 io reexec                                 accounts document exec files       dns log tls
//!                                                           poll render                        clock
//! types                                                     model
//!                                                           calendar error testing
//! ```
//!
//! `rootfs` stands below the rest of the domain because `disk`, `base` and `image` all work on trees.

pub mod accounts;
#[cfg(feature = "builder")]
pub mod archive;
#[cfg(feature = "builder")]
pub mod base;
pub mod calendar;
#[cfg(feature = "builder")]
pub mod cli;
#[cfg(feature = "node")]
pub mod clock;
#[cfg(feature = "builder")]
pub mod cluster;
#[cfg(feature = "node")]
pub mod confd;
#[cfg(feature = "builder")]
pub mod container_engine;
#[cfg(feature = "builder")]
pub mod debian;
#[cfg(feature = "builder")]
pub mod disk;
#[cfg(feature = "node")]
pub mod dns;
pub mod document;
pub mod error;
#[cfg(feature = "node")]
pub mod etcd;
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
pub mod io;
#[cfg(feature = "node")]
pub mod log;
#[cfg(feature = "builder")]
pub mod machine;
pub mod model;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "builder")]
pub mod overlay;
#[cfg(feature = "builder")]
pub mod pipeline;
#[cfg(feature = "builder")]
pub mod plan;
pub mod poll;
#[cfg(feature = "builder")]
pub mod progress;
#[cfg(feature = "builder")]
pub mod recipe;
#[cfg(feature = "builder")]
pub mod reexec;
pub mod render;
#[cfg(feature = "builder")]
pub mod rootfs;
#[cfg(feature = "builder")]
pub mod sandbox;
#[cfg(feature = "builder")]
pub mod seed;
#[cfg(feature = "builder")]
pub mod store;
#[cfg(feature = "builder")]
pub mod switch;
#[cfg(test)]
mod testing;
#[cfg(feature = "node")]
pub mod tls;
