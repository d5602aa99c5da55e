//! Log lines on standard error: one line each, with the priority that the journal understands.
//!
//! Under systemd (`JOURNAL_STREAM` is set) a line opens with `<N>`, N being syslog's severity, and the journal adds the
//! time; elsewhere it opens with the UTC time and the level.

use std::{
    env, fmt,
    io::Write as _,
    str::FromStr,
    sync::{
        LazyLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// The severity of a line, with syslog's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The work cannot go on as it is.
    Error = 3,
    /// Something is wrong; the work goes on.
    Warn = 4,
    /// Events of normal work.
    Info = 6,
    /// Details for debugging.
    Debug = 7,
}

impl FromStr for Level {
    type Err = String;

    /// Reads confd's level names; `panic` and `fatal` mean errors only.
    fn from_str(name: &str) -> Result<Level, String> {
        match name.to_ascii_lowercase().as_str() {
            "panic" | "fatal" | "error" => Ok(Level::Error),
            "warn" | "warning" => Ok(Level::Warn),
            "info" => Ok(Level::Info),
            "debug" => Ok(Level::Debug),
            _ => Err(format!("`{name}` is not a log level: use error, warn, info or debug")),
        }
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static JOURNAL: LazyLock<bool> = LazyLock::new(|| env::var_os("JOURNAL_STREAM").is_some());

/// Sets the least severe level that is written.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of `level` are written.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line at `level`. Line breaks become ` | `, so that one event stays one line.
pub fn line(level: Level, message: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let text = message.to_string().replace('\n', " | ");
    let text = if *JOURNAL {
        format!("<{}>{text}\n", level as u8)
    } else {
        format!("{} {} {text}\n", now_utc(), format!("{level:?}").to_uppercase())
    };
    // A closed standard error must not end the program.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

macro_rules! error {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Error, format_args!($($part)*)) };
}
macro_rules! warning {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Warn, format_args!($($part)*)) };
}
macro_rules! info {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($part)*)) };
}
macro_rules! debug {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Debug, format_args!($($part)*)) };
}
pub(crate) use {debug, error, info, warning};

fn now_utc() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let civil = super::clock::Civil::from_unix(now.as_secs() as i64, 0);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        civil.year,
        civil.month,
        civil.day,
        civil.hour,
        civil.minute,
        civil.second,
        now.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_of_confd_are_known() {
        assert_eq!("WARNING".parse(), Ok(Level::Warn));
        assert_eq!("fatal".parse(), Ok(Level::Error));
        assert!("loud".parse::<Level>().is_err());
        assert!(Level::Error < Level::Debug);
    }
}
