//! Which events are in work: kept in memory that outlives the process.
//!
//! The kernel tells an event once. So it is read, one at a time, straight into the shared memory (the
//! *inbox*), and then noted in a slot until it is answered; a process may be killed between any two
//! instructions of this, and whoever comes next finds the event in one of the two, or in both.
//!
//! An event is known to the kernel by its descriptor's number in the process that read it. Therefore the
//! order of an answer is: respond, clear the slot, close the descriptor. Once closed, the number may be
//! another event's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::fanotify::{self, Answer, Group, Record};
use crate::outliving::Outliving;

/// Events in work at once.
const SLOTS: usize = 1 << 16;
/// Words of a slot: state, device, inode, offset, count, pid; padded to a cache line.
const SLOT: usize = 8;
/// Words before the slots: one page.
const HEADER: usize = 512;
/// Where in it the inbox begins.
const INBOX: usize = 8;
const WORDS: usize = HEADER + SLOTS * SLOT;
/// Of layout 1.
const MAGIC: u64 = u64::from_le_bytes(*b"hoistev1");
/// State of a slot that is being written; otherwise it is 0 when free, or one more than the number.
const CLAIMED: u64 = u64::MAX;
/// In the state of a slot whose file is known.
const KNOWN: u64 = 1 << 32;

/// Device and inode number of a file.
pub type FileId = (u64, u64);

/// The events taken and not answered yet. Cheap to clone, safe to share.
#[derive(Debug, Clone)]
pub struct Table {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: Outliving,
    /// One event at a time lies in the inbox.
    reading: Mutex<()>,
    /// Events in work in this process, and how many there may be.
    in_work: AtomicUsize,
    most: usize,
    less: Condvar,
    counting: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// An empty table.
    ///
    /// # Errors
    /// The kernel's: no memory, too many open files.
    pub fn new() -> io::Result<Self> {
        Ok(Self::over(Outliving::new(c"hoist-events", WORDS, MAGIC)?))
    }

