//! Failures between the daemon and the API server, with messages that an operator can act on.

use std::error::Error as StdError;
use std::time::Duration;

use kube::client::AuthError;
use kube::core::Status;

use super::object::Resource;
use support::error_chain::chain;

/// The kind of a failure, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The server can't be reached, or the connection broke.
    Unreachable,
    /// The server did not answer in time.
    Timeout,
    /// The server rejects the token (401).
    Unauthorized,
    /// The server denies permission (403).
    Forbidden,
    /// The server no longer has the version to resume from (410): everything is listed again.
    Expired,
    /// The server answered with any other error.
    Server,
    /// The server's answer can't be parsed.
    Malformed,
    /// The server ended the watch soon after it began.
    Closed,
    /// The server has sent nothing for too long.
    Silent,
}

impl Reason {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Expired,
        Self::Server,
        Self::Malformed,
        Self::Closed,
        Self::Silent,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Expired => "expired",
            Self::Server => "server",
            Self::Malformed => "malformed",
            Self::Closed => "closed",
            Self::Silent => "silent",
        }
    }

    /// Whether the failure also occurs with a healthy server, and so is reported only if it repeats.
    pub const fn is_usual(self) -> bool {
        matches!(self, Self::Expired | Self::Closed | Self::Silent)
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchError {
    /// Its kind.
    pub reason: Reason,
    /// For operators: what failed, and what to do.
    pub text: String,
    /// How long to wait before a retry, if the server has set it.
    pub retry_after: Option<Duration>,
    /// Whether resuming from the known version is useless.
    pub relist: bool,
}

impl WatchError {
    /// A failure with only a kind and a text.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
            retry_after: None,
            relist: matches!(reason, Reason::Expired | Reason::Malformed),
        }
    }

    /// The client's error for a request to `verb` `resource`.
    pub fn of_client(error: &kube::Error, verb: &str, resource: Resource) -> Self {
        let name = resource.name();
        match error {
            kube::Error::Api(status) => Self::of_status(status, verb, resource),
            kube::Error::SerdeError(error) => Self::new(
                Reason::Malformed,
                format!("the API server's answer to {verb} {name} can't be read: {error}"),
            ),
            kube::Error::FromUtf8(error) => Self::new(
                Reason::Malformed,
                format!("the API server's answer to {verb} {name} is not UTF-8 text: {error}"),
            ),
            kube::Error::Auth(error) => Self::no_token(error),
            kube::Error::Service(error) => match error.downcast_ref() {
                Some(error) => Self::no_token(error),
                None => Self::unreachable(error.as_ref(), verb, name),
            },
            error => Self::unreachable(error, verb, name),
        }
    }

    fn no_token(error: &AuthError) -> Self {
        let text = format!("no usable token for the API server: {}", chain(error));
        Self::new(Reason::Unauthorized, text)
    }

    fn unreachable(error: &dyn StdError, verb: &str, name: &str) -> Self {
        let text = format!("can't {verb} {name}: {}", chain(error));
        Self::new(Reason::Unreachable, text)
    }

    /// The server's error for a request to `verb` `resource`.
    pub fn of_status(status: &Status, verb: &str, resource: Resource) -> Self {
        let name = resource.name();
        let message = match (status.message.trim(), status.reason.trim()) {
            ("", "") => "(no message)".to_owned(),
            ("", message) | (message, _) => message.to_owned(),
        };
        let (reason, text) = match (status.code, status.reason.as_str()) {
            (401, _) => (
                Reason::Unauthorized,
                format!(
                    "the API server does not accept our token to {verb} {name} (HTTP 401): is it the \
                     token of an existing ServiceAccount of this cluster? Its file is read again \
                     for each request. The server's message: {message}"
                ),
            ),
            (403, _) => (
                Reason::Forbidden,
                format!(
                    "the API server does not allow us to {verb} {name} (HTTP 403): bind a ClusterRole \
                     with this rule to the ServiceAccount: {{apiGroups: [\"\"], resources: \
                     [\"{name}\"], verbs: [\"get\", \"list\", \"watch\"]}}. The server's message: {message}"
                ),
            ),
            (410, _) | (_, "Expired" | "Gone") => (
                Reason::Expired,
                format!(
                    "the API server no longer has the resourceVersion from which to {verb} {name}: {message}"
                ),
            ),
            (408 | 504, _) | (_, "Timeout" | "ServerTimeout") => (
                Reason::Timeout,
                format!("the API server took too long to {verb} {name}: {message}"),
            ),
            (code, _) => (
                Reason::Server,
                format!("the API server can't {verb} {name} (HTTP {code}): {message}"),
            ),
        };
        let details = status.details.as_ref();
        Self {
            reason,
            text,
            retry_after: details
                .map(|details| details.retry_after_seconds)
                .filter(|&seconds| seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.into())),
            relist: reason == Reason::Expired
                || is_refused_as_it_is(status)
                || is_too_large(status),
        }
    }
}

/// Whether the server will never accept the request as it is.
pub const fn is_refused_as_it_is(status: &Status) -> bool {
    matches!(status.code, 400 | 404 | 405 | 406 | 415 | 422)
}

/// Whether the server has not reached the requested version yet. Usually this server lags behind the one that
/// answered earlier; a server restored from a backup never reaches that version.
pub fn is_too_large(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "ResourceVersionTooLarge")
        || status.message.contains("Too large resource version")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> Status {
        Status::failure(message, reason).with_code(code)
    }

    #[test]
    fn a_missing_rule_is_reported_ready_to_paste() {
        let forbidden = status(
            403,
            "Forbidden",
            "pods is forbidden: User \"u\" cannot list resource \"pods\"",
        );
        let trouble = WatchError::of_status(&forbidden, "list", Resource::Pods);
        assert_eq!(trouble.reason, Reason::Forbidden);
        assert!(
            trouble.text.contains(
                r#"{apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch"]}"#
            ),
            "{}",
            trouble.text
        );
        assert!(trouble.text.ends_with(&forbidden.message));
        assert!(!trouble.relist, "the known state stays valid");
    }

    #[test]
    fn a_status_tells_whether_to_go_on_or_to_list_again() {
        for (code, reason, expected, relist) in [
            (401, "Unauthorized", Reason::Unauthorized, false),
            (403, "Forbidden", Reason::Forbidden, false),
            (410, "Expired", Reason::Expired, true),
            (410, "Gone", Reason::Expired, true),
            (429, "TooManyRequests", Reason::Server, false),
            (500, "InternalError", Reason::Server, false),
            (504, "Timeout", Reason::Timeout, false),
            (400, "BadRequest", Reason::Server, true),
            (422, "Invalid", Reason::Server, true),
        ] {
            let trouble = WatchError::of_status(&status(code, reason, ""), "watch", Resource::Pods);
            assert_eq!(
                (trouble.reason, trouble.relist),
                (expected, relist),
                "{code}"
            );
        }
    }

    #[test]
    fn an_error_is_reported_with_each_source_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("no connection")]
        struct Outer(#[source] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("tcp: {0}")]
        struct Middle(#[source] std::io::Error);
        let error = Outer(Middle(std::io::Error::other("refused")));
        assert_eq!(chain(&error), "no connection: tcp: refused");
    }
}
