//! Runs child processes. No other module starts one.
//!
//! A [`Run`] is an argument vector and what happens to its streams. Every error names the whole command line, how the
//! program ended, and the end of its output. Modules above give each program typed functions of its own.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Read, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Bytes of a failed program's output that an error repeats.
const TAIL: usize = 2048;

/// A program to run, with its arguments and input.
#[derive(Debug)]
pub struct Run {
    command: Command,
    input: Vec<u8>,
    limit: Option<Duration>,
}

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("starting `{command}`")]
    Start { command: String, source: io::Error },
    /// It ended with another status than 0, or by a signal.
    #[error("`{command}` {}{}", ended(status), said(tail))]
    Failed {
        command: String,
        status: ExitStatus,
        /// The end of its standard error, or of its standard output if that is empty.
        tail: String,
    },
    /// It did not end within its time limit; its process group was killed.
    #[error("`{command}` did not end within {} s and was killed{}", limit.as_secs_f64(), said(tail))]
    TimedOut {
        command: String,
        limit: Duration,
        /// The end of its output.
        tail: String,
    },
}

/// The output of a program that ended with status 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Run {
    /// `program`, looked up in PATH, with no arguments and no input.
    pub fn new(program: impl Into<OsString>) -> Run {
        Run { command: Command::new(program.into()), input: Vec::new(), limit: None }
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Run {
        self.command.arg(argument.into());
        self
    }

    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Run {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Run {
        self.command.env(name, value.into());
        self
    }

    /// The user and group that the program runs as; it keeps no other groups. Only root can choose.
    pub fn user(mut self, user: u32, group: u32) -> Run {
        self.command.uid(user).gid(group);
        self
    }

    /// Sets what the program reads from standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.input = bytes.into();
        self
    }

    /// Kills the program's process group when it has not ended after `limit`.
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = Some(limit);
        self
    }

    /// The command line, quoted as a shell needs it.
    pub fn command_line(&self) -> String {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(|word| quote(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs the program to its end. Both output streams are captured.
    ///
    /// # Errors
    /// When it cannot be started, does not end with status 0, or does not end within the limit.
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
            // A program may end without reading its input; its exit status says whether that was wrong.
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

    /// Starts the program and returns while it runs. Streams: standard output is the caller's, who must read it to its end;
    /// the standard error is kept for an error. Neither input nor limit of time are used.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self) -> Result<Running, ExecError> {
        let command = self.command_line();
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().map_err(|source| ExecError::Start { command: command.clone(), source })?;
        let stderr = collect(child.stderr.take());
        Ok(Running { child, command, stderr: Some(stderr) })
    }

    /// As [`Run::capture`]; returns the standard output without white space around it.
    ///
    /// # Errors
    /// As [`Run::capture`]; bytes that are not UTF-8 are replaced.
    pub fn text(self) -> Result<String, ExecError> {
        Ok(String::from_utf8_lossy(&self.capture()?.stdout).trim().to_owned())
    }
}

/// A program that runs. It is killed with its children when the value goes.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    stderr: Option<mpsc::Receiver<Vec<u8>>>,
}

impl Running {
    /// Its standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        if self.ended() {
            return;
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end, at most `limit`, and returns its standard error.
    ///
    /// # Errors
    /// When it ends with another status than 0, or does not end in time and is killed.
    pub fn finish(mut self, limit: Duration) -> Result<String, ExecError> {
        let status = wait(&mut self.child, Some(limit));
        let stderr = self.stderr.take().map(take).unwrap_or_default();
        let tail = Captured { stdout: Vec::new(), stderr }.tail();
        let command = self.command.clone();
        match status.map_err(|source| ExecError::Start { command: command.clone(), source })? {
            Some(status) if status.success() => Ok(tail),
            Some(status) => Err(ExecError::Failed { command, status, tail }),
            None => Err(ExecError::TimedOut { command, limit, tail }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            kill_group(&self.child);
            let _ = self.child.wait();
        }
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
            kill_group(child);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause.min(end - now));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn kill_group(child: &Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
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

/// The bytes of a stream. A grandchild in a group of its own may keep the stream open: nobody waits for it.
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
    use std::time::Instant;

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
    fn a_program_that_was_started_is_read_ended_and_killed() {
        let mut program = shell("echo one; echo two; echo why >&2; exit 3").start().unwrap();
        let mut said = String::new();
        program.stdout().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "one\ntwo\n");
        assert!(program.stdout().is_none());
        let error = program.finish(Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.ends_with("ended with status 3: why"), "{error}");
        let mut program = shell("trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done").start().unwrap();
        // Before it has set the trap, the signal would kill it.
        program.stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
        while !program.ended() {
            program.signal(rustix::process::Signal::INT);
            thread::sleep(Duration::from_millis(20));
        }
        assert!(program.finish(Duration::from_secs(1)).is_ok());
        let program = shell("sleep 600 & wait").start().unwrap();
        let group = rustix::process::Pid::from_raw(program.child.id() as i32).unwrap();
        drop(program);
        // A child that was killed is in its group until init has waited for it.
        let end = Instant::now() + Duration::from_secs(10);
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(Instant::now() < end, "a child of a program that was dropped is still there");
            thread::sleep(Duration::from_millis(5));
        }
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
