//! Debian's formats: packages, indices, signatures, versions, dependencies. Readers only; fetching is elsewhere.

pub mod deb;
pub mod deb822;
pub mod depends;
pub mod index;
pub mod release;
pub mod signature;
pub mod solve;
pub mod version;

use crate::model::Arch;
use std::fmt;

/// One suite of an archive, and who may vouch for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The base URIs of its mirrors, in the order in which to try them.
    pub mirrors: Vec<String>,
    /// The suite's name or codename, such as `trixie`.
    pub suite: String,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// Key files of the archive, binary or armored.
    pub keys: Vec<Vec<u8>>,
    /// The architecture to get packages for.
    pub arch: Arch,
    /// Whether a release that says it is outdated is refused; archives of past days are.
    pub check_valid_until: bool,
}

impl fmt::Display for Source {
    /// As in `sources.list`: URI and suite.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.mirrors.first().map_or("an archive without mirrors", String::as_str);
        write!(f, "{} {}", uri.trim_end_matches('/'), self.suite)
    }
}
