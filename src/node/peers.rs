//! Discovery: how nodes talk to each other before etcd runs.
//!
//! A node whose etcd does not run answers on etcd's peer port, over the same mutual TLS, until its own etcd takes the port:
//! `POST /pgha/hello` with a [`Hello`] is answered by a [`HelloAnswer`], and what the answer promises is on the disk before;
//! `GET /pgha/facts` tells what this node has ([`Facts`]). Where etcd has the port already, `/members` (etcd's own, not
//! linearizable) names its cluster, and shows whether it has ever been part of a quorum: its members tell their clients'
//! addresses only then. What answers in any other way is unclear, an older version of this program too.

use super::{
    etcd_data::Ids,
    join::{Cluster, Listed, Peer},
    pki::AUTHORITY_FILE,
    promise::{Answer, Request},
};
use crate::{
    etcd::{Client, EtcdError, Settings},
    model::{
        Member,
        scope::{TLS_PATH, client_url, peer_url, ports},
    },
    tls::TlsFiles,
};
use anyhow::{Context as _, Result, ensure};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use ureq::{Agent, Timeout};

/// How long one peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest head of a request that is read, in bytes.
const LONGEST_HEAD: usize = 4096;
/// The longest body of a request or an answer that is read, in bytes.
const LONGEST_BODY: usize = 64 << 10;
/// How many callers are answered at once.
const MOST_CALLERS: usize = 32;
/// The version of what is said.
const SCHEMA: u32 = 1;

const HELLO: &str = "/pgha/hello";
const FACTS: &str = "/pgha/facts";

/// What one node says to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of this shape: 1.
    pub schema: u32,
    /// What it asks.
    #[serde(flatten)]
    pub request: Request,
}

/// What the other says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAnswer {
    /// The version of this shape: 1.
    pub schema: u32,
    /// Its name.
    pub node: String,
    /// What it answers.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What a node has, for a person who looks for the best copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The version of this shape: 1.
    pub schema: u32,
    /// Its name.
    pub node: String,
    /// Its cluster's name.
    pub cluster: String,
    /// The digest of its document.
    pub document: String,
    /// The ids of its etcd's data.
    pub etcd: Option<Ids>,
    /// Whether every service has been ready once.
    pub complete: bool,
    /// Its databases, one for each major version.
    pub databases: Vec<DatabaseFacts>,
    /// What a person wants to know who looks for the node to go on from, as `recover` understands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<serde_json::Value>,
}

/// What a node knows of its database of one major version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// The major version.
    pub version: u32,
    /// What its control file says; nothing if it is damaged or cannot be read.
    pub facts: Option<serde_json::Value>,
    /// The same for a person.
    pub words: String,
}

/// Who answers in a node's name.
pub trait Host: Send + Sync + fmt::Debug {
    /// Its name.
    fn name(&self) -> &str;

    /// Answers a request; what it promises is on the disk then.
    ///
    /// # Errors
    /// When the node cannot know what to answer, or cannot write it down. Nothing is promised then.
    fn answer(&self, request: &Request) -> Result<Answer>;

    /// What it has.
    ///
    /// # Errors
    /// When its disks cannot be read.
    fn facts(&self) -> Result<Facts>;
}

/// Where the certificates lie that nodes show each other.
#[derive(Debug, Clone)]
pub struct TlsCredentials(PathBuf);

impl TlsCredentials {
    /// The node's own.
    pub fn of_the_node() -> TlsCredentials {
        TlsCredentials(PathBuf::from(TLS_PATH))
    }

    /// That of a node whose files lie elsewhere.
    pub fn at(folder: &Path) -> TlsCredentials {
        TlsCredentials(folder.to_owned())
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.file(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    fn client(&self) -> TlsFiles {
        let own = self.file("client.pem");
        TlsFiles { ca: Some(self.file(AUTHORITY_FILE)), certificate: Some((own.clone(), own)) }
    }

    /// An HTTPS client that shows this node's certificate and trusts the cluster's authority alone.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn agent(&self, patience: Duration) -> Result<Agent> {
        let tls = self.client().load()?;
        Ok(Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            // Who takes a connection and then says nothing is not away.
            .timeout_connect(Some(patience / 2))
            .timeout_global(Some(patience))
            .build()
            .new_agent())
    }

    /// A client of the etcd members at `endpoints`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn etcd(&self, endpoints: Vec<String>) -> Result<Client, EtcdError> {
        Client::new(Settings {
            tls: self.client(),
            connect: PATIENCE / 2,
            request: PATIENCE,
            ..Settings::new(endpoints)
        })
    }

