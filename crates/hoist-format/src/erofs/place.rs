//! Where each inode lies. An inode that carries data behind it must not cross a block; what that
//! leaves open before it is filled with the small inodes that follow.

use std::ops::Range;

use super::layout::{BLOCK, SLOT};

/// Hands out places in the inode area.
pub(super) struct Space {
    end: u64,
    gap: Range<u64>,
}

impl Space {
    /// Starts at byte `start`, a block's first.
    pub fn new(start: u64) -> Self {
        Self { end: start, gap: 0..0 }
    }

    /// The byte offset for an inode of `len` bytes all told. `whole`: it must lie in one block,
    /// and then `len` is at most a block.
    pub fn take(&mut self, len: u64, whole: bool) -> u64 {
        let crosses = |at: u64| whole && at % BLOCK + len > BLOCK;
        let at = self.gap.start.next_multiple_of(SLOT);
        if at + len <= self.gap.end && !crosses(at) {
            self.gap.start = at + len;
            return at;
        }
        let mut at = self.end.next_multiple_of(SLOT);
        if crosses(at) {
            let next = at.next_multiple_of(BLOCK);
            if next - at > self.gap.end.saturating_sub(self.gap.start) {
                self.gap = at..next;
            }
            at = next;
        }
        self.end = at + len;
        at
    }

    /// The first block boundary behind everything.
    pub fn end(&self) -> u64 {
        self.end.next_multiple_of(BLOCK)
    }
}