    /// The table in a file that another process made with [`Table::new`].
    ///
    /// # Errors
    /// It is none, or one of another layout; or the kernel's.
    pub fn of(file: File) -> io::Result<Self> {
        let memory = Outliving::of(file, WORDS, MAGIC).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                io::Error::other("no table of events, or one of another version of hoist")
            }
            _ => e,
        })?;
        Ok(Self::over(memory))
    }

    fn over(memory: Outliving) -> Self {
        // The kernel shall find the inbox there: a page fault in a dying process would lose the event.
        memory.lock(HEADER);
        // Each holds a descriptor, and the process needs some for other ends.
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
        let most = usize::try_from(descriptors).unwrap_or(usize::MAX).clamp(1, SLOTS);
        Self {
            shared: Arc::new(Shared {
                memory,
                reading: Mutex::default(),
                in_work: AtomicUsize::new(0),
                most,
                less: Condvar::new(),
                counting: Mutex::default(),
            }),
        }
    }

    fn words(&self) -> &[AtomicU64] {
        self.shared.memory.words()
    }

    /// Reads the next event, if there is any, and notes it. Waits while too many are in work.
    ///
    /// # Errors
    /// The kernel's; EMFILE when this process has too many open files.
    pub fn take(&self, group: &Arc<Group>, each: impl FnMut(Asked)) -> io::Result<()> {
        self.receive(group)?.note(each);
        Ok(())
    }

    /// The first half of [`Table::take`]: the event lies in the inbox. There for the tests: a process
    /// may be killed between the halves.
    ///
    /// # Errors
    /// As there.
    pub fn receive<'t>(&'t self, group: &'t Arc<Group>) -> io::Result<Received<'t>> {
        self.shared.wait_for_less();
        let reading = lock(&self.shared.reading);
        let inbox = &self.words()[INBOX..INBOX + Record::LEN / 8];
        inbox.iter().for_each(|word| word.store(0, Ordering::Release));
        // SAFETY: as many bytes as that are in the slice, which atomics alone read, in this process
        // under the lock, in others after this one's death.
        let len = unsafe { group.read_one(inbox.as_ptr().cast_mut().cast())? };
        Ok(Received { table: self, group, len, _reading: reading })
    }

    fn inbox(&self) -> [u8; Record::LEN] {
        let mut bytes = [0; Record::LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(&self.words()[INBOX..]) {
            to.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        bytes
    }

    /// How many events, and requests of FUSE, were ever answered.
    pub fn answered(&self) -> u64 {
        self.words()[1].load(Ordering::Acquire)
    }

    /// A request of FUSE was answered: this process is of use.
    pub fn note_answered(&self) {
        self.words()[1].fetch_add(1, Ordering::AcqRel);
    }

    /// The numbers of the events that a dead process left.
    pub(super) fn left(&self) -> impl Iterator<Item = RawFd> {
        let slots = self.words()[HEADER..].chunks_exact(SLOT).map(|slot| slot[0].load(Ordering::Acquire));
        let noted = slots.filter(|&state| state != 0 && state != CLAIMED).map(number);
        let inbox = self.inbox();
        // The bytes are copied: an iterator over them must own them.
        let unnoted: Vec<RawFd> = fanotify::records(&inbox).map(|record| record.fd).collect();
        noted.chain(unnoted)
    }

    /// Takes over what a dead process left; the second of each pair is whatever holds the number in
    /// this process. Only for the one process that reads the group next, before it does.
    pub(super) fn adopt(
        &self,
        group: Option<&Arc<Group>>,
        mut holder: impl FnMut(RawFd) -> Option<OwnedFd>,
    ) -> Vec<Asked> {
        let mut found = Vec::new();
        // Without one nothing was ever asked.
        let Some(group) = group else { return found };
        for (i, slot) in self.words()[HEADER..].chunks_exact(SLOT).enumerate() {
            let state = slot[0].load(Ordering::Acquire);
            if state == CLAIMED {
                // It is still in the inbox.
                slot[0].store(0, Ordering::Release);
            } else if state != 0 {
                let [device, inode, offset, count, pid] =
                    [1, 2, 3, 4, 5].map(|word: usize| slot[word].load(Ordering::Relaxed));
                found.push(Asked {
                    group: Arc::clone(group),
                    number: number(state),
                    file: (state & KNOWN != 0).then_some((device, inode)),
                    offset,
                    count,
                    pid: pid as i32,
                    orphan: true,
                    answered: false,
                    slot: Some(self.held(i)),
                    holder: holder(number(state)),
                });
            }
        }
        let inbox = self.inbox();
        for record in fanotify::records(&inbox) {
            if !found.iter().any(|asked| asked.number == record.fd) {
                found.push(self.begin(group, record, None, holder(record.fd), true));
            }
        }
        found
    }

    /// Notes an event that lies in the inbox.
    fn begin(
        &self,
        group: &Arc<Group>,
        record: Record,
        file: Option<FileId>,
        holder: Option<OwnedFd>,
        orphan: bool,
    ) -> Asked {
        let words = self.words();
        // Descriptors of events in work differ, so the first slot tried is nearly always free; that there
        // is one `wait_for_less` has seen to.
        let first = record.fd.unsigned_abs() as usize;
        let claimed = (0..SLOTS).map(|i| first.wrapping_add(i) % SLOTS).find(|&i| {
            let state = &words[HEADER + i * SLOT];
            state.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        let slot = claimed.map(|i| {
            let slot = &words[HEADER + i * SLOT..][..SLOT];
            let (device, inode) = file.unwrap_or_default();
            let values = [device, inode, record.offset, record.count, u64::from(record.pid.unsigned_abs())];
            for (word, value) in slot[1..].iter().zip(values) {
                word.store(value, Ordering::Relaxed);
            }
            let known = if file.is_some() { KNOWN } else { 0 };
            slot[0].store(known | (u64::from(record.fd.unsigned_abs()) + 1), Ordering::Release);
            self.held(i)
        });
        let Record { fd: number, pid, offset, count } = record;
        Asked {
            group: Arc::clone(group),
            number,
            file,
            offset,
            count,
            pid,
            orphan,
            answered: false,
            slot,
            holder,
        }
    }

    fn held(&self, slot: usize) -> Slot {
        self.shared.in_work.fetch_add(1, Ordering::AcqRel);
        Slot { shared: Arc::clone(&self.shared), slot }
    }
}

/// The number in a slot's state.
fn number(state: u64) -> RawFd {
    (state as u32).wrapping_sub(1).cast_signed()
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.memory.as_fd()
    }
}

impl Shared {
    /// Until fewer events are in work than there may be: the kernel keeps the others.
    fn wait_for_less(&self) {
        let mut counting = lock(&self.counting);
        while self.in_work.load(Ordering::Acquire) >= self.most {
            counting = self.less.wait(counting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What [`Table::receive`] read.
#[derive(Debug)]
pub struct Received<'t> {
    table: &'t Table,
    group: &'t Arc<Group>,
    len: usize,
    _reading: MutexGuard<'t, ()>,
}

impl Received<'_> {
    /// Was there no event?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The second half of [`Table::take`]: which file it is about is found out, and all of it noted.
    pub fn note(self, mut each: impl FnMut(Asked)) {
        let bytes = self.table.inbox();
        for record in fanotify::records(&bytes[..self.len.min(Record::LEN)]) {
            // SAFETY: the kernel opened this descriptor for us with the event; nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(record.fd) };
            let file = crate::file::identity(&fd).ok();
            each(self.table.begin(self.group, record, file, Some(fd), false));
        }
    }
}

/// One question: may this range be read? Dropped without an answer, as by a panic, it is denied: a
/// reader must never be left waiting.
#[derive(Debug)]
pub struct Asked {
    group: Arc<Group>,
    number: RawFd,
    file: Option<FileId>,
    offset: u64,
    count: u64,
    pid: i32,
    orphan: bool,
    answered: bool,
    slot: Option<Slot>,
    holder: Option<OwnedFd>,
}

impl Asked {
    /// The file; unknown where the one who was asked died before finding out.
    pub fn file(&self) -> Option<FileId> {
        self.file
    }

    /// First byte wanted, and the one after the last.
    pub fn range(&self) -> (u64, u64) {
        (self.offset, self.offset.saturating_add(self.count))
    }

    /// Bytes wanted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Which thread reads: its number in `/proc`.
    pub fn thread(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// The file, as the kernel opened it for this event: what is done through it raises no events. None
    /// where it was opened for a process that is dead.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.holder.as_ref().filter(|_| !self.orphan).map(AsFd::as_fd)
    }

    /// May a later event get the same number before this one is answered? Then no event may be taken
    /// until it is, as an answer to one would be an answer to the other.
    pub fn is_exposed(&self) -> bool {
        self.holder.as_ref().is_none_or(|holder| holder.as_raw_fd() != self.number)
    }

    /// Answers it.
    ///
    /// # Errors
    /// ENOENT where nobody waits for it any more.
    pub fn answer(mut self, answer: Answer) -> io::Result<()> {
        self.reply(answer)
    }

    fn reply(&mut self, answer: Answer) -> io::Result<()> {
        if std::mem::replace(&mut self.answered, true) {
            return Ok(());
        }
        let answered = self.group.respond(self.number, answer);
        // An answer that the kernel does not take leaves the reader waiting: any other is better.
        let answered = match answered {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
                self.group.respond(self.number, Answer::Deny(libc::EIO)).and(Err(e))
            }
            other => other,
        };
        drop(self.slot.take());
        drop(self.holder.take());
        answered
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = self.reply(Answer::Deny(libc::EIO));
    }
}

/// An event in work; ends when dropped.
#[derive(Debug)]
struct Slot {
    shared: Arc<Shared>,
    slot: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let words = self.shared.memory.words();
        words[1].fetch_add(1, Ordering::AcqRel);
        words[HEADER + self.slot * SLOT].store(0, Ordering::Release);
        if self.shared.in_work.fetch_sub(1, Ordering::AcqRel) >= self.shared.most {
            let _counting = lock(&self.shared.counting);
            self.shared.less.notify_all();
        }
    }
}
