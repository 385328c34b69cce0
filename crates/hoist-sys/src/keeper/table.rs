//! Which events are in work: descriptor numbers in memory that outlives the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};

/// Events in work at once; each holds a descriptor, of which a process rarely may have more.
const SLOTS: usize = 1 << 16;
const BYTES: usize = SLOTS * size_of::<AtomicI32>();

/// The events taken and not answered yet. Cheap to clone, safe to share.
#[derive(Debug, Clone)]
pub struct Table {
    shared: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    file: File,
    slots: NonNull<AtomicI32>,
}

// SAFETY: the mapping is only accessed through atomics, and unmapped by the last owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Table {
    /// An empty table.
    ///
    /// # Errors
    /// The kernel's: no memory, too many open files.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"hoist-events", MemfdFlags::CLOEXEC)?);
        file.set_len(BYTES as u64)?;
        // SAFETY: a fresh shared mapping, as long as the file, which nobody else can name and truncate.
        let map = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), BYTES, access, MapFlags::SHARED, &file, 0)?
        };
        let slots = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { shared: Arc::new(Mapping { file, slots }) })
    }

    /// Notes that the event with this descriptor is in work, until the slot ends: to be called before
    /// anything else is done with the event, and ended after its answer.
    ///
    /// In a full table the slot is none; the keeper then finds the event by trying all numbers.
    pub fn begin(&self, event_fd: RawFd) -> Slot {
        let slots = self.shared.slots();
        // Descriptors of events in work differ, so the first slot tried is nearly always free.
        let first = event_fd.unsigned_abs() as usize;
        let free = (0..SLOTS).map(|i| first.wrapping_add(i) % SLOTS).find(|&i| {
            let taken = event_fd.wrapping_add(1);
            slots[i].compare_exchange(0, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        Slot { held: free.map(|i| (Arc::clone(&self.shared), i)) }
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

impl Mapping {
    fn slots(&self) -> &[AtomicI32] {
        // SAFETY: SLOTS page-aligned words, zero at first, mapped until drop, only accessed atomically.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr(), SLOTS) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.slots.as_ptr().cast(), BYTES) };
    }
}

/// An event in work; ends when dropped.
#[derive(Debug)]
#[must_use = "a dropped slot has ended"]
pub struct Slot {
    held: Option<(Arc<Mapping>, usize)>,
}

impl Slot {
    /// The event has been answered.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((shared, i)) = &self.held {
            shared.slots()[*i].store(0, Ordering::Release);
        }
    }
}

/// What a whole table fills.
pub(super) type Room = [u8; BYTES];

/// Reads a dead process's table: the descriptor numbers of its events in work.
pub(super) fn in_work(file: &File, room: &mut Room) -> io::Result<impl Iterator<Item = RawFd>> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(room, 0)?;
    let words = room.as_chunks::<4>().0.iter().map(|word| i32::from_ne_bytes(*word));
    Ok(words.filter(|&taken| taken != 0).map(|taken| taken.wrapping_sub(1)))
}

/// For [`in_work`].
pub(super) fn room() -> Box<Room> {
    vec![0; BYTES].try_into().expect("of this length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(table: &Table) -> Vec<RawFd> {
        let file = table.shared.file.try_clone().unwrap();
        let mut found: Vec<_> = in_work(&file, &mut room()).unwrap().collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn threads_take_and_leave_slots_of_their_own() {
        let table = Table::new().unwrap();
        let kept: Vec<Slot> = std::thread::scope(|scope| {
            let work = |t: i32| {
                let table = &table;
                move || {
                    for round in 0..2000 {
                        // Everybody wants the same few places.
                        table.begin(round % 7).end();
                    }
                    [table.begin(5), table.begin(100 + t)]
                }
            };
            let threads: Vec<_> = (0..4).map(|t| scope.spawn(work(t))).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(read(&table), [5, 5, 5, 5, 100, 101, 102, 103]);
        drop(kept);
        assert_eq!(read(&table), []);
    }

    #[test]
    fn a_full_table_gives_a_slot_that_is_none() {
        let table = Table::new().unwrap();
        let mut kept: Vec<Slot> = (0..SLOTS as i32).map(|fd| table.begin(fd)).collect();
        table.begin(1 << 20).end();
        assert_eq!(read(&table).len(), SLOTS);
        kept.pop();
        let far = table.begin(1 << 20);
        assert_eq!(read(&table).last(), Some(&(1 << 20)));
        far.end();
    }
}
