//! The whole switch in one process: real sockets, with guests that are small TCP/IP endpoints.

use super::{Forward, HOST, LinkFault, PortSpec, SOCKET, Switch, SwitchSpec, host::Queue, serve::Server, wire::Wire};
use crate::{error, io::socket, model::Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::{
    iface::{Config, Interface, SocketSet},
    socket::tcp,
    time::Instant as StackInstant,
    wire::{EthernetAddress, IpCidr},
};
use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PORT: u16 = 7;
const LONG: Duration = Duration::from_secs(60);

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn ipv6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())
}

fn free_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A switch that runs in a thread of this process.
struct Running {
    folder: TempDir,
    switch: Switch,
    forwards: Vec<SocketAddr>,
}

impl Running {
    /// One with these machines, and a forward to the test port of each of these addresses.
    fn new(machines: &[&str], forwards: &[u8]) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let ports = machines.iter().map(|name| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            PortSpec { name: (*name).to_owned(), folder }
        });
        let spec = SwitchSpec {
            control: folder.path().join("switch.sock"),
            gateway: address(1).into(),
            prefix: 24,
            ports: ports.collect(),
            forwards: forwards.iter().map(|last| forward(*last)).collect(),
        };
        let mut server = Server::new(&spec).unwrap();
        let forwards = server.forwards().iter().map(|forward| forward.host).collect();
        thread::spawn(move || server.run().unwrap());
        Running { switch: Switch::open(&spec.control).unwrap(), folder, forwards }
    }

    fn wire(&self, machine: &str) -> UnixStream {
        let stream = socket::connect(&self.folder.path().join(machine).join(SOCKET)).unwrap();
        self.wait(|status| status.ports[machine].connected);
        stream
    }

    fn guest(&self, machine: &str, addresses: &[u8]) -> Guest {
        Guest::new(self.wire(machine), machine, addresses)
    }

    fn wait(&self, until: impl Fn(&super::Status) -> bool) {
        let end = Instant::now() + LONG;
        loop {
            let status = self.switch.status().unwrap();
            if until(&status) {
                return;
            }
            assert!(Instant::now() < end, "{status:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn forward(last: u8) -> Forward {
    Forward { host: free_port(), guest: (address(last), PORT).into() }
}

/// A guest that sends back what comes to its test port, behind its own name.
struct Guest {
    orders: mpsc::Sender<GuestOrder>,
}

enum GuestOrder {
    Take(u8),
    /// Acknowledged once the guest does not answer for the address any more.
    GiveUp(u8, mpsc::Sender<()>),
}

impl Guest {
    fn new(stream: UnixStream, name: &str, addresses: &[u8]) -> Guest {
        let (orders, receiver) = mpsc::channel();
        addresses.iter().for_each(|last| orders.send(GuestOrder::Take(*last)).unwrap());
        let (name, wire) = (name.to_owned(), Wire::new(stream).unwrap());
        thread::spawn(move || run_guest(&name, wire, &receiver));
        Guest { orders }
    }

    /// Takes an address, as keepalived does: with an announcement.
    fn take(&self, last: u8) {
        self.orders.send(GuestOrder::Take(last)).unwrap();
    }

    /// Gives an address up, and returns when the guest does not answer for it any more.
    fn give_up(&self, last: u8) {
        let (done, wait) = mpsc::channel();
        self.orders.send(GuestOrder::GiveUp(last, done)).unwrap();
        wait.recv_timeout(LONG).unwrap();
    }
}

fn run_guest(name: &str, mut wire: Wire, orders: &mpsc::Receiver<GuestOrder>) {
    let mac = Mac::of(name);
    let mut queue = Queue::default();
    let started = Instant::now();
    let mut interface = Interface::new(Config::new(EthernetAddress(mac.0).into()), &mut queue, StackInstant::ZERO);
    let mut sockets = SocketSet::new(Vec::new());
    for _ in 0..128 {
        let buffer = || tcp::SocketBuffer::new(vec![0; 16 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(PORT).unwrap();
        sockets.add(socket);
    }
    let mut greeted = vec![false; 128];
    loop {
        loop {
            match orders.try_recv() {
                Ok(GuestOrder::Take(last)) => {
                    interface.update_ip_addrs(|addresses| {
                        addresses.push(IpCidr::new(address(last).into(), 24)).unwrap();
                        addresses.push(IpCidr::new(ipv6(last).into(), 64)).unwrap();
                    });
                    wire.put(&announcement(mac, address(last)));
                }
                Ok(GuestOrder::GiveUp(last, done)) => {
                    let gone = [address(last).into(), ipv6(last).into()];
                    interface.update_ip_addrs(|addresses| addresses.retain(|held| !gone.contains(&held.address())));
                    done.send(()).unwrap();
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
        interface.poll(StackInstant::from_micros(started.elapsed().as_micros() as i64), &mut queue, &mut sockets);
        for ((_, socket), greeted) in sockets.iter_mut().zip(&mut greeted) {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            if !*greeted && socket.can_send() {
                socket.send_slice(name.as_bytes()).unwrap();
                *greeted = true;
            }
            while socket.can_recv() && socket.send_capacity() > socket.send_queue() {
                let room = socket.send_capacity() - socket.send_queue();
                let bytes = socket.recv(|bytes| (bytes.len().min(room), bytes[..bytes.len().min(room)].to_vec()));
                socket.send_slice(&bytes.unwrap()).unwrap();
            }
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                socket.close();
            }
        }
        queue.go.drain(..).for_each(|frame| wire.put(&frame));
        let _ = wire.send();
        let pause = Timespec::try_from(Duration::from_millis(2)).unwrap();
        poll(&mut [PollFd::new(wire.stream(), PollFlags::IN)], Some(&pause)).unwrap();
        if wire.receive(|frame| queue.come.push_back(frame.to_vec())).is_err() {
            return;
        }
    }
}

fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    let address = address.octets();
    [&[0xff; 6][..], &mac.0, &[0x08, 0x06], &arp, &mac.0, &address, &[0; 6], &address].concat()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What the guest behind `to` calls itself.
fn name_behind(to: SocketAddr) -> String {
    try_name_behind(to).unwrap()
}

fn try_name_behind(to: SocketAddr) -> std::io::Result<String> {
    let mut name = [0; 4];
    connect(to).read_exact(&mut name)?;
    Ok(String::from_utf8(name.to_vec()).unwrap())
}

#[test]
fn a_hundred_connections_of_the_host_reach_a_guest_at_once() {
    let running = Running::new(&["pg-1"], &[11]);
    let _guest = running.guest("pg-1", &[11]);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| connect(running.forwards[0])).collect();
    for stream in &mut streams {
        let mut name = [0; 4];
        stream.read_exact(&mut name).unwrap();
        assert_eq!(&name, b"pg-1");
    }
    running.wait(|status| status.connections == 100);
    let started = Instant::now();
    let echoes: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(number, mut stream)| {
            thread::spawn(move || {
                let sent: Vec<u8> = (0..100_000u32).map(|at| (at as usize * 31 + number) as u8).collect();
                let mut writer = stream.try_clone().unwrap();
                let copy = sent.clone();
                let writing = thread::spawn(move || {
                    writer.write_all(&copy).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut come = Vec::new();
                stream.read_to_end(&mut come).unwrap();
                writing.join().unwrap();
                assert!(come == sent, "connection {number}: {} bytes", come.len());
            })
        })
        .collect();
    echoes.into_iter().for_each(|echo| echo.join().unwrap());
    println!("20 MB there and back in {:?}", started.elapsed());
    running.wait(|status| status.connections == 0);
}

#[test]
fn an_address_that_moves_is_followed_at_once() {
    let running = Running::new(&["pg-1", "pg-2"], &[10, 11, 12]);
    let first = running.guest("pg-1", &[11, 10]);
    let second = running.guest("pg-2", &[12]);
    let [vip, one, two] = running.forwards[..] else { panic!("{:?}", running.forwards) };
    assert_eq!([one, two, vip].map(name_behind), ["pg-1", "pg-2", "pg-1"]);
    // While both held the address, both would answer for it, and the last answer would count.
    first.give_up(10);
    second.take(10);
    // Less than the minute for which the host's stack remembers where an address was.
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        // A connection that is opened just then may begin with one guest and go on with the other, which resets it.
        match try_name_behind(vip) {
            Ok(name) if name == "pg-2" => break,
            other => assert!(Instant::now() < end, "the address is still where it was: {other:?}"),
        }
    }
}

#[test]
fn a_refused_connection_is_broken_off() {
    let running = Running::new(&["pg-1"], &[]);
    let _guest = running.guest("pg-1", &[11]);
    let closed = Forward { host: free_port(), guest: (address(11), PORT + 1).into() };
    let mut stream = connect(running.switch.forward(closed).unwrap());
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn isolated_machines_hear_each_other_and_the_host_only() {
    let running = Running::new(&["pg-1", "pg-2", "pg-3"], &[]);
    let mut wires = ["pg-1", "pg-2", "pg-3"].map(|name| (name, running.wire(name)));
    // Everybody announces himself; who hears whom?
    let mut heard = || {
        for (last, (name, wire)) in wires.iter_mut().enumerate() {
            let frame = announcement(Mac::of(name), address(11 + last as u8));
            wire.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
            wire.write_all(&frame).unwrap();
        }
        let mut pairs = Vec::new();
        for (name, wire) in &mut wires {
            wire.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut record = [0; 4 + 42];
            let mut others = Vec::new();
            while wire.read_exact(&mut record).is_ok() {
                others.push(format!("{}>{name}", record[4 + 31] - 10));
            }
            others.sort();
            pairs.extend(others);
        }
        pairs.join(" ")
    };
    assert_eq!(heard(), "2>pg-1 3>pg-1 1>pg-2 3>pg-2 1>pg-3 2>pg-3");
    running.switch.isolate(&["pg-1"]).unwrap();
    assert_eq!(heard(), "3>pg-2 2>pg-3");
    let status = running.switch.status().unwrap();
    let cut: Vec<_> = status.links.iter().map(|link| link.between.join("-")).collect();
    assert_eq!(cut, ["pg-1-pg-2", "pg-1-pg-3"]);
    running.switch.heal().unwrap();
    running.switch.fault(["pg-2"], ["pg-3"], LinkFault { loss: 100.0, ..LinkFault::default() }).unwrap();
    assert_eq!(heard(), "2>pg-1 3>pg-1 1>pg-2 1>pg-3");
    running.switch.heal().unwrap();
    assert_eq!(heard(), "2>pg-1 3>pg-1 1>pg-2 3>pg-2 1>pg-3 2>pg-3");
}

#[test]
fn a_machine_that_starts_again_takes_its_port_back() {
    let running = Running::new(&["pg-1"], &[11]);
    let guest = running.guest("pg-1", &[11]);
    assert_eq!(name_behind(running.forwards[0]), "pg-1");
    drop(guest);
    running.wait(|status| !status.ports["pg-1"].connected);
    let _again = running.guest("pg-1", &[11]);
    assert_eq!(name_behind(running.forwards[0]), "pg-1");
}

#[test]
fn ports_come_and_go_while_the_switch_runs() {
    let running = Running::new(&["pg-1"], &[11]);
    let _first = running.guest("pg-1", &[11]);
    let folder = running.folder.path().join("pg-2");
    fs::create_dir(&folder).unwrap();
    let port = PortSpec { name: "pg-2".to_owned(), folder };
    running.switch.attach(port.clone()).unwrap();
    let again = running.switch.attach(port.clone()).unwrap_err();
    assert_eq!(again.to_string(), "the switch has a port `pg-2` already");
    let to = running.switch.forward(forward(12)).unwrap();
    let second = running.guest("pg-2", &[12]);
    assert_eq!((name_behind(running.forwards[0]), name_behind(to)), ("pg-1".to_owned(), "pg-2".to_owned()));
    running.switch.isolate(&["pg-2"]).unwrap();
    running.switch.detach("pg-2", &[address(12).into()]).unwrap();
    drop(second);
    let status = running.switch.status().unwrap();
    assert_eq!(status.ports.keys().collect::<Vec<_>>(), [HOST, "pg-1"]);
    assert_eq!((status.links.len(), status.forwards.len()), (0, 1));
    assert!(TcpStream::connect(to).is_err());
    running.switch.attach(port).unwrap();
    let _second = running.guest("pg-2", &[12]);
    assert_eq!(name_behind(running.switch.forward(forward(12)).unwrap()), "pg-2");
}

#[test]
fn guests_are_reached_over_ipv6_too() {
    let folder = tempfile::tempdir().unwrap();
    let spec = SwitchSpec {
        control: folder.path().join("switch.sock"),
        gateway: "2001:db8::1".parse().unwrap(),
        prefix: 64,
        ports: vec![PortSpec { name: "pg-1".to_owned(), folder: folder.path().to_owned() }],
        forwards: vec![Forward { host: free_port(), guest: (ipv6(11), PORT).into() }],
    };
    let mut server = Server::new(&spec).unwrap();
    let to = server.forwards()[0].host;
    thread::spawn(move || server.run().unwrap());
    let _guest = Guest::new(socket::connect(&folder.path().join(SOCKET)).unwrap(), "pg-1", &[11]);
    assert_eq!(name_behind(to), "pg-1");
}

#[test]
fn wrong_requests_are_told() {
    let running = Running::new(&["pg-1"], &[]);
    let report = |result: anyhow::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error::kind_of(&error), error::ErrorKind::Usage);
        error::report(&error)
    };
    assert_eq!(
        report(running.switch.isolate(&["pg-9"])),
        "error: there is no machine `pg-9`\n\nhint: there are pg-1, and `host`"
    );
    let loss = LinkFault { loss: 101.0, ..LinkFault::default() };
    assert_eq!(report(running.switch.fault(["pg-1"], [HOST], loss)), "error: a loss of 101 % is not possible");
    let taken = TcpListener::bind(free_port()).unwrap();
    let host = taken.local_addr().unwrap();
    let told = report(running.switch.forward(Forward { host, ..forward(11) }).map(drop));
    assert!(told.starts_with(&format!("error: the port {host} is in use\n\nhint: ")), "{told}");
    assert!(Switch::open(Path::new("/no/such/switch.sock")).is_none());
    running.switch.stop().unwrap();
}
