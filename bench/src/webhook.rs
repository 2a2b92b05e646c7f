//! The webhook's cost: reviews per second of processor time, latency at half that rate, and the memory of a thousand
//! connections.
//!
//! The clients run on the same machine and use as much processor time as the webhook. So the rate refers to the
//! webhook's own processor time; the total rate of the machine is printed too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::measure::percentile;
use crate::process;
use testbed::run::Run;
use testbed::table::render;
use testbed::webhook::Webhook;
use testbed::webhook::client::{Connection, Dial, review};

/// Number of open connections.
const CONNECTIONS: usize = 4;
/// Concurrent reviews on each connection.
const IN_FLIGHT: usize = 8;
/// Number of connections for the memory measurement.
const CROWD: usize = 1_000;
const GRACE: Duration = Duration::from_secs(10);

/// Runs the measurements and prints the results.
pub(super) fn webhook(run: &Run, program: Option<&std::path::Path>, quick: bool) -> Result<()> {
    let mut webhook = Webhook::start(run, program)?;
    let client = webhook.client()?;
    let body = Bytes::from(review(&pod()).to_string());
    let length = Duration::from_secs(if quick { 2 } else { 10 });
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |what: String, measured: String, aim: &str| {
        rows.push([what, measured, aim.to_owned()]);
    };
    row("bytes of a review".to_owned(), body.len().to_string(), "");
    for (name, dial) in [
        ("HTTP/2", client.dial()),
        ("HTTP/1.1", client.dial().over_http1()),
    ] {
        let pid = webhook.pid();
        let load = |rate| client.block_on(load(dial.clone(), body.clone(), length, rate, pid));
        let _warm = load(None)?;
        let full = load(None)?;
        let per_core = full.answered as f64 / full.cpu.as_secs_f64();
        row(
            format!("{name}, reviews per second and core"),
            format!("{per_core:.0}"),
            "10,000",
        );
        let wall = full.answered as f64 / full.took.as_secs_f64();
        row(
            format!("{name}, per second with the clients beside it"),
            format!("{wall:.0}"),
            "",
        );
        // Half of the rate of one core, or less if the clients leave the webhook less processor time.
        let rate = (per_core / 2.0).min(wall / 2.0);
        let mut half = load(Some(rate))?;
        row(
            format!("{name}, p50 and p99 at {rate:.0} per second"),
            format!(
                "{:.2} and {:.2} ms",
                percentile(&mut half.nanoseconds, 50) as f64 / 1e6,
                percentile(&mut half.nanoseconds, 99) as f64 / 1e6
            ),
            "p99 under 5 ms",
        );
    }
    let memory = |what: &str| -> Result<[String; 3]> {
        let memory = process::memory(webhook.pid())?;
        let mib = |kib: u64| kib as f64 / 1024.0;
        Ok([
            format!("memory {what}, resident (anonymous)"),
            format!("{:.1} ({:.1}) MiB", mib(memory.rss), mib(memory.anonymous)),
            String::new(),
        ])
    };
    rows.push(memory("before the crowd")?);
    for (name, dial) in [
        ("HTTP/2", client.dial()),
        ("HTTP/1.1", client.dial().over_http1()),
    ] {
        let crowd = client.block_on(crowd(dial, body.clone()))?;
        rows.push(memory(&format!("with {CROWD} connections, {name}"))?);
        drop(crowd);
    }
    println!("\nThe webhook, a Pod with four containers and eight probes:\n");
    print!("{}", render(["what", "measured", "aim"], &rows));
    let _status = webhook.stop(GRACE)?;
    Ok(())
}

/// The result of a load.
struct Load {
    answered: usize,
    took: Duration,
    cpu: Duration,
    nanoseconds: Vec<u64>,
}

/// Sends reviews for `length`: as many as possible, or `rate` per second, each at its scheduled time even if earlier
/// ones are not answered yet.
async fn load(
    dial: Dial,
    body: Bytes,
    length: Duration,
    rate: Option<f64>,
    pid: u32,
) -> Result<Load> {
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS * IN_FLIGHT {
        // HTTP/2 multiplexes several reviews.
        let sender = match senders.len() % IN_FLIGHT {
            0 => dial.connect().await?,
            _ => match senders.last() {
                Some(Connection::Http2(sender)) => Connection::Http2(sender.clone()),
                _ => dial.connect().await?,
            },
        };
        senders.push(sender);
    }
    let cpu = process::cpu_ns(pid)?;
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for mut sender in senders {
        let (body, next) = (body.clone(), Arc::clone(&next));
        let _task = tasks.spawn(async move {
            let mut samples = Vec::new();
            while began.elapsed() < length {
                let mut due = Instant::now();
                if let Some(rate) = rate {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let planned = began + Duration::from_secs_f64(number as f64 / rate);
                    due = planned.min(due);
                    if planned > Instant::now() {
                        tokio::time::sleep_until(planned.into()).await;
                        // tokio's timer has a resolution of a millisecond, which must not count as the webhook's latency.
                        due = Instant::now();
                    }
                }
                let _answer = sender.send(body.clone()).await?;
                samples.push(u64::try_from(due.elapsed().as_nanos())?);
            }
            Ok::<_, anyhow::Error>(samples)
        });
    }
    let mut nanoseconds = Vec::new();
    while let Some(samples) = tasks.join_next().await {
        nanoseconds.append(&mut samples.context("a client")??);
    }
    Ok(Load {
        answered: nanoseconds.len(),
        took: began.elapsed(),
        cpu: Duration::from_nanos(process::cpu_ns(pid)? - cpu),
        nanoseconds,
    })
}

/// Open connections, each of which has sent a review.
async fn crowd(dial: Dial, body: Bytes) -> Result<Vec<Connection>> {
    let mut crowd = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let mut connection = dial.connect().await?;
        let _answer = connection.send(body.clone()).await?;
        crowd.push(connection);
    }
    Ok(crowd)
}

/// An ordinary Pod, as an API server sends it.
fn pod() -> Value {
    let timing = |mut probe: Value| {
        for (field, value) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            probe[field] = json!(value);
        }
        probe
    };
    let container = |name: &str| {
        let env: Vec<Value> = (0..12)
            .map(|n| json!({"name": format!("SETTING_{n}"), "value": "a value of some length"}))
            .collect();
        json!({
            "name": name, "image": format!("registry.example/shop/{name}:1.2.3"), "env": env,
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": [{"name": "token", "readOnly": true, "mountPath": "/var/run/secrets/token"}],
            "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
            "livenessProbe": timing(json!({"httpGet": {"path": "/live", "port": "http", "scheme": "HTTP"}})),
            "readinessProbe": timing(json!({"tcpSocket": {"port": 5432}})),
        })
    };
    let containers = ["web", "api", "db", "cache"].map(container);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "shop-5d4f8c7b9-", "namespace": "shop", "creationTimestamp": null,
            "labels": {"app": "shop", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"prometheus.io/scrape": "true"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d4f8c7b9",
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800003", "controller": true}],
        },
        "spec": {
            "containers": containers,
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": []}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {},
    })
}
