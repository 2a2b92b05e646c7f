//! The daemon's heap: one for all threads, which returns freed memory to the node.
//!
//! Pods are added and removed for months, and the data of each pod is many small allocations. glibc's heap keeps every page
//! with a remaining allocation: with 1,000 pods of which ten were replaced each second it grew by a tenth, and did not shrink
//! when all pods were removed. jemalloc's heap did not grow, and shrank (docs/benchmarks.md).

/// jemalloc is built for one page size, and x86_64 has only one. On other architectures a node may have larger pages than
/// the build machine, and the program would not start there. The demo's build leaves it out (feature `jemalloc`), because
/// jemalloc takes a fifth of the time of a development build.
#[cfg(all(target_arch = "x86_64", feature = "jemalloc"))]
mod jemalloc {
    #[global_allocator]
    static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// Options of jemalloc, in a variable that the library reads (jemalloc(3), "TUNING"). One arena is enough because usually
    /// only one of our threads is busy. Pages are returned at once: by default they are returned after a delay, but only at a
    /// later allocation, which may never come.
    // SAFETY: name and type are those that jemalloc expects, with the prefix that tikv-jemallocator builds it with: a
    // reference to an array is a pointer to its first byte, and the text ends with a zero byte.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static MALLOC_CONF: &[u8; 44] = b"narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0\0";
}

/// If the heap is glibc's, makes all threads share one heap; by default glibc gives each thread its own to avoid contention.
/// Call it before other threads exist.
pub(crate) fn use_one() {
    #[cfg(all(
        target_env = "gnu",
        not(all(target_arch = "x86_64", feature = "jemalloc"))
    ))]
    // SAFETY: sets an option of the allocator, with plain integers. mallopt(3) only has to be called before other threads
    // allocate; a later call would only have less effect.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
