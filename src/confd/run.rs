//! The program: loads, starts watchers and workers, obeys signals.

use super::{
    apply::Applier,
    backend::{self, Stop},
    metrics::Metrics,
    notify,
    resource::{self, Resource},
    settings::{BackendSettings, Layer, Settings, process_variable},
    template,
    watcher::{WakeReason, Waker, Watcher},
    worker::{self, Heartbeat},
};
use crate::log;
use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

/// A worker's stack: templates nest, and one that includes others nests deeper.
const STACK: usize = 32 << 20;
/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(200);

/// Runs confd with the flags of its command line until a signal ends it.
///
/// # Errors
/// When settings or resources are wrong; with `-onetime`, when a file could not be applied.
pub fn run(flags: Layer) -> Result<()> {
    // Messages about the settings themselves obey the level, too.
    let level = flags.get("log-level").and_then(|raw| raw.texts.last().cloned());
    if let Some(level) = level.or_else(|| process_variable("CONFD_LOG_LEVEL")).and_then(|level| level.parse().ok()) {
        log::set_level(level);
    }
    let settings = Settings::gather(flags.clone(), process_variable)?;
    log::set_level(settings.log_level);
    let resources = resource::load_all(&settings)?;
    let metrics = Arc::new(Metrics::default());
    if settings.check_config || settings.preflight || settings.onetime {
        return thread::scope(|scope| {
            let work = || {
                if settings.check_config || settings.preflight {
                    check(&settings, &resources)?;
                    return if settings.preflight { ask(&settings, resources, &metrics) } else { Ok(()) };
                }
                once(&settings, resources, &metrics)
            };
            let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work)?;
            thread.join().unwrap_or_else(|_| bail!("the work ended unexpectedly"))
        });
    }
    if let Some(address) = settings.metrics {
        let address = metrics.serve(address)?;
        log::info!("serving metrics on {address}");
    }
    Daemon { flags, settings, metrics, threads: Threads::default() }.run(resources)
}

/// Checks every template of the resources.
fn check(settings: &Settings, resources: &[Resource]) -> Result<()> {
    let mut wrong = 0;
    for resource in resources {
        let checked = backend::open(resource.backend.as_ref().unwrap_or(&settings.backend)).map(drop);
        let checked =
            checked.and_then(|()| template::load(&settings.confdir.join("templates"), &resource.src).map(drop));
        if let Err(error) = checked {
            log::error!("{}: {error:#}", resource.file.display());
            wrong += 1;
        }
    }
    if wrong > 0 {
        bail!(crate::error::UserError::usage(format!("{wrong} of {} resources are wrong", resources.len())));
    }
    log::info!("{} resources are right", resources.len());
    Ok(())
}

/// Reads every store once.
fn ask(settings: &Settings, resources: Vec<Resource>, metrics: &Arc<Metrics>) -> Result<()> {
    for (_, (own, resources)) in by_backend(settings, resources) {
        let wakers = resources.iter().map(|resource| (resource.keys.clone(), Arc::default())).collect();
        let read = Watcher::new(backend::open(&own)?, wakers, Arc::clone(metrics)).read()?;
        log::info!("{} answers with {} keys", own.name, read.values.len());
    }
    Ok(())
}

/// Applies each resource once; as upstream, all are tried and the last failure counts.
fn once(settings: &Settings, resources: Vec<Resource>, metrics: &Arc<Metrics>) -> Result<()> {
    let mut outcome = Ok(());
    for (_, resources) in by_backend(settings, resources) {
        let (backend, resources) = resources;
        let waker = Arc::new(Waker::default());
        let wakers = resources.iter().map(|resource| (resource.keys.clone(), Arc::clone(&waker))).collect();
        let watcher = Watcher::new(backend::open(&backend)?, wakers, Arc::clone(metrics));
        if let Err(error) = watcher.read() {
            if settings.is_fail_fast {
                return Err(error);
            }
            outcome = Err(error);
            continue;
        }
        for resource in resources {
            let mut applier = Applier::new(resource, settings, Arc::clone(metrics));
            let (places, prefix) = (applier.resource().keys.clone(), applier.resource().prefix.clone());
            let view = watcher.view(&places, &prefix).context("the store has not been read")?;
            if let Err(error) = applier.pass(&view) {
                if settings.is_fail_fast {
                    return Err(error);
                }
                log::error!("{error:#}");
                outcome = Err(error);
            }
        }
    }
    outcome
}

