//! Compressed files: logical clusters of one block each say where the physical cluster starts that they are part of
//! (kernel `fs/erofs/zmap.c`, `erofs_fs.h`).
//!
//! Logical clusters are described by eight bytes each, or packed: 16 of them in 32 bytes, or two in eight. From them
//! come the *extents*: runs of the file's bytes that one physical cluster decodes to.

use super::Fault;
use super::ends::{Ends, Work};
use super::image::Image;
use super::inode::Node;
use super::layout::*;
use crate::chunk::ChunkCodec;
use crate::volume::Stretch;

const ADVISE_COMPACTED_2B: u16 = 0x1;
const ADVISE_BIG: u16 = 0x2;
const ADVISE_INLINE: u16 = 0x8;
const ADVISE_INTERLACED: u16 = 0x10;
const ADVISE_FRAGMENT: u16 = 0x20;
const ADVISE_KNOWN: u16 = 0x3f;
/// The whole file is in the inode of packed ends.
const ALL_FRAGMENT: u8 = 0x80;

const HEADER_LEN: u64 = 8;
/// Between header and indexes of eight bytes each.
const FULL_GAP: u64 = 8;
const FULL_LEN: u64 = 8;

const PLAIN: u8 = 0;
const HEAD1: u8 = 1;
const NONHEAD: u8 = 2;
const HEAD2: u8 = 3;
/// A full index whose cluster decodes to more than is used here.
const PARTIAL: u16 = 1 << 15;
/// `delta[0]` is the number of blocks of the physical cluster.
const BLOCK_COUNT: u32 = 1 << 11;
/// A packed cluster has at least as many low bits (`Z_EROFS_LI_D0_CBLKCNT`).
const LOW_BITS_MIN: u32 = 12;
/// Most bytes that a cluster may decode to.
const RAW_MAX: u64 = crate::chunk::MAX_CHUNK;

/// Most logical clusters of a file.
const MOST_CLUSTERS: u64 = 4 << 20;

/// What one logical cluster says.
#[derive(Debug, Clone, Copy)]
struct Logical {
    kind: u8,
    /// Of heads: where in the logical cluster the extent starts.
    offset: u32,
    /// Of heads: the block at which the physical cluster starts.
    block: u32,
    /// Of the first cluster behind a head: how many blocks the physical cluster has.
    blocks: Option<u32>,
    partial: bool,
}

/// An extent: from the head at `start` of the file on.
struct Extent {
    start: u64,
    kind: u8,
    block: u32,
    blocks: u32,
    partial: bool,
}

struct Map {
    advise: u16,
    algorithms: u8,
    /// Bits of a logical cluster's size.
    bits: u32,
    count: u64,
    fragment: u32,
    inline_len: u16,
    /// Byte offset of the indexes.
    indexes: u64,
}

