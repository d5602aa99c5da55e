//! Runs etcd for a moment, where no other node reaches it: to read what a member has kept, and to found a new incarnation.
//!
//! A member without its quorum answers no question about its keys that waits for the quorum, and a copy of its files cannot
//! be read by anything but etcd. So the keys are read from a copy of its data, on which etcd runs alone (`etcd
//! --force-new-cluster`); the data themselves stay as they are. The new incarnation is founded in a folder of its own and
//! has all its keys before anybody sees it: it is put in its place, by a rename, when it is whole.

use super::{
    account::Account,
    keys::{Contents, Entry},
};
use crate::{
    clock,
    error::UserError,
    etcd::{Client, EtcdError, RangeRequest, Settings},
    exec::Running,
    node::{
        aside::measure,
        etcd_data::{self, EtcdData},
        pki::AUTHORITY_FILE,
    },
    tls::TlsFiles,
};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How long etcd may take to answer: it reads its log and its database before.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
const STOPS_WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
/// For how long the leader's key is this node's, in seconds, before its Patroni takes it up.
const LEADER_FOR: i64 = 600;
/// How many files of etcd's data are counted.
const COUNTED: u64 = 100_000;

/// The program, and how it is run.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// The program.
    pub program: PathBuf,
    /// The folder of the node's certificates; without it, there is no TLS.
    pub tls: Option<PathBuf>,
    /// The address on which nobody else reaches it.
    pub loopback: IpAddr,
    /// The user whom its data belong to.
    pub account: Account,
}

/// etcd while it runs here.
struct Private {
    process: Running,
    client: Client,
    endpoint: String,
}

impl Etcd {
    /// What the member with its data in `data` has kept below `prefixes`. It must not run. Its data stay as they are.
    ///
    /// # Errors
    /// When there is no room for a copy of the data, or etcd cannot read them.
    pub fn read(&self, data: &Path, prefixes: &[String]) -> Result<Contents> {
        let above = data.parent().context("etcd's data have no folder above them")?;
        let size = measure(data, COUNTED);
        let disk = rustix::fs::statvfs(above).with_context(|| format!("looking at {}", above.display()))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < size.bytes + (64 << 20) {
            return Err(UserError::runtime(format!(
                "there is no room in {} for a copy of etcd's data ({size})",
                above.display()
            ))
            .hint("make room, such as by `pgha-node aside remove`")
            .into());
        }
        // If the power fails meanwhile, what is left is listed with what was set aside.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        let copy = tempfile::Builder::new()
            .prefix(&format!("{name}.aside-{}-copy-", clock::stamp(now)))
            .tempdir_in(above)
            .with_context(|| format!("writing in the folder {}", above.display()))?;
        self.account.own(copy.path())?;
        let inside = copy.path().join("data");
        // A link would lead etcd to the data themselves.
        let copying = ["--archive", "--dereference", "--reflink=auto"];
        crate::exec::Run::new("cp").args(copying).arg(data).arg(&inside).capture()?;
        let alone = ["--force-new-cluster".to_owned()];
        let private = self.start(&inside, &alone).context("starting etcd on a copy of its data")?;
        let contents = private.contents(prefixes).context("reading what etcd has kept")?;
        private.stop()?;
        Ok(contents)
    }

