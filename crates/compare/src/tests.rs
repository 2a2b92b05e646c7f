//! Comparisons of real connections: the mesh and the pod are two listeners.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::*;
use model::inbound::Inbound;
use model::{Mesh, PodId, ProbeKind, Rewritten};
use probe::verdict::Reason;

/// Dials this address in place of the pod's.
struct To(SocketAddr);

impl Dial for To {
    fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)
    }

    fn destination(&self, _to: SocketAddr) -> SocketAddr {
        self.0
    }
}

/// Dials an open port the first time, and a closed one after that.
struct Once {
    open: SocketAddr,
    closed: SocketAddr,
    dials: AtomicUsize,
}

impl Dial for Once {
    fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)
    }

    fn destination(&self, _to: SocketAddr) -> SocketAddr {
        match self.dials.fetch_add(1, Ordering::Relaxed) {
            0 => self.open,
            _ => self.closed,
        }
    }
}

fn tcp(kind: ProbeKind, port: u16) -> Probe {
    Probe {
        container: "app".to_owned(),
        kind,
        action: Action::Tcp { port },
        timeout: Some(Duration::from_secs(1)),
        schedule: model::Schedule::default(),
    }
}

fn pod(probes: Vec<Probe>, rewritten: Option<Rewritten>) -> Pod {
    Pod {
        id: PodId {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            uid: "u".to_owned(),
        },
        ips: Vec::new(),
        ips_are_old: false,
        mesh: Mesh::Istio,
        inbound: Inbound::by_default(Mesh::Istio),
        localhost: false,
        http: None,
        proxy_uid: None,
        probes,
        rewritten,
        netns: None,
    }
}

/// An address with a listener, and one without.
async fn open_and_closed() -> (TcpListener, SocketAddr, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let open = listener.local_addr().expect("address");
    let unused = TcpListener::bind("127.0.0.3:0").await.expect("bind");
    let closed = unused.local_addr().expect("address");
    (listener, open, closed)
}

async fn compared(mesh: &dyn Dial, pod_dialer: &dyn Dial) -> (Compared, Comparison) {
    let observed = observed(&pod(vec![tcp(ProbeKind::Liveness, 80)], None));
    let found = observed[0]
        .compare(mesh, pod_dialer, Ipv4Addr::LOCALHOST.into())
        .await;
    (found, observed[0].comparison())
}

#[tokio::test]
async fn a_difference_between_mesh_and_app_is_a_change() {
    let (_listener, open, closed) = open_and_closed().await;
    for (mesh, app, change, counts) in [
        (open, open, Change::None, (1, 0, 0)),
        (closed, closed, Change::None, (1, 0, 0)),
        (closed, open, Change::Cured, (1, 1, 0)),
        (open, closed, Change::Exposed, (1, 0, 1)),
    ] {
        let (found, comparison) = compared(&To(mesh), &To(app)).await;
        assert_eq!(found.change, change);
        let Comparison {
            compared,
            cured,
            exposed,
            last,
        } = comparison;
        assert_eq!((compared, cured, exposed), counts, "{change}");
        assert_eq!(last, Some(found));
    }
}

#[tokio::test]
async fn a_difference_that_a_second_check_does_not_confirm_is_unclear() {
    let (_listener, open, closed) = open_and_closed().await;
    let mesh = Once {
        open,
        closed,
        dials: AtomicUsize::new(0),
    };
    let (found, comparison) = compared(&mesh, &To(closed)).await;
    assert_eq!(found.change, Change::Unclear);
    assert_eq!((comparison.compared, comparison.exposed), (0, 0));
}

#[test]
fn a_rewritten_probe_is_compared_with_its_original() {
    let original = tcp(ProbeKind::Readiness, 5432);
    let observed = observed(&pod(
        vec![tcp(ProbeKind::PostStart, 80)],
        Some(Rewritten {
            mode: ProbeMode::Takeover,
            port: 15020,
            originals: vec![("/app-health/app/readyz".to_owned(), original.clone())],
        }),
    ));
    assert_eq!(observed.len(), 1, "a hook is not observed");
    let one = &observed[0];
    assert_eq!(one.declared, original);
    assert_eq!(one.mode, ProbeMode::Takeover);
    assert_eq!(
        (one.now.action.protocol(), one.now.action.port()),
        ("http", 15020)
    );
}

#[tokio::test]
async fn the_reason_of_the_failing_check_is_kept() {
    let (_listener, open, closed) = open_and_closed().await;
    let (found, _) = compared(&To(open), &To(closed)).await;
    assert_eq!(found.then.reason, Reason::Refused);
    assert_eq!(failing_reason(&found), Reason::Refused);
    let (found, _) = compared(&To(closed), &To(open)).await;
    assert_eq!(failing_reason(&found), Reason::Refused);
}
