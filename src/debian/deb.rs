//! Binary packages (deb(5)).

use crate::spec::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A binary package that was checked, and packed again without compression, so that dpkg unpacks it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpandedDeb {
    /// The SHA-256 of the package as the archive has it.
    pub original: Digest,
    /// The store's blob with the uncompressed package, a valid .deb.
    pub expanded: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The fields of its control file, by name as written there.
    pub control: BTreeMap<String, String>,
    /// The time of its newest file, in seconds since 1970.
    pub newest: i64,
}
