//! A blob's bytes in blocks of one size, however they came in from the network.
//!
//! Where a decoder sets checkpoints depends on where its input is cut. Cut always at the same places, the
//! same blob gives the same index at each run and on each machine, byte for byte.

use bytes::Bytes;

/// Bytes of a block. Each takes the decoder some microseconds beside its work; those that come whole are not copied.
const BLOCK: usize = 128 << 10;

/// Gathers what is no whole block yet.
#[derive(Default)]
pub struct Blocks {
    begun: Vec<u8>,
}

impl Blocks {
    /// Takes the blob's next bytes; gives each block that they complete.
    pub fn feed<E>(&mut self, bytes: &Bytes, give: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut rest = &bytes[..];
        if !self.begun.is_empty() {
            let taken = rest.len().min(BLOCK - self.begun.len());
            self.begun.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.begun.len() < BLOCK {
                return Ok(());
            }
            give(&self.begun)?;
            self.begun.clear();
        }
        let mut blocks = rest.chunks_exact(BLOCK);
        blocks.by_ref().try_for_each(&mut *give)?;
        self.begun.extend_from_slice(blocks.remainder());
        Ok(())
    }

    /// What is left at the blob's end; may be empty.
    pub fn rest(&self) -> &[u8] {
        &self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_depend_on_how_the_bytes_come() {
        let blob: Vec<u8> = (0..5 * BLOCK + 77).map(|i| ((i * 31) >> 3) as u8).collect();
        for piece in [1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, blob.len()] {
            let (mut blocks, mut given) = (Blocks::default(), Vec::new());
            for bytes in blob.chunks(piece) {
                let mut give = |block: &[u8]| {
                    given.push(block.to_vec());
                    Ok::<_, ()>(())
                };
                blocks.feed(&Bytes::copy_from_slice(bytes), &mut give).unwrap();
            }
            given.push(blocks.rest().to_vec());
            let expected: Vec<_> = blob.chunks(BLOCK).map(<[u8]>::to_vec).collect();
            assert_eq!(given, expected, "{piece}");
        }
    }
}
