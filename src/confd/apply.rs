//! One pass over a resource: check the keys, render, stage, compare, check, replace, reload; and record it durably.

use super::{
    haproxy,
    metrics::{self, Metrics},
    resource::{Reload, Resource},
    schedule::Outcome,
    settings::Settings,
    shrink_policy::{self, Case, Reason, Verdict},
    state_file::{Record, StateFile, hash},
    template, validate,
    watcher::StoreView,
};
use crate::{
    exec::{ExecError, Run},
    files::NewFile,
    log,
};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often a record is written only because the revision went on.
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// The exit status by which a reload command says that its reader cannot be told yet (sysexits.h).
const EX_TEMPFAIL: i32 = 75;
/// How long after the first time such a command is run again.
const PUT_OFF_FIRST: Duration = Duration::from_millis(500);
/// How often that time is doubled.
const PUT_OFF_DOUBLED: u32 = 4;

/// Does the passes of one resource.
#[derive(Debug)]
pub struct Applier {
    resource: Resource,
    templates: PathBuf,
    options: Options,
    state_file: StateFile,
    record: Option<Record>,
    recorded_at: Option<Instant>,
    reloaded_at: Option<Instant>,
    /// How often in a row the reload command said that the reader cannot be told yet.
    put_off: u32,
    smaller_since: Option<Instant>,
    is_keeping: bool,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy)]
struct Options {
    is_noop: bool,
    is_sync_only: bool,
    keeps_stage: bool,
    is_onetime: bool,
    shrink_hold: Duration,
}

/// A file as it is: what decides whether it must be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    content: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Current {
    fn read(path: &Path) -> Result<Option<Current>> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(Current { content, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid() }))
    }
}

impl Applier {
    /// An applier of `resource`, which remembers what it applied before.
    pub fn new(resource: Resource, settings: &Settings, metrics: Arc<Metrics>) -> Applier {
        let state_file = StateFile::new(&settings.state_dir, &resource.file);
        let record = state_file.load().filter(|record| record.dest == resource.dest);
        let options = Options {
            is_noop: settings.noop,
            is_sync_only: settings.sync_only,
            keeps_stage: settings.keep_stage_file,
            is_onetime: settings.onetime,
            shrink_hold: settings.shrink_hold,
        };
        let applier = Applier {
            resource,
            templates: settings.confdir.join("templates"),
            options,
            state_file,
            record,
            recorded_at: None,
            reloaded_at: None,
            put_off: 0,
            smaller_since: None,
            is_keeping: true,
            metrics,
        };
        applier.count(|_| {});
        applier
    }

    /// The resource.
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Before the store has answered: puts the last good content back if the file is missing or empty, and finishes a
    /// reload that a crash left undone. Says whether the file is there.
    ///
    /// # Errors
    /// When that fails; the next pass does it all the same.
    pub fn wake(&mut self) -> Result<bool> {
        let current = Current::read(&self.resource.dest)?.filter(|current| !current.content.is_empty());
        if self.options.is_noop {
            return Ok(current.is_some());
        }
        if let Some(current) = current {
            // A crash before the replacement leaves nothing to report.
            let is_new = |record: &Record| record.reload_owed && record.content == hash(&current.content);
            if self.record.as_ref().is_some_and(is_new) {
                self.tell_reader(None)?;
            }
        } else {
            let (Some(good), Some(record)) = (self.state_file.load_good(), self.record.clone()) else {
                return Ok(false);
            };
            log::warning!("{} is missing or empty: putting the last good content back", self.resource.dest.display());
            self.replace(&good, None, Record { content: hash(&good), ..record })?;
            if self.has_reader() {
                self.tell_reader(None)?;
            }
        }
        Ok(true)
    }

    /// The file is there and was good once: its reader may start.
    pub fn usable(&self) {
        self.count(|counters| counters.is_ready = true);
    }

    /// Brings the file in step with `view`.
    ///
    /// # Errors
    /// When any step fails; the file is then as it was before that step, and the pass is to be repeated.
    pub fn pass(&mut self, view: &StoreView) -> Result<Outcome> {
        let started = Instant::now();
        let outcome = self.bring_in_step(view);
        let took = started.elapsed().as_secs_f64();
        let owed = self.record.as_ref().is_some_and(|record| record.reload_owed);
        self.count(|counters| {
            counters.passes += 1;
            counters.seconds += took;
            counters.is_reload_owed = owed;
            counters.failed_passes += u64::from(outcome.is_err());
            counters.failures_in_row = if outcome.is_err() { counters.failures_in_row + 1 } else { 0 };
        });
        outcome.with_context(|| format!("{}: rendering {}", self.resource.file.display(), self.resource.dest.display()))
    }

