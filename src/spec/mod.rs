//! Words that both programs share: pure values, no input or output.

mod arch;
mod digest;
mod guest_path;

pub use arch::Arch;
pub use digest::{Digest, DigestError, Sha256};
pub use guest_path::{GuestPath, GuestPathError};
