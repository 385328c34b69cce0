//! Bits that several processes share through a mapped file, good for one boot.
//!
//! The page cache outlives a process but not a power cut; so the bits count only for the boot they
//! were set in, and are cleared by whoever opens them after another.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// Bytes before the bits: magic (8), count (8), boot id (36), zeros.
const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"hoistbm1";

/// A mapped array of bits.
#[derive(Debug)]
pub struct SharedBits {
    map: NonNull<libc::c_void>,
    len: usize,
    bits: u64,
}

/// Has the file system take room for all of an empty file.
fn allocate(file: &mut File, len: usize) -> io::Result<()> {
    match rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, len as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => io::copy(&mut io::repeat(0).take(len as u64), file).map(drop),
        other => Ok(other?),
    }
}

// SAFETY: the mapping is plain memory accessed only through atomics, owned until drop.
unsafe impl Send for SharedBits {}
// SAFETY: as above.
unsafe impl Sync for SharedBits {}

impl SharedBits {
    /// Opens or makes the file for `bits` bits; they are all clear if it is of another boot or shape.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path, bits: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // Two openers must not both find the file stale and clear it, one after the other's first set.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        let (len, wanted) = (length(bits), header_of(bits)?);
        let mut header = Vec::new();
        Read::by_ref(&mut file).take(HEADER as u64).read_to_end(&mut header)?;
        if header != wanted || file.metadata()?.len() != len as u64 {
            file.set_len(0)?;
            file.set_len(len as u64)?;
            // A hole that finds no room when it is written to would end the process with a SIGBUS.
            allocate(&mut file, len)?;
            file.rewind()?;
            file.write_all(&wanted)?;
        }
        // The mapping keeps the open file alive, and with it a lock that nobody gives back.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock)?;
        Self::map(&file, len, bits)
    }

    /// Opens the bits as others have them; None where there are none of this shape for this boot.
    ///
    /// # Errors
    /// The file system's.
    pub fn open_existing(path: &Path, bits: u64) -> io::Result<Option<Self>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut header = Vec::new();
        Read::by_ref(&mut file).take(HEADER as u64).read_to_end(&mut header)?;
        let len = length(bits);
        if header != header_of(bits)? || file.metadata()?.len() != len as u64 {
            return Ok(None);
        }
        Self::map(&file, len, bits).map(Some)
    }

    fn map(file: &File, len: usize, bits: u64) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping of a file that is `len` bytes long; nobody truncates it
        // while it has this header.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let map = NonNull::new(map).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { map, len, bits })
    }

    fn word(&self, i: u64) -> &AtomicU64 {
        assert!(i < self.bits, "bit {i} of {}", self.bits);
        // SAFETY: in bounds by the assertion; aligned as HEADER is a multiple of 8 and maps are
        // page-aligned; all access is atomic.
        unsafe { &*self.map.as_ptr().cast::<u8>().add(HEADER + (i / 64) as usize * 8).cast::<AtomicU64>() }
    }

    /// Is bit `i` set?
    pub fn get(&self, i: u64) -> bool {
        self.word(i).load(Ordering::Acquire) >> (i % 64) & 1 == 1
    }

    /// Clears bit `i`.
    pub fn clear(&self, i: u64) {
        self.word(i).fetch_and(!(1 << (i % 64)), Ordering::AcqRel);
    }

    /// Sets bit `i`; true if it was clear.
    pub fn set(&self, i: u64) -> bool {
        self.word(i).fetch_or(1 << (i % 64), Ordering::AcqRel) >> (i % 64) & 1 == 0
    }

    /// How many are set.
    pub fn count_set(&self) -> u64 {
        let words = (0..self.bits).step_by(64);
        words.map(|i| u64::from(self.word(i).load(Ordering::Acquire).count_ones())).sum()
    }
}

fn length(bits: u64) -> usize {
    HEADER + (bits.div_ceil(64) as usize) * 8
}

fn header_of(bits: u64) -> io::Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&bits.to_le_bytes());
    let boot = crate::file::boot_id()?;
    let boot = boot.as_bytes();
    header[16..16 + boot.len().min(48)].copy_from_slice(&boot[..boot.len().min(48)]);
    Ok(header)
}

impl Drop for SharedBits {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_openers_share_and_another_shape_starts_clear() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bits");
        let (a, b) = (SharedBits::open(&path, 130).unwrap(), SharedBits::open(&path, 130).unwrap());
        assert!(a.set(129) && !b.set(129) && b.get(129) && !b.get(128));
        assert_eq!(b.count_set(), 1);
        assert!(SharedBits::open_existing(&path, 130).unwrap().unwrap().get(129));
        assert!(SharedBits::open_existing(&path, 131).unwrap().is_none());
        assert!(SharedBits::open_existing(&dir.path().join("none"), 131).unwrap().is_none());
        drop((a, b));
        assert_eq!(SharedBits::open(&path, 131).unwrap().count_set(), 0);
    }

    /// On a full disk whoever set a bit in a hole would be killed.
    #[test]
    fn room_is_taken_for_all_bits_at_once() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("bits");
        SharedBits::open(&path, 1 << 20).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.blocks() * 512 >= meta.len(), "{} of {}", meta.blocks() * 512, meta.len());
    }
}
