//! The counters of confd, and the small server for them: `/metrics` for Prometheus, `/health` and `/ready`.

use crate::log;
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The counters of one program.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counters>);

#[derive(Debug, Default)]
struct Counters {
    store: Store,
    resources: BTreeMap<String, OfResource>,
    config_reloads: u64,
    config_failures: u64,
}

#[derive(Debug, Default)]
struct Store {
    is_healthy: bool,
    revision: u64,
    losses: u64,
}

/// The counters of one rendered file.
#[derive(Debug, Clone, Default)]
pub struct OfResource {
    /// Passes that were begun.
    pub passes: u64,
    /// Passes that failed.
    pub failed_passes: u64,
    /// How many failed since the last that did not.
    pub failures_in_row: u32,
    /// Seconds spent on passes.
    pub seconds: f64,
    /// Files replaced.
    pub writes: u64,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Reloads that failed.
    pub failed_reloads: u64,
    /// Changes made through HAProxy's socket instead of a reload.
    pub runtime_changes: u64,
    /// Checks that failed.
    pub failed_checks: u64,
    /// The revision that the file was rendered from.
    pub revision: u64,
    /// The items that the file was rendered from.
    pub items: usize,
    /// Whether a smaller set is being held back.
    pub is_held: bool,
    /// Whether its reader is still to be reloaded.
    pub is_reload_owed: bool,
    /// Whether the file has been right once since the start.
    pub is_ready: bool,
    /// When it was last applied, in seconds since 1970.
    pub applied_at: f64,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the counters of the file `dest`.
    pub fn resource(&self, dest: &str, change: impl FnOnce(&mut OfResource)) {
        let mut counters = self.lock();
        change(counters.resources.entry(dest.to_owned()).or_default());
    }

    /// Forgets files that no resource renders any more.
    pub fn keep_resources(&self, is_kept: impl Fn(&str) -> bool) {
        self.lock().resources.retain(|dest, _| is_kept(dest));
    }

    /// The store answered, and is at this revision.
    pub fn store_answered(&self, revision: u64) {
        let mut counters = self.lock();
        counters.store.is_healthy = true;
        counters.store.revision = revision;
    }

    /// The store answered.
    pub fn store_alive(&self) {
        self.lock().store.is_healthy = true;
    }

    /// The store does not answer, or has no quorum.
    pub fn store_lost(&self) {
        let mut counters = self.lock();
        counters.store.losses += 1;
        counters.store.is_healthy = false;
    }

    /// The resources were loaded again, or could not be.
    pub fn config_reloaded(&self, is_good: bool) {
        let mut counters = self.lock();
        if is_good { counters.config_reloads += 1 } else { counters.config_failures += 1 }
    }

    /// Whether each file has been right once since the start.
    pub fn is_ready(&self) -> bool {
        self.lock().resources.values().all(|resource| resource.is_ready)
    }

