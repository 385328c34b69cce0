//! The end of a layer of chunks that is complete.

use std::sync::Arc;

use hoist_format::digest::Digest;

use super::LayerFill;
use crate::error::Error;
use crate::store::{LayerState, Parts};

impl LayerFill {
    /// The check and the state of a layer of chunks that is complete: what stands in the data file is read and held to
    /// what was recorded. `verified`: does the image's manifest hold right what that was compared with?
    ///
    /// # Errors
    /// When it is not what was recorded and can't be fetched again, or the store's.
    pub(crate) async fn finish(self: &Arc<Self>, verified: bool) -> Result<(), Error> {
        self.mend().await.map_err(|e| Error::Store {
            path: self.dir.file("data"),
            why: format!("has not what was verified, and it can't be fetched again: {e}"),
        })?;
        let state = self.dir.state();
        self.dir.save_state(&LayerState { verified, ..state })?;
        let this = Arc::clone(self);
        let table = Digest::of(&self.dir.table_bytes().unwrap_or_default());
        let parts = Parts { data_size: self.table().extents.data_size, table, tree: Digest::of(b"") };
        let native = tokio::task::spawn_blocking(move || this.become_native(parts)).await;
        native.map_err(|e| Error::Internal(e.to_string()))?
    }
}
