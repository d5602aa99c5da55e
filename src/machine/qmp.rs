//! QEMU's own control channel, the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec.rst).

use crate::io::socket::{self, Lines};
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

/// How long QEMU may take to answer; it does so from its main loop, which a loaded host may delay.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a running QEMU, which serves one at a time.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines,
    events: VecDeque<Event>,
}

/// An event of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What belongs to it; null if nothing does.
    pub data: Value,
}

impl Qmp {
    /// Connects to the monitor that listens on the socket `path`.
    ///
    /// # Errors
    /// When there is no monitor, or another client keeps it busy for 30 s.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let opening = || format!("connecting to the machine's monitor {}", path.display());
        let stream = socket::connect(path).with_context(opening)?;
        let mut qmp = Qmp { lines: Lines::new(stream), events: VecDeque::new() };
        let greeting = qmp.lines.value(Instant::now() + PATIENCE).with_context(opening)?;
        let greeting = greeting.with_context(|| format!("{}: it is busy with another client", opening()))?;
        if greeting.get("QMP").is_none() {
            bail!("{}: it greets with {greeting}", opening());
        }
        qmp.execute("qmp_capabilities", Value::Null).with_context(opening)?;
        Ok(qmp)
    }

    /// The process that serves this monitor.
    ///
    /// # Errors
    /// When it has gone meanwhile.
    pub fn process(&self) -> Result<OwnedFd> {
        pidfd_open(self.pid()?, PidfdFlags::empty()).context("finding QEMU's process")
    }

    /// The number of that process.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn pid(&self) -> Result<Pid> {
        Ok(socket_peercred(self.lines.stream()).context("finding QEMU's process")?.pid)
    }

    /// Has QEMU execute `command`, and returns what it returns.
    ///
    /// # Errors
    /// What QEMU answers as error, or that it gives no answer within 30 s.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({"execute": command});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let asking = || format!("asking QEMU for `{command}`");
        self.lines.send(&[], &request).with_context(asking)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(mut answer) = self.lines.value(deadline).with_context(asking)? else {
                bail!("{}: no answer within {} s", asking(), PATIENCE.as_secs());
            };
            if let Some(event) = event(&answer) {
                self.events.push_back(event);
            } else if let Some(error) = answer.get("error") {
                let text = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(anyhow!(text)).with_context(asking);
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// The next event; `None` if none came until `deadline`.
    ///
    /// # Errors
    /// When QEMU goes away.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            let Some(value) = self.lines.value(deadline).context("waiting for QEMU's events")? else { return Ok(None) };
            if let Some(event) = event(&value) {
                return Ok(Some(event));
            }
        }
    }

    /// QEMU's word for how the machine is: `running`, `paused`, `shutdown`, `internal-error`, …
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn status(&mut self) -> Result<String> {
        let status = self.execute("query-status", Value::Null)?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }
}

fn event(value: &Value) -> Option<Event> {
    let name = value.get("event")?.as_str()?.to_owned();
    Some(Event { name, data: value.get("data").cloned().unwrap_or_default() })
}
