//! The table of `status`: one line for each probe, in 80 columns.

use std::fmt::Write as _;

use super::render::{millis, path};
use crate::output::{printable, wrapped};
use crate::shown::{self, Shown};
use crate::status::{PodStatus, ProbeStatus};

/// Columns; those of [`NUMBERS`] are aligned to the right.
const COLUMNS: [&str; 9] = [
    "PROBE", "CHECK", "REASON", "STATUS", "AGE", "OK", "FAIL", "UNKNOWN", "NODE",
];
const NUMBERS: std::ops::Range<usize> = 3..8;
/// The column that is omitted if there is only one node, or too little width; in the second case the name of the pod
/// contains the node.
const NODE: usize = 8;
/// The column that is shortened first.
const CHECK: usize = 1;
/// Its minimum width.
const CHECK_MIN: usize = 12;
/// Spaces before a row of a pod, and between columns.
const GAP: usize = 2;

/// How the rows fit into the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Whole.
    Whole,
    /// Some checks are shortened.
    Shortened,
    /// A row does not fit, so each probe is printed as a paragraph. The table needs this width.
    Paragraphs(usize),
}

impl Fit {
    /// A message about how a terminal of `width` columns changes the table, if it does.
    pub fn note(self, width: usize) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Shortened => Some(format!(
                "some checks are shortened to {width} columns: -o wide and -o json show them whole"
            )),
            Self::Paragraphs(needed) => Some(format!(
                "the terminal has {width} columns, and the table needs {needed}: each probe is a paragraph"
            )),
        }
    }
}

/// One line or paragraph below the name of its pod and container.
enum Row {
    Probe([String; COLUMNS.len()]),
    /// A probe or pod that is not served, and why.
    Text(String),
}

/// The rows of one pod and container.
struct Group {
    name: String,
    node: Option<String>,
    rows: Vec<Row>,
}

