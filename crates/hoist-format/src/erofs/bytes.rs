//! The bytes of an image: all of them, or those parts that are known.

use super::Fault;

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Byte offset in the image.
    pub start: u64,
    /// Bytes from there on.
    pub bytes: Vec<u8>,
}

/// Bytes of an image.
#[derive(Debug, Clone, Copy)]
pub enum Bytes<'a> {
    /// All of them.
    Whole(&'a [u8]),
    /// Parts of them, ascending, not touching each other.
    Parts {
        /// The parts.
        parts: &'a [Part],
        /// Bytes of the image.
        size: u64,
    },
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Whole(bytes)
    }
}

impl<'a> Bytes<'a> {
    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Parts { size, .. } => *size,
        }
    }

    /// Bytes that are here.
    pub fn here(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Parts { parts, .. } => parts.iter().map(|p| p.bytes.len() as u64).sum(),
        }
    }

    /// Up to `most` bytes from `start` on.
    pub(super) fn starting_at(&self, start: u64, most: u64) -> &'a [u8] {
        let (first, bytes): (u64, &'a [u8]) = match self {
            Self::Whole(bytes) => (0, bytes),
            Self::Parts { parts, .. } => {
                let index = parts.partition_point(|p| p.start <= start);
                let Some(part) = index.checked_sub(1).map(|i| &parts[i]) else { return &[] };
                (part.start, &part.bytes)
            }
        };
        let from = usize::try_from(start - first).unwrap_or(usize::MAX);
        let rest = bytes.get(from..).unwrap_or(&[]);
        &rest[..rest.len().min(usize::try_from(most).unwrap_or(usize::MAX))]
    }

    /// `len` bytes from `start` on, or which structure is cut.
    pub(super) fn cut(&self, what: &'static str, start: u64, len: u64) -> Result<&'a [u8], Fault> {
        let found = self.starting_at(start, len);
        match found.len() as u64 == len && start.checked_add(len).is_some_and(|end| end <= self.size()) {
            true => Ok(found),
            false => Err(Fault::Cut { what, start, len, size: self.size() }),
        }
    }
}
