//! Memory that was needed once goes back to the system.

/// Gives back what the allocator keeps: making the tables of an image takes many times what serving it does, and a mount may
/// live for months.
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}
