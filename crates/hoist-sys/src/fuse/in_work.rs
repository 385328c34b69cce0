//! Which requests of a session are in work: kept in memory that outlives the process.
//!
//! The kernel hands out a request once, and lets anybody who has the queue's descriptor reply to it. So a request is read
//! straight into the shared memory, into the *inbox* of the thread that reads, and stays there until it is answered; a read of
//! a file, which may have to wait, is copied into a *slot* and stays there. A process may be killed between any two
//! instructions of this, and whoever comes next finds the request in one of the two, or in both. What it finds may have been
//! answered: then the kernel says so, as no two requests of a session have the same number.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use crate::outliving::Outliving;

/// Threads that read requests, and queues, at most.
pub(super) const INBOXES: usize = 8;
/// `FUSE_MIN_READ_BUFFER`, the least that the kernel reads a request into; the longest one here, a name, is shorter.
pub(super) const INBOX_BYTES: usize = 8 << 10;
/// Words of an inbox.
const INBOX: usize = INBOX_BYTES / 8;
/// Reads in work at once. The memory of those that were never used is not there.
const SLOTS: usize = 1 << 16;
/// Words of a slot: 0 when free and else one more than the queue's number, and then the request.
const SLOT: usize = 16;
/// Words before the inboxes, one page: magic, inboxes that were used, slots that were used.
const HEADER: usize = 512;
const USED_INBOXES: usize = 1;
const USED_SLOTS: usize = 2;
const FIRST_SLOT: usize = HEADER + INBOXES * INBOX;
const WORDS: usize = at(SLOTS);
/// Of layout 2.
const MAGIC: u64 = u64::from_le_bytes(*b"hoistfq2");
/// Layout 1 is the same with fewer slots. An upgrade goes on with it.
const SLOTS_1: usize = 1024;
const WORDS_1: usize = at(SLOTS_1);
const MAGIC_1: u64 = u64::from_le_bytes(*b"hoistfq1");