    fn bring_in_step(&mut self, view: &StoreView) -> Result<Outcome> {
        let items = view.store.count(self.resource.items.as_deref())?;
        if let Some(wait) = self.hold(items, view)? {
            return Ok(Outcome::Again(wait));
        }
        let rendered = template::load(&self.templates, &self.resource.src)?.render(&view.store)?;
        if let Some(format) = self.resource.output_format {
            validate::check(format, &rendered)?;
        }
        let current = Current::read(&self.resource.dest)?;
        let wanted = self.wanted(rendered.into_bytes(), current.as_ref());
        let record = Record {
            schema: 1,
            dest: self.resource.dest.clone(),
            content: hash(&wanted.content),
            revision: view.revision,
            cluster: view.cluster,
            items,
            reload_owed: self.has_reader(),
        };
        let is_in_step = current.as_ref() == Some(&wanted);
        if self.options.is_noop {
            if !is_in_step {
                log::warning!("noop: {} would be replaced", self.resource.dest.display());
            }
            return Ok(self.ready());
        }
        // The file that the reader runs with: known only if exactly that one was reloaded.
        let mut running = None;
        if is_in_step {
            self.note_in_step(record);
        } else {
            log::info!("{} is out of step with the keys", self.resource.dest.display());
            let told = self.record.as_ref().filter(|record| !record.reload_owed).map(|record| record.content.clone());
            running = current
                .as_ref()
                .filter(|current| told == Some(hash(&current.content)))
                .map(|current| current.content.clone());
            self.replace(&wanted.content, current.as_ref(), record)?;
            log::info!("{} has been updated", self.resource.dest.display());
        }
        if self.record.as_ref().is_some_and(|record| record.reload_owed)
            && let Some(wait) = self.tell_reader(running.as_deref())?
        {
            return Ok(Outcome::Again(wait));
        }
        if let Err(error) = self.state_file.save_good(&wanted.content) {
            self.complain(&error);
        }
        Ok(self.ready())
    }

    fn ready(&self) -> Outcome {
        self.usable();
        Outcome::Done
    }

    /// How long to keep the file as it is, if the set of keys must not be used yet.
    fn hold(&mut self, items: usize, view: &StoreView) -> Result<Option<Duration>> {
        let applied = self.applied_items();
        if applied.is_some_and(|applied| items < applied) {
            self.smaller_since.get_or_insert_with(Instant::now);
        } else {
            self.smaller_since = None;
        }
        let is_other_store = self
            .record
            .as_ref()
            .is_some_and(|record| record.cluster != view.cluster || view.revision < record.revision);
        let verdict = shrink_policy::judge(&Case {
            items,
            applied,
            min_items: self.resource.min_items,
            is_other_store,
            healthy_for: view.healthy_for.unwrap_or_default(),
            smaller_for: self.smaller_since.map_or(Duration::ZERO, |since| since.elapsed()),
            hold: self.options.shrink_hold,
        });
        let held = match verdict {
            Verdict::Apply => None,
            // Whoever runs a single pass has looked at the store; only the minimum applies.
            Verdict::Hold(Reason::Shrunken | Reason::Wiped, _) if self.options.is_onetime => None,
            Verdict::Hold(reason, wait) => Some((reason, wait)),
        };
        self.count(|counters| counters.is_held = held.is_some());
        let Some((reason, wait)) = held else { return Ok(None) };
        let why = match reason {
            Reason::BelowMinimum => format!("fewer than min_items = {}", self.resource.min_items),
            Reason::Shrunken => "the store has not been healthy for long enough".to_owned(),
            Reason::Wiped => "they come from another or an older store".to_owned(),
        };
        let before = match applied {
            Some(shrink_policy::UNKNOWN) => "an unknown number".to_owned(),
            applied => applied.unwrap_or(0).to_string(),
        };
        let message = format!("{} is kept: {items} items instead of {before}, {why}", self.resource.dest.display());
        if self.options.is_onetime {
            anyhow::bail!("{message}");
        }
        log::warning!("{message}");
        Ok(Some(wait))
    }

