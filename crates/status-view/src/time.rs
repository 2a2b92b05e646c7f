//! Times as RFC 3339.

use jiff::Timestamp;

/// Now, in RFC 3339, in UTC, to the second.
pub fn now() -> String {
    let now = Timestamp::now().as_second();
    Timestamp::from_second(now).unwrap_or_default().to_string()
}

/// `ms` milliseconds since 1970 in RFC 3339, in UTC.
pub fn rfc3339(ms: u64) -> String {
    let time = i64::try_from(ms).ok().map(Timestamp::from_millisecond);
    time.and_then(Result::ok).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_796_007_600_250), "2026-11-30T03:00:00.25Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
