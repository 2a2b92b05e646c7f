//! The text of `/metrics`. On a full node rendering takes a millisecond or more, and every client that reaches the node may
//! request it: [`Rendering::recent`] renders at most once a second.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Maximum age of the text of [`Rendering::recent`]. Prometheus does not scrape more often.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The metrics of a registry as OpenMetrics text.
pub struct Rendering {
    registry: Arc<Registry>,
    last: Mutex<Option<Rendered>>,
}

/// A text, and when it was rendered.
struct Rendered {
    text: Bytes,
    at: Instant,
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
    pub fn recent(&self) -> Result<Bytes, fmt::Error> {
        let mut last = self.last.lock();
        match &*last {
            Some(rendered) if rendered.at.elapsed() < MAX_AGE => Ok(rendered.text.clone()),
            _ => self.render(&mut last),
        }
    }

    /// The current values.
    ///
    /// # Errors
    /// As [`Rendering::recent`].
    pub fn now(&self) -> Result<Bytes, fmt::Error> {
        self.render(&mut self.last.lock())
    }

    fn render(&self, last: &mut Option<Rendered>) -> Result<Bytes, fmt::Error> {
        let at = Instant::now();
        // A little longer than the last text, so that it need not grow, and little memory is unused.
        let length = last.take().map_or(0, |rendered| rendered.text.len());
        let mut text = String::with_capacity(length + length / 16);
        encode(&mut text, &self.registry)?;
        let text = Bytes::from(text);
        *last = Some(Rendered {
            text: text.clone(),
            at,
        });
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::time::advance;

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
        let first = rendering.recent().expect("text");
        let _ = counter.inc();
        advance(Duration::from_millis(999)).await;
        let second = rendering.recent().expect("text");
        assert_eq!(events(&second), "0");
        assert_eq!(second.as_ptr(), first.as_ptr(), "it was copied");
        advance(Duration::from_millis(1)).await;
        assert_eq!(events(&rendering.recent().expect("text")), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn its_age_counts_from_its_rendering_and_not_from_the_last_request() {
        let (counter, rendering) = counted();
        let _ = rendering.recent().expect("text");
        let _ = counter.inc();
        for _ in 0..3 {
            advance(Duration::from_millis(400)).await;
            let _ = rendering.recent().expect("text");
        }
        assert_eq!(events(&rendering.recent().expect("text")), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn now_returns_the_current_values() {
        let (counter, rendering) = counted();
        for expected in ["0", "1", "2"] {
            assert_eq!(events(&rendering.now().expect("text")), expected);
            let _ = counter.inc();
        }
        assert_eq!(events(&rendering.recent().expect("text")), "2");
    }
}
