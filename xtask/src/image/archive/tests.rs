//! Tests that read the archive as a container runtime does.

use std::io::Read;

use flate2::read::GzDecoder;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde_json::Value;

use super::*;

/// An ELF program without code, with one segment of type `segment`.
fn program(machine: u16, segment: u32) -> Vec<u8> {
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(3u16.to_le_bytes()); // ET_DYN, as static-pie is
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(segment.to_le_bytes());
    elf.extend(4u32.to_le_bytes());
    for word in [0u64, 0, 0, 120, 120, 8] {
        elf.extend(word.to_le_bytes());
    }
    elf
}

fn static_program() -> Vec<u8> {
    program(object::elf::EM_X86_64, object::elf::PT_LOAD)
}

fn file(path: &str, content: &[u8]) -> File {
    File {
        path: path.into(),
        content: content.into(),
    }
}

fn image() -> Image {
    let labels =
        ["a", "b", "c", "d", "e", "f"].map(|name| (name.to_owned(), format!("label {name}")));
    Image {
        name: "registry.example/some/thing:1.2".parse().expect("a name"),
        machine: Machine::X86_64,
        binaries: vec![file("thing", &static_program())],
        tools: Vec::new(),
        extra: vec![file("etc/deep/b", b"b"), file("etc/a", b"a")],
        entrypoint: vec!["/thing".into(), "serve".into()],
        labels: labels.into(),
        created: 1_700_000_000,
    }
}

/// A tar's entries: path, type, mode and content; owner and time are checked on the way.
fn entries(tar: &[u8]) -> Vec<(String, tar::EntryType, u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("a tar").map(|entry| {
        let mut entry = entry.expect("an entry");
        let header = entry.header();
        assert_eq!(header.uid().expect("uid"), 0);
        assert_eq!(header.gid().expect("gid"), 0);
        assert_eq!(header.mtime().expect("time"), 1_700_000_000);
        let (kind, mode) = (header.entry_type(), header.mode().expect("mode"));
        let path = entry.path().expect("path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        (path, kind, mode, content)
    });
    entries.collect()
}

struct Archive {
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    fn of(image: &Image) -> Self {
        let (archive, _) = archive(image).expect("an archive");
        let files = entries(&archive).into_iter();
        Self {
            files: files
                .filter(|(_, kind, ..)| kind.is_file())
                .map(|(path, _, _, content)| (path, content))
                .collect(),
        }
    }

    /// The blob that a descriptor refers to; checks its digest and size.
    fn blob(&self, descriptor: &Descriptor) -> &[u8] {
        let content = &self.files[&blob_path(descriptor)];
        assert_eq!(descriptor.size(), content.len() as u64);
        assert_eq!(descriptor.digest().digest(), sha256(content));
        content
    }

    fn index(&self) -> ImageIndex {
        ImageIndex::from_reader(&self.files["index.json"][..]).expect("an index")
    }

    fn manifest(&self) -> ImageManifest {
        ImageManifest::from_reader(self.blob(&self.index().manifests()[0])).expect("a manifest")
    }

    fn config(&self) -> ImageConfiguration {
        ImageConfiguration::from_reader(self.blob(self.manifest().config()))
            .expect("a configuration")
    }

    fn layer(&self) -> Vec<u8> {
        let mut layer = Vec::new();
        let manifest = self.manifest();
        let compressed = self.blob(&manifest.layers()[0]);
        GzDecoder::new(compressed)
            .read_to_end(&mut layer)
            .expect("gzip");
        layer
    }
}

#[test]
fn every_digest_and_size_is_that_of_the_blob() {
    let read = Archive::of(&image());
    assert_eq!(read.manifest().layers().len(), 1);
    let diff_id = format!("sha256:{}", sha256(&read.layer()));
    assert_eq!(read.config().rootfs().diff_ids(), &[diff_id]);
    let layout: Value = serde_json::from_slice(&read.files["oci-layout"]).expect("JSON");
    assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    // Manifest, configuration and layer, and no unreferenced blob.
    let blobs = read.files.keys().filter(|path| path.starts_with("blobs/"));
    assert_eq!(blobs.count(), 3);
}

#[test]
fn containerd_finds_the_name_and_the_machine_in_the_index() {
    let index = Archive::of(&image()).index();
    let [manifest] = &index.manifests()[..] else {
        panic!("one manifest, not {}", index.manifests().len());
    };
    let annotations = manifest.annotations().as_ref().expect("annotations");
    assert_eq!(
        annotations["io.containerd.image.name"],
        "registry.example/some/thing:1.2"
    );
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "1.2");
    let platform = manifest.platform().as_ref().expect("a platform");
    assert_eq!(platform.architecture().to_string(), "amd64");
    assert_eq!(platform.os().to_string(), "linux");
}

