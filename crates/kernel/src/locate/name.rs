//! Recognizes the kubelet's and pods' directories in a cgroup hierarchy by their names.
//!
//! The kubelet's names (pkg/kubelet/cm/cgroup_manager_linux.go, pod_container_manager_linux.go): with the
//! cgroupfs driver `kubepods/[burstable|besteffort/]pod<uid>`, with the systemd driver
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`, where `-` in the UID is
//! replaced by `_`, because `-` separates the levels in the name of a slice. Either may be below another
//! root directory (`--cgroup-root`), with whose name the names of slices then begin.

/// The kind of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kubepods` itself or a QoS class in it: pods' cgroups are created here.
    Pods,
    /// The cgroup of a pod, or of one of its containers (see [`kind`]).
    Pod(Uid),
    /// Neither.
    Other,
}

/// A pod's UID in normalized form: all spellings of one UID are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(String);

impl Uid {
    /// Normalizes the UID in the API or in a cgroup's name. The UID of a static pod is a hash without dashes.
    pub fn new(uid: &str) -> Self {
        Self(uid.replace('_', "-"))
    }
}

/// The kind of the directory `name`, given whether its parent is of [`Kind::Pods`].
///
/// A runtime that is not configured for the systemd driver, while the kubelet is, creates a container's
/// cgroup `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>` below the runtime's own cgroup: that
/// counts as the pod's cgroup too.
pub fn kind(name: &str, in_pods: bool) -> Kind {
    let slice = match name.split_once(".slice") {
        Some((stem, rest)) if rest.is_empty() || rest.starts_with(':') => Some((stem, rest)),
        _ => None,
    };
    match slice {
        Some((stem, "")) if is_level(stem, "kubepods") => Kind::Pods,
        Some((stem, "")) if in_pods && is_class(stem) => Kind::Pods,
        Some((stem, _)) => match stem.rsplit_once("-pod") {
            Some((parents, uid)) if is_pods_slice(parents) && !uid.is_empty() => {
                Kind::Pod(Uid::new(uid))
            }
            _ => Kind::Other,
        },
        None if name == "kubepods" => Kind::Pods,
        None if in_pods && matches!(name, "burstable" | "besteffort") => Kind::Pods,
        None if in_pods => match name.strip_prefix("pod") {
            Some(uid) if !uid.is_empty() => Kind::Pod(Uid::new(uid)),
            _ => Kind::Other,
        },
        None => Kind::Other,
    }
}

/// Whether any of the cgroups in /proc/PID/cgroup, in any hierarchy, is below the kubelet's `kubepods`. In
/// another cgroup namespace the beginning of the path is replaced by `..`, so the name of a pod's directory
/// is sufficient.
pub fn names_a_pod(cgroups: &str) -> bool {
    cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.split('/'))
        .any(|name| kind(name, false) != Kind::Other || is_pods_own(name))
}

/// Whether `name` is the cgroupfs driver's name for a pod's directory: `pod` and a UID, or a static pod's hash.
fn is_pods_own(name: &str) -> bool {
    name.strip_prefix("pod").is_some_and(|uid| {
        matches!(uid.len(), 32 | 36)
            && uid
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'))
    })
}

/// Whether the slice `stem` is `level`, at the top or below other slices.
fn is_level(stem: &str, level: &str) -> bool {
    stem == level
        || stem
            .strip_suffix(level)
            .is_some_and(|parents| parents.ends_with('-'))
}

fn is_class(stem: &str) -> bool {
    is_level(stem, "burstable") || is_level(stem, "besteffort")
}

