//! A machine's end of the switch: QEMU's `-netdev stream` over a Unix socket, each frame behind its length in four
//! bytes (QEMU, net/stream.c).

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
};

/// The longest frame that QEMU sends, in bytes (QEMU, include/net/net.h: NET_BUFSIZE).
const LONGEST: usize = 4096 + 65536;
/// Bytes that wait for a machine that does not take them, as a paused one; more are lost.
const MOST_WAITING: usize = 1 << 20;
const PART: usize = 64 << 10;

/// A connection to a machine; nothing blocks.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
    waiting: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> io::Result<Wire> {
        stream.set_nonblocking(true)?;
        Ok(Wire { stream, received: Vec::new(), waiting: Vec::new() })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether something waits for the machine to take it.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what is there and hands on each whole frame.
    ///
    /// # Errors
    /// When the machine is gone, or sends what cannot be frames.
    pub(super) fn receive(&mut self, mut hand_on: impl FnMut(&[u8])) -> io::Result<()> {
        let start = self.received.len();
        self.received.resize(start + PART, 0);
        let read = self.stream.read(&mut self.received[start..]);
        self.received.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut rest = &self.received[..];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > LONGEST {
                return Err(ErrorKind::InvalidData.into());
            }
            let Some((frame, behind)) = behind.split_at_checked(length) else { break };
            hand_on(frame);
            rest = behind;
        }
        let done = self.received.len() - rest.len();
        self.received.drain(..done);
        Ok(())
    }

    /// Puts a frame among what goes to the machine; one too many is lost.
    pub(super) fn put(&mut self, frame: &[u8]) {
        if self.waiting.len() + frame.len() <= MOST_WAITING {
            self.waiting.extend((frame.len() as u32).to_be_bytes());
            self.waiting.extend(frame);
        }
    }

    /// Sends what the machine takes of what waits for it.
    ///
    /// # Errors
    /// When the machine is gone.
    pub(super) fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.waiting.len() {
            match self.stream.write(&self.waiting[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.waiting.drain(..sent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours).unwrap();
        let mut sent = Vec::new();
        for text in ["first", "", "second"] {
            sent.extend((text.len() as u32).to_be_bytes());
            sent.extend(text.as_bytes());
        }
        let mut frames = Vec::new();
        for byte in sent {
            theirs.write_all(&[byte]).unwrap();
            wire.receive(|frame| frames.push(String::from_utf8(frame.to_vec()).unwrap())).unwrap();
        }
        assert_eq!(frames, ["first", "", "second"]);
        theirs.write_all(&[0xff; 4]).unwrap();
        assert_eq!(wire.receive(|_| ()).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_machine_that_takes_nothing_loses_frames_only() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours).unwrap();
        let frame = [7; 1500];
        for _ in 0..2000 {
            wire.put(&frame);
            wire.send().unwrap();
        }
        assert!(wire.has_waiting() && wire.waiting.len() <= MOST_WAITING);
        theirs.set_nonblocking(true).unwrap();
        let mut taken = Vec::new();
        while wire.has_waiting() || theirs.read_to_end(&mut taken).is_ok() {
            let _ = theirs.read_to_end(&mut taken);
            wire.send().unwrap();
        }
        let _ = theirs.read_to_end(&mut taken);
        assert!(taken.len() % 1504 == 0 && taken.len() > MOST_WAITING / 2, "{}", taken.len());
        drop(theirs);
        wire.put(&frame);
        assert!(wire.send().is_err());
    }
}
