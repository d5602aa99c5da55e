//! YAML documents that people write: read into typed values, with errors that show the line.

use crate::error::Fault;
use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location};
use std::fmt::Write as _;

/// A document and the name that errors give it.
#[derive(Debug, Clone)]
pub struct Document {
    /// What errors call it: a path, mostly.
    pub name: String,
    /// Its whole text.
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
    /// A wrong request whose message is `NAME:LINE:COLUMN: what is wrong`, the line, and a caret below it; the hint
    /// offers the likeliest key or value where one is misspelt.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            strict_booleans: true,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(&self.text, options).map_err(|error| self.fault(&error))
    }

    /// A wrong request about what stands at `location`.
    pub fn fault_at(&self, location: Location, message: &str) -> Fault {
        let (line, column) = (location.line() as usize, location.column() as usize);
        let Some(text) = line.checked_sub(1).and_then(|index| self.text.lines().nth(index)) else {
            return Fault::request(format!("{}: {message}", self.name));
        };
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(column.saturating_sub(1));
        let mut shown = format!("{}:{line}:{column}: {message}\n", self.name);
        let _ = write!(shown, "{margin} |\n{number} | {text}\n{margin} | {indent}^");
        Fault::request(shown)
    }

    fn fault(&self, error: &Error) -> Fault {
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
            Error::DuplicateMappingKey { key: Some(key), .. } => (format!("the key `{key}` stands here twice"), None),
            other => (plain_message(other), None),
        };
        let fault = match error.location() {
            Some(location) => self.fault_at(location, &message),
            None => Fault::request(format!("{}: {message}", self.name)),
        };
        Fault { hint, ..fault }
    }
}

/// An error's message without the position, which the snippet shows.
fn plain_message(error: &Error) -> String {
    let text = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let text = text.lines().next().unwrap_or_default();
    let cut = text.find(" at line ").unwrap_or(text.len());
    match text[..cut].trim_start_matches("error: ") {
        "expected sequence start" => "expected a list (`- item` lines, or `[a, b]`)".to_owned(),
        "expected mapping start" => "expected keys with values (`key: value` lines, or `{key: value}`)".to_owned(),
        "expected string scalar" => "expected a text".to_owned(),
        "unexpected end of file" => "the document ends too early".to_owned(),
        integer if ["invalid u", "invalid i"].iter().any(|start| integer.starts_with(start)) => {
            "expected a whole number".to_owned()
        }
        other => other.to_owned(),
    }
}

/// The hint for a misspelt word: the likeliest one, else all that are known, announced by `all_are`.
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
        assert_eq!(error.blame, crate::error::Blame::Request);
        crate::error::report(&error.into())
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
