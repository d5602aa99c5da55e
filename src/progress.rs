//! Progress reports: bars on a terminal, plain lines elsewhere, JSON events for programs.
//!
//! Work is reported in [`Step`]s. A step has a name and, if known, a total; it ends with one line about its result.
//! Reports go to standard error. JSON events are data and go to standard output, one object a line.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The version of the JSON events' format; the first event has it.
pub const EVENTS_SCHEMA: u32 = 1;

/// The form of the reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Moving bars, on a terminal.
    Bars,
    /// A line when a step ends, and every few seconds while it goes on.
    Plain,
    /// JSON Lines on standard output.
    Json,
    /// Nothing.
    Silent,
}

/// The unit of a step's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Items, such as packages and files.
    Items,
}

/// Reports progress. Clones report into the same stream.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

struct Inner {
    style: Style,
    bars: MultiProgress,
    started: Instant,
    timings: Mutex<Vec<Timing>>,
    /// Where JSON events and plain lines go; tests read it.
    sink: Mutex<Box<dyn io::Write + Send>>,
}

/// How long a step took.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// The step's name.
    pub step: &'static str,
    /// When it began, in seconds since the first report.
    pub began: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Its result.
    pub outcome: String,
}

impl Progress {
    /// Bars where standard error is a terminal, plain lines elsewhere.
    pub fn for_people() -> Progress {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Progress::new(if io::stderr().is_terminal() && !dumb { Style::Bars } else { Style::Plain })
    }

    /// Reports in the given style.
    pub fn new(style: Style) -> Progress {
        let sink: Box<dyn io::Write + Send> = match style {
            Style::Json => Box::new(io::stdout()),
            _ => Box::new(io::stderr()),
        };
        Progress::into_sink(style, sink)
    }

    fn into_sink(style: Style, sink: Box<dyn io::Write + Send>) -> Progress {
        let target = if style == Style::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = Progress(Arc::new(Inner {
            style,
            bars: MultiProgress::with_draw_target(target),
            started: Instant::now(),
            timings: Mutex::default(),
            sink: Mutex::new(sink),
        }));
        progress.event("start", &json!({"schema": EVENTS_SCHEMA}));
        progress
    }

    pub fn style(&self) -> Style {
        self.0.style
    }

    /// Begins a step; `total` is in `unit`, and 0 where it is not known.
    pub fn step(&self, name: &'static str, total: u64, unit: Unit) -> Step {
        let bar = match self.0.style {
            Style::Bars => Some(self.0.bars.add(ProgressBar::new(total).with_style(bar_style(total, unit)))),
            _ => None,
        };
        if let Some(bar) = &bar {
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        self.event("step.start", &json!({"step": name, "total": total, "unit": unit}));
        Step(Arc::new(StepInner {
            progress: self.clone(),
            name,
            unit,
            bar,
            began: Instant::now(),
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
        }))
    }

    /// Prints a warning: something that does not stop the work, but that people should know.
    pub fn warn(&self, text: &str) {
        self.event("warning", &json!({"message": text}));
        self.line(&format!("warning: {text}"));
    }

    /// Prints a line for people.
    pub fn note(&self, text: &str) {
        self.event("note", &json!({"message": text}));
        self.line(text);
    }

    /// Emits a JSON event: an object with the key `event` and those of `fields`.
    pub fn event(&self, name: &str, fields: &serde_json::Value) {
        if self.0.style != Style::Json {
            return;
        }
        let mut object = json!({"event": name});
        if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
            object.extend(fields.clone());
        }
        // The work goes on when nobody reads the events.
        let mut sink = self.0.sink.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = writeln!(sink, "{object}").and_then(|()| sink.flush());
    }