    /// Founds a cluster of etcd in the new folder `data`, with the member `name` at the URL `url` and these keys.
    ///
    /// # Errors
    /// When the folder is there already, or etcd does not do it.
    pub fn found(
        &self,
        data: &Path,
        token: &str,
        (name, url): (&str, &str),
        entries: &[Entry],
    ) -> Result<etcd_data::Ids> {
        let doing = || format!("founding a new incarnation of etcd in {}", data.display());
        fs::create_dir(data).with_context(doing)?;
        fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).with_context(doing)?;
        self.account.own(data)?;
        let new = [
            ("--name", name),
            ("--initial-advertise-peer-urls", url),
            ("--initial-cluster", &format!("{name}={url}")),
            ("--initial-cluster-token", token),
            ("--initial-cluster-state", "new"),
        ];
        let new: Vec<String> = new.iter().map(|(option, value)| format!("{option}={value}")).collect();
        let private = self.start(data, &new).with_context(doing)?;
        private.write(entries).with_context(doing)?;
        private.stop()?;
        let expected = etcd_data::ids(token, &[(name.to_owned(), url.to_owned())], name);
        match (EtcdData::look(data), expected) {
            (EtcdData::Data(found), Some(expected)) if found == expected => {}
            (found, _) => bail!("{}: its ids are {found:x?}, not {expected:x?}", doing()),
        }
        sync_all(data)?;
        expected.with_context(doing)
    }

    fn start(&self, data: &Path, options: &[String]) -> Result<Private> {
        let (client_port, peer_port) = (self.port()?, self.port()?);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let at = |port| format!("{scheme}://{}", SocketAddr::new(self.loopback, port));
        let endpoint = at(client_port);
        let mut run = self
            .account
            .run(&self.program)
            .arg(format!("--data-dir={}", data.display()))
            .args(["listen-client-urls", "advertise-client-urls"].map(|option| format!("--{option}={endpoint}")))
            .arg(format!("--listen-peer-urls={}", at(peer_port)))
            .args(["--logger=zap", "--log-level=error", "--quota-backend-bytes=4294967296"])
            .args(options);
        if let Some(folder) = &self.tls {
            let (own, authority) = (folder.join("etcd.pem"), folder.join(AUTHORITY_FILE));
            for peer in ["", "peer-"] {
                run = run
                    .arg(format!("--{peer}cert-file={}", own.display()))
                    .arg(format!("--{peer}key-file={}", own.display()))
                    .arg(format!("--{peer}trusted-ca-file={}", authority.display()))
                    .arg(format!("--{peer}client-cert-auth"));
            }
        }
        let mut process = run.start()?;
        if let Some(mut output) = process.stdout() {
            thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        }
        let client = self.client(&endpoint)?;
        Private { process, client, endpoint }.ready()
    }

    fn client(&self, endpoint: &str) -> Result<Client, EtcdError> {
        let tls = self.tls.as_ref().map_or_else(TlsFiles::default, |folder| {
            let own = folder.join("client.pem");
            TlsFiles { ca: Some(folder.join(AUTHORITY_FILE)), certificate: Some((own.clone(), own)) }
        });
        let (connect, request) = (Duration::from_secs(2), Duration::from_secs(10));
        Client::new(Settings { tls, connect, request, ..Settings::new([endpoint]) })
    }

    /// A port that nobody uses.
    fn port(&self) -> Result<u16> {
        let listener = TcpListener::bind((self.loopback, 0)).context("looking for a free port")?;
        Ok(listener.local_addr()?.port())
    }
}

impl Private {
    /// Waits until it answers.
    fn ready(mut self) -> Result<Private> {
        let deadline = Instant::now() + ANSWERS_WITHIN;
        loop {
            let last = match self.client.status(&self.endpoint) {
                Ok(status) if status.leader != 0 => return Ok(self),
                Ok(_) => "it elects no leader".to_owned(),
                Err(error) => error.to_string(),
            };
            if self.process.ended() {
                let Err(error) = self.process.finish(STOPS_WITHIN) else { bail!("etcd has ended") };
                return Err(error.into());
            }
            ensure!(Instant::now() < deadline, "etcd does not answer: {last}");
            thread::sleep(PAUSE);
        }
    }

    fn contents(&self, prefixes: &[String]) -> Result<Contents> {
        let mut contents = Contents::default();
        for prefix in prefixes {
            let range = self.client.range(&RangeRequest::prefix(prefix.as_str()))?;
            contents.revision = contents.revision.max(range.header.revision);
            contents.entries.extend(range.kvs.into_iter().filter_map(Entry::of));
        }
        contents.entries.sort();
        Ok(contents)
    }

