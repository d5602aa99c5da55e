//! Starts and controls a switch: JSON lines, one request and one answer for each connection.

use super::{Counters, HOST, LinkFault, MODE, PortSpec, SwitchSpec};
use crate::{
    error::UserError,
    io::socket::{self, Lines},
    reexec::{self, Launcher, Lifetime},
};
use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A port of the host that leads to one of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Where the host listens; port 0 takes any that is free.
    pub host: SocketAddr,
    /// Where that leads: a machine's address, or one that moves.
    pub guest: SocketAddr,
}

/// A request to a switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// How is everything?
    Status,
    /// Put this on every link between a port of `a` and one of `b`.
    Fault { a: Vec<String>, b: Vec<String>, fault: LinkFault },
    /// Take all faults away.
    Heal,
    /// Let another port of the host lead to a guest.
    Forward(Forward),
    /// Make another port.
    Attach(PortSpec),
    /// Take a port away, and the forwards that lead to these addresses.
    Detach { name: String, addresses: Vec<IpAddr> },
    /// End.
    Stop,
}

/// What a switch answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    /// How everything is.
    Status(Status),
    /// It works: where its forwards listen.
    Ready(Vec<Forward>),
    /// The request is wrong, and what may help.
    Wrong(String, Option<String>),
}

/// How a switch is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its ports by name; the host's is [`HOST`].
    pub ports: BTreeMap<String, PortStatus>,
    /// The links that have faults.
    pub links: Vec<LinkStatus>,
    /// The ports of the host that lead to guests.
    pub forwards: Vec<Forward>,
    /// Connections through these now.
    pub connections: usize,
}

/// How a port is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Whether a machine is there.
    pub connected: bool,
    /// Its hardware address, as its machine's name gives it.
    pub mac: String,
    /// What it has seen.
    pub counters: Counters,
}

/// What is wrong with a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The ports it joins.
    pub between: [String; 2],
    /// What is wrong.
    pub fault: LinkFault,
}

/// A running switch. On drop, a tied one ends; a detached one goes on.
#[derive(Debug)]
pub struct Switch {
    control: PathBuf,
    tied: Option<Child>,
}

