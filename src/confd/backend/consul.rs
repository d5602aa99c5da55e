//! Consul's key-value store, through its HTTP API with blocking queries.

use super::{Backend, Snapshot, Stop, Values, WatchEvent, outermost};
use crate::{confd::settings::BackendSettings, tls::TlsFiles};
use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use ureq::Agent;

/// How long Consul may hold an answer back. Consul adds up to a sixteenth.
const WAIT: Duration = Duration::from_secs(5);

/// A Consul agent, or several.
#[derive(Debug)]
pub struct Consul {
    urls: Vec<String>,
    current: AtomicUsize,
    authorization: Option<String>,
    token: Option<String>,
    tls: TlsFiles,
    settings: BackendSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: Option<String>,
}

impl Consul {
    /// The agents of the settings.
    ///
    /// # Errors
    /// When the SRV record cannot be looked up.
    pub fn new(settings: &BackendSettings) -> Result<Consul> {
        let urls = match &settings.srv_record {
            Some(record) => crate::etcd::endpoints_from_srv(record, settings.default_scheme())?,
            None => settings.urls("127.0.0.1:8500"),
        };
        let basic = settings.user.as_ref().map(|(user, password)| STANDARD.encode(format!("{user}:{}", password.0)));
        Ok(Consul {
            urls: urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            authorization: basic.map(|basic| format!("Basic {basic}")),
            token: settings.token.as_ref().map(|token| token.0.clone()),
            tls: TlsFiles { ca: settings.ca.clone(), certificate: settings.certificate.clone() },
            settings: settings.clone(),
        })
    }

    /// All pairs whose keys begin with `place`, and the store's index; waits for one after `index` if that is given.
    fn list(&self, place: &str, index: Option<u64>) -> Result<(u64, Vec<Pair>)> {
        let at = self.current.load(Ordering::Relaxed);
        let url = &self.urls[at % self.urls.len()];
        let outcome = self.list_at(url, place, index).with_context(|| format!("asking consul at {url}"));
        if outcome.is_err() {
            let _ = self.current.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        outcome
    }

    fn list_at(&self, url: &str, place: &str, index: Option<u64>) -> Result<(u64, Vec<Pair>)> {
        let (held, limit) = match index {
            Some(index) => {
                (format!("&index={index}&wait={}s", WAIT.as_secs()), WAIT + WAIT / 16 + self.settings.timeout)
            }
            None => (String::new(), self.settings.timeout),
        };
        // Files are read again each time, so a rotated certificate needs no restart.
        let agent: Agent = Agent::config_builder()
            .tls_config(self.tls.load()?)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(self.settings.dial_timeout))
            .timeout_global(Some(limit))
            .build()
            .into();
        let key = place.trim_start_matches('/');
        let mut request = agent.get(format!("{url}/v1/kv/{}?recurse=true{held}", escaped(key)));
        for (name, value) in [("Authorization", &self.authorization), ("X-Consul-Token", &self.token)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let mut response = request.call()?;
        let index = response.headers().get("X-Consul-Index").and_then(|index| index.to_str().ok()?.parse().ok());
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
        match (status, index) {
            (200, Some(index)) => Ok((index, serde_json::from_str(&body).context("reading its answer")?)),
            (404, Some(index)) => Ok((index, Vec::new())),
            _ => bail!("it answers with status {status}: {}", body.chars().take(200).collect::<String>()),
        }
    }
}

fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    key.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// What all places begin with, up to a slash.
fn common(places: &[&str]) -> String {
    let first = places.first().copied().unwrap_or("/");
    let shared = places.iter().fold(first.len(), |length, place| {
        first.bytes().zip(place.bytes()).take(length).take_while(|(a, b)| a == b).count()
    });
    if places.len() < 2 {
        return first.to_owned();
    }
    first
        .get(..shared)
        .and_then(|shared| Some(shared[..=shared.rfind('/')?].to_owned()))
        .unwrap_or_else(|| "/".to_owned())
}

impl Backend for Consul {
    fn read(&self, places: &[String]) -> Result<Snapshot> {
        let places = outermost(places, |place, key| self.covers(place, key));
        // The index comes first: a change between the two answers is then reported again rather than missed.
        let (revision, mut pairs) = self.list(&common(&places), None)?;
        if places.len() != 1 {
            pairs.retain(|pair| places.iter().any(|place| self.covers(place, &format!("/{}", pair.key))));
        }
        let mut values = Values::new();
        for pair in pairs {
            let value = STANDARD.decode(pair.value.unwrap_or_default()).context("reading a value")?;
            let key = super::super::path::clean(&format!("/{}", pair.key));
            values.insert(Arc::from(key), Arc::from(String::from_utf8_lossy(&value)));
        }
        Ok(Snapshot { values, revision, cluster: 0 })
    }

    fn watch(
        &self,
        places: &[String],
        from: &Snapshot,
        until: Instant,
        stop: &Stop,
        report: &mut dyn FnMut(WatchEvent),
    ) -> Result<()> {
        let place = common(&outermost(places, |place, key| self.covers(place, key)));
        while !stop.is_set() && Instant::now() < until {
            // Index 0 would not wait at all. An index that went backwards belongs to a store that was restored.
            let (index, _) = self.list(&place, Some(from.revision.max(1)))?;
            report(WatchEvent::Alive);
            if index != from.revision {
                return Ok(());
            }
        }
        Ok(())
    }

    /// As upstream, by the beginning of the key.
    fn covers(&self, place: &str, key: &str) -> bool {
        key.starts_with(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_beginning_ends_at_a_slash() {
        assert_eq!(common(&["/a/b"]), "/a/b");
        assert_eq!(common(&["/a/bc", "/a/bd"]), "/a/");
        assert_eq!(common(&["/a", "/b"]), "/");
        assert_eq!(common(&[]), "/");
        assert_eq!(escaped("a b/ü"), "a%20b/%C3%BC");
    }
}
