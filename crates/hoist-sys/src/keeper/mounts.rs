//! Whether a mount is still there for anyone, told without touching it.
//!
//! Looking into the mount could hang, and holding a descriptor of it would keep it from ever going. Its
//! path tells only of this mount namespace; a container may have it in its own. So its superblock is
//! looked for too: EROFS lists each in `/sys/fs/erofs`, those mounted on a file as `erofs-N` with an
//! ever-growing N (the name `super_setup_bdi` in fs/super.c gives).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const SUPERBLOCKS: &str = "/sys/fs/erofs";

/// The highest N there is, 0 for none.
pub(super) fn newest_superblock() -> u64 {
    superblocks().last().copied().unwrap_or(0)
}

fn superblocks() -> BTreeSet<u64> {
    let entries = std::fs::read_dir(SUPERBLOCKS).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("erofs-")?.parse().ok()).collect()
}

/// Some mount points, and what is known of what was mounted there.
#[derive(Debug)]
pub(super) struct Mounts {
    table: File,
    /// In the spelling of mountinfo, and whether it was ever seen there.
    points: Vec<(Vec<u8>, bool)>,
    /// The newest superblock before ours.
    before: u64,
    superblocks: BTreeSet<u64>,
    /// `major:minor`, as in mountinfo.
    devices: BTreeSet<Vec<u8>>,
}

impl Mounts {
    /// # Errors
    /// Where /proc is not mounted.
    pub fn new(points: impl Iterator<Item = PathBuf>, before: u64) -> io::Result<Self> {
        let points = points.map(|p| (in_mountinfo(p.as_os_str().as_bytes()), false)).collect();
        let table = File::open("/proc/self/mountinfo")?;
        Ok(Self { table, points, before, superblocks: BTreeSet::new(), devices: BTreeSet::new() })
    }

    /// Becomes readable with POLLPRI when the mount table has changed (proc(5)).
    pub fn changes(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }

    /// Has every mount point been seen mounted?
    pub fn all_seen(&self) -> bool {
        self.points.iter().all(|(_, seen)| *seen)
    }

    /// Looks at the mount table; is any of the mounts in it?
    ///
    /// # Errors
    /// The kernel's, such as for want of memory.
    pub fn look(&mut self) -> io::Result<bool> {
        let mut text = Vec::new();
        self.table.rewind()?;
        self.table.read_to_end(&mut text)?;
        let mut any = false;
        for line in text.split(|&b| b == b'\n') {
            // proc(5): the third field is major:minor, the fifth the mount point.
            let mut fields = line.split(|&b| b == b' ');
            let (Some(device), Some(path)) = (fields.nth(2), fields.nth(1)) else { continue };
            any |= self.devices.contains(device);
            for (_, seen) in self.points.iter_mut().filter(|(point, _)| point == path) {
                any = true;
                if !*seen {
                    *seen = true;
                    // Another's, mounted in the same moment, may be among them: then we stay too long.
                    self.superblocks.extend(superblocks().range(self.before.saturating_add(1)..));
                }
                self.devices.insert(device.to_vec());
            }
        }
        Ok(any)
    }

    /// Is any of the mounts alive, here or in another mount namespace? Yes when in doubt.
    pub fn alive(&mut self) -> bool {
        let there = self.look().unwrap_or(true);
        // Paths and device numbers may be another mount's by now, superblocks never are.
        if self.all_seen() && !self.superblocks.is_empty() {
            return !self.superblocks.is_disjoint(&superblocks());
        }
        there
    }
}

/// proc(5): space, tab, newline and backslash stand in octal.
fn in_mountinfo(path: &[u8]) -> Vec<u8> {
    let mut spelt = Vec::with_capacity(path.len());
    for &b in path {
        match b {
            b' ' | b'\t' | b'\n' | b'\\' => spelt.extend(format!("\\{b:03o}").bytes()),
            _ => spelt.push(b),
        }
    }
    spelt
}
