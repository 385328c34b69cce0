//! Whether a mount is still there for anyone, told without touching it.
//!
//! Looking into the mount could hang, and holding a descriptor of it would keep it from ever going. Its
//! path tells only of this mount namespace; a container may have it in its own. So its superblock is
//! looked for: EROFS lists each in `/sys/fs/erofs`, those mounted on a file as `erofs-N` with an
//! ever-growing N (the name `super_setup_bdi` in fs/super.c gives).

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const SUPERBLOCKS: &str = "/sys/fs/erofs";
/// Superblocks of one mount that are remembered; more than one only where others mount at the same time.
const MOST: usize = 256;

/// A mount point, and what is known of what was mounted there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The mount point, absolute and canonical.
    pub target: PathBuf,
    /// The newest superblock before ours was made.
    pub before: u64,
    /// Which superblocks may be ours; empty before the mount.
    pub superblocks: Vec<u64>,
}

/// What is mounted at one moment.
#[derive(Debug)]
pub struct Snapshot {
    points: HashSet<Vec<u8>>,
    superblocks: BTreeSet<u64>,
}

impl Snapshot {
    /// Looks at this mount namespace's table and at the kernel's list of superblocks.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn take() -> io::Result<Self> {
        let table = std::fs::read("/proc/self/mountinfo")?;
        // proc(5): the fifth field is the mount point.
        let points = table.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
        Ok(Self { points: points.map(<[u8]>::to_vec).collect(), superblocks: superblocks() })
    }

    /// Is anything mounted on this very path?
    pub fn mounted(&self, target: &Path) -> bool {
        self.points.contains(&in_mountinfo(target.as_os_str().as_bytes()))
    }

    /// Where something is mounted on a folder (canonical) or below it, the innermost first.
    pub fn below(&self, folder: &Path) -> Vec<PathBuf> {
        let points = self.points.iter().map(|point| PathBuf::from(OsString::from_vec(from_mountinfo(point))));
        let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
        below.sort_by(|a, b| b.cmp(a));
        below
    }
}

/// The numbers of all that are there now.
pub(crate) fn superblocks() -> BTreeSet<u64> {
    let entries = std::fs::read_dir(SUPERBLOCKS).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("erofs-")?.parse().ok()).collect()
}

impl Presence {
    /// To be made before anything is mounted on folder `target`.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn before(target: &Path) -> io::Result<Self> {
        let target = target
            .canonicalize()
            .map_err(|e| io::Error::new(e.kind(), format!("finding {}: {e}", target.display())))?;
        let before = superblocks().last().copied().unwrap_or(0);
        Ok(Self { target, before, superblocks: Vec::new() })
    }

    /// Learns its superblock once it is mounted. Another's, mounted in the same moment, may be taken for
    /// ours: then it seems to be there for too long.
    pub fn look(&mut self, now: &Snapshot) {
        if self.superblocks.is_empty() && now.mounted(&self.target) {
            let newer = now.superblocks.range(self.before.saturating_add(1)..);
            self.superblocks = newer.copied().take(MOST).collect();
        }
    }

    /// Is it there for anyone, here or in another mount namespace?
    pub fn is_alive(&self, now: &Snapshot) -> bool {
        if self.superblocks.is_empty() {
            return now.mounted(&self.target);
        }
        // A path may be another mount's by now, a superblock never is.
        self.superblocks.iter().any(|n| now.superblocks.contains(n))
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

fn from_mountinfo(spelt: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(spelt.len());
    let mut rest = spelt;
    while let Some((&b, behind)) = rest.split_first() {
        rest = behind;
        let octal = behind.get(..3).filter(|_| b == b'\\').and_then(|octal| std::str::from_utf8(octal).ok());
        match octal.and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &behind[3..];
            }
            None => path.push(b),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_spelt_and_read_alike() {
        for path in ["/a b\tc\nd\\e", "/\\040", "/plain"] {
            assert_eq!(from_mountinfo(&in_mountinfo(path.as_bytes())), path.as_bytes());
        }
        let points = ["/s", "/s/1/fs", "/s/1", "/s2"].map(|point| point.as_bytes().to_vec());
        let snapshot = Snapshot { points: points.into(), superblocks: BTreeSet::new() };
        assert_eq!(snapshot.below(Path::new("/s")), ["/s/1/fs", "/s/1", "/s"].map(PathBuf::from));
    }
}