    /// What is wrong now, one sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let counters = self.lock();
        let mut troubles = Vec::new();
        if !counters.store.is_healthy {
            troubles.push("the store does not answer".to_owned());
        }
        for (dest, resource) in &counters.resources {
            if resource.failures_in_row > 0 {
                troubles.push(format!("{dest}: {} passes failed in a row", resource.failures_in_row));
            }
            if resource.is_held {
                troubles.push(format!("{dest}: a smaller set of keys is held back"));
            }
            if resource.is_reload_owed {
                troubles.push(format!("{dest}: the reload is still to be done"));
            }
        }
        troubles
    }

    /// All counters in Prometheus' text format.
    pub fn render(&self) -> String {
        let counters = self.lock();
        let mut out = String::new();
        let store = &counters.store;
        for (name, kind, help, value) in [
            ("confd_store_healthy", "gauge", "Whether the store answers with a quorum", f64::from(store.is_healthy)),
            ("confd_store_revision", "gauge", "Revision of the store", store.revision as f64),
            ("confd_store_losses_total", "counter", "How often the store was lost", store.losses as f64),
            (
                "confd_config_reloads_total",
                "counter",
                "Times the resources were loaded again",
                counters.config_reloads as f64,
            ),
            ("confd_config_failures_total", "counter", "Times that failed", counters.config_failures as f64),
            ("process_resident_memory_bytes", "gauge", "Resident memory", resident_bytes()),
            ("process_cpu_seconds_total", "counter", "Processor time", cpu_seconds()),
        ] {
            let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        type Value = fn(&OfResource) -> f64;
        let per_resource: [(&str, &str, &str, Value); 14] = [
            ("confd_passes_total", "counter", "Passes begun", |r| r.passes as f64),
            ("confd_passes_failed_total", "counter", "Passes that failed", |r| r.failed_passes as f64),
            ("confd_failures_in_row", "gauge", "Passes failed since the last good one", |r| r.failures_in_row.into()),
            ("confd_pass_seconds_total", "counter", "Time spent on passes", |r| r.seconds),
            ("confd_writes_total", "counter", "Files replaced", |r| r.writes as f64),
            ("confd_reloads_total", "counter", "Reloads done", |r| r.reloads as f64),
            ("confd_reloads_failed_total", "counter", "Reloads that failed", |r| r.failed_reloads as f64),
            ("confd_runtime_changes_total", "counter", "Changes made without a reload", |r| r.runtime_changes as f64),
            ("confd_checks_failed_total", "counter", "Checks that failed", |r| r.failed_checks as f64),
            ("confd_applied_revision", "gauge", "Revision rendered", |r| r.revision as f64),
            ("confd_applied_items", "gauge", "Items rendered", |r| r.items as f64),
            ("confd_held", "gauge", "Whether a smaller set is held back", |r| r.is_held.into()),
            ("confd_reload_owed", "gauge", "Whether the reload is still to be done", |r| r.is_reload_owed.into()),
            ("confd_applied_timestamp_seconds", "gauge", "When it was last applied", |r| r.applied_at),
        ];
        for (name, kind, help, value) in per_resource {
            let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
            for (dest, resource) in &counters.resources {
                let dest = dest.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = writeln!(out, "{name}{{dest=\"{dest}\"}} {}", value(resource));
            }
        }
        out
    }

    /// Serves the counters until the program ends; returns the address, which matters with port 0.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn serve(self: &Arc<Metrics>, address: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address} for metrics"))?;
        let address = listener.local_addr()?;
        let metrics = Arc::clone(self);
        thread::Builder::new().name("metrics".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                // One at a time: only monitors connect, and a slow one is cut off.
                if let Err(error) = metrics.answer(stream) {
                    log::debug!("answering a monitor: {error:#}");
                }
            }
        })?;
        Ok(address)
    }

    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut line = String::new();
        let mut reader = BufReader::new(std::io::Read::take(&stream, 8192));
        reader.read_line(&mut line)?;
        // The rest of the request is read, so that closing does not reset the connection.
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        let (status, body) = match line.split_whitespace().nth(1).unwrap_or_default() {
            "/metrics" => ("200 OK", self.render()),
            "/health" => verdict(&self.troubles()),
            "/ready" if self.is_ready() => ("200 OK", "ready\n".to_owned()),
            "/ready" => ("503 Service Unavailable", "not every file has been rendered yet\n".to_owned()),
            _ => ("404 Not Found", "/metrics, /health, /ready\n".to_owned()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        Ok(())
    }
}

fn verdict(troubles: &[String]) -> (&'static str, String) {
    if troubles.is_empty() {
        return ("200 OK", "ok\n".to_owned());
    }
    ("503 Service Unavailable", troubles.iter().map(|trouble| format!("{trouble}\n")).collect())
}

/// Now, in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn resident_bytes() -> f64 {
    let pages =
        fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.unwrap_or(0.0) * rustix::param::page_size() as f64
}

fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may hold spaces; the fields after it are counted from its parenthesis.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_monitor_is_told_what_is_wrong() {
        let metrics = Arc::new(Metrics::default());
        let address = metrics.serve("127.0.0.1:0".parse().unwrap()).unwrap();
        metrics.resource("/etc/\"x\"", |resource| resource.reloads = 3);
        assert!(get(address, "/health").contains("503"));
        assert!(get(address, "/ready").contains("503"));
        metrics.store_answered(7);
        metrics.resource("/etc/\"x\"", |resource| resource.is_ready = true);
        assert!(get(address, "/health").starts_with("HTTP/1.1 200"));
        assert!(get(address, "/ready").starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics");
        assert!(text.contains("confd_reloads_total{dest=\"/etc/\\\"x\\\"\"} 3\n"), "{text}");
        assert!(text.contains("confd_store_revision 7\n"));
        metrics.resource("/etc/\"x\"", |resource| resource.is_held = true);
        assert!(get(address, "/health").contains("held back"));
        assert!(get(address, "/").contains("404"));
    }
}
