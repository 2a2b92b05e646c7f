//! Decides which of the two data paths serves an endpoint.
//!
//! The handler's path exempts only declared HTTP paths from the mesh, and answers with a status code. The kernel path
//! exempts the kubelet's own connections to a port.

use probe_handler_common::endpoint::{GATE, KERNEL, LOCALHOST, READ_GRPC, READ_HTTP, REDIRECT};

use model::HttpBy;
use serve::table::{NativeRoutes, Routes};

/// How a pod uses the kernel path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelUse {
    /// For every protocol that allows it; the value is the path that serves HTTP.
    First(HttpBy),
    /// Only while the handler does not answer: our rules are in the pod, but the last trial connection was inconclusive.
    Fallback,
}

/// The flags of an endpoint with `routes`. `kernel`: how the pod uses the kernel path; `None`: not at all. `localhost`: see
/// [`model::Pod::localhost`]; connections on the kernel path reach the pod's own address only.
pub fn flags(routes: &Routes, kernel: Option<KernelUse>, localhost: bool) -> u32 {
    match routes {
        // The app does not listen on this port, so neither the gate nor the exemption applies.
        Routes::Rewritten(_) => REDIRECT,
        Routes::Native(_) if localhost => GATE | REDIRECT | LOCALHOST,
        Routes::Native(native) => match (kind(native), kernel) {
            (_, None) => GATE | REDIRECT,
            (Kind::Opaque, Some(KernelUse::First(_)))
            | (Kind::Http, Some(KernelUse::First(HttpBy::Kernel))) => KERNEL | read(routes, native),
            (_, Some(_)) => GATE | REDIRECT | KERNEL | read(routes, native),
        },
    }
}

/// The protocol in which the programs read the app's answers on the kernel path; 0 if several probes share the port,
/// because the programs can't know which probe an answer belongs to.
fn read(routes: &Routes, native: &NativeRoutes) -> u32 {
    match (routes.all().len(), &native.grpc) {
        (1, Some(_)) => READ_GRPC,
        (1, None) if !native.http.is_empty() => READ_HTTP,
        _ => 0,
    }
}

/// The flags of an endpoint with `flags` while the handler can't serve its pod; `None`: nothing serves the endpoint. The
/// kernel path needs neither the gate nor the handler.
pub fn by_kernel_alone(flags: u32) -> Option<u32> {
    (flags & KERNEL != 0).then_some(flags & (KERNEL | READ_HTTP | READ_GRPC))
}

/// The kind of checks declared on a port.
enum Kind {
    /// Plaintext HTTP.
    Http,
    /// TCP, HTTPS or gRPC, whose bytes the handler does not parse either.
    Opaque,
    /// Several kinds: the handler classifies each connection, so that each probe has its own result.
    Several,
}

