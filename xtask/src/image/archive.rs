//! Writes a container image as one archive; needs neither a container daemon nor a registry.
//!
//! The archive is an OCI image layout that also contains the `manifest.json` of `docker save`, as BuildKit
//! writes it: containerd, podman, skopeo and kind read the layout, Docker reads `manifest.json`, and both
//! refer to the same blobs. Nothing in it depends on the machine, the time or the order of a map, so that
//! the same files give the same digest.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use oci_spec::distribution::Reference;
use oci_spec::image::{
    ANNOTATION_CREATED, ANNOTATION_REF_NAME, ConfigBuilder, Descriptor, HistoryBuilder,
    ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
    OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder, SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::elf::{self, Machine};

/// The annotation of the index from which containerd takes an imported image's name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The contents of an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name, with a tag.
    pub name: Reference,
    /// Its architecture.
    pub machine: Machine,
    /// Programs: mode 0755, statically linked, for [`Image::machine`].
    pub binaries: Vec<File>,
    /// Programs and libraries from a distribution, together with all that they need: mode 0755, not checked
    /// to be static.
    pub tools: Vec<File>,
    /// Files that are not programs: mode 0644.
    pub extra: Vec<File>,
    /// Path of the program within the image, and its arguments.
    pub entrypoint: Vec<String>,
    /// Labels; the manifest also has them as annotations.
    pub labels: BTreeMap<String, String>,
    /// The time of all files and of the image, in seconds since 1970.
    pub created: i64,
}

/// A file within an image, owned by root.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path from the image's root, without a leading slash.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Digests and size of a written archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Digest of the manifest, by which registries and containerd identify the image.
    pub manifest: String,
    /// Digest of the configuration, by which Docker and the kubelet identify it: the image ID.
    pub config: String,
    /// Size of the archive, in bytes.
    pub size: usize,
}

/// Writes the archive to a file, which it replaces atomically.
///
/// # Errors
/// A program that is not static or for another architecture; a path that is not plain or occurs twice; an
/// error of the file system.
pub fn write(image: &Image, path: &Path) -> Result<Written> {
    let (archive, written) = archive(image)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".part");
    fs::write(&partial, &archive)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(written)
}

/// The archive's bytes.
pub fn archive(image: &Image) -> Result<(Vec<u8>, Written)> {
    let tag = image
        .name
        .tag()
        .with_context(|| format!("{} has no tag", image.name))?;
    let created = rfc3339(image.created)?;
    let labels: HashMap<String, String> = image.labels.clone().into_iter().collect();
    let mut blobs = Blobs::default();

    let tar = layer(image)?;
    let diff_id = format!("sha256:{}", sha256(&tar));
    let layer = blobs.add(MediaType::ImageLayerGzip, gzip(&tar)?)?;
    let config = blobs.add_json(
        MediaType::ImageConfig,
        &ImageConfigurationBuilder::default()
            .created(created.clone())
            .architecture(image.machine.oci())
            .os(Os::Linux)
            .config(
                ConfigBuilder::default()
                    .user("0:0")
                    .env(["PATH=/".to_owned()])
                    .entrypoint(image.entrypoint.clone())
                    .working_dir("/")
                    .labels(labels.clone())
                    .build()?,
            )
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids([diff_id])
                    .build()?,
            )
            .history([HistoryBuilder::default()
                .created(created.clone())
                .created_by("cargo xtask image")
                .build()?])
            .build()?,
    )?;
    let manifest = blobs.add_json(
        MediaType::ImageManifest,
        &ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config.clone())
            .layers([layer.clone()])
            .annotations(labels.clone())
            .build()?,
    )?;
    let written = Written {
        manifest: manifest.digest().to_string(),
        config: config.digest().to_string(),
        size: 0,
    };

    let mut described = manifest;
    described.set_annotations(Some(
        [
            (CONTAINERD_NAME, image.name.whole()),
            (ANNOTATION_REF_NAME, tag.to_owned()),
            (ANNOTATION_CREATED, created),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
    ));
    described.set_platform(Some(
        PlatformBuilder::default()
            .architecture(image.machine.oci())
            .os(Os::Linux)
            .build()?,
    ));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([described])
        .build()?;
    let docker = [DockerManifest {
        config: blob_path(&config),
        repo_tags: [image.name.whole()],
        layers: [blob_path(&layer)],
    }];
    let layout = OciLayoutBuilder::default()
        .image_layout_version("1.0.0")
        .build()?;

    let mut archive = Tar::new(image.created);
    for (path, content) in &blobs.0 {
        archive.file(path, 0o644, content)?;
    }
    archive.file("index.json", 0o644, &json(&index)?)?;
    archive.file("manifest.json", 0o644, &json(&docker)?)?;
    archive.file("oci-layout", 0o644, &json(&layout)?)?;
    let archive = archive.finish()?;
    let size = archive.len();
    Ok((archive, Written { size, ..written }))
}

