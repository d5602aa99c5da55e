//! confd's own settings: `confd.toml`, environment, flags; each overrides the one before.
//!
//! One table, [`KEYS`], names every setting with its key, its flag and what it takes; the environment variable of a flag
//! is `CONFD_` and the flag's name in capitals (`CONFD_CLIENT_CAKEYS` for `-client-ca-keys`, as upstream).

use super::document::{self, Entry};
use crate::{error::UserError, files, log};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// True or false; the flag alone means true.
    Bool,
    /// A whole number.
    Int,
    /// Several strings: a list in the file, separated by commas in the environment, a repeated flag.
    List,
    /// A time such as `30s`.
    Time,
    /// A text that does nothing here: of a backend that is refused anyway, or of what the fork does in another way.
    Unused,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its key in `confd.toml`; empty if only a flag can set it.
    pub key: &'static str,
    /// Its flag.
    pub flag: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
}

const fn key(key: &'static str, flag: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { key, flag, kind, help }
}

/// All settings.
pub const KEYS: &[Key] = &[
    key("backend", "backend", Kind::Text, "Where the keys are: etcdv3 (etcd means the same), consul, file or env"),
    key("nodes", "node", Kind::List, "Addresses of the backend; may be repeated"),
    key("client_cakeys", "client-ca-keys", Kind::Text, "PEM file with the certificates to trust"),
    key("client_cert", "client-cert", Kind::Text, "PEM file with the client's certificate"),
    key("client_key", "client-key", Kind::Text, "PEM file with the client's key"),
    key("client_insecure", "client-insecure", Kind::Bool, "Refused: the backend's certificate is always verified"),
    key("confdir", "confdir", Kind::Text, "Folder with conf.d and templates [default: /etc/confd]"),
    key("interval", "interval", Kind::Int, "Seconds between two readings, in watch mode too [default: 600]"),
    key("log-level", "log-level", Kind::Text, "error, warn, info or debug [default: info]"),
    key("noop", "noop", Kind::Bool, "Only say what would change"),
    key("prefix", "prefix", Kind::Text, "Prefix of all keys; overrides that of a resource"),
    key("scheme", "scheme", Kind::Text, "http or https, for nodes that do not say [default: http]"),
    key("srv_domain", "srv-domain", Kind::Text, "Domain whose SRV record _BACKEND._tcp.DOMAIN lists the nodes"),
    key("srv_record", "srv-record", Kind::Text, "SRV record that lists the nodes"),
    key("sync-only", "sync-only", Kind::Bool, "Write files, but run neither check_cmd nor reload_cmd"),
    key("watch", "watch", Kind::Bool, "Act on changes at once"),
    key("basic_auth", "basic-auth", Kind::Bool, "False: send no user and password [default: they are sent if given]"),
    key("username", "username", Kind::Text, "User"),
    key("password", "password", Kind::Text, "Password"),
    key("auth_token", "auth-token", Kind::Text, "Token for consul"),
    key("file", "file", Kind::List, "YAML or JSON files or folders of the file backend; may be repeated"),
    key("filter", "filter", Kind::Text, "Which files of a folder the file backend reads [default: *]"),
    key("debounce", "debounce", Kind::Time, "How long to wait for further changes [default: 0]"),
    key("batch_interval", "batch-interval", Kind::Time, "The same as -debounce, the longer one counts"),
    key("check_cmd_timeout", "check-cmd-timeout", Kind::Time, "Time for a check_cmd [default: 30s]"),
    key("reload_cmd_timeout", "reload-cmd-timeout", Kind::Time, "Time for a reload_cmd [default: 60s]"),
    key("backend_timeout", "backend-timeout", Kind::Time, "Time for an answer of the backend [default: 4s]"),
    key("dial_timeout", "dial-timeout", Kind::Time, "Time for a connection to the backend [default: 2s]"),
    key(
        "shutdown_timeout",
        "shutdown-timeout",
        Kind::Time,
        "Time to finish the current step at the end [default: 30s]",
    ),
    key("metrics_addr", "metrics-addr", Kind::Text, "Serve /metrics, /health and /ready here; :PORT means loopback"),
    key("state_dir", "state-dir", Kind::Text, "Where what was applied is kept [default: /var/lib/confd]"),
    key(
        "shrink_hold",
        "shrink-hold",
        Kind::Time,
        "How long the store must be healthy before fewer keys count [default: 5s]",
    ),
    key("", "config-file", Kind::Text, "The settings file [default: /etc/confd/confd.toml]"),
    key("", "onetime", Kind::Bool, "Apply everything once and end"),
    key("", "keep-stage-file", Kind::Bool, "Keep the staged files"),
    key("", "check-config", Kind::Bool, "Check settings, resources and templates, and end"),
    key("", "validate", Kind::Bool, "The same as -check-config"),
    key("", "preflight", Kind::Bool, "Check as -check-config does, read every store once, and end"),
    key(
        "failure_mode",
        "failure-mode",
        Kind::Text,
        "With -onetime: best-effort tries all [default], fail-fast ends at once",
    ),
    key("", "secret-keyring", Kind::Text, "Refused: encrypted values are not supported"),
    key("", "systemd-notify", Kind::Bool, "Accepted; readiness is always reported to systemd"),
    key("auth_type", "auth-type", Kind::Unused, "For the backend vault"),
    key("app_id", "app-id", Kind::Unused, "For the backend vault"),
    key("user_id", "user-id", Kind::Unused, "For the backend vault"),
    key("role_id", "role-id", Kind::Unused, "For the backend vault"),
    key("secret_id", "secret-id", Kind::Unused, "For the backend vault"),
    key("path", "path", Kind::Unused, "For the backend vault"),
    key("table", "table", Kind::Unused, "Of dynamodb"),
    key("separator", "separator", Kind::Unused, "Of redis"),
    key("template_cache", "template-cache", Kind::Unused, "Templates are read again at each pass"),
    key("stat_cache_ttl", "stat-cache-ttl", Kind::Unused, "Files are looked at in each pass"),
    key("read_timeout", "read-timeout", Kind::Unused, "Of redis"),
    key("write_timeout", "write-timeout", Kind::Unused, "Of redis"),
    key("preflight_timeout", "preflight-timeout", Kind::Unused, "See -backend-timeout"),
    key("watch_error_backoff", "watch-error-backoff", Kind::Unused, "A store is read again after 0.5 s to 2 s"),
    key("retry_max_attempts", "retry-max-attempts", Kind::Unused, "What fails is tried again until it succeeds"),
    key("retry_base_delay", "retry-base-delay", Kind::Unused, "The first retry comes after 0.5 s"),
    key("retry_max_delay", "retry-max-delay", Kind::Unused, "Retries come at least every 30 s"),
    key("watchdog_interval", "watchdog-interval", Kind::Unused, "The service manager says how often"),
];

