//! The daemon's state as text.

use std::fmt::Write;
use std::time::Duration;

use super::narrow::{self, Fit};
use crate::output::{Table, printable, wrapped};
use crate::shown::{self, Shown};
use crate::status::{
    CanaryStatus, KubeletStatus, LastVerdict, NetnsStatus, PathStatus, ProbeStatus, Status,
};

/// Width of the names in the header.
const NAME: usize = 12;

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

/// The state of the daemon if the output `is_all` of it, then a line for each probe, in `width` columns.
pub fn table(status: &Status, is_all: bool, width: Option<usize>) -> (String, Fit) {
    let (rows, fit) = narrow::rows(&[Shown { node: None, status }], width);
    let mut text = String::new();
    if is_all {
        for line in header(status).lines() {
            text.push_str(&wrapped(line, width, NAME));
        }
        text.push('\n');
    }
    if rows.is_empty() && is_all {
        text.push_str("no probes to serve\n");
    }
    text.push_str(&rows);
    (text, fit)
}

/// Like [`table`], with more columns, the state of each pod, and the probes that are not served.
pub fn wide(status: &Status, is_all: bool) -> String {
    let header = if is_all {
        header(status)
    } else {
        String::new()
    };
    header + &wide_rows(&[Shown { node: None, status }])
}

/// Three tables: all probes, the state of each pod, and what is not served.
pub fn wide_rows(shown: &[Shown<'_>]) -> String {
    let mut text = String::new();
    probes(&mut text, shown);
    pods(&mut text, shown);
    skipped(&mut text, shown);
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
            let effect = pod.effect();
            line(
                &mut text,
                "problem",
                &format!("{name} is {effect}: {trouble}"),
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

fn probes(text: &mut String, shown: &[Shown<'_>]) {
    let pods = shown::pods(shown);
    if pods.iter().all(|(_, pod)| pod.probes.is_empty()) {
        text.push_str("\nno probes to serve\n");
        return;
    }
    let further = ["FAIL", "UNKNOWN", "TIMEOUT", "DETAIL"];
    let headings: Vec<_> = COLUMNS.into_iter().chain(further).collect();
    let mut table = table_of(shown, &headings);
    for (node, pod) in pods {
        for probe in &pod.probes {
            let detail = probe.last.as_ref().map(|last| last.detail.clone());
            let mut cells = vec![pod.namespace.clone(), pod.name.clone()];
            cells.extend(probe_cells(probe));
            cells.push(probe.unknown.to_string());
            cells.push(probe.timeout_ms.map(millis).unwrap_or_default());
            cells.push(detail.unwrap_or_default());
            table.row(with_node(node, cells));
        }
    }
    let _ = write!(text, "\n{table}");
}

/// An empty table, with a first column for the node if there are several.
fn table_of(shown: &[Shown<'_>], headings: &[&str]) -> Table {
    let node = shown::has_nodes(shown).then_some("NODE");
    let headings: Vec<_> = node.into_iter().chain(headings.iter().copied()).collect();
    Table::new(&headings)
}

fn with_node(
    node: Option<&str>,
    cells: impl IntoIterator<Item = String>,
) -> impl Iterator<Item = String> {
    node.map(str::to_owned).into_iter().chain(cells)
}

/// The cells from CONTAINER to FAIL.
fn probe_cells(probe: &ProbeStatus) -> Vec<String> {
    let mut cells = vec![
        probe.container.clone(),
        probe.probe.clone(),
        probe.mode.clone(),
        probe.check(),
    ];
    match &probe.last {
        Some(last) => cells.extend(last_cells(last)),
        None => cells.extend(std::iter::repeat_n(String::new(), 5)),
    }
    cells.extend([probe.success.to_string(), probe.failure.to_string()]);
    cells
}

fn last_cells(last: &LastVerdict) -> [String; 5] {
    let status = last.status.map(|status| status.to_string());
    [
        last.outcome.clone(),
        last.reason.clone(),
        status.unwrap_or_default(),
        last.latency_us.map(micros).unwrap_or_default(),
        millis(last.age_ms),
    ]
}

fn pods(text: &mut String, shown: &[Shown<'_>]) {
    let pods = shown::pods(shown);
    if pods.is_empty() {
        return;
    }
    let headings = [
        "NAMESPACE",
        "POD",
        "UID",
        "MESH",
        "ADDRESSES",
        "NETNS",
        "CANARY",
        "PATH",
    ];
    let mut table = table_of(shown, &headings);
    for (node, pod) in pods {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        let cells = [
            pod.namespace.clone(),
            pod.name.clone(),
            pod.uid.clone(),
            pod.mesh.clone(),
            addresses.join(","),
            netns(&pod.netns),
            canary(&pod.canary),
            path(&pod.path),
        ];
        table.row(with_node(node, cells));
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

/// Which path serves a pod, and why.
pub fn path(path: &PathStatus) -> String {
    match path {
        PathStatus::Kernel => "kernel".to_owned(),
        PathStatus::KernelTc => "kernel (tc)".to_owned(),
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

fn skipped(text: &mut String, shown: &[Shown<'_>]) {
    let headings = [
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "PROBE",
        "NOT SERVED BECAUSE",
    ];
    let mut table = table_of(shown, &headings);
    let not_served = shown::not_served(shown);
    let mut any = !not_served.is_empty();
    for (node, pod) in not_served {
        let none = String::new;
        let cells = [
            pod.namespace.clone(),
            pod.name.clone(),
            none(),
            none(),
            pod.why.clone(),
        ];
        table.row(with_node(node, cells));
    }
    for (node, pod) in shown::pods(shown) {
        for probe in &pod.skipped {
            any = true;
            let cells = [
                pod.namespace.clone(),
                pod.name.clone(),
                probe.container.clone(),
                probe.probe.clone(),
                probe.why.clone(),
            ];
            table.row(with_node(node, cells));
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
    let _ = writeln!(text, "{:<NAME$}{value}", format!("{name}:"));
}

fn seconds(value: u64) -> String {
    match value {
        0..60 => format!("{value}s"),
        60..3600 => format!("{}m{}s", value / 60, value % 60),
        3600..86_400 => format!("{}h{}m", value / 3600, value % 3600 / 60),
        _ => format!("{}d{}h", value / 86_400, value % 86_400 / 3600),
    }
}

/// A duration in milliseconds.
pub fn millis(value: u64) -> String {
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
