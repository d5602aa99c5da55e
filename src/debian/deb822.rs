//! Paragraphs of fields, as in control files and indices (deb822(5)).
//!
//! Nothing is copied: paragraphs and values are slices of the text. A value keeps its continuation lines with their
//! leading blank, but has no white space around it.

use crate::error::UserError;
use anyhow::Result;
use std::ops::Range;

/// One paragraph: its lines, without the empty line that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paragraph<'a> {
    text: &'a str,
    /// The number of its first line in the whole text, from 1.
    line: usize,
}

/// One field of a paragraph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name as written; names are the same whatever their case.
    pub name: &'a str,
    /// The value, trimmed; continuation lines begin with a blank.
    pub value: &'a str,
}

impl<'a> Paragraph<'a> {
    /// The text of one paragraph, known to hold no empty line.
    pub(super) fn of(text: &'a str) -> Paragraph<'a> {
        Paragraph { text, line: 1 }
    }

    /// The value of a field, looked for whatever the case of its name; lines that are not fields are passed over.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        raw_fields(self.text)
            .find(|(range, colon)| self.text[range.start..*colon].eq_ignore_ascii_case(name))
            .map(|(range, colon)| self.text[colon + 1..range.end].trim())
    }

    /// All fields, in order.
    ///
    /// # Errors
    /// At the first line that is neither a field nor continues one, with its number.
    pub fn fields(&self) -> Result<Vec<Field<'a>>> {
        let mut fields: Vec<Field<'a>> = Vec::new();
        let mut at = 0;
        for (range, colon) in raw_fields(self.text) {
            self.refuse_stray(at..range.start)?;
            at = range.end;
            let name = &self.text[range.start..colon];
            if fields.iter().any(|field| field.name.eq_ignore_ascii_case(name)) {
                return Err(self.error(range.start, &format!("the field `{name}` is there twice")));
            }
            fields.push(Field { name, value: self.text[colon + 1..range.end].trim() });
        }
        self.refuse_stray(at..self.text.len())?;
        Ok(fields)
    }

    fn refuse_stray(&self, range: Range<usize>) -> Result<()> {
        let stray = &self.text[range.clone()];
        match stray.lines().find(|line| !line.starts_with('#')) {
            Some(line) => Err(self.error(range.start, &format!("`{}` is not a field", shorten(line)))),
            None => Ok(()),
        }
    }

    fn error(&self, at: usize, what: &str) -> anyhow::Error {
        let line = self.line + self.text[..at].matches('\n').count();
        UserError::runtime(format!("line {line}: {what}")).into()
    }
}

/// The paragraphs of a text, in order. Lines of blanks alone part paragraphs as empty lines do.
pub fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph<'_>> {
    let mut offset = 0;
    let mut line = 1;
    std::iter::from_fn(move || {
        loop {
            let rest = &text[offset..];
            let first = rest.split_inclusive('\n').next()?;
            if !first.trim().is_empty() {
                break;
            }
            offset += first.len();
            line += 1;
        }
        let rest = &text[offset..];
        let length =
            rest.split_inclusive('\n').take_while(|line| !line.trim_ascii().is_empty()).map(str::len).sum::<usize>();
        let paragraph = Paragraph { text: rest[..length].trim_end_matches(['\n', '\r']), line };
        offset += length;
        line += rest[..length].matches('\n').count();
        Some(paragraph)
    })
}

/// The only paragraph of a text, as a control file has.
///
/// # Errors
/// When there is none or another one, and as [`Paragraph::fields`].
pub fn single(text: &str) -> Result<Vec<Field<'_>>> {
    let mut paragraphs = paragraphs(text);
    let Some(paragraph) = paragraphs.next() else { return Err(UserError::runtime("there is no field in it").into()) };
    if let Some(second) = paragraphs.next() {
        return Err(UserError::runtime(format!("line {}: a second paragraph", second.line)).into());
    }
    paragraph.fields()
}

/// The fields of a paragraph with the places of their colons, comments and stray lines passed over.
fn raw_fields(text: &str) -> impl Iterator<Item = (Range<usize>, usize)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        loop {
            let start = offset;
            let end = line_end(text, start)?;
            offset = end;
            let line = &text.as_bytes()[start..end];
            if matches!(line[0], b' ' | b'\t' | b'#') {
                continue;
            }
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            if colon == 0 || line[..colon].iter().any(|byte| !byte.is_ascii_graphic()) {
                continue;
            }
            while let Some(end) = line_end(text, offset) {
                if !matches!(text.as_bytes()[offset], b' ' | b'\t' | b'#') {
                    break;
                }
                offset = end;
            }
            return Some((start..offset, start + colon));
        }
    })
}

/// The end of the line that begins at `start`, its line feed included; `None` at the end of the text.
pub(super) fn line_end(text: &str, start: usize) -> Option<usize> {
    let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
    Some(start + rest.find('\n').map_or(rest.len(), |at| at + 1))
}

fn shorten(line: &str) -> String {
    let mut text: String = line.chars().take(60).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_fields_are_slices_of_the_text() {
        let text = "\n\nPackage: a\ndescription: one\n two\n .\n three\n\n \t\nPackage: b\nEmpty:\n";
        let found: Vec<_> = paragraphs(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].line, found[1].line), (3, 10));
        assert_eq!(found[0].get("PACKAGE"), Some("a"));
        assert_eq!(found[0].get("Description"), Some("one\n two\n .\n three"));
        assert_eq!(found[1].get("Empty"), Some(""));
        assert_eq!(found[1].get("Missing"), None);
    }

    #[test]
    fn a_line_that_is_no_field_is_an_error_with_its_number() {
        let text = "Package: a\nDepends: b,\n c\n\nPackage: b\nwhat is this\nVersion: 1\n";
        let second = paragraphs(text).nth(1).unwrap();
        assert_eq!(second.fields().unwrap_err().to_string(), "line 6: `what is this` is not a field");
        assert_eq!(second.get("Version"), Some("1"));
        let twice = paragraphs("A: 1\na: 2\n").next().unwrap();
        assert_eq!(twice.fields().unwrap_err().to_string(), "line 2: the field `a` is there twice");
    }

    #[test]
    fn a_control_file_has_one_paragraph() {
        assert_eq!(single("A: 1\n# comment\nB: 2").unwrap()[1], Field { name: "B", value: "2" });
        assert_eq!(single("\n").unwrap_err().to_string(), "there is no field in it");
        assert_eq!(single("A: 1\n\nB: 2\n").unwrap_err().to_string(), "line 3: a second paragraph");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "([A-C: \t#\r-]{0,6}\n){0,12}\\PC{0,20}") {
            for paragraph in paragraphs(&text) {
                let _ = paragraph.fields();
                paragraph.get("A");
            }
        }
    }
}