    fn server(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.read(AUTHORITY_FILE)?)?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let own = self.read("etcd.pem")?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![CertificateDer::from_pem_slice(&own)?], PrivateKeyDer::from_pem_slice(&own)?)?;
        Ok(Arc::new(config))
    }
}

/// Answers on etcd's peer port until it is dropped.
#[derive(Debug)]
pub struct DiscoveryListener {
    closed: Arc<AtomicBool>,
    accept_thread: Option<thread::JoinHandle<()>>,
}

impl DiscoveryListener {
    /// Opens the port on `address` and answers there in the name of `host`. No two processes of one node can.
    ///
    /// # Errors
    /// When it is taken, or the certificates cannot be read.
    pub fn open(address: SocketAddr, credentials: &TlsCredentials, host: Arc<dyn Host>) -> Result<DiscoveryListener> {
        let config = credentials.server().context("preparing TLS")?;
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let closed = Arc::new(AtomicBool::new(false));
        let closing = Arc::clone(&closed);
        let callers = Arc::new(AtomicUsize::new(0));
        let accept_thread = thread::spawn(move || {
            while !closing.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who comes as one too many asks again.
                    Ok(_) if callers.load(Ordering::Relaxed) >= MOST_CALLERS => {}
                    Ok((stream, _)) => {
                        let (config, host, callers) = (config.clone(), Arc::clone(&host), Arc::clone(&callers));
                        callers.fetch_add(1, Ordering::Relaxed);
                        thread::spawn(move || {
                            // A caller that breaks off has been told nothing; what was promised to it is on the disk.
                            let _ = receive(stream, config, host.as_ref());
                            callers.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Ok(DiscoveryListener { closed, accept_thread: Some(accept_thread) })
    }
}

impl Drop for DiscoveryListener {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // The port must be free when this returns.
        if let Some(accept_thread) = self.accept_thread.take() {
            let _ = accept_thread.join();
        }
    }
}

/// A request as far as it matters.
struct Asked {
    method: String,
    path: String,
    body: Vec<u8>,
}

fn receive(stream: TcpStream, config: Arc<ServerConfig>, host: &dyn Host) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    let asked = read_request(&mut stream)?;
    let (status, body) = respond(&asked, host);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

fn read_request(stream: &mut impl std::io::Read) -> Result<Asked> {
    // Each read may take its time, all of them together no longer than a caller waits.
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut more = |bytes: &mut Vec<u8>| -> Result<()> {
        ensure!(Instant::now() < deadline, "the caller is too slow");
        let mut part = [0; 4096];
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "the caller closed the connection");
        bytes.extend_from_slice(&part[..count]);
        Ok(())
    };
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(bytes.len() <= LONGEST_HEAD, "the head of the request is too long");
        more(&mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let length = length.transpose().context("reading the length of the request")?.unwrap_or(0);
    ensure!(length <= LONGEST_BODY, "the request is too long");
    while bytes.len() < end + length {
        more(&mut bytes)?;
    }
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Asked { method, path, body: bytes[end..end + length].to_vec() })
}

fn respond(asked: &Asked, host: &dyn Host) -> (&'static str, Vec<u8>) {
    let answered = match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", HELLO) => match serde_json::from_slice::<Hello>(&asked.body) {
            Ok(hello) if hello.schema == SCHEMA => host.answer(&hello.request).and_then(|answer| {
                Ok(serde_json::to_vec(&HelloAnswer { schema: SCHEMA, node: host.name().to_owned(), answer })?)
            }),
            Ok(hello) => return ("400 Bad Request", refusal(&format!("schema {} is not known here", hello.schema))),
            Err(error) => return ("400 Bad Request", refusal(&error.to_string())),
        },
        ("GET", FACTS) => host.facts().and_then(|facts| Ok(serde_json::to_vec(&facts)?)),
        _ => return ("503 Service Unavailable", refusal("etcd does not run here yet")),
    };
    match answered {
        Ok(body) => ("200 OK", body),
        Err(error) => ("500 Internal Server Error", refusal(&format!("{error:#}"))),
    }
}

fn refusal(error: &str) -> Vec<u8> {
    serde_json::json!({"error": error}).to_string().into_bytes()
}

/// Says `request` to each of `others`, all at once, and returns what is known of them then.
///
/// # Errors
/// When the certificates cannot be read.
pub fn ask(others: &[&Member], request: &Request, credentials: &TlsCredentials) -> Result<Vec<Peer>> {
    let agent = credentials.agent(PATIENCE)?;
    let hello = serde_json::to_vec(&Hello { schema: SCHEMA, request: request.clone() })?;
    Ok(thread::scope(|scope| {
        let asked: Vec<_> = others.iter().map(|member| scope.spawn(|| ask_one(&agent, member, &hello))).collect();
        let failed = |_| Peer::Unclear("asking it failed".to_owned());
        asked.into_iter().map(|asked| asked.join().unwrap_or_else(failed)).collect()
    }))
}

fn ask_one(agent: &Agent, member: &Member, hello: &[u8]) -> Peer {
    let url = peer_url(member);
    let posted = agent.post(format!("{url}{HELLO}")).header("Content-Type", "application/json").send(hello);
    match posted {
        Ok(mut response) if response.status() == 200 => match read_json::<HelloAnswer>(&mut response) {
            Ok(said) if said.schema != SCHEMA => {
                Peer::Unclear(format!("it speaks another version of this language ({})", said.schema))
            }
            Ok(said) if said.node != member.name => Peer::Unclear(format!("{} answers at its address", said.node)),
            Ok(said) => Peer::Told(said.answer),
            Err(error) => Peer::Unclear(format!("its answer is not understood: {error}")),
        },
        // etcd has no such path.
        Ok(response) if response.status() == 404 => etcd_at(agent, &url),
        Ok(mut response) => Peer::Unclear(told_error(&mut response)),
        Err(error) => match failed(&error) {
            // Whoever hangs before TLS is settled takes connections all the same.
            Peer::Silent(_) if matches!(error, ureq::Error::Timeout(_)) && is_open(member) => hanging(),
            peer => peer,
        },
    }
}

fn hanging() -> Peer {
    Peer::Unclear("it accepts connections and does not answer".to_owned())
}

fn is_open(member: &Member) -> bool {
    TcpStream::connect_timeout(&discovery_address(member), PATIENCE / 4).is_ok()
}

/// Why the other node does not answer the question.
fn told_error(response: &mut ureq::http::Response<ureq::Body>) -> String {
    #[derive(Deserialize)]
    struct Told {
        error: String,
    }
    let status = response.status();
    match read_json::<Told>(response) {
        Ok(told) => told.error,
        Err(_) => format!("it answers with the status {status}"),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(response: &mut ureq::http::Response<ureq::Body>) -> Result<T> {
    let bytes = response.body_mut().with_config().limit(LONGEST_BODY as u64).read_to_vec()?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// What the node `member` has, as it tells itself while its etcd does not run.
///
/// # Errors
/// When it does not answer so.
pub fn facts(member: &Member, credentials: &TlsCredentials) -> Result<Facts> {
    let url = peer_url(member);
    let asking = || format!("asking {} what it has", member.name);
    let mut response = credentials.agent(PATIENCE)?.get(format!("{url}{FACTS}")).call().with_context(asking)?;
    if response.status() != 200 {
        return Err(anyhow::anyhow!(told_error(&mut response)).context(asking()));
    }
    let facts: Facts = read_json(&mut response).with_context(asking)?;
    ensure!(
        facts.schema == SCHEMA && facts.node == member.name,
        "{} answers at the address of {}",
        facts.node,
        member.name
    );
    Ok(facts)
}

/// What etcd's peer port at `url` says.
fn etcd_at(agent: &Agent, url: &str) -> Peer {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "clientURLs", default)]
        client_urls: Option<Vec<String>>,
    }
    let mut response = match agent.get(format!("{url}/members")).call() {
        Ok(response) if response.status() == 200 => response,
        Ok(response) => return Peer::Unclear(format!("it answers with the status {}", response.status())),
        Err(error) => return failed(&error),
    };
    let id = response.headers().get("X-Etcd-Cluster-ID").and_then(|id| id.to_str().ok());
    let cluster = id.and_then(|id| u64::from_str_radix(id, 16).ok());
    match read_json::<Vec<Entry>>(&mut response) {
        Ok(entries) => Peer::Etcd {
            cluster,
            ever: entries.iter().any(|entry| entry.client_urls.as_ref().is_some_and(|urls| !urls.is_empty())),
        },
        Err(error) => Peer::Unclear(format!("its answer is not understood: {error}")),
    }
}

/// How this node's own etcd is, if it runs.
///
/// # Errors
/// When the certificates cannot be read.
pub fn own_etcd(me: &Member, credentials: &TlsCredentials) -> Result<Peer> {
    Ok(etcd_at(&credentials.agent(PATIENCE)?, &peer_url(me)))
}

/// A failure as a person at the console wants it. Only who does not answer is silent.
fn failed(error: &ureq::Error) -> Peer {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => Peer::Silent("no answer".to_owned()),
        ureq::Error::Timeout(_) => hanging(),
        ureq::Error::Rustls(error) => distrusted(error),
        ureq::Error::Io(error) => match (error.get_ref().and_then(|inner| inner.downcast_ref()), error.kind()) {
            (Some(error), _) => distrusted(error),
            (None, ErrorKind::ConnectionRefused) => Peer::Silent("not started yet".to_owned()),
            (None, ErrorKind::HostUnreachable | ErrorKind::TimedOut) => Peer::Silent("no answer".to_owned()),
            (None, ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::UnexpectedEof) => {
                Peer::Unclear("it closes connections".to_owned())
            }
            _ => Peer::Silent(error.to_string()),
        },
        other => Peer::Silent(other.to_string()),
    }
}

