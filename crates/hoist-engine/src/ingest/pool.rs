//! Memory of decoded pieces, used again and again.
//!
//! What another processor has just read is slow to write: its cache has to give up each line of it, one by one, and
//! decompressing took up to half as long again. So pieces rest before they are used again, until most of them has left
//! that cache.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

/// Pieces that rest: 2.3 MB, where a processor's own cache has about one.
const RESTING: usize = 8;

/// See the module.
pub(super) struct Pool<P> {
    returned: Receiver<P>,
    resting: VecDeque<P>,
    /// Pieces that were given and have not come back.
    away: usize,
    most: usize,
}

impl<P> Pool<P> {
    /// Of the pieces that come back, of which no more than `most` are away at a time.
    pub fn new(returned: Receiver<P>, most: usize) -> Self {
        Self { returned, resting: VecDeque::new(), away: 0, most }
    }

    /// Called for each piece that is given away: one that has rested in return, if there is one.
    ///
    /// When all are away it waits until half of them are back, not for the next one: two threads that wake each other for
    /// every piece are kept on one processor while another stands idle.
    pub fn rested(&mut self) -> Option<P> {
        let known = self.resting.len();
        self.resting.extend(self.returned.try_iter());
        if self.away - (self.resting.len() - known) >= self.most {
            self.resting.extend(self.returned.iter().take(self.most.div_ceil(2)));
        }
        self.away = self.away + 1 - (self.resting.len() - known);
        if self.resting.len() > RESTING { self.resting.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_all_away_waits_until_half_are_back() {
        let (recycle, returned) = std::sync::mpsc::channel();
        let mut pool = Pool::new(returned, 6);
        (0..6).for_each(|_| assert!(pool.rested().is_none()));
        (0..3).for_each(|_| recycle.send(()).unwrap());
        pool.rested();
        assert_eq!((pool.away, pool.resting.len()), (4, 3));
        (0..2).for_each(|_| assert!(pool.rested().is_none()));
        assert_eq!(pool.away, 6);
        // One that comes back before the next is given is not waited for any more.
        recycle.send(()).unwrap();
        pool.rested();
        assert_eq!((pool.away, pool.resting.len()), (6, 4));
        // Nobody is left who could give any back.
        drop(recycle);
        assert!(pool.rested().is_none());
    }
}
