//! Memory that outlives a process: words in a file without a name, for whoever has its descriptor.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};

/// Such memory, mapped. The first word says what it is.
#[derive(Debug)]
pub(crate) struct Outliving {
    file: File,
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping is only accessed through atomics, and unmapped by its owner.
unsafe impl Send for Outliving {}
// SAFETY: as above.
unsafe impl Sync for Outliving {}

impl Outliving {
    /// So many words: `magic`, and then zeros. The kernel shows it as `name`.
    ///
    /// # Errors
    /// The kernel's: no memory, too many open files.
    pub fn new(name: &CStr, count: usize, magic: u64) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(count as u64 * 8)?;
        // A shorter file under a mapping would be a SIGBUS.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let this = Self::map(file, count)?;
        this.words()[0].store(magic, Ordering::Release);
        Ok(this)
    }

    /// What another process made with [`Outliving::new`].
    ///
    /// # Errors
    /// InvalidData where it is of another length or begins with another word; or the kernel's.
    pub fn of(file: File, count: usize, magic: u64) -> io::Result<Self> {
        let other = || io::Error::from(io::ErrorKind::InvalidData);
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        if !sealed || file.metadata()?.len() != count as u64 * 8 {
            return Err(other());
        }
        let this = Self::map(file, count)?;
        if this.words()[0].load(Ordering::Acquire) == magic { Ok(this) } else { Err(other()) }
    }

    fn map(file: File, count: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping, as long as the file, whose length is sealed.
        let map = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), count * 8, access, MapFlags::SHARED, &file, 0)?
        };
        let words = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { file, words, count })
    }

    /// All of it.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned words, zero at first, mapped until drop; only accessed atomically, and by
        // the kernel's writes to what it was told to read into.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Has the kernel keep the first words in memory, if it can.
    pub fn lock(&self, words: usize) {
        // SAFETY: locks pages of the mapping.
        let _ = unsafe { rustix::mm::mlock(self.words.as_ptr().cast(), words.min(self.count) * 8) };
    }
}

impl AsFd for Outliving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Outliving {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}
