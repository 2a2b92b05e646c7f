//! The kubectl plugin: an archive for each architecture, and the manifest by which krew installs it.
//!
//! The program is linked dynamically: it resolves the name of the API server, and for that the C library loads the libraries of
//! its own system (nsswitch.conf). A static program can't do that on another distribution.

use std::fs;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use crate::dependencies;
use crate::image::{Machine, THIRD_PARTY, program, sha256};
use crate::shell::root;
use crate::static_build::Linking;

/// The package, which is also the name of its program.
pub const PACKAGE: &str = "kubectl-probes";
/// The name of krew's manifest, which must be the plugin's.
pub const KREW: &str = "probes.yaml";
/// The location of the archives; the publisher replaces it. This host can't exist (RFC 6761).
const PLACE: &str = "https://releases.invalid/probe-handler";

/// An archive for a machine.
pub struct Archive {
    /// The machine.
    pub machine: Machine,
    /// Its name.
    pub name: String,
    /// Its bytes, which are the same each time.
    pub content: Vec<u8>,
}

/// Builds the plugin and packs it with its licences; `time` is the modification time of the files.
///
/// # Errors
/// The build fails, or a licence can't be read.
pub fn of_machine(machine: Machine, time: i64) -> Result<Archive> {
    let program = program(PACKAGE, machine, Linking::Dynamic)?;
    let licence = fs::read(root().join("LICENSE")).context("cannot read LICENSE")?;
    let packages = dependencies::shipped(dependencies::PLUGIN)?;
    let others = dependencies::license_texts(&packages, "archive")?;
    let files = [
        (PACKAGE, &program[..], 0o755),
        ("LICENSE", &licence[..], 0o644),
        (THIRD_PARTY, others.as_bytes(), 0o644),
    ];
    Ok(Archive {
        machine,
        name: name(machine),
        content: pack(&files, time)?,
    })
}

/// The name of the archive for a machine.
pub fn name(machine: Machine) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{PACKAGE}-{version}-linux-{}.tar.gz", machine.name())
}

fn pack(files: &[(&str, &[u8], u32)], time: i64) -> Result<Vec<u8>> {
    let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (name, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(u64::try_from(time).context("a time before 1970")?);
        tar.append_data(&mut header, name, *content)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// The manifest for krew.
///
/// # Errors
/// It can't be written.
pub fn krew(archives: &[Archive]) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let platform = |archive: &Archive| {
        let (name, machine) = (&archive.name, archive.machine);
        let files = [PACKAGE, "LICENSE", THIRD_PARTY].map(|file| json!({"from": file, "to": "."}));
        json!({
            "selector": {"matchLabels": {"os": "linux", "arch": machine.oci().to_string()}},
            "uri": format!("{PLACE}/v{version}/{name}"),
            "sha256": sha256(&archive.content),
            "bin": PACKAGE,
            "files": files,
        })
    };
    let manifest = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "probes"},
        "spec": {
            "version": format!("v{version}"),
            "homepage": env!("CARGO_PKG_REPOSITORY"),
            "shortDescription": "Show health probes of pods behind a mesh",
            "description": "Shows the probes that probe-handler's daemons serve on all nodes, their last results, and \
                            what mode observe found.\nIt needs permission to list pods and to port-forward in the \
                            daemons' namespace.\n",
            "platforms": archives.iter().map(platform).collect::<Vec<_>>(),
        },
    });
    Ok(serde_yaml_ng::to_string(&manifest)?.into_bytes())
}

/// Checks that krew's manifest names archives with their digests, which `digest` returns by name.
///
/// # Errors
/// It does not.
pub fn verify_krew(manifest: &[u8], digest: impl Fn(&str) -> Option<String>) -> Result<()> {
    let manifest: Value = serde_yaml_ng::from_slice(manifest).context("no YAML")?;
    let platforms = manifest["spec"]["platforms"].as_array();
    let platforms = platforms.filter(|platforms| !platforms.is_empty());
    for platform in platforms.context("no platform")? {
        let uri = platform["uri"].as_str().context("no uri")?;
        let name = uri.rsplit('/').next().unwrap_or_default();
        let digest = digest(name).with_context(|| format!("{name} is not in the folder"))?;
        ensure!(
            platform["sha256"] == digest,
            "the digest of {name} is {digest}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Archive {
        Archive {
            machine: Machine::X86_64,
            name: name(Machine::X86_64),
            content: b"content".to_vec(),
        }
    }

    #[test]
    fn the_manifest_names_each_archive_with_its_digest() {
        let archive = archive();
        let manifest = krew(std::slice::from_ref(&archive)).expect("a manifest");
        let text = String::from_utf8(manifest.clone()).expect("text");
        assert!(
            text.contains("arch: amd64") && text.contains("bin: kubectl-probes"),
            "{text}"
        );
        let digest = sha256(b"content");
        verify_krew(&manifest, |name| {
            (name == archive.name).then(|| digest.clone())
        })
        .expect("right");
        assert!(verify_krew(&manifest, |_| None).is_err());
        assert!(verify_krew(&manifest, |_| Some("0".to_owned())).is_err());
        assert!(verify_krew(b"spec: {}", |_| None).is_err());
    }

    #[test]
    fn krews_rules_for_texts_hold() {
        let manifest = krew(&[archive()]).expect("a manifest");
        let manifest: Value = serde_yaml_ng::from_slice(&manifest).expect("YAML");
        let short = manifest["spec"]["shortDescription"].as_str().expect("text");
        assert!(short.len() <= 50 && !short.ends_with('.'), "{short}");
        assert!(
            manifest["spec"]["version"]
                .as_str()
                .is_some_and(|text| text.starts_with('v'))
        );
        assert_eq!(
            format!(
                "{}.yaml",
                manifest["metadata"]["name"].as_str().expect("name")
            ),
            KREW
        );
    }
}
