//! Slash-separated paths and patterns as Go's package `path` has them.

use anyhow::{Result, bail};

/// The shortest path that means the same: no empty element, no `.`, no `..` that has something to go up from.
pub fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if is_rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The paths joined with slashes and cleaned; empty ones count for nothing.
pub fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean(&format!("{a}/{b}")),
    }
}

/// The last element; `.` for nothing, `/` for slashes alone.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// All but the last element, cleaned.
pub fn dir(path: &str) -> String {
    clean(path.rfind('/').map_or("", |at| &path[..=at]))
}

/// Whether `key` is `place` or lies below it. `/` holds everything.
pub fn is_within(key: &str, place: &str) -> bool {
    let below = place.strip_suffix('/').unwrap_or(place);
    key.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) || key == place
}

/// A pattern of `path.Match`: `*` and `?` do not cross a slash, `[a-z]`, `[^a-z]`, `\` takes the next as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Char(char),
    One,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn new(pattern: &str) -> Result<Pattern> {
        let mut parts = Vec::new();
        let mut rest = pattern.chars().peekable();
        let bad = || anyhow::anyhow!("the pattern `{pattern}` is malformed");
        while let Some(c) = rest.next() {
            parts.push(match c {
                '*' => Part::Many,
                '?' => Part::One,
                '\\' => Part::Char(rest.next().ok_or_else(bad)?),
                '[' => {
                    let negated = rest.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        if rest.peek() == Some(&']') && !ranges.is_empty() {
                            rest.next();
                            break;
                        }
                        let mut bound = || match rest.next() {
                            None | Some('-' | ']') => None,
                            Some('\\') => rest.next(),
                            bound => bound,
                        };
                        let low = bound().ok_or_else(bad)?;
                        let high = match rest.next_if_eq(&'-') {
                            Some(_) => match rest.next() {
                                None | Some('-' | ']') => bail!(bad()),
                                Some('\\') => rest.next().ok_or_else(bad)?,
                                Some(high) => high,
                            },
                            None => low,
                        };
                        ranges.push((low, high));
                    }
                    Part::Class { negated, ranges }
                }
                c => Part::Char(c),
            });
        }
        Ok(Pattern(parts))
    }

    /// What every match begins with.
    pub fn literal_prefix(&self) -> String {
        self.0.iter().map_while(|part| if let Part::Char(c) = part { Some(*c) } else { None }).collect()
    }

    /// Whether all of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        let parts = &self.0;
        let (mut at, mut rest) = (0, name);
        // Where to go on when what follows the last `*` does not fit: after it, with one more character taken. Going
        // back to an earlier `*` cannot help, because the last one has seen the shortest beginnings.
        let mut again: Option<(usize, &str)> = None;
        loop {
            let next = rest.chars().next();
            match (parts.get(at), next) {
                (None, None) => return true,
                (Some(Part::Many), _) => {
                    again = Some((at + 1, rest));
                    at += 1;
                    continue;
                }
                (Some(part), Some(c)) if part.takes(c) => {
                    rest = &rest[c.len_utf8()..];
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let Some((part, from)) = again else { return false };
            match from.chars().next() {
                Some(c) if c != '/' => {
                    rest = &from[c.len_utf8()..];
                    again = Some((part, rest));
                    at = part;
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn takes(&self, c: char) -> bool {
        match self {
            Part::Char(own) => *own == c,
            Part::One => c != '/',
            Part::Many => false,
            Part::Class { negated, ranges } => ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != *negated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_in_go() {
        for (path, cleaned) in
            [("", "."), ("a//b/./c/..", "a/b"), ("/../a", "/a"), ("../../a", "../../a"), ("/", "/"), ("a/../..", "..")]
        {
            assert_eq!(clean(path), cleaned, "{path}");
        }
        assert_eq!(join("/", "/"), "/");
        assert_eq!(join("/service/demo", "/members/"), "/service/demo/members");
        assert_eq!(join("", "a"), "a");
        assert_eq!([base(""), base("///"), base("/a/b/"), base("b")], [".", "/", "b", "b"]);
        assert_eq!([dir(""), dir("/a/b"), dir("/a/b/"), dir("a"), dir("/a")], [".", "/a", "/a/b", ".", "/"]);
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && is_within("/x", "/") && is_within("/a/b", "/a/"));
        assert!(!is_within("/ab", "/a"));
    }

    #[test]
    fn patterns_are_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("*x", "xxx", true),
            ("/members/*", "/members/pg-1", true),
            ("/*/members/*", "/0/members/pg-1", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
        for malformed in ["[", "[]a]", "[-]", "[x-]", "[-x]", "[^", "[a-b-c]", "a[", "\\", "[^bc"] {
            assert!(Pattern::new(malformed).is_err(), "{malformed}");
        }
        assert_eq!(Pattern::new("/a/*/b").unwrap().literal_prefix(), "/a/");
    }
}
