//! Mirrors of the Debian archive: those that the user names, else those of this machine's apt sources.

use crate::{error::UserError, recipe::Archive};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Base URIs of mirrors, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    debian: Vec<String>,
    debian_security: Vec<String>,
}

impl Mirrors {
    /// The mirrors that `given` names, or else those of the apt configuration in `etc_apt`.
    ///
    /// # Errors
    /// A wrong request when `given` has something that is not a URI.
    pub fn find(given: &[String], etc_apt: &Path) -> Result<Mirrors, UserError> {
        if given.is_empty() {
            return Ok(Mirrors::of_uris(&apt_uris(etc_apt)));
        }
        for uri in given {
            if !["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme)) {
                return Err(UserError::usage(format!("the mirror `{uri}` is not an http or https URI"))
                    .hint("a mirror is the URI in apt's sources, such as http://mirror.example/debian"));
            }
        }
        Ok(Mirrors {
            debian: given.iter().map(|uri| uri.trim_end_matches('/').to_owned()).collect(),
            ..Mirrors::default()
        })
    }

    fn of_uris(uris: &[String]) -> Mirrors {
        let of = |archive: Archive| -> Vec<String> {
            let mut found: Vec<String> = Vec::new();
            for uri in uris {
                let uri = uri.trim_end_matches('/');
                if uri.rsplit('/').next() == Some(archive.folder()) && !found.iter().any(|known| known == uri) {
                    found.push(uri.to_owned());
                }
            }
            found
        };
        Mirrors { debian: of(Archive::Debian), debian_security: of(Archive::DebianSecurity) }
    }

    /// The base URIs of `archive`. Where only the main archive's mirrors are known, the others lie beside it.
    ///
    /// # Errors
    /// A wrong request when no mirror is known.
    pub fn of(&self, archive: Archive) -> Result<Vec<String>, UserError> {
        let beside = |uri: &String| match uri.rsplit_once('/') {
            Some((parent, _)) => format!("{parent}/{}", archive.folder()),
            None => uri.clone(),
        };
        let uris: Vec<String> = match archive {
            Archive::Debian => self.debian.clone(),
            Archive::DebianSecurity if !self.debian_security.is_empty() => self.debian_security.clone(),
            Archive::DebianSecurity => self.debian.iter().map(beside).collect(),
        };
        if uris.is_empty() {
            return Err(UserError::usage(
                "no mirror of the Debian archive is known: this machine's apt sources name none",
            )
            .hint("name one with --mirror URI, or in the environment as PGHA_IMAGE_MIRROR"));
        }
        Ok(uris)
    }
}

/// The URIs of binary packages in apt's sources (sources.list(5)), in apt's order.
fn apt_uris(etc_apt: &Path) -> Vec<String> {
    let mut files = vec![etc_apt.join("sources.list")];
    let parts = fs::read_dir(etc_apt.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.extend(parts);
    let mut uris = Vec::new();
    for file in files {
        // What this user cannot read, apt does not use either.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => uris.extend(text.lines().filter_map(one_line_uri)),
            Some("sources") => uris.extend(text.split("\n\n").flat_map(stanza_uris)),
            _ => {}
        }
    }
    uris.retain(|uri| uri.starts_with("http://") || uri.starts_with("https://"));
    uris
}

/// The URI of a line `deb [options] URI suite component…`.
fn one_line_uri(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    rest.split_whitespace().next().map(str::to_owned)
}

/// The URIs of a stanza in the deb822 style.
fn stanza_uris(stanza: &str) -> Vec<String> {
    let field = |name: &str| {
        let mut lines = stanza.lines().filter(|line| !line.starts_with('#'));
        lines.find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let used = field("Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"))
        && !field("Enabled").is_some_and(|enabled| enabled.eq_ignore_ascii_case("no"));
    match field("URIs") {
        Some(uris) if used => uris.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_sources_are_read_in_both_styles() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        let write = |name: &str, text: &str| fs::write(etc.path().join(name), text).unwrap();
        write(
            "sources.list",
            "# deb http://no.example/debian x main\ndeb [arch=amd64 trusted=yes] http://one.example/debian/ trixie main\n\
             deb-src http://src.example/debian trixie main\ndeb http://one.example/debian trixie-updates main\n",
        );
        write(
            "sources.list.d/debian.sources",
            "Types: deb deb-src\n# a comment\nURIs: http://two.example/debian\nSuites: trixie\n\n\
             Types: deb\nURIs: http://two.example/debian-security\nSuites: trixie-security\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off.example/debian\n",
        );
        write("sources.list.d/other.list", "deb https://else.example/apt stable main\n");
        let mirrors = Mirrors::find(&[], etc.path()).unwrap();
        assert_eq!(mirrors.of(Archive::Debian).unwrap(), ["http://one.example/debian", "http://two.example/debian"]);
        assert_eq!(mirrors.of(Archive::DebianSecurity).unwrap(), ["http://two.example/debian-security"]);
    }

    #[test]
    fn security_updates_lie_beside_the_mirror_that_is_named() {
        let given = ["http://mirror.example/debian/".to_owned()];
        let mirrors = Mirrors::find(&given, Path::new("/nonexistent")).unwrap();
        assert_eq!(mirrors.of(Archive::DebianSecurity).unwrap(), ["http://mirror.example/debian-security"]);
    }

    #[test]
    fn without_a_mirror_the_way_out_is_told() {
        let none = Mirrors::find(&[], Path::new("/nonexistent")).unwrap().of(Archive::Debian).unwrap_err();
        assert_eq!(none.message, "no mirror of the Debian archive is known: this machine's apt sources name none");
        let wrong = Mirrors::find(&["mirror.example".to_owned()], Path::new("/nonexistent")).unwrap_err();
        assert_eq!(wrong.message, "the mirror `mirror.example` is not an http or https URI");
    }
}
