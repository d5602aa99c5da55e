//! The host's own port of the switch: a small TCP/IP endpoint, through which ports of the host are forwarded to guests.
//!
//! It has the network's gateway address, answers ARP and ping, and opens a connection into the network for each one
//! that the host's programs open to a forwarded port. It routes nothing: guests cannot reach the outside.

use crate::model::Mac;
use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags},
    net::sockopt::set_socket_linger,
};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::{Duration as StackDuration, Instant as StackInstant},
    wire::{EthernetAddress, IpCidr},
};
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// The longest Ethernet frame, its checksum left out.
const FRAME: usize = 1514;
/// What a connection holds on each way, in bytes.
const BUFFER: usize = 128 << 10;
/// A connection ends when the guest does not answer for this long.
const TIMEOUT: StackDuration = StackDuration::from_secs(40);
/// How often an idle connection checks that the guest is still there.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(10);
/// Where the ports begin that connections come from (RFC 6335, 6).
const FIRST_PORT: u16 = 49152;
/// More connections than this are refused.
pub(super) const MOST: usize = 512;

/// The endpoint.
pub(super) struct Host {
    interface: Interface,
    queue: Queue,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    started: Instant,
    next_port: u16,
}

/// Frames between the stack and the switch.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) come: VecDeque<Vec<u8>>,
    pub(super) go: VecDeque<Vec<u8>>,
}

/// A connection of a program of the host with a port of a guest.
struct Connection {
    stream: TcpStream,
    socket: SocketHandle,
    /// The program may have sent something that was not read yet.
    readable: bool,
    /// The program sends nothing more.
    program_done: bool,
    /// The guest sends nothing more, and the program's connection was shut down.
    guest_done: bool,
}

impl Host {
    /// An endpoint with this address.
    pub(super) fn new(address: IpAddr, prefix: u8, seed: u64) -> Host {
        let mut queue = Queue::default();
        let mut config = Config::new(EthernetAddress(Mac::of("host").0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queue, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for the first one.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        let ports = u64::from(u16::MAX - FIRST_PORT);
        Host {
            interface,
            queue,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            started: Instant::now(),
            // A switch that was started again must not meet its own former connections.
            next_port: FIRST_PORT + (seed % ports) as u16,
        }
    }

    /// Takes a frame from the switch.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        if announces_itself(frame) {
            // The stack accepts answers to its own queries only; an address that moved would be unreachable for a
            // minute.
            self.interface.update_ip_addrs(|_| ());
        }
        self.queue.come.push_back(frame.to_vec());
    }

    /// Connects a program of the host with a guest's port.
    ///
    /// # Errors
    /// When there are too many connections.
    pub(super) fn connect(&mut self, stream: TcpStream, target: SocketAddr) -> Result<()> {
        anyhow::ensure!(self.connections.len() < MOST, "there are {MOST} connections already");
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
        let context = self.interface.context();
        socket.connect(context, (target.ip(), target.port()), port).context("opening a connection")?;
        let socket = self.sockets.add(socket);
        self.connections.push(Connection { stream, socket, readable: true, program_done: false, guest_done: false });
        Ok(())
    }

    /// Moves everything on that can move at `now`, and hands the frames that go out to `send`.
    pub(super) fn advance(&mut self, now: Instant, mut send: impl FnMut(&[u8])) {
        let time = self.time(now);
        loop {
            self.interface.poll(time, &mut self.queue, &mut self.sockets);
            let mut moved = false;
            let sockets = &mut self.sockets;
            self.connections.retain_mut(|connection| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
                moved |= connection.carry(socket);
                let gone = connection.is_over(socket);
                if gone {
                    sockets.remove(connection.socket);
                }
                !gone
            });
            if !moved && self.queue.come.is_empty() {
                break;
            }
        }
        for frame in self.queue.go.drain(..) {
            send(&frame);
        }
    }

    /// When [`Host::advance`] has something to do next, if no frame and no byte comes.
    pub(super) fn next_advance(&mut self, now: Instant) -> Option<Duration> {
        let delay = self.interface.poll_delay(self.time(now), &self.sockets)?;
        Some(Duration::from_micros(delay.total_micros()))
    }

    /// The connections whose program's socket is awaited, by number.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (usize, PollFd<'_>)> {
        self.connections.iter().enumerate().filter_map(|(number, connection)| {
            let mut flags = PollFlags::empty();
            if !connection.program_done && !connection.readable {
                flags |= PollFlags::IN;
            }
            if self.sockets.get::<tcp::Socket<'_>>(connection.socket).can_recv() {
                flags |= PollFlags::OUT;
            }
            // One that nothing is awaited of would wake the switch again and again once its program is gone.
            (!flags.is_empty()).then(|| (number, PollFd::new(&connection.stream, flags)))
        })
    }

    /// Says that what was awaited of a connection has come. Numbers hold until the next [`Host::advance`].
    pub(super) fn came(&mut self, number: usize) {
        self.connections[number].readable = true;
    }

    /// The number of connections.
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    fn time(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(now.duration_since(self.started).as_micros() as i64)
    }
}

impl Connection {
    /// Carries bytes both ways; whether any moved.
    fn carry(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while self.readable && !self.program_done && socket.can_send() {
            let read = socket.send(|room| match self.stream.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.program_done = true;
                    socket.close();
                    moved = true;
                }
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => return self.give_up(socket),
            }
        }
        while socket.can_recv() {
            let written = socket.recv(|bytes| match self.stream.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => return self.give_up(socket),
            }
        }
        let finished = matches!(
            socket.state(),
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait
        );
        if finished && !socket.can_recv() && !self.guest_done {
            self.guest_done = true;
            let _ = self.stream.shutdown(Shutdown::Write);
            moved = true;
        }
        moved
    }

    /// Breaks the connection off to the guest, as the program did.
    fn give_up(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        self.program_done = true;
        self.guest_done = true;
        socket.abort();
        true
    }

    /// Whether nothing can come any more; a connection that the guest broke off, refused or left unanswered is then
    /// broken off to the program too.
    fn is_over(&mut self, socket: &tcp::Socket<'_>) -> bool {
        match socket.state() {
            tcp::State::TimeWait => true,
            tcp::State::Closed => {
                if !(self.program_done && self.guest_done) {
                    let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
                }
                true
            }
            _ => false,
        }
    }
}

/// Whether a frame is an ARP announcement (RFC 5227, 3), which says that an address is, or is now, at its sender.
fn announces_itself(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[28..32] == frame[38..42]
}

impl Device for Queue {
    type RxToken<'a> = Come;
    type TxToken<'a> = Go<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Come, Go<'_>)> {
        let frame = self.come.pop_front()?;
        Some((Come(frame), Go(&mut self.go)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Go<'_>> {
        Some(Go(&mut self.go))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

pub(super) struct Come(Vec<u8>);

impl RxToken for Come {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_frame: F) -> R {
        use_frame(&self.0)
    }
}

pub(super) struct Go<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Go<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}