    /// The steps that ended so far, in order.
    pub fn timings(&self) -> Vec<Timing> {
        self.0.timings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The time since the first report.
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn line(&self, text: &str) {
        match self.0.style {
            Style::Bars => {
                let _ = self.0.bars.println(text);
            }
            Style::Plain => {
                let mut sink = self.0.sink.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let _ = writeln!(sink, "{text}");
            }
            Style::Json | Style::Silent => {}
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("style", &self.0.style).finish_non_exhaustive()
    }
}

/// One step of the work; clones report about the same step, from any thread.
#[derive(Clone)]
pub struct Step(Arc<StepInner>);

struct StepInner {
    progress: Progress,
    name: &'static str,
    unit: Unit,
    bar: Option<ProgressBar>,
    began: Instant,
    total: AtomicU64,
    done: AtomicU64,
    told: Mutex<Instant>,
}

/// How often plain lines report a step that goes on.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// How often JSON events report a step that goes on.
const EVENT_EVERY: Duration = Duration::from_millis(500);

impl Step {
    /// Changes the total.
    pub fn set_total(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
        if let Some(bar) = &self.0.bar {
            bar.set_length(total);
            bar.set_style(bar_style(total, self.0.unit));
        }
    }

    /// Reports that `count` more are done.
    pub fn advance(&self, count: u64) {
        let done = self.0.done.fetch_add(count, Ordering::Relaxed) + count;
        if let Some(bar) = &self.0.bar {
            bar.set_position(done);
            return;
        }
        let progress = &self.0.progress;
        let every = if progress.style() == Style::Json { EVENT_EVERY } else { PLAIN_EVERY };
        {
            let Ok(mut told) = self.0.told.try_lock() else { return };
            if told.elapsed() < every {
                return;
            }
            *told = Instant::now();
        }
        let total = self.0.total.load(Ordering::Relaxed);
        progress.event("step.progress", &json!({"step": self.0.name, "done": done, "total": total}));
        let percent = (done * 100).checked_div(total).map_or(String::new(), |percent| format!(" {percent} %"));
        progress.line(&format!("{:<11}{percent} {}", self.0.name, amount(done, total, self.0.unit)));
    }

    /// Sets what a bar shows at its end: the item being worked on.
    pub fn detail(&self, text: impl Into<String>) {
        if let Some(bar) = &self.0.bar {
            bar.set_message(text.into());
        }
    }

    /// Ends the step with a line about its result.
    pub fn finish(self, outcome: impl Into<String>) {
        let outcome = outcome.into();
        let progress = &self.0.progress;
        let seconds = self.0.began.elapsed().as_secs_f64();
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
            progress.0.bars.remove(bar);
        }
        progress.event("step.end", &json!({"step": self.0.name, "seconds": seconds, "outcome": outcome}));
        progress.line(&format!("{:<11} {outcome} ({seconds:.1} s)", self.0.name));
        let began = self.0.began.duration_since(progress.0.started).as_secs_f64();
        let timing = Timing { step: self.0.name, began, seconds, outcome };
        progress.0.timings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(timing);
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Drop for StepInner {
    /// A step that was dropped before its end failed: its bar goes, and the error is reported elsewhere.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

fn bar_style(total: u64, unit: Unit) -> ProgressStyle {
    let template = match (total, unit) {
        (0, _) => "{prefix:11} {spinner} {elapsed} {wide_msg}",
        (_, Unit::Bytes) => "{prefix:11} {bar:24} {binary_bytes:>10} / {binary_total_bytes} {wide_msg}",
        (_, Unit::Items) => "{prefix:11} {bar:24} {pos:>5} / {len} {wide_msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

fn amount(done: u64, total: u64, unit: Unit) -> String {
    match (unit, total) {
        (Unit::Bytes, 0) => size(done),
        (Unit::Bytes, _) => format!("{} / {}", size(done), size(total)),
        (Unit::Items, 0) => done.to_string(),
        (Unit::Items, _) => format!("{done} / {total}"),
    }
}

/// A number of bytes in a readable unit: `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or("B");
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seen {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn plain_lines_tell_what_came_of_a_step() {
        let seen = Seen::default();
        let progress = Progress::into_sink(Style::Plain, Box::new(seen.clone()));
        let step = progress.step("download", 100, Unit::Bytes);
        step.advance(100);
        step.finish("3 packages");
        progress.warn("slow mirror");
        assert_eq!(seen.text(), "download    3 packages (0.0 s)\nwarning: slow mirror\n");
        assert_eq!(progress.timings()[0].outcome, "3 packages");
    }

    #[test]
    fn json_events_are_one_object_a_line() {
        let seen = Seen::default();
        let progress = Progress::into_sink(Style::Json, Box::new(seen.clone()));
        progress.step("expand", 2, Unit::Items).finish("2 packages");
        progress.note("done");
        let events: Vec<serde_json::Value> =
            seen.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["start", "step.start", "step.end", "note"]);
        assert_eq!(events[2]["outcome"], "2 packages");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
