//! What a connection is, by its first bytes and by what its endpoint declares.

use std::sync::Arc;

use super::table::{NativeRoutes, Route, Routes};
use crate::check::HEAD_LIMIT;
use crate::check::request::Request;

/// What to do with a connection.
#[derive(Clone)]
pub enum Decision {
    /// More bytes are needed to tell.
    More,
    /// Not declared: relay it as if we did not exist.
    Relay,
    /// A declared check that is end-to-end encrypted or HTTP/2: splice it.
    Splice(Arc<Route>),
    /// A declared HTTP request: the bytes are its whole head, and we answer it.
    Check(Arc<Route>),
}

/// What the first bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A TLS handshake.
    Tls,
    /// HTTP/2 with prior knowledge, as gRPC in plaintext has it.
    Http2,
    /// An HTTP/1 GET.
    Get,
    /// Something that no probe begins with.
    Other,
}

/// Decides by the `bytes` seen so far.
pub fn decide(routes: &Routes, bytes: &[u8]) -> Decision {
    match (routes, kind(bytes)) {
        (_, None) => Decision::More,
        (Routes::Native(native), Some(Kind::Tls)) => splice(native.https.as_ref()),
        (Routes::Native(native), Some(Kind::Http2)) => splice(native.grpc.as_ref()),
        (Routes::Native(native), Some(Kind::Get)) if native.http.is_empty() => Decision::Relay,
        (_, Some(Kind::Get)) => request(routes, bytes),
        (_, Some(_)) => Decision::Relay,
    }
}

fn splice(route: Option<&Arc<Route>>) -> Decision {
    route.map_or(Decision::Relay, |route| Decision::Splice(Arc::clone(route)))
}

/// What `bytes` begin; none while it may still become several things.
fn kind(bytes: &[u8]) -> Option<Kind> {
    /// Record type handshake, and the major version of all TLS versions (RFC 8446, 5.1).
    const TLS: &[u8] = &[0x16, 0x03];
    /// RFC 9113, 3.4, up to the end of its first line.
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";
    const GET: &[u8] = b"GET ";
    let whole = |pattern: &[u8]| bytes.starts_with(pattern);
    match bytes {
        _ if whole(TLS) => Some(Kind::Tls),
        _ if whole(HTTP2) => Some(Kind::Http2),
        _ if whole(GET) => Some(Kind::Get),
        _ if [TLS, HTTP2, GET].iter().any(|one| one.starts_with(bytes)) => None,
        _ => Some(Kind::Other),
    }
}

/// Whether the GET in `bytes` is a declared one.
fn request(routes: &Routes, bytes: &[u8]) -> Decision {
    let request = match Request::parse(bytes) {
        Ok(Some(request)) if request.length <= HEAD_LIMIT => request,
        Ok(None) if bytes.len() < HEAD_LIMIT => return Decision::More,
        _ => return Decision::Relay,
    };
    // Bytes behind the head are a body that was not announced, or another request.
    if request.method != "GET" || request.has_body() || bytes.len() != request.length {
        return Decision::Relay;
    }
    let route = match routes {
        Routes::Native(native) => native_route(native, &request),
        Routes::Rewritten(paths) => paths.get(request.target),
    };
    route.map_or(Decision::Relay, |route| Decision::Check(Arc::clone(route)))
}

/// The route of `request` on an app's own port. The same target may be declared by a probe and by a
/// lifecycle hook; the kubelet's User-Agent tells which one calls.
fn native_route<'a>(native: &'a NativeRoutes, request: &Request<'_>) -> Option<&'a Arc<Route>> {
    let declared = native.http.get(request.target)?;
    let by_hook = request
        .header("user-agent")
        .is_some_and(|agent| agent.starts_with(b"kube-lifecycle/"));
    match (&declared.hook, &declared.probe) {
        (Some(hook), _) if by_hook => Some(hook),
        (_, Some(probe)) => Some(probe),
        (hook, None) => hook.as_ref(),
    }
}
