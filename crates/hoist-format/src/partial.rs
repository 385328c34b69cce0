//! Bytes of a blob, as far as they are here.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of a blob. Ranges may come in any order, and twice.
#[derive(Debug, Clone, Default)]
pub struct Partial {
    runs: BTreeMap<u64, Vec<u8>>,
}

impl Partial {
    /// Takes bytes that stand at `offset`.
    pub fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        let longer = |there: &Vec<u8>| there.len() >= bytes.len();
        if !bytes.is_empty() && !self.runs.get(&offset).is_some_and(longer) {
            self.runs.insert(offset, bytes);
        }
    }

    /// The bytes of `range`; None when some are not here.
    pub fn get(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // The run that starts last may be a short one within a longer one before it.
            let mut before = self.runs.range(..=at).rev().take(MOST_NESTED);
            let (start, run) = before.find(|(start, run)| **start + run.len() as u64 > at)?;
            let from = (at - start) as usize;
            let n = (run.len() - from).min((range.end - at) as usize);
            out.extend_from_slice(&run[from..from + n]);
            at += n as u64;
        }
        Some(out)
    }
}

/// How many runs may start between the start of one and the bytes that are looked for in it.
const MOST_NESTED: usize = 16;

/// Sorts ranges and joins those that are at most `gap` bytes apart.
pub(crate) fn joined(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|r| (r.start, r.end));
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges.into_iter().filter(|r| r.start < r.end) {
        match all.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}
