//! Whether an index fits its layer: raised by bytes that did not match it twice, settled once by whoever waits for that.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// See the module.
#[derive(Debug, Default)]
pub struct Doubt {
    is_raised: AtomicBool,
    raised: Notify,
}

/// A doubt that somebody settles; given up, it may be raised again.
#[derive(Debug)]
pub struct Settling<'a> {
    doubt: &'a Doubt,
    settled: bool,
}

impl Doubt {
    /// What came did not match the index, twice.
    pub(super) fn raise(&self) {
        if !self.is_raised.swap(true, Ordering::AcqRel) {
            self.raised.notify_one();
        }
    }

    /// Returns when it was raised, to one of those who wait. Cancel safe.
    pub async fn raised(&self) -> Settling<'_> {
        self.raised.notified().await;
        Settling { doubt: self, settled: false }
    }
}

impl Settling<'_> {
    /// One of the two was found to be wrong, or the index right: there is no more to find out.
    pub fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.doubt.is_raised.store(false, Ordering::Release);
        }
    }
}