/// Whether pods' cgroups are created in the slice `stem`: it is `kubepods` or a QoS class in it.
fn is_pods_slice(stem: &str) -> bool {
    is_level(stem, "kubepods")
        || stem
            .rsplit_once('-')
            .is_some_and(|(parents, _)| is_class(stem) && is_level(parents, "kubepods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3f2e1d0c-1111-2222-3333-444455556666";

    fn check(path: &str, expect: Kind) {
        let mut in_pods = false;
        let mut found = Kind::Other;
        for name in path.trim_start_matches('/').split('/') {
            found = kind(name, in_pods);
            match found {
                Kind::Pods => in_pods = true,
                Kind::Pod(_) => break,
                Kind::Other => in_pods = false,
            }
        }
        assert_eq!(found, expect, "{path}");
    }

    #[test]
    fn a_pods_cgroup_is_recognized_in_each_layout() {
        let pod = || Kind::Pod(Uid::new(UID));
        let slice = UID.replace('-', "_");
        for path in [
            format!("/kubepods/pod{UID}"),
            format!("/kubepods/burstable/pod{UID}"),
            format!("/kubepods/besteffort/pod{UID}/0123abcd"),
            format!("/kubelet/kubepods/besteffort/pod{UID}"),
            format!("/docker/0123abcd/kubelet/kubepods/burstable/pod{UID}"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice/cri-containerd-0123abcd.scope"
            ),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice}.slice/crio-0123abcd.scope"
            ),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{slice}.slice/docker-0123abcd.scope"
            ),
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{slice}.slice:cri-containerd:0123abcd"
            ),
        ] {
            check(&path, pod());
        }
    }

    #[test]
    fn the_uid_of_a_static_pod_may_be_a_hash() {
        const HASH: &str = "5f0c9a1e2b3d4c5f6a7b8c9d0e1f2a3b";
        let pod = || Kind::Pod(Uid::new(HASH));
        check(&format!("/kubepods/burstable/pod{HASH}"), pod());
        check(
            &format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"),
            pod(),
        );
    }

    #[test]
    fn the_parents_of_pods_cgroups_are_recognized_in_each_layout() {
        for path in [
            "/kubepods",
            "/kubepods/burstable",
            "/kubelet/kubepods/besteffort",
            "/kubepods.slice",
            "/kubepods.slice/kubepods-besteffort.slice",
            "/kubelet.slice/kubelet-kubepods.slice",
            "/a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-burstable.slice",
        ] {
            check(path, Kind::Pods);
        }
    }

    #[test]
    fn a_process_in_a_pod_is_recognized_by_its_cgroup() {
        let uid = "1b3b6b3c_0000_4000_8000_000000000001";
        for pods in [
            "0::/kubepods/besteffort/pod1/c".to_owned(),
            "4:memory:/\n0::/kubepods.slice/x".to_owned(),
            "11:pids:/kubepods/burstable/pod2/c:1\n0::/".to_owned(),
            format!("0::/../kubepods-burstable-pod{uid}.slice:cri-containerd:c"),
            format!("0::/../../pod{uid}/c"),
            format!("0::/../../../besteffort/pod{}/c", uid.replace('_', "-")),
        ] {
            assert!(names_a_pod(&pods), "{pods}");
        }
        for node in [
            "0::/system.slice/kubelet.service",
            "0::/",
            "0::/kubelet.slice:kubepods",
            "0::/podman.slice/podman-pause",
            "0::/pods/pod1",
            "",
        ] {
            assert!(!names_a_pod(node), "{node}");
        }
    }

    #[test]
    fn other_cgroups_are_not_recognized() {
        for path in [
            "/podruntime/kubelet",
            "/pods",
            "/burstable",
            "/machine.slice/libpod-pod0123.scope",
            "/machine.slice/machine-libpod_pod_0123.slice",
            "/user-pod1.slice",
            "/system.slice/kubepods-burstable-pod1.slice.service",
            "/notkubepods.slice",
            "/notkubepods-burstable.slice/notkubepods-burstable-pod1.slice",
            "/kubepods/pod",
            "/kubepods/kata_overhead",
            "/kubepods.slice/kubepods-pod.slice",
            "/system.slice/burstable",
            "",
        ] {
            check(path, Kind::Other);
        }
    }
}
