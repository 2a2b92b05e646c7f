//! Which part of the daemon may use which: the arrows of ARCHITECTURE.md's invariants.

use super::File;

const SOURCES: &str = "probe-handler/src/";

/// Modules, and what of the crate they may not name; but for the last.
type Arrow = (
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

const ARROWS: [Arrow; 5] = [
    (
        &["check", "handler", "observe", "webhook", "inject", "yaml"],
        "crate::kernel",
        &[],
    ),
    (
        &["pods"],
        "crate::kernel",
        &[
            "crate::kernel::maps::EndpointWriter;",
            "crate::kernel::netns::NetnsId;",
        ],
    ),
    (&["check"], "crate::pods", &["crate::pods::model::Scheme;"]),
    (
        &[
            "check", "handler", "inject", "kernel", "listen", "observe", "pods", "webhook", "yaml",
        ],
        "crate::app",
        &[],
    ),
    (
        &[
            "check", "handler", "inject", "kernel", "listen", "observe", "pods", "webhook", "yaml",
        ],
        "crate::cli",
        &[],
    ),
];

/// What names something that it may not use. A comment may.
pub fn arrows(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        let Some(path) = file.path.strip_prefix(SOURCES) else {
            continue;
        };
        let module = path.split(['/', '.']).next().unwrap_or_default();
        for (modules, forbidden, allowed) in ARROWS {
            if !modules.contains(&module) {
                continue;
            }
            for (number, line) in file.text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let named = code.find(forbidden).map(|at| &code[at..]);
                if named.is_some_and(|named| !allowed.contains(&named.trim_end())) {
                    findings.push(file.finding(number, format!("{module} uses {forbidden}")));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        arrows(&[File {
            path: path.to_owned(),
            text: text.to_owned(),
        }])
    }

    #[test]
    fn an_arrow_the_wrong_way_is_found() {
        for (path, text, whole) in [
            ("handler/a.rs", "use crate::kernel::netns::Netns;", false),
            ("handler/a.rs", "/// [`crate::kernel::netns`].", true),
            ("kernel/a.rs", "use crate::kernel::netns::Netns;", true),
            (
                "pods/registry.rs",
                "use crate::kernel::netns::NetnsId;",
                true,
            ),
            (
                "pods/registry.rs",
                "use crate::kernel::netns::Netns;",
                false,
            ),
            ("check/a.rs", "use crate::pods::model::Scheme;", true),
            ("check/a.rs", "use crate::pods::model::Pod;", false),
            ("listen.rs", "let x = crate::cli::config();", false),
            ("webhook/a.rs", "use crate::app::run;", false),
            ("app/a.rs", "use crate::cli::config::AgentConfig;", true),
        ] {
            let findings = found(&format!("{SOURCES}{path}"), text);
            assert_eq!(findings.is_empty(), whole, "{path}: {text}");
        }
        assert_eq!(found("testbed/src/check/a.rs", "crate::kernel"), [""; 0]);
    }
}
