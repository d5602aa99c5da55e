//! Checks that the blocks of a template are complete: each `if`, `range`, `with`, `block` and `define` has its `end`, each
//! `end` its beginning, and `else`, `break` and `continue` stand where they may.
//!
//! The parser below takes the end of the text for an end, and stops at an `end` too many; text would vanish.

use crate::error::UserError;
use anyhow::Result;

#[derive(Debug)]
struct Open {
    word: &'static str,
    line: usize,
    had_else: bool,
}

const OPENERS: [&str; 5] = ["if", "range", "with", "block", "define"];

/// Checks the blocks of `source`; `name` is the template's in errors.
///
/// # Errors
/// When they are not whole.
pub fn check(name: &str, source: &str) -> Result<()> {
    let problem =
        |line: usize, message: String| Err(UserError::usage(format!("template: {name}:{line}: {message}")).into());
    let mut open: Vec<Open> = Vec::new();
    for (line, action) in actions(source) {
        let mut words = action.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let starts_with_word = action.starts_with(|c: char| c.is_alphabetic());
        let Some(first) = words.next().filter(|_| starts_with_word) else { continue };
        if let Some(word) = OPENERS.iter().find(|opener| **opener == first) {
            open.push(Open { word, line, had_else: false });
            continue;
        }
        let mut own = open.iter().rev().take_while(|block| !matches!(block.word, "define" | "block"));
        let is_in_range = own.any(|block| block.word == "range");
        match (first, open.last_mut()) {
            ("end", _) if action != "end" => return problem(line, "unexpected words in end".into()),
            ("end", Some(_)) => drop(open.pop()),
            ("else", Some(block)) if matches!(block.word, "if" | "range" | "with") && !block.had_else => {
                let chained = words.next();
                block.had_else = match (chained, block.word) {
                    (None, _) => true,
                    (Some(chained), word) if chained == word && word != "range" => false,
                    (Some(chained), _) => return problem(line, format!("unexpected {chained} in else")),
                };
            }
            ("end" | "else", _) => return problem(line, format!("unexpected {{{{{first}}}}}")),
            ("break" | "continue", _) if !is_in_range => {
                return problem(line, format!("{{{{{first}}}}} outside {{{{range}}}}"));
            }
            _ => {}
        }
    }
    match open.pop() {
        Some(block) => problem(block.line, format!("unexpected EOF: {{{{{}}}}} has no {{{{end}}}}", block.word)),
        None => Ok(()),
    }
}

/// The actions of a template without their delimiters and trim marks, with the lines on which they begin.
fn actions(source: &str) -> Vec<(usize, &str)> {
    let mut actions = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find("{{") {
        let start = at + found + 2;
        let line = source[..start].matches('\n').count() + 1;
        let inner = &source[start..];
        let trimmed =
            inner.strip_prefix('-').filter(|rest| rest.starts_with(char::is_whitespace)).unwrap_or(inner).trim_start();
        let length = if trimmed.starts_with("/*") {
            inner.find("*/").map(|end| end + 2).and_then(|end| inner[end..].find("}}").map(|close| end + close))
        } else {
            end_of_action(inner)
        };
        // What has no end is the parser's to report.
        let Some(length) = length else { break };
        let action = &inner[..length];
        let action = action.strip_prefix('-').filter(|rest| rest.starts_with(char::is_whitespace)).unwrap_or(action);
        let action = action.strip_suffix('-').filter(|rest| rest.ends_with(char::is_whitespace)).unwrap_or(action);
        actions.push((line, action.trim()));
        at = start + length + 2;
    }
    actions
}

/// Where the closing delimiter begins; texts and characters may hold one.
fn end_of_action(inner: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '}') if inner[at..].starts_with("}}") => return Some(at),
            (Some('"' | '\''), '\\') => drop(chars.next()),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_pass() {
        for source in [
            "plain { text } }}",
            "{{if a}}{{else if b}}{{else}}{{end}}",
            "{{range x}}{{if y}}{{break}}{{end}}{{continue}}{{else}}{{end}}",
            "{{with a}}{{else with b}}{{end}}{{define \"x\"}}{{end}}{{block \"y\" .}}{{end}}",
            "{{/* {{if}} */}}{{- /* {{end}} */ -}}",
            "{{print \"}}{{if\" `{{end}}` '}'}}{{$end}}{{.end}}{{endless}}{{- \"end\"}}",
        ] {
            check("t", source).unwrap();
        }
    }

    #[test]
    fn broken_blocks_are_named_with_their_line() {
        for (source, reason) in [
            ("a\n{{if x}}", "t:2: unexpected EOF"),
            ("{{end}} rest", "unexpected {{end}}"),
            ("{{if a}}{{else}}{{else}}{{end}}", "unexpected {{else}}"),
            ("{{else}}", "unexpected {{else}}"),
            ("{{if a}}{{else with b}}{{end}}", "unexpected with in else"),
            ("{{if a}}{{break}}{{end}}", "outside {{range}}"),
            ("{{range a}}{{define \"x\"}}{{break}}{{end}}{{end}}", "outside {{range}}"),
            ("{{if a}}{{end x}}", "unexpected words"),
        ] {
            let error = check("t", source).unwrap_err().to_string();
            assert!(error.contains(reason), "{source}: {error}");
        }
    }
}
