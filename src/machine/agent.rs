//! Commands in the guest through the QEMU guest agent (QEMU, qga/qapi-schema.json), over a virtio serial port.
//!
//! The port is a serial line: a client that left in the middle of an answer leaves the rest of it to the next one. Each
//! connection therefore begins with `guest-sync-delimited`, whose answer begins with a byte that is not in any JSON
//! text.

use crate::io::socket::{self, Lines};
use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Ends what came before, on both ways of the wire.
const DELIMITER: u8 = 0xff;
/// How often the agent is pinged until it answers; a request from before it started is lost.
const AGAIN: Duration = Duration::from_secs(2);

/// A connection to the agent of a running guest; one at a time.
#[derive(Debug)]
pub struct Agent {
    lines: Lines,
    deadline: Instant,
}

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status, or 128 + the number of the signal that ended it.
    pub status: i32,
    /// Its standard output; the agent keeps 16 MiB.
    pub stdout: Vec<u8>,
    /// Its standard error; the agent keeps 16 MiB.
    pub stderr: Vec<u8>,
}

impl Agent {
    /// Connects through the socket `path` and waits until the guest's agent answers. `deadline` is the end of this and
    /// of all later requests.
    ///
    /// # Errors
    /// When the machine is gone, or no agent answers in time: it is not installed, or the guest has not started it yet.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Agent> {
        let stream = socket::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        let mut agent = Agent { lines: Lines::new(stream), deadline };
        agent.synchronise()?;
        Ok(agent)
    }

    fn synchronise(&mut self) -> Result<()> {
        for id in 1u32.. {
            let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
            self.lines.send(&[DELIMITER], &request).context("asking the guest agent")?;
            let end = self.deadline.min(Instant::now() + AGAIN);
            while let Some(line) = self.lines.line(end).context("waiting for the guest agent")? {
                let Some(at) = line.iter().rposition(|byte| *byte == DELIMITER) else { continue };
                let answer: Value = serde_json::from_slice(&line[at + 1..]).unwrap_or_default();
                if answer["return"] == json!(id) {
                    return Ok(());
                }
            }
            if Instant::now() >= self.deadline {
                break;
            }
        }
        Err(anyhow!("the guest agent does not answer: it has not started yet, or is not installed"))
    }

    /// Has the agent execute `command`, and returns what it returns.
    ///
    /// # Errors
    /// What the agent answers as error, or that the deadline passed.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let asking = || format!("asking the guest agent for `{command}`");
        self.lines.send(&[], &json!({"execute": command, "arguments": arguments})).with_context(asking)?;
        let Some(mut answer) = self.lines.value(self.deadline).with_context(asking)? else {
            bail!("{}: no answer in time", asking());
        };
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => {
                let error = &answer["error"];
                let text = error["desc"].as_str().map_or_else(|| answer.to_string(), str::to_owned);
                Err(anyhow!(text)).with_context(asking)
            }
        }
    }

    /// Runs the program `argv[0]` in the guest, as root, to its end; `input` is its standard input.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended at the deadline; it then continues in the guest.
    pub fn run(&mut self, argv: &[&str], input: &[u8]) -> Result<Ended> {
        let (program, arguments) = argv.split_first().context("no program to run in the guest")?;
        let mut request = json!({"path": program, "arg": arguments, "capture-output": true});
        if !input.is_empty() {
            request["input-data"] = json!(STANDARD.encode(input));
        }
        let started = self.execute("guest-exec", request).with_context(|| format!("running `{program}`"))?;
        let began = Instant::now();
        loop {
            let status = self.execute("guest-exec-status", json!({"pid": started["pid"]}))?;
            if status["exited"] == json!(true) {
                return ended(&status);
            }
            // Often for what is done soon, seldom for what takes long: each question costs the guest something.
            let pause = (began.elapsed() / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
            if Instant::now() + pause >= self.deadline {
                bail!("`{program}` has not ended in time");
            }
            thread::sleep(pause);
        }
    }
}

fn ended(status: &Value) -> Result<Ended> {
    let code = status["exitcode"].as_i64().or_else(|| status["signal"].as_i64().map(|signal| 128 + signal));
    let bytes = |name: &str| {
        let text = status[name].as_str().unwrap_or_default();
        STANDARD.decode(text).with_context(|| format!("reading `{name}` of the guest agent's answer"))
    };
    Ok(Ended {
        status: code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1),
        stdout: bytes("out-data")?,
        stderr: bytes("err-data")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};

    #[test]
    fn what_a_former_client_left_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = socket::listen(&path).unwrap();
        // The agent's side of the wire, as the schema above describes it.
        let guest = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut stream = stream;
            let mut request = Vec::new();
            reader.read_until(b'\n', &mut request).unwrap();
            assert_eq!(request[0], DELIMITER);
            let id = serde_json::from_slice::<Value>(&request[1..]).unwrap()["arguments"]["id"].clone();
            stream.write_all(b"an answer's rest\"}\n{\"return\": 7}\n\xff").unwrap();
            writeln!(stream, "{}", json!({"return": id})).unwrap();
            for answer in [
                json!({"return": {"pid": 42}}),
                json!({"return": {"exited": false}}),
                json!({"return": {"exited": true, "signal": 9, "out-data": "b3V0"}}),
                json!({"error": {"class": "GenericError", "desc": "no such file"}}),
            ] {
                request.clear();
                reader.read_until(b'\n', &mut request).unwrap();
                writeln!(stream, "{answer}").unwrap();
            }
        });
        let mut agent = Agent::connect(&path, Instant::now() + Duration::from_secs(10)).unwrap();
        let ended = agent.run(&["cat"], b"in").unwrap();
        assert_eq!(ended, Ended { status: 137, stdout: b"out".to_vec(), stderr: Vec::new() });
        let error = format!("{:#}", agent.run(&["nothing"], b"").unwrap_err());
        assert_eq!(error, "running `nothing`: asking the guest agent for `guest-exec`: no such file");
        guest.join().unwrap();
    }

    #[test]
    fn a_guest_without_agent_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let _listener = socket::listen(&path).unwrap();
        let error = Agent::connect(&path, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with("the guest agent does not answer"), "{error}");
    }
}