#[test]
fn docker_finds_the_same_blobs_as_containerd() {
    let read = Archive::of(&image());
    let docker: Value = serde_json::from_slice(&read.files["manifest.json"]).expect("JSON");
    let manifest = read.manifest();
    let expected = serde_json::json!([{
        "Config": blob_path(manifest.config()),
        "RepoTags": ["registry.example/some/thing:1.2"],
        "Layers": [blob_path(&manifest.layers()[0])],
    }]);
    assert_eq!(docker, expected);
}

#[test]
fn the_configuration_has_entry_point_and_labels() {
    let config = Archive::of(&image()).config();
    assert_eq!(config.architecture().to_string(), "amd64");
    assert_eq!(config.created().as_deref(), Some("2023-11-14T22:13:20Z"));
    let run = config.config().as_ref().expect("what to run");
    assert_eq!(
        run.entrypoint().as_deref(),
        Some(&["/thing".into(), "serve".into()][..])
    );
    let labels = run.labels().as_ref().expect("labels");
    assert_eq!(labels.len(), 6);
    assert_eq!(labels["c"], "label c");
}

#[test]
fn programs_are_executable_and_other_files_are_not() {
    use tar::EntryType::{Directory, Regular};
    let layer = Archive::of(&image()).layer();
    let found: Vec<_> = entries(&layer)
        .into_iter()
        .map(|(path, kind, mode, content)| (path, kind, mode, content.len()))
        .collect();
    let expected = [
        ("etc/", Directory, 0o755, 0),
        ("etc/a", Regular, 0o644, 1),
        ("etc/deep/", Directory, 0o755, 0),
        ("etc/deep/b", Regular, 0o644, 1),
        ("thing", Regular, 0o755, static_program().len()),
    ];
    assert_eq!(
        found,
        expected.map(|(path, kind, mode, size)| (path.to_owned(), kind, mode, size))
    );
}

#[test]
fn the_archive_does_not_depend_on_the_order_of_files() {
    let (first, written) = archive(&image()).expect("an archive");
    let mut other = image();
    other.extra.reverse();
    // Labels pass through hash maps, whose order differs from map to map.
    for _ in 0..8 {
        let (second, again) = archive(&other).expect("an archive");
        assert_eq!(written, again);
        assert!(first == second, "the archives differ");
    }
}

#[test]
fn another_file_or_time_gives_another_digest() {
    let (_, written) = archive(&image()).expect("an archive");
    let mut other = image();
    other.extra[0].content.push(b'!');
    let (_, changed) = archive(&other).expect("an archive");
    assert_ne!(written.manifest, changed.manifest);
    let mut other = image();
    other.created += 1;
    let (_, changed) = archive(&other).expect("an archive");
    assert_ne!(written.manifest, changed.manifest);
}

#[track_caller]
fn refused(image: &Image, because: &str) {
    let error = archive(image).expect_err("this can't be an image");
    let error = format!("{error:#}");
    assert!(error.contains(because), "{error}");
}

#[test]
fn a_program_that_would_not_start_is_refused() {
    let with = |content: &[u8]| Image {
        binaries: vec![file("thing", content)],
        tools: Vec::new(),
        ..image()
    };
    // This test's own program: `cargo test` links dynamically.
    let dynamic = std::env::current_exe()
        .and_then(fs::read)
        .expect("this program");
    if Machine::X86_64.name() == std::env::consts::ARCH {
        refused(&with(&dynamic), "it is dynamically linked");
    }
    let interpreted = program(object::elf::EM_X86_64, object::elf::PT_INTERP);
    refused(&with(&interpreted), "PT_INTERP");
    refused(
        &with(&program(object::elf::EM_AARCH64, object::elf::PT_LOAD)),
        "not for x86_64",
    );
    refused(&with(b"#!/bin/sh\n"), "not an ELF program");
    refused(&with(&static_program()[..100]), "");
}

#[test]
fn paths_outside_the_image_or_given_twice_are_refused() {
    for path in ["/etc/a", "../a", "a//b", "a/./b", ""] {
        let extra = vec![file(path, b"")];
        refused(
            &Image { extra, ..image() },
            "not a plain path relative to the image's root",
        );
    }
    let extra = vec![file("thing", b"")];
    refused(&Image { extra, ..image() }, "twice");
}

#[test]
fn an_archive_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("new/image.tar");
    let written = write(&image(), &path).expect("written");
    assert_eq!(fs::read(&path).expect("archive").len(), written.size);
    let names: Vec<_> = fs::read_dir(directory.path().join("new"))
        .expect("directory")
        .collect();
    assert_eq!(names.len(), 1, "nothing else is left there");
}
