//! Reads a directory of manifests: each file once per change, then combines them all.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use pods::manifest;
use pods::mesh::annotation;
use pods::parse::{ParsedPod, parse_pod};
use pods::scope::Selection;
use pods::select::{NotServed, SelectedPod};

/// Annotation with the path of the pod's network namespace; honoured in manifests of a directory only.
pub const NETNS: &str = "probe-handler.io/netns";
/// Maximum size of a manifest file in bytes; larger ones are not read.
pub const MAX_FILE_LEN: u64 = 4 << 20;
/// A file written this recently may change again without a new time stamp, because the kernel's
/// clock for files ticks every 1 to 10 ms.
const RACY: Duration = Duration::from_millis(100);
/// A file written this recently may be incomplete: a program that writes in place, such as `cp`, truncates it first.
const BEING_WRITTEN: Duration = Duration::from_millis(80);
/// The problem of a file that can no longer be parsed completely.
const AS_LAST_KNOWN: &str = "the pods that it contained before are still served";

/// Distinguishes a file or directory from another one that replaced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    /// The identity of the file or directory at `path`, following symlinks.
    pub fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
        }
    }
}

/// Detects whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    identity: Identity,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            identity: metadata.into(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The result of a scan.
#[derive(Debug, Default)]
pub struct Scan {
    /// All pods, in the order of file names and documents, without duplicates.
    pub pods: Vec<Arc<SelectedPod>>,
    /// All problems, each beginning with the name of its file.
    pub problems: Vec<String>,
    /// How many files were read.
    pub read: usize,
    /// Whether a file may be half written and must be read again soon.
    pub unfinished: bool,
}

/// Scans a directory repeatedly.
pub struct Scanner {
    path: PathBuf,
    selection: Selection,
    files: BTreeMap<OsString, Parsed>,
    /// Whether the last scan succeeded: if it did and nothing has changed since, the scan reports nothing.
    settled: bool,
    /// [`BEING_WRITTEN`].
    pub(super) being_written: Duration,
}

/// A file as it was last read.
#[derive(Default)]
struct Parsed {
    /// `None`: the next scan reads the file again.
    stamp: Option<Stamp>,
    identity: Option<Identity>,
    /// Each with its place in the file.
    pods: Vec<(String, FilePod)>,
    /// Pods that the file had before, if the part that can't be parsed now may be one of them.
    kept: Vec<FilePod>,
    problems: Vec<String>,
    /// Whether the part that can't be parsed may be a pod.
    garbled: bool,
    /// Whether the file was written at most [`BEING_WRITTEN`] ago.
    fresh: bool,
}

/// A pod of a file.
#[derive(Clone)]
struct FilePod {
    parsed: ParsedPod,
    selected: Arc<SelectedPod>,
}

impl FilePod {
    fn new(parsed: ParsedPod, selection: &Selection) -> Self {
        let selected = Arc::new(parsed.select(selection));
        Self { parsed, selected }
    }

    fn set_selection(&mut self, selection: &Selection) {
        self.selected = Arc::new(self.parsed.select(selection));
    }
}

impl Parsed {
    /// The content to use for a file whose previous content is `old`.
    fn after(mut self, old: Self) -> Self {
        let had = old.pods.len() + old.kept.len();
        // The file may be half written, so its old content is used. A file that replaced another one is
        // complete.
        if self.fresh && had > 0 && self.identity == old.identity {
            return Self {
                stamp: None,
                fresh: true,
                ..old
            };
        }
        if self.garbled && had > 0 {
            let before = old.pods.into_iter().map(|(_, pod)| pod).chain(old.kept);
            self.kept = before.filter(|pod| pod.parsed.pod.is_some()).collect();
            self.problems.push(AS_LAST_KNOWN.to_owned());
        }
        self
    }
}

