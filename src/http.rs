//! Downloads over HTTP and HTTPS, from the first of several mirrors that works.
//!
//! Every mirror has the same files, so a download that breaks off continues where it stopped, on the same mirror or on
//! the next; the [`Sink`] checks the whole. What may pass (a busy server, a lost connection) is tried again, for a
//! bounded time; what will not pass (a missing file, wrong content, a very slow server) ends the tries with that
//! mirror. Proxies are taken from the environment, trusted certificates from the system or `SSL_CERT_FILE`.

mod names;

use crate::error::UserError;
use anyhow::{Context as _, Result};
use names::Names;
use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use ureq::{
    Agent,
    http::{HeaderMap, Response, header},
    tls::{RootCerts, TlsConfig},
    unversioned::transport::DefaultConnector,
};

/// Time limits, and how often a download is tried.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// For looking up a name and connecting.
    pub connect: Duration,
    /// For waiting for the next byte.
    pub idle: Duration,
    /// The lowest rate, in bytes per second, and how long a mirror may be slower than that.
    pub slowest: (u64, Duration),
    /// How often each mirror is tried without any progress.
    pub tries: u32,
    /// The pause before the second try; it doubles with each.
    pub pause: Duration,
    /// After this time, nothing is tried again.
    pub total: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            slowest: (4096, Duration::from_secs(20)),
            tries: 4,
            pause: Duration::from_millis(300),
            total: Duration::from_secs(300),
        }
    }
}

/// A file to download.
#[derive(Debug, Clone, Copy)]
pub struct Fetch<'a> {
    /// The base URIs of mirrors, in the order in which to try them.
    pub mirrors: &'a [String],
    /// The file's path below each of them.
    pub path: &'a str,
    /// Its size in bytes, if known.
    pub size: Option<u64>,
    /// The largest size that it may have.
    pub limit: u64,
}

/// The destination of a download.
pub trait Sink {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they cannot be stored; that ends the download.
    fn put(&mut self, bytes: &[u8]) -> Result<()>;

    /// Drops all bytes: the download begins again.
    ///
    /// # Errors
    /// As [`Sink::put`].
    fn restart(&mut self) -> Result<()>;

    /// Checks the whole file; `None` if it is right, else what is wrong.
    ///
    /// # Errors
    /// As [`Sink::put`].
    fn verify(&mut self) -> Result<Option<String>>;
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.clear();
        Ok(())
    }

    fn verify(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// Downloads files, keeping connections open in between; clones share them.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    policy: Policy,
}

