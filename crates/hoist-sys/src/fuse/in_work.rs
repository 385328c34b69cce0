//! Which requests of a session are in work: kept in memory that outlives the process.
//!
//! The kernel hands out a request once, and lets anybody who has the queue's descriptor reply to it. So a request is read
//! straight into the shared memory, into the *inbox* of the thread that reads, and stays there until it is answered; a read of
//! a file, which may have to wait, is copied into a *slot* and stays there. A process may be killed between any two
//! instructions of this, and whoever comes next finds the request in one of the two, or in both. What it finds may have been
//! answered: then the kernel says so, as no two requests of a session have the same number.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use crate::outliving::Outliving;

/// Threads that read requests, and queues, at most.
pub(super) const INBOXES: usize = 8;
/// `FUSE_MIN_READ_BUFFER`, the least that the kernel reads a request into; the longest one here, a name, is shorter.
pub(super) const INBOX_BYTES: usize = 8 << 10;
/// Words of an inbox.
const INBOX: usize = INBOX_BYTES / 8;
/// Reads in work at once.
const SLOTS: usize = 1024;
/// Words of a slot: 0 when free and else one more than the queue's number, and then the request.
const SLOT: usize = 16;
/// Words before the inboxes, one page: magic, inboxes that were used, slots that were used.
const HEADER: usize = 512;
const USED_INBOXES: usize = 1;
const USED_SLOTS: usize = 2;
const FIRST_SLOT: usize = HEADER + INBOXES * INBOX;
const WORDS: usize = FIRST_SLOT + SLOTS * SLOT;
/// Of layout 1.
const MAGIC: u64 = u64::from_le_bytes(*b"hoistfq1");

/// The requests that were read and not answered yet. Cheap to clone, safe to share.
#[derive(Debug, Clone)]
pub struct InWork(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Outliving,
    free: Mutex<Free>,
    more: Condvar,
}

/// The slots that are free: these, and all from `untouched` on.
#[derive(Debug)]
struct Free {
    slots: Vec<usize>,
    untouched: usize,
}

/// A request that nobody has answered, as far as is known.
#[derive(Debug)]
pub(crate) struct Left {
    /// The number of the queue that it was read from.
    pub queue: usize,
    /// As the kernel wrote it.
    pub bytes: Vec<u8>,
    /// Where it is noted, unless it is still in an inbox.
    pub slot: Option<Slot>,
}

impl InWork {
    /// Nothing in work.
    ///
    /// # Errors
    /// The kernel's: no memory, too many open files.
    pub fn new() -> io::Result<Self> {
        Outliving::new(c"hoist-requests", WORDS, MAGIC).map(Self::over)
    }

    /// What another process made with [`InWork::new`].
    ///
    /// # Errors
    /// It is something else, or of another layout; or the kernel's.
    pub fn of(file: File) -> io::Result<Self> {
        Outliving::of(file, WORDS, MAGIC).map(Self::over).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                io::Error::other("no list of FUSE requests, or one of another version of hoist")
            }
            _ => e,
        })
    }

    fn over(memory: Outliving) -> Self {
        let used = (memory.words()[USED_SLOTS].load(Ordering::Acquire) as usize).min(SLOTS);
        let slots = (0..used).filter(|slot| memory.words()[at(*slot)].load(Ordering::Acquire) == 0).collect();
        Self(Arc::new(Shared {
            memory,
            free: Mutex::new(Free { slots, untouched: used }),
            more: Condvar::new(),
        }))
    }

    /// Reads a request into an inbox, and copies it to `copy`. Only one thread at a time uses an inbox, and only for one queue:
    /// the one with the inbox's number, or that modulo the number of queues.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub(super) fn receive(&self, inbox: usize, device: &Device, copy: &mut Vec<u8>) -> io::Result<()> {
        let words = &self.0.memory.words()[HEADER + inbox * INBOX..][..INBOX];
        // SAFETY: as many bytes as that are in the slice, which atomics alone read, in this process on this thread, in others
        // after this one's death.
        let len = unsafe { device.read_into(words.as_ptr().cast_mut().cast(), INBOX_BYTES)? };
        copy.clear();
        copy_bytes(words, len, copy);
        Ok(())
    }

    /// Has the kernel find the inbox there, as a page fault in a dying process would lose the request.
    pub(super) fn open(&self, inbox: usize) {
        let words = self.0.memory.words();
        words[USED_INBOXES].fetch_max(inbox as u64 + 1, Ordering::AcqRel);
        // The kernel gives memory by the page.
        words[HEADER + inbox * INBOX..][..INBOX].iter().step_by(512).for_each(|word| {
            word.fetch_or(0, Ordering::AcqRel);
        });
    }

    /// What lies in the inbox is answered, or noted elsewhere.
    pub(super) fn clear(&self, inbox: usize) {
        self.0.memory.words()[HEADER + inbox * INBOX].store(0, Ordering::Release);
    }

    /// Notes a request until the slot is [done with](Slot::done). Waits while too many are in work. None for one that is too
    /// long.
    pub(super) fn note(&self, queue: usize, request: &[u8]) -> Option<Slot> {
        if request.len() > (SLOT - 1) * 8 {
            return None;
        }
        let number = self.0.take();
        let words = &self.0.memory.words()[at(number)..][..SLOT];
        for (word, bytes) in words[1..].iter().zip(request.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        words[0].store(queue as u64 + 1, Ordering::Release);
        Some(self.slot(number))
    }

    fn slot(&self, number: usize) -> Slot {
        Slot { shared: Arc::clone(&self.0), number }
    }

    /// What a dead process left, of `queues` queues: for whoever goes on, before it reads from any. In no order.
    pub(crate) fn left(&self, queues: usize) -> Vec<Left> {
        let words = self.0.memory.words();
        let used = |word: usize, most| (words[word].load(Ordering::Acquire) as usize).min(most);
        let mut found = Vec::new();
        let mut add = |queue, words, slot| {
            let mut bytes = Vec::new();
            if let Some(len) = length(words)
                && queue < queues
            {
                copy_bytes(words, len, &mut bytes);
                found.push(Left { queue, bytes, slot });
            }
        };
        for slot in 0..used(USED_SLOTS, SLOTS) {
            let words = &words[at(slot)..][..SLOT];
            if let Some(queue) = (words[0].load(Ordering::Acquire) as usize).checked_sub(1) {
                add(queue, &words[1..], Some(self.slot(slot)));
            }
        }
        for inbox in 0..used(USED_INBOXES, INBOXES) {
            add(inbox % queues.max(1), &words[HEADER + inbox * INBOX..][..INBOX], None);
        }
        found
    }

    /// A dead process's inboxes are seen to.
    pub(crate) fn clear_all(&self) {
        (0..INBOXES).for_each(|inbox| self.clear(inbox));
    }
}

