//! Memory of decoded pieces, used again and again.
//!
//! What another processor has just read is slow to write: its cache has to give up each line of it, one by one, and
//! decompressing took up to half as long again. So pieces rest before they are used again, until most of them has left
//! that cache.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use hoist_format::codec::Piece;

/// Pieces that rest: 2.3 MB, where a processor's own cache has about one.
const RESTING: usize = 8;

/// See the module.
pub(super) struct Pool {
    returned: Receiver<Piece>,
    resting: VecDeque<Piece>,
}

impl Pool {
    /// Of the pieces that come back.
    pub fn new(returned: Receiver<Piece>) -> Self {
        Self { returned, resting: VecDeque::new() }
    }

    /// A piece that has rested, if there is one.
    pub fn rested(&mut self) -> Option<Piece> {
        self.resting.extend(self.returned.try_iter());
        if self.resting.len() > RESTING { self.resting.pop_front() } else { None }
    }
}
