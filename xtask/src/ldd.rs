//! Lists the shared libraries of a program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::output;

/// The shared libraries of a program and its interpreter; `None` for a static program, for which `ldd` fails.
///
/// # Errors
/// A library is missing.
pub fn libraries(program: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(listed) = output(Command::new("ldd").arg(program)) else {
        return Ok(None);
    };
    if listed.contains("not found") {
        bail!("{} misses a shared library:\n{listed}", program.display());
    }
    Ok(Some(paths(&listed)))
}

/// The paths in the output of `ldd`: `name => path (address)`, or `path (address)`.
fn paths(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_interpreter_are_read_from_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib/x86_64-linux-gnu/libmnl.so.0",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths(text), expected.map(PathBuf::from));
        for none in ["\tnot a dynamic executable\n", "\tstatically linked\n"] {
            assert_eq!(paths(none), Vec::<PathBuf>::new());
        }
    }
}
