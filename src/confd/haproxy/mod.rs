//! Changes of servers through HAProxy's runtime socket, where a reload would be too much.
//!
//! A reload leaves the old worker behind until its last session ends; with long sessions, workers pile up. Where the new
//! configuration differs from the running one in nothing but `server` lines of the same `backend` and `listen` sections,
//! the servers are changed in the running worker: moved, added, taken out. A new server begins in maintenance with its
//! health down and serves only after its checks have passed. What the socket refuses is left to a reload, which brings
//! everything in step again.

mod config;
mod socket;

use anyhow::{Result, bail};
use config::{Proxy, Server};
use socket::{Runtime, Socket};
use std::path::Path;

/// Brings the HAProxy behind `socket`, which runs with the configuration `old`, in step with `new`. Says how many servers
/// were changed.
///
/// # Errors
/// When more than servers changed, or the socket refuses: then only a reload helps.
pub fn change(socket: &Path, old: &str, new: &str) -> Result<usize> {
    let Some(proxies) = config::compare(old, new) else { bail!("more than servers changed") };
    let socket = Socket::new(socket);
    let mut changes = 0;
    for proxy in &proxies {
        let runtime = socket.servers(&proxy.name)?;
        for step in steps(proxy, &runtime)? {
            socket.run(proxy, &step)?;
            changes += 1;
        }
    }
    Ok(changes)
}

/// What to do with one server of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Gives it another address; its sessions go on where they are.
    Move(Server),
    /// Adds it.
    Add(Server),
    /// Takes it out; it stays in maintenance while it has sessions.
    Remove(String),
    /// Takes it out for sure, so that it can be added again.
    Clear(String),
}

/// The steps from the running servers to the wanted ones.
fn steps(proxy: &Proxy, runtime: &[Runtime]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for gone in runtime.iter().filter(|running| proxy.new.iter().all(|server| server.name != running.name)) {
        steps.push(Step::Remove(gone.name.clone()));
    }
    for server in &proxy.new {
        let old = proxy.old.iter().find(|old| old.name == server.name);
        let running = runtime.iter().find(|running| running.name == server.name);
        let (address, port) = server.address()?;
        match (running, old) {
            (None, _) => steps.push(Step::Add(server.clone())),
            (Some(running), Some(old)) if old.parameters == server.parameters => {
                if (running.address.as_str(), running.port) != (address.to_string().as_str(), port) {
                    steps.push(Step::Move(server.clone()));
                }
            }
            // Other parameters, or a server that was taken out before and still lingers.
            (Some(_), _) => {
                steps.push(Step::Clear(server.name.clone()));
                steps.push(Step::Add(server.clone()));
            }
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(line: &str) -> Server {
        Server::read(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn steps_lead_from_what_runs_to_what_is_wanted() {
        let proxy = Proxy {
            name: "primary".into(),
            defaults: Vec::new(),
            old: vec![server("a 10.0.0.1:1 check"), server("b 10.0.0.2:1 check"), server("d 10.0.0.4:1 check")],
            new: vec![
                server("a 10.0.0.9:1 check"),
                server("b 10.0.0.2:1 check port 8"),
                server("c 10.0.0.3:1 check"),
                server("e 10.0.0.5:1"),
            ],
        };
        let running = |name: &str, address: &str| Runtime { name: name.into(), address: address.into(), port: 1 };
        let runtime =
            [running("a", "10.0.0.1"), running("b", "10.0.0.2"), running("d", "10.0.0.4"), running("e", "10.0.0.5")];
        assert_eq!(
            steps(&proxy, &runtime).unwrap(),
            [
                Step::Remove("d".into()),
                Step::Move(server("a 10.0.0.9:1 check")),
                Step::Clear("b".into()),
                Step::Add(server("b 10.0.0.2:1 check port 8")),
                Step::Add(server("c 10.0.0.3:1 check")),
                Step::Clear("e".into()),
                Step::Add(server("e 10.0.0.5:1")),
            ]
        );
        let named = Proxy { new: vec![server("a db.example.com:1")], ..proxy };
        assert!(steps(&named, &runtime).is_err());
    }
}
