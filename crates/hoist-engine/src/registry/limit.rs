//! Time limits in which only the time counts that this process had: where it was stopped, or the machine slept, a server
//! had no chance to be heard.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// The longest that is counted at once.
const STEP: Duration = Duration::from_secs(1);

/// What `waited_for` gives, None if it takes longer than `limit`; and how long it took, of what counts.
pub(super) async fn within<T>(limit: Duration, waited_for: impl Future<Output = T>) -> (Option<T>, Duration) {
    let mut waited_for = pin!(waited_for);
    // In several steps, so that after a pause others get their turn, who bring what has come meanwhile.
    let step = STEP.min(limit / 4);
    let mut counted = Duration::ZERO;
    while counted < limit {
        let since = tokio::time::Instant::now();
        if let Ok(came) = tokio::time::timeout(step, &mut waited_for).await {
            return (Some(came), counted + since.elapsed().min(step));
        }
        counted += step.max(Duration::from_millis(1));
    }
    (None, counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_comes_is_given_up() {
        let limit = Duration::from_millis(50);
        assert_eq!(within(limit, std::future::pending::<()>()).await, (None, limit));
        let (came, took) = within(STEP * 1000, std::future::ready(1)).await;
        assert!(came == Some(1) && took <= STEP);
    }

    /// A runtime that stands still is like a process that is stopped: afterwards its clock has gone on, and what has come
    /// has not been passed on yet.
    #[tokio::test]
    async fn a_pause_of_our_own_does_not_count() {
        let (send, receive) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            std::thread::sleep(Duration::from_millis(500));
            // Others come first.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let _ = send.send(());
        });
        assert!(within(Duration::from_millis(100), receive).await.0.is_some());
    }
}
