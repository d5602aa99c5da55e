//! Real etcd processes on loopback, and the client against them.

use super::{free_port, kill, relay::Relay, wait_for};
use crate::testing::require_program;
use pgha_image::{
    etcd::{Client, Compare, Event, Next, Op, RangeRequest, Settings},
    tls::TlsFiles,
};
use rustix::process::Signal;
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A cluster; dropped, it is killed.
pub struct Cluster {
    pub members: Vec<Member>,
    folder: TempDir,
    extra: Vec<String>,
    tls: Option<Tls>,
}

pub struct Member {
    pub name: String,
    pub client_port: u16,
    peer_port: u16,
    /// What the others reach this member through.
    pub peer_relay: Relay,
    child: Option<Child>,
}

/// A CA with what it signed for etcd.
pub struct Tls {
    folder: TempDir,
}

impl Tls {
    /// A new CA with a server certificate and a client certificate; these have no Common Name.
    pub fn new() -> Tls {
        let tls = Tls { folder: tempfile::tempdir().unwrap() };
        tls.renew();
        tls
    }

    /// Makes everything again, the CA too.
    pub fn renew(&self) {
        use rcgen::{
            BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        };
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name = DistinguishedName::new();
        ca.distinguished_name.push(rcgen::DnType::OrganizationName, "test");
        let ca_key = KeyPair::generate().unwrap();
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        self.write("ca.pem", &ca_certificate.pem());
        for (name, usages) in [
            ("server", &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth][..]),
            ("client", &[ExtendedKeyUsagePurpose::ClientAuth]),
        ] {
            let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            params.distinguished_name = DistinguishedName::new();
            params.extended_key_usages = usages.to_vec();
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            self.write(&format!("{name}.pem"), &certificate.pem());
            self.write(&format!("{name}-key.pem"), &key.serialize_pem());
        }
    }

    fn write(&self, name: &str, text: &str) {
        // As a rotation should: the new file takes the old one's place.
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn client_files(&self) -> TlsFiles {
        TlsFiles {
            ca: Some(self.path("ca.pem")),
            certificate: Some((self.path("client.pem"), self.path("client-key.pem"))),
        }
    }
}

impl Cluster {
    /// A cluster of `count` members; nothing if etcd is not installed.
    pub fn start(count: usize) -> Option<Cluster> {
        Cluster::start_with(count, None, &[])
    }

    pub fn start_with(count: usize, tls: Option<Tls>, extra: &[&str]) -> Option<Cluster> {
        if !require_program("etcd") {
            return None;
        }
        let members = (0..count).map(|number| {
            let peer_port = free_port();
            let name = format!("m{number}");
            Member { name, client_port: free_port(), peer_port, peer_relay: Relay::to(peer_port), child: None }
        });
        let mut cluster = Cluster {
            members: members.collect(),
            folder: tempfile::tempdir().unwrap(),
            extra: extra.iter().map(|flag| (*flag).to_owned()).collect(),
            tls,
        };
        for number in 0..count {
            cluster.launch(number);
        }
        let client = cluster.client();
        wait_for("etcd to answer", || client.get("x").is_ok());
        Some(cluster)
    }

    pub fn data(&self, number: usize) -> PathBuf {
        self.folder.path().join(&self.members[number].name)
    }