/// Where a slot begins.
fn at(slot: usize) -> usize {
    FIRST_SLOT + slot * SLOT
}

/// The length of the request that begins in these words, by its first field; None where there is none.
fn length(words: &[AtomicU64]) -> Option<usize> {
    let len = words[0].load(Ordering::Acquire).to_ne_bytes();
    let len = u32::from_ne_bytes([len[0], len[1], len[2], len[3]]) as usize;
    (len != 0 && len <= words.len() * 8).then_some(len)
}

/// Appends the first bytes of the words.
fn copy_bytes(words: &[AtomicU64], len: usize, to: &mut Vec<u8>) {
    let begin = to.len();
    to.extend(words[..len.div_ceil(8)].iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()));
    to.truncate(begin + len);
}

impl AsFd for InWork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free slot, once there is one.
    fn take(&self) -> usize {
        let mut free = self.free();
        loop {
            if let Some(slot) = free.slots.pop() {
                return slot;
            }
            if free.untouched < SLOTS {
                free.untouched += 1;
                self.memory.words()[USED_SLOTS].store(free.untouched as u64, Ordering::Release);
                return free.untouched - 1;
            }
            free = self.more.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Where a request is noted. Dropped, it stays there, as when this process dies.
#[derive(Debug)]
#[must_use = "a slot that nobody is done with is never free again"]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    number: usize,
}

impl Slot {
    /// The request is answered.
    pub fn done(self) {
        self.shared.memory.words()[at(self.number)].store(0, Ordering::Release);
        self.shared.free().slots.push(self.number);
        self.shared.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u8, len: usize) -> Vec<u8> {
        let mut bytes = (len as u32).to_ne_bytes().to_vec();
        bytes.resize(len, number);
        bytes
    }

    fn another(list: &InWork) -> InWork {
        InWork::of(list.as_fd().try_clone_to_owned().unwrap().into()).unwrap()
    }

    fn found(list: &InWork, queues: usize) -> Vec<(usize, Vec<u8>)> {
        list.left(queues).into_iter().map(|left| (left.queue, left.bytes)).collect()
    }

    #[test]
    fn what_nobody_is_done_with_is_found_by_the_next() {
        let list = InWork::new().unwrap();
        let first = list.note(0, &request(1, 80)).unwrap();
        let second = list.note(1, &request(2, 77)).unwrap();
        first.done();
        drop(second);
        let next = another(&list);
        assert_eq!(found(&next, 2), [(1, request(2, 77))]);
        // Of a queue that is not there.
        assert_eq!(found(&next, 1), []);
        let third = next.note(0, &request(3, 120)).unwrap();
        assert_eq!(found(&next, 2), [(0, request(3, 120)), (1, request(2, 77))]);
        third.done();
        next.left(2).into_iter().for_each(|left| left.slot.unwrap().done());
        assert!(another(&list).left(2).is_empty());
        assert!(list.note(0, &request(4, 121)).is_none());
    }

    #[test]
    fn an_inbox_is_found_until_it_is_cleared() {
        let list = InWork::new().unwrap();
        list.open(3);
        let word = &list.0.memory.words()[HEADER + 3 * INBOX];
        word.store(u64::from_ne_bytes([9, 0, 0, 0, 7, 7, 7, 7]), Ordering::Release);
        let left = another(&list).left(2);
        assert_eq!((left.len(), left[0].queue, left[0].bytes.len()), (1, 1, 9));
        list.clear(3);
        assert!(list.left(2).is_empty());
    }

    /// More than there are slots.
    #[test]
    fn who_finds_no_slot_waits_for_one() {
        let list = InWork::new().unwrap();
        let mut slots: Vec<_> = (0..SLOTS).map(|_| list.note(0, &request(1, 80)).unwrap()).collect();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| list.note(0, &request(2, 80)).unwrap().done());
            slots.pop().unwrap().done();
            waiting.join().unwrap();
        });
        assert_eq!(list.left(1).len(), SLOTS - 1);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(InWork::of(File::open("/dev/null").unwrap()).is_err());
        let other = Outliving::new(c"other", WORDS, 7).unwrap();
        assert!(InWork::of(other.as_fd().try_clone_to_owned().unwrap().into()).is_err());
    }
}
