//! The daemon's state as text.

use std::fmt::Write;
use std::time::Duration;

use crate::cli::output::{Table, printable};
use crate::observe::status::{
    CanaryStatus, KubeletStatus, LastVerdict, NetnsStatus, PathStatus, ProbeStatus, Status,
};

const COLUMNS: [&str; 12] = [
    "NAMESPACE",
    "POD",
    "CONTAINER",
    "PROBE",
    "MODE",
    "CHECK",
    "LAST",
    "REASON",
    "STATUS",
    "LATENCY",
    "AGE",
    "OK",
];

/// The state of the daemon, then a row for each probe.
pub(super) fn table(status: &Status) -> String {
    let mut text = header(status);
    let skipped: usize = status.pods.iter().map(|pod| pod.skipped.len()).sum();
    if skipped > 0 {
        line(
            &mut text,
            "not served",
            &format!("{skipped} probes (-o wide shows why)"),
        );
    }
    let headings: Vec<_> = COLUMNS.into_iter().chain(["FAIL"]).collect();
    probes(&mut text, status, &headings, probe_cells);
    text
}

/// Like [`table`], with more columns, the state of each pod, and the probes that are not served.
pub(super) fn wide(status: &Status) -> String {
    let mut text = header(status);
    let headings: Vec<_> = COLUMNS
        .into_iter()
        .chain(["FAIL", "UNKNOWN", "TIMEOUT", "DETAIL"])
        .collect();
    probes(&mut text, status, &headings, |probe| {
        let mut cells = probe_cells(probe);
        let detail = probe.last.as_ref().map(|last| last.detail.clone());
        cells.push(probe.unknown.to_string());
        cells.push(probe.timeout_ms.map(millis).unwrap_or_default());
        cells.push(detail.unwrap_or_default());
        cells
    });
    pods(&mut text, status);
    skipped(&mut text, status);
    text
}

fn header(status: &Status) -> String {
    let mut text = String::new();
    let up = seconds(status.uptime_seconds);
    let mut state = status.state.name().to_owned();
    if !status.pending.is_empty() {
        let _ = write!(
            state,
            ", not ready: waiting for {}",
            status.pending.join(", ")
        );
    }
    let (version, pid) = (&status.version, status.pid);
    line(
        &mut text,
        "state",
        &format!("{state}; version {version}, pid {pid}, up {up}"),
    );
    for missing in &status.missing {
        let (part, why) = (&missing.part, &missing.why);
        line(&mut text, "missing", &format!("{part}: {why}"));
    }
    line(&mut text, "kubelet", &kubelet(&status.kubelet));
    let hooks: Vec<_> = status
        .hooks
        .iter()
        .map(|hook| match (hook.attached, hook.program_id) {
            (true, Some(id)) => format!("{} (id {id})", hook.program),
            (true, None) => hook.program.clone(),
            (false, _) => format!("{} NOT ATTACHED", hook.program),
        })
        .collect();
    let hooks = if hooks.is_empty() {
        "none loaded".to_owned()
    } else {
        hooks.join(", ")
    };
    let refusal = status.refusal.name();
    line(
        &mut text,
        "hooks",
        &format!("{hooks}; closed ports refused with {refusal}"),
    );
    let handler: Vec<_> = status.handler.iter().map(ToString::to_string).collect();
    line(&mut text, "handler", &handler.join(", "));
    let counters: Vec<_> = status
        .counters
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    line(&mut text, "counters", &counters.join(", "));
    let count = status.pods.len();
    line(
        &mut text,
        "pods",
        &format!("{count} from {}", status.source.kind),
    );
    for problem in &status.source.problems {
        line(&mut text, "problem", problem);
    }
    for pod in &status.pods {
        if let Some(trouble) = pod.trouble() {
            let name = format!("{}/{}", pod.namespace, pod.name);
            line(
                &mut text,
                "problem",
                &format!("{name} is not served: {trouble}"),
            );
        }
        for warning in &pod.warnings {
            let name = format!("{}/{}", pod.namespace, pod.name);
            line(&mut text, "problem", &format!("{name}: {warning}"));
        }
    }
    text
}

fn kubelet(kubelet: &KubeletStatus) -> String {
    let Some(cgroup) = &kubelet.cgroup else {
        return format!("NOT ATTACHED (looked for {})", kubelet.names.join(", "));
    };
    let mut text = match kubelet.pid {
        Some(pid) => format!("pid {pid} in {cgroup}"),
        None => format!("no known process, in {cgroup}"),
    };
    text.push_str(if kubelet.attached {
        ", attached"
    } else {
        ", NOT ATTACHED"
    });
    if let Some(age) = kubelet.attached_age_ms {
        let _ = write!(text, " {} ago", millis(age));
    }
    if let Some(pid) = kubelet.process_filter {
        let _ = match kubelet.shared_with {
            0 => write!(text, "; only that process is served"),
            others => write!(
                text,
                "; cgroup shared with {others} others: only pid {pid} is served"
            ),
        };
    } else if kubelet.attached {
        let _ = write!(text, "; every process in that cgroup is served");
    }
    text
}

