//! etcd: reads at one revision through the quorum, watches with a leader.
//!
//! A frozen or cut-off member may keep a watch open and send nothing. So the store is read through the quorum every
//! [`PROBE`] while a watch is open: without an answer the endpoint is left, and an older revision means that the store
//! was wiped.

use super::{Backend, Change, Snapshot, Stop, WatchEvent, outermost};
use crate::{
    confd::{path::is_within, settings::BackendSettings},
    etcd::{Client, EtcdError, Event, KeyValue, Next, RangeRequest, Settings, endpoints_from_srv},
    log,
    tls::TlsFiles,
};
use anyhow::{Context as _, Result};
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// How many operations a transaction may have, by etcd's default.
const TXN: usize = 128;
/// How many keys one request reads.
const PAGE: usize = 4000;
/// How many ranges are watched on their own; more are watched as one range that spans them all.
const WATCHES: usize = 8;
/// How often keys are read where the range that spans them may not be watched.
const POLL: Duration = Duration::from_secs(1);
/// How often the quorum is read while a watch is open.
const PROBE: Duration = Duration::from_secs(2);

/// An etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    settings: BackendSettings,
    client: OnceLock<Client>,
}

impl Etcd {
    /// The cluster of the settings. Without an SRV record a mistake is found at once.
    ///
    /// # Errors
    /// When the settings cannot work.
    pub fn new(settings: &BackendSettings) -> Result<Etcd> {
        let etcd = Etcd { settings: settings.clone(), client: OnceLock::new() };
        if etcd.settings.srv_record.is_none() {
            // The certificates may be written a little later than we start.
            if let Err(error) = etcd.client() {
                log::warning!("{error:#}");
            }
        }
        Ok(etcd)
    }

    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let endpoints = match &self.settings.srv_record {
            Some(record) => endpoints_from_srv(record, self.settings.default_scheme())?,
            None => self.settings.urls("127.0.0.1:2379"),
        };
        let client = Client::new(Settings {
            tls: TlsFiles { ca: self.settings.ca.clone(), certificate: self.settings.certificate.clone() },
            user: self.settings.user.clone().map(|(name, password)| (name, password.0)),
            connect: self.settings.dial_timeout,
            request: self.settings.timeout,
            ..Settings::new(endpoints)
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Reads the ranges at `endpoint` with answers of at most `page` keys.
    fn read_at(&self, client: &Client, endpoint: &str, places: &[&str], page: usize) -> Result<Snapshot, EtcdError> {
        let mut snapshot = Snapshot::default();
        for places in places.chunks(TXN) {
            let ranges: Vec<RangeRequest> = places
                .iter()
                .map(|place| RangeRequest {
                    revision: snapshot.revision,
                    limit: (page / places.len()).max(1),
                    ..range(place)
                })
                .collect();
            let answer = client.ranges_at(endpoint, &ranges)?;
            if answer.header.revision == 0 {
                // Every store has a revision; what has none must not pass for an empty store.
                let (endpoint, message) = (endpoint.into(), "its answer has no revision".into());
                return Err(EtcdError::Unreachable { endpoint, message, unsent: false });
            }
            if snapshot.revision == 0 {
                snapshot.revision = answer.header.revision;
                snapshot.cluster = answer.header.cluster_id;
            }
            for (place, (mut request, result)) in places.iter().zip(ranges.into_iter().zip(answer.responses)) {
                let mut result = result.range.unwrap_or_default();
                request.revision = snapshot.revision;
                request.limit = page;
                loop {
                    let last = result.kvs.last().map(|kv| kv.key.clone());
                    keep(place, result.kvs, &mut snapshot);
                    let (true, Some(mut next)) = (result.more, last) else { break };
                    next.push(0);
                    request.key = next;
                    result = client.range_at(endpoint, &request)?;
                }
            }
        }
        Ok(snapshot)
    }
}

/// The range that holds a place and what lies below it; `0` follows the slash. A few neighbours are in it too.
fn range(place: &str) -> RangeRequest {
    let below = place.strip_suffix('/').unwrap_or(place);
    RangeRequest { key: place.into(), end: format!("{below}0").into(), ..RangeRequest::default() }
}

/// The ranges to watch for places that are sorted.
fn watched(places: &[&str]) -> Vec<RangeRequest> {
    let ranges: Vec<RangeRequest> = places.iter().map(|place| range(place)).collect();
    match (ranges.first(), ranges.iter().map(|range| &range.end).max()) {
        (Some(first), Some(end)) if ranges.len() > WATCHES => {
            vec![RangeRequest { end: end.clone(), ..first.clone() }]
        }
        _ => ranges,
    }
}

fn text(bytes: &[u8]) -> Arc<str> {
    Arc::from(String::from_utf8_lossy(bytes))
}

fn keep(place: &str, kvs: Vec<KeyValue>, snapshot: &mut Snapshot) {
    let pairs = kvs.into_iter().map(|kv| (text(&kv.key), text(&kv.value)));
    snapshot.values.extend(pairs.filter(|(key, _)| is_within(key, place)));
}

impl Backend for Etcd {
    fn read(&self, places: &[String]) -> Result<Snapshot> {
        let client = self.client()?;
        let places = outermost(places, |place, key| is_within(key, place));
        if places.is_empty() {
            return Ok(Snapshot::default());
        }
        let mut page = PAGE;
        let mut left = client.settings().endpoints.len();
        loop {
            let endpoint = client.endpoint().to_owned();
            match self.read_at(client, &endpoint, &places, page) {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) if error.too_large() && page > 1 => page /= 4,
                Err(error) if error.elsewhere() && left > 1 => {
                    log::debug!("{error}");
                    client.leave(&endpoint);
                    left -= 1;
                }
                Err(error) => {
                    if error.elsewhere() {
                        client.leave(&endpoint);
                    }
                    return Err(error).context("reading keys");
                }
            }
        }
    }

    fn watch(
        &self,
        places: &[String],
        from: &Snapshot,
        until: Instant,
        stop: &Stop,
        report: &mut dyn FnMut(WatchEvent),
    ) -> Result<()> {
        let client = self.client()?;
        let places = outermost(places, |place, key| is_within(key, place));
        let Some(first) = places.first() else { return Ok(()) };
        let endpoint = client.endpoint().to_owned();
        let outcome = watch(client, &endpoint, &places, from, until, stop, report, first);
        if let Err(error) = &outcome {
            // Whatever ended the watch, another endpoint is the better next try.
            client.leave(&endpoint);
            if error.wants_new_token() || error.denied() {
                client.forget_token();
            }
        }
        outcome.context("watching keys")
    }

    fn covers(&self, place: &str, key: &str) -> bool {
        is_within(key, place)
    }
}

#[allow(clippy::too_many_arguments, reason = "the body of one method, with what it found out")]
fn watch(
    client: &Client,
    endpoint: &str,
    places: &[&str],
    from: &Snapshot,
    until: Instant,
    stop: &Stop,
    report: &mut dyn FnMut(WatchEvent),
    probed: &str,
) -> Result<(), EtcdError> {
    let ranges = watched(places);
    let mut watch = client.watch_at(endpoint, &ranges, from.revision + 1)?;
    let probe = RangeRequest { count_only: true, ..RangeRequest::key(probed) };
    let mut seen = from.revision;
    let mut next_probe = Instant::now() + PROBE;
    while !stop.is_set() {
        let now = Instant::now();
        if now >= until {
            return Ok(());
        }
        if now >= next_probe {
            let header = client.range_at(endpoint, &probe)?.header;
            if header.revision < seen || header.cluster_id != from.cluster {
                log::warning!("the store at {endpoint} is another or older one: reading everything again");
                return Ok(());
            }
            report(WatchEvent::Alive);
            next_probe = now + PROBE;
        }
        let wait = until.min(next_probe).saturating_duration_since(now).min(Duration::from_millis(500));
        let next = match watch.next(wait) {
            Err(error) if error.denied() && ranges.len() < places.len() => {
                log::debug!("{error}: reading every {} s instead", POLL.as_secs());
                return poll(until.min(now + POLL), stop);
            }
            next => next?,
        };
        match next {
            Next::Quiet => {}
            Next::Compacted(revision) => {
                log::info!("the store was compacted up to revision {revision}: reading everything again");
                return Ok(());
            }
            Next::Events(header, events) => {
                seen = seen.max(header.revision);
                let changes: Vec<Change> = events.into_iter().filter_map(|event| change(event, places)).collect();
                if !changes.is_empty() {
                    report(WatchEvent::Changes(header.revision, changes));
                }
            }
        }
    }
    Ok(())
}

/// Waits; the caller then reads everything again.
fn poll(until: Instant, stop: &Stop) -> Result<(), EtcdError> {
    while !stop.is_set() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn change(event: Event, places: &[&str]) -> Option<Change> {
    let (kv, value) = match event {
        Event::Put(kv) => {
            let value = text(&kv.value);
            (kv, Some(value))
        }
        Event::Delete(kv) => (kv, None),
    };
    let key = text(&kv.key);
    places.iter().any(|place| is_within(&key, place)).then_some(Change { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_range_and_many_are_one() {
        assert_eq!((range("/a").key, range("/a").end), (b"/a".to_vec(), b"/a0".to_vec()));
        assert_eq!((range("/").key, range("/").end), (b"/".to_vec(), b"0".to_vec()));
        assert_eq!(watched(&["/a", "/b"]).len(), 2);
        let many = ["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h", "/i"];
        assert_eq!(watched(&many), [RangeRequest { end: b"/i0".to_vec(), ..RangeRequest::key("/a") }]);
    }
}
