//! One thread per resource: waits for what concerns it, does its passes when they are due.

use super::{
    apply::Applier,
    schedule::{Outcome, Schedule},
    watcher::{Waker, Watcher},
};
use crate::log;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest that a worker sleeps without a sign of life.
const BEAT: Duration = Duration::from_secs(5);

/// When a worker was last seen, for the watchdog.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds after `start` until which silence is not a cause for worry.
    until: AtomicU64,
}

impl Heartbeat {
    /// A pulse that beats now.
    pub fn new() -> Heartbeat {
        let heartbeat = Heartbeat { start: Instant::now(), until: AtomicU64::new(0) };
        heartbeat.beat(BEAT);
        heartbeat
    }

    /// The worker is alive, and may be silent for this long.
    fn beat(&self, silence: Duration) {
        let until = self.start.elapsed() + silence * 2;
        self.until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether the worker has not been silent for too long.
    pub fn is_well(&self) -> bool {
        self.start.elapsed().as_millis() as u64 <= self.until.load(Ordering::Relaxed)
    }
}

/// Works until it is stopped; the current step is finished.
pub fn work(mut applier: Applier, watcher: &Watcher, waker: &Waker, interval: Duration, heartbeat: &Arc<Heartbeat>) {
    let start = Instant::now();
    let mut schedule = Schedule::new(interval, applier.resource().debounce);
    let commands = applier.resource().check_timeout + applier.resource().reload_timeout;
    heartbeat.beat(commands + BEAT);
    match applier.wake() {
        Ok(true) => applier.usable(),
        Ok(false) => {}
        Err(error) => log::error!("{error:#}"),
    }
    loop {
        heartbeat.beat(BEAT);
        let wait = schedule.due().saturating_sub(start.elapsed());
        let reason = waker.wait(wait.min(BEAT));
        if reason.stop {
            return;
        }
        if reason.changed {
            schedule.changed(start.elapsed());
        }
        if schedule.due() > start.elapsed() {
            continue;
        }
        heartbeat.beat(commands + BEAT);
        let (places, prefix) = (&applier.resource().keys, &applier.resource().prefix);
        let Some(view) = watcher.view(places, prefix) else {
            // The first answer rings the bell.
            schedule.begin();
            schedule.end(start.elapsed(), Duration::ZERO, Outcome::Again(BEAT));
            continue;
        };
        schedule.begin();
        let begun = Instant::now();
        let outcome = applier.pass(&view).unwrap_or_else(|error| {
            log::error!("{error:#}");
            Outcome::Failed
        });
        schedule.end(start.elapsed(), begun.elapsed(), outcome);
        if outcome == Outcome::Failed && schedule.failures() == 1 {
            log::info!("{}: it is tried again until it succeeds", applier.resource().file.display());
        }
    }
}
