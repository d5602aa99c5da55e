//! Keeps what a backend holds up to date: one thread, shared by the resources that read from it.

use super::{
    backend::{Backend, Change, Snapshot, Stop, WatchEvent},
    memkv::Store,
    metrics::Metrics,
    schedule::retry_delay,
};
use crate::log;
use anyhow::Result;
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The longest pause between two tries to read.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Wakes a worker.
#[derive(Debug, Default)]
pub struct Waker {
    reason: Mutex<WakeReason>,
    woken: Condvar,
}

/// Why a worker was woken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakeReason {
    /// Its keys changed, or all were read again.
    pub changed: bool,
    /// It is to end.
    pub stop: bool,
}

impl Waker {
    /// Wakes the worker.
    pub fn wake(&self, why: WakeReason) {
        let mut reason = lock(&self.reason);
        reason.changed |= why.changed;
        reason.stop |= why.stop;
        self.woken.notify_all();
    }

    /// Waits until rung, at most `limit`; what was rung is then forgotten, except the end.
    pub fn wait(&self, limit: Duration) -> WakeReason {
        let reason = lock(&self.reason);
        let waiting = |reason: &mut WakeReason| *reason == WakeReason::default();
        let (mut reason, _) =
            self.woken.wait_timeout_while(reason, limit, waiting).unwrap_or_else(PoisonError::into_inner);
        let why = *reason;
        reason.changed = false;
        why
    }
}

/// What a worker reads.
#[derive(Debug, Clone)]
pub struct StoreView {
    /// The resource's keys, without the prefix.
    pub store: Arc<Store>,
    /// The store's revision.
    pub revision: u64,
    /// Which store it is.
    pub cluster: u64,
    /// How long it has answered with a quorum; nothing if it does not now.
    pub healthy_for: Option<Duration>,
}

/// A backend's keys.
#[derive(Debug)]
pub struct Watcher {
    backend: Arc<dyn Backend>,
    places: Vec<String>,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Snapshot>,
    healthy_since: Option<Instant>,
    wakers: Vec<(Vec<String>, Arc<Waker>)>,
}

impl Watcher {
    /// A watcher for `wakers`: each with the places that it needs.
    pub fn new(backend: Arc<dyn Backend>, wakers: Vec<(Vec<String>, Arc<Waker>)>, metrics: Arc<Metrics>) -> Watcher {
        let mut places: Vec<String> = wakers.iter().flat_map(|(places, _)| places.clone()).collect();
        places.sort_unstable();
        places.dedup();
        Watcher { backend, places, state: Mutex::new(State { wakers, ..State::default() }), metrics }
    }

    /// Reads once and wakes everybody.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub fn read(&self) -> Result<Snapshot> {
        match self.backend.read(&self.places) {
            Ok(snapshot) => {
                self.metrics.store_answered(snapshot.revision);
                let mut state = lock(&self.state);
                state.healthy_since.get_or_insert_with(Instant::now);
                state.snapshot = Some(snapshot.clone());
                for (_, waker) in &state.wakers {
                    waker.wake(WakeReason { changed: true, stop: false });
                }
                Ok(snapshot)
            }
            Err(error) => {
                self.lost();
                Err(error)
            }
        }
    }

    /// What `places` hold, without `prefix`; nothing before the first answer.
    pub fn view(&self, places: &[String], prefix: &str) -> Option<StoreView> {
        let state = lock(&self.state);
        let snapshot = state.snapshot.as_ref()?;
        let wanted = |key: &str| places.iter().any(|place| self.backend.covers(place, key));
        let pairs = snapshot.values.iter().filter(|(key, _)| wanted(key));
        let store = pairs.map(|(key, value)| (relative(key, prefix), Arc::clone(value))).collect();
        Some(StoreView {
            store: Arc::new(store),
            revision: snapshot.revision,
            cluster: snapshot.cluster,
            healthy_for: state.healthy_since.map(|since| since.elapsed()),
        })
    }

    /// Keeps the keys up to date until `stop`: watches, and reads all again every `interval`.
    pub fn run(&self, is_watching: bool, interval: Duration, stop: &Stop) {
        let mut failures: u32 = 0;
        while !stop.is_set() {
            let until = Instant::now() + interval;
            let outcome = self.read().and_then(|snapshot| {
                failures = 0;
                self.follow(is_watching, &snapshot, until, stop)
            });
            if let Err(error) = outcome {
                self.lost();
                failures += 1;
                let pause = retry_delay(failures).min(LONGEST_PAUSE);
                log::error!("{error:#}; trying again in {} s", pause.as_secs_f64());
                sleep(pause, stop);
            }
        }
    }

    fn follow(&self, is_watching: bool, snapshot: &Snapshot, until: Instant, stop: &Stop) -> Result<()> {
        if is_watching {
            return self.backend.watch(&self.places, snapshot, until, stop, &mut |event| self.take(event));
        }
        sleep(until.saturating_duration_since(Instant::now()), stop);
        Ok(())
    }

    fn take(&self, event: WatchEvent) {
        let mut state = lock(&self.state);
        state.healthy_since.get_or_insert_with(Instant::now);
        let WatchEvent::Changes(revision, changes) = event else {
            self.metrics.store_alive();
            return;
        };
        self.metrics.store_answered(revision);
        let State { snapshot: Some(snapshot), wakers, .. } = &mut *state else { return };
        snapshot.revision = snapshot.revision.max(revision);
        for (places, waker) in wakers.iter() {
            let concerns = |change: &Change| places.iter().any(|place| self.backend.covers(place, &change.key));
            if changes.iter().any(concerns) {
                waker.wake(WakeReason { changed: true, stop: false });
            }
        }
        for Change { key, value } in changes {
            match value {
                Some(value) => drop(snapshot.values.insert(key, value)),
                None => drop(snapshot.values.remove(&key)),
            }
        }
    }

    fn lost(&self) {
        self.metrics.store_lost();
        lock(&self.state).healthy_since = None;
    }
}

/// The key as templates see it.
fn relative(key: &Arc<str>, prefix: &str) -> Arc<str> {
    if prefix == "/" {
        return Arc::clone(key);
    }
    Arc::from(super::path::clean(&format!("/{}", key.strip_prefix(prefix).unwrap_or(key))))
}

fn sleep(pause: Duration, stop: &Stop) {
    let end = Instant::now() + pause;
    while !stop.is_set() && Instant::now() < end {
        thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(200)));
    }
}

/// A poisoned lock guards whole values here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
