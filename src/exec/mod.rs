//! The one door through which child processes are run.
//!
//! A [`Run`] is an argument vector and what becomes of the streams. Every failure names the whole command line, how it
//! ended, and the end of what it said. Modules above give each program its own typed functions.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Read, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How many bytes of a failed program's words an error repeats.
const TAIL: usize = 2048;

/// A program to run, with its arguments.
#[derive(Debug)]
pub struct Run {
    command: Command,
    input: Vec<u8>,
    limit: Option<Duration>,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("starting `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended badly.
    #[error("`{command}` {}{}", ended(status), said(tail))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error, or of its output if it said nothing there.
        tail: String,
    },
    /// It did not end in time; it and all that it started have been killed.
    #[error("`{command}` did not end within {} s and was killed{}", limit.as_secs_f64(), said(tail))]
    TimedOut {
        /// The command line.
        command: String,
        /// The time it had.
        limit: Duration,
        /// The end of what it said.
        tail: String,
    },
}

/// What a program that ended well said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Run {
    /// A program, looked for in PATH, with no arguments and no input.
    pub fn new(program: impl Into<OsString>) -> Run {
        Run { command: Command::new(program.into()), input: Vec::new(), limit: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Run {
        self.command.arg(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Run {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Run {
        self.command.env(name, value.into());
        self
    }

    /// The user and group that the program runs as; it keeps no other groups. Only root can choose.
    pub fn user(mut self, user: u32, group: u32) -> Run {
        self.command.uid(user).gid(group);
        self
    }

    /// What the program reads from standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.input = bytes.into();
        self
    }

    /// Kills the program, and every process of its group, when it has not ended by then.
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = Some(limit);
        self
    }

    /// The command line, quoted where a shell would need it.
    pub fn command_line(&self) -> String {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(|word| quote(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs the program to its end and returns what it said. Streams: both are captured.
    ///
    /// # Errors
    /// When it cannot be started, ends with another status than 0, or does not end in time.
    pub fn capture(mut self) -> Result<Captured, ExecError> {
        let command = self.command_line();
        let start = |source| ExecError::Start { command: command.clone(), source };
        // A group of its own, so that a time-out reaches its children too.
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().map_err(start)?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        if let Some(mut stdin) = child.stdin.take() {
            let input = std::mem::take(&mut self.input);
            // A program may end without reading its input; how it ends tells whether that was wrong.
            thread::spawn(move || stdin.write_all(&input));
        }
        let status = wait(&mut child, self.limit).map_err(start)?;
        let output = Captured { stdout: take(stdout), stderr: take(stderr) };
        match status {
            Some(status) if status.success() => Ok(output),
            Some(status) => Err(ExecError::Failed { command, status, tail: output.tail() }),
            None => Err(ExecError::TimedOut { command, limit: self.limit.unwrap_or_default(), tail: output.tail() }),
        }
    }

    /// As [`Run::capture`], the standard output as text without white space around it.
    ///
    /// # Errors
    /// As [`Run::capture`]; bytes that are no UTF-8 are replaced.
    pub fn text(self) -> Result<String, ExecError> {
        Ok(String::from_utf8_lossy(&self.capture()?.stdout).trim().to_owned())
    }
}

impl Captured {
    /// The end of the standard error, or of the output if that is empty.
    fn tail(&self) -> String {
        let bytes = if self.stderr.iter().all(u8::is_ascii_whitespace) { &self.stdout } else { &self.stderr };
        let cut = &bytes[bytes.len().saturating_sub(TAIL)..];
        String::from_utf8_lossy(cut).trim().to_owned()
    }
}

/// Waits for `child`; kills its group and returns `None` if it takes longer than `limit`.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else { return child.wait().map(Some) };
    let end = std::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = std::time::Instant::now();
        if now >= end {
            if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause.min(end - now));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        let _ = send.send(bytes);
    });
    receive
}

/// What a stream held. A grandchild that went on in a group of its own may keep the stream open: it is not waited for.
fn take(stream: mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    stream.recv_timeout(Duration::from_secs(5)).unwrap_or_default()
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

struct Ended<'a>(&'a ExitStatus);

fn ended(status: &ExitStatus) -> Ended<'_> {
    Ended(status)
}

impl fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "ended with status {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => write!(f, "ended in an unknown way"),
        }
    }
}

fn said(tail: &str) -> String {
    if tail.is_empty() { ", saying nothing".to_owned() } else { format!(": {tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Run {
        Run::new("sh").arg("-c").arg(script)
    }

    #[test]
    fn what_a_program_says_is_captured() {
        assert_eq!(shell("cat; echo err >&2").input("in").capture().unwrap().stdout, b"in");
        assert_eq!(shell("echo ' out '").text().unwrap(), "out");
        assert_eq!(shell("printf \"$WORD\"").env("WORD", "hello").text().unwrap(), "hello");
    }

    #[test]
    fn a_failure_names_command_status_and_words() {
        assert_eq!(
            shell("echo no >&2; exit 3").text().unwrap_err().to_string(),
            "`sh -c 'echo no >&2; exit 3'` ended with status 3: no"
        );
        assert_eq!(
            shell("kill -9 $$").text().unwrap_err().to_string(),
            "`sh -c 'kill -9 $$'` was ended by signal 9, saying nothing"
        );
        assert_eq!(Run::new("/no/such").text().unwrap_err().to_string(), "starting `/no/such`");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let error = shell("echo started; sleep 600 & wait").limit(Duration::from_millis(200)).text().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'echo started; sleep 600 & wait'` did not end within 0.2 s and was killed: started"
        );
    }
}
