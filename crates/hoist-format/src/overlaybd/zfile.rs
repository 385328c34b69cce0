//! ZFile: blocks compressed each alone, and a table of their lengths (overlaybd `src/overlaybd/zfile/zfile.cpp`,
//! `format_spec.md`).

use std::ops::Range;

use super::OverlaybdError;
use crate::codec::{BlockAlgorithm, BlockRun, FUZZING};
use crate::le::{le32, le64};

const MAGIC: &[u8; 24] = b"ZFile\0\x01\0tuji.yyf@Alibaba";
/// Header and trailer, bytes each.
pub(super) const HEAD: u64 = 512;

const IS_HEADER: u64 = 1;
const IS_DATA: u64 = 2;
const IS_SEALED: u64 = 4;
/// The header says all that the trailer says.
const HEADER_OVERWRITTEN: u64 = 8;
const DIGEST: u64 = 16;
const INDEX_COMPRESSED: u64 = 32;

/// Blocks of a [`BlockRun`]: what is fetched and decoded at once, if the blocks have the usual 4 KiB.
const RUN: u64 = 64 << 10;
/// Most blocks: 64 GiB of 4 KiB each.
const MOST_BLOCKS: u64 = 16 << 20;

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    algorithm: BlockAlgorithm,
    checksums: bool,
    block_size: u32,
    raw_size: u64,
    index_crc: Option<u32>,
    /// Where the table of lengths is, from the ZFile's start.
    pub index: Range<u64>,
}

/// Does a ZFile start so?
pub(super) fn is_zfile(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl Head {
    /// Reads a header (`size`: bytes of the ZFile), or None when the trailer must be read instead.
    pub fn header(bytes: &[u8], size: u64) -> Result<Option<Self>, OverlaybdError> {
        let head = Self::read(bytes, size, IS_HEADER | IS_DATA)?;
        (le64(bytes, 32) & HEADER_OVERWRITTEN != 0).then_some(head).transpose()
    }

    /// Reads a trailer.
    pub fn trailer(bytes: &[u8], size: u64) -> Result<Self, OverlaybdError> {
        Self::read(bytes, size, IS_DATA | IS_SEALED)?
    }

    /// The outer error: no such structure. The inner one: what it says cannot be.
    fn read(bytes: &[u8], size: u64, kind: u64) -> Result<Result<Self, OverlaybdError>, OverlaybdError> {
        let bad = OverlaybdError::Zfile;
        if bytes.len() as u64 != HEAD || !is_zfile(bytes) {
            return Err(bad("it has no header, or no trailer"));
        }
        let flags = le64(bytes, 32);
        if flags & (IS_HEADER | IS_DATA) != kind & (IS_HEADER | IS_DATA) || flags & kind != kind {
            return Err(bad("its header or trailer is of another kind, or it was never finished"));
        }
        if flags & DIGEST != 0 {
            let mut copy = bytes.to_vec();
            copy[28..32].fill(0);
            if !FUZZING && crc(&copy) != le32(bytes, 28) {
                return Err(bad("its header or trailer has another checksum"));
            }
        }
        Ok(Self::fields(bytes, size, flags))
    }

    fn fields(bytes: &[u8], size: u64, flags: u64) -> Result<Self, OverlaybdError> {
        let bad = OverlaybdError::Zfile;
        let (block_size, algorithm) = (le32(bytes, 72), bytes[76]);
        if !block_size.is_power_of_two() || !(4096..=64 << 10).contains(&block_size) {
            return Err(bad("its blocks have none of 4 to 64 KiB"));
        }
        let algorithm = match algorithm {
            1 => BlockAlgorithm::Lz4,
            2 => BlockAlgorithm::Zstd,
            _ => return Err(bad("it is compressed with something other than lz4 and zstd")),
        };
        if bytes[78] != 0 || le32(bytes, 84) != 0 || flags & INDEX_COMPRESSED != 0 {
            return Err(bad("it has a dictionary or a compressed table, which nobody writes"));
        }
        let (start, count, raw_size) = (le64(bytes, 40), le64(bytes, 48), le64(bytes, 56));
        if count != raw_size.div_ceil(block_size.into()) || count > MOST_BLOCKS {
            return Err(bad("its table has more or fewer entries than it has blocks"));
        }
        let end = start.checked_add(count * 4).filter(|&end| start >= HEAD && end <= size);
        let end = end.ok_or(bad("its table lies beyond it"))?;
        let index_crc = (flags & DIGEST != 0).then(|| le32(bytes, 64));
        let checksums = bytes[88] != 0;
        Ok(Self { algorithm, checksums, block_size, raw_size, index_crc, index: start..end })
    }
}

/// A ZFile whose table is here.
#[derive(Debug, Clone)]
pub struct Zfile {
    head: Head,
    /// Where each block starts, and where the last one ends, from the ZFile's start.
    starts: Vec<u64>,
}

impl Zfile {
    /// Reads the table.
    pub(super) fn new(head: Head, table: &[u8]) -> Result<Self, OverlaybdError> {
        if !FUZZING && head.index_crc.is_some_and(|sum| sum != crc(table)) {
            return Err(OverlaybdError::Zfile("its table has another checksum"));
        }
        let mut starts = Vec::with_capacity(table.len() / 4 + 1);
        let mut at = HEAD;
        starts.push(at);
        for len in table.chunks_exact(4) {
            at += u64::from(le32(len, 0));
            starts.push(at);
        }
        if at > head.index.start {
            return Err(OverlaybdError::Zfile("its table has blocks beyond the data"));
        }
        Ok(Self { head, starts })
    }

    /// Bytes of memory that the table takes.
    pub fn held(&self) -> u64 {
        size_of_val(&self.starts[..]) as u64
    }

    /// Bytes that it decompresses to.
    pub fn raw_size(&self) -> u64 {
        self.head.raw_size
    }

    /// Uncompressed bytes of a run of blocks, which is what is fetched and decoded at once; the last may have less.
    pub fn run_size(&self) -> u64 {
        RUN.max(self.head.block_size.into())
    }

    /// Run `index`: where it stands from the ZFile's start, how it is stored, and the bytes it decompresses to.
    ///
    /// # Errors
    /// When a block of it is longer than any can be.
    pub fn run(&self, index: u64) -> Result<(Range<u64>, BlockRun, u64), OverlaybdError> {
        let block = u64::from(self.head.block_size);
        let per_run = self.run_size() / block;
        let blocks = self.starts.len() as u64 - 1;
        let (first, end) = (index * per_run, ((index + 1) * per_run).min(blocks));
        let starts = &self.starts[first as usize..=end as usize];
        let mut lens = Vec::with_capacity(starts.len() - 1);
        for pair in starts.windows(2) {
            let len = pair[1] - pair[0];
            if len > 2 * block || len == 0 {
                return Err(OverlaybdError::Zfile("a block is empty or twice as long as it is uncompressed"));
            }
            lens.push(len as u32);
        }
        let Head { algorithm, checksums, block_size, raw_size, .. } = self.head;
        let run = BlockRun { algorithm, checksums, block_size, lens };
        Ok((starts[0]..starts[starts.len() - 1], run, (end * block).min(raw_size) - first * block))
    }
}

/// A CRC-32C register that starts with 0 and is not inverted.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}
