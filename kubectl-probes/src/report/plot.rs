//! The plot of latencies against timeouts, as SVG: a column for each timeout, in which the width at a latency shows how many
//! probes have it. Both the latencies and the timeout of a column are on one logarithmic axis.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::summary::Latency;
use status_view::explain::duration;

/// Size of the plot, and of its margins.
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;
const COLUMN: f64 = 108.0;
/// Maximum number of columns; probes with longer timeouts share the last one.
const COLUMNS: usize = 8;
/// Bars for each factor of ten.
const STEPS: f64 = 12.0;
/// The lowest latency of the axis.
const LEAST_US: f64 = 100.0;
/// A latency above this part of the timeout is marked.
const NEAR: f64 = 0.5;

/// The probes with one timeout.
struct Column {
    timeout_us: f64,
    label: String,
    bars: BTreeMap<i32, Bar>,
    probes: usize,
}

/// Probes with similar latencies.
#[derive(Default)]
struct Bar {
    probes: usize,
    /// The largest latency as a part of its timeout.
    share: f64,
}

/// The plot; `latencies` is not empty.
pub fn svg(latencies: &[Latency]) -> String {
    let columns = columns(latencies);
    let timeouts = columns.iter().map(|column| column.timeout_us);
    let slowest = latencies.iter().map(|latency| latency.latency_us as f64);
    let highest = timeouts.chain(slowest).fold(1e6, f64::max);
    let top = bar(highest) + 2;
    let width = LEFT + COLUMN * columns.len() as f64 + 16.0;
    let y = |step: f64| {
        let plot = HEIGHT - TOP - BOTTOM;
        TOP + plot * (1.0 - step / f64::from(top))
    };
    let step_of = |us: f64| STEPS * (us.max(LEAST_US) / LEAST_US).log10();
    let bars = columns.iter().flat_map(|column| column.bars.values());
    let most = bars.map(|bar| bar.probes).max().unwrap_or(1) as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-label=\"Latencies of probes against their timeouts\">\n"
    );
    // Powers of ten.
    let mut us = LEAST_US;
    while step_of(us) <= f64::from(top) {
        let at = y(step_of(us));
        let label = duration(us as u64);
        let right = width - 16.0;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
             <text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            at + 4.0,
        );
        us *= 10.0;
    }
    for (index, column) in columns.iter().enumerate() {
        let middle = LEFT + COLUMN * (index as f64 + 0.5);
        for (&bar, Bar { probes, share }) in &column.bars {
            // Scales by the square root, so that a bar of few probes remains visible beside a bar of many.
            let half = (COLUMN * 0.42 * (*probes as f64 / most).sqrt()).max(1.5);
            let (low, high) = (y(f64::from(bar)), y(f64::from(bar + 1)));
            let latency = LEAST_US * 10_f64.powf((f64::from(bar) + 0.5) / STEPS);
            let class = class(*share);
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{high:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>{probes} {} about {}</title></rect>",
                middle - half,
                2.0 * half,
                (low - high - 1.0).max(1.0),
                if *probes == 1 { "probe" } else { "probes" },
                duration(latency as u64),
            );
        }
        let at = y(step_of(column.timeout_us));
        let (left, right) = (middle - COLUMN * 0.46, middle + COLUMN * 0.46);
        let base = HEIGHT - BOTTOM;
        let _ = writeln!(
            svg,
            "<line class=\"limit\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"label\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">timeout {}</text>\
             <text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} {}</text>",
            base + 20.0,
            column.label,
            base + 36.0,
            column.probes,
            if column.probes == 1 {
                "probe"
            } else {
                "probes"
            },
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn columns(latencies: &[Latency]) -> Vec<Column> {
    let mut of_timeout: BTreeMap<u64, Vec<&Latency>> = BTreeMap::new();
    for latency in latencies {
        let same = of_timeout.entry(latency.timeout_ms).or_default();
        same.push(latency);
    }
    let is_more = of_timeout.len() > COLUMNS;
    let mut columns: Vec<Column> = Vec::new();
    for (timeout_ms, latencies) in of_timeout {
        if columns.len() < COLUMNS {
            let last = is_more && columns.len() + 1 == COLUMNS;
            let from = if last { "from " } else { "" };
            columns.push(Column {
                timeout_us: timeout_ms as f64 * 1e3,
                label: format!("{from}{}", duration(timeout_ms.saturating_mul(1000))),
                bars: BTreeMap::new(),
                probes: 0,
            });
        }
        let Some(column) = columns.last_mut() else {
            continue;
        };
        for latency in latencies {
            let at = bar(latency.latency_us as f64);
            let bar = column.bars.entry(at).or_default();
            bar.probes += 1;
            bar.share = bar.share.max(latency.share());
            column.probes += 1;
        }
    }
    columns
}

/// The bar of a latency.
fn bar(us: f64) -> i32 {
    (STEPS * (us.max(LEAST_US) / LEAST_US).log10()).floor() as i32
}

fn class(share: f64) -> &'static str {
    match share {
        share if share >= 1.0 => "over",
        share if share >= NEAR => "near",
        _ => "well",
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::ProbeName;
    use super::*;

    fn latency(latency_us: u64, timeout_ms: u64) -> Latency {
        let name = ProbeName {
            node: String::new(),
            pod: String::new(),
            container: String::new(),
            probe: String::new(),
            check: String::new(),
        };
        Latency {
            name,
            latency_us,
            timeout_ms,
        }
    }

    #[test]
    fn each_timeout_has_a_column_and_near_latencies_are_marked() {
        let svg = svg(&[
            latency(412, 1_000),
            latency(420, 1_000),
            latency(700_000, 1_000),
            latency(6_000_000, 5_000),
        ]);
        for expected in ["timeout 1 s", "timeout 5 s", "3 probes", "1 probe<"] {
            assert!(svg.contains(expected), "{expected} not in\n{svg}");
        }
        for class in ["well", "near", "over"] {
            assert_eq!(
                svg.matches(&format!("rect class=\"{class}\"")).count(),
                1,
                "{class}"
            );
        }
    }

    #[test]
    fn many_timeouts_share_the_last_column_and_extreme_values_stay_inside() {
        let latencies: Vec<_> = (1..40).map(|timeout| latency(0, timeout * 1_000)).collect();
        let plot = svg(&latencies);
        assert_eq!(plot.matches("class=\"limit\"").count(), COLUMNS);
        assert!(plot.contains("timeout from 8 s"));
        let plot = svg(&[latency(u64::MAX, 1), latency(1, u64::MAX)]);
        for number in plot.split("y=\"").skip(1) {
            let number = number
                .split('"')
                .next()
                .and_then(|text| text.parse::<f64>().ok());
            assert!(
                number.is_some_and(|y| (0.0..=HEIGHT).contains(&y)),
                "{number:?}"
            );
        }
    }
}
