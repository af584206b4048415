//! Memory of processes that live for months, of which a machine may have hundreds: each keeps what it needs, and no more.
//!
//! The allocator is made for programs that allocate all the time. It gives each thread an arena of its own, in which what was freed stays; and
//! as soon as a large block was freed, it takes others of that size from an arena, too, where they are filled with zeros first. So 16 MiB in
//! which the kernel's requests are received became 16 MiB of memory, of which some ten KiB are ever used.

/// Threads that allocate at the same time without waiting for each other.
const ARENAS: libc::c_int = 2;
/// Blocks from so many bytes on come from the system and go back to it. What is fetched and decoded at once is smaller.
const FROM_SYSTEM: libc::c_int = 4 << 20;

/// Keeps the allocator from growing without need. To be called before a process has a second thread.
pub fn spare() {
    for (option, value) in [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, FROM_SYSTEM)] {
        // SAFETY: mallopt(3) takes no pointers. What it refuses stays as it was.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Gives back what the allocator keeps: making the tables of an image, or fetching much of it, takes many times what serving it does.
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}