    fn scheme(&self) -> &str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Starts a member, on its data if it has any.
    pub fn launch(&mut self, number: usize) {
        let peers =
            self.members.iter().map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_relay.port));
        let peers = peers.collect::<Vec<_>>().join(",");
        let member = &self.members[number];
        let client = format!("{}://127.0.0.1:{}", self.scheme(), member.client_port);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("{}.log", member.name)));
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--initial-cluster", &peers, "--logger", "zap"]);
        command.arg("--data-dir").arg(self.data(number));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", member.peer_port)]);
        command.args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{}", member.peer_relay.port)]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]).args(&self.extra);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.path("ca.pem"));
            command.arg("--cert-file").arg(tls.path("server.pem")).arg("--key-file").arg(tls.path("server-key.pem"));
        }
        let child =
            command.stderr(Stdio::from(log.unwrap())).stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        self.members[number].child = Some(child);
    }

    /// Kills a member at once.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn pid(&self, number: usize) -> u32 {
        self.members[number].child.as_ref().unwrap().id()
    }

    pub fn freeze(&self, number: usize) {
        kill(self.pid(number) as i32, Signal::STOP);
    }

    pub fn thaw(&self, number: usize) {
        kill(self.pid(number) as i32, Signal::CONT);
    }

    /// Cuts a member off from the others; clients still reach it.
    pub fn isolate(&self, number: usize) {
        let own = self.pid(number);
        for (other, member) in self.members.iter().enumerate() {
            if other == number { member.peer_relay.cut() } else { member.peer_relay.ban(own) }
        }
    }

    pub fn heal(&self) {
        self.members.iter().for_each(|member| member.peer_relay.heal());
    }

    pub fn url(&self, number: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.members[number].client_port)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.members.len()).map(|number| self.url(number)).collect()
    }

    pub fn settings(&self) -> Settings {
        let tls = self.tls.as_ref().map(Tls::client_files).unwrap_or_default();
        Settings { tls, ..Settings::new(self.urls()) }
    }

    pub fn client(&self) -> Client {
        Client::new(self.settings()).unwrap()
    }

    pub fn tls(&self) -> &Tls {
        self.tls.as_ref().unwrap()
    }

    /// The number of the leader.
    pub fn leader(&self) -> usize {
        let client = self.client();
        let mut found = None;
        wait_for("a leader", || {
            found = (0..self.members.len()).find(|number| {
                let status = client.status(&self.url(*number));
                status.is_ok_and(|status| status.leader != 0 && status.leader == status.header.member_id)
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Flags that point confd to all members.
    pub fn flags(&self) -> Vec<String> {
        let nodes = self.urls().into_iter().flat_map(|url| ["-node".to_owned(), url]);
        let mut flags: Vec<String> = ["-backend", "etcdv3"].map(str::to_owned).into_iter().chain(nodes).collect();
        if let Some(tls) = &self.tls {
            for (flag, file) in
                [("-client-ca-keys", "ca.pem"), ("-client-cert", "client.pem"), ("-client-key", "client-key.pem")]
            {
                flags.extend([flag.to_owned(), tls.path(file).display().to_string()]);
            }
        }
        flags
    }

    /// Turns authentication on: users root and `confd`, who may use `/`; passwords as the names.
    pub fn protect(&self) -> (Client, Client) {
        let open = self.client();
        open.role_add("root", "\0").unwrap();
        open.role_add("confd", "/").unwrap();
        open.user_add("root", "root", "root").unwrap();
        open.user_add("confd", "confd", "confd").unwrap();
        open.auth_enable().unwrap();
        let user =
            |name: &str| Client::new(Settings { user: Some((name.into(), name.into())), ..self.settings() }).unwrap();
        (user("root"), user("confd"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
            if std::thread::panicking() {
                let path = self.folder.path().join(format!("{}.log", self.members[number].name));
                let log = fs::read_to_string(path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(3).collect();
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("{}: {tail:#?}\n", self.members[number].name).as_bytes(),
                );
            }
        }
    }
}

pub fn as_strs(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[test]
fn keys_transactions_and_leases_work() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let first = client.put("/a/x", "1", 0).unwrap();
    client.put("/a/y", [0xff, 0], 0).unwrap();
    client.put("/b", "3", 0).unwrap();
    let kv = client.get("/a/x").unwrap().unwrap();
    assert_eq!((kv.value.as_slice(), kv.mod_revision, kv.version), (&b"1"[..], first, 1));
    assert_eq!(client.get("/none").unwrap(), None);
    let all = client.range(&RangeRequest::prefix("/a/")).unwrap();
    assert_eq!((all.kvs.len(), all.count, all.kvs[1].value.as_slice()), (2, 2, &[0xff, 0][..]));
    let old = client.range(&RangeRequest { revision: first, ..RangeRequest::prefix("/") }).unwrap();
    assert_eq!(old.kvs.len(), 1);
    let lock = |value: &str| {
        let put = Op::Put(b"/lock".to_vec(), value.into(), 0);
        client.txn(&[Compare::Missing(b"/lock".to_vec())], &[put], &[Op::Range(RangeRequest::key("/lock"))]).unwrap()
    };
    assert!(lock("me").succeeded);
    let lost = lock("you");
    assert!(!lost.succeeded);
    assert_eq!(lost.responses[0].range.as_ref().unwrap().kvs[0].value, b"me");
    let swap = |old: &str| {
        let compare = Compare::Value(b"/lock".to_vec(), old.into());
        client.txn(&[compare], &[Op::Delete(b"/lock".to_vec())], &[]).unwrap().succeeded
    };
    assert!(!swap("you") && swap("me"));
    assert_eq!(client.delete(&RangeRequest::prefix("/a/")).unwrap(), 2);

    let lease = client.lease_grant(60).unwrap();
    client.put("/leased", "x", lease.id).unwrap();
    assert_eq!(client.get("/leased").unwrap().unwrap().lease, lease.id);
    assert_eq!(client.lease_keep_alive(lease.id).unwrap().ttl, 60);
    client.lease_revoke(lease.id).unwrap();
    assert_eq!(client.get("/leased").unwrap(), None);
    assert_eq!(client.lease_keep_alive(lease.id).unwrap().ttl, 0);
    assert!(client.lease_revoke(lease.id).is_err());
}

#[test]
fn a_watch_tells_changes_in_order_and_notices_compaction() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let start = client.put("/w/a", "1", 0).unwrap();
    let ranges = [RangeRequest::prefix("/w/"), RangeRequest::key("/single")];
    let mut watch = client.watch_at(client.endpoint(), &ranges, start).unwrap();
    client.put("/w/b", "2", 0).unwrap();
    client.put("/elsewhere", "no", 0).unwrap();
    client.put("/single", "3", 0).unwrap();
    client.delete(&RangeRequest::key("/w/a")).unwrap();
    let mut seen = Vec::new();
    wait_for("four events", || {
        if let Next::Events(_, events) = watch.next(Duration::from_secs(1)).unwrap() {
            seen.extend(events.into_iter().map(|event| match event {
                Event::Put(kv) => (kv.mod_revision, format!("put {}", String::from_utf8(kv.key).unwrap())),
                Event::Delete(kv) => (kv.mod_revision, format!("delete {}", String::from_utf8(kv.key).unwrap())),
            }));
        }
        seen.len() >= 4
    });
    seen.sort();
    let seen: Vec<&str> = seen.iter().map(|(_, event)| event.as_str()).collect();
    assert_eq!(seen, ["put /w/a", "put /w/b", "put /single", "delete /w/a"]);
    assert_eq!(watch.next(Duration::from_millis(50)), Ok(Next::Quiet));
    let now = client.put("/w/c", "4", 0).unwrap();
    client.compact(now).unwrap();
    let mut late = client.watch_at(client.endpoint(), &ranges, start).unwrap();
    let mut next = Next::Quiet;
    wait_for("the news of the compaction", || {
        next = late.next(Duration::from_secs(1)).unwrap();
        matches!(next, Next::Compacted(_))
    });
    assert_eq!(next, Next::Compacted(now));
}

#[test]
fn members_come_go_and_lead() {
    let Some(cluster) = Cluster::start(3) else { return };
    let client = cluster.client();
    let members = client.members().unwrap();
    assert_eq!(members.len(), 3);
    let leader = cluster.leader();
    let other = client.status(&cluster.url((leader + 1) % 3)).unwrap().header.member_id;
    client.move_leader(&cluster.url(leader), other).unwrap();
    wait_for("the other leader", || cluster.leader() == (leader + 1) % 3);
    let mut added = None;
    // etcd wants to have seen all members well for a while.
    wait_for("a member to be added", || {
        added = client.member_add(&[format!("http://127.0.0.1:{}", free_port())], true).ok();
        added.is_some()
    });
    let added = added.unwrap();
    assert!(client.members().unwrap().iter().any(|member| member.id == added.id && member.is_learner));
    client.member_remove(added.id).unwrap();
    assert_eq!(client.members().unwrap().len(), 3);
}

#[test]
fn a_client_leaves_a_member_that_does_not_answer() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let client = cluster.client();
    client.put("/a", "1", 0).unwrap();
    for number in 0..2 {
        let here = (0..3).find(|number| cluster.url(*number) == client.endpoint()).unwrap();
        if number == 0 {
            cluster.freeze(here)
        } else {
            cluster.kill(here)
        }
        wait_for("another member's answer", || client.get("/a").is_ok_and(|kv| kv.is_some()));
        assert_ne!(client.endpoint(), cluster.url(here));
        if number == 0 {
            cluster.thaw(here);
        }
    }
}

#[test]
fn a_token_that_expires_is_renewed() {
    let Some(cluster) = Cluster::start_with(1, Some(Tls::new()), &["--auth-token-ttl", "1"]) else { return };
    let (root, user) = cluster.protect();
    root.put("/secret", "x", 0).unwrap();
    assert!(user.get("/secret").unwrap().is_some());
    assert!(user.get("not-mine").unwrap_err().denied());
    assert!(cluster.client().get("/secret").is_err());
    // A simple token lives at most a second longer than its time.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(user.get("/secret").unwrap().is_some());
    let wrong = Client::new(Settings { user: Some(("confd".into(), "wrong".into())), ..cluster.settings() }).unwrap();
    assert!(wrong.get("/secret").unwrap_err().denied());
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let Some(cluster) = Cluster::start_with(1, Some(Tls::new()), &[]) else { return };
    let strangers = Tls::new();
    let settings = |tls: TlsFiles| Client::new(Settings { tls, ..cluster.settings() }).unwrap();
    assert!(
        settings(TlsFiles { ca: Some(strangers.path("ca.pem")), ..cluster.tls().client_files() }).get("x").is_err()
    );
    assert!(settings(TlsFiles { certificate: None, ..cluster.tls().client_files() }).get("x").is_err());
    assert!(settings(cluster.tls().client_files()).get("x").is_ok());
}