impl Switch {
    /// Starts a switch and returns the addresses of its forwards, in order. Machines can connect when this returns.
    ///
    /// # Errors
    /// A wrong request when a port of the host is taken, or two machines have one name or hardware address; when a
    /// folder is not there, or another switch serves it.
    pub fn start(spec: &SwitchSpec, lifetime: Lifetime, launcher: &Launcher) -> Result<(Switch, Vec<Forward>)> {
        let mut log = spec.control.clone().into_os_string();
        log.push(".log");
        let log = PathBuf::from(log);
        let words = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = launcher.command(lifetime, MODE);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(words);
        let mut child = reexec::spawn(command)?;
        let mut request = serde_json::to_vec(spec)?;
        request.push(b'\n');
        let sent = child.stdin.take().map(|mut stdin| stdin.write_all(&request));
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).take(1 << 20).read_line(&mut line).context("starting the switch")?;
        }
        let answer = serde_json::from_str(&line).with_context(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("the switch did not start ({sent:?}): {}", said.trim())
        });
        let switch = |tied| Switch { control: spec.control.clone(), tied };
        match answer.and_then(expect)? {
            Answer::Ready(forwards) if lifetime == Lifetime::Tied => Ok((switch(Some(child)), forwards)),
            Answer::Ready(forwards) => {
                // It usually outlives this program; if not, it must be waited for.
                thread::spawn(move || child.wait());
                Ok((switch(None), forwards))
            }
            other => bail!("the switch answers {other:?}"),
        }
    }

    /// Finds the switch that listens on the socket `control`; `None` if none does.
    pub fn open(control: &Path) -> Option<Switch> {
        socket::connect(control).is_ok().then(|| Switch { control: control.to_owned(), tied: None })
    }

    /// How it is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            other => bail!("the switch answers {other:?}"),
        }
    }

    /// Puts a fault on every link between a port of `a` and one of `b`, in place of what was wrong there before.
    ///
    /// # Errors
    /// A wrong request when a port is unknown or the fault impossible; when the switch does not answer.
    pub fn fault<N: Into<String>>(
        &self,
        a: impl IntoIterator<Item = N>,
        b: impl IntoIterator<Item = N>,
        fault: LinkFault,
    ) -> Result<()> {
        let names = |names: Vec<N>| names.into_iter().map(N::into).collect();
        let (a, b) = (names(a.into_iter().collect()), names(b.into_iter().collect()));
        self.ask(&Request::Fault { a, b, fault }).map(drop)
    }

    /// Cuts these machines off from all others; among themselves they are as before, and the host still reaches each.
    ///
    /// # Errors
    /// A wrong request when a machine is unknown; when the switch does not answer.
    pub fn isolate(&self, machines: &[&str]) -> Result<()> {
        let status = self.status()?;
        let others: Vec<&str> =
            status.ports.keys().map(String::as_str).filter(|name| *name != HOST && !machines.contains(name)).collect();
        self.fault(machines.iter().copied(), others, LinkFault::CUT)
    }

    /// Takes all faults away.
    ///
    /// # Errors
    /// When the switch does not answer.
    pub fn heal(&self) -> Result<()> {
        self.ask(&Request::Heal).map(drop)
    }

    /// Forwards another port of the host to a guest, and returns its address.
    ///
    /// # Errors
    /// A wrong request when the port is taken; when the switch does not answer.
    pub fn forward(&self, forward: Forward) -> Result<SocketAddr> {
        match self.ask(&Request::Forward(forward))? {
            Answer::Ready(forwards) if forwards.len() == 1 => Ok(forwards[0].host),
            other => bail!("the switch answers {other:?}"),
        }
    }

    /// Makes another port, for a machine to be started then.
    ///
    /// # Errors
    /// A wrong request when there is one of its name, or its hardware address is another machine's; when the switch
    /// does not answer.
    pub fn attach(&self, port: PortSpec) -> Result<()> {
        self.ask(&Request::Attach(port)).map(drop)
    }

    /// Takes a machine's port away, and the forwards that lead to its addresses.
    ///
    /// # Errors
    /// A wrong request when there is no such port; when the switch does not answer.
    pub fn detach(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        self.ask(&Request::Detach { name: name.to_owned(), addresses: addresses.to_vec() }).map(drop)
    }

    /// Ends it: the machines' network is then gone.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let asked = self.ask(&Request::Stop);
        if let Some(mut child) = self.tied.take() {
            if asked.is_err() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        asked?;
        // It answers before it ends, and the next one must not find it still there.
        let deadline = Instant::now() + PATIENCE;
        while socket::connect(&self.control).is_ok() {
            anyhow::ensure!(Instant::now() < deadline, "the switch {} does not stop", self.control.display());
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn ask(&self, request: &Request) -> Result<Answer> {
        let asking = || format!("asking the switch {}", self.control.display());
        let mut lines = Lines::new(socket::connect(&self.control).with_context(asking)?);
        lines.send(&[], &serde_json::to_value(request)?).with_context(asking)?;
        let answer = lines.value(Instant::now() + PATIENCE).with_context(asking)?;
        let answer = answer.ok_or_else(|| anyhow!("no answer within {} s", PATIENCE.as_secs())).with_context(asking)?;
        expect(serde_json::from_value(answer).with_context(asking)?)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if self.tied.is_some() {
            let _ = self.end();
        }
    }
}

fn expect(answer: Answer) -> Result<Answer> {
    match answer {
        Answer::Wrong(message, hint) => Err(UserError { hint, ..UserError::usage(message) }.into()),
        other => Ok(other),
    }
}