    fn write(&self, entries: &[Entry]) -> Result<()> {
        let lease = self.client.lease_grant(LEADER_FOR)?.id;
        for entry in entries {
            self.client.put(&entry.key, &entry.value, if entry.leased { lease } else { 0 })?;
        }
        let written = self.contents(&[String::from("/")])?.entries;
        let mut expected = entries.to_vec();
        expected.sort();
        ensure!(written == expected, "what was written is not what is there");
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM);
        match self.process.finish(STOPS_WITHIN) {
            Err(error @ crate::exec::ExecError::TimedOut { .. }) => Err(error.into()),
            // It ends by the signal that it was sent.
            _ => Ok(()),
        }
    }
}

/// Writes everything below a folder to the disk.
fn sync_all(folder: &Path) -> Result<()> {
    let doing = || format!("writing {}", folder.display());
    for entry in fs::read_dir(folder).with_context(doing)? {
        let entry = entry.with_context(doing)?;
        if entry.file_type().with_context(doing)?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            fs::File::open(entry.path()).and_then(|file| file.sync_all()).with_context(doing)?;
        }
    }
    crate::files::sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::recover::keys::{Beginning, Names, Recovered};

    /// etcd as the user who runs the tests; `None`, and a word of it, where it is not installed.
    fn etcd(folder: &Path) -> Option<Etcd> {
        let found = crate::exec::Run::new("sh").args(["-c", "command -v etcd"]).text();
        let Ok(program) = found else {
            crate::testing::require("etcd", false, "etcd is not installed");
            return None;
        };
        let account = Account::owner_of(folder).unwrap();
        Some(Etcd { program: program.into(), tls: None, loopback: [127, 0, 0, 1].into(), account })
    }

    fn some_keys() -> Vec<Entry> {
        let entry = |key: &str, value: &str, leased| Entry { key: key.into(), value: value.into(), leased };
        vec![
            entry("/pgha/demo/first", r#"{"node": "pg-1", "system": "77"}"#, false),
            entry("/service/demo/config", r#"{"ttl": 30}"#, false),
            entry("/service/demo/initialize", "77", false),
            entry("/service/demo/leader", "pg-1", true),
        ]
    }

    #[test]
    fn an_incarnation_is_founded_and_read_and_founded_anew() {
        let folder = tempfile::tempdir().unwrap();
        let Some(etcd) = etcd(folder.path()) else { return };
        let (old, new) = (folder.path().join("default"), folder.path().join("recovered-2"));
        let place = ("pg-1", "https://10.0.0.11:2380");
        let first = etcd.found(&old, "feed-1", place, &some_keys()).unwrap();
        assert!(etcd.found(&old, "feed-1", place, &some_keys()).is_err(), "the folder is there");

        let names = Names("demo");
        let prefixes = [names.patroni(), names.own()];
        let before = EtcdData::look(&old);
        let contents = etcd.read(&old, &prefixes).unwrap();
        assert_eq!(contents.entries, some_keys());
        assert!(contents.revision > 4);
        // Reading has changed nothing and left nothing.
        assert_eq!(EtcdData::look(&old), before);
        assert_eq!(etcd.read(&old, &prefixes).unwrap(), contents);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let recovered = Recovered {
            node: "pg-1".into(),
            time: 0,
            incarnation: "2".into(),
            replaces: vec![format!("{:x}", first.cluster)],
            database: None,
        };
        let entries = Beginning { cluster: "demo", recovered: &recovered, end: None }.entries(&contents).unwrap();
        let second = etcd.found(&new, "feed-2", place, &entries).unwrap();
        assert!(second.cluster != first.cluster && second.member != first.member);
        assert_eq!(etcd.read(&new, &prefixes).unwrap().recovered(names), Some(recovered));
    }

    #[test]
    fn data_behind_links_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let Some(etcd) = etcd(folder.path()) else { return };
        let [data, real, log, before] = ["etcd/default", "real", "log", "before"].map(|name| folder.path().join(name));
        fs::create_dir(folder.path().join("etcd")).unwrap();
        etcd.account.own(&folder.path().join("etcd")).unwrap();
        etcd.found(&real, "feed-1", ("pg-1", "https://10.0.0.11:2380"), &some_keys()).unwrap();
        fs::rename(real.join("member/wal"), &log).unwrap();
        std::os::unix::fs::symlink(&log, real.join("member/wal")).unwrap();
        std::os::unix::fs::symlink(&real, &data).unwrap();
        let run = |program: &str, arguments: &[&str], from: &Path| {
            crate::exec::Run::new(program).args(arguments).arg(from).arg(&before).capture()
        };
        run("cp", &["--archive", "--dereference"], &real).unwrap();
        let contents = etcd.read(&data, &[Names("demo").patroni()]).unwrap();
        assert_eq!(contents.entries.len(), 3);
        run("diff", &["--recursive", "--brief"], &real).unwrap();
    }

    #[test]
    fn a_member_of_three_is_read_without_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let Some(etcd) = etcd(folder.path()) else { return };
        // Three members on loopback, of which two are gone for good.
        let ports: Vec<u16> = (0..6).map(|_| etcd.port().unwrap()).collect();
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n]);
        let cluster = (0..3).map(|n| format!("pg-{}={}", n + 1, peer(n))).collect::<Vec<_>>().join(",");
        let client = |n: usize| format!("http://127.0.0.1:{}", ports[3 + n]);
        let data = |n: usize| folder.path().join(format!("data-{n}"));
        let members: Vec<Running> = (0..3)
            .map(|n| {
                let options = [
                    ("name", format!("pg-{}", n + 1)),
                    ("data-dir", data(n).display().to_string()),
                    ("listen-client-urls", client(n)),
                    ("advertise-client-urls", client(n)),
                    ("listen-peer-urls", peer(n)),
                    ("initial-advertise-peer-urls", peer(n)),
                    ("initial-cluster", cluster.clone()),
                    ("log-level", "error".to_owned()),
                    ("logger", "zap".to_owned()),
                ];
                let options = options.map(|(option, value)| format!("--{option}={value}"));
                let mut process = etcd.account.run(&etcd.program).args(options).start().unwrap();
                let mut output = process.stdout().unwrap();
                thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
                process
            })
            .collect();
        let three = Client::new(Settings::new((0..3).map(client))).unwrap();
        let deadline = Instant::now() + ANSWERS_WITHIN;
        while three.put("/service/demo/initialize", "77", 0).is_err() {
            assert!(Instant::now() < deadline, "no quorum");
            thread::sleep(PAUSE);
        }
        for number in 0..300 {
            three.put("/service/demo/history", format!("[{number}]"), 0).unwrap();
        }
        drop(members);
        let contents = etcd.read(&data(2), &["/service/demo/".to_owned()]).unwrap();
        let values: Vec<&str> = contents.entries.iter().map(|entry| entry.value.as_str()).collect();
        // A follower that is killed may lack what it was just being told.
        assert_eq!(values.len(), 2, "{values:?}");
        let number: u32 = values[0].trim_matches(['[', ']']).parse().unwrap();
        assert!(number >= 290 && values[1] == "77", "{values:?}");
    }

    #[test]
    fn damaged_data_are_refused_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let Some(etcd) = etcd(folder.path()) else { return };
        let data = folder.path().join("default");
        etcd.found(&data, "feed-1", ("pg-1", "https://10.0.0.11:2380"), &some_keys()).unwrap();
        let db = data.join("member/snap/db");
        fs::write(&db, "not a database").unwrap();
        let error = format!("{:#}", etcd.read(&data, &["/".to_owned()]).unwrap_err());
        assert!(error.contains("starting etcd on a copy of its data"), "{error}");
        assert_eq!(fs::read(&db).unwrap(), b"not a database");
    }
}
