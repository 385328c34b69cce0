//! Compressed bytes of a layer that are here: those that lazy mounts have fetched and kept in this boot, and
//! the beginning of the blob that a pull had when it was interrupted. A pull need not fetch them again. They
//! are as good as the blob's digest finds them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use hoist_format::digest::Digest;
use hoist_sys::shm::SharedBits;

use super::{LayerDir, Store};
use crate::error::Error;

/// Read at once.
const PIECE: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct Kept {
    blob: File,
    /// Ascending, neighbours joined.
    ranges: Vec<Range<u64>>,
}

impl Store {
    /// The folders of a layer in the layouts of published indexes.
    pub fn published_layouts(&self, blob: &Digest) -> Vec<LayerDir> {
        let prefix = format!("{}.", blob.hex());
        let names = self.layer_names().unwrap_or_default();
        let names = names.iter().filter(|name| name.starts_with(&prefix));
        names.map(|name| LayerDir::new(self.root.join("layers").join(name), *blob)).collect()
    }

    /// The most of a layer's blob that a lazy mount or a pull has kept.
    pub fn kept(&self, blob: &Digest, size: u64) -> Option<Kept> {
        let kept = self.published_layouts(blob).into_iter().filter_map(|dir| Kept::open(&dir));
        kept.chain(Kept::begun(&self.layer(blob, None), size)).max_by_key(Kept::bytes)
    }
}

/// The name of what a pull under way has of a blob, from its start on.
const BEGUN: &str = "begun";

/// Keeps the blob of a pull under way, so that the next one goes on where this one was interrupted.
#[derive(Debug)]
pub struct Begun {
    dir: LayerDir,
    file: File,
    /// Up to here it was there already.
    had: u64,
    /// Nothing could be kept: the disk is full.
    over: AtomicBool,
}

impl Begun {
    /// Goes on with what is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(dir: &LayerDir) -> Result<Self, Error> {
        let path = dir.file(BEGUN);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let had = file.metadata().map_err(Error::io("look at", &path))?.len();
        Ok(Self { dir: dir.clone(), file, had, over: AtomicBool::new(false) })
    }

    /// Keeps the blob's bytes at `at`. It is no failure if that can't be: a later pull fetches more.
    pub fn keep(&self, bytes: &[u8], at: u64) {
        let new = at + bytes.len() as u64 > self.had;
        if new && !self.over.load(Relaxed) && self.file.write_all_at(bytes, at).is_err() {
            self.give_way();
        }
    }

    /// Its room is wanted, also by those who have it open.
    pub fn give_way(&self) {
        self.forget();
        let _ = self.file.set_len(0);
    }

    /// What is here is wrong, or not needed any more.
    pub fn forget(&self) {
        self.over.store(true, Relaxed);
        let _ = self.dir.remove(BEGUN);
    }
}

impl Kept {
    fn open(dir: &LayerDir) -> Option<Kept> {
        let state = dir.state();
        // A complete layer's blob was emptied.
        if state.complete || state.lied.is_some() {
            return None;
        }
        let table = dir.table().ok()??;
        // Of chunks, which are each checked alone, nothing is kept.
        let spans = table.spans.linear()?;
        let bits = SharedBits::open_existing(&dir.file("kept"), spans.spans.len() as u64).ok()??;
        let blob = File::open(dir.file("blob")).ok()?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for span in (0..spans.spans.len()).filter(|&s| bits.get(s as u64)) {
            let range = spans.blob_range(span);
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        (!ranges.is_empty()).then_some(Kept { blob, ranges })
    }

    /// What an interrupted pull has left.
    fn begun(own: &LayerDir, size: u64) -> Option<Kept> {
        let blob = File::open(own.file(BEGUN)).ok()?;
        let had = blob.metadata().ok()?.len().min(size);
        (had > 0 && !own.state().complete).then(|| Kept { blob, ranges: std::iter::once(0..had).collect() })
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }

    /// Cuts `whole` where what is kept begins and ends: the parts in order, and whether each is kept.
    pub fn cut(&self, whole: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts = Vec::new();
        let mut at = whole.start;
        for kept in &self.ranges {
            let (from, to) = (kept.start.max(at), kept.end.min(whole.end));
            if from < to {
                parts.push((at..from, false));
                parts.push((from..to, true));
                at = to;
            }
        }
        parts.push((at..whole.end, false));
        parts.retain(|(range, _)| range.start < range.end);
        parts
    }

    /// Reads a range of the blob, piece by piece, as long as `take` wants more. Blocks.
    ///
    /// # Errors
    /// The file system's.
    pub fn read(&self, range: Range<u64>, mut take: impl FnMut(Bytes) -> bool) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let mut bytes = vec![0; (range.end - at).min(PIECE) as usize];
            self.blob.read_exact_at(&mut bytes, at)?;
            at += bytes.len() as u64;
            if !take(bytes.into()) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_everything_once() {
        for ranges in [vec![], vec![(0, 3)], vec![(2, 5), (7, 8)], vec![(0, 20)], vec![(9, 30)]] {
            let ranges = ranges.into_iter().map(|(from, to)| from..to).collect();
            let kept = Kept { blob: tempfile::tempfile().unwrap(), ranges };
            for (from, to) in [(0, 10), (3, 7), (4, 20), (8, 9)] {
                let mut at = from;
                for (part, is_kept) in kept.cut(from..to) {
                    assert_eq!(part.start, at);
                    for byte in part.clone() {
                        assert_eq!(is_kept, kept.ranges.iter().any(|r| r.contains(&byte)), "{byte}");
                    }
                    at = part.end;
                }
                assert_eq!(at, to);
            }
        }
    }
}
