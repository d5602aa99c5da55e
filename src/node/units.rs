//! systemd's units, through `systemctl`.

use crate::exec::{ExecError, Run};
use std::{collections::BTreeMap, time::Duration};

/// How long `systemctl` may take, where it does not wait for a unit.
const LIMIT: Duration = Duration::from_secs(30);

/// How a unit stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// `active`, `activating`, `inactive`, `failed` …
    pub active: String,
    /// The finer state, such as `running`, `auto-restart`.
    pub sub: String,
    /// Why it ended, `success` if it did not end badly.
    pub result: String,
    /// What the service says of itself.
    pub text: String,
    /// Whether the unit's conditions were not met, so that it was passed over.
    pub passed_over: bool,
    /// Whether it can read its configuration again while it runs.
    pub reloads: bool,
    /// The service's type, such as `notify`.
    pub kind: String,
}

impl Unit {
    /// Whether it runs, or has nothing to do here.
    pub fn settled(&self) -> bool {
        self.active == "active" || (self.active == "inactive" && self.passed_over)
    }

    /// How it stands, in a few words.
    pub fn words(&self) -> String {
        let mut words = if self.active == "inactive" && self.passed_over {
            "not needed here".to_owned()
        } else {
            format!("{} ({})", self.active, self.sub)
        };
        if !matches!(self.result.as_str(), "" | "success") {
            words.push_str(&format!(", {}", self.result));
        }
        if !self.text.is_empty() && self.active != "active" {
            words.push_str(&format!(": {}", self.text));
        }
        words
    }
}

/// How the unit `name` stands.
///
/// # Errors
/// When systemd does not answer.
pub fn show(name: &str) -> Result<Unit, ExecError> {
    Ok(show_all(&[name])?.pop().unwrap_or_default())
}

/// How each of the units `names` stands, asked at once.
///
/// # Errors
/// When systemd does not answer.
pub fn show_all(names: &[&str]) -> Result<Vec<Unit>, ExecError> {
    let properties =
        "ActiveState,SubState,Result,StatusText,ConditionResult,ConditionTimestampMonotonic,CanReload,Type";
    let show = Run::new("systemctl").args(["show", "--property", properties]).args(names.iter().copied());
    let mut units = parse_all(&show.limit(LIMIT).text()?);
    units.resize(names.len(), Unit::default());
    Ok(units)
}

/// Reads what systemctl shows of several units: blocks of lines, in order.
fn parse_all(text: &str) -> Vec<Unit> {
    text.trim_end().split("\n\n").map(parse).collect()
}

fn parse(text: &str) -> Unit {
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| values.get(name).copied().unwrap_or_default().to_owned();
    Unit {
        active: value("ActiveState"),
        sub: value("SubState"),
        result: value("Result"),
        text: value("StatusText"),
        // A unit that was never tried has no result of its conditions either.
        passed_over: value("ConditionResult") == "no" && value("ConditionTimestampMonotonic") != "0",
        reloads: value("CanReload") == "yes",
        kind: value("Type"),
    }
}

/// Asks systemd to start the unit; does not wait for it.
///
/// # Errors
/// When systemd refuses.
pub fn start(name: &str) -> Result<(), ExecError> {
    act(&["start", "--no-block", name])
}

/// Makes a running unit read its configuration again; does not wait for it.
///
/// # Errors
/// When systemd refuses.
pub fn reload(name: &str) -> Result<(), ExecError> {
    act(&["reload", "--no-block", name])
}

/// Starts a running unit again; does not wait for it.
///
/// # Errors
/// When systemd refuses.
pub fn restart(name: &str) -> Result<(), ExecError> {
    act(&["try-restart", "--no-block", name])
}

/// Starts a unit again, or starts it if it does not run; does not wait for it.
///
/// # Errors
/// When systemd refuses.
pub fn run_again(name: &str) -> Result<(), ExecError> {
    act(&["restart", "--no-block", name])
}

/// Stops the unit, so that systemd does not start it again by itself, and waits for it.
///
/// # Errors
/// When systemd refuses, or the unit takes more than three minutes.
pub fn stop(name: &str) -> Result<(), ExecError> {
    Run::new("systemctl").args(["stop", name]).limit(6 * LIMIT).capture().map(drop)
}

fn act(arguments: &[&str]) -> Result<(), ExecError> {
    Run::new("systemctl").args(arguments.iter().copied()).limit(LIMIT).capture().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read() {
        let unit = parse(
            "ActiveState=activating\nSubState=auto-restart\nResult=exit-code\nStatusText=\nConditionResult=yes\n\
             ConditionTimestampMonotonic=12\nCanReload=yes\nType=notify\n",
        );
        assert_eq!(unit.words(), "activating (auto-restart), exit-code");
        assert!(!unit.settled() && unit.reloads);
        let skipped = parse("ActiveState=inactive\nSubState=dead\nConditionResult=no\nConditionTimestampMonotonic=5\n");
        assert!(skipped.settled());
        assert_eq!(skipped.words(), "not needed here");
        let two = parse_all("ActiveState=active\nSubState=running\n\nActiveState=failed\nSubState=failed\n");
        assert_eq!(two.iter().map(Unit::words).collect::<Vec<_>>(), ["active (running)", "failed (failed)"]);
        let untried = parse("ActiveState=inactive\nSubState=dead\nConditionResult=no\nConditionTimestampMonotonic=0\n");
        assert!(!untried.settled());
    }
}