/// A value before it is parsed: its strings, and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// One string; several of a list.
    pub texts: Vec<String>,
    /// `confd.toml:3`, `CONFD_INTERVAL` or `-interval`.
    pub source: String,
}

/// Settings by their flags.
pub type Layer = BTreeMap<&'static str, Raw>;

/// All settings of confd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The backend of resources that name none.
    pub backend: BackendSettings,
    /// The folder with `conf.d` and `templates`.
    pub confdir: PathBuf,
    /// The time between two readings.
    pub interval: Duration,
    /// The least important line that is logged.
    pub log_level: log::Level,
    /// Only say what would change.
    pub noop: bool,
    /// Run no commands.
    pub sync_only: bool,
    /// Act on changes at once.
    pub watch: bool,
    /// Apply once and end.
    pub onetime: bool,
    /// Check and end.
    pub check_config: bool,
    /// Check, read every store, and end.
    pub preflight: bool,
    /// Applying once ends at the first failure.
    pub is_fail_fast: bool,
    /// Keep staged files.
    pub keep_stage_file: bool,
    /// Prefix that overrides those of resources; empty for none.
    pub prefix: String,
    /// How long to wait for further changes.
    pub debounce: Duration,
    /// Time for a check command.
    pub check_timeout: Duration,
    /// Time for a reload command.
    pub reload_timeout: Duration,
    /// Time to finish the current step.
    pub shutdown_timeout: Duration,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where what was applied is kept.
    pub state_dir: PathBuf,
    /// How long the store must be healthy before fewer keys count.
    pub shrink_hold: Duration,
}

