//! dpkg's `path-exclude` and `path-include` (dpkg(1), "path-exclude=glob-pattern").

/// Which paths dpkg leaves out.
#[derive(Debug, Clone, Copy)]
pub struct Patterns<'a> {
    exclude: &'a [String],
    include: &'a [String],
}

impl<'a> Patterns<'a> {
    /// Paths that match one of `exclude` are left out unless they match one of `include`.
    pub fn new(exclude: &'a [String], include: &'a [String]) -> Patterns<'a> {
        Patterns { exclude, include }
    }

    /// Whether `path`, absolute, is left out.
    pub fn leave_out(&self, path: &str) -> bool {
        let is_in = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), path.as_bytes()));
        is_in(self.exclude) && !is_in(self.include)
    }

    /// The same as lines for dpkg; the last pattern that matches wins there.
    pub fn settings(&self) -> String {
        let lines = |key: &str, patterns: &[String]| -> String {
            patterns.iter().map(|pattern| format!("{key}={pattern}\n")).collect()
        };
        lines("path-exclude", self.exclude) + &lines("path-include", self.include)
    }
}

/// fnmatch(3) without flags: `*` and `?` match slashes too, `[a-z]` and `[!a-z]` one byte, `\` takes the next literally.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on if the last star should have taken one byte more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    let (mut pattern, mut text) = (pattern, text);
    loop {
        let step = match (pattern.first(), text.first()) {
            (Some(b'*'), _) => {
                pattern = &pattern[1..];
                retry = Some((pattern, text));
                continue;
            }
            (None, None) => return true,
            (Some(_), Some(&byte)) => one(pattern, byte),
            _ => None,
        };
        match (step, retry) {
            (Some(rest), _) => {
                pattern = rest;
                text = &text[1..];
            }
            (None, Some((after_star, [_, rest @ ..]))) => {
                pattern = after_star;
                text = rest;
                retry = Some((after_star, rest));
            }
            (None, _) => return false,
        }
    }
}

/// Matches one byte with the pattern's first element, and returns what follows that.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', set @ ..] => match bracket(set, byte) {
            Some((is_in, rest)) => is_in.then_some(rest),
            // A bracket that is never closed is just that.
            None => (byte == b'[').then_some(set),
        },
        [b'\\', literal, rest @ ..] => (*literal == byte).then_some(rest),
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Whether `byte` is in the set that `set` begins with, and what follows the set.
fn bracket(set: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        rest = match rest {
            [b']', rest @ ..] if !first => return Some((found != negated, rest)),
            [low, b'-', high, rest @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest
            }
            [single, rest @ ..] => {
                found |= *single == byte;
                rest
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_dpkg_matches_them() {
        for (pattern, text, expected) in [
            ("/usr/share/man/*", "/usr/share/man/man1/ls.1.gz", true),
            ("/usr/share/man/*", "/usr/share/man", false),
            ("/usr/share/doc/*/copyright", "/usr/share/doc/a/b/copyright", true),
            ("/usr/share/doc/*/copyright", "/usr/share/doc/a/copyright.gz", false),
            ("/usr/share/locale/[a-z]*/LC_MESSAGES/*.mo", "/usr/share/locale/de/LC_MESSAGES/x.mo", true),
            ("/usr/share/locale/[!e]*", "/usr/share/locale/en", false),
            ("/a?c", "/abc", true),
            ("/a[]x]c", "/a]c", true),
            ("/a\\*c", "/a*c", true),
            ("/a\\*c", "/abc", false),
            ("/a[", "/a[", true),
            ("*", "", true),
            ("*a*b*c", "xxaxxbxxbxc", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_included_again_stays() {
        let exclude = ["/usr/share/doc/*".to_owned()];
        let include = ["/usr/share/doc/*/copyright".to_owned()];
        let patterns = Patterns::new(&exclude, &include);
        assert!(patterns.leave_out("/usr/share/doc/x/changelog.gz"));
        assert!(!patterns.leave_out("/usr/share/doc/x/copyright"));
        assert!(!patterns.leave_out("/usr/bin/x"));
        assert_eq!(patterns.settings(), "path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n");
    }
}