impl Scanner {
    /// A scanner of `path` that has not scanned yet.
    pub fn new(path: PathBuf, selection: Selection) -> Self {
        Self {
            path,
            selection,
            files: BTreeMap::new(),
            settled: false,
            being_written: BEING_WRITTEN,
        }
    }

    /// The daemon's settings have changed. The next scan reads all files again, because their problems depend on the settings
    /// too; the known pods of files that it can't read are selected again here.
    pub fn set_selection(&mut self, selection: Selection) {
        self.selection = selection;
        for file in self.files.values_mut() {
            file.stamp = None;
            let pods = file.pods.iter_mut().map(|(_, pod)| pod);
            for pod in pods.chain(&mut file.kept) {
                pod.set_selection(&selection);
            }
        }
    }

    /// Scans the directory and reads the files that have changed since the last scan. Returns `None` if nothing
    /// has changed.
    ///
    /// # Errors
    /// The directory can't be read. The known pods stay; the next successful scan returns them.
    pub fn scan(&mut self) -> io::Result<Option<Scan>> {
        let was_settled = std::mem::replace(&mut self.settled, false);
        let mut files = BTreeMap::new();
        let mut read = 0;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !is_manifest(Path::new(&name)) {
                continue;
            }
            let path = self.path.join(&name);
            let unchanged = self.files.get(&name).and_then(|old| old.stamp);
            match fs::metadata(&path) {
                Ok(metadata) if unchanged == Some(Stamp::from(&metadata)) => {
                    // Moves the old content only after all files are read, so that an earlier error does not lose it.
                    let _ = files.insert(name, None);
                    continue;
                }
                // The file was removed after the directory was listed; a dangling symlink still exists.
                Err(_) if fs::symlink_metadata(&path).is_err() => continue,
                _ => {}
            }
            read += 1;
            let content = self.parse(&path);
            let _ = files.insert(name, Some(content));
        }
        self.settled = true;
        // Every file that was not read again existed before under the same name.
        if was_settled && read == 0 && files.len() == self.files.len() {
            return Ok(None);
        }
        self.files = files
            .into_iter()
            .filter_map(|(name, content)| {
                let content = match (content, self.files.remove(&name)) {
                    (Some(new), Some(old)) => new.after(old),
                    (new, old) => new.or(old)?,
                };
                Some((name, content))
            })
            .collect();
        Ok(Some(self.put_together(read)))
    }

    fn parse(&self, path: &Path) -> Parsed {
        let mut content = Parsed::default();
        match read(path) {
            Ok(Contents {
                text,
                stamp,
                identity,
                age,
            }) => {
                content.identity = Some(identity);
                content.fresh = age.is_some_and(|age| age <= self.being_written);
                let manifest = manifest::parse(&text);
                content.stamp = stamp;
                content.garbled = manifest.garbled || text.trim().is_empty();
                content.problems = manifest.problems;
                for (place, pod) in manifest.pods {
                    self.add(place, &pod, &mut content);
                }
            }
            Err(problem) => {
                content.garbled = true;
                content.problems.push(problem);
            }
        }
        content
    }

    fn add(&self, place: String, pod: &Pod, content: &mut Parsed) {
        let mut parsed = parse_pod(pod);
        if parsed.never == Some(NotServed::NoName) {
            let problem = format!("{place}: {}", NotServed::NoName);
            content.problems.push(problem);
            return;
        }
        if let (Some(served), Some(netns)) = (&mut parsed.pod, annotation(pod, NETNS)) {
            if netns.starts_with('/') {
                Arc::make_mut(served).netns = Some(netns.into());
            } else {
                parsed.warnings.push(format!(
                    "annotation {NETNS} is {netns:?}, must be an absolute path; ignored"
                ));
            }
        }
        let read = FilePod::new(parsed, &self.selection);
        let selected = &read.selected;
        let id = &selected.id;
        let mistakes = selected
            .skipped
            .iter()
            .filter(|alone| alone.why.is_mistake())
            .map(|alone| format!("{place}: {id}: {alone}"));
        let warnings = selected
            .warnings
            .iter()
            .map(|warning| format!("{place}: {id}: {warning}"));
        content.problems.extend(warnings.chain(mistakes));
        content.pods.push((place, read));
    }

    /// Combines all files. If pods have the same name or the same UID, the first one is used.
    fn put_together(&self, read: usize) -> Scan {
        let mut scan = Scan {
            read,
            unfinished: self
                .files
                .values()
                .any(|file| file.fresh && file.stamp.is_none()),
            ..Scan::default()
        };
        let mut names = HashMap::new();
        let mut uids = HashMap::new();
        for (file, content) in &self.files {
            let file = file.to_string_lossy();
            let problems = content.problems.iter();
            scan.problems
                .extend(problems.map(|problem| format!("{file}: {problem}")));
            for (place, FilePod { selected, .. }) in &content.pods {
                let id = &selected.id;
                let here = format!("{file}: {place}");
                let taken = match (names.get(&(&id.namespace, &id.name)), uids.get(&id.uid)) {
                    (Some(first), _) => Some(format!("is already in {first}")),
                    (None, Some(first)) => Some(format!("has the UID of the pod in {first}")),
                    (None, None) => None,
                };
                if let Some(taken) = taken {
                    scan.problems
                        .push(format!("{here}: {id} {taken}; this one is ignored"));
                    continue;
                }
                let _ = names.insert((&id.namespace, &id.name), here.clone());
                let _ = uids.insert(&id.uid, here);
                scan.pods.push(Arc::clone(selected));
            }
        }
        // Kept pods come last, and only if no other file defines them.
        for FilePod { selected, .. } in self.files.values().flat_map(|file| &file.kept) {
            let id = &selected.id;
            let taken =
                names.contains_key(&(&id.namespace, &id.name)) || uids.contains_key(&id.uid);
            if !taken {
                scan.pods.push(Arc::clone(selected));
            }
        }
        scan
    }
}

