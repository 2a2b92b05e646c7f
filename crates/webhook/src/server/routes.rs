//! The routes of each server.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};

use super::Limits;
use super::body::{self, BodyError};
use super::budget::Budget;
use crate::Rewriting;
use crate::metrics::Metrics;
use crate::review::{NoReview, Reviewed, review};
use support::exposition::{Format, text_format};
use support::readiness::Readiness;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Bodies of at least this size are parsed on a separate thread, one at a time.
const LARGE: usize = 256 << 10;

type Reply = Response<Bytes>;

/// The routes of a server.
pub(super) enum Routes {
    Admission(Admission),
    Observation(Observation),
}

/// The admission server: `/mutate`, and health checks over the same path as reviews.
pub struct Admission {
    rewriting: watch::Receiver<Arc<Rewriting>>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    large: Arc<Semaphore>,
}

/// Health and metrics.
pub struct Observation {
    /// Served at `/metrics`.
    pub registry: Arc<Registry>,
    /// Served at `/readyz`.
    pub readiness: Readiness,
}

impl Admission {
    /// Answers reviews with the current value of `rewriting`.
    pub fn new(
        rewriting: watch::Receiver<Arc<Rewriting>>,
        readiness: Readiness,
        metrics: Arc<Metrics>,
        limits: &Limits,
    ) -> Self {
        Self {
            rewriting,
            readiness,
            metrics,
            budget: Budget::new(limits.bodies, limits.requests),
            large: Arc::new(Semaphore::new(1)),
        }
    }

    async fn mutate(&self, request: Request<Incoming>, limits: &Limits) -> Reply {
        let began = Instant::now();
        let reply = match self.reviewed(request, limits).await {
            Ok(reviewed) => {
                self.metrics.reviewed(reviewed.outcome, began.elapsed());
                return reply(StatusCode::OK, JSON, reviewed.json);
            }
            Err(refusal) => refusal,
        };
        self.metrics.refused(reply.status());
        reply
    }

    async fn reviewed(
        &self,
        request: Request<Incoming>,
        limits: &Limits,
    ) -> Result<Reviewed, Reply> {
        if request.method() != Method::POST {
            return Err(only(Method::POST));
        }
        if !is_json(&request) {
            let text = "the body must be application/json\n";
            return Err(reply(StatusCode::UNSUPPORTED_MEDIA_TYPE, TEXT, text));
        }
        let mut share = self.budget.share();
        let body = body::read(request.into_body(), &mut share, limits)
            .await
            .map_err(|error| no_body(&error))?;
        let rewriting = Arc::clone(&self.rewriting.borrow());
        if body.len() < LARGE {
            return review(&body, &rewriting).map_err(|error| no_review(&error));
        }
        // This takes milliseconds, so do it one at a time on a thread that blocks no other request.
        let Ok(turn) = Arc::clone(&self.large).acquire_owned().await else {
            return Err(internal("large reviews can't be processed"));
        };
        let work = tokio::task::spawn_blocking(move || {
            let reviewed = review(&body, &rewriting);
            drop((body, share, turn));
            reviewed
        });
        match work.await {
            Ok(reviewed) => reviewed.map_err(|error| no_review(&error)),
            Err(error) => Err(internal(&error.to_string())),
        }
    }
}

impl Routes {
    /// Answers any request.
    pub(super) async fn answer(&self, request: Request<Incoming>, limits: &Limits) -> Reply {
        let path = request.uri().path();
        match (self, path) {
            (Self::Admission(admission), "/mutate") => admission.mutate(request, limits).await,
            (Self::Admission(Admission { readiness, .. }), "/readyz")
            | (Self::Observation(Observation { readiness, .. }), "/readyz") => {
                get(request.method(), || readyz(readiness))
            }
            (_, "/healthz") => get(request.method(), || reply(StatusCode::OK, TEXT, "ok\n")),
            (Self::Observation(observation), "/metrics") => {
                let accept = request.headers().get(ACCEPT);
                let format = Format::accepted(accept.and_then(|value| value.to_str().ok()));
                get(request.method(), || scrape(&observation.registry, format))
            }
            _ => reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }

    /// Counts a failed TLS handshake, of an API server that does not trust the certificate yet or of any other client.
    pub(super) fn handshake_failed(&self, why: &str) {
        tracing::debug!(why, "a TLS handshake failed");
        if let Self::Admission(admission) = self {
            let _ = admission.metrics.handshake_failures.inc();
        }
    }
}

/// Whether the request's content type is JSON, with or without parameters.
fn is_json(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(JSON))
}

fn get(method: &Method, answer: impl FnOnce() -> Reply) -> Reply {
    if method == Method::GET {
        answer()
    } else {
        only(Method::GET)
    }
}

fn only(method: Method) -> Reply {
    let text = format!("only {method} is allowed\n");
    let mut refusal = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    if let Ok(value) = HeaderValue::from_str(method.as_str()) {
        let _ = refusal.headers_mut().insert(ALLOW, value);
    }
    refusal
}

fn no_body(error: &BodyError) -> Reply {
    let status = match error {
        BodyError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        BodyError::Broken(_) => StatusCode::BAD_REQUEST,
    };
    let mut refusal = reply(status, TEXT, format!("{error}\n"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let _ = refusal
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    refusal
}

fn no_review(error: &NoReview) -> Reply {
    reply(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n"))
}

fn internal(error: &str) -> Reply {
    let text = format!("{error}\n");
    reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
}

fn readyz(readiness: &Readiness) -> Reply {
    let pending = readiness.pending();
    if pending.is_empty() {
        return reply(StatusCode::OK, TEXT, "ready\n");
    }
    let text = format!("not ready, waiting for:\n{}\n", pending.join("\n"));
    reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

fn scrape(registry: &Registry, format: Format) -> Reply {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, registry) {
        return internal(&error.to_string());
    }
    if format == Format::Text {
        text = text_format(&text);
    }
    reply(StatusCode::OK, format.content_type(), text)
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let _ = response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
