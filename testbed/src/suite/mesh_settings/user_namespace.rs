//! Pods in a user namespace (`hostUsers: false`): their rules compare the owner of a socket with ids of that namespace.

use anyhow::ensure;

use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::pod_pair::{declare, http_get, tcp_socket};
use crate::userns::UserNamespace;

const HTTP: u16 = 8080;
const CLOSED: u16 = 5433;

pub(super) fn run(cases: &mut Cases, env: &Env) {
    for (index, rules) in RuleSet::all().iter().enumerate() {
        cases.case(&format!("user-namespace/{}", rules.name()), || {
            let users = UserNamespace::new()?;
            let probes = [
                http_get(HTTP, "/healthy"),
                http_get(HTTP, "/failing"),
                tcp_socket(CLOSED),
            ];
            let spec = PodSpec::new(&format!("users{index}"))
                .rules(*rules)
                .app(AppSpec::new().http(HTTP));
            let mut pod = declare(spec, probes).start_in(&users, &env.run)?;
            env.daemon.serve(&mut pod)?;
            for ip in pod.ns.ips() {
                let _passed = env.passes(&Probe::http(ip, HTTP, "/healthy"))?;
                let failing = env.fails(&Probe::http(ip, HTTP, "/failing"))?;
                ensure!(failing.status == Some(503), "{failing:?}");
                let _refused = env.fails(&Probe::tcp(ip, CLOSED))?;
                let captured = env.bystander.probe(&Probe::tcp(ip, CLOSED))?;
                ensure!(
                    captured.passed(),
                    "the mesh does not capture it: {captured:?}"
                );
            }
            Ok(())
        });
    }
}
