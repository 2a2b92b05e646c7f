//! The two text formats of metrics: OpenMetrics 1.0.0, the format of prometheus-client, and Prometheus' older text format
//! 0.0.4 for scrapers that do not accept OpenMetrics. Such scrapers refuse the type `info`, and do not find the type of a
//! counter.

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// <https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    Text,
}

impl Format {
    /// The format for a request with this `Accept`. As in Prometheus' own libraries, only a client that names OpenMetrics
    /// gets it, and it gets it unless it prefers `text/plain`.
    pub fn accepted(accept: Option<&str>) -> Self {
        let ranges = accept.unwrap_or_default().split(',');
        let best = |wanted: fn(&str) -> bool| {
            let qualities = ranges.clone().filter_map(move |range| {
                let mut parts = range.split(';').map(str::trim);
                let media = parts.next()?.to_ascii_lowercase();
                wanted(&media).then(|| quality(parts))
            });
            qualities.max().unwrap_or(0)
        };
        let open_metrics = best(|media| media == "application/openmetrics-text");
        let text = best(|media| media == "text/plain");
        match open_metrics > 0 && open_metrics >= text {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// `q` of a media range, in thousandths: 1000 if there is none (RFC 9110, section 12.4.2).
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> u16 {
    let value = parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map(|(_, value)| value.trim().parse::<f32>());
    match value {
        None => 1000,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1000"
        )]
        Some(Ok(quality)) if (0.0..=1.0).contains(&quality) => (quality * 1000.0).round() as u16,
        Some(_) => 0,
    }
}

/// Rewrites OpenMetrics text, as prometheus-client writes it, in the text format: there the comments name a counter and an
/// info by the name of their samples, an info is a gauge, and units and the end are not marked.
pub fn text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(named) = line.strip_prefix("# HELP ") {
            help = named.split_once(' ');
        } else if let Some(named) = line.strip_prefix("# TYPE ") {
            let (name, kind) = named.split_once(' ').unwrap_or((named, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(helped, _)| *helped == name) {
                push(&mut text, &["# HELP ", name, suffix, " ", help]);
            }
            push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push(&mut text, &[line]);
        }
    }
    text
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn open_metrics_is_for_clients_that_name_it_and_do_not_prefer_text() {
        // As Prometheus 3 sends it.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            prometheus,
            "application/openmetrics-text",
            "text/plain, Application/OpenMetrics-Text; version=1.0.0",
            "application/openmetrics-text; Q=0.001, */*",
        ] {
            assert_eq!(
                Format::accepted(Some(accept)),
                Format::OpenMetrics,
                "{accept}"
            );
        }
        for accept in [
            "",
            "*/*",
            "text/plain;version=0.0.4;q=1,*/*;q=0.1",
            "text/html, application/json",
            "application/openmetrics-text;q=0, */*",
            "application/openmetrics-text;q=0.2, text/plain;q=0.3",
            "application/openmetrics-text;q=none",
            "application/openmetrics-text;q=7",
        ] {
            assert_eq!(Format::accepted(Some(accept)), Format::Text, "{accept}");
        }
        assert_eq!(Format::accepted(None), Format::Text);
    }

    #[test]
    fn the_text_format_has_only_types_and_names_of_its_own() {
        let mut registry = Registry::default();
        registry.register("build", "Version", Info::new([("version", "1")]));
        let counter: Counter = Counter::default();
        registry.register("events", "Events", counter);
        let gauge: Gauge = Gauge::default();
        registry.register("pods", "Pods", gauge);
        let histogram = Histogram::new([0.5]);
        histogram.observe(0.25);
        registry.register_with_unit("duration", "Time", Unit::Seconds, histogram);
        let mut open_metrics = String::new();
        encode(&mut open_metrics, &registry).expect("text");
        assert_eq!(
            text_format(&open_metrics),
            "# HELP build_info Version.\n\
             # TYPE build_info gauge\n\
             build_info{version=\"1\"} 1\n\
             # HELP events_total Events.\n\
             # TYPE events_total counter\n\
             events_total 0\n\
             # HELP pods Pods.\n\
             # TYPE pods gauge\n\
             pods 0\n\
             # HELP duration_seconds Time.\n\
             # TYPE duration_seconds histogram\n\
             duration_seconds_sum 0.25\n\
             duration_seconds_count 1\n\
             duration_seconds_bucket{le=\"0.5\"} 1\n\
             duration_seconds_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
