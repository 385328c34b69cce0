//! What the service manager is told (sd_notify(3)); without one, nothing happens.

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("telling the service manager: {error}");
    }
}

/// It can be asked.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its configuration; [`ready`] follows.
pub fn reloading() {
    // systemd wants to know since when, so as not to take an earlier READY for the end of it.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("reading the clock: {error}"),
    }
}

/// It ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}
