//! One inode (`inodes.rst`).

use super::error::Fault;
use super::extent;
use super::superblock::Superblock;
use super::xattr::{self, Xattrs};
use crate::le::{le16, le32};
use crate::tree::{Dev, Kind, Meta, Name, Time};
use crate::volume::{Device, Stretch};

const S_IFMT: u16 = 0o170_000;
const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;
/// Bytes of an inode of the first version.
const OLD_LEN: usize = 128;
/// The field that holds extents, device numbers, short link targets or inline data.
const BLOCK_FIELD: usize = 0x28;
const BLOCK_FIELD_LEN: usize = 60;
/// An inline folder starts with its parent's number.
const INLINE_DIR_HEAD: usize = 4;
const TARGET_MAX: u64 = 4095;
/// Largest folder, bytes.
const DIR_MAX: u64 = 256 << 20;

/// An inode that is in use.
pub(super) struct Inode {
    pub kind: NodeKind,
    pub meta: Meta,
}

/// What it is.
pub(super) enum NodeKind {
    /// A folder: its blocks, each with all its entries.
    Dir(Vec<Vec<u8>>),
    /// A file: its size and contents.
    File(u64, Vec<Stretch>),
    /// All others, as a tree has them.
    Other(Kind),
}

/// Bytes of metadata that may still be read.
pub(super) type Budget = u64;

/// Reads the inode whose `bytes` stand at byte `at` of the device; None where it is not in use.
pub(super) fn read(
    device: &mut dyn Device,
    sb: &Superblock,
    bytes: &[u8],
    at: u64,
    budget: &mut Budget,
) -> Result<Option<Inode>, Fault> {
    let (mode, links) = (le16(bytes, 0), le16(bytes, 0x1A));
    if mode == 0 || links == 0 {
        return Ok(None);
    }
    let high = |low, high| u32::from(le16(bytes, low)) | u32::from(le16(bytes, high)) << 16;
    let mut xattrs = Xattrs::default();
    let body = OLD_LEN + if bytes.len() > OLD_LEN { usize::from(le16(bytes, OLD_LEN)) } else { 0 };
    let area = bytes.get(body..).ok_or(Fault::Bad("its fields reach beyond it"))?;
    xattr::in_inode(area, &mut xattrs)?;
    let inline = xattrs.data.take().map(|range| body + range.start..body + range.end);
    let acl_block = u64::from(le32(bytes, 0x68)) | u64::from(le16(bytes, 0x76)) << 32;
    // Asked for together with the contents, so that both come in one round.
    let own_block = match acl_block {
        0 => None,
        block => {
            charge(budget, sb.block)?;
            Some(device.read(sb.at(block)?, sb.block))
        }
    };
    let place = Place { device, sb, bytes, at, inline };
    let kind = place.kind(mode, acl_block, budget);
    if let Some(block) = own_block {
        xattr::in_block(&block?, &mut xattrs)?;
    }
    let meta = Meta {
        perm: mode & 0o7777,
        uid: high(2, 0x78),
        gid: high(0x18, 0x7A),
        mtime: mtime(bytes, body),
        xattrs: xattrs.all,
    };
    Ok(Some(Inode { kind: kind?, meta }))
}

fn charge(budget: &mut Budget, bytes: u64) -> Result<(), Fault> {
    *budget =
        budget.checked_sub(bytes).ok_or(Fault::Bad("the file system has more than 512 MiB of metadata"))?;
    Ok(())
}

fn mtime(bytes: &[u8], body: usize) -> Time {
    let secs = i64::from(le32(bytes, 0x10) as i32);
    match body >= 0x8C {
        true => {
            let extra = le32(bytes, 0x88);
            Time { secs: secs + (i64::from(extra & 3) << 32), nanos: (extra >> 2).min(999_999_999) }
        }
        false => Time { secs, nanos: 0 },
    }
}

struct Place<'a> {
    device: &'a mut dyn Device,
    sb: &'a Superblock,
    bytes: &'a [u8],
    at: u64,
    /// Where in `bytes` the rest of inline data is.
    inline: Option<std::ops::Range<usize>>,
}

