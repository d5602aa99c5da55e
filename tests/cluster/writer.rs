//! A client that writes all the time, and knows what was acknowledged and when.

use crate::{support::wait, test_cluster::emulated};
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a write may take before the client gives its connection up.
fn patience() -> Duration {
    if emulated() { Duration::from_secs(20) } else { Duration::from_secs(2) }
}

/// Between two writes.
fn pace() -> Duration {
    if emulated() { Duration::from_millis(200) } else { Duration::from_millis(20) }
}

/// How psql reaches a server.
#[derive(Debug, Clone)]
pub struct Connection(BTreeMap<String, String>);

impl Connection {
    /// From what `cluster env` prints.
    pub fn from_environment(text: &str) -> Connection {
        let words = text.trim().trim_start_matches("export ").split(' ');
        let settings = words.filter_map(|word| word.split_once('='));
        Connection(settings.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect())
    }

    /// `HOST:PORT`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.0["PGHOST"], self.0["PGPORT"])
    }

    /// The same with another setting.
    pub fn with(&self, name: &str, value: &str) -> Connection {
        let mut settings = self.0.clone();
        settings.insert(name.to_owned(), value.to_owned());
        Connection(settings)
    }

    /// The password that it shows.
    pub fn password(&self) -> String {
        self.0["PGPASSWORD"].clone()
    }

    /// psql.
    pub fn psql(&self) -> Command {
        let mut command = Command::new("psql");
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]).envs(&self.0);
        command
            .env("PGCONNECT_TIMEOUT", patience().as_secs().to_string())
            .env("PGAPPNAME", "pgha-test")
            .stdin(Stdio::null());
        command
    }

    /// The answer to a query.
    pub fn ask(&self, query: &str) -> Result<String, String> {
        let done = self.psql().args(["--command", query]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }
}

/// The client.
pub struct Writer {
    stop: Arc<AtomicBool>,
    last: Arc<Mutex<Instant>>,
    thread: JoinHandle<Written>,
}

/// What it wrote.
#[derive(Debug)]
pub struct Written {
    /// The rows that were acknowledged, and when.
    pub acknowledged: Vec<(u64, Instant)>,
    /// How often it connected.
    pub connections: u32,
    /// When it stopped.
    ended: Option<Instant>,
}

impl Written {
    /// The longest time without an acknowledged write.
    pub fn longest_gap(&self) -> Duration {
        let times = self.acknowledged.iter().map(|(_, time)| *time).chain(self.ended);
        let times: Vec<Instant> = times.collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Asserts that the database has every row that was acknowledged.
    pub fn assert_kept(&self, door: &Connection) {
        let text = door.ask("select id from written order by id").unwrap();
        let kept: std::collections::BTreeSet<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        let lost: Vec<u64> = self.acknowledged.iter().map(|(id, _)| *id).filter(|id| !kept.contains(id)).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged rows are lost: {lost:?}", lost.len(), self.acknowledged.len());
    }
}

impl Writer {
    /// Makes an empty table and begins to write to it.
    pub fn start(door: &Connection) -> Writer {
        door.ask("drop table if exists written; create table written (id bigint primary key)").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let last = Arc::new(Mutex::new(Instant::now()));
        let (door, stopped, acknowledged) = (door.clone(), Arc::clone(&stop), Arc::clone(&last));
        let thread = thread::spawn(move || write(&door, &stopped, &acknowledged));
        Writer { stop, last, thread }
    }

    /// How long ago the last write was acknowledged.
    pub fn silence(&self) -> Duration {
        self.last.lock().unwrap().elapsed()
    }

    /// Waits until writes are acknowledged again.
    pub fn wait_resumed(&self, within: Duration) {
        wait("writes to resume", within, || {
            let silence = self.silence();
            if silence < Duration::from_secs(1) { Ok(()) } else { Err(format!("nothing for {silence:?}")) }
        });
    }

    /// Stops writing.
    pub fn stop(self) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// One psql that stays connected.
struct Session {
    child: Child,
    lines: Receiver<String>,
}

impl Session {
    fn open(door: &Connection) -> Session {
        let mut command = door.psql();
        command.args(["--set", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Session { child, lines }
    }

    /// Writes a row; whether it was acknowledged in time.
    fn write(&mut self, id: u64) -> bool {
        let pipe = self.child.stdin.as_mut().unwrap();
        if writeln!(pipe, "insert into written values ({id}) returning id;").and_then(|()| pipe.flush()).is_err() {
            return false;
        }
        match self.lines.recv_timeout(patience()) {
            Ok(line) => line.trim() == id.to_string(),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(door: &Connection, stop: &AtomicBool, last: &Mutex<Instant>) -> Written {
    let mut written = Written { acknowledged: Vec::new(), connections: 0, ended: None };
    let mut session = None;
    let mut id = 0;
    while !stop.load(Ordering::SeqCst) {
        let now = session.get_or_insert_with(|| {
            written.connections += 1;
            Session::open(door)
        });
        id += 1;
        if now.write(id) {
            let now = Instant::now();
            written.acknowledged.push((id, now));
            *last.lock().unwrap() = now;
        } else {
            session = None;
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(pace());
    }
    written.ended = Some(Instant::now());
    written
}
