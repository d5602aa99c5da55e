//! A TCP relay that can be cut: for everybody, or for the connections of one process.

use super::wait_for;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// Forwards from its own port to another.
#[derive(Clone)]
pub struct Relay {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    /// Processes whose connections are refused.
    banned: Vec<u32>,
    open: Vec<(Option<u32>, TcpStream, TcpStream)>,
}

impl Relay {
    /// A relay to a port of this machine.
    pub fn to(target: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = Arc::clone(&relay.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accept(stream, target, &state);
            }
        });
        relay
    }

    /// Cuts all connections, and refuses new ones.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        close(&mut state, |_| true);
    }

    /// Cuts the connections of one process, and refuses new ones of it.
    pub fn ban(&self, process: u32) {
        let mut state = self.state.lock().unwrap();
        state.banned.push(process);
        close(&mut state, |owner| owner == Some(process));
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = false;
        state.banned.clear();
    }
}

fn close(state: &mut State, is_concerned: impl Fn(Option<u32>) -> bool) {
    state.open.retain(|(owner, a, b)| {
        if is_concerned(*owner) {
            let _ = a.shutdown(Shutdown::Both);
            let _ = b.shutdown(Shutdown::Both);
            return false;
        }
        true
    });
}

fn accept(stream: TcpStream, target: u16, state: &Arc<Mutex<State>>) {
    let owner = stream.peer_addr().ok().and_then(owner_of);
    let mut locked = state.lock().unwrap();
    if locked.is_cut || owner.is_some_and(|owner| locked.banned.contains(&owner)) {
        return;
    }
    let Ok(upstream) = TcpStream::connect(("127.0.0.1", target)) else { return };
    for (from, to) in [(&stream, &upstream), (&upstream, &stream)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    locked.open.push((owner, stream, upstream));
}

/// The process that holds the socket with this local address.
fn owner_of(address: SocketAddr) -> Option<u32> {
    let mut inode = None;
    // The socket may appear in the table a little later than its connection here.
    for _ in 0..20 {
        inode = fs::read_to_string("/proc/net/tcp").ok()?.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = u16::from_str_radix(fields.get(1)?.split(':').nth(1)?, 16).ok()?;
            (port == address.port() && *fields.get(9)? != "0").then(|| fields[9].to_owned())
        });
        if inode.is_some() {
            break;
        }
        thread::yield_now();
    }
    let wanted = format!("socket:[{}]", inode?);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.find(|process| {
        let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.to_string_lossy() == wanted))
    })
}

#[test]
fn a_relay_forwards_until_it_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = Relay::to(listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    let echo = || {
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).ok()?;
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0]).ok()
    };
    assert!(echo().is_some());
    relay.ban(std::process::id());
    assert!(echo().is_none());
    relay.heal();
    wait_for("the relay to forward again", || echo().is_some());
    relay.cut();
    assert!(echo().is_none());
}
