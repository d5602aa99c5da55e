//! Debian's formats: packages, indices, signatures, versions, dependencies. Readers only; fetching is elsewhere.

pub mod deb;
