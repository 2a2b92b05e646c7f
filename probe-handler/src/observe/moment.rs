//! Times as ages and as RFC 3339.

use std::time::Instant;

use serve::history::now_ms;
pub use status_view::time::rfc3339;

/// The same moment on the monotonic clock and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the monotonic clock.
    pub instant: Instant,
    /// By the wall clock, in milliseconds since 1970.
    pub ms: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            ms: now_ms(),
        }
    }

    /// Milliseconds since `earlier`.
    pub fn age_ms(self, earlier: Instant) -> u64 {
        let age = self.instant.saturating_duration_since(earlier);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }

    /// `earlier` by the wall clock, in RFC 3339.
    pub fn time_of(self, earlier: Instant) -> String {
        rfc3339(self.ms.saturating_sub(self.age_ms(earlier)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_age_is_a_time() {
        let now = Instant::now();
        let moment = Moment {
            instant: now + Duration::from_secs(2),
            ms: 5_000,
        };
        assert_eq!(moment.age_ms(now), 2_000);
        assert_eq!(moment.time_of(now), "1970-01-01T00:00:03Z");
    }
}
