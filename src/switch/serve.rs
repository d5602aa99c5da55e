//! The switch as a process with its sockets.

use super::{
    HOST, LinkFault, PortSpec, SOCKET, SwitchSpec,
    control::{Answer, Forward, LinkStatus, PortStatus, Request, Status},
    fabric::{Fabric, Port},
    host::Host,
    wire::Wire,
};
use crate::{
    error::{UserError, report},
    io::socket::{self, Lines},
    model::Mac,
    reexec,
};
use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{self, BufRead as _, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _},
    net::{IpAddr, TcpListener},
    os::unix::net::UnixListener,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The host's port of the fabric; the machines' follow.
const HOST_PORT: Port = 0;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often one wire is read before the others have their turn.
const READS: usize = 16;

/// A request, and where its answer goes.
type PendingRequest = (Request, mpsc::Sender<Answer>);

/// Serves the switch that standard input describes, until it is told to end.
pub(crate) fn serve() -> ExitCode {
    let started = Server::start();
    let answer = match &started {
        Ok(server) => Answer::Ready(server.forwards()),
        Err(error) => Answer::Wrong(format!("{error:#}"), hint(error)),
    };
    let told = serde_json::to_string(&answer).map_err(io::Error::other).and_then(|line| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    });
    match started.and_then(|mut server| {
        told.context("reporting that the switch is ready")?;
        server.run()
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => reexec::complain(&error),
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<UserError>()).and_then(|fault| fault.hint.clone())
}

/// A machine's port.
struct Attached {
    name: String,
    /// Where its machine connects; `None` once it was detached.
    listener: Option<UnixListener>,
    wire: Option<Wire>,
}