/// Which store to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendSettings {
    /// Its name: `etcdv3`, `consul`, `file`, `env`.
    pub name: String,
    /// Addresses, with or without a scheme.
    pub nodes: Vec<String>,
    /// `http` or `https`, if given.
    pub scheme: Option<String>,
    /// Certificates to trust.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub user: Option<(String, Password)>,
    /// Consul's token.
    pub token: Option<Password>,
    /// The SRV record that lists the nodes.
    pub srv_record: Option<String>,
    /// Files and folders of the file backend.
    pub files: Vec<PathBuf>,
    /// Which files of a folder count.
    pub filter: String,
    /// Time for a connection.
    pub dial_timeout: Duration,
    /// Time for an answer.
    pub timeout: Duration,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Settings {
    /// Gathers the settings: the file that `flags` (or the environment) names, the environment, the flags.
    ///
    /// # Errors
    /// When a value is wrong, or a backend or flag is not supported.
    pub fn gather(flags: Layer, variable: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let environment = from_environment(&variable);
        let named = flags.get("config-file").or_else(|| environment.get("config-file"));
        let path = named.map_or(Path::new("/etc/confd/confd.toml"), |raw| Path::new(&raw.texts[0]));
        let mut layer = if path.exists() {
            from_file(path, &files::read_text(path)?)?
        } else if named.is_some() {
            log::warning!("there is no settings file {}", path.display());
            Layer::new()
        } else {
            Layer::new()
        };
        layer.extend(environment);
        layer.extend(flags);
        Settings::read(&Reader(layer), variable)
    }

    /// Reads the text of a settings file alone.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Settings> {
        Settings::read(&Reader(from_file(path, text)?), |_| None)
    }

    fn read(reader: &Reader, variable: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        if reader.bool("client-insecure")? == Some(true) {
            return Err(UserError::usage(
                "-client-insecure is not supported: the backend's certificate is always verified",
            )
            .hint("give the certificates to trust with -client-ca-keys")
            .into());
        }
        if reader.text("secret-keyring").is_some() {
            return Err(UserError::usage("-secret-keyring is not supported: encrypted values cannot be read").into());
        }
        for key in KEYS.iter().filter(|key| key.kind == Kind::Unused) {
            if let Some(raw) = reader.0.get(key.flag) {
                log::warning!("{}: -{} does nothing here ({})", raw.source, key.flag, key.help);
            }
        }
        let level = reader.text("log-level").filter(|level| !level.is_empty());
        let level =
            level.map_or(Ok(log::Level::Info), |level| level.parse().map_err(|error| reader.wrong("log-level", error)));
        let interval = reader.int("interval")?.unwrap_or(600);
        let interval = u64::try_from(interval).ok().filter(|seconds| *seconds > 0);
        let debounce =
            reader.time("debounce")?.unwrap_or_default().max(reader.time("batch-interval")?.unwrap_or_default());
        let metrics = reader.text("metrics-addr").filter(|address| !address.is_empty());
        let metrics = metrics.map(|address| loopback(address).map_err(|error| reader.wrong("metrics-addr", error)));
        Ok(Settings {
            backend: BackendSettings::read(reader, variable)?,
            confdir: reader.text("confdir").unwrap_or("/etc/confd").into(),
            interval: Duration::from_secs(interval.ok_or_else(|| reader.wrong("interval", "must be at least 1"))?),
            log_level: level?,
            noop: reader.bool("noop")?.unwrap_or_default(),
            sync_only: reader.bool("sync-only")?.unwrap_or_default(),
            watch: reader.bool("watch")?.unwrap_or_default(),
            onetime: reader.bool("onetime")?.unwrap_or_default(),
            check_config: reader.bool("check-config")?.unwrap_or_default()
                || reader.bool("validate")?.unwrap_or_default(),
            preflight: reader.bool("preflight")?.unwrap_or_default(),
            is_fail_fast: match reader.text("failure-mode") {
                None | Some("" | "best-effort") => false,
                Some("fail-fast") => true,
                Some(mode) => {
                    let message = format!("`{mode}` is neither best-effort nor fail-fast");
                    return Err(reader.wrong("failure-mode", message));
                }
            },
            keep_stage_file: reader.bool("keep-stage-file")?.unwrap_or_default(),
            prefix: reader.text("prefix").unwrap_or_default().to_owned(),
            debounce,
            check_timeout: reader.time("check-cmd-timeout")?.unwrap_or(Duration::from_secs(30)),
            reload_timeout: reader.time("reload-cmd-timeout")?.unwrap_or(Duration::from_secs(60)),
            shutdown_timeout: reader.time("shutdown-timeout")?.unwrap_or(Duration::from_secs(30)),
            metrics: metrics.transpose()?,
            state_dir: reader.text("state-dir").unwrap_or("/var/lib/confd").into(),
            shrink_hold: reader.time("shrink-hold")?.unwrap_or(Duration::from_secs(5)),
        })
    }
}