impl Client {
    /// A client with these limits.
    pub fn new(policy: Policy) -> Client {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("pgha-image/", env!("CARGO_PKG_VERSION")))
            // Compressed files are compressed in the archive too; their digests are those of the compressed bytes.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_idle_connections(64)
            .max_idle_connections_per_host(16)
            .timeout_resolve(Some(policy.connect))
            .timeout_connect(Some(policy.connect))
            .timeout_recv_response(Some(policy.idle))
            .timeout_per_read(Some(policy.idle))
            .build();
        Client { agent: Agent::with_parts(config, DefaultConnector::default(), Names::default()), policy }
    }

    /// Downloads a small file of at most `limit` bytes into memory.
    ///
    /// # Errors
    /// As [`Client::fetch`].
    pub fn get(&self, mirrors: &[String], path: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.fetch(&Fetch { mirrors, path, size: None, limit }, &mut bytes, &|_| ())?;
        Ok(bytes)
    }

    /// Downloads a file and returns the index of the mirror that gave the last part of it. `progress` receives the
    /// number of bytes that came for the first time.
    ///
    /// # Errors
    /// When no mirror gives it, with the error of each; when the sink fails.
    pub fn fetch(&self, fetch: &Fetch<'_>, sink: &mut dyn Sink, progress: &dyn Fn(u64)) -> Result<usize> {
        let mut transfer = Transfer { client: self, fetch, sink, progress, received: 0, told: 0, tag: None };
        let started = Instant::now();
        let mut mirrors: Vec<Tried<'_>> =
            fetch.mirrors.iter().map(|uri| Tried { uri, failed: 0, last: None }).collect();
        let mut round = 0;
        loop {
            for (number, mirror) in mirrors.iter_mut().enumerate().filter(|(_, mirror)| mirror.open(&self.policy)) {
                let before = transfer.received;
                match transfer.attempt(mirror.uri) {
                    Ok(()) => return Ok(number),
                    Err(End::Local(error)) => return Err(error).with_context(|| format!("downloading {}", fetch.path)),
                    Err(End::Mirror(trouble)) => {
                        // A try that made progress does not count.
                        mirror.failed = if transfer.received > before { 1 } else { mirror.failed + 1 };
                        mirror.last = Some(trouble);
                    }
                }
            }
            let pause = self.pause(round, &mirrors);
            if !mirrors.iter().any(|mirror| mirror.open(&self.policy)) || started.elapsed() + pause > self.policy.total
            {
                return Err(failure(fetch, &mirrors));
            }
            thread::sleep(pause);
            round += 1;
        }
    }

    /// The pause before the next round: longer each time, with a random part.
    fn pause(&self, round: u32, mirrors: &[Tried<'_>]) -> Duration {
        let longest = self.policy.pause * 32;
        let pause = (self.policy.pause * 2u32.saturating_pow(round)).min(longest);
        let dice = RandomState::new().build_hasher().finish() % 1000;
        let jitter = pause.mul_f64(dice as f64 / 2000.0);
        let asked = mirrors.iter().filter_map(|mirror| match mirror.last {
            Some(Trouble::Status(_, after)) => after,
            _ => None,
        });
        (pause + jitter).max(asked.min().unwrap_or_default().min(longest))
    }
}

/// A mirror and its result so far.
struct Tried<'a> {
    uri: &'a str,
    /// How often it failed without any progress.
    failed: u32,
    last: Option<Trouble>,
}

impl Tried<'_> {
    /// Whether it is tried again.
    fn open(&self, policy: &Policy) -> bool {
        self.failed < policy.tries && self.last.as_ref().is_none_or(Trouble::may_pass)
    }
}

/// Why an attempt ended.
enum End {
    /// The mirror failed.
    Mirror(Trouble),
    /// This machine failed.
    Local(anyhow::Error),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> End {
        End::Mirror(trouble)
    }
}

/// The error of a mirror.
#[derive(Debug)]
enum Trouble {
    /// It answered with this status, and maybe with the time of the next try.
    Status(u16, Option<Duration>),
    /// There was no connection.
    Connection(String),
    /// It stopped before the end: bytes received, bytes expected.
    CutOff(u64, Option<u64>),
    /// It sent nothing for this time.
    Silent(Duration),
    /// It sent fewer bytes per second than this for this time.
    Slow(u64, Duration),
    /// It sent something else.
    Wrong(String),
}

