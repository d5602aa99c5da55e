//! Servers change in a running HAProxy without a reload; sessions go on.

use super::{Confd, free_port, kill, wait_for};
use crate::testing::require_program;
use rustix::process::Signal;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// A server that greets with its name, then echoes.
fn backend(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(&[name.as_bytes(), b"\n"].concat());
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    port
}

/// A session through HAProxy: which server it reached.
struct Session(TcpStream);

impl Session {
    fn open(port: u16) -> Option<(Session, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut name = String::new();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
            name.push(char::from(byte[0]));
        }
        (!name.is_empty()).then_some((Session(stream), name))
    }

    fn is_alive(&mut self) -> bool {
        let mut byte = [0];
        self.0.write_all(b"x").is_ok() && self.0.read_exact(&mut byte).is_ok() && byte == *b"x"
    }
}

struct Haproxy {
    child: Child,
    socket: PathBuf,
}

impl Haproxy {
    fn ask(&self, command: &str) -> String {
        let Ok(mut stream) = UnixStream::connect(&self.socket) else { return String::new() };
        let _ = stream.write_all(format!("{command}\n").as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// The worker's process.
    fn worker(&self) -> String {
        self.ask("show info").lines().find(|line| line.starts_with("Pid:")).unwrap_or_default().to_owned()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        kill(self.child.id() as i32, Signal::TERM);
        let _ = self.child.wait();
    }
}

/// The configuration; `{{` and `}}` are confd's.
fn template(port: u16, socket: &str) -> String {
    format!(
        "global\n  stats socket {socket} mode 600 level admin expose-fd listeners\n\
         defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  default-server inter 100ms fall 2 rise 1\n\
         listen primary\n  bind 127.0.0.1:{port}\n  balance roundrobin\n  maxconn {{{{getv \"/maxconn\" \"100\"}}}}\n\
         {{{{range gets \"/members/*\"}}}}  server {{{{base .Key}}}} {{{{.Value}}}} check\n{{{{end}}}}"
    )
}

#[test]
fn servers_change_without_a_new_worker_and_structure_with_one() {
    if !require_program("haproxy") {
        return;
    }
    let (front, old, new) = (free_port(), backend("old"), backend("new"));
    let confd = Confd::new(&["-backend", "file"]);
    let socket = confd.path("admin.sock");
    let keys = confd.path("keys.yaml").display().to_string();
    let write = |members: &[(&str, u16)], maxconn: u16| {
        let members: Vec<String> = members.iter().map(|(name, port)| format!("{name}: '127.0.0.1:{port}'")).collect();
        confd.write("keys.yaml", &format!("maxconn: {maxconn}\nmembers: {{{}}}\n", members.join(", ")));
    };
    write(&[("a", old)], 100);
    // Before HAProxy runs, the file is made; a reload before that counts as nothing.
    let pid = confd.path("pid");
    let reload = format!(
        "test ! -e {0} || {{ kill -USR2 $(cat {0}) && echo x >> {1}; }}",
        pid.display(),
        confd.path("reloads").display()
    );
    let check = "PATH=$PATH:/usr/sbin haproxy -c -q -f {{.src}}";
    let lines = format!("check_cmd = {check:?}\nreload_cmd = {reload:?}\nhaproxy_socket = {socket:?}");
    confd.add_resource("haproxy.cfg", &template(front, &socket.display().to_string()), "[\"/\"]", &lines);
    let flags = ["-file".to_owned(), keys];
    let start = |confd: &Confd| {
        confd
            .command()
            .args(["-watch"])
            .args(&flags)
            .stderr(Stdio::from(fs::File::create(confd.path("log")).unwrap()))
            .spawn()
            .unwrap()
    };
    assert!(confd.command().arg("-onetime").args(&flags).status().unwrap().success());
    let program = std::env::var("PGHA_HAPROXY").unwrap_or_else(|_| "/usr/sbin/haproxy".to_owned());
    let child = Command::new(program)
        .args(["-W", "-db", "-f"])
        .arg(confd.out("haproxy.cfg"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let haproxy = Haproxy { child, socket };
    fs::write(&pid, haproxy.child.id().to_string()).unwrap();
    wait_for("HAProxy", || Session::open(front).is_some_and(|(_, name)| name == "old"));
    let mut running = start(&confd);
    let worker = haproxy.worker();
    let (mut session, _) = Session::open(front).unwrap();
    let reloads = || fs::read_to_string(confd.path("reloads")).unwrap_or_default().lines().count();

    // Another address: new sessions go there, the old one goes on.
    write(&[("a", new)], 100);
    wait_for("the new address", || Session::open(front).is_some_and(|(_, name)| name == "new"));
    assert!(session.is_alive());
    // One more server, which serves once its check has passed.
    write(&[("a", new), ("b", old)], 100);
    wait_for("the second server", || Session::open(front).is_some_and(|(_, name)| name == "old"));
    assert!(session.is_alive());
    // One fewer: its session goes on, new ones do not reach it.
    let (mut on_b, name) = loop {
        let (session, name) = Session::open(front).unwrap();
        if name == "old" {
            break (session, name);
        }
    };
    assert_eq!(name, "old");
    write(&[("a", new)], 100);
    confd.wait("haproxy.cfg", |text| !text.contains("server b"));
    wait_for("no session to the server that is gone", || {
        (0..10).all(|_| Session::open(front).is_some_and(|(_, name)| name == "new"))
    });
    assert!(session.is_alive() && on_b.is_alive());
    drop(on_b);
    // And it comes back, though it lingers.
    write(&[("a", new), ("b", old)], 100);
    wait_for("the second server again", || Session::open(front).is_some_and(|(_, name)| name == "old"));
    assert_eq!(
        (haproxy.worker(), reloads()),
        (worker.clone(), 0),
        "{}",
        fs::read_to_string(confd.path("log")).unwrap()
    );

    // A change of structure is a reload.
    write(&[("a", new), ("b", old)], 200);
    wait_for("the reload", || reloads() == 1);
    wait_for("the new worker", || !haproxy.worker().is_empty() && haproxy.worker() != worker);
    assert!(session.is_alive());
    // And after it, the socket serves again.
    let worker = haproxy.worker();
    write(&[("b", old)], 200);
    wait_for("only the second server", || (0..10).all(|_| Session::open(front).is_some_and(|(_, name)| name == "old")));
    assert_eq!((haproxy.worker(), reloads()), (worker, 1));
    running.kill().unwrap();
    running.wait().unwrap();
}

/// A service manager drops the reload of a service that is starting, which may have read the file before the change.
#[test]
fn a_reload_is_repeated_until_its_reader_can_be_told() {
    let confd = Confd::new(&["-backend", "file"]);
    let (started, reloads) = (confd.path("started"), confd.path("reloads"));
    let reload = format!("echo x >> {}; [ -e {} ] || exit 75", reloads.display(), started.display());
    confd.write("keys.yaml", "name: a\n");
    confd.add_resource("haproxy.cfg", "{{getv \"/name\"}}\n", "[\"/\"]", &format!("reload_cmd = {reload:?}"));
    let keys = confd.path("keys.yaml").display().to_string();
    struct Running(Child);
    impl Drop for Running {
        fn drop(&mut self) {
            kill(self.0.id() as i32, Signal::TERM);
            let _ = self.0.wait();
        }
    }
    let _running = Running(confd.command().args(["-watch", "-file", &keys]).stderr(Stdio::null()).spawn().unwrap());
    let count = || fs::read_to_string(&reloads).unwrap_or_default().lines().count();
    wait_for("the reload to be repeated", || count() >= 2);
    fs::write(&started, "").unwrap();
    // One more is due, unless the last one was just at work.
    thread::sleep(Duration::from_secs(5));
    let last = count();
    thread::sleep(Duration::from_secs(5));
    assert_eq!(count(), last);
}
