//! confd as a user meets it: the program itself, on real stores.

mod conformance;
mod consul;
mod crashes;
pub mod etcd;
mod faults;
mod fuzz;
mod haproxy;
mod load;
mod program;
mod relay;
mod shipped;

use crate::testing::require;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `is_done`; panics with `what` at the deadline.
pub fn wait_for(what: &str, mut is_done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port on which nobody listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// confd's folders, all in one that goes with it.
pub struct Confd {
    folder: TempDir,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Confd {
    /// Folders without resources; the flags name the store.
    pub fn new(flags: &[&str]) -> Confd {
        let folder = tempfile::tempdir().unwrap();
        for name in ["conf.d", "templates", "out"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Confd { folder, flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), variables: Vec::new() }
    }

    pub fn flag(mut self, flag: &str) -> Confd {
        self.flags.push(flag.to_owned());
        self
    }

    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Confd {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A rendered file.
    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.out(name)).unwrap_or_default()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A resource that renders `template` into `out/NAME`; `keys` and further lines are TOML.
    pub fn resource(self, name: &str, template: &str, keys: &str, lines: &str) -> Confd {
        self.add_resource(name, template, keys, lines);
        self
    }

    pub fn add_resource(&self, name: &str, template: &str, keys: &str, lines: &str) {
        self.write(&format!("templates/{name}.tmpl"), template);
        let dest = self.out(name);
        let text = format!("[template]\nsrc = \"{name}.tmpl\"\ndest = {dest:?}\nkeys = {keys}\n{lines}\n");
        self.write(&format!("conf.d/{name}.toml"), &text);
    }

    pub fn command(&self) -> Command {
        let program = std::env::var_os("PGHA_NODE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pgha-node").into());
        let mut command = Command::new(program);
        command.arg("confd").args(&self.flags).arg("-confdir").arg(self.folder.path());
        command.arg("-state-dir").arg(self.path("state")).arg("-config-file").arg(self.path("confd.toml"));
        command.env_remove("ETCDCTL_PEERS").env_remove("JOURNAL_STREAM");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs with `-onetime`.
    pub fn once(&self) -> Output {
        self.command().arg("-onetime").output().unwrap()
    }

    /// Runs with `-onetime` where `file` is mounted over `place`, for that run alone; nothing if that cannot be.
    pub fn once_with_mount(&self, file: &Path, place: &Path, flags: &[&str]) -> Option<Output> {
        let script = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
        let own = self.command();
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .args([file, place])
            .arg(own.get_program())
            .args(own.get_args())
            .arg("-onetime")
            .args(flags)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("unshare failed") || said.contains("permission denied") {
            require("mounts", false, "no file can be mounted over another");
            return None;
        }
        Some(output)
    }

    /// Runs with `-onetime`, which must succeed.
    pub fn once_well(&self) {
        let output = self.once();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts it in watch mode; what it logs goes to `log`.
    pub fn start(&self) -> Running {
        self.start_with(&[])
    }

    pub fn start_with(&self, variables: &[(&str, &str)]) -> Running {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command();
        command.arg("-watch").stderr(Stdio::from(log)).stdin(Stdio::null()).envs(variables.iter().copied());
        Running { child: command.spawn().unwrap(), log: self.path("log") }
    }

    /// Starts it in watch mode under `strace` with these options, which follows its threads.
    pub fn start_traced(&self, options: &[&str]) -> Running {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let traced = self.command();
        let mut command = Command::new("strace");
        // As a grandchild, so that the program itself is the child that ends.
        command.args(["-D", "-f", "-qqq"]).args(options).arg("--").arg(traced.get_program()).args(traced.get_args());
        command.arg("-watch").stderr(Stdio::from(log)).stdin(Stdio::null());
        for (name, value) in traced.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Running { child: command.spawn().unwrap(), log: self.path("log") }
    }

    /// Waits until a rendered file is right.
    pub fn wait(&self, name: &str, is_right: impl Fn(&str) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !is_right(&self.read(name)) {
            if Instant::now() > end {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                panic!("{name} does not become right; it is:\n{}\nlog:\n{log}", self.read(name));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// confd at work; dropped, it is killed.
pub struct Running {
    pub child: Child,
    log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        kill(self.pid(), signal);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn wait_log(&self, part: &str) {
        wait_for(&format!("`{part}` in the log"), || self.log().contains(part));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the log of confd:\n{}", self.log());
        }
    }
}

pub fn kill(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Reads a file over and over, and remembers if it was ever missing its beginning, its end or its servers.
pub struct Sentinel {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Option<String>>>,
}

/// The template whose file a sentinel watches: one line per member between two marks.
pub const MEMBERS: &str = "# begin\n{{range gets \"/members/*\"}}server {{base .Key}} {{.Value}}\n{{end}}# end\n";

impl Sentinel {
    pub fn watch(path: &Path) -> Sentinel {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
                if !text.starts_with("# begin\n") || !text.ends_with("# end\n") || !text.contains("server ") {
                    return Some(text);
                }
                thread::sleep(Duration::from_millis(2));
            }
            None
        });
        Sentinel { stop, thread: Some(thread) }
    }

    /// Ends the watch; the file must have been good all the time.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let bad = self.thread.take().unwrap().join().unwrap();
        assert_eq!(bad, None, "the file was empty or half written");
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Asks a small HTTP server; the whole answer.
pub fn http_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
