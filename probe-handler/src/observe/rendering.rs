//! The text of `/metrics`, in the format that the client accepts. On a full node rendering takes a millisecond or more, and
//! every client that reaches the node may request it: [`Rendering::recent`] renders at most once a second.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use support::exposition::{Format, text_format};
use tokio::time::Instant;

/// Maximum age of the text of [`Rendering::recent`]. Prometheus does not scrape more often.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The metrics of a registry as text.
pub struct Rendering {
    registry: Arc<Registry>,
    last: Mutex<Option<Rendered>>,
}

/// The metrics at one time.
struct Rendered {
    open_metrics: Bytes,
    /// The same in the text format, once a client has requested it.
    text: Option<Bytes>,
    at: Instant,
}

impl Rendered {
    fn text(&mut self, format: Format) -> Bytes {
        let text = match format {
            Format::OpenMetrics => &self.open_metrics,
            Format::Text => self.text.get_or_insert_with(|| {
                let open_metrics = String::from_utf8_lossy(&self.open_metrics);
                Bytes::from(text_format(&open_metrics))
            }),
        };
        text.clone()
    }
}

impl Rendering {
    /// Renders nothing until the first request.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            last: Mutex::new(None),
        }
    }

    /// The current values, or those of at most a second ago. Callers share one text.
    ///
    /// # Errors
    /// A metric can't be encoded.
    pub fn recent(&self, format: Format) -> Result<Bytes, fmt::Error> {
        let mut last = self.last.lock();
        match &mut *last {
            Some(rendered) if rendered.at.elapsed() < MAX_AGE => Ok(rendered.text(format)),
            _ => self.render(&mut last, format),
        }
    }

    /// The current values.
    ///
    /// # Errors
    /// Those of [`Rendering::recent`].
    pub fn now(&self, format: Format) -> Result<Bytes, fmt::Error> {
        self.render(&mut self.last.lock(), format)
    }

    fn render(&self, last: &mut Option<Rendered>, format: Format) -> Result<Bytes, fmt::Error> {
        let at = Instant::now();
        // Allocates a little more than the length of the last text, so that it need not grow and little
        // memory is unused.
        let length = last
            .take()
            .map_or(0, |rendered| rendered.open_metrics.len());
        let mut text = String::with_capacity(length + length / 16);
        encode(&mut text, &self.registry)?;
        let rendered = last.insert(Rendered {
            open_metrics: Bytes::from(text),
            text: None,
            at,
        });
        Ok(rendered.text(format))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::time::advance;

    use super::Format::{OpenMetrics, Text};
    use super::*;

    /// A counter, and a rendering of its registry.
    fn counted() -> (Counter, Rendering) {
        let counter: Counter = Counter::default();
        let mut registry = Registry::default();
        registry.register("events", "Events", counter.clone());
        (counter, Rendering::new(Arc::new(registry)))
    }

    fn events(text: &Bytes) -> String {
        let text = String::from_utf8_lossy(text);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("events_total "));
        line.expect("the counter").to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_serves_for_a_second_and_is_shared() {
        let (counter, rendering) = counted();
        let first = rendering.recent(OpenMetrics).expect("text");
        let _ = counter.inc();
        advance(Duration::from_millis(999)).await;
        let second = rendering.recent(OpenMetrics).expect("text");
        assert_eq!(events(&second), "0");
        assert_eq!(second.as_ptr(), first.as_ptr(), "it was copied");
        advance(Duration::from_millis(1)).await;
        assert_eq!(events(&rendering.recent(OpenMetrics).expect("text")), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn its_age_counts_from_its_rendering_and_not_from_the_last_request() {
        let (counter, rendering) = counted();
        let _ = rendering.recent(OpenMetrics).expect("text");
        let _ = counter.inc();
        for _ in 0..3 {
            advance(Duration::from_millis(400)).await;
            let _ = rendering.recent(OpenMetrics).expect("text");
        }
        assert_eq!(events(&rendering.recent(OpenMetrics).expect("text")), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn now_returns_the_current_values() {
        let (counter, rendering) = counted();
        for expected in ["0", "1", "2"] {
            assert_eq!(events(&rendering.now(OpenMetrics).expect("text")), expected);
            let _ = counter.inc();
        }
        assert_eq!(events(&rendering.recent(OpenMetrics).expect("text")), "2");
    }

    #[tokio::test(start_paused = true)]
    async fn both_formats_are_of_one_rendering() {
        let (counter, rendering) = counted();
        let _ = rendering.recent(OpenMetrics).expect("text");
        let _ = counter.inc();
        let text = rendering.recent(Text).expect("text");
        assert_eq!(
            text,
            "# HELP events_total Events.\n# TYPE events_total counter\nevents_total 0\n"
        );
        let again = rendering.recent(Text).expect("text");
        assert_eq!(again.as_ptr(), text.as_ptr(), "it was written again");
    }
}
