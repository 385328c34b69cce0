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
            quiet(&meter, how.after).await;
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

/// Returns once nobody has asked for anything for this long.
async fn quiet(meter: &Meter, long: Duration) {
    loop {
        meter.idle().await;
        let begun = meter.begun();
        tokio::time::sleep(long).await;
        if meter.begun() == begun {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next step is not begun beside a request that somebody waits for, nor right after it.
    #[tokio::test]
    async fn who_waits_comes_first() {
        let (meter, long) = (Meter::default(), Duration::from_millis(20));
        let asked = meter.begin(1);
        assert!(tokio::time::timeout(5 * long, quiet(&meter, long)).await.is_err());
        drop(asked);
        let since = Instant::now();
        quiet(&meter, long).await;
        assert!(since.elapsed() >= long);
    }
}