impl Image<'_> {
    pub(super) fn clusters(
        &self,
        node: &Node<'_>,
        ends: Ends<'_>,
        work: &mut Work,
    ) -> Result<Vec<Stretch>, Fault> {
        if !self.sb.zero_padding {
            return Err(Fault::Unsupported("a compressed image of the first years, without padding"));
        }
        let at = node.stored.behind.next_multiple_of(8);
        let head = self.bytes.cut("a compressed file's header", at, HEADER_LEN)?;
        if head[7] & ALL_FRAGMENT != 0 {
            // The offset takes the whole header but this bit.
            return ends.part(le64(head, 0) & !(1 << 63), node.size);
        }
        let bits = u32::from(self.sb.block_bits) + u32::from(head[7] & 0xf);
        let gap = if node.stored.layout == COMPRESSED_FULL { FULL_GAP } else { 0 };
        let map = Map {
            advise: le16(head, 4),
            algorithms: head[6],
            bits,
            count: node.size.div_ceil(1 << bits),
            fragment: le32(head, 0),
            inline_len: le16(head, 2),
            indexes: at + HEADER_LEN + gap,
        };
        if map.advise & !ADVISE_KNOWN != 0 || head[7] & 0x70 != 0 || bits > MOST_CLUSTER_BITS {
            return Err(Fault::Unsupported("a compressed file of a layout newer than this reader"));
        }
        if map.count > MOST_CLUSTERS {
            return Err(Fault::Unsupported("a compressed file of more than 4 million clusters"));
        }
        let (logical, end) = match node.stored.layout {
            COMPRESSED_FULL if map.advise & ADVISE_COMPACTED_2B != 0 => {
                return Err(Fault::Unsupported("a compressed file of a layout newer than this reader"));
            }
            COMPRESSED_FULL => self.full(&map)?,
            _ => self.compact(&map)?,
        };
        work.charge(end - map.indexes)?;
        let extents = extents(&map, &logical)?;
        self.files_runs(node, &map, &extents, end, (ends, work))
    }

    /// Indexes of eight bytes each, and where they end.
    fn full(&self, map: &Map) -> Result<(Vec<Logical>, u64), Fault> {
        let table = self.bytes.cut("indexes of a compressed file", map.indexes, map.count * FULL_LEN)?;
        if table.chunks_exact(FULL_LEN as usize).any(|entry| le16(entry, 0) & !(3 | PARTIAL) != 0) {
            return Err(Fault::Unsupported("a compressed file of a layout newer than this reader"));
        }
        let one = |entry: &[u8]| {
            let advise = le16(entry, 0);
            let (kind, delta) = ((advise & 3) as u8, u32::from(le16(entry, 4)));
            Logical {
                kind,
                offset: u32::from(le16(entry, 2)),
                block: le32(entry, 4),
                blocks: (kind == NONHEAD && delta & BLOCK_COUNT != 0).then_some(delta & !BLOCK_COUNT),
                partial: advise & PARTIAL != 0,
            }
        };
        let all = table.chunks_exact(FULL_LEN as usize).map(one).collect();
        Ok((all, map.indexes + map.count * FULL_LEN))
    }

    /// Packed indexes, and where they end.
    fn compact(&self, map: &Map) -> Result<(Vec<Logical>, u64), Fault> {
        // Pairs up to a 32-byte border, which are whole ones, then sixteens where there are some, then pairs again.
        let lead = ((32 - map.indexes % 32) / 4 % 8).min(map.count);
        let packs = match map.advise & ADVISE_COMPACTED_2B != 0 && map.bits <= 12 {
            true => (map.count - lead) / 16,
            false => 0,
        };
        let rest = map.count - lead - packs * 16;
        let big = map.advise & ADVISE_BIG != 0;
        let mut all = Vec::new();
        let mut at = map.indexes;
        for (packs, of, len) in [(lead.div_ceil(2), 2, 8), (packs, 16, 32), (rest.div_ceil(2), 2, 8)] {
            let table = self.bytes.cut("packed indexes of a compressed file", at, packs * len)?;
            for pack in table.chunks_exact(len as usize) {
                unpack(pack, of, map.bits, big, &mut all)?;
            }
            at += packs * len;
        }
        all.truncate(map.count as usize);
        Ok((all, at))
    }

    /// The runs of a file that is made of `extents`; `end`: where its indexes end.
    fn files_runs(
        &self,
        node: &Node<'_>,
        map: &Map,
        extents: &[Extent],
        end: u64,
        (ends, work): (Ends<'_>, &mut Work),
    ) -> Result<Vec<Stretch>, Fault> {
        let mut all = Vec::new();
        for (i, extent) in extents.iter().enumerate() {
            let to = extents.get(i + 1).map_or(node.size, |next| next.start).min(node.size);
            let len = match to.checked_sub(extent.start) {
                // Some writers end the list with an extent of nothing.
                Some(0) if i > 0 && to == node.size => continue,
                Some(len) if len > 0 => len,
                _ => return Err(Fault::Bad("the extents of a compressed file are out of order")),
            };
            let last = to == node.size;
            if last && map.advise & ADVISE_FRAGMENT != 0 {
                all.extend(ends.part(map.fragment.into(), len)?);
                continue;
            }
            let stored = match last && map.advise & ADVISE_INLINE != 0 && map.inline_len > 0 {
                true => end..end + u64::from(map.inline_len),
                false => {
                    let start = u64::from(extent.block) << self.sb.block_bits;
                    start..start + (u64::from(extent.blocks) << self.sb.block_bits)
                }
            };
            work.charge(stored.end - stored.start)?;
            self.cluster(map, extent, stored, len, &mut all)?;
        }
        Ok(all)
    }

    fn cluster(
        &self,
        map: &Map,
        extent: &Extent,
        stored: std::ops::Range<u64>,
        len: u64,
        out: &mut Vec<Stretch>,
    ) -> Result<(), Fault> {
        let size = stored.end - stored.start;
        if extent.kind == PLAIN {
            if len > size {
                return Err(Fault::Bad("an uncompressed cluster is longer than its blocks"));
            }
            let block = self.sb.block();
            let mut first = 0;
            if map.advise & ADVISE_INTERLACED != 0 {
                // The bytes up to the file's next block border stand at the end.
                let lead = block - extent.start % block;
                first = lead.min(len);
                let from = size.checked_sub(lead).ok_or(Fault::Bad("an uncompressed cluster is cut off"))?;
                out.push(self.plain(stored.start + from, first)?);
            }
            if len > first {
                out.push(self.plain(stored.start, len - first)?);
            }
            return Ok(());
        }
        let algorithm = if extent.kind == HEAD2 { map.algorithms >> 4 } else { map.algorithms & 15 };
        let codec = match algorithm {
            0 => ChunkCodec::Lz4,
            1 => return Err(Fault::Unsupported("a file compressed with LZMA")),
            2 => ChunkCodec::Inflate,
            3 => ChunkCodec::Zstd,
            _ => return Err(Fault::Unsupported("a file compressed with an unknown algorithm")),
        };
        let bytes = self.bytes.cut("a compressed cluster", stored.start, size)?;
        let padding = bytes.iter().take_while(|&&b| b == 0).count();
        if padding == bytes.len() || len > RAW_MAX {
            return Err(Fault::Bad("a compressed cluster is empty, or decodes to more than 64 MiB"));
        }
        let raw_len = match codec {
            // LZ4 can only be decoded to its end, and one that several files share may hold more.
            ChunkCodec::Lz4 => lz4_len(&bytes[padding..])
                .filter(|&raw| raw <= RAW_MAX)
                .ok_or(Fault::Bad("an LZ4 block is damaged"))?,
            _ => len,
        };
        if raw_len < len || raw_len > len && !extent.partial {
            return Err(Fault::Bad("a compressed cluster decodes to less or more than it should"));
        }
        out.push(Stretch::Packed {
            stored: stored.start + padding as u64..stored.end,
            codec,
            raw_len,
            offset: 0,
            len,
        });
        Ok(())
    }
}

