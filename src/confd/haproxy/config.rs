//! HAProxy's configuration, as far as it matters whether two differ in servers only.

use anyhow::{Context as _, Result};
use std::{collections::BTreeSet, net::IpAddr};

/// A proxy whose servers differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name.
    pub name: String,
    /// The parameters of the `default-server` lines that apply to it.
    pub defaults: Vec<String>,
    /// Its servers before.
    pub old: Vec<Server>,
    /// Its servers now.
    pub new: Vec<Server>,
}

/// A `server` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its address as written.
    pub written: String,
    /// What follows.
    pub parameters: Vec<String>,
}

impl Server {
    /// Reads the words after `server`.
    pub fn read(words: &[String]) -> Option<Server> {
        let [name, written, parameters @ ..] = words else { return None };
        Some(Server { name: name.clone(), written: written.clone(), parameters: parameters.to_vec() })
    }

    /// The address and the port.
    ///
    /// # Errors
    /// When it is not a literal address with a port.
    pub fn address(&self) -> Result<(IpAddr, u16)> {
        let plain = self.written.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
        let split = plain.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            Some((host.parse().ok()?, port.parse().ok()?))
        });
        split.with_context(|| format!("the address `{}` of the server {} is not a literal", self.written, self.name))
    }
}

/// A section: its heading, its lines in order without servers, its servers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Section {
    lines: Vec<Vec<String>>,
    servers: Vec<Server>,
}

impl Section {
    fn word(&self, at: usize) -> &str {
        self.lines.first().and_then(|heading| heading.get(at)).map_or("", String::as_str)
    }

    fn default_server(&self) -> impl Iterator<Item = &String> {
        let lines = self.lines.iter().filter(|line| line.first().is_some_and(|word| word == "default-server"));
        lines.flat_map(|line| &line[1..])
    }
}

/// The keywords that begin a section.
const SECTIONS: [&str; 21] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "log-profile",
    "crt-store",
    "traces",
    "fcgi-app",
    "acme",
    "healthcheck",
    "crt-list",
];

/// The proxies whose servers differ; nothing if anything else does, or if servers cannot be told apart by name.
pub fn compare(old: &str, new: &str) -> Option<Vec<Proxy>> {
    let (old, new) = (parse(old)?, parse(new)?);
    if old.len() != new.len() {
        return None;
    }
    let mut proxies = Vec::new();
    let mut defaults: Vec<(&str, Vec<String>)> = Vec::new();
    for (before, after) in old.iter().zip(&new) {
        if before.lines != after.lines {
            return None;
        }
        if after.word(0) == "defaults" {
            defaults.push((after.word(1), after.default_server().cloned().collect()));
        }
        if before.servers == after.servers {
            continue;
        }
        if !have_own_names(&before.servers) || !have_own_names(&after.servers) {
            return None;
        }
        let inherited = match after.word(2) {
            "from" => defaults.iter().find(|(name, _)| *name == after.word(3)),
            _ => defaults.last(),
        };
        let inherited = inherited.map(|(_, words)| words.clone()).unwrap_or_default();
        proxies.push(Proxy {
            name: after.word(1).to_owned(),
            defaults: inherited.into_iter().chain(after.default_server().cloned()).collect(),
            old: before.servers.clone(),
            new: after.servers.clone(),
        });
    }
    Some(proxies)
}

fn have_own_names(servers: &[Server]) -> bool {
    servers.iter().map(|server| &server.name).collect::<BTreeSet<_>>().len() == servers.len()
}

fn parse(text: &str) -> Option<Vec<Section>> {
    let mut sections = vec![Section::default()];
    for line in text.lines() {
        let words = words(line)?;
        let Some(first) = words.first() else { continue };
        if SECTIONS.contains(&first.as_str()) {
            sections.push(Section { lines: vec![words], servers: Vec::new() });
            continue;
        }
        let section = sections.last_mut()?;
        if first == "server" && matches!(section.word(0), "backend" | "listen") {
            section.servers.push(Server::read(&words[1..])?);
        } else {
            section.lines.push(words);
        }
    }
    Some(sections)
}

/// The words of a line: quotes and backslashes protect, `#` begins a comment. `None` if a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '#') => break,
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
global
    stats socket /run/haproxy.sock level admin
defaults
    default-server inter 3s
listen primary
    bind *:5000   # comment
    default-server fall 3 rise 2
    server pg-1 10.0.0.11:6432 check port 8008
listen replicas
    bind *:5001
    server pg-1 10.0.0.11:6432 check port 8008
peers mine
    server x 10.0.0.1:1
";

    #[test]
    fn servers_alone_make_a_difference_that_a_socket_can_bridge() {
        let new = CONFIG.replace("    bind *:5001\n", "  bind   '*:5001'\n    server pg-2 [::1]:6432 check\n");
        let proxies = compare(CONFIG, &new).unwrap();
        assert_eq!(proxies.len(), 1);
        assert_eq!((proxies[0].name.as_str(), proxies[0].new.len()), ("replicas", 2));
        assert_eq!(proxies[0].new[0].address().unwrap(), ("::1".parse().unwrap(), 6432));
        let new = CONFIG.replacen("10.0.0.11", "10.0.0.12", 1);
        let proxies = compare(CONFIG, &new).unwrap();
        assert_eq!(proxies[0].defaults, ["inter", "3s", "fall", "3", "rise", "2"]);
        assert_eq!(compare(CONFIG, CONFIG), Some(Vec::new()));
    }

    #[test]
    fn any_other_difference_is_one_of_structure() {
        for (from, to) in [
            ("bind *:5001", "bind *:5009"),
            ("listen replicas", "listen others"),
            ("rise 2", "rise 3"),
            ("server x 10.0.0.1:1", "server x 10.0.0.2:1"),
            ("    bind *:5001\n", "    bind *:5001\n    server pg-1 10.0.0.12:1\n"),
            ("bind *:5001", "bind \"*:5001"),
        ] {
            assert_eq!(compare(CONFIG, &CONFIG.replace(from, to)), None, "{to}");
        }
        assert_eq!(words("a\\ b \"c # d\" 'e\\f' # g").unwrap(), ["a b", "c # d", "e\\f"]);
    }
}
