//! Completes the layers of a mount while nobody waits for anything, so that in the end the mount needs
//! neither registry nor us.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layer::LazyLayer;
use crate::config::Background;
use crate::fill::{FillError, Meter};

/// After a failure it is tried again no sooner than this, and then ever later.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Fetches what is missing of `layers`, lowest first, until all is here.
pub(super) async fn complete(layers: Vec<Arc<LazyLayer>>, meter: Arc<Meter>, how: Background) {
    let mut pause = FIRST_PAUSE;
    for layer in layers {
        loop {
            quiet(&meter, || tokio::time::sleep(how.after)).await;
            match fetch(&layer, &meter, &how).await {
                Ok(Step::Complete) => {
                    layer.notice_complete();
                    break;
                }
                Ok(Step::Disturbed) => pause = FIRST_PAUSE,
                Err(FillError::Lied(_)) => break,
                Err(e) => {
                    tracing::warn!(layer = %layer.dir().blob(), again_in = ?pause, "fetching in the background: {e}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

enum Step {
    Complete,
    /// Somebody else has asked for something.
    Disturbed,
}

async fn fetch(layer: &LazyLayer, meter: &Meter, how: &Background) -> Result<Step, FillError> {
    let fill = layer.fill().await?;
    loop {
        meter.idle().await;
        let (begun, since) = (meter.begun(), Instant::now());
        let Some(bytes) = fill.fetch_next().await? else { return Ok(Step::Complete) };
        if meter.begun() != begun + 1 {
            return Ok(Step::Disturbed);
        }
        if let Some(rate) = how.bytes_per_second {
            let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            tokio::time::sleep(due.saturating_sub(since.elapsed())).await;
        }
    }
}

/// Returns once nobody has asked for anything for as long as a pause takes.
async fn quiet<P: Future<Output = ()>>(meter: &Meter, pause: impl Fn() -> P) {
    loop {
        meter.idle().await;
        let begun = meter.begun();
        pause().await;
        if meter.begun() == begun {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::sync::Semaphore;

    /// The next step is not begun beside a request that somebody waits for, nor right after it.
    #[tokio::test]
    async fn who_waits_comes_first() {
        let (meter, over) = (Meter::default(), Semaphore::new(0));
        let begun = std::cell::Cell::new(0);
        let pause = || {
            begun.set(begun.get() + 1);
            over.acquire().map(|permit| permit.expect("not closed").forget())
        };
        let mut quiet = std::pin::pin!(quiet(&meter, pause));
        let asked = meter.begin(1);
        assert!((&mut quiet).now_or_never().is_none() && begun.get() == 0, "beside a request");
        drop(asked);
        assert!((&mut quiet).now_or_never().is_none() && begun.get() == 1, "right after it");
        drop(meter.begin(1));
        over.add_permits(1);
        assert!((&mut quiet).now_or_never().is_none() && begun.get() == 2, "somebody asked in the pause");
        over.add_permits(1);
        quiet.await;
    }
}