/// Whether a file is a manifest: by its extension, and not if its name begins with a dot (editors' temporary files, and
/// the internal files of a mounted ConfigMap).
fn is_manifest(name: &Path) -> bool {
    let extension = name.extension().and_then(|extension| extension.to_str());
    !name.as_os_str().as_encoded_bytes().starts_with(b".")
        && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The content of a file.
struct Contents {
    text: String,
    /// `None` if it is not reliable.
    stamp: Option<Stamp>,
    identity: Identity,
    /// How long ago the file was written; `None` if its time stamp is in the future.
    age: Option<Duration>,
}

/// Reads the file at `path`, or returns its problem.
fn read(path: &Path) -> Result<Contents, String> {
    let unreadable = |error: io::Error| format!("can't be read: {error}");
    let check = |metadata: &Metadata| {
        if !metadata.is_file() {
            Err("is not a regular file".to_owned())
        } else if metadata.len() > MAX_FILE_LEN {
            Err(too_large())
        } else {
            Ok(())
        }
    };
    check(&fs::metadata(path).map_err(unreadable)?)?;
    let file = File::options()
        .read(true)
        // Does not wait for a writer if the file has become a FIFO.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check(&metadata)?;
    let mut bytes = Vec::new();
    let _ = file
        .take(MAX_FILE_LEN + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(too_large());
    }
    let text = String::from_utf8(bytes).map_err(|error| format!("is not UTF-8 text: {error}"))?;
    let written = metadata.modified().ok();
    let age = written.and_then(|at| SystemTime::now().duration_since(at).ok());
    let settled = age.is_some_and(|age| age > RACY);
    Ok(Contents {
        text,
        stamp: settled.then(|| Stamp::from(&metadata)),
        identity: (&metadata).into(),
        age,
    })
}

fn too_large() -> String {
    format!("is larger than {} MiB, not read", MAX_FILE_LEN >> 20)
}
