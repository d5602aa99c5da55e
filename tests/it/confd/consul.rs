//! A server that speaks Consul's documented HTTP API for keys: recursive reads, indexes, blocking queries. Consul itself
//! is in no supported Debian release.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

pub struct FakeConsul {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    index: u64,
    /// Keys without the leading slash, with their modification index.
    keys: BTreeMap<String, (String, u64)>,
    tokens: Vec<String>,
}

impl FakeConsul {
    pub fn start() -> FakeConsul {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { index: 10, keys: BTreeMap::new(), tokens: Vec::new() };
        let consul = FakeConsul { port, state: Arc::new((Mutex::new(state), Condvar::new())) };
        let state = Arc::clone(&consul.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || answer(&stream, &state));
            }
        });
        consul
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes or deletes a key.
    pub fn put(&self, key: &str, value: Option<&str>) {
        let mut state = self.state.0.lock().unwrap();
        state.index += 1;
        let (key, index) = (key.trim_start_matches('/').to_owned(), state.index);
        match value {
            Some(value) => drop(state.keys.insert(key, (value.to_owned(), index))),
            None => drop(state.keys.remove(&key)),
        }
        self.state.1.notify_all();
    }

    /// The tokens that requests brought.
    pub fn tokens(&self) -> Vec<String> {
        self.state.0.lock().unwrap().tokens.clone()
    }
}

fn answer(stream: &TcpStream, state: &(Mutex<State>, Condvar)) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut token) = (String::new(), String::new());
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            if let Some((_, value)) =
                header.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("x-consul-token"))
            {
                token = value.trim().to_owned();
            }
        }
        let target = line.split_whitespace().nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let prefix = path.strip_prefix("/v1/kv/")?;
        let parameter =
            |name: &str| query.split('&').find_map(|pair| pair.split_once('=').filter(|(own, _)| *own == name));
        let (status, index, body) =
            look(state, prefix, parameter("index").and_then(|(_, index)| index.parse().ok()), token);
        let head = format!("HTTP/1.1 {status}\r\nX-Consul-Index: {index}\r\nContent-Length: {}\r\n\r\n", body.len());
        (&*stream).write_all(format!("{head}{body}").as_bytes()).ok()?;
    }
}

fn look(
    state: &(Mutex<State>, Condvar),
    prefix: &str,
    after: Option<u64>,
    token: String,
) -> (&'static str, u64, String) {
    let mut locked = state.0.lock().unwrap();
    locked.tokens.push(token);
    if let Some(after) = after {
        // As documented: the answer comes when the index has passed the one given, or after the wait.
        locked = state.1.wait_timeout_while(locked, Duration::from_secs(5), |state| state.index <= after).unwrap().0;
    }
    let found = locked.keys.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, (value, index))| {
        serde_json::json!({"Key": key, "Value": STANDARD.encode(value), "ModifyIndex": index, "Flags": 0, "LockIndex": 0})
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return ("404 Not Found", locked.index, String::new());
    }
    ("200 OK", locked.index, serde_json::Value::from(found).to_string())
}
