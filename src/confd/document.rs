//! TOML documents with line numbers for values.

use crate::error::UserError;
use anyhow::Result;
use std::{path::Path, time::Duration};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A table of a document.
#[derive(Debug)]
pub struct Table<'a> {
    place: Place<'a>,
    entries: Vec<(Spanned<std::borrow::Cow<'a, str>>, Spanned<DeValue<'a>>)>,
}

/// A value with its key.
#[derive(Debug)]
pub struct Entry<'a> {
    place: Place<'a>,
    key: String,
    value: &'a Spanned<DeValue<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.text[..offset.min(self.text.len())].matches('\n').count() + 1)
    }
}

/// Reads the document `text` of the file `path`.
///
/// # Errors
/// When it is not TOML.
pub fn parse<'a>(path: &'a Path, text: &'a str) -> Result<Table<'a>> {
    let place = Place { path, text };
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or_else(|| path.display().to_string(), |span| place.at(span.start));
        UserError::usage(format!("{at}: {}", error.message()))
    })?;
    Ok(Table { place, entries: document.into_inner().into_iter().collect() })
}

impl<'a> Table<'a> {
    /// The table `key` of this one, taken out of it.
    ///
    /// # Errors
    /// When it is something else.
    pub fn take_table(&mut self, key: &str) -> Result<Option<Table<'a>>> {
        let Some(at) = self.entries.iter().position(|(own, _)| own.get_ref().eq_ignore_ascii_case(key)) else {
            return Ok(None);
        };
        let (_, value) = self.entries.remove(at);
        let line = self.place.at(value.span().start);
        match value.into_inner() {
            DeValue::Table(table) => Ok(Some(Table { place: self.place, entries: table.into_iter().collect() })),
            _ => Err(UserError::usage(format!("{line}: `{key}` must be a table")).into()),
        }
    }

    /// All entries in the order of their keys; keys are compared without case, as upstream does.
    pub fn entries(&'a self) -> impl Iterator<Item = Entry<'a>> {
        self.entries.iter().map(|(key, value)| Entry {
            place: self.place,
            key: key.get_ref().to_ascii_lowercase(),
            value,
        })
    }
}

impl Entry<'_> {
    /// The key, in lower case.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// File and line.
    pub fn at(&self) -> String {
        self.place.at(self.value.span().start)
    }

    /// The error that this value is wrong.
    pub fn wrong(&self, message: impl std::fmt::Display) -> anyhow::Error {
        UserError::usage(format!("{}: `{}` {message}", self.at(), self.key)).into()
    }

    /// A string.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self) -> Result<String> {
        self.value.get_ref().as_str().map(str::to_owned).ok_or_else(|| self.wrong("must be a quoted string"))
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is something else.
    pub fn bool(&self) -> Result<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong("must be true or false"))
    }

    /// A whole number.
    ///
    /// # Errors
    /// When it is something else.
    pub fn int(&self) -> Result<i64> {
        let number = self.value.get_ref().as_integer();
        let number = number.and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        number.ok_or_else(|| self.wrong("must be a whole number"))
    }

    /// A list of strings.
    ///
    /// # Errors
    /// When it is something else.
    pub fn texts(&self) -> Result<Vec<String>> {
        let items = self.value.get_ref().as_array().ok_or_else(|| self.wrong("must be a list of strings"))?;
        let text = |item: &Spanned<DeValue<'_>>| item.get_ref().as_str().map(str::to_owned);
        items.iter().map(|item| text(item).ok_or_else(|| self.wrong("must be a list of strings"))).collect()
    }

    /// A time such as `1m30s`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn duration(&self) -> Result<Duration> {
        duration(&self.text()?).map_err(|error| self.wrong(error))
    }
}

/// Reads a time as Go's `time.ParseDuration` does: `300ms`, `1.5h`, `2h45m`; a plain `0` is allowed.
///
/// # Errors
/// When it is not one, or negative.
pub fn duration(text: &str) -> Result<Duration> {
    let wrong = || UserError::usage(format!("`{text}` is not a time such as 500ms, 30s or 1m30s"));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(wrong().into());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong().into()),
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_in_go() {
        for (text, millis) in [("300ms", 300), ("1.5h", 5_400_000), ("2h45m", 9_900_000), ("0", 0), ("1m30s", 90_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "10", "-1s", "1x", "s", "1s1", "1..s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_file_and_line() {
        let path = Path::new("/etc/confd/a.toml");
        let table = parse(path, "\n[template]\nsrc = 1\n");
        let mut table = table.unwrap();
        let template = table.take_table("Template").unwrap().unwrap();
        let entry = template.entries().next().unwrap();
        assert_eq!(entry.text().unwrap_err().to_string(), "/etc/confd/a.toml:3: `src` must be a quoted string");
        let error = parse(path, "a = 1\nb = = 2\n").unwrap_err().to_string();
        assert!(error.starts_with("/etc/confd/a.toml:2: "), "{error}");
    }
}
