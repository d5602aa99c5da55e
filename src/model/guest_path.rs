//! Absolute paths inside an image.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Borrow, fmt, str::FromStr};

/// An absolute, normalised path inside an image: `/`, or `/a/b` without empty, `.` or `..` components.
///
/// Sorting puts every directory before what is in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(String);

/// Why a string is not a guest path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestPathError {
    /// It does not begin at the root.
    #[error("guest path `{0}` is not absolute (it must begin with `/`)")]
    NotAbsolute(String),
    /// A component climbs out of its directory.
    #[error("guest path `{0}` has a `..` component")]
    Climbs(String),
    /// A byte that no path can hold, or a control character that no sane path holds.
    #[error("guest path {0:?} has a control character")]
    Control(String),
    /// Longer than Linux's PATH_MAX.
    #[error("guest path is {0} bytes long (4095 at most)")]
    TooLong(usize),
}

impl GuestPath {
    /// The root directory.
    pub fn root() -> GuestPath {
        GuestPath("/".to_owned())
    }

    /// A path known to be absolute and normalised.
    pub(crate) fn constant(path: &'static str) -> GuestPath {
        debug_assert!(path.parse::<GuestPath>().is_ok_and(|parsed| parsed.as_str() == path), "{path}");
        GuestPath(path.to_owned())
    }

    /// The path as text, with its leading `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading `/`: empty for the root.
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<GuestPath> {
        let (parent, _) = self.0.rsplit_once('/')?;
        match (parent, self.0.as_str()) {
            (_, "/") => None,
            ("", _) => Some(GuestPath::root()),
            (parent, _) => Some(GuestPath(parent.to_owned())),
        }
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(_, name)| name)
    }

    /// This path with `relative` below it.
    ///
    /// # Errors
    /// As [`GuestPath::from_str`], of the joined text.
    pub fn join(&self, relative: &str) -> Result<GuestPath, GuestPathError> {
        format!("{}/{relative}", self.0).parse()
    }

    /// Whether this is `directory` or a path below it.
    pub fn is_within(&self, directory: &GuestPath) -> bool {
        directory.0 == "/"
            || self.0.strip_prefix(&directory.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }
}

impl FromStr for GuestPath {
    type Err = GuestPathError;

    /// Normalises repeated and trailing slashes and `.` components; refuses everything else that is not plain.
    fn from_str(text: &str) -> Result<GuestPath, GuestPathError> {
        if !text.starts_with('/') {
            return Err(GuestPathError::NotAbsolute(text.to_owned()));
        }
        if text.contains(|c: char| c.is_control()) {
            return Err(GuestPathError::Control(text.to_owned()));
        }
        if text.len() > 4095 {
            return Err(GuestPathError::TooLong(text.len()));
        }
        let mut path = String::with_capacity(text.len());
        for component in text.split('/') {
            match component {
                "" | "." => {}
                ".." => return Err(GuestPathError::Climbs(text.to_owned())),
                name => {
                    path.push('/');
                    path.push_str(name);
                }
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        Ok(GuestPath(path))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for GuestPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for GuestPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for GuestPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GuestPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GuestPath, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "builder")]
impl schemars::JsonSchema for GuestPath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GuestPath".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "An absolute path inside the image.",
            "pattern": "^/",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_normalised() {
        assert_eq!(path("//etc/./haproxy//").as_str(), "/etc/haproxy");
        assert_eq!(path("/"), GuestPath::root());
        assert_eq!(path("/.").as_str(), "/");
    }

    #[test]
    fn a_path_that_leaves_the_image_is_refused() {
        assert_eq!("/etc/../..".parse::<GuestPath>(), Err(GuestPathError::Climbs("/etc/../..".into())));
        assert_eq!("etc".parse::<GuestPath>(), Err(GuestPathError::NotAbsolute("etc".into())));
        assert!(matches!("/a\nb".parse::<GuestPath>(), Err(GuestPathError::Control(_))));
        assert!(matches!("/a".repeat(3000).parse::<GuestPath>(), Err(GuestPathError::TooLong(6000))));
    }

    #[test]
    fn parents_and_names() {
        assert_eq!(path("/etc/hosts").parent(), Some(path("/etc")));
        assert_eq!(path("/etc").parent(), Some(GuestPath::root()));
        assert_eq!(GuestPath::root().parent(), None);
        assert_eq!(path("/etc/hosts").file_name(), "hosts");
        assert!(path("/etc/hosts").is_within(&path("/etc")));
        assert!(!path("/etcetera").is_within(&path("/etc")));
        assert!(path("/etc").is_within(&GuestPath::root()));
    }
}