    /// How many items the file was rendered from; nothing if there is none yet.
    fn applied_items(&self) -> Option<usize> {
        match &self.record {
            Some(record) => Some(record.items),
            None => {
                fs::metadata(&self.resource.dest).is_ok_and(|file| file.len() > 0).then_some(shrink_policy::UNKNOWN)
            }
        }
    }

    fn wanted(&self, content: Vec<u8>, current: Option<&Current>) -> Current {
        let mode = self.resource.mode.or(current.map(|current| current.mode)).unwrap_or(0o644);
        Current { content, mode, uid: self.resource.uid, gid: self.resource.gid }
    }

    fn has_reader(&self) -> bool {
        !self.options.is_sync_only && self.resource.reload_cmd.is_some()
    }

    /// The file is as rendered; whether its reader uses it depends on what was applied last.
    fn note_in_step(&mut self, record: Record) {
        let before = self.record.as_ref();
        // Without a record, the file comes from an older program; as upstream, its reader is taken to know it.
        let owed =
            before.is_some_and(|before| before.reload_owed || before.content != record.content) && self.has_reader();
        let record = Record { reload_owed: owed, ..record };
        let is_news = before.is_none_or(|before| {
            Record { revision: 0, ..before.clone() } != Record { revision: 0, ..record.clone() }
                || record.revision < before.revision
        });
        let is_old = self.recorded_at.is_none_or(|at| at.elapsed() >= RECORD_EVERY);
        let is_later = before.is_none_or(|before| before.revision != record.revision);
        if is_news || (is_old && is_later) {
            self.remember(record);
        } else {
            self.record = Some(record);
        }
    }

    /// Checks and puts `content` in the file's place. The record is written before, so that a crash in between leaves
    /// the reload owed.
    fn replace(&mut self, content: &[u8], current: Option<&Current>, record: Record) -> Result<()> {
        let wanted = self.wanted(content.to_vec(), current);
        let mut stage = NewFile::beside(&self.resource.dest)?;
        let outcome = self.fill_and_check(&mut stage, &wanted);
        if self.options.keeps_stage {
            let kept = stage.path().with_extension("kept");
            fs::copy(stage.path(), &kept).with_context(|| format!("writing {}", kept.display()))?;
            log::info!("keeping the staged file {}", kept.display());
        }
        outcome?;
        self.remember(Record { reload_owed: self.has_reader(), ..record });
        match stage.publish(&self.resource.dest) {
            Err(error) if is_mount(&error) => overwrite(&self.resource.dest, &wanted)?,
            outcome => outcome?,
        }
        self.count(|counters| {
            counters.writes += 1;
            counters.applied_at = metrics::now();
        });
        Ok(())
    }

    fn fill_and_check(&self, stage: &mut NewFile, wanted: &Current) -> Result<()> {
        stage.write_all(&wanted.content).with_context(|| format!("staging {}", self.resource.dest.display()))?;
        let meta = stage.file().metadata().context("looking at the staged file")?;
        if (meta.uid(), meta.gid()) != (wanted.uid, wanted.gid) {
            fchown(stage.file(), Some(wanted.uid), Some(wanted.gid))
                .context("changing the owner of the staged file")?;
        }
        // After the owner, whose change clears the set-id bits.
        let mode = Permissions::from_mode(wanted.mode);
        stage.file().set_permissions(mode).context("changing the mode of the staged file")?;
        let Some(check) = self.resource.check_cmd.as_ref().filter(|_| !self.options.is_sync_only) else {
            return Ok(());
        };
        let command = template::expand_command(check, &self.names(stage.path()))?;
        run(&command, self.resource.check_timeout)
            .inspect_err(|_| self.count(|counters| counters.failed_checks += 1))
            .context("checking the staged file")
    }

