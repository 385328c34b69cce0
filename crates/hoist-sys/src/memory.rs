//! Memory that was freed, and that the allocator keeps.

/// Gives back to the kernel what this process has freed, also amid what is still in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number and locks the heap as malloc does; no memory in use is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}
