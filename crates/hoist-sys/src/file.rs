//! What the kernel offers on files and std does not: holes, cache advice, writeback, identity.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Frees a range of a file; it reads as zeros afterwards.
///
/// # Errors
/// The kernel's.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len > 0 {
        rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
    }
    Ok(())
}

/// Takes room for the first `len` bytes of a file, whose length stays what it is.
///
/// # Errors
/// The kernel's: no room, or a file system that cannot.
pub fn reserve(file: &File, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len)?)
}

/// File systems that store less than they are given: btrfs, f2fs, ZFS, bcachefs (their magic numbers, statfs(2)).
const COMPRESSING: [u32; 4] = [0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// Bytes that root can still write to the file system of this folder; None where it may compress them.
///
/// # Errors
/// The kernel's.
pub fn free(folder: &Path) -> io::Result<Option<u64>> {
    // A signed word on some machines, and some have the sign bit.
    let kind = rustix::fs::statfs(folder)?.f_type as u32;
    let found = rustix::fs::statvfs(folder)?;
    let free = found.f_bfree.saturating_mul(found.f_frsize);
    Ok((!COMPRESSING.contains(&kind)).then_some(free))
}

/// Drops clean cached pages of a range (len 0: to the end).
///
/// # Errors
/// The kernel's.
pub fn fadvise_dontneed(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::DontNeed)?)
}

/// Bytes of a file that stand in the page cache (`cachestat(2)`, Linux 6.5).
///
/// # Errors
/// ENOSYS on older kernels.
pub fn cached_bytes(file: &File) -> io::Result<u64> {
    const CACHESTAT: libc::c_long = 451;
    // `struct cachestat_range`: offset 0 and length 0 mean the whole file.
    let range = [0u64; 2];
    // `struct cachestat`: cached, dirty, under writeback, evicted, recently evicted; in pages.
    let mut pages = [0u64; 5];
    // SAFETY: both arrays are as long as the structs that the kernel reads and writes.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), pages.as_mut_ptr(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(pages[0] * rustix::param::page_size() as u64) }
}

/// Is there data behind every byte of a range, and no hole? Moves the descriptor's position.
///
/// # Errors
/// The kernel's.
pub fn is_allocated(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(offset)) {
        Ok(hole) => Ok(hole >= offset + len),
        // Beyond the file's end.
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Starts writing a range's dirty pages to disk, without waiting for it.
///
/// # Errors
/// The kernel's.
pub fn sync_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (offset.cast_signed(), len.cast_signed());
    // SAFETY: takes an open descriptor and integers.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a range of a file share the blocks of another file's range (`FICLONERANGE`): whole blocks, in one file system.
///
/// # Errors
/// The kernel's: EOPNOTSUPP, ENOTTY or EXDEV where that cannot be.
pub fn share_range(from: &File, offset: u64, len: u64, to: &File, at: u64) -> io::Result<()> {
    /// `struct file_clone_range`.
    #[repr(C)]
    struct Range {
        from: i64,
        offset: u64,
        len: u64,
        at: u64,
    }
    const FICLONERANGE: libc::c_ulong = 0x4020_940d;
    if len == 0 {
        // To the kernel that is all of it.
        return Ok(());
    }
    let range = Range { from: from.as_raw_fd().into(), offset, len, at };
    // SAFETY: the kernel only reads the struct, which is the one this request takes; both descriptors are open.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE as _, &raw const range) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Locks a range of a file, opened for writing, against every other open file description in whatever process
/// (`F_OFD_SETLK`), without waiting; false where another has locked some of it. Closing the description unlocks it.
///
/// # Errors
/// The kernel's.
pub fn try_lock_range(file: &File, range: std::ops::Range<u64>) -> io::Result<bool> {
    match range_lock(file, libc::F_WRLCK, range) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Undoes [`try_lock_range`].
///
/// # Errors
/// The kernel's.
pub fn unlock_range(file: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    range_lock(file, libc::F_UNLCK, range)
}

fn range_lock(file: &File, kind: libc::c_int, range: std::ops::Range<u64>) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start.cast_signed(),
        l_len: (range.end - range.start).cast_signed(),
        // It must be 0 for these.
        l_pid: 0,
    };
    // SAFETY: the kernel only reads the struct, which is the one this command takes; the descriptor is open.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Device and inode number of an open file: what tells files apart.
///
/// # Errors
/// The kernel's.
pub fn identity(fd: &impl AsFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`), 36 characters.
///
/// # Errors
/// Where /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_seen() {
        let file = tempfile::tempfile_in(".").unwrap();
        file.write_all_at(&[1; 65536], 0).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(is_allocated(&file, 4096, 61440).unwrap());
        punch_hole(&file, 8192, 4096).unwrap();
        assert!(is_allocated(&file, 4096, 4096).unwrap());
        assert!(!is_allocated(&file, 4096, 8192).unwrap());
        assert!(!is_allocated(&file, 1 << 21, 1).unwrap());
    }
}
