//! Image names, as Docker writes and completes them.

use crate::error::UserError;
use std::{fmt, str::FromStr};

/// The name of an image in an engine: `ha-postgres:17`, `registry.example/team/ha-postgres:latest`.
///
/// The grammar is that of the reference library of Docker and containers/image (package `reference`), without digests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: Option<String>,
    path: String,
    tag: String,
}

impl Reference {
    /// The tag alone.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name with the registry and folder that Docker adds where none are given: `docker.io/library/ha-postgres:17`.
    pub fn canonical(&self) -> String {
        match &self.domain {
            Some(_) => self.to_string(),
            None if self.path.contains('/') => format!("docker.io/{self}"),
            None => format!("docker.io/library/{self}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(domain) = &self.domain {
            write!(f, "{domain}/")?;
        }
        write!(f, "{}:{}", self.path, self.tag)
    }
}

impl FromStr for Reference {
    type Err = UserError;

    /// Reads `[REGISTRY[:PORT]/]PATH[:TAG]`; the tag is `latest` if not given.
    fn from_str(text: &str) -> Result<Reference, UserError> {
        let wrong = |why: &str| {
            UserError::usage(format!("`{text}` is not an image name: {why}"))
                .hint("an image name is [REGISTRY[:PORT]/]NAME[:TAG] in lower case, such as ha-postgres:17")
        };
        if text.contains('@') {
            return Err(wrong("an image cannot be given a digest, it has one"));
        }
        // A colon before the last slash is a registry's port.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let (domain, path) = match name.split_once('/') {
            Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => (Some(domain), path),
            _ => (None, name),
        };
        if !is_tag(tag) {
            return Err(wrong(&format!("`{tag}` is not a tag")));
        }
        if let Some(domain) = domain.filter(|domain| !is_domain(domain)) {
            return Err(wrong(&format!("`{domain}` is not a registry")));
        }
        if let Some(part) = path.split('/').find(|part| !is_path_component(part)) {
            return Err(wrong(&format!("`{part}` is not part of a name")));
        }
        if name.len() > 255 {
            return Err(wrong("it is longer than 255 bytes"));
        }
        Ok(Reference { domain: domain.map(str::to_owned), path: path.to_owned(), tag: tag.to_owned() })
    }
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    port.parse::<u16>().is_ok()
        && host.split('.').all(|label| {
            label.starts_with(alphanumeric)
                && label.ends_with(alphanumeric)
                && label.chars().all(|c| alphanumeric(c) || c == '-')
        })
}

/// Words of lower-case letters and digits, with one dot, one or two underscores, or any number of dashes between them.
fn is_path_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(word)
        && text.ends_with(word)
        && text.split(word).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.chars().all(|separator| separator == '-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (text, short, long) in [
            ("ha-postgres", "ha-postgres:latest", "docker.io/library/ha-postgres:latest"),
            ("me/ha-postgres:17", "me/ha-postgres:17", "docker.io/me/ha-postgres:17"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("r.example:5000/a/b__c:V1.0-x", "r.example:5000/a/b__c:V1.0-x", "r.example:5000/a/b__c:V1.0-x"),
            ("r.example:5000/a", "r.example:5000/a:latest", "r.example:5000/a:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string(), reference.canonical()), (short.to_owned(), long.to_owned()));
            assert_eq!(short.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn a_wrong_name_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "`` is not part of a name"),
            ("Ha-Postgres", "`Ha-Postgres` is not part of a name"),
            ("a//b", "`` is not part of a name"),
            ("a._b", "`a._b` is not part of a name"),
            ("a___b", "`a___b` is not part of a name"),
            ("-a", "`-a` is not part of a name"),
            ("a:", "`` is not a tag"),
            ("a:b c", "`b c` is not a tag"),
            ("a@sha256:00", "an image cannot be given a digest, it has one"),
            ("r.example:x/a", "`r.example:x` is not a registry"),
            ("é/a", "`é` is not part of a name"),
        ] {
            let problem = text.parse::<Reference>().unwrap_err();
            assert_eq!(problem.message, format!("`{text}` is not an image name: {why}"));
        }
    }
}
