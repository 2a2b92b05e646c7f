//! Checks metrics and alerts with Prometheus' own promtool.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command;

/// Checks metrics in Prometheus' text format: their syntax, and promtool's rules for names.
///
/// # Errors
/// What promtool finds.
pub fn check_metrics(promtool: &Path, text: &str) -> Result<()> {
    let program = promtool.to_str().context("the path of promtool")?;
    let output = command::run(program, &["check", "metrics"], text)?;
    ensure!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A series, and which alert it must raise.
#[derive(Clone, Copy, Debug)]
pub struct Alerting {
    /// The only alert that fires.
    pub alert: &'static str,
    /// The series' name and labels.
    pub series: &'static str,
    /// One sample a minute, in promtool's notation. The first ten are those of a healthy node.
    pub samples: &'static str,
    /// The minute at which the alert fires.
    pub fires_at: u32,
}

/// Checks that groups of rules are valid, that no alert fires while all is well, and that each fires when it should.
///
/// # Errors
/// What promtool finds.
pub fn test_rules(promtool: &Path, groups: &Value, alerts: &[Alerting]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, content: &Value| -> Result<()> {
        // JSON is YAML.
        fs::write(directory.path().join(name), content.to_string())?;
        Ok(())
    };
    file("rules.yaml", &json!({"groups": groups}))?;
    let tests: Vec<Value> = alerts.iter().map(test).collect();
    file(
        "tests.yaml",
        &json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}),
    )?;
    for arguments in [
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "tests.yaml"],
    ] {
        let output = Command::new(promtool)
            .current_dir(directory.path())
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn test(alerting: &Alerting) -> Value {
    let mut series = vec![json!({"series": alerting.series, "values": alerting.samples})];
    // Without a daemon the alert on a missing one fires too.
    if !alerting.series.starts_with("up{") {
        series.push(json!({"series": "up{job=\"probe-handler\"}", "values": "1x200"}));
    }
    let firing = "count by (alertname) (ALERTS{alertstate=\"firing\"})";
    let labels = format!("{{alertname=\"{}\"}}", alerting.alert);
    json!({
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {"expr": firing, "eval_time": "9m", "exp_samples": []},
            {
                "expr": firing,
                "eval_time": format!("{}m", alerting.fires_at),
                "exp_samples": [{"labels": labels, "value": 1}],
            },
        ],
    })
}