impl BackendSettings {
    /// Reads the `[backend]` table of a resource, which starts from nothing.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn from_table<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Result<BackendSettings> {
        BackendSettings::read(&Reader(from_entries(entries)?), |_| None)
    }

    fn read(reader: &Reader, variable: impl Fn(&str) -> Option<String>) -> Result<BackendSettings> {
        let name = match reader.text("backend").unwrap_or("etcd") {
            "etcd" | "etcdv3" => "etcdv3",
            name @ ("consul" | "file" | "env") => name,
            name => {
                return Err(UserError::usage(format!("the backend `{name}` is not supported"))
                    .hint("backends: etcdv3, consul, file, env")
                    .into());
            }
        };
        let path = |flag| reader.text(flag).filter(|path| !path.is_empty()).map(PathBuf::from);
        let certificate = match (path("client-cert"), path("client-key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(UserError::usage("client_cert is given without client_key").into()),
            (None, Some(_)) => return Err(UserError::usage("client_key is given without client_cert").into()),
        };
        let scheme = reader.text("scheme").filter(|scheme| !scheme.is_empty());
        if let Some(scheme) = scheme.filter(|scheme| !matches!(*scheme, "http" | "https")) {
            return Err(reader.wrong("scheme", format!("`{scheme}` is neither http nor https")));
        }
        let may_send = reader.bool("basic-auth")?.unwrap_or(true);
        let user = reader.text("username").filter(|user| may_send && !user.is_empty());
        let password = || Password(reader.text("password").unwrap_or_default().to_owned());
        let domain = reader.text("srv-domain").filter(|domain| !domain.is_empty());
        let record = reader.text("srv-record").filter(|record| !record.is_empty()).map(str::to_owned);
        let mut nodes = reader.texts("node").to_vec();
        if nodes.is_empty() && name == "etcdv3" {
            let peers = variable("ETCDCTL_PEERS").unwrap_or_default();
            nodes = peers.split(',').filter(|peer| !peer.is_empty()).map(str::to_owned).collect();
        }
        Ok(BackendSettings {
            name: name.to_owned(),
            nodes,
            scheme: scheme.map(str::to_owned),
            ca: path("client-ca-keys"),
            certificate,
            user: user.map(|user| (user.to_owned(), password())),
            token: reader.text("auth-token").filter(|token| !token.is_empty()).map(|token| Password(token.to_owned())),
            // Upstream looks for `_etcd._tcp` or `_etcdv3._tcp`, by the name that is given.
            srv_record: record.or_else(|| {
                domain.map(|domain| {
                    format!("_{}._tcp.{}.", reader.text("backend").unwrap_or("etcd"), domain.trim_end_matches('.'))
                })
            }),
            files: reader.texts("file").iter().map(PathBuf::from).collect(),
            filter: reader.text("filter").unwrap_or("*").to_owned(),
            dial_timeout: reader.time("dial-timeout")?.unwrap_or(Duration::from_secs(2)),
            timeout: reader.time("backend-timeout")?.unwrap_or(Duration::from_secs(4)),
        })
    }

    /// The nodes as URLs; `default` (host and port) if none is given. A node without a scheme gets `https` if the
    /// settings ask for TLS or name TLS files.
    pub fn urls(&self, default: &str) -> Vec<String> {
        let nodes = if self.nodes.is_empty() { vec![default.to_owned()] } else { self.nodes.clone() };
        let scheme = self.default_scheme();
        nodes
            .iter()
            .map(|node| if node.contains("://") { node.clone() } else { format!("{scheme}://{node}") })
            .collect()
    }

    /// The scheme of a node that names none.
    pub fn default_scheme(&self) -> &str {
        let has_tls = self.ca.is_some() || self.certificate.is_some();
        self.scheme.as_deref().unwrap_or(if has_tls { "https" } else { "http" })
    }
}

