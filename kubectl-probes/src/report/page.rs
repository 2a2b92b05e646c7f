//! The report as one HTML page, which loads no other resource.

use std::fmt::Write as _;

use super::plot;
use super::summary::{Coverage, Latency, ProbeName, Summary};
use status_view::explain::duration;
use status_view::output::printable;

const STYLE: &str = include_str!("style.css");
/// Maximum number of rows of the tables that could have a row for each probe.
const ROWS: usize = 100;
/// Maximum number of rows in the table of latencies nearest to their timeouts.
const NEAREST: usize = 15;

/// The scope of the page.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The time, in RFC 3339.
    pub time: &'a str,
    /// Which pods: empty for all.
    pub of: &'a str,
    /// How many daemons there are.
    pub nodes: usize,
    /// The nodes without an answer, with the reason.
    pub failed: Vec<(String, String)>,
    /// Versions of the daemons, and how many have each.
    pub versions: Vec<(String, usize)>,
}

/// The page.
pub fn html(subject: &Subject<'_>, summary: &Summary) -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>Probes behind the mesh</title>\n",
    );
    let _ = writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>");
    head(&mut page, subject, summary);
    coverage(&mut page, summary);
    changes(&mut page, summary);
    latencies(&mut page, summary);
    failing(&mut page, summary);
    nodes(&mut page, subject, summary);
    page.push_str("</body>\n</html>\n");
    page
}

