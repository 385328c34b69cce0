//! Writing: reach, place, then fill in. The image is
//! superblock and device table | shared attributes | inodes | folders' full blocks.

use std::collections::HashMap;

use super::dirent::{self, Entry, Packer};
use super::layout::*;
use super::place::Space;
use super::superblock::{DEVICE_TABLE, NewSuperblock};
use super::walk::Walk;
use super::xattr::Shared;
use super::{Device, EncodeError};
use crate::tree::{FileData, Inode, InodeId, Kind, ROOT, Time, Tree};

/// Writes `tree` as an EROFS image whose regular files point into `devices`, layer `n` being
/// device `n`. The same tree and devices always give the same bytes.
///
/// A character device 0:0 is written as the whiteout overlayfs takes it for.
///
/// # Errors
/// Names the path of what EROFS or the kernel can't hold.
pub fn encode(tree: &Tree, devices: &[Device]) -> Result<Vec<u8>, EncodeError> {
    check_devices(devices)?;
    let walk = Walk::new(tree)?;
    let shared = Shared::new(tree, &walk)?;
    let shared_at = (DEVICE_TABLE + devices.len() as u64 * DEVICE_SLOT).next_multiple_of(BLOCK);
    let meta_at = (shared_at + shared.len).next_multiple_of(BLOCK);
    let mut encoder = Encoder {
        tree,
        devices,
        walk,
        shared,
        // One block early: no inode may have the number 0, which readdir takes for a deleted one.
        base: meta_at - BLOCK,
        body_at: 0,
        build: Time::default(),
        plans: Vec::new(),
        nids: vec![0; tree.inodes.len()],
    };
    encoder.build = encoder.commonest_time();
    let end = encoder.place(meta_at)?;
    let blocks = u32::try_from(end / BLOCK).map_err(|_| EncodeError::TooLarge)?;
    let mut image = vec![0; usize::try_from(end).map_err(|_| EncodeError::TooLarge)?];
    write_devices(&mut image, devices);
    encoder.shared.write(&mut image, shared_at);
    for i in 0..encoder.plans.len() {
        encoder.write_inode(&mut image, i);
    }
    let superblock = NewSuperblock {
        root: (BLOCK / SLOT) as u16,
        inodes: encoder.plans.len() as u64,
        build_time: encoder.build.secs,
        build_nanos: encoder.build.nanos,
        blocks,
        meta_block: (encoder.base / BLOCK) as u32,
        shared_block: (shared_at / BLOCK) as u32,
        devices: devices.len() as u16,
    };
    superblock.write(&mut image);
    Ok(image)
}

fn check_devices(devices: &[Device]) -> Result<(), EncodeError> {
    if devices.len() > usize::from(u16::MAX) - 1 {
        return Err(EncodeError::Device { index: devices.len(), why: "there are more than 65534" });
    }
    for (index, device) in devices.iter().enumerate() {
        let why = if device.tag.len() > TAG_LEN || device.tag.contains('\0') {
            "its tag is longer than 64 bytes or holds NUL"
        } else if device.size % BLOCK != 0 {
            "its size is no multiple of 4096 bytes"
        } else if device.size / BLOCK >= u64::from(NULL_BLOCK) {
            "its data file is larger than the 16 TiB of EROFS's block addresses"
        } else {
            continue;
        };
        return Err(EncodeError::Device { index, why });
    }
    Ok(())
}

fn write_devices(image: &mut [u8], devices: &[Device]) {
    for (i, device) in devices.iter().enumerate() {
        let at = (DEVICE_TABLE + i as u64 * DEVICE_SLOT) as usize;
        put(image, at, device.tag.as_bytes());
        put(image, at + TAG_LEN, &((device.size / BLOCK) as u32).to_le_bytes());
    }
}

/// Where and how one inode is written.
struct Plan {
    id: InodeId,
    /// Byte offset of the inode.
    at: u64,
    size: u64,
    /// Bytes of attributes.
    xattrs: u32,
    /// First of its own full blocks, counted from the first behind the inodes.
    block: u32,
    layout: u16,
    extended: bool,
}

impl Plan {
    fn header(&self) -> u64 {
        if self.extended { EXTENDED_LEN } else { COMPACT_LEN }
    }
    /// Byte offset of what follows inode and attributes.
    fn tail(&self) -> u64 {
        self.at + self.header() + u64::from(self.xattrs)
    }
}

struct Encoder<'a> {
    tree: &'a Tree,
    devices: &'a [Device],
    walk: Walk,
    shared: Shared<'a>,
    base: u64,
    /// Byte offset of the first block behind the inodes.
    body_at: u64,
    build: Time,
    plans: Vec<Plan>,
    /// By inode: its number in the image, at most 32 bits as the image has 2^32 blocks at most.
    nids: Vec<u64>,
}

