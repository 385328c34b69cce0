//! Calling off what is read ahead: whoever it was for has ended, or the mount is to go.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// See the module. Said once, for good.
#[derive(Debug, Default)]
pub struct Over {
    is: AtomicBool,
    said: Notify,
}

impl Over {
    /// Calls it off.
    pub fn say(&self) {
        self.is.store(true, Ordering::Release);
        self.said.notify_waiters();
    }

    /// Was it?
    pub fn is(&self) -> bool {
        self.is.load(Ordering::Acquire)
    }

    /// Returns once it was.
    pub async fn said(&self) {
        let said = self.said.notified();
        tokio::pin!(said);
        // Enabled before looking, or a word in between would be missed.
        said.as_mut().enable();
        if !self.is() {
            said.await;
        }
    }
}
