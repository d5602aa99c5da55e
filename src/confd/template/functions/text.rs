//! Texts: Go's package `strings`, paths, quoting, patterns.

use super::{super::super::path, Args, Function, Outcome, Scope, format::go_quote, list, text};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gotmpl::{TemplateError, Value};
use regex_lite::Regex;
use sha2::{Digest as _, Sha256};

/// The longest text that `repeat` and `indent` make, in bytes.
const LONGEST: usize = 16 << 20;

pub const TABLE: &[(&str, Function)] = &[
    ("base", |_, args| one(args, |s| path::base(s).to_owned())),
    ("dir", |_, args| one(args, path::dir)),
    ("toUpper", |_, args| one(args, |s| s.chars().map(|c| simple(c, c.to_uppercase())).collect())),
    ("toLower", |_, args| one(args, |s| s.chars().map(|c| simple(c, c.to_lowercase())).collect())),
    ("base64Encode", |_, args| one(args, |s| STANDARD.encode(s))),
    ("quote", |_, args| one(args, go_quote)),
    ("squote", |_, args| one(args, |s| format!("'{}'", s.replace('\'', "''")))),
    ("nospace", |_, args| one(args, |s| s.chars().filter(|c| !c.is_whitespace()).collect())),
    ("snakecase", |_, args| one(args, |s| lower_words(s).join("_"))),
    ("kebabcase", |_, args| one(args, |s| lower_words(s).join("-"))),
    ("camelcase", |_, args| one(args, camel)),
    ("sha256sum", |_, args| one(args, |s| Sha256::digest(s).iter().map(|byte| format!("{byte:02x}")).collect())),
    ("base64Decode", base64_decode),
    ("contains", |_, args| two(args, |s, part| Value::Bool(s.contains(part)))),
    ("trimSuffix", |_, args| two(args, |s, end| text(s.strip_suffix(end).unwrap_or(s)))),
    ("trimPrefix", |_, args| two(args, |s, start| text(s.strip_prefix(start).unwrap_or(s)))),
    ("split", |_, args| two(args, split)),
    ("join", join),
    ("replace", replace),
    ("indent", |_, args| indented(args, "")),
    ("nindent", |_, args| indented(args, "\n")),
    ("repeat", repeat),
    ("regexMatch", |_, args| Ok(Value::Bool(regex(args, 2)?.is_match(args.text(1)?)))),
    ("regexFind", |_, args| Ok(text(regex(args, 2)?.find(args.text(1)?).map_or("", |found| found.as_str())))),
    ("regexReplaceAll", |_, args| Ok(text(regex(args, 3)?.replace_all(args.text(1)?, args.text(2)?)))),
];

fn one(args: &Args<'_>, function: impl Fn(&str) -> String) -> Outcome {
    args.exactly(1)?;
    Ok(text(function(args.text(0)?)))
}

fn two(args: &Args<'_>, function: impl Fn(&str, &str) -> Value) -> Outcome {
    args.exactly(2)?;
    Ok(function(args.text(0)?, args.text(1)?))
}

/// Go maps one character to one: where case changes to several, the character stays.
fn simple(c: char, mut changed: impl ExactSizeIterator<Item = char>) -> char {
    if changed.len() == 1 { changed.next().unwrap_or(c) } else { c }
}

fn split(s: &str, separator: &str) -> Value {
    if separator.is_empty() {
        return list(s.chars().map(|c| text(c.to_string())));
    }
    list(s.split(separator).map(text))
}

fn join(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    Ok(text(args.texts(0)?.join(args.text(1)?)))
}

fn replace(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(4)?;
    let (s, old, new) = (args.text(0)?, args.text(1)?, args.text(2)?);
    // Go takes a negative number for all.
    Ok(text(s.replacen(old, new, usize::try_from(args.int(3)?).unwrap_or(usize::MAX))))
}

fn base64_decode(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    let encoded: String = args.text(0)?.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let bytes = STANDARD.decode(encoded).map_err(|error| args.failed(format!("illegal base64 data: {error}")))?;
    String::from_utf8(bytes).map(text).map_err(|_| args.failed("the decoded data is not UTF-8 text"))
}

fn indented(args: &Args<'_>, before: &str) -> Outcome {
    args.exactly(2)?;
    let (spaces, s) = (usize::try_from(args.int(0)?).unwrap_or(0), args.text(1)?);
    let lines = s.matches('\n').count() + 1;
    let length = spaces.checked_mul(lines).filter(|&length| length <= LONGEST);
    let pad = " ".repeat(length.map(|_| spaces).ok_or_else(|| args.failed("the text would become too long"))?);
    let indented = if s.is_empty() { String::new() } else { format!("{pad}{}", s.replace('\n', &format!("\n{pad}"))) };
    Ok(text(format!("{before}{indented}")))
}

fn repeat(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    let (count, s) = (usize::try_from(args.int(0)?).unwrap_or(0), args.text(1)?);
    match count.checked_mul(s.len()) {
        Some(length) if length <= LONGEST => Ok(text(s.repeat(count))),
        _ => Err(args.failed("the text would become too long")),
    }
}

fn regex(args: &Args<'_>, count: usize) -> Result<Regex, TemplateError> {
    args.exactly(count)?;
    Regex::new(args.text(0)?).map_err(|error| args.failed(error))
}

/// The words of a name: split at `_`, `-`, spaces and where upper case begins; `HTTPServer` is `HTTP`, `Server`.
fn words(s: &str) -> Vec<String> {
    let letters: Vec<char> = s.chars().collect();
    let mut words = vec![String::new()];
    for (at, &c) in letters.iter().enumerate() {
        let begins = c.is_uppercase()
            && at > 0
            && (letters.get(at + 1).is_some_and(|next| next.is_lowercase()) || !letters[at - 1].is_uppercase());
        if matches!(c, '_' | '-' | ' ') {
            words.push(String::new());
            continue;
        }
        if begins {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn lower_words(s: &str) -> Vec<String> {
    words(s).iter().map(|word| word.to_lowercase()).collect()
}

fn camel(s: &str) -> String {
    let mut camel = String::new();
    for (at, word) in lower_words(s).iter().enumerate() {
        let mut letters = word.chars();
        if at > 0 {
            camel.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        }
        camel.push_str(letters.as_str());
    }
    camel
}