/// A row for each probe, and for each pod and probe that is not served. `width`: `None` if it is unlimited.
pub fn rows(shown: &[Shown<'_>], width: Option<usize>) -> (String, Fit) {
    let groups = groups(shown);
    let probes = groups.iter().flat_map(|group| &group.rows);
    let probes = probes.filter_map(|row| match row {
        Row::Probe(cells) => Some(cells),
        Row::Text(_) => None,
    });
    let mut widths = COLUMNS.map(str::len);
    for cells in probes {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let has_nodes = shown::has_nodes(shown);
    if !has_nodes || width.is_some_and(|width| needed(&widths) > width) {
        widths[NODE] = 0;
    }
    let fit = fit(&mut widths, width);
    let is_column = widths[NODE] > 0;
    let mut text = String::new();
    if !matches!(fit, Fit::Paragraphs(_)) && groups.iter().any(has_probe) {
        line(&mut text, &COLUMNS.map(str::to_owned), &widths);
    }
    for group in &groups {
        let mut name = group.name.clone();
        if let Some(node) = group
            .node
            .as_ref()
            .filter(|_| !is_column || !has_probe(group))
        {
            let _ = write!(name, " on {node}");
        }
        text.push_str(&wrapped(&name, width, 0));
        for row in &group.rows {
            match (row, fit) {
                (Row::Probe(cells), Fit::Paragraphs(_)) => paragraph(&mut text, cells, width),
                (Row::Probe(cells), _) => line(&mut text, cells, &widths),
                (Row::Text(why), _) => {
                    text.push_str("  ");
                    text.push_str(&wrapped(
                        why,
                        width.map(|width| width.saturating_sub(GAP)),
                        GAP,
                    ));
                }
            }
        }
    }
    (text, fit)
}

fn has_probe(group: &Group) -> bool {
    group.rows.iter().any(|row| matches!(row, Row::Probe(_)))
}

/// The width of a row.
fn needed(widths: &[usize; COLUMNS.len()]) -> usize {
    let columns = widths.iter().filter(|width| **width > 0);
    columns.map(|width| width + GAP).sum()
}

/// Shortens the checks so that a row fits, if that is possible.
fn fit(widths: &mut [usize; COLUMNS.len()], width: Option<usize>) -> Fit {
    let needed = needed(widths);
    let Some(over) = width.and_then(|width| needed.checked_sub(width)) else {
        return Fit::Whole;
    };
    match widths[CHECK].checked_sub(over) {
        _ if over == 0 => Fit::Whole,
        Some(check) if check >= CHECK_MIN => {
            widths[CHECK] = check;
            Fit::Shortened
        }
        _ => Fit::Paragraphs(needed - widths[CHECK] + widths[CHECK].min(CHECK_MIN)),
    }
}

fn groups(shown: &[Shown<'_>]) -> Vec<Group> {
    let mut groups = Vec::new();
    for (node, pod) in shown::pods(shown) {
        add_pod(&mut groups, node, pod);
    }
    for (node, pod) in shown::not_served(shown) {
        groups.push(Group {
            name: format!("{}/{}", pod.namespace, pod.name),
            node: node.map(str::to_owned),
            rows: vec![Row::Text(format!("not served: {}", pod.why))],
        });
    }
    groups
}

fn add_pod(groups: &mut Vec<Group>, node: Option<&str>, pod: &PodStatus) {
    let by = path(&pod.path);
    let by = by.split(':').next().unwrap_or_default();
    let name = |container: &str| {
        let (namespace, name, mesh) = (&pod.namespace, &pod.name, &pod.mesh);
        format!("{namespace}/{name} {container} ({mesh}, {by})")
    };
    let group = |name: String, rows: Vec<Row>| Group {
        name,
        node: node.map(str::to_owned),
        rows,
    };
    let first = groups.len();
    // The probes are sorted by container.
    for probe in &pod.probes {
        let name = name(&probe.container);
        if groups[first..]
            .last()
            .is_none_or(|group| group.name != name)
        {
            groups.push(group(name, Vec::new()));
        }
        if let Some(group) = groups.last_mut() {
            group.rows.push(Row::Probe(cells(node, probe)));
        }
    }
    for skipped in &pod.skipped {
        let name = name(&skipped.container);
        let row = Row::Text(format!("{}: not served: {}", skipped.probe, skipped.why));
        match groups[first..].iter_mut().find(|group| group.name == name) {
            Some(group) => group.rows.push(row),
            None => groups.push(group(name, vec![row])),
        }
    }
    if let Some(why) = pod.trouble() {
        let row = Row::Text(format!("{}: {why}", pod.effect()));
        match groups[first..].first_mut() {
            Some(group) => group.rows.insert(0, row),
            None => groups.push(group(
                format!("{}/{} ({})", pod.namespace, pod.name, pod.mesh),
                vec![row],
            )),
        }
    }
}

fn cells(node: Option<&str>, probe: &ProbeStatus) -> [String; COLUMNS.len()] {
    let none = || "-".to_owned();
    let last = probe.last.as_ref();
    let status = last.and_then(|last| last.status);
    [
        probe.probe.clone(),
        probe.check(),
        last.map_or_else(none, |last| last.reason.clone()),
        status.map_or_else(none, |status| status.to_string()),
        last.map_or_else(none, |last| millis(last.age_ms)),
        probe.success.to_string(),
        probe.failure.to_string(),
        probe.unknown.to_string(),
        node.unwrap_or_default().to_owned(),
    ]
    .map(|cell| printable(&cell))
}

fn line(text: &mut String, cells: &[String; COLUMNS.len()], widths: &[usize; COLUMNS.len()]) {
    let mut line = String::new();
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        if width == 0 {
            continue;
        }
        let cell = shortened(cell, width);
        let _ = match NUMBERS.contains(&column) {
            true => write!(line, "  {cell:>width$}"),
            false => write!(line, "  {cell:<width$}"),
        };
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn paragraph(text: &mut String, cells: &[String; COLUMNS.len()], width: Option<usize>) {
    let [probe, check, reason, status, age, ok, fail, unknown, _node] = cells;
    let width = width.map(|width| width.saturating_sub(GAP));
    for line in [
        format!("{probe} {check}"),
        format!("  {reason}, status {status}, {age} ago"),
        format!("  ok {ok}, fail {fail}, unknown {unknown}"),
    ] {
        text.push_str("  ");
        text.push_str(&wrapped(&line, width, GAP + GAP));
    }
}

/// `text` in at most `width` characters: its middle is replaced by an ellipsis.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let tail = width.saturating_sub(1) / 2;
    let head = width.saturating_sub(1 + tail);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{pod, probe, status};
    use crate::status::Status;

    fn one(status: &Status) -> [Shown<'_>; 1] {
        [Shown { node: None, status }]
    }

    fn two<'a>(a: &'a Status, b: &'a Status) -> [Shown<'a>; 2] {
        [("worker-b", a), ("worker-a", b)].map(|(node, status)| Shown {
            node: Some(node),
            status,
        })
    }

    /// A daemon with one pod that has one probe.
    fn small(name: &str) -> Status {
        let mut status = status();
        status.not_served.clear();
        status.pods = vec![pod(name)];
        status.pods[0].probes = vec![probe("liveness", "tcp", 80)];
        status
    }

    #[test]
    fn pods_of_several_nodes_are_sorted_by_name_and_have_a_column_for_the_node() {
        let (a, b) = (small("web-1"), small("cart-0"));
        let (text, fit) = rows(&two(&a, &b), Some(80));
        assert_eq!(fit, Fit::Whole);
        assert_eq!(
            text,
            "  \
  PROBE     CHECK   REASON  STATUS  AGE  OK  FAIL  UNKNOWN  NODE
shop/cart-0 app (istio, handler)
  liveness  tcp:80  -            -    -   0     0        0  worker-a
shop/web-1 app (istio, handler)
  liveness  tcp:80  -            -    -   0     0        0  worker-b
"
        );
    }

    #[test]
    fn a_pod_that_only_the_kernel_path_serves_is_not_called_unserved() {
        let mut status = status();
        for pod in &mut status.pods {
            pod.by_kernel_alone = pod.trouble().is_some();
        }
        let (text, _) = rows(&one(&status), None);
        let expected = "  served only by the kernel path: canary failed: 10.0.0.2:1 accepted\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn where_the_column_does_not_fit_the_name_of_the_pod_has_the_node() {
        let (a, b) = (status(), small("other-0"));
        for width in [80, 40] {
            let (text, _) = rows(&two(&a, &b), Some(width));
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for expected in [
                "shop/cart-0 app (istio, handler) on worker-b",
                "shop/other-0 app (istio, handler) on worker-a",
                "kube-system/proxy on worker-b not served",
            ] {
                assert!(words.contains(expected), "{expected} not in\n{text}");
            }
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
            assert!(!text.contains("NODE"), "{text}");
        }
    }

    const WHOLE: &str = "  \
  PROBE      CHECK                     REASON   STATUS   AGE  OK  FAIL  UNKNOWN
shop/cart-0 app (istio, handler)
  liveness   http:8080/healthz?full=1  healthy     200  1.2s  90     1        0
  readiness  tcp:5432                  -             -     -   0     0        0
  startup    grpc:9000/cart            spliced       -  1.2s   0     0        7
  prestop: not served: exec
shop/web-0 (istio)
  not served: canary failed: 10.0.0.2:1 accepted
kube-system/proxy
  not served: it is in the node's network namespace (hostNetwork)
";

    #[test]
    fn each_probe_is_a_line_of_80_columns_below_its_pod() {
        for width in [None, Some(80)] {
            let (text, fit) = rows(&one(&status()), width);
            assert_eq!(text, WHOLE);
            assert_eq!(fit, Fit::Whole);
        }
        assert!(WHOLE.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_long_check_is_shortened_so_that_the_row_fits() {
        let mut status = status();
        status.pods[0].probes[0].target = Some("/a/very/long/path/to/the/health/of/it".to_owned());
        let (text, fit) = rows(&one(&status), Some(80));
        assert_eq!(fit, Fit::Shortened);
        assert!(
            text.contains("  http:8080/a/…health/of/it  healthy"),
            "{text}"
        );
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let (text, fit) = rows(&one(&status), None);
        assert_eq!(fit, Fit::Whole);
        assert!(
            text.contains("http:8080/a/very/long/path/to/the/health/of/it"),
            "{text}"
        );
    }

    #[test]
    fn on_40_columns_each_probe_is_a_paragraph_and_nothing_is_lost() {
        let (text, fit) = rows(&one(&status()), Some(40));
        assert_eq!(fit, Fit::Paragraphs(67));
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "shop/cart-0 app (istio, handler)",
            "liveness http:8080/healthz?full=1 healthy, status 200, 1.2s ago ok 90, fail 1, unknown 0",
            "startup grpc:9000/cart spliced, status -, 1.2s ago ok 0, fail 0, unknown 7",
            "not served: it is in the node's network namespace (hostNetwork)",
        ] {
            assert!(words.contains(expected), "{expected} not in\n{text}");
        }
    }

    #[test]
    fn each_container_has_its_own_lines() {
        let mut two = pod("two");
        let mut other = probe("liveness", "tcp", 81);
        other.container = "side".to_owned();
        two.probes = vec![probe("liveness", "tcp", 80), other];
        let names: Vec<_> = {
            let mut groups = Vec::new();
            add_pod(&mut groups, None, &two);
            groups.into_iter().map(|group| group.name).collect()
        };
        assert_eq!(
            names,
            [
                "shop/two app (istio, handler)",
                "shop/two side (istio, handler)"
            ]
        );
    }

    #[test]
    fn the_middle_of_a_long_text_is_left_out() {
        assert_eq!(shortened("abcdefghij", 5), "ab…ij");
        assert_eq!(shortened("abcdefghij", 6), "abc…ij");
        assert_eq!(shortened("abc", 3), "abc");
    }
}
