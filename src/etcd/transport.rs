//! Endpoints, TLS, tokens: how a request reaches an etcd that can answer it.

use super::{EtcdError, Result};
use crate::tls::TlsFiles;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use ureq::{Agent, tls::TlsConfig};

/// The largest answer that is read, in bytes; the gateway itself gives up at 4 MiB of binary data.
const MAX_ANSWER: u64 = 64 << 20;
/// The longest refusal that is read, in bytes.
const MAX_REFUSAL: u64 = 64 << 10;

/// How to reach a cluster.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Base URLs such as `https://10.0.0.11:2379`.
    pub endpoints: Vec<String>,
    /// The certificates to trust, and the client's own.
    pub tls: TlsFiles,
    /// User and password, where etcd has authentication on.
    pub user: Option<(String, String)>,
    /// How long a connection may take.
    pub connect: Duration,
    /// How long a request may take, the connection included.
    pub request: Duration,
}

impl Settings {
    /// Plain settings: no TLS material, no user, 2 s to connect, 4 s for a request.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Settings {
        Settings {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: TlsFiles::default(),
            user: None,
            connect: Duration::from_secs(2),
            request: Duration::from_secs(4),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("user", &self.user.as_ref().map(|(name, _)| (name, "***")))
            .finish_non_exhaustive()
    }
}

/// A client; clones share connections, token and the endpoint in use.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    endpoint: AtomicUsize,
    tls: Mutex<Loaded>,
    token: Mutex<Option<String>>,
}

/// The TLS material as it was read, and the agent that uses it.
#[derive(Debug)]
struct Loaded {
    stamps: Vec<Option<SystemTime>>,
    tls: TlsConfig,
    agent: Agent,
}

/// Whether a request may be repeated after it may have been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Freely,
    OnlyUnsent,
}