/// Reads the clusters of one pack: `count` of them, and then the block that their heads' blocks count from.
fn unpack(
    pack: &[u8],
    count: u32,
    cluster_bits: u32,
    big: bool,
    out: &mut Vec<Logical>,
) -> Result<(), Fault> {
    let bad = Fault::Bad("packed indexes of a compressed file contradict each other");
    let width = (pack.len() as u32 - 4) * 8 / count;
    let low_bits = cluster_bits.max(LOW_BITS_MIN);
    let base = le32(pack, pack.len() - 4);
    let entry = |i: u32| {
        let bit = i * width;
        let mut word = [0; 4];
        let from = (bit / 8) as usize;
        let n = (pack.len() - from).min(4);
        word[..n].copy_from_slice(&pack[from..from + n]);
        let value = u32::from_le_bytes(word) >> (bit % 8);
        (value & ((1 << low_bits) - 1), (value >> low_bits & 3) as u8)
    };
    for i in 0..count {
        let (low, kind) = entry(i);
        let block = match kind {
            NONHEAD => 0,
            _ => base.checked_add(blocks_before(i, big, &entry).ok_or(bad.clone())?).ok_or(bad.clone())?,
        };
        out.push(Logical {
            kind,
            offset: if kind == NONHEAD { 0 } else { low },
            block,
            blocks: (kind == NONHEAD && low & BLOCK_COUNT != 0).then_some(low & !BLOCK_COUNT),
            partial: false,
        });
    }
    Ok(())
}

