//! Reads YAML documents that people write into typed values; errors show the line.

use crate::{
    error::UserError,
    model::{ClusterSpec, Finding},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::IgnoredAny};
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Spanned};
use std::fmt::Write as _;

/// A document and its name in errors.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its name in errors, such as its path.
    pub name: String,
    pub text: String,
}

impl Document {
    /// A document with the text `text`, called `name`.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Document {
        Document { name: name.into(), text: text.into() }
    }

    /// Reads the document as a `T`.
    ///
    /// # Errors
    /// A wrong request: the message is `NAME:LINE:COLUMN: what is wrong`, the line, and a caret below it; the hint
    /// offers the likeliest key or value where one is misspelt.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, UserError> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            strict_booleans: true,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(&self.text, options).map_err(|error| self.error(&error))
    }

    /// A wrong request about the value at `location`.
    pub fn error_at(&self, location: Location, message: &str) -> UserError {
        let (line, column) = (location.line() as usize, location.column() as usize);
        let Some(text) = line.checked_sub(1).and_then(|index| self.text.lines().nth(index)) else {
            return UserError::usage(format!("{}: {message}", self.name));
        };
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(column.saturating_sub(1));
        let mut shown = format!("{}:{line}:{column}: {message}\n", self.name);
        let text = veil(text);
        let _ = write!(shown, "{margin} |\n{number} | {text}\n{margin} | {indent}^");
        UserError::usage(shown)
    }

    /// Reads the document as a cluster's and checks it. Returns it with the warnings about it.
    ///
    /// # Errors
    /// As [`Document::parse`]; and a wrong request with every finding of [`ClusterSpec::check`], each with its line.
    pub fn cluster(&self) -> Result<(ClusterSpec, Vec<String>), UserError> {
        let spec: ClusterSpec = self.parse()?;
        let findings = spec.check();
        let told = |fatal: bool| {
            let chosen = findings.iter().filter(move |finding| finding.fatal == fatal);
            chosen.map(|finding| self.tell(finding)).collect::<Vec<_>>()
        };
        let faults = told(true);
        if faults.is_empty() { Ok((spec, told(false))) } else { Err(UserError::usage(faults.join("\n"))) }
    }

    /// A finding with its line, or that of the nearest enclosing value that the document has.
    fn tell(&self, finding: &Finding) -> String {
        let tree = serde_saphyr::from_str::<Spanned<Tree>>(&self.text).ok();
        match tree.as_ref().and_then(|tree| locate(tree, &finding.pointer)) {
            Some(location) => self.error_at(location, &finding.message).message,
            None => format!("{}: {}", self.name, finding.message),
        }
    }

    fn error(&self, error: &Error) -> UserError {
        let error = error.without_snippet();
        let (message, hint) = match error {
            Error::SerdeUnknownField { field, expected, .. } => {
                (format!("unknown key `{field}`"), suggest(field, expected.iter().copied(), "keys here are"))
            }
            Error::SerdeUnknownVariant { variant, expected, .. } => (
                format!("`{variant}` is not one of the values allowed here"),
                suggest(variant, expected.iter().copied(), "values are"),
            ),
            Error::SerdeMissingField { field, .. } => (format!("the key `{field}` is missing"), None),
            Error::SerdeInvalidType { unexpected, expected, .. }
            | Error::SerdeInvalidValue { unexpected, expected, .. } => {
                (format!("expected {expected}, found {unexpected}"), None)
            }
            Error::DuplicateMappingKey { key: Some(key), .. } => (format!("the key `{key}` is here twice"), None),
            other => (plain_message(other), None),
        };
        let problem = match error.location() {
            Some(location) => self.error_at(location, &message),
            None => UserError::usage(format!("{}: {message}", self.name)),
        };
        UserError { hint, ..problem }
    }
}

/// Keys whose values must not appear in errors.
const SECRETS: [&str; 9] =
    ["secret", "password", "superuser", "replication", "rewind", "pooler", "rest", "statistics", "key"];

/// A line with the values of secret keys replaced by stars, one for each character, so that carets still fit.
fn veil(line: &str) -> String {
    let mut shown = line.to_owned();
    for key in SECRETS {
        for (at, _) in line.match_indices(key) {
            let inside = line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_');
            let rest = line[at + key.len()..].trim_start_matches(['"', '\'']);
            let Some(value) = rest.trim_start().strip_prefix(':') else { continue };
            if inside {
                continue;
            }
            let start = line.len() - value.len();
            let end = start + value.find([',', '}']).unwrap_or(value.len());
            let stars = line[start..end].chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect::<String>();
            // A star for each character, not for each byte; the end is rebuilt only where lengths agree.
            if stars.len() == end - start {
                shown.replace_range(start..end, &stars);
            } else {
                shown = line[..start].to_owned() + &stars + &line[end..];
            }
        }
    }
    shown
}

/// The structure of a document, for finding places in it.
enum Tree {
    Keys(Vec<(String, Spanned<Tree>)>),
    Items(Vec<Spanned<Tree>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        struct Visitor;
        macro_rules! leaves {
            ($($method:ident: $kind:ty),*) => {
                $(fn $method<E>(self, _: $kind) -> Result<Tree, E> {
                    Ok(Tree::Leaf)
                })*
            };
        }
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Tree;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64,
                visit_str: &str);

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }

            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
                let mut tree = Vec::new();
                while let Some(item) = items.next_element()? {
                    tree.push(item);
                }
                Ok(Tree::Items(tree))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut keys: A) -> Result<Tree, A::Error> {
                let mut tree = Vec::new();
                while let Some(key) = keys.next_key::<String>()? {
                    tree.push((key, keys.next_value()?));
                }
                while keys.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Tree::Keys(tree))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The place of a JSON pointer, or of the innermost value on the way there.
