//! What the service manager is told (sd_notify(3)); without one, nothing happens.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hoist_engine::Vault;
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

/// The service manager's store of descriptors (`FileDescriptorStoreMax=`), where there is a service manager.
pub fn vault() -> Option<Arc<dyn Vault>> {
    std::env::var_os("NOTIFY_SOCKET").map(|_| Arc::new(Store) as Arc<dyn Vault>)
}

#[derive(Debug)]
struct Store;

impl Vault for Store {
    fn hold(&self, name: &str, fd: BorrowedFd<'_>) {
        // It would drop the end of a pipe as soon as the other end is closed, which is what it is kept for; FUSE's
        // it may, as these tell by an error that they are over.
        let mut state = vec![NotifyState::FdStore, NotifyState::FdName(name)];
        if !name.contains(" fuse ") {
            state.push(NotifyState::Custom("FDPOLL=0"));
        }
        if let Err(error) = sd_notify::notify_with_fds(&state, &[fd]) {
            tracing::warn!("giving the service manager a descriptor to keep: {error}");
        }
    }

    fn release(&self, name: &str) {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}
