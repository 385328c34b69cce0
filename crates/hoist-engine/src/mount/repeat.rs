//! One read has one time limit, however often the kernel asks for it.
//!
//! It asks twice: where its readahead has failed it reads the page that is wanted once more, and only if that fails too is
//! the program told. And many who want one page wait for the first of them, then ask one after the other.
//!
//! A question is a *repeat* if the thread whose read has just failed asks for a part of it again and has not ended a read
//! call since: it has what is left of the time, maybe nothing. It is *of a queue* if others ask for what has just failed, or
//! a loop device does, which reads for nobody knows whom: they have waited as long, or come too late to hope for more. These
//! are tried for a short time, so that what could be had again is not refused, but all of a queue for no longer than
//! [`TRIED`] together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoist_sys::process::read_calls;

/// A repeat comes at once, but on a machine with more to do.
const KEPT: Duration = Duration::from_secs(5);
/// So does the next of a queue; who comes later has not waited with the others.
const QUEUED: Duration = Duration::from_secs(2);
/// The time that one of a queue has at least.
const SHORT: Duration = Duration::from_secs(1);
/// After the time of the first of a queue is over, the others are tried for this long, together.
const TRIED: Duration = Duration::from_secs(5);
/// How often the kernel repeats a read at most.
const REPEATS: u32 = 2;
/// Failures that are remembered.
const MOST: usize = 256;

/// Who reads: a thread, by its number; None is a loop device for somebody.
pub(crate) type Reader = Option<u32>;

/// How long a read may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    /// When it began, or what it has waited with.
    pub began: Instant,
    /// What is left of its time.
    pub left: Duration,
    /// The same call has asked before.
    pub repeats: bool,
}

/// Reads of a layer that have just failed, and of which the reader has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Failed(Mutex<Vec<Read>>);

#[derive(Debug)]
struct Read {
    start: u64,
    end: u64,
    reader: Reader,
    /// Read calls that the thread had ended.
    calls: Option<u64>,
    began: Instant,
    failed: Instant,
    repeats: u32,
}

impl Read {
    /// Is this a repeat of it? None where that is not to be told.
    fn is_repeated_by(&self, reader: Reader) -> Option<bool> {
        let calls = self.calls.filter(|_| self.reader == reader)?;
        Some(read_calls(reader?) == Some(calls) && self.repeats > 0)
    }
}

impl Failed {
    /// How long a read of this range may wait, of which each has `most`.
    pub fn wait(&self, (start, end): (u64, u64), reader: Reader, most: Duration) -> Wait {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.retain(|read| read.failed.elapsed() < KEPT);
        let fresh = Wait { began: Instant::now(), left: most, repeats: false };
        let mut queue = None;
        // The last one is what the kernel repeats.
        for read in reads.iter_mut().rev().filter(|read| read.start < end && start < read.end) {
            let left = most.saturating_sub(read.began.elapsed());
            match read.is_repeated_by(reader) {
                Some(true) => {
                    read.repeats -= 1;
                    return Wait { began: read.began, left, repeats: true };
                }
                // It was told of the failure, and tries anew.
                Some(false) => return fresh,
                None if read.failed.elapsed() < QUEUED => {
                    let is_tried = read.began.elapsed() < most + TRIED;
                    let left = if is_tried { left.max(SHORT.min(most)) } else { Duration::ZERO };
                    queue.get_or_insert(Wait { began: read.began, left, repeats: false });
                }
                None => {}
            }
        }
        queue.unwrap_or(fresh)
    }

    /// This read fails. To be called before the reader is answered.
    pub fn note(&self, (start, end): (u64, u64), reader: Reader, wait: Wait) {
        // Who was not tried is no reason not to try the next one.
        if wait.repeats || wait.left.is_zero() {
            return;
        }
        let calls = reader.and_then(read_calls);
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.retain(|read| reader.is_none() || read.reader != reader);
        if reads.len() >= MOST {
            reads.remove(0);
        }
        let (began, failed) = (wait.began, Instant::now());
        reads.push(Read { start, end, reader, calls, began, failed, repeats: REPEATS });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const LONG: Duration = Duration::from_secs(1000);

    fn failing(failed: &Failed, range: (u64, u64), reader: Reader) -> Wait {
        let wait = failed.wait(range, reader, LONG);
        failed.note(range, reader, wait);
        wait
    }

    #[test]
    fn the_same_call_is_told_from_the_next_one() {
        let mut reader = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (pid, failed) = (Some(reader.id()), Failed::default());
        let mut line = [0; 1];
        let mut step = || {
            reader.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut line).unwrap();
        };
        // Started, and in its next read call or about to be.
        step();
        let first = failing(&failed, (4096, 8192), pid);
        assert!(!first.repeats && first.left == LONG);
        for _ in 0..REPEATS {
            assert_ne!(failed.wait((0, 4096), pid, LONG).began, first.began);
            let again = failing(&failed, (8000, 9000), pid);
            assert!(again.repeats && again.began == first.began && again.left < LONG);
        }
        assert!(!failed.wait((8000, 9000), pid, LONG).repeats, "the kernel does not go on for ever");
        failing(&failed, (4096, 8192), pid);
        step();
        let another = failed.wait((4096, 8192), pid, LONG);
        assert!(!another.repeats && another.left == LONG);
        reader.kill().unwrap();
        reader.wait().unwrap();
    }

    #[test]
    fn who_waits_for_one_page_waits_once() {
        let failed = Failed::default();
        let first = failing(&failed, (0, 8192), None);
        // Two loop devices, or one twice; and a thread that no number is of.
        for (reader, range) in [(None, (0, 4096)), (None, (0, 8192)), (Some(u32::MAX), (4096, 4097))] {
            let next = failing(&failed, range, reader);
            assert!(!next.repeats && next.began == first.began && next.left < LONG, "{reader:?}");
            // Its time is over, yet what is back is not refused.
            assert_eq!(failed.wait(range, reader, Duration::from_nanos(1)).left, Duration::from_nanos(1));
        }
        assert_eq!(failed.wait((8192, 9000), None, LONG).left, LONG, "something else");
        // A queue of many, all of whom have waited: none of them is tried, and when it is over the next one is.
        let short = Duration::from_millis(1);
        failed.0.lock().unwrap().iter_mut().for_each(|read| read.began -= TRIED + short);
        let late = failed.wait((0, 4096), None, short);
        assert!(late.left.is_zero() && !late.repeats);
        let failures = failed.0.lock().unwrap().len();
        failed.note((0, 4096), None, late);
        assert_eq!(failed.0.lock().unwrap().len(), failures);
        failed.0.lock().unwrap().iter_mut().for_each(|read| read.failed -= QUEUED);
        assert_eq!(failed.wait((0, 4096), None, LONG).left, LONG, "long after");
    }
}
