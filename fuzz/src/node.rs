//! Texts and messages of the kernel, which contain names of cgroups and processes that any user may have
//! chosen.

/// Files of /proc, and names of cgroups.
pub fn proc(data: &[u8]) {
    kernel::fuzzing::replies(data);
    if let Ok(text) = std::str::from_utf8(data) {
        kernel::fuzzing::proc(text);
    }
}
