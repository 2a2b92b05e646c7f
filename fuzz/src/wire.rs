//! Bytes from connections: of the kubelet, and of apps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::Scheme;
use probe::http1::ResponseReader;
use probe::redirect::{Hop, Step};
use probe::request::Request;

/// A request head, and the heads for the app that are made from it: each is one whole GET of the expected target.
pub fn request_head(data: &[u8]) {
    let Ok(Some(request)) = Request::parse(data) else {
        return;
    };
    assert!(request.length <= data.len());
    is_one_get(
        &request.rewritten("/healthz?a=b", 15020, 8080),
        b"/healthz?a=b",
    );
    if request.target.starts_with('/') {
        is_one_get(&request.without_authorization(), request.target.as_bytes());
    }
}

fn is_one_get(head: &[u8], target: &[u8]) {
    let parsed = Request::parse(head)
        .expect("a valid head")
        .expect("a whole head");
    assert_eq!((parsed.method, parsed.target.as_bytes()), ("GET", target));
    assert_eq!(parsed.length, head.len(), "more than one request");
}

/// An answer over HTTP/1: the pieces in which it arrives make no difference.
pub fn response_head(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let read = |piece: usize| {
        let mut reader = ResponseReader::default();
        let mut done = Ok(false);
        for bytes in data.chunks(piece.max(1)) {
            done = reader.feed(bytes);
            if done != Ok(false) {
                break;
            }
        }
        if done == Ok(false) {
            done = reader.end().map(|()| true);
        }
        (done.is_ok(), reader.into_head())
    };
    let (whole, whole_head) = read(data.len());
    let (pieces, head) = read(piece.into());
    assert_eq!(whole, pieces, "{data:?}");
    if whole {
        assert_eq!(whole_head, head, "{data:?}");
    }
}

pub fn http2_answer(data: &[u8]) {
    probe::fuzzing::http2_answer(data);
}

pub fn grpc_answer(data: &[u8]) {
    probe::fuzzing::grpc_answer(data);
}

pub fn certificate(data: &[u8]) {
    probe::fuzzing::certificate(data);
}

pub fn first_bytes(data: &[u8]) {
    serve::fuzzing::first_bytes(data);
}

/// A Location: the request that follows it is one request, to the pod.
pub fn redirect(data: &[u8]) {
    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let address = SocketAddr::new(POD, 8080);
    let (first, location) = match data.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&b"/healthz"[..], data),
    };
    let Ok(target) = std::str::from_utf8(first) else {
        return;
    };
    let Some(hop) = Hop::first(Scheme::Http, address, target, Some(b"app.example")) else {
        return;
    };
    let Step::Follow(next, referer) = hop.step(POD, location) else {
        return;
    };
    let head = b"GET / HTTP/1.1\r\nHost: app.example\r\nX-A: b\r\n\r\n";
    let request = Request::parse(head).expect("valid").expect("whole");
    let head = request.redirected(&next, referer.as_deref());
    // The parser of request heads accepts fewer targets than Go sends (docs/limits.md), but none may add a line.
    let lines = head.split(|&byte| byte == b'\n').count();
    let expected = 6 + usize::from(next.authorization().is_some()) - usize::from(referer.is_none());
    assert_eq!(lines, expected, "{:?}", String::from_utf8_lossy(&head));
}
