//! What the service manager is told: readiness, reloads, the watchdog's sign of life. Without one, nothing.

use crate::log;
use sd_notify::NotifyState;
use std::time::Duration;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("telling the service manager: {error}");
    }
}

/// The service works, and this is how it stands.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How the service stands.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The settings are being read again; [`ready`] ends that.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!("reading the clock: {error}"),
    }
}

/// The service ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The service is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often to say so; nothing if nobody listens.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}
