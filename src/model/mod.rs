//! Types that both programs share: pure values, without input or output.

#![deny(missing_docs)]

mod account;
mod arch;
mod check;
mod cluster;
mod digest;
mod duration;
mod guest_path;
pub mod keys;
mod mac;
mod manifest;
mod node;
pub mod samples;
pub mod scope;
mod secret;
pub mod status;
pub mod timing;
pub mod tuning;

pub use account::{Group, User};
pub use arch::Arch;
pub use check::Finding;
pub use cluster::{
    AuthoritySpec, ClusterSpec, Database, Login, Member, Network, NetworkError, PasswordSpec, PoolMode, PoolSpec,
    PostgresqlSpec, Setting, Synchronous, SynchronousMode, Vip,
};
pub use digest::{Digest, DigestError, Sha256};
pub use duration::{Time, TimeError};
pub use guest_path::{GuestPath, GuestPathError};
pub use mac::Mac;
pub use manifest::{
    CONFD_TEMPLATES_PATH, Component, DOCUMENT_PATH, MANIFEST_PATH, Manifest, Readiness, Service, TEMPLATES_PATH,
    Template,
};
pub use node::Node;
pub use secret::Secret;
