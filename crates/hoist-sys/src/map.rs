//! A file's bytes in memory, read as they are needed and given back under pressure by the kernel itself.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A whole file, mapped.
///
/// For files that are never changed once they have their name (written aside and renamed, removed by
/// unlinking): another writer could change what a reader holds a reference to, a truncation ends this
/// process with SIGBUS.
#[derive(Debug)]
pub struct FileMap {
    /// None for an empty file, which can't be mapped.
    start: Option<NonNull<u8>>,
    len: usize,
}

// SAFETY: the mapping is only read, and unmapped by its one owner.
unsafe impl Send for FileMap {}
// SAFETY: as above.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps a file as long as it is now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Self { start: None, len });
        }
        // SAFETY: a fresh mapping, wherever the kernel likes, of a file that is `len` bytes long.
        let map = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)?
        };
        let start = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { start: Some(start), len })
    }

    /// Has its pages count as this process's memory no more, until they are read again: then they come from the page
    /// cache, or from the disk.
    pub fn give_back(&self) {
        if let Some(start) = self.start {
            // SAFETY: our own mapping, of a file: whoever reads it now or later is given the same bytes again.
            let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), self.len, Advice::LinuxDontNeed) };
        }
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.start {
            None => &[],
            // SAFETY: mapped readable until drop; the type's contract has it that nobody changes the file.
            Some(start) => unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len) },
        }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // SAFETY: our own mapping; no reference into it outlives `self`.
            let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn shows_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(FileMap::of(&file).unwrap().is_empty());
        file.write_all(b"some bytes").unwrap();
        assert_eq!(&FileMap::of(&file).unwrap()[..], b"some bytes");
    }
}
