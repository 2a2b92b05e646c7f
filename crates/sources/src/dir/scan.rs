//! Reading a directory of manifests: each file once per change, all of them put together.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use pods::manifest::{self, Syntax};
use pods::mesh::annotation;
use pods::parse::{NotServed, ParsedPod, parse_pod};
use pods::scope::Selection;

/// Annotation with the path of the pod's network namespace; honoured in manifests of a directory only.
pub const NETNS: &str = "probe-handler.io/netns";
/// Larger manifest files are not read, bytes.
pub const MAX_FILE_LEN: u64 = 4 << 20;
/// A file written that recently may change again without its time stamp moving on: the kernel's
/// clock for files ticks every 1 to 10 ms.
const RACY: Duration = Duration::from_millis(100);
/// A file written that recently may be half of what it is to be: who writes it in place, as `cp` does, empties it first.
const BEING_WRITTEN: Duration = Duration::from_millis(80);
/// What is said of a file that says less than it did, and may not mean it.
const AS_LAST_KNOWN: &str = "the pods that it contained are served as last known";

/// Tells one file or directory from another that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    /// That of what is at `path`, symlinks followed.
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

/// Tells whether a file has changed.
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

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// All pods, in the order of file names and documents, none twice.
    pub pods: Vec<Arc<ParsedPod>>,
    /// All problems, each beginning with the name of its file.
    pub problems: Vec<String>,
    /// How many files had to be read.
    pub read: usize,
    /// Whether a file may be half written: to be looked at again soon.
    pub unfinished: bool,
}

/// Scans a directory again and again.
pub struct Scanner {
    path: PathBuf,
    selection: Selection,
    files: BTreeMap<OsString, Parsed>,
    /// Whether the last scan went well: if nothing has changed since, there is nothing to tell.
    settled: bool,
    /// [`BEING_WRITTEN`].
    pub(super) being_written: Duration,
}

/// A file as last read.
#[derive(Default)]
struct Parsed {
    /// None: read it again next time.
    stamp: Option<Stamp>,
    identity: Option<Identity>,
    /// Each with its place in the file.
    pods: Vec<(String, Arc<ParsedPod>)>,
    /// Those that were there before, where what can't be understood now may be any of them.
    kept: Vec<Arc<ParsedPod>>,
    problems: Vec<String>,
    /// Whether what can't be understood may be a pod.
    garbled: bool,
    /// Written a moment ago.
    fresh: bool,
}

impl Parsed {
    /// What the file is taken for that was `old` before.
    fn after(mut self, old: Self) -> Self {
        let had = old.pods.len() + old.kept.len();
        // Whatever can be read of it may be half of what is to come. A file put in the place of another is whole.
        if self.fresh && had > 0 && self.identity == old.identity {
            return Self {
                stamp: None,
                fresh: true,
                ..old
            };
        }
        if self.garbled && had > 0 {
            let before = old.pods.into_iter().map(|(_, pod)| pod).chain(old.kept);
            self.kept = before.filter(|pod| pod.pod.is_some()).collect();
            self.problems.push(AS_LAST_KNOWN.to_owned());
        }
        self
    }
}

impl Scanner {
    /// A scanner of `path` that has not looked yet.
    pub fn new(path: PathBuf, selection: Selection) -> Self {
        Self {
            path,
            selection,
            files: BTreeMap::new(),
            settled: false,
            being_written: BEING_WRITTEN,
        }
    }

    /// Looks at the directory, reading what has changed since the last time; none if nothing has.
    ///
    /// # Errors
    /// Those of reading the directory itself; what was known before is kept, and told by the next
    /// scan that succeeds.
    pub fn scan(&mut self) -> io::Result<Option<Scan>> {
        let was_settled = std::mem::replace(&mut self.settled, false);
        let mut files = BTreeMap::new();
        let mut read = 0;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some(syntax) = syntax_of(Path::new(&name)) else {
                continue;
            };
            let path = self.path.join(&name);
            let unchanged = self.files.get(&name).and_then(|old| old.stamp);
            match fs::metadata(&path) {
                Ok(metadata) if unchanged == Some(Stamp::from(&metadata)) => {
                    // Moved only once all is read: an error on the way must not lose it.
                    let _ = files.insert(name, None);
                    continue;
                }
                // Gone since the directory was listed; a dangling symlink is still there.
                Err(_) if fs::symlink_metadata(&path).is_err() => continue,
                _ => {}
            }
            read += 1;
            let content = self.parse(&path, syntax);
            let _ = files.insert(name, Some(content));
        }
        self.settled = true;
        // What was not read was there before, by the same name.
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

    fn parse(&self, path: &Path, syntax: Syntax) -> Parsed {
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
                let manifest = manifest::parse(&text, syntax);
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
        let mut parsed = parse_pod(pod, &self.selection);
        if parsed.not_served == Some(NotServed::NoName) {
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
        let id = &parsed.id;
        let mistakes = parsed
            .skipped
            .iter()
            .filter(|alone| alone.why.is_mistake())
            .map(|alone| format!("{place}: {id}: {alone}"));
        let warnings = parsed
            .warnings
            .iter()
            .map(|warning| format!("{place}: {id}: {warning}"));
        content.problems.extend(warnings.chain(mistakes));
        content.pods.push((place, Arc::new(parsed)));
    }

    /// All files together. Of pods with the same name, or the same UID, the first one counts.
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
            for (place, parsed) in &content.pods {
                let id = &parsed.id;
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
                scan.pods.push(parsed.clone());
            }
        }
        // Only then those of which nobody else says anything.
        for parsed in self.files.values().flat_map(|file| &file.kept) {
            let id = &parsed.id;
            let taken =
                names.contains_key(&(&id.namespace, &id.name)) || uids.contains_key(&id.uid);
            if !taken {
                scan.pods.push(parsed.clone());
            }
        }
        scan
    }
}

/// By the ending of the name; none for what is no manifest, as are files whose name begins with a dot
/// (editors' temporary files, and the innards of a mounted ConfigMap).
fn syntax_of(name: &Path) -> Option<Syntax> {
    if name.as_os_str().as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match name.extension()?.to_str()? {
        "yaml" | "yml" => Some(Syntax::Yaml),
        "json" => Some(Syntax::Json),
        _ => None,
    }
}

/// What a file holds.
struct Contents {
    text: String,
    /// None where it can't be relied upon.
    stamp: Option<Stamp>,
    identity: Identity,
    /// How long ago it was written; none where its time stamp lies in the future.
    age: Option<Duration>,
}

/// The file at `path`, or what is wrong with it.
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
        // Should a FIFO have taken its place, do not wait for a writer.
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
