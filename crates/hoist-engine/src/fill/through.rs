//! Whether a layer was read through: all of it was fetched, and its readers have taken half of it.

use tokio::sync::watch;

use super::{LayerFill, State};

/// See the module. It outlives the fill path that says it.
#[derive(Debug, Default)]
pub struct Through(watch::Sender<bool>);

impl Through {
    /// Returns once it was. Cancel safe.
    pub async fn wait(&self) {
        // It ends with the layer only.
        let _ = self.0.subscribe().wait_for(|through| *through).await;
    }
}

impl LayerFill {
    pub(super) fn look_whether_through(&self, state: &State) {
        let is_through = || state.taken >= self.size / 2 && (state.ahead.swept || self.is_complete());
        if !*self.through.0.borrow() && is_through() {
            self.through.0.send_replace(true);
        }
    }
}
