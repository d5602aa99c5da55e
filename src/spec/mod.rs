//! Words that both programs share: pure values, no input or output.

mod account;
mod arch;
mod digest;
mod duration;
mod guest_path;
mod manifest;

pub use account::{Group, User};
pub use arch::Arch;
pub use digest::{Digest, DigestError, Sha256};
pub use duration::{Time, TimeError};
pub use guest_path::{GuestPath, GuestPathError};
pub use manifest::{
    CONFD_TEMPLATES_PATH, Component, MANIFEST_PATH, Manifest, Readiness, Service, TEMPLATES_PATH, Template,
};
