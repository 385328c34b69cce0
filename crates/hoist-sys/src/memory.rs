//! Memory that was freed, and that the allocator keeps.

/// Gives back to the kernel what this process has freed, also amid what is still in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number and locks the heap as malloc does; no memory in use is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has all threads share two heaps, as each but the first keeps some of what was freed at its end. To be called before
/// there are many threads; the usual number is eight for each processor.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
