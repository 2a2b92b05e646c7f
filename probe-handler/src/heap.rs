//! The daemon's heap: one for all threads, and what is freed goes back to the node.
//!
//! Pods come and go for months, and what each is known by is many small pieces. glibc's heap keeps the pages that any
//! piece is left on: with 1,000 pods of which ten were replaced each second it grew by a tenth, and stayed as it was
//! when all pods had gone. jemalloc's neither grows nor stays (docs/benchmarks.md).

/// jemalloc is built for one page size, which on x86_64 is the only one. Elsewhere a node may have larger pages than
/// the machine that built the program, and it would not start there.
#[cfg(target_arch = "x86_64")]
mod jemalloc {
    #[global_allocator]
    static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// The program's own options, in a variable that the library looks for (jemalloc(3), "TUNING"). One arena: of our
    /// threads one is busy at a time as a rule. Pages go back at once: those that wait for a while, as by default,
    /// wait for ever where nobody allocates any more.
    // SAFETY: the name is jemalloc's, with the prefix that tikv-jemallocator builds it with, and so is the type: a
    // reference to an array is a pointer to its first byte, and the text ends in a zero.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static MALLOC_CONF: &[u8; 44] = b"narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0\0";
}

/// Has all threads allocate from one heap where that is glibc's, which gives each thread one of its own, against
/// waiting for each other. To be called before there are threads.
pub(crate) fn use_one() {
    #[cfg(all(target_env = "gnu", not(target_arch = "x86_64")))]
    // SAFETY: a setting of the allocator, plain integers; mallopt(3) asks for nothing but to be called before
    // other threads allocate, which costs no more than the effect.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
