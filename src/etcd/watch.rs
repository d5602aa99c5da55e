//! Watching ranges: a thread reads the stream, the caller waits with a deadline.

use super::{
    Client, EtcdError, Header, KeyValue, RangeRequest, Result,
    transport::{refusal, start_of},
    wire::{encode, number},
};
use serde::Deserialize;
use serde_json::json;
use std::{
    io::{BufRead as _, BufReader},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread,
    time::Duration,
};
use ureq::Agent;

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(KeyValue),
    /// It was deleted, or its lease ended; the value is empty.
    Delete(KeyValue),
}

/// An event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The store changed, at the header's revision.
    Events(Header, Vec<Event>),
    /// The revision has been compacted away up to this one: read everything again.
    Compacted(u64),
    /// Nothing within the time given.
    Quiet,
}

/// An open watch; dropping it closes the connection.
#[derive(Debug)]
pub struct Watch {
    endpoint: String,
    lines: Receiver<Result<Vec<u8>>>,
    agent: Option<Agent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    header: Header,
    canceled: bool,
    #[serde(deserialize_with = "number")]
    compact_revision: u64,
    cancel_reason: String,
    events: Vec<Change>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Change {
    #[serde(rename = "type")]
    kind: String,
    kv: KeyValue,
}

impl Client {
    /// Watches ranges (their limits do not matter) at one endpoint from `revision` on, as long as it has a leader. Each
    /// range takes a connection: after the first answer, the gateway reads no further request from a connection.
    ///
    /// # Errors
    /// When the endpoint does not answer or refuses.
    pub fn watch_at(&self, endpoint: &str, ranges: &[RangeRequest], revision: u64) -> Result<Watch> {
        let requests = ranges.iter().map(|range| {
            let mut create =
                json!({"key": encode(&range.key), "start_revision": revision.to_string(), "fragment": true});
            if !range.end.is_empty() {
                create["range_end"] = encode(&range.end).into();
            }
            json!({"create_request": create})
        });
        let (agent, responses) = self.open_streams(endpoint, "/v3/watch", requests)?;
        let (send, lines) = mpsc::sync_channel(64);
        for response in responses {
            let (from, send) = (endpoint.to_owned(), send.clone());
            thread::Builder::new()
                .name("etcd-watch".into())
                .spawn(move || read_lines(&from, response, &send))
                .map_err(|error| EtcdError::Settings(format!("starting a thread: {error}")))?;
        }
        Ok(Watch { endpoint: endpoint.into(), lines, agent: Some(agent) })
    }
}

fn read_lines(endpoint: &str, response: ureq::http::Response<ureq::Body>, send: &SyncSender<Result<Vec<u8>>>) {
    let mut reader = BufReader::new(response.into_body().into_with_config().limit(u64::MAX).reader());
    loop {
        let mut line = Vec::new();
        let outcome = match reader.read_until(b'\n', &mut line) {
            Ok(0) => Err("the stream ended".to_owned()),
            Ok(_) => Ok(line),
            Err(error) => Err(error.to_string()),
        };
        let ended = outcome.is_err();
        let outcome =
            outcome.map_err(|message| EtcdError::Unreachable { endpoint: endpoint.into(), message, unsent: false });
        // Nobody listens any more once the watch is dropped.
        if send.send(outcome).is_err() || ended {
            return;
        }
    }
}

impl Watch {
    /// Where it is open.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Waits for what comes next, at most `limit`.
    ///
    /// # Errors
    /// When the stream ended, or etcd ended the watch (no leader, no right to read): open another.
    pub fn next(&mut self, limit: Duration) -> Result<Next> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => self.read(&line?),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Quiet),
            Err(RecvTimeoutError::Disconnected) => Err(self.broken("the stream ended".into())),
        }
    }

    fn read(&self, line: &[u8]) -> Result<Next> {
        #[derive(Deserialize)]
        struct Line {
            result: Answer,
        }
        if let Some(error) = refusal(&self.endpoint, line) {
            return Err(error);
        }
        let line: Line = serde_json::from_slice(line)
            .map_err(|error| self.broken(format!("its answer is not understood ({error}): {}", start_of(line))))?;
        let answer = line.result;
        if answer.compact_revision > 0 {
            return Ok(Next::Compacted(answer.compact_revision));
        }
        if answer.canceled {
            let message =
                if answer.cancel_reason.is_empty() { "the watch was cancelled" } else { &answer.cancel_reason };
            return Err(EtcdError::Refused { endpoint: self.endpoint.clone(), code: 1, message: message.into() });
        }
        let events = answer.events.into_iter().map(|change| match change.kind.as_str() {
            "DELETE" => Event::Delete(change.kv),
            _ => Event::Put(change.kv),
        });
        Ok(Next::Events(answer.header, events.collect()))
    }

    fn broken(&self, message: String) -> EtcdError {
        EtcdError::Unreachable { endpoint: self.endpoint.clone(), message, unsent: false }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Next> {
        let watch = Watch { endpoint: "e".into(), lines: mpsc::sync_channel(1).1, agent: None };
        watch.read(line.as_bytes())
    }

    #[test]
    fn lines_of_the_stream_are_read() {
        let created = r#"{"result":{"header":{"revision":"5"},"created":true}}"#;
        assert!(matches!(read(created), Ok(Next::Events(Header { revision: 5, .. }, events)) if events.is_empty()));
        let changes = r#"{"result":{"header":{"revision":"7"},"events":[{"kv":{"key":"L2E=","value":"eA==",
            "mod_revision":"6"}},{"type":"DELETE","kv":{"key":"L2I=","mod_revision":"7"}}]}}"#;
        let Ok(Next::Events(_, events)) = read(changes) else { panic!() };
        assert!(matches!(&events[0], Event::Put(kv) if kv.value == b"x"));
        assert!(matches!(&events[1], Event::Delete(kv) if kv.key == b"/b"));
        assert_eq!(read(r#"{"result":{"canceled":true,"compact_revision":"9"}}"#), Ok(Next::Compacted(9)));
        assert!(
            read(r#"{"result":{"canceled":true,"cancel_reason":"etcdserver: permission denied"}}"#)
                .unwrap_err()
                .denied()
        );
        assert!(read(r#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#).unwrap_err().elsewhere());
    }
}
