//! The kernel asks twice: where its readahead has failed it reads the page that is wanted once more, and only if that
//! fails too is the program told. To the program that is one read, and it has one time limit.
//!
//! A question is a repeat if the process whose read has just failed asks for a part of it again and has not ended a read call
//! since. Where that is not to be told (other threads of it read, or a loop device lies between), each question has the whole
//! time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoist_sys::process::read_calls;

/// A repeat comes at once, but on a machine with more to do.
const KEPT: Duration = Duration::from_secs(5);
/// How often the kernel repeats a read at most.
const REPEATS: u32 = 2;
/// Failures that are remembered.
const MOST: usize = 256;

/// Reads of a layer that have just failed, and of which the reader has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Failed(Mutex<Vec<Read>>);

#[derive(Debug)]
struct Read {
    start: u64,
    end: u64,
    pid: u32,
    /// Read calls that the process had ended.
    calls: u64,
    began: Instant,
    failed: Instant,
    repeats: u32,
}

impl Failed {
    /// When the read began that this question repeats, if it repeats one.
    pub fn repeated(&self, start: u64, end: u64, pid: u32) -> Option<Instant> {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.retain(|read| read.failed.elapsed() < KEPT && read.repeats > 0);
        let same = |read: &&mut Read| read.pid == pid && read.start < end && start < read.end;
        let read = reads.iter_mut().find(same)?;
        if read_calls(pid) != Some(read.calls) {
            return None;
        }
        read.repeats -= 1;
        Some(read.began)
    }

    /// This read fails. To be called before the reader is answered.
    pub fn note(&self, (start, end): (u64, u64), pid: u32, began: Instant) {
        let Some(calls) = read_calls(pid) else { return };
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.retain(|read| read.pid != pid);
        if reads.len() >= MOST {
            reads.remove(0);
        }
        reads.push(Read { start, end, pid, calls, began, failed: Instant::now(), repeats: REPEATS });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_same_call_is_told_from_the_next_one() {
        let mut reader = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (pid, began, failed) = (reader.id(), Instant::now(), Failed::default());
        let mut line = [0; 1];
        let mut step = || {
            reader.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut line).unwrap();
        };
        // Started, and in its next read call or about to be.
        step();
        failed.note((4096, 8192), pid, began);
        for _ in 0..REPEATS {
            assert_eq!(failed.repeated(0, 4096, pid), None);
            assert_eq!(failed.repeated(8000, 9000, std::process::id()), None);
            assert_eq!(failed.repeated(8000, 9000, pid), Some(began));
        }
        assert_eq!(failed.repeated(8000, 9000, pid), None, "the kernel does not go on for ever");
        failed.note((4096, 8192), pid, began);
        step();
        assert_eq!(failed.repeated(4096, 8192, pid), None, "another call");
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
}
