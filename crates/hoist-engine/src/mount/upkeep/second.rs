//! Second copies: the kernel caches what is read of a complete layer in the mount, and in the data file too. The
//! latter is given back.

use std::collections::HashMap;
use std::fs::File;
use std::ops::DerefMut;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hoist_sys::file::{cached_bytes, fadvise_dontneed, identity};
use hoist_sys::keeper::FileId;
use hoist_sys::watch::{Watch, Watcher};

use super::super::layer::LazyLayer;
use super::State;

/// Looked at this often while it grows, and at rest where nobody tells of reads.
const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(250);
/// The longest pause, after nothing was read for long.
const IDLE_MOST: Duration = Duration::from_secs(4);
/// They may take this many bytes in all before they are given back: dropping them at once would also drop what
/// the kernel has read ahead for random readers. At rest all go.
const MOST: u64 = 32 << 20;

/// Every complete layer's data file that something is mounted on.
#[derive(Default)]
pub(super) struct Second {
    files: HashMap<FileId, Copied>,
    /// Second copies at the last look, bytes.
    cached: u64,
    /// How long it was at rest.
    idle: Duration,
    /// Watches that are to be forgotten.
    over: Vec<Watch>,
}

struct Copied {
    file: Held,
    /// It is at rest, and its next read is told.
    armed: Option<Watch>,
    /// Are reads of it told at all?
    told: bool,
}

enum Held {
    Whole(Weak<File>),
    Native(Weak<LazyLayer>),
}

/// An open file, whoever has it.
enum Open {
    Whole(Arc<File>),
    Native(Arc<LazyLayer>),
}

impl Held {
    fn open(&self) -> Option<Open> {
        match self {
            Held::Whole(file) => file.upgrade().map(Open::Whole),
            Held::Native(layer) => layer.upgrade().map(Open::Native),
        }
    }
}

impl Open {
    fn file(&self) -> &File {
        match self {
            Open::Whole(file) => file,
            Open::Native(layer) => layer.data(),
        }
    }
}

impl Second {
    /// One more that is complete; gives it as it is known already, where it is.
    pub fn add(&mut self, file: File, told: bool) -> Option<Arc<File>> {
        let id = identity(&file).ok()?;
        if let Some(known) = self.files.get_mut(&id)
            && let Held::Whole(weak) = &known.file
            && let Some(file) = weak.upgrade()
        {
            known.told &= told;
            self.over.extend(if told { None } else { known.armed.take() });
            return Some(file);
        }
        let file = Arc::new(file);
        self.put(id, Copied { file: Held::Whole(Arc::downgrade(&file)), armed: None, told });
        Some(file)
    }

    /// One that was filled to the end.
    pub fn add_native(&mut self, layer: &Arc<LazyLayer>) {
        let Ok(id) = identity(layer.data()) else { return };
        let known = self.files.get(&id).is_some_and(|known| known.file.open().is_some());
        if !known {
            let told = !layer.is_read_through_loop();
            self.put(id, Copied { file: Held::Native(Arc::downgrade(layer)), armed: None, told });
        }
    }

    fn put(&mut self, id: FileId, copied: Copied) {
        let before = self.files.insert(id, copied);
        self.over.extend(before.and_then(|before| before.armed));
        self.idle = Duration::ZERO;
    }

    /// What nobody has mounted any more is no concern.
    pub fn forget_gone(&mut self) {
        let over = &mut self.over;
        self.files.retain(|_, copied| {
            let there = copied.file.open().is_some();
            if !there {
                over.extend(copied.armed);
            }
            there
        });
    }

    /// Something was read.
    pub fn read(&mut self, watch: Watch) {
        self.files.values_mut().filter(|c| c.armed == Some(watch)).for_each(|c| c.armed = None);
        self.idle = Duration::ZERO;
    }

    /// Anything may have been read.
    pub fn read_all(&mut self) {
        let armed = self.files.values_mut().filter_map(|copied| copied.armed.take());
        self.over.extend(armed);
    }

    /// Is there any that must be looked at?
    pub fn has_some_awake(&self) -> bool {
        !self.over.is_empty() || self.files.values().any(|copied| copied.armed.is_none())
    }
}

/// Looks at all that are awake, and gives back what is too much, or at rest. Returns when to look again.
pub(super) fn trim<S: DerefMut<Target = State>>(
    lock: impl Fn() -> S,
    watcher: Option<&Watcher>,
) -> Option<Duration> {
    let (files, before, over) = {
        let second = &mut lock().second;
        second.forget_gone();
        let awake = second.files.iter().filter(|(_, copied)| copied.armed.is_none());
        let awake = awake.filter_map(|(id, copied)| Some((*id, copied.file.open()?, copied.told)));
        (awake.collect::<Vec<_>>(), second.cached, std::mem::take(&mut second.over))
    };
    watcher.iter().for_each(|watcher| over.iter().for_each(|watch| watcher.forget(*watch)));
    let of = |open: &Open| cached_bytes(open.file()).unwrap_or(u64::MAX >> 16);
    let total: u64 = files.iter().map(|(_, open, _)| of(open)).fold(0, u64::saturating_add);
    let at_rest = total == before;
    if total > MOST || at_rest {
        files.iter().for_each(|(_, open, _)| drop(fadvise_dontneed(open.file(), 0, 0)));
    }
    let mut state = lock();
    let second = &mut state.second;
    second.cached = total;
    if !at_rest {
        second.idle = Duration::ZERO;
        return Some(BUSY);
    }
    let (mut awake, mut cached) = (0, 0u64);
    for (id, open, told) in &files {
        let watcher = watcher.filter(|_| *told);
        // What is read before the watch is there is not told: it shows.
        let left = of(open);
        let watch = watcher.and_then(|watcher| watcher.next_read(open.file()).ok());
        let rests = watch.filter(|_| of(open) == left);
        match (second.files.get_mut(id), rests) {
            (Some(copied), Some(_)) => copied.armed = rests,
            (_, None) => (awake, cached) = (awake + 1, cached.saturating_add(left)),
            (None, Some(_)) => {}
        }
        if rests.is_none() {
            second.over.extend(watch);
        }
    }
    second.cached = cached;
    if awake == 0 && second.over.is_empty() {
        return None;
    }
    second.idle = (second.idle * 2).clamp(IDLE, IDLE_MOST);
    Some(second.idle)
}
