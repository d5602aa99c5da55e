//! Debian's formats: packages, indices, signatures, versions, dependencies. Readers only; fetching is elsewhere.

pub mod deb;
pub mod deb822;
pub mod depends;
pub mod index;
pub mod release;
pub mod signature;
pub mod solve;
pub mod version;