impl Encoder<'_> {
    /// The time most inodes have, which compact inodes take from the superblock.
    fn commonest_time(&self) -> Time {
        let mut counts = HashMap::new();
        for &id in &self.walk.order {
            let Time { secs, nanos } = self.tree.get(id).meta.mtime;
            *counts.entry((secs, nanos)).or_insert(0u32) += 1;
        }
        let best = counts.into_iter().max_by_key(|&(time, count)| (count, time));
        best.map_or(Time::default(), |((secs, nanos), _)| Time { secs, nanos })
    }

    fn refuse(&self, id: InodeId, why: &'static str) -> EncodeError {
        EncodeError::Inode { path: self.walk.path(self.tree, id), why }
    }

    /// Places every inode and returns the image's size in bytes.
    fn place(&mut self, meta_at: u64) -> Result<u64, EncodeError> {
        let mut space = Space::new(meta_at);
        let mut blocks = 0u64;
        self.plans.reserve_exact(self.walk.order.len());
        for i in 0..self.walk.order.len() {
            let id = self.walk.order[i];
            let mut plan = self.plan(id)?;
            let full = self.place_one(&mut plan, &mut space);
            plan.block = u32::try_from(blocks).map_err(|_| EncodeError::TooLarge)?;
            blocks += full;
            self.nids[id as usize] = (plan.at - self.base) / SLOT;
            self.plans.push(plan);
        }
        self.body_at = space.end();
        Ok(self.body_at + blocks * BLOCK)
    }

    fn plan(&self, id: InodeId) -> Result<Plan, EncodeError> {
        let inode = self.tree.get(id);
        let size = self.size(id, inode)?;
        let meta = &inode.meta;
        if meta.mtime.nanos > 999_999_999 {
            return Err(self.refuse(id, "its time has more than a second of nanoseconds"));
        }
        let compact = meta.mtime == self.build
            && meta.uid.max(meta.gid).max(self.walk.nlink[id as usize]) <= u16::MAX.into()
            && size <= u32::MAX.into();
        let xattrs = self.shared.body_len(inode);
        let xattrs = xattrs.ok_or_else(|| self.refuse(id, "it has more attributes than EROFS holds"))?;
        let chunked = matches!(inode.kind, Kind::File { size: 1.., .. });
        Ok(Plan {
            id,
            at: 0,
            size,
            xattrs: xattrs as u32,
            block: 0,
            layout: if chunked { CHUNK_BASED } else { FLAT_PLAIN },
            extended: !compact,
        })
    }

    /// Finds the inode's place and returns how many full blocks it needs elsewhere.
    fn place_one(&self, plan: &mut Plan, space: &mut Space) -> u64 {
        let head = plan.tail();
        let tail = plan.size % BLOCK;
        if plan.layout == CHUNK_BASED {
            let (_, count) = chunks(plan.size);
            plan.at = space.take(head.next_multiple_of(CHUNK_INDEX_LEN) + count * CHUNK_INDEX_LEN, false);
            0
        } else if tail > 0 && head + tail <= BLOCK {
            plan.layout = FLAT_INLINE;
            plan.at = space.take(head + tail, true);
            plan.size / BLOCK
        } else {
            plan.at = space.take(head, false);
            plan.size.div_ceil(BLOCK)
        }
    }

    /// Checks what the kind holds, and its `i_size`.
    fn size(&self, id: InodeId, inode: &Inode) -> Result<u64, EncodeError> {
        match &inode.kind {
            Kind::Dir(entries) => Ok(dirent::size(dirent::listing(entries, id, id))),
            Kind::File { size: 0, .. } => Ok(0),
            Kind::File { size, data } => {
                let device = self.devices.get(usize::from(data.layer));
                let device = device.ok_or_else(|| self.refuse(id, "its layer has no device"))?;
                let end = data.offset.checked_add(*size);
                if data.offset % BLOCK != 0 || end.is_none_or(|end| end > device.size) {
                    return Err(self.refuse(id, "its data is unaligned or beyond its layer's data file"));
                }
                Ok(*size)
            }
            Kind::Symlink(target) => {
                let len = target.len() as u64;
                if !(1..=TARGET_MAX).contains(&len) || target.contains(&0) {
                    return Err(self.refuse(id, "its link target is empty, over 4095 bytes, or holds NUL"));
                }
                Ok(len)
            }
            Kind::Char(dev) | Kind::Block(dev) if encode_dev(*dev).is_none() => {
                Err(self.refuse(id, "its device number is over 12 bits of major or 20 of minor"))
            }
            Kind::Char(_) | Kind::Block(_) | Kind::Fifo | Kind::Socket | Kind::Whiteout => Ok(0),
        }
    }

    fn write_inode(&self, image: &mut [u8], index: usize) {
        let plan = &self.plans[index];
        let inode = self.tree.get(plan.id);
        let (meta, nlink) = (&inode.meta, self.walk.nlink[plan.id as usize]);
        let mut field = |at: usize, bytes: &[u8]| put(image, plan.at as usize + at, bytes);
        field(0, &(plan.layout << 1 | u16::from(plan.extended)).to_le_bytes());
        let icount = if plan.xattrs == 0 { 0 } else { 1 + (u64::from(plan.xattrs) - XATTR_HEADER) / 4 };
        field(2, &(icount as u16).to_le_bytes());
        field(4, &(type_bits(&inode.kind) | meta.perm & 0o7777).to_le_bytes());
        field(16, &self.union_field(plan, &inode.kind).to_le_bytes());
        field(20, &(index as u32 + 1).to_le_bytes());
        if plan.extended {
            field(8, &plan.size.to_le_bytes());
            field(24, &meta.uid.to_le_bytes());
            field(28, &meta.gid.to_le_bytes());
            field(32, &meta.mtime.secs.to_le_bytes());
            field(40, &meta.mtime.nanos.to_le_bytes());
            field(44, &nlink.to_le_bytes());
        } else {
            field(6, &(nlink as u16).to_le_bytes());
            field(8, &(plan.size as u32).to_le_bytes());
            field(24, &(meta.uid as u16).to_le_bytes());
            field(26, &(meta.gid as u16).to_le_bytes());
        }
        if plan.xattrs > 0 {
            self.shared.write_body(image, plan.at + plan.header(), inode);
        }
        match &inode.kind {
            Kind::Dir(entries) => self.write_dir(
                image,
                plan,
                dirent::listing(entries, plan.id, self.walk.parent[plan.id as usize]),
            ),
            Kind::File { size: 1.., data } => write_chunks(image, plan, *data),
            Kind::Symlink(target) => put(image, self.body(plan, 0), target),
            _ => {}
        }
    }

    /// `i_u`: block address, chunk format or device number.
    fn union_field(&self, plan: &Plan, kind: &Kind) -> u32 {
        match kind {
            Kind::File { size: 1.., .. } => u32::from(chunks(plan.size).0 | CHUNK_INDEXES),
            Kind::Dir(_) | Kind::Symlink(_) => (self.body_at / BLOCK) as u32 + plan.block,
            Kind::Char(dev) | Kind::Block(dev) => encode_dev(*dev).unwrap_or(0),
            _ => 0,
        }
    }

    /// Byte offset of block `n` of the inode's own data.
    fn body(&self, plan: &Plan, n: u64) -> usize {
        let inline = plan.layout == FLAT_INLINE && n == plan.size / BLOCK;
        let at = if inline { plan.tail() } else { self.body_at + (u64::from(plan.block) + n) * BLOCK };
        at as usize
    }

    fn write_dir<'n>(&self, image: &mut [u8], plan: &Plan, names: impl Iterator<Item = (&'n [u8], InodeId)>) {
        let mut packer = Packer::new();
        let mut n = 0;
        for (name, id) in names {
            let nid = self.nids[id as usize];
            let file_type = dirent_type(type_bits(&self.tree.get(id).kind));
            packer.add(Entry { name, nid, file_type }, |full| {
                dirent::write_block(image, self.body(plan, n), full);
                n += 1;
            });
        }
        dirent::write_block(image, self.body(plan, n), packer.rest());
    }
}

/// Chunk format bits and number of chunks for a file: one chunk wherever 31 bits of block count do.
fn chunks(size: u64) -> (u16, u64) {
    let blocks = size.div_ceil(BLOCK);
    let bits = (u64::BITS - blocks.saturating_sub(1).leading_zeros()).min(CHUNK_BITS_MASK.into());
    (bits as u16, blocks.div_ceil(1 << bits))
}

fn write_chunks(image: &mut [u8], plan: &Plan, data: FileData) {
    let (bits, count) = chunks(plan.size);
    let start = plan.tail().next_multiple_of(CHUNK_INDEX_LEN);
    for i in 0..count {
        let at = (start + i * CHUNK_INDEX_LEN) as usize;
        put(image, at + 2, &(data.layer + 1).to_le_bytes());
        put(image, at + 4, &((data.offset / BLOCK + (i << bits)) as u32).to_le_bytes());
    }
}

const _: () = assert!(ROOT == 0);