impl Place<'_> {
    fn flags(&self) -> u32 {
        le32(self.bytes, 0x20)
    }

    fn field(&self) -> &[u8] {
        &self.bytes[BLOCK_FIELD..BLOCK_FIELD + BLOCK_FIELD_LEN]
    }

    fn kind(mut self, mode: u16, acl_block: u64, budget: &mut Budget) -> Result<NodeKind, Fault> {
        if self.flags() & ENCRYPTED != 0 {
            return Err(Fault::Bad("it is encrypted"));
        }
        let size = u64::from(le32(self.bytes, 4)) | u64::from(le32(self.bytes, 0x6C)) << 32;
        Ok(match mode & S_IFMT {
            0o100_000 => NodeKind::File(size, self.contents(size, budget)?),
            0o040_000 => NodeKind::Dir(self.folder(size, budget)?),
            0o120_000 => NodeKind::Other(Kind::Symlink(self.target(size, acl_block, budget)?)),
            0o020_000 => NodeKind::Other(Kind::Char(self.dev())),
            0o060_000 => NodeKind::Other(Kind::Block(self.dev())),
            0o010_000 => NodeKind::Other(Kind::Fifo),
            0o140_000 => NodeKind::Other(Kind::Socket),
            _ => return Err(Fault::Bad("its mode has no file type")),
        })
    }

    fn dev(&self) -> Dev {
        let (old, new) = (le32(self.field(), 0), le32(self.field(), 4));
        match old {
            0 => Dev { major: (new & 0xfff00) >> 8, minor: new & 0xff | new >> 12 & 0xfff00 },
            old => Dev { major: old >> 8 & 0xff, minor: old & 0xff },
        }
    }

    /// Where its bytes are.
    fn contents(&mut self, size: u64, budget: &mut Budget) -> Result<Vec<Stretch>, Fault> {
        let flags = self.flags();
        if size == 0 {
            return Ok(Vec::new());
        }
        if size > crate::layer::MAX_DATA {
            return Err(Fault::Bad("it has more than 8 TiB"));
        }
        if flags & INLINE != 0 {
            return self.inline_contents(size);
        }
        if flags & EXTENTS == 0 {
            let all_zero = self.field().iter().all(|&b| b == 0);
            let why = "its blocks are listed as in ext3, which hoist does not read";
            return if all_zero { Ok(vec![Stretch::Hole { len: size }]) } else { Err(Fault::Bad(why)) };
        }
        let root = self.field().to_vec();
        extent::stretches(self.device, self.sb, &root, size, budget)
    }

    fn inline_contents(&self, size: u64) -> Result<Vec<Stretch>, Fault> {
        let first = size.min(BLOCK_FIELD_LEN as u64);
        let mut all = vec![Stretch::Plain { offset: self.at + BLOCK_FIELD as u64, len: first }];
        let rest = size - first;
        if rest > 0 {
            let range = self.inline.clone().unwrap_or_default();
            if (range.len() as u64) < rest {
                return Err(Fault::Bad("its inline data is cut off"));
            }
            all.push(Stretch::Plain { offset: self.at + range.start as u64, len: rest });
        }
        Ok(all)
    }

    /// All bytes of something small.
    fn whole(&mut self, size: u64, budget: &mut Budget) -> Result<Vec<u8>, Fault> {
        charge(budget, size)?;
        let mut out = Vec::new();
        let mut absent = None;
        for stretch in self.contents(size, budget)? {
            match stretch {
                Stretch::Plain { offset, len } => match self.device.read(offset, len) {
                    Ok(bytes) => out.extend_from_slice(&bytes),
                    Err(lack) => drop(absent.get_or_insert(lack)),
                },
                Stretch::Hole { len } | Stretch::Packed { len, .. } => {
                    out.resize(out.len() + len as usize, 0)
                }
            }
        }
        absent.map_or(Ok(out), |lack| Err(lack.into()))
    }

    fn folder(&mut self, size: u64, budget: &mut Budget) -> Result<Vec<Vec<u8>>, Fault> {
        if size > DIR_MAX {
            return Err(Fault::Bad("a folder of more than 256 MiB"));
        }
        if self.flags() & INLINE != 0 {
            let mut parts = vec![self.field()[INLINE_DIR_HEAD..].to_vec()];
            let rest = self.inline.clone().map(|range| self.bytes[range].to_vec());
            parts.extend(rest.filter(|rest| !rest.is_empty()));
            return Ok(parts);
        }
        let bytes = self.whole(size, budget)?;
        // A hole in a folder holds no names.
        let blocks = bytes.chunks(self.sb.block as usize).filter(|b| b.iter().any(|&b| b != 0));
        Ok(blocks.map(<[u8]>::to_vec).collect())
    }

    fn target(&mut self, size: u64, acl_block: u64, budget: &mut Budget) -> Result<Name, Fault> {
        if !(1..=TARGET_MAX).contains(&size) {
            return Err(Fault::Bad("its link target is empty or longer than 4095 bytes"));
        }
        let own_sectors = if acl_block == 0 { 0 } else { self.sb.block / 512 };
        let fast = self.flags() & (INLINE | EXTENTS) == 0
            && size < BLOCK_FIELD_LEN as u64
            && u64::from(le32(self.bytes, 0x1C)) <= own_sectors;
        let target = if fast { self.field()[..size as usize].to_vec() } else { self.whole(size, budget)? };
        match target.contains(&0) {
            true => Err(Fault::Bad("its link target holds NUL")),
            false => Ok(target.into()),
        }
    }
}
