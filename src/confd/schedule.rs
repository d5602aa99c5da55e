//! When a resource is worked on: changes, retries, delays and the regular pass, as a state machine without a clock.
//!
//! Times are durations since the worker began. Changes are gathered, never dropped; what failed is tried again sooner
//! or later; a busy store costs at most half of one processor.

use std::time::Duration;

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file is right, and its reader uses it.
    Done,
    /// Something failed, the file or the reload is not as it should be.
    Failed,
    /// Nothing was wrong, but something is to be done after this time.
    Again(Duration),
}

/// The delay before the first retry.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest delay between retries.
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How soon after a failed pass a change is acted on.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A change waits for others at most this many times the debounce time.
const DEBOUNCE_CAP: u32 = 10;

/// When the next pass is due.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    debounce: Duration,
    /// The first and the last change that no pass has seen.
    changes: Option<(Duration, Duration)>,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    end: Duration,
    took: Duration,
    outcome: Outcome,
    /// How many passes failed in a row.
    failures: u32,
}

impl Schedule {
    /// A schedule with a regular pass every `interval`; changes wait for others for `debounce`.
    pub fn new(interval: Duration, debounce: Duration) -> Schedule {
        Schedule { interval, debounce, changes: None, last: None }
    }

    /// Something changed at `now`.
    pub fn changed(&mut self, now: Duration) {
        let first = self.changes.map_or(now, |(first, _)| first);
        self.changes = Some((first, now));
    }

    /// When the next pass is due; the past means at once.
    pub fn due(&self) -> Duration {
        let Some(last) = self.last else {
            return self.changes.map_or(Duration::ZERO, |(first, _)| first);
        };
        let regular = last.end + self.interval;
        let again = match last.outcome {
            Outcome::Done => regular,
            Outcome::Failed => last.end + retry_delay(last.failures),
            Outcome::Again(after) => last.end + after,
        };
        regular.min(again).min(self.change_due(&last).unwrap_or(regular))
    }

    fn change_due(&self, last: &Last) -> Option<Duration> {
        let (first, latest) = self.changes?;
        let gathered = (latest + self.debounce).min(first + self.debounce * DEBOUNCE_CAP);
        let rest = if last.outcome == Outcome::Failed { last.took.max(AFTER_FAILURE) } else { last.took };
        Some(gathered.max(last.end + rest))
    }

    /// A pass begins; the changes so far are its.
    pub fn begin(&mut self) {
        self.changes = None;
    }

    /// The pass that took `took` ended at `now`.
    pub fn end(&mut self, now: Duration, took: Duration, outcome: Outcome) {
        let before = self.last.map_or(0, |last| last.failures);
        let failures = if outcome == Outcome::Failed { before.saturating_add(1) } else { 0 };
        self.last = Some(Last { end: now, took, outcome, failures });
    }

    /// How many passes failed in a row.
    pub fn failures(&self) -> u32 {
        self.last.map_or(0, |last| last.failures)
    }
}

/// The delay before the retry after so many failures: it doubles.
pub fn retry_delay(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RETRY_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const S: fn(u64) -> Duration = Duration::from_secs;

    /// Runs a schedule on a clock of its own; `outcome` tells how the pass at a time ends. Returns when passes began.
    fn simulate(
        schedule: &mut Schedule,
        changes: &[u64],
        until: Duration,
        outcome: impl Fn(usize, Duration) -> (Duration, Outcome),
    ) -> Vec<u64> {
        let mut now = Duration::ZERO;
        let mut changes: std::collections::VecDeque<Duration> = changes.iter().copied().map(MS).collect();
        let mut passes = Vec::new();
        while now < until {
            while changes.front().is_some_and(|change| *change <= now) {
                schedule.changed(changes.pop_front().unwrap());
            }
            if schedule.due() <= now {
                schedule.begin();
                passes.push(now.as_millis() as u64);
                let (took, outcome) = outcome(passes.len(), now);
                now += took;
                schedule.end(now, took, outcome);
            } else {
                now = schedule.due().min(changes.front().copied().unwrap_or(until)).min(until);
            }
        }
        passes
    }

    #[test]
    fn the_first_pass_is_at_once_and_then_every_interval() {
        let mut schedule = Schedule::new(S(10), MS(0));
        assert_eq!(simulate(&mut schedule, &[], S(35), |_, _| (MS(0), Outcome::Done)), [0, 10_000, 20_000, 30_000]);
    }

    #[test]
    fn a_change_is_acted_on_at_once() {
        let mut schedule = Schedule::new(S(600), MS(0));
        assert_eq!(simulate(&mut schedule, &[1000, 1500], S(5), |_, _| (MS(10), Outcome::Done)), [0, 1000, 1500]);
    }

    #[test]
    fn a_failed_pass_is_repeated_ever_later_until_it_succeeds() {
        let mut schedule = Schedule::new(S(600), MS(0));
        let passes = simulate(&mut schedule, &[], S(100), |pass, _| {
            (MS(0), if pass < 6 { Outcome::Failed } else { Outcome::Done })
        });
        assert_eq!(passes, [0, 500, 1500, 3500, 7500, 15_500]);
        assert_eq!(retry_delay(50), S(30));
    }

    #[test]
    fn a_change_shortens_the_wait_for_a_retry_but_not_to_nothing() {
        let mut schedule = Schedule::new(S(600), MS(0));
        let changes: Vec<u64> = (0..600).map(|at| 10_000 + at * 10).collect();
        let passes = simulate(&mut schedule, &changes, S(16), |_, _| (MS(0), Outcome::Failed));
        let during: Vec<u64> = passes.into_iter().filter(|at| *at >= 10_000).collect();
        assert_eq!(during, [10_000, 11_000, 12_000, 13_000, 14_000, 15_000]);
    }

    #[test]
    fn a_storm_of_changes_is_gathered_and_its_last_change_is_seen() {
        let mut schedule = Schedule::new(S(600), MS(0));
        let changes: Vec<u64> = (0..1000).map(|at| 1000 + at * 10).collect();
        let passes = simulate(&mut schedule, &changes, S(20), |_, _| (MS(40), Outcome::Done));
        // Half of the time at most is spent on passes.
        assert!(passes.len() < 10_000 / 80 + 3, "{}", passes.len());
        assert!(*passes.last().unwrap() >= 10_990);
    }

    #[test]
    fn a_quiet_time_is_waited_for_but_not_for_ever() {
        let mut schedule = Schedule::new(S(600), MS(200));
        assert_eq!(simulate(&mut schedule, &[1000, 1100, 1250], S(5), |_, _| (MS(0), Outcome::Done)), [0, 1450]);
        let mut schedule = Schedule::new(S(600), MS(200));
        let changes: Vec<u64> = (0..100).map(|at| 1000 + at * 100).collect();
        let passes = simulate(&mut schedule, &changes, S(20), |_, _| (MS(0), Outcome::Done));
        assert_eq!(passes[..3], [0, 3000, 5000 + 100]);
        assert!(*passes.last().unwrap() >= 10_900);
    }

    #[test]
    fn what_was_put_off_happens() {
        let mut schedule = Schedule::new(S(600), MS(0));
        let passes = simulate(&mut schedule, &[], S(60), |pass, _| {
            (MS(0), if pass == 1 { Outcome::Again(S(7)) } else { Outcome::Done })
        });
        assert_eq!(passes, [0, 7000]);
    }
}