/// Who answers, but not in TLS that both trust.
fn distrusted(error: &rustls::Error) -> Peer {
    Peer::Unclear(match error {
        rustls::Error::InvalidCertificate(_) => {
            "its certificate is not of this cluster's authority: another secret?".to_owned()
        }
        rustls::Error::AlertReceived(alert) => {
            format!("it refuses this node's certificate ({alert:?}): another secret?")
        }
        other => format!("it does not speak TLS as it should: {other}"),
    })
}

/// The cluster as a quorum lists it, asked through `running`; `None` if there is no quorum. `me` is this node: only of a
/// namesake of it elsewhere it matters whether it answers.
pub fn cluster(running: &[&Member], me: &Member, credentials: &TlsCredentials) -> Option<Cluster> {
    let client = credentials.etcd(running.iter().map(|member| client_url(member)).collect()).ok()?;
    let (id, members) = client.cluster().ok()?;
    let url = peer_url(me);
    let listed = members.into_iter().map(|member| {
        let namesake = member.name == me.name && !member.peer_urls.contains(&url);
        let answers = namesake && member.client_urls.iter().any(|endpoint| runs(endpoint, credentials));
        Listed {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            started: !member.client_urls.is_empty(),
            answers,
            learns: member.is_learner,
        }
    });
    Some(Cluster { id, members: listed.collect() })
}

/// The members as this node's own etcd lists them, if it has a quorum and its cluster's version is not settled yet.
///
/// # Errors
/// When it does not answer.
pub fn unsettled(me: &Member, credentials: &TlsCredentials) -> Result<Option<Vec<Listed>>> {
    #[derive(Deserialize)]
    struct Version {
        etcdcluster: String,
    }
    let url = format!("{}/version", client_url(me));
    let version: Version =
        credentials.agent(PATIENCE)?.get(&url).call()?.body_mut().read_json().context("reading etcd's version")?;
    // etcd's first word for a cluster whose members it does not know all; a real one of that age is not in any image.
    Ok(if version.etcdcluster.starts_with("3.0.") || version.etcdcluster == "not_decided" {
        Some(cluster(&[me], me, credentials).context("no quorum answers")?.members)
    } else {
        None
    })
}

fn runs(endpoint: &str, credentials: &TlsCredentials) -> bool {
    credentials.etcd(vec![endpoint.to_owned()]).and_then(|client| client.status(endpoint)).is_ok()
}

/// The address on which a member's first words are heard.
pub fn discovery_address(member: &Member) -> SocketAddr {
    SocketAddr::new(member.address, ports::ETCD_PEER)
}