/// `manifest.json`, as `docker save` writes it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: [String; 1],
    layers: [String; 1],
}

/// The image's one layer, uncompressed.
fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    let programs = image.binaries.iter().chain(&image.tools);
    let programs = programs.map(|file| (file, 0o755));
    for (file, mode) in programs.chain(image.extra.iter().map(|file| (file, 0o644))) {
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        if !file.path.split('/').all(plain) {
            bail!(
                "{:?} is not a plain path relative to the image's root",
                file.path
            );
        }
        if files.insert(&file.path, (file, mode)).is_some() {
            bail!("{} occurs twice", file.path);
        }
    }
    for binary in &image.binaries {
        elf::require_static(&binary.content, image.machine)
            .with_context(|| format!("can't put {} into an image", binary.path))?;
    }
    let mut tar = Tar::new(image.created);
    for (path, (file, mode)) in files {
        tar.file(path, mode, &file.content)?;
    }
    tar.finish()
}

/// A tar whose entries differ only in path, mode and content.
struct Tar {
    builder: tar::Builder<Vec<u8>>,
    time: u64,
    directories: Vec<String>,
}

impl Tar {
    fn new(time: i64) -> Self {
        Self {
            builder: tar::Builder::new(Vec::new()),
            time: time.try_into().unwrap_or_default(),
            directories: Vec::new(),
        }
    }

    /// Adds a file, and before it its parent directories that are missing.
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..=end];
            if !self.directories.iter().any(|known| known == directory) {
                self.directories.push(directory.to_owned());
                self.entry(tar::EntryType::Directory, directory, 0o755, &[])?;
            }
        }
        self.entry(tar::EntryType::Regular, path, mode, content)
    }

    fn entry(&mut self, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(content.len() as u64);
        self.builder
            .append_data(&mut header, path, content)
            .with_context(|| format!("cannot add {path}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.builder.into_inner().context("cannot finish the tar")
    }
}

/// Blobs by their path in the archive.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest: Sha256Digest = sha256(&content).parse()?;
        let descriptor = Descriptor::new(kind, content.len() as u64, digest);
        self.0.insert(blob_path(&descriptor), content);
        Ok(descriptor)
    }

    fn add_json(&mut self, kind: MediaType, value: &impl Serialize) -> Result<Descriptor> {
        self.add(kind, json(value)?)
    }
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest().digest())
}

/// JSON with sorted keys, because the specification's types keep labels in hash maps.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let value = serde_json::to_value(value)?;
    Ok(serde_json::to_vec(&value)?)
}

/// Compressed, with neither name nor time in the header.
fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

/// The SHA-256 digest in hexadecimal.
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A time in RFC 3339 format, for example 2026-11-22T19:43:36Z.
pub fn rfc3339(seconds: i64) -> Result<String> {
    let time = jiff::Timestamp::from_second(seconds)
        .with_context(|| format!("{seconds} is not a time in seconds since 1970"))?;
    Ok(time.to_string())
}

#[cfg(test)]
mod tests;
