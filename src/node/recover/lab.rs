//! Real servers for tests: PostgreSQL, as a user who may run it.

use super::{account::Account, branch::StoppedDatabase};
use crate::exec::{Run, Running};
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The programs of the newest PostgreSQL here; `None` where there is none, and where that is said.
pub fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let found = newest.map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let found = found.filter(|programs| programs.join("postgres").is_file());
    crate::testing::require("postgresql", found.is_some(), "PostgreSQL is not installed");
    found
}

/// A database in a folder of its own.
pub struct Lab {
    pub programs: PathBuf,
    pub account: Account,
    pub folder: tempfile::TempDir,
}

impl Lab {
    /// Makes one; `None` where PostgreSQL is not installed.
    pub fn new() -> Option<Lab> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("pgha-lab").tempdir_in("/tmp").unwrap();
        let mut account = Account::owner_of(folder.path()).unwrap();
        if account.user == 0 {
            // PostgreSQL refuses to run as root: nobody.
            account = Account { user: 65534, group: 65534 };
            account.own(folder.path()).unwrap();
        }
        Some(Lab { programs, account, folder })
    }

    pub fn stopped(&self, name: &str) -> StoppedDatabase {
        StoppedDatabase {
            data: self.data(name),
            programs: self.programs.clone(),
            sockets: self.folder.path().join("private"),
        }
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str) -> Run {
        self.account.run(self.programs.join(name)).env("LC_ALL", "C")
    }

    pub fn initdb(&self, name: &str) {
        let data = self.data(name);
        let run = self.program("initdb").args(["-A", "trust", "-U", "postgres", "-N", "-k", "-D"]).arg(&data);
        run.limit(Duration::from_secs(120)).capture().unwrap();
        let mut text = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        text.push_str(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nmax_wal_senders = 3\n\
             min_wal_size = '32MB'\nmax_wal_size = '64MB'\nwal_keep_size = '160MB'\n",
            self.folder.path().display()
        ));
        fs::write(data.join("postgresql.conf"), text).unwrap();
    }

    /// Copies a database whose server does not run.
    pub fn copy(&self, from: &str, to: &str) {
        Run::new("cp").arg("-a").arg(self.data(from)).arg(self.data(to)).capture().unwrap();
    }

    /// Makes a replica of the server that listens on `port`.
    pub fn follow(&self, name: &str, port: u16) {
        let data = self.data(name);
        fs::write(data.join("standby.signal"), "").unwrap();
        self.account.own(&data.join("standby.signal")).unwrap();
        let conf = data.join("postgresql.conf");
        let text = fs::read_to_string(&conf).unwrap();
        let host = self.folder.path().display();
        fs::write(&conf, format!("{text}primary_conninfo = 'host={host} port={port} user=postgres'\n")).unwrap();
    }

    /// Starts a server and waits until it answers.
    pub fn start(&self, name: &str, port: u16) -> Server<'_> {
        let mut process = self
            .program("postgres")
            .args(["-p", &port.to_string(), "-k"])
            .arg(self.folder.path())
            .arg("-D")
            .arg(self.data(name))
            .start()
            .unwrap();
        if let Some(mut output) = process.stdout() {
            thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        }
        let server = Server { lab: self, process, port };
        server.wait("select 1", "1");
        server
    }
}

/// A server that runs.
pub struct Server<'a> {
    lab: &'a Lab,
    process: Running,
    port: u16,
}

impl Server<'_> {
    fn ask(&self, sql: &str) -> Result<String, crate::exec::ExecError> {
        let host = self.lab.folder.path();
        let run = self.lab.program("psql").args(["-XAtq", "-U", "postgres", "-v", "ON_ERROR_STOP=1"]);
        run.args(["-p", &self.port.to_string(), "-c", sql]).arg("-h").arg(host).limit(Duration::from_secs(60)).text()
    }

    pub fn sql(&self, sql: &str) -> String {
        self.ask(sql).unwrap()
    }

    pub fn wait(&self, sql: &str, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.ask(sql) {
                Ok(answer) if answer == wanted => return,
                other if Instant::now() > deadline => panic!("{sql}: {other:?}"),
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        self.process.signal(Signal::QUIT);
        let _ = self.process.finish(Duration::from_secs(60));
    }

    /// Shuts it down.
    pub fn stop(mut self) {
        self.process.signal(Signal::INT);
        self.process.finish(Duration::from_secs(60)).unwrap();
    }
}

/// The position as a number of bytes.
pub fn position(text: &str) -> crate::node::database::Lsn {
    super::timeline::parse_position(text).unwrap()
}

/// A file of the lab's, by name.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
