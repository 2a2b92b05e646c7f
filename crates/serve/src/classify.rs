//! Classifies a connection by its first bytes and by what its endpoint declares.

use std::sync::Arc;

use super::client_hello::may_be_probe;
use super::table::{HttpRoute, NativeRoutes, Route, Routes};
use probe::HEAD_LIMIT;
use probe::request::Request;

/// What to do with a connection.
#[derive(Clone)]
pub enum Decision {
    /// More bytes are needed to decide.
    More,
    /// Not declared: relay it through the mesh.
    Relay,
    /// A declared check that is end-to-end encrypted or HTTP/2: splice it.
    Splice(Arc<Route>),
    /// A declared HTTP request whose head is complete: check the app and answer.
    Check(Arc<Route>),
}

/// The protocol that the first bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// A TLS handshake.
    Tls,
    /// HTTP/2 with prior knowledge, which gRPC in plaintext uses.
    Http2,
    /// An HTTP/1 GET.
    Get,
    /// Anything else: not a probe.
    Other,
}

/// Decides by the `bytes` received so far. `by_agent`: a GET on an app's own port must also have the User-Agent of the
/// probe, because the kubelet's process makes connections for other components too.
pub fn decide(routes: &Routes, bytes: &[u8], by_agent: bool) -> Decision {
    match (routes, protocol(bytes)) {
        (_, None) => Decision::More,
        (
            Routes::Native(NativeRoutes {
                https: Some(https), ..
            }),
            Some(Protocol::Tls),
        ) => match may_be_probe(bytes) {
            None => Decision::More,
            Some(true) => Decision::Splice(Arc::clone(https)),
            Some(false) => Decision::Relay,
        },
        (Routes::Native(native), Some(Protocol::Http2)) => splice(native.grpc.as_ref()),
        (Routes::Native(native), Some(Protocol::Get)) if native.http.is_empty() => Decision::Relay,
        (_, Some(Protocol::Get)) => request(routes, bytes, by_agent),
        (_, Some(_)) => Decision::Relay,
    }
}

fn splice(route: Option<&Arc<Route>>) -> Decision {
    route.map_or(Decision::Relay, |route| Decision::Splice(Arc::clone(route)))
}

/// The protocol of `bytes`; `None` while several are still possible.
fn protocol(bytes: &[u8]) -> Option<Protocol> {
    /// Record type handshake, and the major version of all TLS versions (RFC 8446, 5.1).
    const TLS: &[u8] = &[0x16, 0x03];
    /// The whole connection preface (RFC 9113, 3.4). Until it is complete, the connection is not classified as HTTP/2, and
    /// the app gets none of its bytes.
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const GET: &[u8] = b"GET ";
    let whole = |pattern: &[u8]| bytes.starts_with(pattern);
    match bytes {
        _ if whole(TLS) => Some(Protocol::Tls),
        _ if whole(HTTP2) => Some(Protocol::Http2),
        _ if whole(GET) => Some(Protocol::Get),
        _ if [TLS, HTTP2, GET].iter().any(|one| one.starts_with(bytes)) => None,
        _ => Some(Protocol::Other),
    }
}

/// Decides about the GET in `bytes`: checks it only if it is declared.
fn request(routes: &Routes, bytes: &[u8], by_agent: bool) -> Decision {
    let request = match Request::parse(bytes) {
        Ok(Some(request)) if request.length <= HEAD_LIMIT => request,
        Ok(None) if bytes.len() < HEAD_LIMIT => return Decision::More,
        _ => return Decision::Relay,
    };
    // Bytes after the head are an unannounced body or another request.
    if request.method != "GET" || request.has_body() || bytes.len() != request.length {
        return Decision::Relay;
    }
    let route = match routes {
        Routes::Native(native) => native_route(native, &request, by_agent),
        Routes::Rewritten(paths) => paths.get(request.target),
    };
    route.map_or(Decision::Relay, |route| Decision::Check(Arc::clone(route)))
}