fn kind(routes: &NativeRoutes) -> Kind {
    let opaque = [&routes.tcp, &routes.https, &routes.grpc];
    let opaque = opaque.into_iter().flatten().count();
    match (opaque, routes.http.is_empty()) {
        (0, _) => Kind::Http,
        (1, true) => Kind::Opaque,
        _ => Kind::Several,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use model::{Action, ProbeMode};
    use serve::table::{HttpRoute, Route};

    fn route() -> Option<Arc<Route>> {
        Some(Arc::new(Route {
            members: Vec::new(),
            timeout: None,
            shorter: Vec::new(),
            agents: Vec::new(),
            action: Action::Tcp { port: 80 },
            mode: ProbeMode::Transparent,
            stats: Default::default(),
        }))
    }

    fn native(tcp: bool, http: bool, https: bool, grpc: bool) -> Routes {
        let http_route = HttpRoute {
            probe: route(),
            hook: None,
        };
        let target = || ("/".to_owned(), http_route);
        Routes::Native(NativeRoutes {
            tcp: tcp.then(route).flatten(),
            http: http.then(target).into_iter().collect(),
            https: https.then(route).flatten(),
            grpc: grpc.then(route).flatten(),
        })
    }

    #[test]
    fn tcp_https_and_grpc_take_the_kernel_path() {
        for (routes, read) in [
            (native(true, false, false, false), 0),
            (native(false, false, true, false), 0),
            (native(false, false, false, true), READ_GRPC),
        ] {
            for http in [HttpBy::Handler, HttpBy::Kernel] {
                let flags = flags(&routes, Some(KernelUse::First(http)), false);
                assert_eq!(flags, KERNEL | read);
            }
            assert_eq!(flags(&routes, None, false), GATE | REDIRECT);
        }
    }

    #[test]
    fn http_takes_the_handlers_path_unless_set_to_the_kernel_path() {
        let http = native(false, true, false, false);
        let both = GATE | REDIRECT | KERNEL | READ_HTTP;
        assert_eq!(
            flags(&http, Some(KernelUse::First(HttpBy::Handler)), false),
            both
        );
        assert_eq!(
            flags(&http, Some(KernelUse::First(HttpBy::Kernel)), false),
            KERNEL | READ_HTTP
        );
        assert_eq!(flags(&http, None, false), GATE | REDIRECT);
    }

    #[test]
    fn several_kinds_on_one_port_take_the_handlers_path_while_it_answers() {
        for routes in [
            native(true, true, false, false),
            native(false, true, true, false),
            native(true, false, false, true),
        ] {
            for http in [HttpBy::Handler, HttpBy::Kernel] {
                assert_eq!(
                    flags(&routes, Some(KernelUse::First(http)), false),
                    GATE | REDIRECT | KERNEL
                );
            }
            assert_eq!(flags(&routes, None, false), GATE | REDIRECT);
        }
    }

    #[test]
    fn as_a_fallback_the_kernel_path_comes_after_the_handler() {
        for (routes, read) in [
            (native(true, false, false, false), 0),
            (native(false, true, false, false), READ_HTTP),
            (native(true, true, false, false), 0),
        ] {
            let fallback = flags(&routes, Some(KernelUse::Fallback), false);
            assert_eq!(fallback, GATE | REDIRECT | KERNEL | read);
        }
    }

    #[test]
    fn answers_are_read_only_where_one_check_is_declared_on_the_port() {
        let both = NativeRoutes {
            http: [("/a", route()), ("/b", route())]
                .map(|(path, probe)| (path.to_owned(), HttpRoute { probe, hook: None }))
                .into(),
            ..NativeRoutes::default()
        };
        let kernel = Some(KernelUse::First(HttpBy::Kernel));
        assert_eq!(flags(&Routes::Native(both), kernel, false), KERNEL);
    }

    #[test]
    fn without_the_handler_the_kernel_path_serves_what_it_can() {
        assert_eq!(by_kernel_alone(KERNEL), Some(KERNEL));
        assert_eq!(by_kernel_alone(GATE | REDIRECT | KERNEL), Some(KERNEL));
        for flags in [GATE | REDIRECT, REDIRECT, GATE | REDIRECT | LOCALHOST] {
            assert_eq!(by_kernel_alone(flags), None);
        }
    }

    #[test]
    fn rewritten_probes_take_the_handlers_path() {
        let rewritten = Routes::Rewritten(Default::default());
        assert_eq!(
            flags(&rewritten, Some(KernelUse::First(HttpBy::Kernel)), false),
            REDIRECT
        );
    }

    #[test]
    fn a_pod_whose_mesh_connects_to_localhost_takes_the_handlers_path() {
        for routes in [
            native(true, false, false, false),
            native(false, true, false, false),
        ] {
            let by_handler = flags(&routes, Some(KernelUse::First(HttpBy::Kernel)), true);
            assert_eq!(by_handler, GATE | REDIRECT | LOCALHOST);
        }
        let rewritten = Routes::Rewritten(Default::default());
        assert_eq!(flags(&rewritten, None, true), REDIRECT);
    }
}