/// `text` as HTML.
fn safe(text: &str) -> String {
    let mut html = String::new();
    for c in printable(text).chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

fn head(page: &mut String, subject: &Subject<'_>, summary: &Summary) {
    let versions: Vec<_> = subject
        .versions
        .iter()
        .map(|(version, count)| format!("{} on {count}", safe(version)))
        .collect();
    let of = match subject.of {
        "" => String::new(),
        of => format!(" {}", safe(of)),
    };
    let _ = writeln!(
        page,
        "<h1>Probes behind the mesh{of}</h1>\n<p class=\"soft\">{}; versions of the daemons, by nodes: {}</p>",
        safe(subject.time),
        versions.join(", ")
    );
    let answered = subject.nodes - subject.failed.len();
    let all = &summary.all;
    let exposed = exposed(summary);
    page.push_str("<ul class=\"figures\">\n");
    for (figure, is_bad, name) in [
        (
            format!("{answered}/{}", subject.nodes),
            answered < subject.nodes,
            "nodes answered",
        ),
        (all.pods.to_string(), false, "pods in scope"),
        (
            (all.by_kernel + all.by_handler).to_string(),
            false,
            "probes served",
        ),
        (
            all.not_served.to_string(),
            all.not_served > 0,
            "probes not served",
        ),
        (
            all.failing.to_string(),
            all.failing > 0,
            "probes failing now",
        ),
        (exposed.to_string(), exposed > 0, "would fail if served"),
    ] {
        let class = if is_bad { " class=\"bad\"" } else { "" };
        let _ = writeln!(page, "<li{class}><b>{figure}</b><span>{name}</span></li>");
    }
    page.push_str("</ul>\n");
}

fn exposed(summary: &Summary) -> usize {
    let exposed = summary
        .changing
        .iter()
        .filter(|change| change.change == "exposed");
    exposed.count()
}

fn coverage(page: &mut String, summary: &Summary) {
    page.push_str(
        "<h2>Coverage by namespace</h2>\n<p class=\"soft key\"><i class=\"k\"></i>served by the kernel path <i \
         class=\"h\"></i>served by the handler <i class=\"x\"></i>not served</p>\n",
    );
    if summary.namespaces.is_empty() {
        page.push_str("<p>The daemons have no pods.</p>\n");
        return;
    }
    table(
        page,
        &[
            "Namespace",
            "",
            "#Pods",
            "#Kernel path",
            "#Handler",
            "#Not served",
            "#Observed pods",
            "#Pods out of scope",
        ],
        summary.namespaces.iter().map(|(name, coverage)| {
            let figures = [
                coverage.pods,
                coverage.by_kernel,
                coverage.by_handler,
                coverage.not_served,
                coverage.observed_pods,
                coverage.other_pods,
            ];
            let figures = figures.map(|figure| figure.to_string());
            [safe(name), bar(coverage)]
                .into_iter()
                .chain(figures)
                .collect()
        }),
        usize::MAX,
    );
    for (title, reasons) in [
        (
            "Why probes and pods in scope are not served",
            &summary.not_served,
        ),
        ("Why pods are out of scope", &summary.out_of_scope),
    ] {
        if reasons.is_empty() {
            continue;
        }
        let mut reasons: Vec<_> = reasons.iter().collect();
        reasons.sort_by_key(|(why, count)| (std::cmp::Reverse(**count), *why));
        let _ = writeln!(page, "<h3>{title}</h3>");
        let rows = reasons
            .into_iter()
            .map(|(why, count)| vec![safe(why), count.to_string()]);
        table(page, &["Reason", "#Number"], rows, ROWS);
    }
}

fn bar(coverage: &Coverage) -> String {
    let probes = coverage.probes().max(1) as f64;
    let mut bar = String::from("<div class=\"bar\">");
    for (class, count) in [
        ("k", coverage.by_kernel),
        ("h", coverage.by_handler),
        ("x", coverage.not_served),
    ] {
        let width = 100.0 * count as f64 / probes;
        if count > 0 {
            let _ = write!(bar, "<i class=\"{class}\" style=\"width:{width:.2}%\"></i>");
        }
    }
    bar + "</div>"
}

fn changes(page: &mut String, summary: &Summary) {
    page.push_str("<h2>What would change</h2>\n");
    if summary.observed == 0 {
        page.push_str("<p>No pod is in mode observe, so nothing is compared.</p>\n");
        return;
    }
    let exposed = exposed(summary);
    let _ = writeln!(
        page,
        "<p>{} observed probes: <b>{exposed}</b> pass now and would fail, <b>{}</b> fail now and would pass, {} are not compared \
         yet.</p>",
        summary.observed,
        summary.changing.len() - exposed,
        summary.not_compared
    );
    if !summary.changing.is_empty() {
        let rows = summary.changing.iter().map(|change| {
            let class = if change.change == "exposed" {
                "exposed"
            } else {
                "cured"
            };
            let what = match class {
                "exposed" => "would fail",
                _ => "would pass",
            };
            let mut cells = vec![format!("<span class=\"tag {class}\">{what}</span>")];
            cells.extend(probe_cells(&change.name));
            cells.push(safe(&change.consequence));
            cells.push(format!("{} of {}", change.changed, change.compared));
            cells
        });
        let headings = [
            "",
            "Pod",
            "Container",
            "Probe",
            "Check",
            "Consequence",
            "#Comparisons",
        ];
        table(page, &headings, rows, ROWS);
    }
    if !summary.observe_trouble.is_empty() {
        page.push_str("<h3>Pods that are not compared</h3>\n");
        let rows = summary
            .observe_trouble
            .iter()
            .map(|(pod, why)| vec![safe(pod), safe(why)]);
        table(page, &["Pod", "Reason"], rows, ROWS);
    }
}

fn latencies(page: &mut String, summary: &Summary) {
    page.push_str("<h2>Latency against timeout</h2>\n");
    let latencies = &summary.latencies;
    if latencies.is_empty() {
        page.push_str("<p>No result with a latency yet.</p>\n");
        return;
    }
    let near = latencies
        .iter()
        .filter(|latency| latency.share() >= 0.5)
        .count();
    let _ = writeln!(
        page,
        "<p>The last result of {} probes; {near} took half of their timeout or longer. The wider a bar, the more probes.</p>\n<p \
         class=\"soft key\"><i class=\"s-well\"></i>below half of the timeout <i class=\"s-near\"></i>half or more <i \
         class=\"s-over\"></i>the whole timeout</p>",
        latencies.len()
    );
    page.push_str(&plot::svg(latencies));
    page.push_str("<h3>Nearest to their timeouts</h3>\n");
    let rows = latencies.iter().map(|latency| {
        let mut cells = probe_cells(&latency.name);
        cells.push(share(latency));
        cells.push(duration(latency.latency_us));
        cells.push(duration(latency.timeout_ms.saturating_mul(1_000)));
        cells
    });
    let headings = [
        "Pod",
        "Container",
        "Probe",
        "Check",
        "#Of timeout",
        "#Latency",
        "#Timeout",
    ];
    table(page, &headings, rows.take(NEAREST), NEAREST);
}

fn share(latency: &Latency) -> String {
    match latency.share() * 100.0 {
        percent if percent < 1.0 => "below 1 %".to_owned(),
        percent => format!("{percent:.0} %"),
    }
}

fn failing(page: &mut String, summary: &Summary) {
    page.push_str("<h2>Failing now</h2>\n");
    if summary.failing.is_empty() {
        page.push_str("<p>No probe's last result is a failure.</p>\n");
        return;
    }
    let rows = summary.failing.iter().map(|failing| {
        let mut cells = probe_cells(&failing.name);
        let status = failing
            .status
            .map_or_else(String::new, |status| format!(" {status}"));
        let threshold = failing
            .threshold
            .map_or_else(String::new, |of| format!(" of {of}"));
        cells.push(format!("{}{status}", safe(&failing.reason)));
        cells.push(format!("{}{threshold}", failing.in_a_row));
        cells.push(safe(&failing.name.node));
        cells
    });
    let headings = [
        "Pod",
        "Container",
        "Probe",
        "Check",
        "Reason",
        "#In a row",
        "Node",
    ];
    table(page, &headings, rows, ROWS);
}

fn nodes(page: &mut String, subject: &Subject<'_>, summary: &Summary) {
    if subject.failed.is_empty() && summary.problems.is_empty() {
        return;
    }
    page.push_str("<h2>Nodes with problems</h2>\n");
    let failed = subject.failed.iter();
    let failed = failed.map(|(node, why)| vec![safe(node), format!("no answer: {}", safe(why))]);
    let problems = summary
        .problems
        .iter()
        .map(|(node, why)| vec![safe(node), safe(why)]);
    table(page, &["Node", "Problem"], failed.chain(problems), ROWS);
}

fn probe_cells(name: &ProbeName) -> Vec<String> {
    let check = format!("<code>{}</code>", safe(&name.check));
    vec![
        safe(&name.pod),
        safe(&name.container),
        safe(&name.probe),
        check,
    ]
}

/// A table. The cells are HTML. A column whose heading begins with `#` contains numbers.
fn table(
    page: &mut String,
    headings: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
    most: usize,
) {
    let class = |heading: &str| {
        if heading.starts_with('#') {
            " class=\"n\""
        } else {
            ""
        }
    };
    page.push_str("<div class=\"wide\"><table>\n<tr>");
    for heading in headings {
        let _ = write!(
            page,
            "<th{}>{}</th>",
            class(heading),
            heading.trim_start_matches('#')
        );
    }
    page.push_str("</tr>\n");
    let mut more = 0_usize;
    for (index, cells) in rows.enumerate() {
        if index >= most {
            more += 1;
            continue;
        }
        page.push_str("<tr>");
        for (heading, cell) in headings.iter().zip(cells) {
            let _ = write!(page, "<td{}>{cell}</td>", class(heading));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    if more > 0 {
        let _ = writeln!(
            page,
            "<p class=\"soft\">and {more} more: kubectl probes get -o json lists all</p>"
        );
    }
}