impl Trouble {
    fn may_pass(&self) -> bool {
        match self {
            Trouble::Status(status, _) => matches!(status, 408 | 429 | 500 | 502..=504),
            Trouble::Connection(_) | Trouble::CutOff(..) | Trouble::Silent(_) => true,
            Trouble::Slow(..) | Trouble::Wrong(_) => false,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Trouble::Status(404 | 410, _) => {
                "the package index may be outdated: try again with --refresh; else check the mirror's URI and the suite's name"
            }
            Trouble::Status(401 | 403 | 407, _) => "check the mirror's URI, and what the proxy allows",
            Trouble::Status(..) => "the server is busy or broken: try again later, or name another mirror",
            Trouble::Connection(_) => {
                "check the network, the mirror's URI, and the proxy (http_proxy, https_proxy, no_proxy); or try --offline"
            }
            Trouble::CutOff(..) => "the connection breaks off: try again, or name another mirror",
            Trouble::Silent(_) | Trouble::Slow(..) => "the mirror is too slow: try again later, or name another mirror",
            Trouble::Wrong(_) => {
                "the mirror is being updated or damaged: try again with --refresh, or name another mirror"
            }
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Status(status, _) => {
                let reason =
                    ureq::http::StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
                write!(f, "answered {status}{}{}", if reason.is_some() { " " } else { "" }, reason.unwrap_or_default())
            }
            Trouble::Connection(reason) => f.write_str(reason),
            Trouble::CutOff(came, Some(size)) => write!(f, "cut off after {came} of {size} bytes"),
            Trouble::CutOff(came, None) => write!(f, "cut off after {came} bytes"),
            Trouble::Silent(time) => write!(f, "sent nothing for {} s", time.as_secs_f64()),
            Trouble::Slow(rate, time) => write!(f, "sent less than {rate} bytes/s for {} s", time.as_secs_f64()),
            Trouble::Wrong(what) => f.write_str(what),
        }
    }
}

fn failure(fetch: &Fetch<'_>, mirrors: &[Tried<'_>]) -> anyhow::Error {
    let mut message = format!("`{}` cannot be downloaded", fetch.path);
    for mirror in mirrors {
        let trouble = mirror.last.as_ref().map_or_else(|| "was not tried".to_owned(), ToString::to_string);
        message += &format!("\n  {}: {trouble}", base(mirror.uri));
    }
    let problem = UserError::runtime(message);
    // Of several errors, one that may pass says best what to do.
    let told = mirrors.iter().filter_map(|mirror| mirror.last.as_ref());
    match told.min_by_key(|trouble| !trouble.may_pass()) {
        Some(trouble) => problem.hint(trouble.hint()).into(),
        None => problem.hint("name a mirror in the recipe's sources").into(),
    }
}

/// The URI without its password.
fn base(uri: &str) -> String {
    let uri = uri.trim_end_matches('/');
    match uri.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => uri.to_owned(),
    }
}

/// A download in progress.
struct Transfer<'a> {
    client: &'a Client,
    fetch: &'a Fetch<'a>,
    sink: &'a mut dyn Sink,
    progress: &'a dyn Fn(u64),
    /// Bytes that the sink has.
    received: u64,
    /// Bytes that were reported as progress.
    told: u64,
    /// The mirror that the bytes came from, and its name for this version of the file.
    tag: Option<(String, String)>,
}