fn probes(
    text: &mut String,
    status: &Status,
    headings: &[&str],
    cells: impl Fn(&ProbeStatus) -> Vec<String>,
) {
    if status.pods.iter().all(|pod| pod.probes.is_empty()) {
        text.push_str("\nno probes to serve\n");
        return;
    }
    let mut table = Table::new(headings);
    for pod in &status.pods {
        for probe in &pod.probes {
            let name = [pod.namespace.clone(), pod.name.clone()];
            table.row(name.into_iter().chain(cells(probe)));
        }
    }
    let _ = write!(text, "\n{table}");
}

/// The cells from CONTAINER to FAIL.
fn probe_cells(probe: &ProbeStatus) -> Vec<String> {
    let mut cells = vec![
        probe.container.clone(),
        probe.probe.clone(),
        probe.mode.clone(),
        check(probe),
    ];
    match &probe.last {
        Some(last) => cells.extend(last_cells(last)),
        None => cells.extend(std::iter::repeat_n(String::new(), 5)),
    }
    cells.extend([probe.success.to_string(), probe.failure.to_string()]);
    cells
}

fn last_cells(last: &LastVerdict) -> [String; 5] {
    // Of an unknown result the app's status is not known either.
    let status = match last.outcome.as_str() {
        "unknown" => String::new(),
        _ => last.status.to_string(),
    };
    [
        last.outcome.clone(),
        last.reason.clone(),
        status,
        last.latency_us.map(micros).unwrap_or_default(),
        millis(last.age_ms),
    ]
}

/// `http:8080/healthz`, `tcp:5432`, `grpc:9000/service`.
fn check(probe: &ProbeStatus) -> String {
    let rest = match (&probe.target, &probe.service) {
        (Some(target), _) => target.clone(),
        (None, Some(service)) => format!("/{service}"),
        (None, None) => String::new(),
    };
    format!("{}:{}{rest}", probe.protocol, probe.port)
}

fn pods(text: &mut String, status: &Status) {
    if status.pods.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD",
        "UID",
        "MESH",
        "ADDRESSES",
        "NETNS",
        "CANARY",
        "PATH",
    ]);
    for pod in &status.pods {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        table.row([
            pod.namespace.clone(),
            pod.name.clone(),
            pod.uid.clone(),
            pod.mesh.clone(),
            addresses.join(","),
            netns(&pod.netns),
            canary(&pod.canary),
            path(&pod.path),
        ]);
    }
    let _ = write!(text, "\n{table}");
}

fn netns(netns: &NetnsStatus) -> String {
    match netns {
        NetnsStatus::Known { inode, nsid } => match nsid {
            Some(nsid) => format!("{inode} (id {nsid})"),
            None => format!("{inode} (no id)"),
        },
        NetnsStatus::Pending(why) => format!("pending: {why}"),
    }
}

fn path(path: &PathStatus) -> String {
    match path {
        PathStatus::Kernel => "kernel".to_owned(),
        PathStatus::Handler(None) => "handler".to_owned(),
        PathStatus::Handler(Some(why)) => format!("handler: {why}"),
    }
}

fn canary(canary: &CanaryStatus) -> String {
    let mut text = canary.state.name().to_owned();
    if let Some(age) = canary.checked_age_ms {
        let _ = write!(text, " {} ago", millis(age));
    }
    if !canary.detail.is_empty() {
        let _ = write!(text, ": {}", canary.detail);
    }
    text
}

fn skipped(text: &mut String, status: &Status) {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "PROBE",
        "NOT SERVED BECAUSE",
    ]);
    let mut any = false;
    for pod in &status.pods {
        for probe in &pod.skipped {
            any = true;
            table.row([
                pod.namespace.clone(),
                pod.name.clone(),
                probe.container.clone(),
                probe.probe.clone(),
                probe.why.clone(),
            ]);
        }
    }
    if any {
        let _ = write!(text, "\n{table}");
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let value = if value.is_empty() {
        "-".to_owned()
    } else {
        printable(value)
    };
    let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
}

fn seconds(value: u64) -> String {
    match value {
        0..60 => format!("{value}s"),
        60..3600 => format!("{}m{}s", value / 60, value % 60),
        3600..86_400 => format!("{}h{}m", value / 3600, value % 3600 / 60),
        _ => format!("{}d{}h", value / 86_400, value % 86_400 / 3600),
    }
}

fn millis(value: u64) -> String {
    match value {
        0..1000 => format!("{value}ms"),
        1000..10_000 => format!("{:.1}s", Duration::from_millis(value).as_secs_f64()),
        _ => seconds(value / 1000),
    }
}

fn micros(value: u64) -> String {
    match value {
        0..1000 => format!("{value}us"),
        1000..1_000_000 => format!("{:.1}ms", Duration::from_micros(value).as_secs_f64() * 1e3),
        _ => format!("{:.1}s", Duration::from_micros(value).as_secs_f64()),
    }
}

#[cfg(test)]
mod tests;
