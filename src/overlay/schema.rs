//! The shape of `overlay.yaml`.

use crate::model::{Group, GuestPath, Service, User};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// An `overlay.yaml`, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "overlay")]
pub struct OverlayFile {
    /// The version of this shape: 1.
    #[schemars(with = "u32", range(min = 1, max = 1))]
    pub schema: Spanned<u32>,
    /// What the overlay is for, in one line.
    pub description: String,
    /// Debian packages, maybe with `{{parameter}}` in them.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub packages: Vec<Spanned<String>>,
    /// Overlays that must be in the image too.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub needs: Vec<Spanned<String>>,
    /// Overlays whose service starts before this one's; those that are not in the image do not matter.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub after: Vec<Spanned<String>>,
    /// Debconf answers: `PACKAGE QUESTION TYPE VALUE`.
    #[serde(default)]
    pub preseed: Vec<String>,
    /// Users with fixed numbers, by name.
    #[serde(default)]
    pub users: BTreeMap<String, User>,
    /// Groups with fixed numbers, by name.
    #[serde(default)]
    pub groups: BTreeMap<String, Group>,
    /// What files need beyond the default, by guest path.
    #[serde(default)]
    pub files: BTreeMap<GuestPath, FileRule>,
    /// Directories that are made, or whose owners and mode are set, by guest path.
    #[serde(default)]
    pub directories: BTreeMap<GuestPath, Directory>,
    /// Symbolic links, by guest path, with their targets.
    #[serde(default)]
    pub links: BTreeMap<GuestPath, String>,
    /// Guest paths that are removed.
    #[serde(default)]
    pub remove: Vec<GuestPath>,
    /// Units that start at every boot.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Units that do not start by themselves.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Units that nothing may start.
    #[serde(default)]
    pub mask: Vec<String>,
    /// The service that the guest program starts.
    #[serde(default)]
    pub service: Option<Service>,
}

/// What one file needs beyond the default.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileRule {
    /// Who writes the file; must say what its suffix says.
    #[serde(default)]
    pub writer: Option<Writer>,
    /// The owner's name; `root` if nothing is said.
    #[serde(default)]
    pub owner: Option<String>,
    /// The group's name; `root` if nothing is said.
    #[serde(default)]
    pub group: Option<String>,
    /// The permission bits; 0755 for what is executable in the overlay, else 0644.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// A program and its arguments that must succeed on the staged file, which replaces `{file}`, before the file is
    /// published.
    #[serde(default)]
    pub check: Vec<String>,
    /// The file is there before any package is installed, so that packages find it.
    #[serde(default)]
    pub before_packages: bool,
    /// The file is a program that was built beside this one, by its name.
    #[serde(default)]
    pub program: Option<String>,
}

/// Who writes a file, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// The build, into the image.
    Image,
    /// The guest program, once, at first boot.
    Node,
    /// confd, while the node runs.
    Confd,
}

impl Writer {
    /// The suffix that names this writer.
    pub fn suffix(self) -> &'static str {
        match self {
            Writer::Image => "",
            Writer::Node => ".hbs",
            Writer::Confd => ".tmpl",
        }
    }

    /// Splits a file's name into the name in the guest and its writer.
    pub fn of(name: &str) -> (&str, Writer) {
        [Writer::Node, Writer::Confd]
            .into_iter()
            .find_map(|writer| Some((name.strip_suffix(writer.suffix())?, writer)))
            .unwrap_or((name, Writer::Image))
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Writer::Image => "the build",
            Writer::Node => "pgha-node, at first boot",
            Writer::Confd => "confd, while running",
        })
    }
}

/// A directory's owners and mode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// The owner's name; `root` if nothing is said.
    #[serde(default = "root")]
    pub owner: String,
    /// The group's name; `root` if nothing is said.
    #[serde(default = "root")]
    pub group: String,
    /// The permission bits; 0755 if nothing is said.
    #[serde(default = "open_directory")]
    pub mode: Mode,
}

fn root() -> String {
    "root".to_owned()
}

fn open_directory() -> Mode {
    Mode(0o755)
}

/// Permission bits, written as a quoted octal number, as chmod(1) takes it: `"0640"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode(pub u32);

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 && text.len() >= 3 => Ok(Mode(mode)),
            _ => Err(serde::de::Error::custom(format!(
                "`{text}` is not a file mode (write it as chmod takes it, such as \"0640\")"
            ))),
        }
    }
}

impl JsonSchema for Mode {
    fn schema_name() -> Cow<'static, str> {
        "Mode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Permission bits as an octal number in quotes.",
            "pattern": "^[0-7]{3,5}$",
        })
    }
}