/// The resources that share a backend, under its settings.
fn by_backend(
    settings: &Settings,
    resources: Vec<Resource>,
) -> HashMap<BackendSettings, (BackendSettings, Vec<Resource>)> {
    let mut groups: HashMap<BackendSettings, (BackendSettings, Vec<Resource>)> = HashMap::new();
    for resource in resources {
        let own = resource.backend.clone().unwrap_or_else(|| settings.backend.clone());
        groups.entry(own.clone()).or_insert_with(|| (own, Vec::new())).1.push(resource);
    }
    groups
}

/// The long-running program.
#[derive(Debug)]
struct Daemon {
    flags: Layer,
    settings: Settings,
    metrics: Arc<Metrics>,
    threads: Threads,
}

/// The threads that serve one set of resources.
#[derive(Debug, Default)]
struct Threads {
    workers: Vec<(Arc<Waker>, Arc<Heartbeat>, JoinHandle<()>)>,
    watchers: Vec<JoinHandle<()>>,
    stop: Stop,
}

impl Threads {
    fn start(settings: &Settings, resources: Vec<Resource>, metrics: &Arc<Metrics>) -> Result<Threads> {
        let mut threads = Threads::default();
        let opened: Result<Vec<_>> = by_backend(settings, resources)
            .into_values()
            .map(|(own, resources)| Ok((backend::open(&own)?, resources)))
            .collect();
        for (backend, resources) in opened? {
            let wakers: Vec<_> = resources.iter().map(|_| Arc::new(Waker::default())).collect();
            let wanted = resources.iter().map(|resource| resource.keys.clone()).zip(wakers.iter().cloned()).collect();
            let watcher = Arc::new(Watcher::new(backend, wanted, Arc::clone(metrics)));
            for (resource, waker) in resources.into_iter().zip(wakers) {
                let applier = Applier::new(resource, settings, Arc::clone(metrics));
                threads.spawn_worker(applier, Arc::clone(&watcher), waker, settings.interval)?;
            }
            let (is_watching, interval, stop) = (settings.watch, settings.interval, threads.stop.clone());
            let run = move || watcher.run(is_watching, interval, &stop);
            threads.watchers.push(thread::Builder::new().name("watcher".into()).spawn(run)?);
        }
        Ok(threads)
    }

    fn spawn_worker(
        &mut self,
        applier: Applier,
        watcher: Arc<Watcher>,
        waker: Arc<Waker>,
        interval: Duration,
    ) -> Result<()> {
        let heartbeat = Arc::new(Heartbeat::new());
        let (own_waker, own_heartbeat) = (Arc::clone(&waker), Arc::clone(&heartbeat));
        let work = move || worker::work(applier, &watcher, &own_waker, interval, &own_heartbeat);
        let thread = thread::Builder::new().name("resource".into()).stack_size(STACK).spawn(work)?;
        self.workers.push((waker, heartbeat, thread));
        Ok(())
    }

    fn is_well(&self) -> bool {
        self.workers.iter().all(|(_, heartbeat, _)| heartbeat.is_well())
    }

    /// Whether a thread has ended without being stopped.
    fn is_broken(&self) -> bool {
        self.workers.iter().map(|(.., thread)| thread).chain(&self.watchers).any(JoinHandle::is_finished)
    }

