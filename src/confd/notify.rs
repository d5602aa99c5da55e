//! Messages to the service manager: readiness, reloads, keep-alives. Without a service manager nothing is sent.

use crate::log;
use sd_notify::NotifyState;
use std::time::Duration;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("telling the service manager: {error}");
    }
}

/// The service is ready, with this status line.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The status line.
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

/// How often to send a keep-alive; `None` if nobody expects one.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}
