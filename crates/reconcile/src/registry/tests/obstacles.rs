//! What serves a pod in which the daemon can't dial.

use probe_handler_common::endpoint::{GATE, KERNEL, READ_HTTP, REDIRECT};

use super::*;
use model::{HttpBy, Scheme};

/// An obstacle of each kind to the handler.
fn obstacles() -> [Obstacle; 3] {
    let why = String::new;
    [
        Obstacle::Captured(why()),
        Obstacle::Costly(why()),
        Obstacle::LoDown(why()),
    ]
}

/// A pod with a TCP probe on port 80 and an HTTP probe on port 81.
fn tcp_and_http() -> Pod {
    let mut pod = pod(1, 80);
    let mut http = pod.probes[0].clone();
    http.action = Action::Http {
        scheme: Scheme::Http,
        port: 81,
        target: "/healthy".to_owned(),
        headers: Vec::new(),
    };
    pod.probes.push(http);
    pod
}

impl Bench {
    /// The flags of the endpoints in the kernel, by port.
    fn flags(&self) -> Vec<(u16, u32)> {
        let kernel = self.kernel.lock();
        let all = kernel.map.iter();
        all.map(|(address, value)| (address.port(), value.flags))
            .collect()
    }
}

#[test]
fn an_obstacle_to_the_handler_leaves_a_pod_its_kernel_path() {
    for kernel in [KernelUse::First(HttpBy::Handler), KernelUse::Fallback] {
        let mut bench = Bench::new();
        let _ = bench.replace(vec![tcp_and_http()]);
        bench.place(1, 1, &["10.0.0.1"]);
        bench.registry.set_kernel("1", Some(kernel));
        let before = bench.flags();
        let endpoint = bench.table.get(address("10.0.0.1:81")).expect("endpoint");
        for obstacle in obstacles() {
            bench.registry.set_obstacle("1", Some(obstacle.clone()));
            assert_eq!(
                bench.flags(),
                [(80, KERNEL), (81, KERNEL | READ_HTTP)],
                "{obstacle:?}"
            );
            let is_proved = matches!(kernel, KernelUse::First(_));
            assert_eq!(bench.registry.pods()["1"].is_by_kernel_alone(), is_proved);
            bench.registry.set_obstacle("1", None);
            assert_eq!(bench.flags(), before, "after {obstacle:?}");
        }
        assert!(!bench.registry.pods()["1"].is_by_kernel_alone());
        let now = bench.table.get(address("10.0.0.1:81")).expect("endpoint");
        assert!(
            Arc::ptr_eq(&endpoint, &now),
            "its connections refer to the endpoint"
        );
        bench.kept_order();
    }
}

#[test]
fn an_obstacle_withholds_what_only_the_handler_serves() {
    let mut bench = Bench::new();
    let _ = bench.replace(vec![tcp_and_http()]);
    bench.place(1, 1, &["10.0.0.1"]);
    assert_eq!(
        bench.flags(),
        [(80, GATE | REDIRECT), (81, GATE | REDIRECT)]
    );
    for obstacle in obstacles() {
        bench.registry.set_obstacle("1", Some(obstacle));
        bench.serves(&[]);
        assert!(!bench.registry.pods()["1"].is_by_kernel_alone());
    }
    // The kernel path is found to work only now.
    bench
        .registry
        .set_kernel("1", Some(KernelUse::First(HttpBy::Handler)));
    assert_eq!(bench.flags(), [(80, KERNEL), (81, KERNEL | READ_HTTP)]);
    bench.registry.place("1", None, None);
    bench.serves(&[]);
}