    /// Ends the workers; each finishes its current step, if that takes no longer than `limit`.
    fn end(self, limit: Duration) {
        self.stop.set();
        for (waker, ..) in &self.workers {
            waker.wake(WakeReason { stop: true, changed: false });
        }
        let end = Instant::now() + limit;
        while self.workers.iter().any(|(.., thread)| !thread.is_finished()) {
            if Instant::now() >= end {
                log::warning!("the current step is left unfinished after {} s", limit.as_secs_f64());
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Daemon {
    fn run(mut self, resources: Vec<Resource>) -> Result<()> {
        let mut signals =
            signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).context("listening for signals")?;
        log::info!("starting with the backend {}", self.settings.backend.name);
        self.threads = Threads::start(&self.settings, resources, &self.metrics)?;
        let watchdog = notify::watchdog_interval();
        let (mut is_ready, mut alive_at) = (false, Instant::now());
        let mut loaded = stamp(&self.settings.confdir.join("conf.d"));
        let mut looked_at = Instant::now();
        loop {
            for signal in signals.pending() {
                if signal == SIGHUP {
                    self.reload();
                    loaded = stamp(&self.settings.confdir.join("conf.d"));
                    is_ready = false;
                } else {
                    log::info!("ending at signal {signal}");
                    notify::stopping();
                    self.threads.end(self.settings.shutdown_timeout);
                    return Ok(());
                }
            }
            if self.threads.is_broken() {
                bail!("a part of the program ended unexpectedly");
            }
            if !is_ready && self.metrics.is_ready() {
                notify::ready("every file is in step");
                is_ready = true;
            }
            if watchdog.is_some_and(|interval| alive_at.elapsed() >= interval) && self.threads.is_well() {
                notify::alive();
                notify::status(&status(&self.metrics));
                alive_at = Instant::now();
            }
            // As upstream, an interval without watching sees new and changed resources.
            if !self.settings.watch && looked_at.elapsed() >= self.settings.interval {
                looked_at = Instant::now();
                let now = stamp(&self.settings.confdir.join("conf.d"));
                if now != loaded {
                    loaded = now;
                    self.reload();
                    is_ready = false;
                }
            }
            thread::sleep(TICK);
        }
    }

    /// Reads settings and resources again; if they are wrong, everything stays as it was.
    fn reload(&mut self) {
        notify::reloading();
        log::info!("reading settings and resources again");
        let fresh = Settings::gather(self.flags.clone(), process_variable).and_then(|settings| {
            let resources = resource::load_all(&settings)?;
            // What cannot be opened is found before the old threads end.
            let groups = by_backend(&settings, resources.clone());
            groups.keys().try_for_each(|own| backend::open(own).map(drop))?;
            Ok((resources, settings))
        });
        match fresh {
            Ok((resources, settings)) => {
                log::set_level(settings.log_level);
                let dests: Vec<String> =
                    resources.iter().map(|resource| resource.dest.to_string_lossy().into_owned()).collect();
                std::mem::take(&mut self.threads).end(self.settings.shutdown_timeout);
                self.metrics.keep_resources(|dest| dests.iter().any(|own| own == dest));
                self.settings = settings;
                match Threads::start(&self.settings, resources, &self.metrics) {
                    Ok(threads) => self.threads = threads,
                    Err(error) => log::error!("{error:#}"),
                }
                self.metrics.config_reloaded(true);
            }
            Err(error) => {
                log::error!("keeping the resources as they were: {error:#}");
                self.metrics.config_reloaded(false);
            }
        }
    }
}

fn status(metrics: &Metrics) -> String {
    let troubles = metrics.troubles();
    if troubles.is_empty() { "every file is in step".to_owned() } else { troubles.join("; ") }
}

/// The files below `folder` with the times of their last changes.
fn stamp(folder: &Path) -> Vec<(std::path::PathBuf, Option<SystemTime>)> {
    let mut stamps = Vec::new();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            stamps.extend(stamp(&path));
        } else {
            let modified = fs::metadata(&path).and_then(|file| file.modified()).ok();
            stamps.push((path, modified));
        }
    }
    stamps.sort_unstable();
    stamps
}
