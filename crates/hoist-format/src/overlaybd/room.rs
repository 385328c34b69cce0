//! Memory that the layers of one image may take together.

use super::OverlaybdError;

const MOST: u64 = 512 << 20;

/// What is left of it, bytes.
#[derive(Debug)]
pub(super) struct Room(u64);

impl Default for Room {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Room {
    pub fn left(&self) -> u64 {
        self.0
    }

    pub fn take(&mut self, bytes: u64) -> Result<(), OverlaybdError> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or(OverlaybdError::TooMuch("more than 512 MiB of tables and metadata"))?;
        Ok(())
    }
}
