//! A run of blocks that are compressed each alone, their lengths kept apart: what overlaybd's ZFile is made of.

use super::chunk::lz4_block;

/// What the blocks are compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockAlgorithm {
    /// An LZ4 block each.
    Lz4,
    /// A zstd frame each.
    Zstd,
}

/// How a run of blocks is stored: the state of a chunk of [`crate::chunk::ChunkCodec::BlockRun`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRun {
    /// What compresses them.
    pub algorithm: BlockAlgorithm,
    /// Is there a checksum of the compressed bytes behind each: a little-endian CRC-32C register that starts with
    /// 100007 and is not inverted (overlaybd `src/overlaybd/zfile/zfile.cpp`)?
    pub checksums: bool,
    /// Bytes that each block decompresses to; the last may have less.
    pub block_size: u32,
    /// Stored bytes of each block, its checksum included.
    pub lens: Vec<u32>,
}

/// The CRC's register before the first byte.
const SEED: u32 = 100_007;
const CHECKSUM: usize = 4;
/// Algorithm, checksums, two zeros, block size.
const HEAD: usize = 8;
const MAX_BLOCK: u32 = 1 << 20;

impl BlockRun {
    /// The run as a state: algorithm (1 LZ4, 2 zstd) and checksums (0 or 1) as a byte each, two zeros, block size and
    /// lengths as 32-bit numbers, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let algorithm = match self.algorithm {
            BlockAlgorithm::Lz4 => 1,
            BlockAlgorithm::Zstd => 2,
        };
        let mut out = vec![algorithm, u8::from(self.checksums), 0, 0];
        out.extend_from_slice(&self.block_size.to_le_bytes());
        self.lens.iter().for_each(|len| out.extend_from_slice(&len.to_le_bytes()));
        out
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(state: &[u8]) -> Result<Self, &'static str> {
        let (head, lens) = state.split_at_checked(HEAD).ok_or("its list of blocks is cut off")?;
        let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let algorithm = match head[0] {
            1 => BlockAlgorithm::Lz4,
            2 => BlockAlgorithm::Zstd,
            _ => return Err("its blocks are compressed in an unknown way"),
        };
        let block_size = number(&head[4..]);
        if head[1] > 1 || head[2] != 0 || head[3] != 0 || block_size == 0 || block_size > MAX_BLOCK {
            return Err("its list of blocks is damaged");
        }
        let chunks = lens.chunks_exact(4);
        if !chunks.remainder().is_empty() {
            return Err("its list of blocks is cut off");
        }
        Ok(Self { algorithm, checksums: head[1] == 1, block_size, lens: chunks.map(number).collect() })
    }

    /// Decompresses all blocks, to `wanted` bytes.
    pub(crate) fn decompress(&self, mut stored: &[u8], wanted: usize) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::with_capacity(wanted);
        let mut zstd = zstd::bulk::Decompressor::new().map_err(|_| "zstd could not be set up")?;
        for &len in &self.lens {
            let (block, rest) = stored.split_at_checked(len as usize).ok_or("its blocks are cut off")?;
            stored = rest;
            let block = match self.checksums {
                true => checked(block)?,
                false => block,
            };
            let left = (wanted - out.len()).min(self.block_size as usize);
            let bytes = match self.algorithm {
                BlockAlgorithm::Lz4 => lz4_block(block, left)?,
                BlockAlgorithm::Zstd => {
                    zstd.decompress(block, left).map_err(|_| "a block is no zstd frame of its size")?
                }
            };
            if bytes.len() != left || left == 0 {
                return Err("a block decompresses to less or more than it should");
            }
            out.extend_from_slice(&bytes);
        }
        if stored.is_empty() { Ok(out) } else { Err("more bytes than its blocks have") }
    }
}

/// The block without its checksum, which is right.
fn checked(block: &[u8]) -> Result<&[u8], &'static str> {
    let at = block.len().checked_sub(CHECKSUM).ok_or("a block is shorter than its checksum")?;
    let (bytes, sum) = block.split_at(at);
    // Under a fuzzer hardly any block would pass.
    let right = super::FUZZING || checksum(bytes).to_le_bytes() == sum;
    if right { Ok(bytes) } else { Err("a block has another checksum") }
}

/// The checksum of a block's stored bytes.
pub fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!SEED, bytes)
}
