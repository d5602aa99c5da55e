//! Where keys come from: etcd, consul, files, the environment.

mod consul;
mod env;
mod etcdv3;
mod file;

use super::settings::BackendSettings;
use anyhow::Result;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Keys with their values.
pub type Values = BTreeMap<Arc<str>, Arc<str>>;

/// What a store held at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The keys asked for, and those below them.
    pub values: Values,
    /// The store's revision; 0 where there is none.
    pub revision: u64,
    /// Which store it is; 0 where that is unknown.
    pub cluster: u64,
}

/// A change that a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Arc<str>,
    /// Its new value; nothing if it is gone.
    pub value: Option<Arc<str>>,
}

/// An event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// Changes, all up to this revision.
    Changes(u64, Vec<Change>),
    /// The store answers and has a quorum.
    Alive,
}

/// Ends the waiting of other threads.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks everybody to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether [`Stop::set`] was called.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A store of keys.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Reads all keys that `places` cover, as they are at one moment, with the store's quorum.
    ///
    /// # Errors
    /// When the store does not answer, or not with authority.
    fn read(&self, places: &[String]) -> Result<Snapshot>;

    /// Waits for changes after `from` until `until` or `stop` and reports them. Returns when everything is to be read
    /// again.
    ///
    /// # Errors
    /// When the store does not answer any more, or has lost its quorum.
    fn watch(
        &self,
        places: &[String],
        from: &Snapshot,
        until: Instant,
        stop: &Stop,
        report: &mut dyn FnMut(WatchEvent),
    ) -> Result<()>;

    /// Whether asking for `place` gives `key`.
    fn covers(&self, place: &str, key: &str) -> bool;
}

/// Opens the backend that the settings describe. Nothing is connected yet.
///
/// # Errors
/// When the settings cannot work.
pub fn open(settings: &BackendSettings) -> Result<Arc<dyn Backend>> {
    Ok(match settings.name.as_str() {
        "consul" => Arc::new(consul::Consul::new(settings)?),
        "file" => Arc::new(file::Files::new(settings)?),
        "env" => Arc::new(env::Environment::of_process()),
        _ => Arc::new(etcdv3::Etcd::new(settings)?),
    })
}

/// The places without those that others cover.
fn outermost(places: &[String], covers: impl Fn(&str, &str) -> bool) -> Vec<&str> {
    let mut sorted: Vec<&str> = places.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut outermost: Vec<&str> = Vec::new();
    for place in sorted {
        if !outermost.iter().any(|outer| covers(outer, place)) {
            outermost.push(place);
        }
    }
    outermost
}

#[cfg(test)]
mod tests {
    use super::{super::path::is_within, *};

    #[test]
    fn places_within_others_are_not_read_twice() {
        let places = ["/a/b", "/a", "/ab", "/a", "/c/d"].map(str::to_owned);
        assert_eq!(outermost(&places, |place, key| is_within(key, place)), ["/a", "/ab", "/c/d"]);
        assert_eq!(outermost(&["/".to_owned(), "/x".to_owned()], |place, key| is_within(key, place)), ["/"]);
    }
}
