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
    let anew = |addresses: &[&str]| Placement {
        sandbox: 2,
        ..placement(1, addresses)
    };
    bench.registry.place("1", Some(anew(&["10.0.0.2"])), None);
    bench.serves(&[("10.0.0.2:80", 1)]);
    // Something else in the object changes, the status does not yet.
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[("10.0.0.2:81", 1)]);
    // From now on it counts again.
    let _ = bench.replace(named(81, "10.0.0.2"));
    let more = anew(&["10.0.0.2", "10.96.0.1"]);
    bench.registry.place("1", Some(more), None);
    bench.serves(&[("10.0.0.2:81", 1)]);
    let _ = bench.replace(named(81, "10.0.0.1"));
    bench.serves(&[]);
}

/// Who may configure the pod's interfaces can make us fail to read its addresses for a moment.
#[test]
fn a_pod_that_was_lost_for_a_moment_is_held_to_its_status() {
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
fn a_sandbox_made_anew_with_the_address_of_the_one_before_is_held_to_it() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.registry.place("1", None, None);
    bench.place(1, 2, &["10.0.0.1", "10.96.0.1"]);
    bench.serves(&[("10.0.0.1:80", 2)]);
}

#[test]
fn an_ipv4_address_in_the_clothes_of_ipv6_is_the_ipv4_address() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["::ffff:10.0.0.1"])]);
    bench.serves(&[]);
    bench.place(2, 2, &["::ffff:10.0.0.2"]);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
}

#[test]
fn a_pod_that_changes_its_address_where_it_is_is_held_to_its_status() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let _ = bench.replace(named(80, "10.0.0.1"));
    bench.place(1, 1, &["10.0.0.2"]);
    bench.serves(&[]);
}

/// A container with CAP_NET_ADMIN may give its pod any number of addresses.
#[test]
fn the_address_that_the_status_names_is_served_among_however_many() {
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
    // The sandbox was made anew while no API server answered: what is there counts, until its status says more.
    let mut bench = served_with_another(known(true));
    bench.serves(&[("10.0.0.9:80", 1)]);
    let _ = bench.replace(vec![known(false)]);
    bench.serves(&[("10.0.0.9:80", 1)]);
    bench.place(1, 1, &["10.0.0.1", "10.0.0.9"]);
    bench.serves(&[("10.0.0.1:80", 1)]);
    // That proves that they are of this sandbox: whoever gives it another address draws nothing.
    bench.place(1, 1, &["10.0.0.9"]);
    bench.serves(&[]);
}
