//! The archive of the Helm chart, with the same bytes each time. `helm package` would write the times of the files
//! into it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use crate::shell::root;

/// The chart, relative to the root.
const CHART: &str = "deploy/chart";

/// The directory within the archive, which is the chart's name.
const NAME: &str = "probe-handler";

/// The archive; `time` is the modification time of its files.
///
/// # Errors
/// The chart can't be read.
pub fn archive(time: i64) -> Result<Vec<u8>> {
    of_directory(&root().join(CHART), time)
}

fn of_directory(directory: &Path, time: i64) -> Result<Vec<u8>> {
    let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    let mut paths = files(directory)?;
    // Helm requires the chart's own file first.
    paths.sort_by_key(|path| (!path.ends_with("Chart.yaml"), path.clone()));
    for path in paths {
        // Links to files of deploy/ become files.
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = Path::new(NAME).join(path.strip_prefix(directory)?);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(time).context("a time before 1970")?);
        tar.append_data(&mut header, name, &content[..])?;
    }
    Ok(tar.into_inner()?.finish()?)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn read(archive: &[u8]) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(GzDecoder::new(archive));
        tar.entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("entry");
                let path = entry.path().expect("path").display().to_string();
                assert!(entry.header().entry_type().is_file(), "{path}");
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                (path, text)
            })
            .collect()
    }

    #[test]
    fn links_become_files_and_the_bytes_are_reproducible() {
        let one = archive(1).expect("archive");
        assert_eq!(one, archive(1).expect("archive"));
        let files = read(&one);
        assert!(files["probe-handler/Chart.yaml"].contains("name: probe-handler"));
        assert!(files["probe-handler/files/alerts.yaml"].contains("ProbeHandlerDown"));
    }

    #[test]
    fn the_chart_has_the_version_of_the_programs() {
        let files = read(&archive(1).expect("archive"));
        let version = env!("CARGO_PKG_VERSION");
        for field in ["version", "appVersion"] {
            let line = format!("\n{field}: {version}\n");
            assert!(files["probe-handler/Chart.yaml"].contains(&line), "{field}");
        }
    }
}