    /// What commands may name.
    fn names<'a>(&'a self, stage: &'a Path) -> [(&'static str, &'a str); 2] {
        [("src", stage.to_str().unwrap_or_default()), ("dest", self.resource.dest.to_str().unwrap_or_default())]
    }

    /// Tells the file's reader: through HAProxy's socket if what it runs with (`running`) is known and that suffices, else
    /// by the reload command. Comes back with a wait if it is too soon for another reload, or if the command says so.
    fn tell_reader(&mut self, running: Option<&[u8]>) -> Result<Option<Duration>> {
        if let (Some(socket), Some(running)) = (&self.resource.haproxy_socket, running) {
            let new = fs::read_to_string(&self.resource.dest).context("reading what was written")?;
            match haproxy::change(socket, &String::from_utf8_lossy(running), &new) {
                Ok(changes) => {
                    log::info!("{}: {changes} changes of servers without a reload", self.resource.dest.display());
                    self.count(|counters| counters.runtime_changes += 1);
                    self.told();
                    return Ok(None);
                }
                Err(error) => log::info!("{}: reloading instead: {error:#}", self.resource.dest.display()),
            }
        }
        let due = self.reloaded_at.and_then(|at| self.resource.min_reload_interval.checked_sub(at.elapsed()));
        if let Some(wait) = due.filter(|wait| !wait.is_zero() && !self.options.is_onetime) {
            log::info!("{}: the reload waits {:.1} s", self.resource.dest.display(), wait.as_secs_f64());
            return Ok(Some(wait));
        }
        if let Some(reload) = self.resource.reload_cmd.clone().filter(|_| !self.options.is_sync_only) {
            let command = match reload {
                Reload::Verbatim(command) => command,
                // The staged file has taken the place of the other.
                Reload::Template(command) => template::expand_command(&command, &self.names(&self.resource.dest))?,
            };
            let outcome = run(&command, self.resource.reload_timeout);
            if matches!(&outcome, Err(ExecError::Failed { status, .. }) if status.code() == Some(EX_TEMPFAIL))
                && !self.options.is_onetime
            {
                let wait = PUT_OFF_FIRST * (1 << self.put_off.min(PUT_OFF_DOUBLED));
                self.put_off += 1;
                log::info!("{}: its reader cannot be told yet", self.resource.dest.display());
                // The file itself is good, and a reader that waits for it must be let in.
                self.usable();
                return Ok(Some(wait));
            }
            let is_done = outcome.is_ok();
            self.count(|counters| if is_done { counters.reloads += 1 } else { counters.failed_reloads += 1 });
            outcome.context("reloading")?;
            self.put_off = 0;
            self.reloaded_at = Some(Instant::now());
        }
        self.told();
        Ok(None)
    }

    fn told(&mut self) {
        if let Some(record) = self.record.clone() {
            self.remember(Record { reload_owed: false, ..record });
        }
    }

    fn remember(&mut self, record: Record) {
        self.count(|counters| {
            counters.revision = record.revision;
            counters.items = record.items;
            counters.is_reload_owed = record.reload_owed;
        });
        if let Err(error) = self.state_file.save(&record) {
            self.complain(&error);
        }
        self.recorded_at = Some(Instant::now());
        self.record = Some(record);
    }

    /// A state folder that cannot be written must not stop the work; once is enough to say so.
    fn complain(&mut self, error: &anyhow::Error) {
        if std::mem::take(&mut self.is_keeping) {
            log::warning!("{error:#}: what is applied will not be known after a restart");
        }
    }

    fn count(&self, change: impl FnOnce(&mut metrics::OfResource)) {
        self.metrics.resource(&self.resource.dest.to_string_lossy(), change);
    }
}

/// Runs a command by the shell; it and all it started are killed after `limit`.
fn run(command: &str, limit: Duration) -> Result<(), ExecError> {
    log::debug!("running {command}");
    let said = Run::new("/bin/sh").arg("-c").arg(command).limit(limit).capture()?;
    for stream in [&said.stdout, &said.stderr] {
        let text = String::from_utf8_lossy(stream);
        if !text.trim().is_empty() {
            log::debug!("it said: {}", text.trim());
        }
    }
    Ok(())
}

/// Whether a file could not be replaced because it is a mount of its own.
fn is_mount(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<tempfile::PersistError>());
    let kind = cause.map(|cause| cause.error.kind());
    matches!(kind, Some(io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices))
}

/// Writes over a file that cannot be replaced, as upstream does. This is the one case without atomicity.
fn overwrite(dest: &Path, wanted: &Current) -> Result<()> {
    log::debug!("{} is a mount: writing over it", dest.display());
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).truncate(true).open(dest)?;
        file.write_all(&wanted.content)?;
        fchown(&file, Some(wanted.uid), Some(wanted.gid))?;
        file.set_permissions(Permissions::from_mode(wanted.mode))?;
        file.sync_all()
    };
    write().with_context(|| format!("writing over {}", dest.display()))
}
