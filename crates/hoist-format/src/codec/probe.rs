//! Which bytes of a window the data after a checkpoint refers to.
//!
//! The data is inflated twice more with made-up windows, whose bytes at a position tell, taken
//! together, which position it is; what comes out of both then tells where it came from. After
//! [`WINDOW`] bytes of output nothing can refer to the window any longer.

use hoist_sys::inflate::{Inflate, InflateError, WINDOW};

/// Follows the data after one checkpoint; can be used for one after the other.
pub(super) struct Probe {
    runs: [Run; 2],
}

struct Run {
    inflate: Inflate,
    /// The made-up window.
    marks: Vec<u8>,
    out: Vec<u8>,
    have: usize,
}

/// The bytes of position `p`: never equal, so that a literal, which is the same in both runs, is
/// no position's.
fn mark(p: usize) -> [u8; 2] {
    let [high, low] = (p as u16).to_be_bytes();
    [low, if low == high { high | 0x80 } else { high }]
}

/// The position, and whether the bytes are one's at all.
fn position([low, high]: [u8; 2]) -> (usize, bool) {
    (usize::from(high & 0x7f) << 8 | usize::from(low), low != high)
}

impl Probe {
    pub fn new() -> Result<Self, InflateError> {
        let run = |i: usize| {
            let marks = (0..WINDOW).map(|p| mark(p)[i]).collect();
            Ok(Run { inflate: Inflate::raw()?, marks, out: vec![0; WINDOW], have: 0 })
        };
        Ok(Self { runs: [run(0)?, run(1)?] })
    }

    /// At a checkpoint with a window of `len` bytes; the next block starts with the high `bits`
    /// of `byte`.
    pub fn start(&mut self, len: usize, bits: u8, byte: u8) -> Result<(), InflateError> {
        for run in &mut self.runs {
            run.have = 0;
            run.inflate.reset_raw()?;
            run.inflate.set_dictionary(&run.marks[..len.min(WINDOW)])?;
            if bits > 0 {
                run.inflate.prime(bits, byte >> (8 - bits))?;
            }
        }
        Ok(())
    }

    /// Takes the data that follows. False when there is no need of more.
    pub fn follow(&mut self, data: &[u8]) -> Result<bool, InflateError> {
        let mut more = false;
        for run in &mut self.runs {
            let mut rest = data;
            more = loop {
                let step = run.inflate.step(rest, &mut run.out[run.have..], false)?;
                run.have += step.produced;
                rest = &rest[step.consumed..];
                if step.end || run.have == WINDOW {
                    break false;
                }
                if rest.is_empty() || step.consumed == 0 && step.produced == 0 {
                    break true;
                }
            };
        }
        Ok(more)
    }

    /// Zeroes what of `window` was not referred to. False if nothing of it was.
    pub fn clear_unused(&self, window: &mut [u8]) -> bool {
        let [low, high] = &self.runs;
        let mut used = [false; WINDOW];
        let mut any = false;
        // Without branches: half of them would be guessed wrong.
        for (&l, &h) in low.out[..low.have].iter().zip(&high.out[..high.have]) {
            let (p, refers) = position([l, h]);
            used[p] |= refers;
            any |= refers;
        }
        for (byte, used) in window.iter_mut().zip(used) {
            *byte = if used { *byte } else { 0 };
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_its_own_mark() {
        for p in 0..WINDOW {
            assert_eq!(position(mark(p)), (p, true));
        }
        for b in 0..=255 {
            assert!(!position([b, b]).1);
        }
    }
}
