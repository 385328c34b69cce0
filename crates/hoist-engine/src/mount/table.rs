//! Waiting for the mount table to change.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The mount table of this process, as something that can be waited for.
#[derive(Debug)]
pub struct MountTable(AsyncFd<File>);

impl MountTable {
    /// From now on no change is missed.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn watch() -> io::Result<Self> {
        Ok(Self(waitable(hoist_sys::mount::table()?, Interest::PRIORITY)?))
    }

    /// Returns once the table has changed since it is watched, or since the last return. Cancel safe.
    ///
    /// # Errors
    /// The runtime's, at its end.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

/// A descriptor that can be waited for.
///
/// # Errors
/// What it is of cannot be polled.
pub fn waitable<T: AsFd + AsRawFd>(of: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // What replaces it is `unsafe` because a T could change its descriptor; none here does.
    #[expect(deprecated)]
    AsyncFd::with_interest(of, interest)
}
