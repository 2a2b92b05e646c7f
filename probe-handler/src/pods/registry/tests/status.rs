//! What the addresses in a pod's status are good for.

use super::*;

#[test]
fn an_address_that_the_status_does_not_name_is_neither_served_nor_contested() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])]);
    let mut named = pod(2, 80);
    named.ips = vec!["10.0.0.2".parse().expect("an address")];
    let _ = bench.replace(vec![pod(1, 80), named]);
    // Somebody in the pod gives it its neighbour's address, and the API server's.
    bench.place(2, 2, &["10.0.0.1", "10.0.0.2", "10.96.0.1"]);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
}

/// Pod 1 with a status that names this address, and this port.
fn named(port: u16, ip: &str) -> Vec<Pod> {
    let mut pod = pod(1, port);
    pod.ips = vec![ip.parse().expect("an address")];
    vec![pod]
}

#[test]
fn a_sandbox_made_anew_is_served_before_the_status_names_its_address() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.registry.place("1", None, None);
    bench.serves(&[]);
    // The kernel may even give the new namespace the old one's number.
    bench.place(1, 1, &["10.0.0.2"]);
    bench.serves(&[("10.0.0.2:80", 1)]);
    // Something else in the object changes, the status does not yet.
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[("10.0.0.2:81", 1)]);
    // From now on it counts again.
    let _ = bench.replace(named(81, "10.0.0.2"));
    bench.place(1, 1, &["10.0.0.2", "10.96.0.1"]);
    bench.serves(&[("10.0.0.2:81", 1)]);
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[]);
}

#[test]
fn a_pod_that_changes_its_address_where_it_is_is_held_to_its_status() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.place(1, 1, &["10.0.0.2"]);
    bench.serves(&[]);
}
