//! Users and groups with fixed numbers, so that data volumes keep their owners from image to image.

use super::GuestPath;
use serde::{Deserialize, Serialize};

/// A user with a fixed number, there before any package is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The name of the primary group; the user's own name if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Further groups, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The home directory; it is not made.
    #[serde(default = "nowhere")]
    pub home: GuestPath,
    /// The login shell.
    #[serde(default = "no_shell")]
    pub shell: GuestPath,
    /// The comment field of passwd(5).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// A group with a fixed number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The group's number.
    pub gid: u32,
}

fn nowhere() -> GuestPath {
    GuestPath::constant("/nonexistent")
}

fn no_shell() -> GuestPath {
    GuestPath::constant("/usr/sbin/nologin")
}
