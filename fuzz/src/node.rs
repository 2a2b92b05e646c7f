//! Texts and messages of the kernel, in which names of cgroups and processes are chosen by others.

/// Files of /proc, and names of cgroups.
pub fn proc(data: &[u8]) {
    kernel::fuzzing::replies(data);
    if let Ok(text) = std::str::from_utf8(data) {
        kernel::fuzzing::proc(text);
    }
}
