//! HAProxy's runtime socket (Management Guide, section 9.3): one command per connection.

use super::{Proxy, Step, config::Server};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);

/// A socket with `level admin`.
#[derive(Debug)]
pub struct Socket(PathBuf);

/// A server as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

impl Socket {
    /// The socket at `path`. Nothing is connected yet.
    pub fn new(path: &Path) -> Socket {
        Socket(path.into())
    }

    /// The servers that run in a proxy.
    ///
    /// # Errors
    /// When HAProxy does not answer or does not know the proxy.
    pub fn servers(&self, proxy: &str) -> Result<Vec<Runtime>> {
        let answer = self.ask(&format!("show servers state {}", escaped(proxy)))?;
        read_servers(&answer).with_context(|| format!("HAProxy answers about {proxy}: {}", answer.trim()))
    }

    /// Does one step.
    ///
    /// # Errors
    /// When HAProxy refuses a command of it.
    pub fn run(&self, proxy: &Proxy, step: &Step) -> Result<()> {
        let place = |name: &str| format!("{}/{}", escaped(&proxy.name), escaped(name));
        match step {
            Step::Move(server) => {
                let (address, port) = server.address()?;
                // HAProxy answers with a sentence both when it moved something and when it was there already.
                let command = format!("set server {} addr {address} port {port}", place(&server.name));
                self.expect(&command, |answer| answer.contains("changed from") || answer.contains("no need to change"))
            }
            Step::Add(server) => self.add(proxy, server, &place(&server.name)),
            Step::Clear(name) | Step::Remove(name) => {
                let place = place(name);
                self.expect(&format!("set server {place} state maint"), str::is_empty)?;
                let is_must = matches!(step, Step::Clear(_));
                self.expect(&format!("del server {place}"), |answer| {
                    answer.contains("deleted") || (!is_must && answer.contains("still has connections"))
                })
            }
        }
    }

    fn add(&self, proxy: &Proxy, server: &Server, place: &str) -> Result<()> {
        // A server that is added takes nothing from default-server.
        let parameters: Vec<&String> = proxy.defaults.iter().chain(&server.parameters).collect();
        let words: String = parameters.iter().map(|word| format!(" {}", escaped(word))).collect();
        self.expect(&format!("add server {place} {}{words}", escaped(&server.written)), |answer| {
            answer.contains("registered")
        })?;
        let has = |word: &str| parameters.iter().any(|own| *own == word);
        if has("check") {
            self.expect(&format!("enable health {place}"), str::is_empty)?;
            // Down until its checks have passed: unlike after a start, nothing is sent to it on trust.
            self.expect(&format!("set server {place} health down"), str::is_empty)?;
        }
        if !server.parameters.iter().any(|word| word == "disabled") {
            self.expect(&format!("set server {place} state ready"), str::is_empty)?;
        }
        Ok(())
    }

    fn expect(&self, command: &str, is_good: impl Fn(&str) -> bool) -> Result<()> {
        let answer = self.ask(command)?;
        let answer = answer.trim();
        if !is_good(answer) {
            bail!("HAProxy answers `{command}` with: {answer}");
        }
        Ok(())
    }

    fn ask(&self, command: &str) -> Result<String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(&self.0)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.set_write_timeout(Some(LIMIT))?;
            stream.write_all(format!("{command}\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().with_context(|| format!("asking HAProxy at {}", self.0.display()))
    }
}

/// Reads `show servers state`: the version, a line that names the columns, a line per server.
fn read_servers(answer: &str) -> Option<Vec<Runtime>> {
    let mut lines = answer.lines().filter(|line| !line.trim().is_empty());
    lines.next().filter(|version| version.trim() == "1")?;
    let columns: Vec<&str> = lines.next()?.trim_start_matches('#').split_whitespace().collect();
    let column = |name: &str| columns.iter().position(|own| *own == name);
    let (name, address, port) = (column("srv_name")?, column("srv_addr")?, column("srv_port")?);
    let server = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(Runtime {
            name: (*fields.get(name)?).to_owned(),
            address: (*fields.get(address)?).to_owned(),
            port: fields.get(port)?.parse().ok()?,
        })
    };
    lines.map(server).collect()
}

/// A word of a command: spaces and what separates commands are protected.
fn escaped(word: &str) -> String {
    word.chars().flat_map(|c| if " \\;\"'#\t".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_by_the_names_of_the_columns() {
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_port srvrecord\n3 primary 1 pg-1 10.0.0.11 2 6432 -\n\n";
        assert_eq!(
            read_servers(answer).unwrap(),
            [Runtime { name: "pg-1".into(), address: "10.0.0.11".into(), port: 6432 }]
        );
        assert_eq!(read_servers("Can't find backend.\n"), None);
        assert_eq!(escaped("a b;c"), "a\\ b\\;c");
    }
}
