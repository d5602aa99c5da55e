//! Ends the program early and cleanly: Ctrl-C, SIGTERM, SIGHUP.
//!
//! A build publishes only whole files, so the program may end at any moment. What is left to do is to remove unfinished
//! files and to end child processes.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    fs,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long child processes may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Does not return once a signal has come: work that fails because its child processes were ended must not end the
/// program before it is clean.
pub fn leave_the_end_to_the_signal() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// From now on, the first of these signals ends the program's children, calls `clean_up` until it returns true, and
/// ends the program with status 128 + the signal's number: 130 for Ctrl-C. A second signal ends the program at once.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signal(clean_up: impl Fn() -> bool + Send + 'static) -> Result<()> {
    catch("interrupted: cleaning up", true, clean_up)
}

/// The same for a program whose children outlive it: they are not ended.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signal_alone(clean_up: impl Fn() -> bool + Send + 'static) -> Result<()> {
    catch("interrupted", false, clean_up)
}

fn catch(words: &'static str, with_children: bool, clean_up: impl Fn() -> bool + Send + 'static) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catching signals")?;
    thread::spawn(move || {
        let mut clean_up = Some(clean_up);
        for signal in &mut signals {
            let status = 128 + signal;
            INTERRUPTED.store(true, Ordering::SeqCst);
            let Some(clean_up) = clean_up.take() else { end(status) };
            let _ = writeln!(std::io::stderr(), "\n{words}");
            thread::spawn(move || {
                let deadline = Instant::now() + PATIENCE;
                if with_children {
                    end_children();
                }
                // The children's own children end a moment after them, and hold files open until then.
                while !clean_up() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(50));
                }
                end(status);
            });
        }
    });
    Ok(())
}

#[allow(clippy::exit, reason = "the threads at work must not go on")]
fn end(status: i32) -> ! {
    std::process::exit(status)
}

/// Ends the child processes; the processes that they started end with them.
fn end_children() {
    for thread in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw) {
            let _ = kill_process(child, Signal::KILL);
        }
    }
}