/// Everything that the thread of the switch owns.
pub(super) struct Server {
    fabric: Fabric,
    host: Host,
    ports: Vec<Attached>,
    forwards: Vec<(TcpListener, Forward)>,
    requests: mpsc::Receiver<PendingRequest>,
    wake: PipeReader,
    control: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Result<Server> {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).context("reading the switch's description")?;
        Server::new(&serde_json::from_str(&line).context("reading the switch's description")?)
    }

    /// Makes all sockets.
    pub(super) fn new(spec: &SwitchSpec) -> Result<Server> {
        let control = socket::listen(&spec.control)
            .with_context(|| format!("listening on the control socket {}", spec.control.display()))?;
        let forwards = spec.forwards.iter().map(|forward| listen(*forward)).collect::<Result<_>>()?;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let (wake, waker) = io::pipe().context("making a pipe")?;
        let (sender, requests) = mpsc::channel();
        let control = Some(thread::spawn(move || receive(&control, &sender, waker)));
        let mut server = Server {
            fabric: Fabric::new(seed),
            host: Host::new(spec.gateway, spec.prefix, seed),
            ports: Vec::new(),
            forwards,
            requests,
            wake,
            control,
        };
        server.fabric.add_port();
        spec.ports.iter().try_for_each(|port| server.attach(port))?;
        Ok(server)
    }

    /// Where the forwards listen.
    pub(super) fn forwards(&self) -> Vec<Forward> {
        self.forwards.iter().map(|(_, forward)| *forward).collect()
    }

    /// Serves until told to end.
    pub(super) fn run(&mut self) -> Result<()> {
        loop {
            let woken = self.wait()?;
            if woken && self.obey() {
                // The answer must have gone out before the process ends.
                let _ = self.control.take().map(thread::JoinHandle::join);
                return Ok(());
            }
            self.accept();
            self.receive();
            self.switch();
            self.send();
        }
    }

    /// Waits until there is something to do; whether that is a request.
    fn wait(&mut self) -> Result<bool> {
        let now = Instant::now();
        let release = self.fabric.next_release().map(|at| at.saturating_duration_since(now));
        let limit = [release, self.host.next_advance(now)].into_iter().flatten().min();
        let limit = limit.map(Timespec::try_from).transpose().context("waiting")?;
        let mut awaited = vec![PollFd::new(&self.wake, PollFlags::IN)];
        for port in &self.ports {
            awaited.extend(port.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
            if let Some(wire) = &port.wire {
                let out = if wire.has_waiting() { PollFlags::OUT } else { PollFlags::empty() };
                awaited.push(PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(wire.stream()), PollFlags::IN | out));
            }
        }
        awaited.extend(self.forwards.iter().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)));
        let first = awaited.len();
        let mut numbers = Vec::new();
        for (number, connection) in self.host.awaited() {
            numbers.push(number);
            awaited.push(connection);
        }
        match poll(&mut awaited, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting"),
        }
        let woken = !awaited[0].revents().is_empty();
        let came: Vec<usize> = numbers
            .into_iter()
            .zip(&awaited[first..])
            .filter(|(_, connection)| !connection.revents().is_empty())
            .map(|(number, _)| number)
            .collect();
        came.into_iter().for_each(|number| self.host.came(number));
        Ok(woken)
    }

    /// Accepts waiting machines and programs of the host.
    fn accept(&mut self) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            if let Some(Ok((stream, _))) = port.listener.as_ref().map(UnixListener::accept) {
                // A machine that was started again takes the place of its former self.
                port.wire = Wire::new(stream).ok();
                self.fabric.forget(index + 1);
            }
        }
        for (listener, forward) in &self.forwards {
            while let Ok((stream, _)) = listener.accept() {
                // Dropping the stream closes the program's connection.
                if let Err(error) = self.host.connect(stream, forward.guest) {
                    reexec::complain(&error.context(format!("forwarding {} to {}", forward.host, forward.guest)));
                }
            }
        }
    }

    /// Takes frames from the machines.
    fn receive(&mut self) {
        let now = Instant::now();
        let mut going = Going::default();
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let Some(wire) = &mut port.wire else { continue };
            let mut lost = false;
            for _ in 0..READS {
                let mut some = false;
                let read = wire.receive(|frame| {
                    some = true;
                    self.fabric.receive(now, index + 1, frame, &mut |to, frame| going.put(to, frame));
                });
                lost |= read.is_err();
                if lost || !some {
                    break;
                }
            }
            if lost {
                port.wire = None;
                self.fabric.forget(index + 1);
            }
        }
        self.deliver(going);
    }

    /// Lets the host's endpoint work, and out what was held back.
    fn switch(&mut self) {
        let now = Instant::now();
        let mut going = Going::default();
        self.fabric.release(now, &mut |to, frame| going.put(to, frame));
        self.deliver(going);
        let mut going = Going::default();
        let fabric = &mut self.fabric;
        self.host.advance(now, |frame| fabric.receive(now, HOST_PORT, frame, &mut |to, frame| going.put(to, frame)));
        self.deliver(going);
    }

    fn deliver(&mut self, going: Going) {
        for (to, frame) in going.0 {
            if to == HOST_PORT {
                self.host.receive(&frame);
            } else if let Some(wire) = &mut self.ports[to - 1].wire {
                wire.put(&frame);
            }
        }
    }

    fn send(&mut self) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            if port.wire.as_mut().is_some_and(|wire| wire.send().is_err()) {
                port.wire = None;
                self.fabric.forget(index + 1);
            }
        }
    }

    /// Carries out requests; returns whether one was to end.
    fn obey(&mut self) -> bool {
        // One byte for each request.
        let _ = self.wake.read(&mut [0]);
        let Ok((request, answer)) = self.requests.recv() else { return true };
        let stop = request == Request::Stop;
        let done = self.answer(request).unwrap_or_else(|error| Answer::Wrong(format!("{error:#}"), hint(&error)));
        let _ = answer.send(done);
        stop
    }

    fn answer(&mut self, request: Request) -> Result<Answer> {
        match request {
            Request::Status => return Ok(Answer::Status(self.status())),
            Request::Fault { a, b, fault } => self.set_faults(&a, &b, fault)?,
            Request::Heal => self.fabric.heal(),
            Request::Forward(forward) => {
                let (listener, forward) = listen(forward)?;
                self.forwards.push((listener, forward));
                return Ok(Answer::Ready(vec![forward]));
            }
            Request::Attach(port) => self.attach(&port)?,
            Request::Detach { name, addresses } => self.detach(&name, &addresses)?,
            Request::Stop => {}
        }
        Ok(Answer::Done)
    }

    /// Makes a port for a machine.
    fn attach(&mut self, port: &PortSpec) -> Result<()> {
        let name = &port.name;
        let there = self.ports.iter().filter(|port| port.listener.is_some()).map(|port| port.name.as_str());
        if let Some(other) = there.chain([HOST]).find(|other| Mac::of(other) == Mac::of(name)) {
            let message = match other == name {
                true => format!("the switch has a port `{name}` already"),
                false => format!("the machines `{other}` and `{name}` would have one hardware address"),
            };
            return Err(UserError::usage(message).hint("give the machine another name").into());
        }
        let path = port.folder.join(SOCKET);
        let listener = socket::listen(&path).with_context(|| format!("listening on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        self.ports.push(Attached { name: name.clone(), listener: Some(listener), wire: None });
        self.fabric.add_port();
        Ok(())
    }

    /// Takes a machine's port away; its place stays empty, so that no other port changes its own.
    fn detach(&mut self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let port = self.port(name)?;
        anyhow::ensure!(port != HOST_PORT, "the host's port stays");
        let attached = &mut self.ports[port - 1];
        (attached.listener, attached.wire) = (None, None);
        self.fabric.remove_port(port);
        self.forwards.retain(|(_, forward)| !addresses.contains(&forward.guest.ip()));
        Ok(())
    }

    fn set_faults(&mut self, a: &[String], b: &[String], fault: LinkFault) -> Result<()> {
        if !(0.0..=100.0).contains(&fault.loss) {
            return Err(UserError::usage(format!("a loss of {} % is not possible", fault.loss)).into());
        }
        let ports = |names: &[String]| names.iter().map(|name| self.port(name)).collect::<Result<Vec<Port>>>();
        let (a, b) = (ports(a)?, ports(b)?);
        for a in a {
            b.iter().filter(|b| **b != a).for_each(|b| self.fabric.set_fault(a, *b, fault));
        }
        Ok(())
    }

    fn port(&self, name: &str) -> Result<Port> {
        if name == HOST {
            return Ok(HOST_PORT);
        }
        let is = |port: &Attached| port.name == name && port.listener.is_some();
        let found = self.ports.iter().position(is).map(|index| index + 1);
        found.ok_or_else(|| {
            let there = self.ports.iter().filter(|port| port.listener.is_some());
            let names: Vec<String> = there.map(|port| format!("{}, ", port.name)).collect();
            let hint = format!("there are {}and `{HOST}`", names.concat());
            anyhow!(UserError::usage(format!("there is no machine `{name}`")).hint(hint))
        })
    }

    fn name(&self, port: Port) -> &str {
        if port == HOST_PORT { HOST } else { &self.ports[port - 1].name }
    }

    fn status(&self) -> Status {
        let port = |port: Port, connected| {
            let name = self.name(port).to_owned();
            let mac = Mac::of(&name).to_string();
            (name, PortStatus { connected, mac, counters: self.fabric.counters(port) })
        };
        let there = self.ports.iter().enumerate().filter(|(_, at)| at.listener.is_some());
        let machines = there.map(|(index, at)| port(index + 1, at.wire.is_some()));
        let links = self.fabric.faults().map(|(a, b, fault)| {
            let between = [self.name(a).to_owned(), self.name(b).to_owned()];
            LinkStatus { between, fault }
        });
        Status {
            ports: machines.chain([port(HOST_PORT, true)]).collect(),
            links: links.collect(),
            forwards: self.forwards(),
            connections: self.host.connections(),
        }
    }
}

/// Frames on their way to ports.
#[derive(Default)]
struct Going(Vec<(Port, Vec<u8>)>);

impl Going {
    fn put(&mut self, to: Port, frame: &[u8]) {
        self.0.push((to, frame.to_vec()));
    }
}

/// Opens the host's side of a forward.
fn listen(forward: Forward) -> Result<(TcpListener, Forward)> {
    let listener = TcpListener::bind(forward.host).map_err(|error| {
        let host = forward.host;
        match error.kind() {
            ErrorKind::AddrInUse => anyhow!(
                UserError::usage(format!("the port {host} is in use"))
                    .hint("stop the program that listens there (`ss -ltnp` shows it), or choose another port")
            ),
            ErrorKind::PermissionDenied => {
                anyhow!(
                    UserError::usage(format!("only root may listen on the port {host}"))
                        .hint("choose a port from 1024 on")
                )
            }
            _ => anyhow::Error::new(error).context(format!("listening on {host}")),
        }
    })?;
    listener.set_nonblocking(true)?;
    let host = listener.local_addr().context("finding the chosen port")?;
    Ok((listener, Forward { host, ..forward }))
}

/// Takes requests from the control socket, one client after the other, and wakes the switch for each.
fn receive(control: &UnixListener, requests: &mpsc::Sender<PendingRequest>, mut waker: PipeWriter) {
    for stream in control.incoming().flatten() {
        let mut lines = Lines::new(stream);
        // A client without a request only checked that the switch is there.
        let Ok(Some(request)) = lines.value(Instant::now() + PATIENCE) else { continue };
        let mut stop = false;
        let answer = match serde_json::from_value::<Request>(request) {
            Err(error) => Answer::Wrong(format!("the request is not understood: {error}"), None),
            Ok(request) => {
                stop = request == Request::Stop;
                let (sender, answer) = mpsc::channel();
                if requests.send((request, sender)).is_err() || waker.write_all(&[1]).is_err() {
                    return;
                }
                let Ok(answer) = answer.recv() else { return };
                answer
            }
        };
        if let Err(error) = serde_json::to_value(&answer).map_err(Into::into).and_then(|it| lines.send(&[], &it)) {
            reexec::complain(&anyhow!(report(&error)));
        }
        if stop {
            return;
        }
    }
}
