//! Spans whose bytes came wrong twice. They are not asked for again for a while, and never together with others, which
//! would be kept back by them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::FillError;
use crate::pauses::{Failed, Pauses, again_in};

/// A registry that was mended is used again within the longest.
const PAUSES: Pauses = Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(16) };
/// Damage in more places of a layer than this: what nobody has asked for would probably be fetched in vain.
const FEW: usize = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Held(BTreeMap<usize, Failed<String>>);

impl Held {
    /// The bytes of this span were wrong once more, and twice in a row.
    pub fn hold(&mut self, span: usize, why: String) {
        let last = self.0.remove(&span);
        self.0.insert(span, PAUSES.after(last, why, Instant::now()));
    }

    /// All of this one is here.
    pub fn free(&mut self, span: usize) {
        self.0.remove(&span);
    }

    /// Why it is not asked for now.
    pub fn why(&self, span: usize) -> Option<FillError> {
        let failed = self.0.get(&span)?;
        let left = failed.left(Instant::now())?;
        Some(FillError::Corrupt(format!("{}; {}", failed.why, again_in(left))))
    }

    /// Is so much of the layer damaged that more is asked for on demand alone?
    pub fn are_many(&self) -> bool {
        self.0.len() > FEW
    }
}