impl Client {
    /// A client that starts at any of the endpoints. Nothing is connected yet.
    ///
    /// # Errors
    /// When the TLS files cannot be read, or there is no endpoint.
    pub fn new(mut settings: Settings) -> Result<Client> {
        for endpoint in &mut settings.endpoints {
            endpoint.truncate(endpoint.trim_end_matches('/').len());
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(EtcdError::Settings(format!("the etcd endpoint `{endpoint}` is not an http or https URL")));
            }
        }
        if settings.endpoints.is_empty() {
            return Err(EtcdError::Settings("no etcd endpoint is given".into()));
        }
        let loaded = load(&settings)?;
        // Clients that start together spread over the members.
        let first = RandomState::new().hash_one(std::process::id()) as usize % settings.endpoints.len();
        Ok(Client(Arc::new(Inner {
            settings,
            endpoint: AtomicUsize::new(first),
            tls: Mutex::new(loaded),
            token: Mutex::new(None),
        })))
    }

    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The endpoint that the next request goes to.
    pub fn endpoint(&self) -> &str {
        let endpoints = &self.0.settings.endpoints;
        &endpoints[self.0.endpoint.load(Ordering::Relaxed) % endpoints.len()]
    }

    /// Leaves `endpoint` for the next one, if it is the one in use.
    pub fn leave(&self, endpoint: &str) {
        let current = self.0.endpoint.load(Ordering::Relaxed);
        let endpoints = &self.0.settings.endpoints;
        if endpoints[current % endpoints.len()] == endpoint {
            // Another thread may have chosen another one meanwhile; then its choice counts.
            let _ = self.0.endpoint.compare_exchange(current, current + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Drops the token, so that the next request fetches a new one.
    pub fn forget_token(&self) {
        *lock(&self.0.token) = None;
    }

    /// Reads the TLS files again if they have changed; says whether they had.
    ///
    /// # Errors
    /// When they cannot be read; the old material stays in use.
    pub fn refresh_tls(&self) -> Result<bool> {
        let mut loaded = lock(&self.0.tls);
        if loaded.stamps == self.0.settings.tls.stamps() {
            return Ok(false);
        }
        *loaded = load(&self.0.settings)?;
        Ok(true)
    }

    /// Asks the endpoints in turn, beginning with the one in use, until one answers.
    pub(super) fn call<T: DeserializeOwned>(&self, path: &str, body: &Value, repeat: Repeat) -> Result<T> {
        let mut outcome = Err(EtcdError::Settings("no etcd endpoint is given".into()));
        for _ in 0..self.0.settings.endpoints.len() {
            let endpoint = self.endpoint().to_owned();
            outcome = self.call_at(&endpoint, path, body);
            match &outcome {
                Err(error) if error.elsewhere() => {
                    self.leave(&endpoint);
                    if repeat == Repeat::OnlyUnsent && !error.unsent() {
                        return outcome;
                    }
                }
                _ => return outcome,
            }
        }
        outcome
    }

    /// Asks one endpoint; renews the token once if that is what is missing.
    pub(super) fn call_at<T: DeserializeOwned>(&self, endpoint: &str, path: &str, body: &Value) -> Result<T> {
        // Changed files that cannot be read (a rotation in progress) must not stop requests that still work.
        let _ = self.refresh_tls();
        let agent = lock(&self.0.tls).agent.clone();
        let send = |token: Option<&str>| -> Result<T> {
            let bytes = post(&agent, endpoint, path, body.to_string(), token, self.0.settings.request)?
                .body_mut()
                .with_config()
                .limit(MAX_ANSWER)
                .read_to_vec()
                .map_err(|error| unreachable(endpoint, &error))?;
            read(endpoint, &bytes)
        };
        let token = self.token(endpoint)?;
        match send(token.as_deref()) {
            Err(error) if token.is_some() && error.wants_new_token() => {
                self.forget_token();
                send(self.token(endpoint)?.as_deref())
            }
            outcome => outcome,
        }
    }

    /// Opens requests whose answers stream; their agent is their own, so that shutting it down ends the streams.
    pub(super) fn open_streams(
        &self,
        endpoint: &str,
        path: &str,
        bodies: impl Iterator<Item = Value>,
    ) -> Result<(Agent, Vec<ureq::http::Response<ureq::Body>>)> {
        let _ = self.refresh_tls();
        let tls = lock(&self.0.tls).tls.clone();
        let agent = agent(&self.0.settings, tls, None);
        let token = self.token(endpoint)?;
        let open =
            |body: Value| post(&agent, endpoint, path, body.to_string(), token.as_deref(), self.0.settings.request);
        let responses = bodies.map(open).collect::<Result<_>>()?;
        Ok((agent, responses))
    }

    /// The token to send, fetched if there is none yet; none without a user.
    fn token(&self, endpoint: &str) -> Result<Option<String>> {
        let Some((name, password)) = &self.0.settings.user else { return Ok(None) };
        let mut token = lock(&self.0.token);
        if token.is_none() {
            #[derive(Deserialize)]
            struct Answer {
                token: String,
            }
            let agent = lock(&self.0.tls).agent.clone();
            let body = json!({"name": name, "password": password});
            let limit = self.0.settings.request;
            let bytes = post(&agent, endpoint, "/v3/auth/authenticate", body.to_string(), None, limit)?
                .body_mut()
                .read_to_vec()
                .map_err(|error| unreachable(endpoint, &error))?;
            match read::<Answer>(endpoint, &bytes) {
                Ok(answer) => *token = Some(answer.token),
                // A user is set, but this cluster does not use authentication.
                Err(error) if error.to_string().contains("authentication is not enabled") => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(token.clone())
    }
}

/// A poisoned lock guards nothing half done here: each holder writes whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn post(
    agent: &Agent,
    endpoint: &str,
    path: &str,
    body: String,
    token: Option<&str>,
    limit: Duration,
) -> Result<ureq::http::Response<ureq::Body>> {
    let mut request = agent
        .post(format!("{endpoint}{path}"))
        .header("Content-Type", "application/json")
        // The gateway passes this on as gRPC metadata: answer with an error rather than wait for a leader.
        .header("Grpc-Metadata-hasleader", "true")
        .config()
        .timeout_recv_response(Some(limit))
        .build();
    if let Some(token) = token {
        request = request.header("Authorization", token);
    }
    let mut response = request.send(body).map_err(|error| unreachable(endpoint, &error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let bytes = response.body_mut().with_config().limit(MAX_REFUSAL).read_to_vec().unwrap_or_default();
    Err(refusal(endpoint, &bytes).unwrap_or_else(|| EtcdError::Refused {
        endpoint: endpoint.into(),
        code: of_status(status.as_u16()),
        message: format!("{status}: {}", start_of(&bytes)),
    }))
}

/// The gRPC status code that a gateway or a proxy before it means by an HTTP status.
fn of_status(status: u16) -> u32 {
    match status {
        401 => 16,
        403 => 7,
        // Too many requests, and whatever a proxy says of a server that it does not reach.
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn read<T: DeserializeOwned>(endpoint: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| EtcdError::Unreachable {
        endpoint: endpoint.into(),
        message: format!("its answer is not understood ({error}): {}", start_of(bytes)),
        unsent: false,
    })
}

/// The error in the body of a refusal, or in a line of a stream.
///
/// Gateways differ: etcd 3.4 writes `{"error":"…","code":14}`, newer ones `{"code":14,"message":"…"}`; in a stream, both
/// put an object under `error`.
pub(super) fn refusal(endpoint: &str, bytes: &[u8]) -> Option<EtcdError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum What {
        Nested { error: Told },
        Named { error: String, code: Option<u32> },
        Flat { code: u32, message: String },
    }
    #[derive(Deserialize)]
    struct Told {
        grpc_code: Option<u32>,
        code: Option<u32>,
        message: String,
    }
    // Only what opens like an error is read as one: other lines may be megabytes long.
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
    let head = head.trim_start().strip_prefix('{')?.trim_start();
    if !["\"error\"", "\"code\"", "\"message\""].iter().any(|name| head.starts_with(name)) {
        return None;
    }
    let (code, message) = match serde_json::from_slice(bytes).ok()? {
        What::Nested { error: Told { grpc_code, code, message } } => (grpc_code.or(code), message),
        What::Named { error, code } => (code, error),
        What::Flat { code, message } => (Some(code), message),
    };
    Some(EtcdError::Refused { endpoint: endpoint.into(), code: code.unwrap_or(2), message })
}

pub(super) fn start_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

fn unreachable(endpoint: &str, error: &ureq::Error) -> EtcdError {
    use ureq::{Error, Timeout};
    let unsent = match error {
        Error::Io(io) => matches!(
            io.kind(),
            std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::HostUnreachable
                | std::io::ErrorKind::NetworkUnreachable
        ),
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => true,
        Error::HostNotFound | Error::ConnectionFailed | Error::Rustls(_) | Error::Tls(_) => true,
        _ => false,
    };
    EtcdError::Unreachable { endpoint: endpoint.into(), message: error.to_string(), unsent }
}

fn agent(settings: &Settings, tls: TlsConfig, global: Option<Duration>) -> Agent {
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .proxy(None)
        .timeout_connect(Some(settings.connect))
        .timeout_global(global)
        .max_idle_connections_per_host(2)
        .build()
        .new_agent()
}

fn load(settings: &Settings) -> Result<Loaded> {
    let stamps = settings.tls.stamps();
    let tls = settings.tls.load().map_err(|error| EtcdError::Settings(format!("{error:#}")))?;
    let agent = agent(settings, tls.clone(), Some(settings.request));
    Ok(Loaded { stamps, tls, agent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_gateways_are_read() {
        let old = br#"{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}"#;
        assert!(matches!(refusal("e", old), Some(EtcdError::Refused { code: 14, .. })));
        let stream =
            br#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"x"}}"#;
        assert!(
            matches!(refusal("e", stream), Some(EtcdError::Refused { code: 14, message, .. }) if message.ends_with("leader"))
        );
        let new = br#"{"code":5, "message":"etcdserver: requested lease not found"}"#;
        assert!(
            matches!(refusal("e", new), Some(EtcdError::Refused { code: 5, message, .. }) if message.ends_with("not found"))
        );
        let nested = br#"{"error":{"code":16, "message":"etcdserver: invalid auth token", "details":[]}}"#;
        assert!(refusal("e", nested).unwrap().wants_new_token());
        assert_eq!(refusal("e", br#"{"header":{}}"#), None);
        assert_eq!(refusal("e", b"<html>"), None);
        assert_eq!((of_status(401), of_status(503), of_status(500)), (16, 14, 2));
    }

    #[test]
    fn an_endpoint_is_left_once() {
        let client = Client::new(Settings::new(["http://a:1/", "http://b:1"])).unwrap();
        let first = client.endpoint().to_owned();
        client.leave(&first);
        let second = client.endpoint().to_owned();
        assert_ne!(first, second);
        client.leave(&first);
        assert_eq!(client.endpoint(), second);
        assert!(Client::new(Settings::new(["10.0.0.1:2379"])).is_err());
        assert!(
            !format!("{:?}", Settings { user: Some(("u".into(), "geheim".into())), ..Settings::new(["http://a"]) })
                .contains("geheim")
        );
    }
}
