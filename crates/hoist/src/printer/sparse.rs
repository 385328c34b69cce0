//! Progress where nobody watches, as in the log of a CI job: a line now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::human::bytes;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct Sparse(Mutex<Option<Work>>);

/// A piece of work under way.
#[derive(Debug)]
struct Work {
    what: String,
    total: u64,
    done: u64,
    next: Instant,
}

impl Sparse {
    /// A piece of work starts, of so many bytes if that is known.
    pub fn begin(&self, what: &str, total: u64) {
        self.set(Some(Work { what: what.to_owned(), total, done: 0, next: Instant::now() + EVERY }));
    }

    /// So many more bytes of it are done; gives the line that is due.
    pub fn advance(&self, more: u64, now: Instant) -> Option<String> {
        let mut work = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let work = work.as_mut()?;
        work.done += more;
        if now < work.next {
            return None;
        }
        work.next = now + EVERY;
        let of = if work.total > 0 { format!(" of {}", bytes(work.total)) } else { String::new() };
        Some(format!("{}: {}{of}", work.what, bytes(work.done)))
    }

    /// It is done.
    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, work: Option<Work>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = work;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_now_and_then() {
        let sparse = Sparse::default();
        let begun = Instant::now();
        assert_eq!(sparse.advance(1, begun), None);
        sparse.begin("pulling app", 4096);
        assert_eq!(sparse.advance(1024, begun), None);
        let later = Instant::now() + EVERY;
        assert_eq!(sparse.advance(1024, later).as_deref(), Some("pulling app: 2.00 KiB of 4.00 KiB"));
        assert_eq!(sparse.advance(1024, later), None);
        assert_eq!(sparse.advance(1024, later + EVERY).as_deref(), Some("pulling app: 4.00 KiB of 4.00 KiB"));
        sparse.begin("x", 0);
        assert_eq!(sparse.advance(7, later + EVERY).as_deref(), Some("x: 7 B"));
        sparse.end();
        assert_eq!(sparse.advance(7, later + EVERY * 9), None);
    }
}
