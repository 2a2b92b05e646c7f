//! Pods whose checks cost much processor time are served with low priority, then not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use socket2::Socket;

use super::harness::*;
use crate::cost::Lane;
use crate::table::{Endpoint, HttpRoute, NativeRoutes, Routes};
use model::ProbeKind;
use probe::dial::Dial;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const MS: Duration = Duration::from_millis(1);

/// Uses this much processor time before it dials.
struct CostlyDial(Duration);

impl Dial for CostlyDial {
    fn socket(&self, to: SocketAddr) -> std::io::Result<Socket> {
        // This counts the thread's own time, because other processes may use the processor too.
        let end = thread_time() + self.0;
        while thread_time() < end {}
        InPod.socket(to)
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    Duration::from(time)
}

fn costly(address: SocketAddr, work: Duration) -> Endpoint {
    let declared = HttpRoute {
        probe: Some(route(ProbeKind::Liveness, http(address.port(), "/"), LONG)),
        hook: None,
    };
    let native = NativeRoutes {
        http: [("/".to_owned(), declared)].into(),
        ..NativeRoutes::default()
    };
    endpoint_dialled(address, Routes::Native(native), Arc::new(CostlyDial(work)))
}

#[tokio::test]
async fn a_pod_whose_dials_cost_much_is_served_by_the_slow_lane() {
    let app = App::answering(OK).await;
    let endpoint = costly(app.address, 150 * MS);
    let pod = Arc::clone(&endpoint.pod);
    let world = World::new([endpoint]).await;
    assert_eq!(pod.cost.lane(Instant::now()), Lane::Prompt);
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 200);
    assert_eq!(pod.cost.lane(Instant::now()), Lane::Slow);
    // Its probes are still answered.
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 200);
    assert!(app.seen().iter().all(|(from, _)| *from == IN_POD));
    assert!(world.excluded.lock().is_empty());
}

#[tokio::test]
async fn a_pod_that_has_cost_too_much_is_relayed_through_the_mesh() {
    let app = App::answering(OK).await;
    let endpoint = costly(app.address, 150 * MS);
    let pod = Arc::clone(&endpoint.pod);
    let world = World::new([endpoint]).await;
    assert!(!pod.cost.spend(2_490 * MS, Instant::now()));
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 200);
    assert!(world.excluded.lock().iter().eq([&pod.id]), "reported once");
    assert_eq!(pod.cost.lane(Instant::now()), Lane::Excluded);

    let answer = world.ask(app.address, &get(app.address, "/")).await;
    assert_eq!(answer.expect("the app's own answer"), OK);
    assert_ne!(app.seen()[1].0, IN_POD);
    assert_eq!(world.excluded.lock().len(), 1);
}