fn locate(tree: &Spanned<Tree>, pointer: &str) -> Option<Location> {
    let mut at = tree;
    for step in pointer.split('/').skip(1) {
        let below = match &at.value {
            Tree::Keys(keys) => keys.iter().find(|(key, _)| key == step).map(|(_, value)| value),
            Tree::Items(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
            Tree::Leaf => None,
        };
        match below {
            Some(below) => at = below,
            None => break,
        }
    }
    (!std::ptr::eq(at, tree)).then_some(at.referenced)
}

/// An error's message without the position, which the snippet shows.
fn plain_message(error: &Error) -> String {
    let text = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let text = text.lines().next().unwrap_or_default();
    let cut = text.find(" at line ").unwrap_or(text.len());
    match text[..cut].trim_start_matches("error: ") {
        "expected sequence start" => "expected a list (`- item` lines, or `[a, b]`)".to_owned(),
        "expected mapping start" => "expected keys with values (`key: value` lines, or `{key: value}`)".to_owned(),
        "expected string scalar" => "expected a string".to_owned(),
        "unexpected end of file" => "the document ends too early".to_owned(),
        integer if ["invalid u", "invalid i"].iter().any(|start| integer.starts_with(start)) => {
            "expected a whole number".to_owned()
        }
        other => other.to_owned(),
    }
}

/// The hint for a misspelt word: the likeliest candidate, else all that are known, introduced by `all_are`.
pub fn suggest<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone, all_are: &str) -> Option<String> {
    let nearest = known
        .clone()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, candidate)) if distance <= word.chars().count().div_ceil(3) => {
            Some(format!("did you mean `{candidate}`?"))
        }
        Some(_) => Some(format!("{all_are} {}", known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Sample {
        schema: u32,
        packages: Vec<String>,
        #[serde(default)]
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Integer,
        Text,
    }

    fn error(text: &str) -> String {
        let error = Document::new("demo.yaml", text).parse::<Sample>().unwrap_err();
        assert_eq!(error.kind, crate::error::ErrorKind::Usage);
        crate::error::report(&error.into())
    }

    #[test]
    fn a_wrong_cluster_is_refused_with_every_line_that_is_wrong() {
        let text = "schema: 1\ncluster: demo\nsecret: c2hvcnQ=\nmembers:\n  - {name: pg-1, address: 10.0.0.11}\n  \
                    - name: pg-1\n    address: 10.0.0.12\nvip: {address: 10.0.1.10/24}\ntiming: {ttl: 10s}\n";
        let error = Document::new("cluster.yaml", text).cluster().unwrap_err();
        assert_eq!(error.kind, crate::error::ErrorKind::Usage);
        insta::assert_snapshot!(error.message);
        let unknown = Document::new("cluster.yaml", text.replace("timing:", "timings:")).cluster().unwrap_err();
        insta::assert_snapshot!(crate::error::report(&unknown.into()));
        let missing = Document::new("cluster.yaml", "schema: 1\ncluster: demo\n").cluster().unwrap_err();
        insta::assert_snapshot!(missing.message);
    }

    #[test]
    fn no_error_repeats_a_secret() {
        assert_eq!(veil("secret: abc="), "secret: ****");
        assert_eq!(veil("- {name: a, password: pä, x: 1}"), "- {name: a, password: **, x: 1}");
        assert_eq!(veil("{\"secret\": \"abc\", \"key\": \"k\"}"), "{\"secret\": *****, \"key\": ***}");
        assert_eq!(veil("router-key: 5, monkey: 6"), "router-key: 5, monkey: 6");
    }

    #[test]
    fn a_good_cluster_is_read_with_its_warnings() {
        let text = "schema: 1\ncluster: demo\nsecret: BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\nsynchronous: {mode: off}\n\
                    members: [{name: pg-1, address: 10.0.0.11}]\ntiming: fast\n";
        let (spec, warnings) = Document::new("cluster.yaml", text).cluster().unwrap();
        assert_eq!(spec.members.len(), 1);
        assert_eq!(spec.synchronous.mode, crate::model::SynchronousMode::Off);
        insta::assert_snapshot!(warnings.join("\n"));
    }

    #[test]
    fn errors_show_the_line_and_the_way_out() {
        insta::assert_snapshot!(error("schema: 1\npakages: []\n"));
        insta::assert_snapshot!(error("schema: one\npackages: []\n"));
        insta::assert_snapshot!(error("schema: 1\npackages: {}\n"));
        insta::assert_snapshot!(error("schema: 1\n"));
        insta::assert_snapshot!(error("schema: 1\npackages: []\nkind: text1\n"));
        insta::assert_snapshot!(error("schema: 1\npackages: []\nquite-else: 1\n"));
        insta::assert_snapshot!(error("schema: 1\nschema: 2\n"));
        insta::assert_snapshot!(error("schema: [\n"));
        insta::assert_snapshot!(error(""));
    }
}
