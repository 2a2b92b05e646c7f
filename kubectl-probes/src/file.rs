//! Writes a result into a file that only the user can read.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use status_view::output;

/// Writes `content` to the file, or to standard output if `path` is `-`, and prints the file's name.
pub fn write(path: &Path, content: &[u8]) -> ExitCode {
    if path == Path::new("-") {
        return output::print(|out| out.write_all(content));
    }
    match create(path, content) {
        Ok(()) => output::print(|out| writeln!(out, "wrote {}", path.display())),
        Err(error) => output::fail(&format!("cannot write {}: {error}", path.display())),
    }
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
