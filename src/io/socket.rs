//! Unix sockets at paths of any length, and JSON lines over them.
//!
//! The address of a Unix socket has at most 107 bytes (unix(7)), which a deep path exceeds, so sockets are reached
//! through the open folder. QEMU cannot do that; it is started in the folder and gets bare names.

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The longest line that a peer may send, in bytes. A guest sends a whole file in one line.
const LONGEST: usize = 64 << 20;

/// Connects to the socket `path`.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_folder, short) = short(path)?;
    UnixStream::connect(short)
}

/// Listens on the socket `path`. A socket that a former listener left is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_folder, short) = short(path)?;
    match UnixListener::bind(&short) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && UnixStream::connect(&short).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(&short)
        }
        other => other,
    }
}

/// The folder of `path`, open, and a short path through it.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, short))
}

/// A connection over which both sides send JSON values, one a line.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: UnixStream) -> Lines {
        Lines { stream, received: Vec::new() }
    }

    /// The connection itself.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends `value` behind the bytes `before`, within 10 s.
    pub(crate) fn send(&mut self, before: &[u8], value: &serde_json::Value) -> Result<()> {
        let mut line = before.to_vec();
        serde_json::to_writer(&mut line, value)?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        self.stream.write_all(&line).context("sending")
    }

    /// The next line, without its end; `None` if none came until `deadline`.
    ///
    /// # Errors
    /// When the peer goes away.
    pub(crate) fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.received[seen..].iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(seen + end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(line.len() - 1);
                return Ok(Some(line));
            }
            seen = self.received.len();
            if seen > LONGEST {
                bail!("a line of more than {LONGEST} bytes came");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut part = [0; 16 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return Err(anyhow!("the other side has gone away")),
                Ok(count) => self.received.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }

    /// The next value; `None` if none came until `deadline`.
    ///
    /// # Errors
    /// When the peer goes away or sends something that is not JSON.
    pub(crate) fn value(&mut self, deadline: Instant) -> Result<Option<serde_json::Value>> {
        loop {
            let Some(line) = self.line(deadline)? else { return Ok(None) };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let value = serde_json::from_slice(&line);
            return value
                .map(Some)
                .with_context(|| format!("no JSON came: {}", String::from_utf8_lossy(&line[..line.len().min(200)])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_socket_may_lie_deeper_than_its_address_can_say() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a-long-name-of-a-folder".repeat(9));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        drop(listen(&path).unwrap());
        assert!(connect(&path).is_err(), "nobody listens any more");
        let listener = listen(&path).unwrap();
        connect(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
    }

    #[test]
    fn values_come_line_by_line_however_they_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(ours);
        let soon = || Instant::now() + Duration::from_millis(50);
        theirs.write_all(b"{\"a\":1}\r\n\n{\"b\"").unwrap();
        assert_eq!(lines.value(soon()).unwrap(), Some(json!({"a": 1})));
        assert_eq!(lines.value(soon()).unwrap(), None);
        theirs.write_all(b":2}\n[]\n").unwrap();
        assert_eq!(lines.value(soon()).unwrap(), Some(json!({"b": 2})));
        assert_eq!(lines.value(soon()).unwrap(), Some(json!([])));
        theirs.write_all(b"what?\n").unwrap();
        assert!(lines.value(soon()).unwrap_err().to_string().contains("what?"));
        drop(theirs);
        assert!(lines.value(soon()).unwrap_err().to_string().contains("gone away"));
    }
}
