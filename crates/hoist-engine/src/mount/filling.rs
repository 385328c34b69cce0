//! The fill path of a layer, in memory while somebody uses it. What takes room in it is the decoded table, which can
//! be had from the store again at any time: so it is put away when nobody has used it for a while.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fill::{FillError, LayerFill};

/// See the module.
#[derive(Default)]
pub(super) struct Filling {
    state: Mutex<State>,
    /// One reads the table at a time.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    fill: Option<Arc<LayerFill>>,
    /// Bytes that were readable, and of how many, when it was put away.
    seen: Option<(u64, u64)>,
}

/// What became of a fill path that might have been put away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It was not in memory, or has to stay there.
    AsItWas,
    /// It is in use.
    InUse,
    /// It is put away now.
    PutAway,
}

impl Filling {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is in memory, if it is.
    pub fn now(&self) -> Option<Arc<LayerFill>> {
        self.lock().fill.clone()
    }

    /// As it is in memory; `open` brings it there.
    pub async fn or_open(
        &self,
        open: impl Future<Output = Result<Arc<LayerFill>, FillError>>,
    ) -> Result<Arc<LayerFill>, FillError> {
        if let Some(fill) = self.now() {
            return Ok(fill);
        }
        let _alone = self.opening.lock().await;
        if let Some(fill) = self.now() {
            return Ok(fill);
        }
        let fill = open.await?;
        self.lock().fill = Some(Arc::clone(&fill));
        Ok(fill)
    }

    /// Bytes that are readable, and of how many, as far as this process has seen.
    pub fn present_bytes(&self) -> Option<(u64, u64)> {
        let state = self.lock();
        state.fill.as_ref().map(|fill| fill.present_bytes()).or(state.seen)
    }

    /// Puts it away, if nobody has used it since this was last asked, nothing is under way, and it can be had again
    /// from what `is_stored` looks at.
    pub fn put_away(&self, is_stored: impl Fn() -> bool) -> Kept {
        let Some(fill) = self.now() else { return Kept::AsItWas };
        if fill.condemned().is_some() {
            return Kept::AsItWas;
        }
        if fill.was_used() || has_chores(&fill) {
            return Kept::InUse;
        }
        if !is_stored() {
            return Kept::AsItWas;
        }
        let seen = fill.present_bytes();
        drop(fill);
        let mut state = self.lock();
        // Whoever has taken it meanwhile has a copy.
        let unused =
            |fill: &mut Arc<LayerFill>| Arc::strong_count(fill) == 1 && fill.is_unused() && !has_chores(fill);
        match state.fill.take_if(unused) {
            Some(_) => {
                state.seen = Some(seen);
                Kept::PutAway
            }
            None => Kept::InUse,
        }
    }
}

/// Of one whose readers go past us all is done, whatever was noted before.
fn has_chores(fill: &LayerFill) -> bool {
    !fill.is_native() && fill.has_chores()
}