/// Reads values out of the layers.
#[derive(Debug)]
struct Reader(Layer);

impl Reader {
    fn text(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).and_then(|raw| raw.texts.last()).map(String::as_str)
    }

    fn texts(&self, flag: &str) -> &[String] {
        self.0.get(flag).map_or(&[], |raw| &raw.texts)
    }

    fn bool(&self, flag: &str) -> Result<Option<bool>> {
        let parse = |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(self.wrong(flag, format!("`{text}` is neither true nor false"))),
        };
        self.text(flag).map(parse).transpose()
    }

    fn int(&self, flag: &str) -> Result<Option<i64>> {
        self.text(flag)
            .map(|text| text.parse().map_err(|_| self.wrong(flag, format!("`{text}` is not a whole number"))))
            .transpose()
    }

    fn time(&self, flag: &str) -> Result<Option<Duration>> {
        self.text(flag).map(|text| document::duration(text).map_err(|error| self.wrong(flag, error))).transpose()
    }

    fn wrong(&self, flag: &str, message: impl std::fmt::Display) -> anyhow::Error {
        let source = self.0.get(flag).map_or(flag, |raw| &raw.source);
        UserError::usage(format!("{source}: {message}")).into()
    }
}

/// The key of a file, whatever it writes between its words.
fn by_key(key: &str) -> Option<&'static Key> {
    let plain = |key: &str| key.replace('-', "_");
    KEYS.iter().find(|own| !own.key.is_empty() && plain(own.key) == plain(key))
}

fn from_file(path: &Path, text: &str) -> Result<Layer> {
    from_entries(document::parse(path, text)?.entries())
}

fn from_entries<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Result<Layer> {
    let mut layer = Layer::new();
    for entry in entries {
        let Some(key) = by_key(entry.key()) else {
            log::warning!("{}: the key `{}` is not known and does nothing", entry.at(), entry.key());
            continue;
        };
        let texts = match key.kind {
            Kind::Text | Kind::Unused => vec![entry.text()?],
            Kind::Bool => vec![entry.bool()?.to_string()],
            Kind::Int => vec![entry.int()?.to_string()],
            Kind::List => entry.texts().or_else(|error| entry.text().map(|text| vec![text]).map_err(|_| error))?,
            Kind::Time => entry.duration().and_then(|_| Ok(vec![entry.text()?]))?,
        };
        layer.insert(key.flag, Raw { texts, source: entry.at() });
    }
    Ok(layer)
}

/// The variable of a flag.
pub fn variable_of(flag: &str) -> String {
    match flag {
        "client-ca-keys" => "CONFD_CLIENT_CAKEYS".to_owned(),
        "node" => "CONFD_NODES".to_owned(),
        flag => format!("CONFD_{}", flag.to_uppercase().replace('-', "_")),
    }
}

fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Layer {
    let one = |key: &Key| {
        let name = variable_of(key.flag);
        let value = variable(&name).filter(|value| !value.is_empty())?;
        let texts = match key.kind {
            Kind::List => value.split(',').map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect(),
            _ => vec![value],
        };
        Some((key.flag, Raw { texts, source: name }))
    };
    KEYS.iter().filter_map(one).collect()
}

/// The variable of this process.
pub fn process_variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// An address to listen on; `:9100` means loopback.
fn loopback(address: &str) -> Result<SocketAddr> {
    let full = if address.starts_with(':') {
        format!("127.0.0.1{address}")
    } else {
        address.replace("localhost", "127.0.0.1")
    };
    full.parse().with_context(|| format!("`{address}` is not an address such as 127.0.0.1:9100 or :9100"))
}

#[cfg(test)]
mod tests;
