//! A frequently probed pod with long redirects does not delay the verdicts of other pods.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::sample_pod::{self, HTTP, Probing};
use crate::{pace, wait};

/// Each redirect has a Location of 15 KB, which leads to the next redirect.
const LONG: &str = "/redirect/long?kb=15";
const SHORT: &str = "/healthy";
/// Probe interval of the redirecting pod: 400 probes a second.
const OFTEN: Duration = Duration::from_micros(2500);
const NEIGHBOURS: usize = 3;
/// Probe interval of a neighbour.
const NOW_AND_THEN: Duration = Duration::from_millis(20);
const TIME: Duration = Duration::from_secs(4);

pub fn run(cases: &mut Cases) -> Result<()> {
    if !cases.skip_if_emulated("redirects") {
        cases.case_in("redirects", redirects);
    }
    Ok(())
}

fn redirects(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let web = |name: &str| {
        PodSpec::new(name)
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().http(HTTP))
            .container(sample_pod::container(
                "web",
                sample_pod::http(HTTP, SHORT),
                sample_pod::http(HTTP, LONG),
            ))
    };
    let hostile = env.pod(web("redirects"))?;
    let neighbours = (0..NEIGHBOURS)
        .map(|number| env.pod(web(&format!("neighbour{number}"))))
        .collect::<Result<Vec<_>>>()?;
    let ip = hostile.ns.ipv4();
    // The same number of probes in both, so that only the app's answer differs.
    beside(&env, &neighbours, &Probe::http(ip, HTTP, SHORT))?;
    let _earlier = hostile.app.take_recorded()?;
    beside(&env, &neighbours, &Probe::http(ip, HTTP, LONG))?;
    let asked = hostile.app.take_recorded()?;
    let redirected = asked.iter().any(|request| request.head.contains("&pad="));
    ensure!(redirected, "no redirect was followed");
    Ok(())
}

/// Probes the neighbours during many probes of `probe`.
fn beside(env: &Env, neighbours: &[Pod], probe: &Probe) -> Result<()> {
    let healthy = neighbours
        .iter()
        .map(|pod| Probe::http(pod.ns.ipv4(), HTTP, SHORT))
        .collect();
    let interval = pace::stretch(OFTEN);
    let probing = Probing::every(&env.kubelet, healthy, pace::stretch(NOW_AND_THEN));
    let begun = Instant::now();
    let mut others = 0;
    while begun.elapsed() < pace::stretch(TIME) {
        // The next probe does not wait for the result of this one.
        let _pending = env.kubelet.begin(probe)?;
        others += 1;
        wait::pass((interval * others).saturating_sub(begun.elapsed()))?;
    }
    let made = probing.stop()?;
    let wrong: Vec<_> = made
        .iter()
        .filter(|made| made.result.status != Some(200))
        .collect();
    println!(
        "     beside {others} of {:?}: {} probes of neighbours, p50 {:?}, p99 {:?}, {} wrong",
        probe.action,
        made.len(),
        sample_pod::percentile(&made, 50),
        sample_pod::percentile(&made, 99),
        wrong.len()
    );
    sample_pod::none_wrong("beside the redirects", &wrong)
}
