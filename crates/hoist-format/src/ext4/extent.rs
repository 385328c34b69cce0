//! Where a file's blocks are (`ifork.rst`, "Extent Tree").

use super::error::Fault;
use super::superblock::Superblock;
use crate::le::{le16, le32};
use crate::volume::{Device, Stretch};

const MAGIC: u16 = 0xF30A;
const HEAD: usize = 12;
const ENTRY: usize = 12;
const MAX_DEPTH: u16 = 5;
/// Longer extents are preallocated: so many blocks, all zeros.
const UNWRITTEN: u16 = 32768;

/// A run of blocks: the file's `first` on, `len` of them, from block `start` of the device on.
struct Run {
    first: u64,
    len: u64,
    start: u64,
    written: bool,
}

/// The contents of a file of `size` bytes whose tree's root is `root`. `budget`: bytes of extent blocks still to be
/// read.
pub(super) fn stretches(
    device: &mut dyn Device,
    sb: &Superblock,
    root: &[u8],
    size: u64,
    budget: &mut u64,
) -> Result<Vec<Stretch>, Fault> {
    let mut runs = Vec::new();
    let mut absent = None;
    node(device, sb, root, None, budget, &mut runs, &mut absent)?;
    // All children of a level were asked for by now.
    if let Some(fault) = absent {
        return Err(fault);
    }
    let mut all: Vec<Stretch> = Vec::new();
    let mut at = 0;
    for run in runs {
        let Some(from) = run.first.checked_mul(sb.block).filter(|&from| from < size) else { break };
        let len = (run.len * sb.block).min(size - from);
        push(&mut all, Stretch::Hole { len: from - at });
        push(
            &mut all,
            match run.written {
                true => Stretch::Plain { offset: run.start * sb.block, len },
                false => Stretch::Hole { len },
            },
        );
        at = from + len;
    }
    push(&mut all, Stretch::Hole { len: size - at });
    Ok(all)
}

/// Appends a stretch, joined to the last where it goes on.
fn push(all: &mut Vec<Stretch>, next: Stretch) {
    match (all.last_mut(), next) {
        (_, next) if next.is_empty() => {}
        (Some(Stretch::Hole { len }), Stretch::Hole { len: more }) => *len += more,
        (Some(Stretch::Plain { offset, len }), Stretch::Plain { offset: next, len: more })
            if *offset + *len == next =>
        {
            *len += more;
        }
        (_, next) => all.push(next),
    }
}

/// One node, and those below it. `depth`: what the node above says; None for the root.
fn node(
    device: &mut dyn Device,
    sb: &Superblock,
    bytes: &[u8],
    depth: Option<u16>,
    budget: &mut u64,
    runs: &mut Vec<Run>,
    absent: &mut Option<Fault>,
) -> Result<(), Fault> {
    let (count, own_depth) = (usize::from(le16(bytes, 2)), le16(bytes, 6));
    if le16(bytes, 0) != MAGIC || depth.is_some_and(|d| d != own_depth) || own_depth > MAX_DEPTH {
        return Err(Fault::Bad("its extent tree is damaged"));
    }
    let entries =
        bytes[HEAD..].get(..count * ENTRY).ok_or(Fault::Bad("its extent tree has too many entries"))?;
    let mut last = None;
    for entry in entries.chunks_exact(ENTRY) {
        let first = u64::from(le32(entry, 0));
        let end = runs.last().map_or(0, |run: &Run| run.first + run.len);
        if first < end || last.is_some_and(|last| first <= last) {
            return Err(Fault::Bad("its extents overlap or are out of order"));
        }
        last = Some(first);
        if own_depth == 0 {
            runs.push(leaf(sb, entry, first)?);
            continue;
        }
        let at = sb.at(u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32)?;
        *budget = budget
            .checked_sub(8 * sb.block)
            .ok_or(Fault::Bad("its extent tree is larger than any sound one"))?;
        match device.read(at, sb.block) {
            Ok(below) => node(device, sb, &below, Some(own_depth - 1), budget, runs, absent)?,
            Err(lack) => drop(absent.get_or_insert(Fault::Lack(lack))),
        }
    }
    Ok(())
}

fn leaf(sb: &Superblock, entry: &[u8], first: u64) -> Result<Run, Fault> {
    let len = le16(entry, 4);
    let written = len <= UNWRITTEN;
    let len = u64::from(if written { len } else { len - UNWRITTEN });
    let start = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
    if len == 0 {
        return Err(Fault::Bad("it has an empty extent"));
    }
    sb.at(start)?;
    sb.at(start + len - 1)?;
    Ok(Run { first, len, start, written })
}