/// The route of `request` on an app's own port. Both a probe and a lifecycle hook may declare the same
/// target; the kubelet's User-Agent shows which of them this request is.
fn native_route<'a>(
    native: &'a NativeRoutes,
    request: &Request<'_>,
    by_agent: bool,
) -> Option<&'a Arc<Route>> {
    let HttpRoute { probe, hook } = native.http.get(request.target)?;
    let agent = request.header("user-agent").unwrap_or_default();
    let by_hook = agent.starts_with(b"kube-lifecycle/");
    let mut routes = match (probe, hook) {
        (Some(probe), Some(hook)) if by_hook => vec![hook, probe],
        _ => probe.iter().chain(hook).collect(),
    };
    if by_agent && !by_hook && !agent.starts_with(b"kube-probe/") {
        routes.retain(|route| route.agents.iter().any(|own| own.as_bytes() == agent));
    }
    routes.first().copied()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;
    use std::time::Duration;

    use super::super::table::RouteStats;
    use super::*;
    use crate::metrics::fixtures::member;
    use crate::tests::client_hello;
    use model::{Action, Probe, ProbeKind, ProbeMode};

    /// A route whose container is `name`.
    fn route(name: &str, kind: ProbeKind) -> Arc<Route> {
        Arc::new(Route {
            members: vec![Probe {
                container: name.to_owned(),
                ..member(kind, Action::Tcp { port: 1 })
            }],
            action: Action::Tcp { port: 1 },
            timeout: Some(Duration::from_secs(1)),
            shorter: Vec::new(),
            mode: ProbeMode::Transparent,
            agents: Vec::new(),
            stats: RouteStats::default(),
        })
    }

    fn probe(name: &str) -> Option<Arc<Route>> {
        Some(route(name, ProbeKind::Liveness))
    }

    fn hook(name: &str) -> Option<Arc<Route>> {
        Some(route(name, ProbeKind::PreStop))
    }

    /// Routes of all kinds on one port; a probe and a hook declare `/both`.
    fn everything() -> Routes {
        let targets = [
            ("/probe?a=b", probe("probe"), None),
            ("/hook", None, hook("hook")),
            ("/both", probe("both-probe"), hook("both-hook")),
        ];
        Routes::Native(NativeRoutes {
            tcp: probe("tcp"),
            http: targets
                .into_iter()
                .map(|(target, probe, hook)| (target.to_owned(), HttpRoute { probe, hook }))
                .collect(),
            https: probe("https"),
            grpc: probe("grpc"),
        })
    }

    fn rewritten() -> Routes {
        let path = "/app-health/app/livez".to_owned();
        Routes::Rewritten(HashMap::from([(path, route("livez", ProbeKind::Liveness))]))
    }

    fn text(decision: &Decision) -> String {
        let name = |route: &Route| route.members[0].container.clone();
        match decision {
            Decision::More => "more".to_owned(),
            Decision::Relay => "relay".to_owned(),
            Decision::Splice(route) => format!("splice {}", name(route)),
            Decision::Check(route) => format!("check {}", name(route)),
        }
    }

    #[track_caller]
    fn check(routes: &Routes, bytes: impl AsRef<[u8]>, expect: &str) {
        let bytes = bytes.as_ref();
        let decision = text(&decide(routes, bytes, false));
        assert_eq!(decision, expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn the_first_bytes_determine_the_protocol() {
        let all = everything();
        for (bytes, expect) in [
            ("", "more"),
            ("\u{16}", "more"),
            ("\u{16}\u{3}", "more"),
            ("\u{16}\u{3}\u{1}\u{2}", "more"),
            ("\u{16}\u{2}", "relay"),
            ("P", "more"),
            ("PR", "more"),
            ("PRI * HTTP/2.0\r", "more"),
            ("PRI * HTTP/2.0\r\n", "more"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "more"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "splice grpc"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", "splice grpc"),
            ("PRI * HTTP/2.0\r\nHost: a\r\n", "relay"),
            ("PRI * HTTP/1.1\r\n", "relay"),
            ("PROPFIND", "relay"),
            ("PO", "relay"),
            ("G", "more"),
            ("GET", "more"),
            ("GET ", "more"),
            ("GET /probe", "more"),
            ("GEt", "relay"),
            ("get /", "relay"),
            ("HEAD / HTTP/1.1\r\n", "relay"),
            ("220 smtp", "relay"),
            ("\0", "relay"),
        ] {
            check(&all, bytes, expect);
        }
    }

    #[test]
    fn what_is_not_declared_is_relayed() {
        let only = |change: fn(&mut NativeRoutes)| {
            let mut native = NativeRoutes {
                tcp: probe("tcp"),
                ..NativeRoutes::default()
            };
            change(&mut native);
            Routes::Native(native)
        };
        let https = only(|native| native.https = probe("https"));
        let grpc = only(|native| native.grpc = probe("grpc"));
        let (tls, http2) = (client_hello("10.0.0.7"), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        check(&https, &tls, "splice https");
        check(&https, client_hello("cart.shop.svc"), "relay");
        check(&https, http2, "relay");
        check(&https, "GET /probe", "relay");
        check(&grpc, &tls, "relay");
        check(&grpc, http2, "splice grpc");
        check(&rewritten(), &tls, "relay");
        check(&rewritten(), http2, "relay");
    }

    #[test]
    fn only_a_declared_get_without_a_body_is_checked() {
        let all = everything();
        for (request, expect) in [
            ("GET /probe?a=b HTTP/1.1\r\n\r\n", "check probe"),
            ("GET /probe?a=b HTTP/1.0\r\n\r\n", "check probe"),
            (
                "GET /probe?a=b HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
                "check probe",
            ),
            ("GET /probe?a=b HTTP/1.1\r\n", "more"),
            ("GET /probe HTTP/1.1\r\n\r\n", "relay"),
            ("GET /probe?a=b#c HTTP/1.1\r\n\r\n", "relay"),
            ("GET /PROBE?a=b HTTP/1.1\r\n\r\n", "relay"),
            ("GET /%70robe?a=b HTTP/1.1\r\n\r\n", "relay"),
            ("GET http://pod/probe?a=b HTTP/1.1\r\n\r\n", "relay"),
            (
                "GET /probe?a=b HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
                "relay",
            ),
            (
                "GET /probe?a=b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "relay",
            ),
            ("GET /probe?a=b HTTP/1.1\r\n\r\nmore", "relay"),
            ("GET /probe?a=b HTTP/9\r\n\r\n", "relay"),
        ] {
            check(&all, request, expect);
        }
    }

    #[test]
    fn a_hook_is_identified_by_its_user_agent() {
        let all = everything();
        for (target, agent, expect) in [
            ("/both", "kube-probe/1.36", "check both-probe"),
            ("/both", "kube-lifecycle/1.36", "check both-hook"),
            ("/both", "custom", "check both-probe"),
            ("/hook", "kube-lifecycle/1.36", "check hook"),
            ("/hook", "custom", "check hook"),
            ("/probe?a=b", "kube-lifecycle/1.36", "check probe"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n");
            check(&all, request, expect);
        }
    }

    #[test]
    fn in_a_shared_process_the_user_agent_must_match_too() {
        let declaring = |name: &str, kind, agents: &[&str]| {
            let mut route = Arc::into_inner(route(name, kind)).expect("the only one");
            route.agents = agents.iter().map(|agent| (*agent).to_owned()).collect();
            Some(Arc::new(route))
        };
        let routes = |probe: &[&str], hook: &[&str]| {
            let http = HttpRoute {
                probe: declaring("probe", ProbeKind::Liveness, probe),
                hook: declaring("hook", ProbeKind::PreStop, hook),
            };
            Routes::Native(NativeRoutes {
                http: HashMap::from([("/target".to_owned(), http)]),
                ..NativeRoutes::default()
            })
        };
        for (probe, hook, agent, expect) in [
            (&[][..], &[][..], "kube-probe/1.36", "check probe"),
            (&[], &[], "kube-lifecycle/1.36", "check hook"),
            (&[], &[], "kubectl/v1.36.0", "relay"),
            (&[], &[], "", "relay"),
            // Of two probes that share the target, one may declare a User-Agent and the other none.
            (&["mine/1"], &[], "kube-probe/1.36", "check probe"),
            (&["mine/1", "mine/2"], &[], "mine/2", "check probe"),
            (&["mine/1"], &["mine/2"], "mine/2", "check hook"),
            (&["mine/1"], &["mine/2"], "mine/3", "relay"),
        ] {
            let routes = routes(probe, hook);
            let request = format!("GET /target HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n");
            let decision = decide(&routes, request.as_bytes(), true);
            assert_eq!(text(&decision), expect, "{probe:?} {hook:?} {agent}");
            let decision = decide(&routes, request.as_bytes(), false);
            assert_ne!(text(&decision), "relay", "{probe:?} {hook:?} {agent}");
        }
        let without = b"GET /target HTTP/1.1\r\n\r\n";
        assert_eq!(text(&decide(&routes(&[], &[]), without, true)), "relay");
        let rewritten_get = b"GET /app-health/app/livez HTTP/1.1\r\n\r\n";
        let decision = decide(&rewritten(), rewritten_get, true);
        assert_eq!(text(&decision), "check livez");
    }

    #[test]
    fn a_rewritten_path_must_be_exact() {
        for (target, expect) in [
            ("/app-health/app/livez", "check livez"),
            ("/app-health/app/livez?", "relay"),
            ("/app-health/app/livez?a", "relay"),
            ("/app-health/app/readyz", "relay"),
            ("/healthz/ready", "relay"),
        ] {
            check(
                &rewritten(),
                format!("GET {target} HTTP/1.1\r\n\r\n"),
                expect,
            );
        }
    }

    #[test]
    fn a_head_that_is_too_large_is_relayed() {
        let all = everything();
        let mut request = "GET /probe?a=b HTTP/1.1\r\n".to_owned();
        while request.len() < HEAD_LIMIT - 1000 {
            write!(request, "X: {}\r\n", "x".repeat(500)).expect("it fits");
        }
        check(&all, &request, "more");
        check(&all, format!("{request}\r\n"), "check probe");
        let larger = request.clone() + &"x".repeat(1100);
        check(&all, &larger, "relay");
        check(
            &all,
            request + "X: " + &"x".repeat(1100) + "\r\n\r\n",
            "relay",
        );
        let many = "X: y\r\n".repeat(300);
        check(
            &all,
            format!("GET /probe?a=b HTTP/1.1\r\n{many}\r\n"),
            "relay",
        );
    }
}