/// Blocks from the pack's base to the physical cluster of head `at`, told from the clusters before it in the pack.
/// `big`: physical clusters may have several blocks, and the base is then the first of them; else it is the block
/// before.
fn blocks_before(at: u32, big: bool, entry: &impl Fn(u32) -> (u32, u8)) -> Option<u32> {
    let mut blocks = u32::from(!big);
    let mut at = i64::from(at);
    while at > 0 {
        at -= 1;
        let (low, kind) = entry(at as u32);
        let low_signed = i64::from(low);
        match kind {
            // Its head lies as far back, maybe in the pack before.
            NONHEAD if !big => {
                at -= low_signed;
                blocks += u32::from(at >= 0);
            }
            NONHEAD if low & BLOCK_COUNT != 0 => {
                blocks = blocks.checked_add(low & !BLOCK_COUNT)?;
                at -= 1;
            }
            NONHEAD if low <= 1 => return None,
            NONHEAD => at -= low_signed - 2,
            _ => blocks = blocks.checked_add(1)?,
        }
    }
    Some(blocks)
}

/// From logical clusters to extents.
fn extents(map: &Map, logical: &[Logical]) -> Result<Vec<Extent>, Fault> {
    let mut all: Vec<Extent> = Vec::new();
    for (i, cluster) in logical.iter().enumerate() {
        match cluster.kind {
            PLAIN | HEAD1 | HEAD2 => {
                if u64::from(cluster.offset) >= 1 << map.bits {
                    return Err(Fault::Bad("an extent of a compressed file starts beyond its cluster"));
                }
                let blocks = logical.get(i + 1).and_then(|next| next.blocks).unwrap_or(1);
                if blocks == 0 {
                    return Err(Fault::Bad("a compressed cluster has no blocks"));
                }
                all.push(Extent {
                    start: ((i as u64) << map.bits) + u64::from(cluster.offset),
                    kind: cluster.kind,
                    block: cluster.block,
                    blocks,
                    partial: cluster.partial,
                });
            }
            _ if all.is_empty() => {
                return Err(Fault::Bad("a compressed file starts in the middle of a cluster"));
            }
            _ => {}
        }
    }
    match all.first() {
        Some(first) if first.start == 0 => Ok(all),
        _ => Err(Fault::Bad("a compressed file does not start with its first byte")),
    }
}

/// Bytes that an LZ4 block decodes to (lz4 `doc/lz4_Block_format.md`); None when it ends in mid-sequence.
fn lz4_len(block: &[u8]) -> Option<u64> {
    let (mut at, mut len) = (0, 0u64);
    let extended = |at: &mut usize, nibble: u8| {
        let mut n = u64::from(nibble);
        if nibble == 15 {
            loop {
                let byte = *block.get(*at)?;
                *at += 1;
                n += u64::from(byte);
                if byte != 255 {
                    break;
                }
            }
        }
        Some(n)
    };
    loop {
        let token = *block.get(at)?;
        at += 1;
        let literals = extended(&mut at, token >> 4)?;
        at =
            usize::try_from(literals).ok().and_then(|n| at.checked_add(n)).filter(|&at| at <= block.len())?;
        len += literals;
        if at == block.len() {
            return Some(len);
        }
        at += 2;
        len += extended(&mut at, token & 15)? + 4;
    }
}
