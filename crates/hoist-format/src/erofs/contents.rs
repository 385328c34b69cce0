//! Where the bytes of a regular file are, in images that other programs wrote.

use super::Fault;
use super::ends::{Ends, Work};
use super::image::Image;
use super::inode::Node;
use super::layout::*;
use crate::volume::Stretch;

/// Largest file, bytes.
const SIZE_MAX: u64 = crate::layer::MAX_DATA;

impl Image<'_> {
    /// The runs that a regular file is made of.
    pub(super) fn stretches(
        &self,
        node: &Node<'_>,
        ends: Ends<'_>,
        work: &mut Work,
    ) -> Result<Vec<Stretch>, Fault> {
        if node.size > SIZE_MAX {
            return Err(Fault::Bad("it is larger than 8 TiB"));
        }
        if node.size == 0 {
            return Ok(Vec::new());
        }
        if !self.devices.is_empty() {
            return Err(Fault::Unsupported("an image whose files are on other devices"));
        }
        match node.stored.layout {
            FLAT_PLAIN => Ok(vec![self.plain(node.start, node.size)?]),
            FLAT_INLINE => self.flat_inline(node),
            CHUNK_BASED => self.chunks(node),
            COMPRESSED_FULL | COMPRESSED_COMPACT => self.clusters(node, ends, work),
            _ => Err(Fault::Unsupported("a file layout newer than this reader")),
        }
    }

    /// Bytes of the image as they are.
    pub(super) fn plain(&self, offset: u64, len: u64) -> Result<Stretch, Fault> {
        let room = self.sb.blocks << self.sb.block_bits;
        match offset.checked_add(len).is_some_and(|end| end <= room && end <= self.bytes.size()) {
            true => Ok(Stretch::Plain { offset, len }),
            false => Err(Fault::Bad("a file's data is beyond the image")),
        }
    }

    fn flat_inline(&self, node: &Node<'_>) -> Result<Vec<Stretch>, Fault> {
        let block = self.sb.block();
        let full = (node.size - 1) / block * block;
        let (tail, len) = (node.stored.behind, node.size - full);
        if tail % block + len > block {
            return Err(Fault::Bad("inline data crosses a block"));
        }
        let mut all = Vec::new();
        if full > 0 {
            all.push(self.plain(node.start, full)?);
        }
        all.push(self.plain(tail, len)?);
        Ok(all)
    }

    fn chunks(&self, node: &Node<'_>) -> Result<Vec<Stretch>, Fault> {
        let format = node.stored.chunk_format;
        if format & !(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
            return Err(Fault::Unsupported("a chunk format newer than this reader"));
        }
        let (indexes, bits) = (format & CHUNK_INDEXES != 0, u32::from(format & CHUNK_BITS_MASK));
        let unit = if indexes { CHUNK_INDEX_LEN } else { 4 };
        let chunk = 1u64.checked_shl(u32::from(self.sb.block_bits) + bits);
        let chunk =
            chunk.filter(|&c| c <= 1 << 48).ok_or(Fault::Bad("its chunks are larger than any image"))?;
        let count = node.size.div_ceil(chunk);
        let table =
            self.bytes.cut("chunk indexes", node.stored.behind.next_multiple_of(unit), count * unit)?;
        let mut all: Vec<Stretch> = Vec::new();
        for (i, entry) in table.chunks_exact(unit as usize).enumerate() {
            let len = chunk.min(node.size - i as u64 * chunk);
            let block = if indexes { le32(entry, 4) } else { le32(entry, 0) };
            if block == NULL_BLOCK {
                all.push(Stretch::Hole { len });
                continue;
            }
            if indexes && le16(entry, 2) != 0 {
                return Err(Fault::Bad("a file on a device that is not in the table"));
            }
            all.push(self.plain(u64::from(block) << self.sb.block_bits, len)?);
        }
        Ok(joined(all))
    }
}

/// Runs that go on in each other, as one.
fn joined(all: Vec<Stretch>) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::with_capacity(all.len());
    for next in all {
        match (out.last_mut(), &next) {
            (Some(Stretch::Hole { len }), Stretch::Hole { len: more }) => *len += more,
            (Some(Stretch::Plain { offset, len }), Stretch::Plain { offset: then, len: more })
                if *offset + *len == *then =>
            {
                *len += more;
            }
            _ => out.push(next),
        }
    }
    out
}
