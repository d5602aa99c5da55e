//! confd.
mod apply;
mod backend;
mod document;
mod fault;
mod feed;
mod guard;
mod haproxy;
mod memkv;
mod metrics;
mod notify;
mod path;
mod record;
mod resource;
mod run;
mod settings;
mod template;
mod validate;
mod watch;
mod worker;

pub use run::run;
pub use settings::{KEYS, Key, Kind, Layer, Raw, variable_of};
