//! The nodes' first words to each other, before etcd runs.
//!
//! A node without etcd data answers on etcd's peer port, over the same mutual TLS, until its own etcd takes the port.
//! `GET /pgha/hello/NAME` tells it that the node NAME has no data either, and its answer tells NAME the same: after one
//! exchange both know. Where etcd has the port already, `/members` (etcd's own, not linearizable) shows whether it has
//! ever been part of a quorum: its members tell their clients' addresses only then.

use super::{
    former::{self, Listed, Peer, View},
    pki::AUTHORITY_FILE,
};
use crate::{
    etcd::{Client, EtcdError, Settings},
    model::{
        ClusterSpec, Member,
        scope::{TLS_PATH, client_url, peer_url, ports},
    },
    tls::TlsFiles,
};
use anyhow::{Context as _, Result};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use ureq::Agent;

/// How long one peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read, in bytes.
const LONGEST: usize = 4096;

const HELLO: &str = "/pgha/hello/";

/// Where the certificates lie that nodes show each other.
#[derive(Debug, Clone)]
pub struct TlsCredentials(PathBuf);

impl TlsCredentials {
    /// The node's own.
    pub fn of_the_node() -> TlsCredentials {
        TlsCredentials(PathBuf::from(TLS_PATH))
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
    fresh_peers: Arc<Mutex<BTreeSet<String>>>,
    closed: Arc<AtomicBool>,
    accept_thread: Option<thread::JoinHandle<()>>,
}

impl DiscoveryListener {
    /// Opens the port on `address`.
    ///
    /// # Errors
    /// When it is taken, or the certificates cannot be read.
    pub fn open(address: SocketAddr, credentials: &TlsCredentials) -> Result<DiscoveryListener> {
        let config = credentials.server().context("preparing TLS")?;
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let (fresh_peers, closed) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (seen, closing) = (Arc::clone(&fresh_peers), Arc::clone(&closed));
        let accept_thread = thread::spawn(move || {
            while !closing.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (config, seen) = (config.clone(), Arc::clone(&seen));
                        // A caller that breaks off has told nothing.
                        thread::spawn(move || answer(stream, config, &seen).ok());
                    }
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Ok(DiscoveryListener { fresh_peers, closed, accept_thread: Some(accept_thread) })
    }

    /// The nodes that have said that they have no data.
    pub fn fresh_peers(&self) -> BTreeSet<String> {
        self.fresh_peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

fn answer(stream: TcpStream, config: Arc<ServerConfig>, fresh_peers: &Mutex<BTreeSet<String>>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < LONGEST {
        let mut part = [0; 1024];
        match stream.read(&mut part)? {
            0 => break,
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or_default();
    let response = match path.strip_prefix(HELLO) {
        Some(name) if !name.is_empty() => {
            fresh_peers.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfresh"
        }
        _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    };
    stream.write_all(response.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

/// Asks all other nodes of `spec` how they are. `fresh_peers` are those that have called meanwhile.
///
/// # Errors
/// When the certificates cannot be read.
pub fn look(
    spec: &ClusterSpec,
    own: usize,
    data: bool,
    fresh_peers: &BTreeSet<String>,
    credentials: &TlsCredentials,
) -> Result<View> {
    let agent = credentials.agent(PATIENCE)?;
    let me = &spec.members[own];
    let others: Vec<&Member> = spec.members.iter().filter(|member| member.name != me.name).collect();
    let found: Vec<Found> = thread::scope(|scope| {
        let asked: Vec<_> = others.iter().map(|member| scope.spawn(|| ask(&agent, member, &me.name, data))).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap_or_else(|_| Found::Silent("asking it failed".into())))
            .collect()
    });
    let running: Vec<&Member> = others
        .iter()
        .zip(&found)
        .filter(|(_, found)| matches!(found, Found::Etcd { .. }))
        .map(|(member, _)| *member)
        .collect();
    let cluster = if running.is_empty() { None } else { members(&running, me, credentials) };
    let peers = others
        .iter()
        .zip(found)
        .map(|(member, found)| {
            let peer = match found {
                Found::Fresh | Found::Etcd { ever: false } => Peer::Fresh,
                Found::Etcd { ever: true } => Peer::Data,
                // It called a moment ago, and its etcd takes the port just now.
                Found::Silent(_) if fresh_peers.contains(&member.name) => Peer::Fresh,
                Found::Silent(why) => Peer::Silent(why),
            };
            (member.name.clone(), peer)
        })
        .collect();
    Ok(View { data, cluster, peers })
}

/// What answers on a peer's port.
enum Found {
    Silent(String),
    Fresh,
    /// etcd; whether it was ever part of a quorum.
    Etcd {
        ever: bool,
    },
}

fn ask(agent: &Agent, member: &Member, me: &str, data: bool) -> Found {
    let url = peer_url(member);
    if !data {
        match agent.get(format!("{url}{HELLO}{me}")).call() {
            Ok(response) if response.status() == 200 => return Found::Fresh,
            Ok(_) => {}
            Err(error) => return Found::Silent(short(&error)),
        }
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "clientURLs", default)]
        client_urls: Option<Vec<String>>,
    }
    let listed =
        agent.get(format!("{url}/members")).call().and_then(|mut answer| answer.body_mut().read_json::<Vec<Entry>>());
    match listed {
        Ok(entries) => Found::Etcd {
            ever: entries.iter().any(|entry| entry.client_urls.as_ref().is_some_and(|urls| !urls.is_empty())),
        },
        Err(error) => Found::Silent(short(&error)),
    }
}

/// An error as a person at the console wants it.
fn short(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer".to_owned(),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => "not started yet".to_owned(),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::HostUnreachable => "no answer".to_owned(),
        ureq::Error::Rustls(rustls::Error::InvalidCertificate(_)) => {
            "its certificate is not of this cluster's authority: another secret?".to_owned()
        }
        ureq::Error::Rustls(rustls::Error::AlertReceived(alert)) => {
            format!("it refuses this node's certificate ({alert:?}): another secret?")
        }
        other => other.to_string(),
    }
}

/// The members as a quorum lists them; `None` if there is no quorum.
fn members(running: &[&Member], me: &Member, credentials: &TlsCredentials) -> Option<Vec<Listed>> {
    let client = credentials.etcd(running.iter().map(|member| client_url(member)).collect()).ok()?;
    let members = client.members().ok()?;
    let url = peer_url(me);
    let listed = members.into_iter().map(|member| {
        // Only of a namesake elsewhere it matters whether it runs.
        let namesake = member.name == me.name && !member.peer_urls.contains(&url);
        let answers = namesake && member.client_urls.iter().any(|endpoint| runs(endpoint, credentials));
        Listed {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            started: !member.client_urls.is_empty(),
            answers,
        }
    });
    Some(listed.collect())
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
        members(&[me], me, credentials)
    } else {
        None
    })
}

/// The members of etcd that `spec` does not name and that do not answer.
///
/// # Errors
/// When this node's own etcd does not answer.
pub fn dead_unknown_members(spec: &ClusterSpec, own: usize, credentials: &TlsCredentials) -> Result<Vec<u64>> {
    let members = credentials.etcd(vec![client_url(&spec.members[own])])?.members()?;
    let strangers = members.iter().filter(|member| !former::is_named(spec, &member.name, &member.peer_urls));
    let dead = strangers.filter(|member| !member.client_urls.iter().any(|endpoint| runs(endpoint, credentials)));
    // One that was added a moment ago has told nothing of itself yet: its document is newer than this one.
    Ok(dead.filter(|member| !member.client_urls.is_empty()).map(|member| member.id).collect())
}

fn runs(endpoint: &str, credentials: &TlsCredentials) -> bool {
    credentials.etcd(vec![endpoint.to_owned()]).and_then(|client| client.status(endpoint)).is_ok()
}

/// The address on which a member's first words are heard.
pub fn discovery_address(member: &Member) -> SocketAddr {
    SocketAddr::new(member.address, ports::ETCD_PEER)
}
