//! The build's part of the contract with the guest program: `/usr/share/pgha/image.json`.

use super::{GuestPath, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a node's cluster document is, in the guest.
pub const DOCUMENT_PATH: &str = "/etc/pgha/cluster.yaml";
/// The path of the manifest in every image.
pub const MANIFEST_PATH: &str = "/usr/share/pgha/image.json";
/// The folder of the templates that the guest program renders: `OVERLAY/GUEST/PATH.hbs` below it.
pub const TEMPLATES_PATH: &str = "/usr/share/pgha/templates";
/// The folder of the templates that confd renders: `GUEST/PATH.tmpl` below it.
pub const CONFD_TEMPLATES_PATH: &str = "/etc/confd/templates";

/// What is in an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this shape: 1.
    pub schema: u32,
    /// The recipe's name.
    pub name: String,
    /// The recipe's parameters, as they were set.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// The overlays, each after those whose services start before its own.
    pub overlays: Vec<Component>,
}

/// One overlay as the guest program sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name: the folder below `overlays/`.
    pub name: String,
    /// What it is for, in one line.
    pub description: String,
    /// The files that the guest program renders.
    pub files: Vec<Template>,
    /// The service that it starts.
    pub service: Option<Service>,
}

/// A file that the guest program renders at first boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The path of the template.
    pub template: GuestPath,
    /// What it becomes.
    pub target: GuestPath,
    /// The name of the file's owner.
    pub owner: String,
    /// The name of the file's group.
    pub group: String,
    /// Its permission bits.
    pub mode: u32,
    /// A program and its arguments that must succeed on the staged file, which replaces `{file}`; nothing if empty.
    pub check: Vec<String>,
}

/// A systemd unit that the guest program starts, and how it shows that it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The unit's full name, such as `haproxy.service`.
    pub unit: String,
    /// How it shows that it is ready; systemd's word is taken if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
}

/// A sign of readiness: exactly one of `tcp` and `command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// A port on the node's own address that accepts connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u16>,
    /// A program and its arguments that end with status 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// How long it may take.
    pub within: Time,
}
