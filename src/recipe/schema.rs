//! The shape of a recipe.

use crate::model::{Group, User};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;
use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

/// A recipe, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "recipe")]
pub struct RecipeFile {
    /// The version of this shape: 1.
    #[schemars(with = "u32", range(min = 1, max = 1))]
    pub schema: Spanned<u32>,
    /// The recipe's name, which also names what is built from it.
    #[schemars(with = "String", regex(pattern = "^[a-z0-9][a-z0-9.+-]*$"))]
    pub name: Spanned<String>,
    /// What the image is for, in one line.
    pub description: String,
    /// The recipe that this one builds on.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub extends: Option<Spanned<String>>,
    /// What can be set with `--set`, by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// Apt archives, by a name of the author's choice.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceFile>,
    /// Debian packages, maybe with a version constraint, maybe with `{{parameter}}` in them.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub packages: Vec<Spanned<String>>,
    /// Packages that must not be installed, whatever depends on them.
    #[serde(default)]
    pub forbid: Vec<String>,
    /// Whether recommended packages are installed too.
    #[serde(default)]
    pub recommends: Option<bool>,
    /// Debconf answers: `PACKAGE QUESTION TYPE VALUE`.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub preseed: Vec<Spanned<String>>,
    /// Paths of packages that are left out.
    #[serde(default)]
    pub paths: Paths,
    /// Users with fixed numbers, by name.
    #[serde(default)]
    pub users: BTreeMap<String, User>,
    /// Groups with fixed numbers, by name.
    #[serde(default)]
    pub groups: BTreeMap<String, Group>,
    /// Overlays, by name.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub overlays: Vec<Spanned<String>>,
    /// VM images.
    #[serde(default)]
    pub disk: Option<DiskFile>,
    /// OCI images.
    #[serde(default)]
    pub oci: Oci,
}

/// Something that can be set with `--set`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// What its value is.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// Its value if it is not set; without one, it must be set.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub default: Option<Spanned<serde_json::Value>>,
    /// The values that are allowed; all of the type if nothing is said.
    #[serde(default)]
    pub choices: Vec<serde_json::Value>,
    /// What it is for, in one line.
    pub description: String,
}

/// What a parameter's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// A whole number.
    Integer,
    /// A string.
    String,
    /// `true` or `false`.
    Boolean,
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParameterType::Integer => "a whole number",
            ParameterType::String => "a string",
            ParameterType::Boolean => "true or false",
        })
    }
}

/// An apt archive, one suite of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SourceFile {
    /// The archive's base URI, above `dists/`; a mirror of the Debian archive if nothing is said.
    #[serde(default)]
    pub uri: Option<String>,
    /// Which of Debian's archives, where no `uri` is given.
    #[serde(default)]
    pub archive: Archive,
    /// The suite or its codename, as below `dists/`.
    pub suite: String,
    /// The components.
    #[serde(default = "main_component")]
    pub components: Vec<String>,
    /// Files with the OpenPGP keys that may sign the suite, relative to the recipe.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub signed_by: Vec<Spanned<String>>,
}

fn main_component() -> Vec<String> {
    vec!["main".to_owned()]
}

/// Debian's archives, which mirrors keep side by side under these names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Archive {
    /// The main archive.
    #[default]
    Debian,
    /// Security updates.
    DebianSecurity,
}

impl Archive {
    /// The folder's name on mirrors.
    pub fn folder(self) -> &'static str {
        match self {
            Archive::Debian => "debian",
            Archive::DebianSecurity => "debian-security",
        }
    }
}

/// Paths of packages that are left out, as dpkg(1) takes `path-exclude` and `path-include`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// Patterns of paths that are left out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Patterns of paths that stay though they are excluded.
    #[serde(default)]
    pub include: Vec<String>,
}

/// What VM images are like, and what they have in addition.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// The disk's size; the root file system grows to what the machine really has. Without one, the disk has room for
    /// what is in the image and for a first boot, and little more.
    #[serde(default)]
    pub size: Option<Size>,
    /// Debian packages that VM images alone have: what they boot with.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub packages: Vec<Spanned<String>>,
    /// Overlays that VM images alone have, by name.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub overlays: Vec<Spanned<String>>,
    /// Arguments of the kernel, in addition to those for its consoles.
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// What OCI images are like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Oci {
    /// The TCP ports that the image serves.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Labels of the image, beside the usual `org.opencontainers.image` ones.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A number of bytes, written with its unit: `512MiB`, `4GiB`, `1TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Why a string is not a size.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` is not a size (write a whole number and MiB, GiB or TiB, such as 4GiB)")]
pub struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)]
            .into_iter()
            .find_map(|(unit, shift)| {
                text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift).map(Size)
            })
            .ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A number of bytes with its unit.",
            "pattern": "^[0-9]+ *(KiB|MiB|GiB|TiB)$",
        })
    }
}