impl Transfer<'_> {
    fn attempt(&mut self, mirror: &str) -> Result<(), End> {
        let uri = format!("{}/{}", mirror.trim_end_matches('/'), self.fetch.path.trim_start_matches('/'));
        let mut request = self.client.agent.get(&uri);
        if self.received > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.received));
            // The names of another mirror cannot be compared; there the digest of the whole decides.
            if let Some((_, tag)) = self.tag.as_ref().filter(|(source, _)| source == mirror) {
                request = request.header(header::IF_RANGE, tag.as_str());
            }
        }
        let response = request.call().map_err(|error| self.connection_trouble(&error))?;
        let size = self.begin(&response)?;
        if let Some(tag) = header_text(response.headers(), header::ETAG).filter(|tag| tag.starts_with('"')) {
            self.tag = Some((mirror.to_owned(), tag.to_owned()));
        }
        self.receive(response.into_body().into_reader(), size)?;
        match self.sink.verify().map_err(End::Local)? {
            None => Ok(()),
            Some(wrong) => {
                self.restart()?;
                Err(Trouble::Wrong(wrong).into())
            }
        }
    }

    /// Prepares for what the server is about to send; returns the size of the whole, if it is known.
    fn begin<B>(&mut self, response: &Response<B>) -> Result<Option<u64>, End> {
        let headers = response.headers();
        let length = header_text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let size = match response.status().as_u16() {
            206 => {
                let Some((start, size)) = header_text(headers, header::CONTENT_RANGE).and_then(parse_content_range)
                else {
                    return Err(Trouble::Wrong("sent an unknown part of it".into()).into());
                };
                if start != self.received {
                    self.restart()?;
                    return Err(Trouble::Wrong("sent another part of it than was requested".into()).into());
                }
                size
            }
            200 => {
                // The server does not support ranges, or the file has changed: all of it comes.
                self.restart()?;
                length
            }
            // The file is shorter than what was received.
            416 => {
                self.restart()?;
                return Err(Trouble::CutOff(self.told, self.fetch.size).into());
            }
            status => {
                let after = header_text(headers, header::RETRY_AFTER).and_then(|text| text.parse().ok());
                return Err(Trouble::Status(status, after.map(Duration::from_secs)).into());
            }
        };
        match (size, self.fetch.size) {
            (Some(size), Some(expected)) if size != expected => {
                Err(Trouble::Wrong(format!("has {size} bytes of it instead of {expected}")).into())
            }
            (Some(size), _) if size > self.fetch.limit => Err(self.too_long().into()),
            (size, expected) => Ok(expected.or(size)),
        }
    }

    fn receive(&mut self, mut body: impl io::Read, size: Option<u64>) -> Result<(), End> {
        let mut buffer = vec![0; 64 << 10];
        let (slowest, patience) = self.client.policy.slowest;
        let mut window = (Instant::now(), 0);
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.reading_trouble(&error, size).into()),
            };
            if self.received + count as u64 > size.unwrap_or(self.fetch.limit) {
                self.restart()?;
                return Err(self.too_long().into());
            }
            self.sink.put(&buffer[..count]).map_err(End::Local)?;
            self.received += count as u64;
            if self.received > self.told {
                (self.progress)(self.received - self.told);
                self.told = self.received;
            }
            window.1 += count as u64;
            let elapsed = window.0.elapsed();
            if elapsed >= patience && Some(self.received) != size {
                if (window.1 as f64) < slowest as f64 * elapsed.as_secs_f64() {
                    return Err(Trouble::Slow(slowest, patience).into());
                }
                window = (Instant::now(), 0);
            }
        }
        match size {
            Some(size) if self.received < size => Err(Trouble::CutOff(self.received, Some(size)).into()),
            _ => Ok(()),
        }
    }

    fn restart(&mut self) -> Result<(), End> {
        if self.received > 0 {
            self.sink.restart().map_err(End::Local)?;
            self.received = 0;
            self.tag = None;
        }
        Ok(())
    }

    fn too_long(&self) -> Trouble {
        let limit = self.fetch.size.unwrap_or(self.fetch.limit);
        Trouble::Wrong(format!("has more than {limit} bytes of it"))
    }

    fn connection_trouble(&self, error: &ureq::Error) -> Trouble {
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                Trouble::Connection(format!("no connection within {} s", self.client.policy.connect.as_secs_f64()))
            }
            ureq::Error::Timeout(_) => Trouble::Silent(self.client.policy.idle),
            ureq::Error::HostNotFound => Trouble::Connection("the name of the host is not known".into()),
            ureq::Error::Io(error) => self.reading_trouble(error, None),
            error => Trouble::Connection(error.to_string()),
        }
    }

    fn reading_trouble(&self, error: &io::Error, size: Option<u64>) -> Trouble {
        use io::ErrorKind::*;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        match (error.kind(), inner) {
            (TimedOut | WouldBlock, _) | (_, Some(ureq::Error::Timeout(_))) => Trouble::Silent(self.client.policy.idle),
            (UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe, _) => {
                Trouble::CutOff(self.received, size.or(self.fetch.size))
            }
            _ => Trouble::Connection(error.to_string()),
        }
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Reads `bytes 100-199/200` into the first byte's number and the size of the whole, if that is known.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, size.parse().ok()))
}

#[cfg(test)]
pub(crate) mod tests;
