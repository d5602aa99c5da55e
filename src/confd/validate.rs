//! Checks that a rendered file has the format that the resource's `output_format` names.

use super::resource::Format;
use anyhow::{Context as _, Result, bail};

/// Checks a text.
///
/// # Errors
/// When it is not of the format.
pub fn check(format: Format, text: &str) -> Result<()> {
    match format {
        Format::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).context("the rendered text is not JSON")
        }
        Format::Yaml => {
            serde_saphyr::from_str::<serde::de::IgnoredAny>(text).map(drop).context("the rendered text is not YAML")
        }
        Format::Toml => toml::from_str::<toml::Table>(text).map(drop).context("the rendered text is not TOML"),
        Format::Xml => xml(text).context("the rendered text is not XML"),
    }
}

/// Checks that tags balance, attributes are quoted and there is one root; names and references are not looked at.
fn xml(text: &str) -> Result<()> {
    let mut open: Vec<&str> = Vec::new();
    let mut roots = 0;
    let mut rest = text.trim_start_matches('\u{feff}');
    while let Some(start) = rest.find('<') {
        if open.is_empty() && !rest[..start].trim().is_empty() {
            bail!("there is text outside of the root element");
        }
        rest = &rest[start..];
        let (markup, after) = split_markup(rest)?;
        rest = after;
        if markup.starts_with("<!") || markup.starts_with("<?") {
            continue;
        }
        let inner = markup[1..markup.len() - 1].trim_end();
        if let Some(name) = inner.strip_prefix('/') {
            match open.pop() {
                Some(begun) if begun == name.trim() => {}
                begun => {
                    bail!("</{name}> ends {}", begun.map_or_else(|| "nothing".to_owned(), |begun| format!("<{begun}>")))
                }
            }
            continue;
        }
        let (inner, is_empty) = inner.strip_suffix('/').map_or((inner, false), |inner| (inner, true));
        let name = inner.split(char::is_whitespace).next().unwrap_or_default();
        if !name.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == ':') {
            bail!("<{name}> is not a tag");
        }
        roots += usize::from(open.is_empty());
        if !is_empty {
            open.push(name);
        }
    }
    match (open.last(), roots, rest.trim().is_empty()) {
        (Some(begun), ..) => bail!("<{begun}> has no end"),
        (None, 1, true) => Ok(()),
        (None, 1, false) => bail!("there is text outside of the root element"),
        (None, roots, _) => bail!("it has {roots} root elements"),
    }
}

/// Splits the markup that `text` opens with from what follows it.
fn split_markup(text: &str) -> Result<(&str, &str)> {
    for (start, end) in [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")] {
        if let Some(inner) = text.strip_prefix(start) {
            let length = inner.find(end).context("a comment or instruction has no end")?;
            return Ok(text.split_at(start.len() + length + end.len()));
        }
    }
    let mut quote = None;
    for (at, c) in text.char_indices().skip(1) {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (None, '<') => bail!("a tag holds `<`"),
            (None, '>') => return Ok(text.split_at(at + 1)),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    bail!("a tag has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_held_to_their_format() {
        for (format, good, bad) in [
            (Format::Json, "{\"a\": [1]}", "{\"a\": }"),
            (Format::Yaml, "a: [1, 2]\n", "a: [1, 2\n"),
            (Format::Toml, "a = 1\n", "a = \n"),
            (Format::Xml, "<?xml version='1.0'?>\n<a b=\"x>y\"><!-- <z> --><c/>t</a>\n", "<a><b></a></b>"),
        ] {
            check(format, good).unwrap();
            assert!(check(format, bad).is_err(), "{bad}");
        }
        for bad in ["", "<a>", "</a>", "<a/><b/>", "text", "<a/>text", "<a b=\"></a>", "<1/>", "<!-- "] {
            assert!(xml(bad).is_err(), "{bad}");
        }
    }
}
