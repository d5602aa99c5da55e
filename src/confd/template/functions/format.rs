//! Values as Go writes them: printed, quoted, as JSON.

use super::{Args, Function, Outcome, Scope, as_pair, text};
use gotmpl::Value;
use std::fmt::Write as _;

pub const TABLE: &[(&str, Function)] = &[
    (super::rewrite::PRINT, print),
    (super::rewrite::NOTHING, |_, _| Ok(Value::Nil)),
    (super::rewrite::VERB, verb),
    ("print", |_, args| Ok(text(joined(args.values)))),
    ("println", |_, args| Ok(text(args.values.iter().map(plain).collect::<Vec<_>>().join(" ") + "\n"))),
    ("html", |_, args| Ok(text(gotmpl::html_escape(&escaped(args.values))))),
    ("js", |_, args| Ok(text(gotmpl::js_escape(&escaped(args.values))))),
    ("urlquery", |_, args| Ok(text(gotmpl::url_encode(&escaped(args.values))))),
];

fn plain(value: &Value) -> String {
    let mut out = String::new();
    write_plain(value, &mut out);
    out
}

/// As `fmt.Sprint`: a space between two values if neither is a string.
fn joined(values: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        let follows = at > 0 && !matches!((&values[at - 1], value), (Value::String(_), _) | (_, Value::String(_)));
        out.push_str(if follows { " " } else { "" });
        write_plain(value, &mut out);
    }
    out
}

/// The argument of the escaping functions; `nil` and the string `<nil>` look the same.
fn escaped(values: &[Value]) -> String {
    if matches!(values, [Value::Nil]) { "<no value>".to_owned() } else { joined(values) }
}

/// A value that `%v` prints, or texts that `%s` prints, become the text that Go prints for it; what other verbs take stays.
fn verb(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(3)?;
    let value = args.value(2)?;
    let Value::String(format) = args.value(0)? else { return Ok(value.clone()) };
    let is_plain = matches!(value, Value::Float(_) | Value::List(_) | Value::Map(_));
    match usize::try_from(args.int(1)?) {
        Ok(at) if is_plain && verb_of(format, at) == Some('v') => Ok(text(plain(value))),
        // Go applies the verb to each element; texts look the same either way.
        Ok(at) if is_plain && verb_of(format, at) == Some('s') && holds_texts(value) => Ok(text(plain(value))),
        _ => Ok(value.clone()),
    }
}

/// Whether a list or map holds only strings.
fn holds_texts(value: &Value) -> bool {
    match value {
        Value::String(_) => true,
        Value::List(items) => items.iter().all(holds_texts),
        Value::Map(fields) => fields.values().all(holds_texts),
        _ => false,
    }
}

/// The verb of the argument `at`; `None` for a format that counts its arguments in another way.
fn verb_of(format: &str, at: usize) -> Option<char> {
    let mut rest = format;
    let mut seen = 0;
    while let Some((_, after)) = rest.split_once('%') {
        let flags = after.find(|c: char| !"+-# 0123456789.".contains(c))?;
        let verb = after[flags..].chars().next()?;
        rest = &after[flags + verb.len_utf8()..];
        match verb {
            '[' | '*' => return None,
            '%' => {}
            verb if seen == at => return Some(verb),
            _ => seen += 1,
        }
    }
    None
}

fn print(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    match args.value(0)? {
        Value::Nil => Ok(text("<no value>")),
        Value::String(_) => Ok(args.values[0].clone()),
        other => {
            let mut out = String::new();
            write_plain(other, &mut out);
            Ok(text(out))
        }
    }
}

/// As `fmt.Print`.
fn write_plain(value: &Value, out: &mut String) {
    match value {
        Value::Float(number) => out.push_str(&plain_float(*number)),
        Value::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { " " } else { "" });
                write_plain(item, out);
            }
            out.push(']');
        }
        Value::Map(_) if let Some((key, value)) = as_pair(value) => {
            let _ = write!(out, "{{{key} {value}}}");
        }
        Value::Map(fields) => {
            out.push_str("map[");
            for (at, (name, field)) in fields.iter().enumerate() {
                out.push_str(if at > 0 { " " } else { "" });
                let _ = write!(out, "{name}:");
                write_plain(field, out);
            }
            out.push(']');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// As `%v`: an exponent from the digits that six places hold on.
fn plain_float(number: f64) -> String {
    float(number, -4, 6)
}

/// The shortest digits that read back, with an exponent below `low` and from `high` on.
fn float(number: f64, low: i32, high: i32) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (low..high).contains(&exponent) {
        return format!("{number}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// As `%q`.
pub fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\u{7}' => write!(out, "\\a"),
            '\u{8}' => write!(out, "\\b"),
            '\u{c}' => write!(out, "\\f"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\u{b}' => write!(out, "\\v"),
            ' ' => write!(out, " "),
            c if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c)),
            c if c.is_control()
                || c.is_whitespace()
                || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{feff}') =>
            {
                write!(out, "\\u{:04x}", u32::from(c))
            }
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}

/// As `json.Marshal`: `<`, `>` and `&` are escaped.
pub fn json(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    write_json(value, None, &mut out)?;
    Ok(out)
}

/// As `json.MarshalIndent` with two spaces.
pub fn pretty_json(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    write_json(value, Some(0), &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, depth: Option<usize>, out: &mut String) -> Result<(), String> {
    match value {
        Value::Nil => out.push_str("null"),
        Value::Float(number) if !number.is_finite() => return Err(format!("json: unsupported value: {number}")),
        Value::Float(number) => {
            // Go writes e-07 as e-7 in JSON.
            let written = float(*number, -6, 21);
            out.push_str(&written.replace("e-0", "e-"));
        }
        Value::String(string) => json_string(string, out),
        Value::List(items) => {
            let write = |item: &Value, depth, out: &mut String| write_json(item, depth, out);
            enclosed(('[', ']'), items.iter(), depth, out, write)?;
        }
        Value::Map(fields) => enclosed(('{', '}'), fields.iter(), depth, out, |(name, field), depth, out| {
            json_string(name, out);
            out.push_str(if depth.is_some() { ": " } else { ":" });
            write_json(field, depth, out)
        })?,
        Value::Function(_) => return Err("json: unsupported type: func".to_owned()),
        other => {
            let _ = write!(out, "{other}");
        }
    }
    Ok(())
}

fn enclosed<I>(
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = I>,
    depth: Option<usize>,
    out: &mut String,
    write: impl Fn(I, Option<usize>, &mut String) -> Result<(), String>,
) -> Result<(), String> {
    let line = |depth: usize, out: &mut String| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    let is_empty = items.len() == 0;
    out.push(open);
    for (at, item) in items.enumerate() {
        out.push_str(if at > 0 { "," } else { "" });
        if let Some(depth) = depth {
            line(depth + 1, out);
        }
        write(item, depth.map(|depth| depth + 1), out)?;
    }
    if let (Some(depth), false) = (depth, is_empty) {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn json_string(string: &str, out: &mut String) {
    out.push('"');
    for c in string.chars() {
        let _ = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => write!(out, "\\u{:04x}", u32::from(c)),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
}
