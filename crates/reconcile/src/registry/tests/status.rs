//! How the addresses in a pod's status limit where it is served.

use super::*;

#[test]
fn an_address_that_is_not_in_the_status_is_neither_served_nor_in_conflict() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])]);
    let mut named = pod(2, 80);
    named.ips = vec!["10.0.0.2".parse().expect("an address")];
    let _ = bench.replace(vec![pod(1, 80), named]);
    // A process in the pod gives it another pod's address, and the API server's.
    bench.place(2, 2, &["10.0.0.1", "10.0.0.2", "10.96.0.1"]);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
}

/// Pod 1 with this port, and with this address in its status.
fn named(port: u16, ip: &str) -> Vec<Pod> {
    let mut pod = pod(1, port);
    pod.ips = vec![ip.parse().expect("an address")];
    vec![pod]
}

#[test]
fn a_new_sandbox_is_served_before_its_address_is_in_the_status() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.registry.place("1", None, None);
    bench.serves(&[]);
    // The kernel may reuse the old namespace's number.
    let anew = |addresses: &[&str]| Placement {
        sandbox: 2,
        ..placement(1, addresses)
    };
    bench.registry.place("1", Some(anew(&["10.0.0.2"])), None);
    bench.serves(&[("10.0.0.2:80", 1)]);
    // Something else in the object changes, but not yet the status.
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[("10.0.0.2:81", 1)]);
    // The status changes: from now on it counts again.
    let _ = bench.replace(named(81, "10.0.0.2"));
    let more = anew(&["10.0.0.2", "10.96.0.1"]);
    bench.registry.place("1", Some(more), None);
    bench.serves(&[("10.0.0.2:81", 1)]);
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[]);
}

/// Someone who may configure the pod's interfaces can make reading its addresses fail for a moment.
#[test]
fn a_pod_that_was_lost_for_a_moment_is_still_limited_to_its_status() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.registry.place("1", None, None);
    bench.place(1, 1, &["10.0.0.1", "10.96.0.1"]);
    bench.serves(&[("10.0.0.1:80", 1)]);
    bench.registry.place("1", None, None);
    bench.place(1, 1, &["10.96.0.1"]);
    bench.serves(&[]);
}

#[test]
fn a_new_sandbox_with_the_address_of_the_old_one_is_limited_to_it() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.registry.place("1", None, None);
    bench.place(1, 2, &["10.0.0.1", "10.96.0.1"]);
    bench.serves(&[("10.0.0.1:80", 2)]);
}

#[test]
fn an_ipv4_mapped_address_counts_as_the_ipv4_address() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["::ffff:10.0.0.1"])]);
    bench.serves(&[]);
    bench.place(2, 2, &["::ffff:10.0.0.2"]);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
}

#[test]
fn a_pod_that_changes_its_address_in_its_sandbox_is_limited_to_its_status() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.place(1, 1, &["10.0.0.2"]);
    bench.serves(&[]);
}

/// A container with CAP_NET_ADMIN may give its pod any number of addresses.
#[test]
fn the_address_in_the_status_is_served_however_many_others_there_are() {
    let others: Vec<String> = (1..=100).map(|n| format!("10.0.0.{n}")).collect();
    let mut all: Vec<&str> = others.iter().map(String::as_str).collect();
    all.push("10.0.1.1");
    let mut bench = Bench::with(&[(1, &all)]);
    let mut unnamed = named(80, "10.0.1.1");
    unnamed[0].ips.clear();
    let _ = bench.replace(unnamed);
    let first: Vec<String> = (1..=32).map(|n| format!("10.0.0.{n}:80")).collect();
    bench.serves(&first.iter().map(|at| (at.as_str(), 1)).collect::<Vec<_>>());
    let _ = bench.replace(named(80, "10.0.1.1"));
    bench.serves(&[("10.0.1.1:80", 1)]);
}

#[test]
fn addresses_from_before_a_restart_count_only_where_the_pod_still_has_them() {
    let known = |ips_are_old| Pod {
        ips: vec![ip("10.0.0.1")],
        ips_are_old,
        ..pod(1, 80)
    };
    let served_with_another = |pod: Pod| {
        let mut bench = Bench::new();
        let _ = bench.replace(vec![pod]);
        bench.place(1, 1, &["10.0.0.9"]);
        bench
    };
    served_with_another(known(false)).serves(&[]);
    // The sandbox was replaced while no API server answered: the addresses in the namespace count until the status changes.
    let mut bench = served_with_another(known(true));
    bench.serves(&[("10.0.0.9:80", 1)]);
    let _ = bench.replace(vec![known(false)]);
    bench.serves(&[("10.0.0.9:80", 1)]);
    bench.place(1, 1, &["10.0.0.1", "10.0.0.9"]);
    bench.serves(&[("10.0.0.1:80", 1)]);
    // This shows that they are this sandbox's: another address added to it is not served.
    bench.place(1, 1, &["10.0.0.9"]);
    bench.serves(&[]);
}
