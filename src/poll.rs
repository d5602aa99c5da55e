//! Polling with an interval that depends on how long a look takes.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Waits between two looks at something. After a look that took t it waits for 2t at least, so that polling takes at
/// most a third of the time of a slow machine.
#[derive(Debug)]
pub struct PollInterval {
    least: Duration,
    began: Instant,
}

impl PollInterval {
    /// The first look begins now. `least` is the shortest time between two looks.
    pub fn new(least: Duration) -> PollInterval {
        PollInterval { least, began: Instant::now() }
    }

    /// Sleeps until the next look.
    pub fn wait(&mut self) {
        thread::sleep(self.next_pause());
    }

    /// How long to rest until the next look, for who rests in another way.
    pub fn next_pause(&mut self) -> Duration {
        let pause = pause(self.least, self.began.elapsed());
        self.began = Instant::now() + pause;
        pause
    }
}

/// The pause after a look that took `took`.
fn pause(least: Duration, took: Duration) -> Duration {
    /// The longest pause, however slow the machine is.
    const LONGEST: Duration = Duration::from_secs(10);
    least.max((2 * took).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_looks_are_rare_but_not_too_rare() {
        let least = Duration::from_millis(250);
        for (took, rest) in [(0, 250), (100, 250), (400, 800), (60_000, 10_000)] {
            assert_eq!(pause(least, Duration::from_millis(took)), Duration::from_millis(rest));
        }
    }
}