/// The requests that were read and not answered yet. Cheap to clone, safe to share.
#[derive(Debug, Clone)]
pub struct InWork(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Outliving,
    /// How many slots there are.
    slots: usize,
    free: Mutex<Free>,
    /// Was it said that none is free?
    said: AtomicBool,
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
        Outliving::new(c"hoist-requests", WORDS, MAGIC).map(|memory| Self::over(memory, SLOTS))
    }

    /// What another process made with [`InWork::new`].
    ///
    /// # Errors
    /// It is something else, or of another layout; or the kernel's.
    pub fn of(file: File) -> io::Result<Self> {
        let (slots, words, magic) = match file.metadata()?.len() == WORDS_1 as u64 * 8 {
            true => (SLOTS_1, WORDS_1, MAGIC_1),
            false => (SLOTS, WORDS, MAGIC),
        };
        let memory = Outliving::of(file, words, magic).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                io::Error::other("no list of FUSE requests, or one of another version of hoist")
            }
            _ => e,
        })?;
        Ok(Self::over(memory, slots))
    }

    fn over(memory: Outliving, slots: usize) -> Self {
        let used = (memory.words()[USED_SLOTS].load(Ordering::Acquire) as usize).min(slots);
        let is_free = |slot: &usize| memory.words()[at(*slot)].load(Ordering::Acquire) == 0;
        // The lowest are taken first, so that few pages are in use.
        let free = Free { slots: (0..used).rev().filter(is_free).collect(), untouched: used };
        Self(Arc::new(Shared { memory, slots, free: Mutex::new(free), said: AtomicBool::new(false) }))
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

    /// Notes a request until the slot is [done with](Slot::done). None, which is said once on standard error, where too many
    /// are in work; None for one that is too long. Never waits: who reads requests must go on.
    pub(super) fn note(&self, queue: usize, request: &[u8]) -> Option<Slot> {
        if request.len() > (SLOT - 1) * 8 {
            return None;
        }
        let Some(number) = self.0.take() else {
            self.say_full();
            return None;
        };
        let words = &self.0.memory.words()[at(number)..][..SLOT];
        for (word, bytes) in words[1..].iter().zip(request.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        words[0].store(queue as u64 + 1, Ordering::Release);
        Some(self.slot(number))
    }

    fn say_full(&self) {
        if !self.0.said.swap(true, Ordering::Relaxed) {
            // Not eprintln, which panics when standard error is closed.
            let _ = writeln!(
                io::stderr(),
                "hoist: {} reads of one FUSE file system wait for their bytes: more of them fail with EIO until some are \
                 answered; see whether its registry answers",
                self.0.slots
            );
        }
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
        for slot in 0..used(USED_SLOTS, self.0.slots) {
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
const fn at(slot: usize) -> usize {
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

    /// A free slot: the one that was freed last, whose page is in use already, or else the lowest that was never used.
    fn take(&self) -> Option<usize> {
        let mut free = self.free();
        if let Some(slot) = free.slots.pop() {
            return Some(slot);
        }
        let slot = (free.untouched < self.slots).then_some(free.untouched)?;
        free.untouched += 1;
        self.memory.words()[USED_SLOTS].store(free.untouched as u64, Ordering::Release);
        Some(slot)
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
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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

    #[test]
    fn who_finds_no_slot_is_told_and_does_not_wait() {
        let list = InWork::new().unwrap();
        let mut slots: Vec<_> = (0..SLOTS).map(|_| list.note(0, &request(1, 80)).unwrap()).collect();
        assert!(list.note(0, &request(2, 80)).is_none());
        assert!(another(&list).note(0, &request(2, 80)).is_none());
        assert_eq!(list.left(1).len(), SLOTS);
        slots.pop().unwrap().done();
        list.note(0, &request(2, 80)).unwrap().done();
        assert_eq!(list.left(1).len(), SLOTS - 1);
    }

    /// Blocks of 512 bytes that the list's memory takes.
    fn blocks(list: &InWork) -> u64 {
        File::from(list.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().blocks()
    }

    #[test]
    fn slots_that_were_never_used_take_no_memory() {
        let list = InWork::new().unwrap();
        let before = blocks(&list);
        assert!(before <= 16, "{before} blocks");
        for _ in 0..SLOTS {
            list.note(0, &request(1, 80)).unwrap().done();
        }
        let next = another(&list);
        assert!(next.left(1).is_empty());
        for _ in 0..SLOTS {
            next.note(0, &request(1, 80)).unwrap().done();
        }
        assert!(blocks(&list) <= before + 16, "{} blocks, {before} before", blocks(&list));
    }

    #[test]
    fn a_successor_takes_the_lowest_free_slots() {
        let list = InWork::new().unwrap();
        (0..9)
            .map(|_| list.note(0, &request(1, 80)).unwrap())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(Slot::done);
        let next = another(&list);
        assert_eq!([0, 1, 2].map(|_| next.note(0, &request(1, 80)).unwrap().number), [0, 1, 2]);
    }

    #[test]
    fn a_list_of_layout_1_is_gone_on_with() {
        let old = Outliving::new(c"hoist-requests", WORDS_1, MAGIC_1).unwrap();
        let list = InWork::of(old.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        for _ in 0..SLOTS_1 {
            drop(list.note(0, &request(1, 80)).unwrap());
        }
        assert!(list.note(0, &request(1, 80)).is_none());
        assert_eq!(another(&list).left(1).len(), SLOTS_1);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(InWork::of(File::open("/dev/null").unwrap()).is_err());
        for (words, magic) in [(WORDS, 7), (WORDS, MAGIC_1), (WORDS_1, MAGIC), (at(2048), MAGIC)] {
            let other = Outliving::new(c"other", words, magic).unwrap();
            let refused = InWork::of(other.as_fd().try_clone_to_owned().unwrap().into()).unwrap_err();
            assert!(refused.to_string().contains("another version of hoist"), "{refused}");
        }
    }
}
