//! Tests of the image's name and labels.

use std::fs;

use super::*;

#[test]
fn the_image_is_named_as_deploy_names_it() {
    let path = root().join("deploy/base/kustomization.yaml");
    let text = fs::read_to_string(path).expect("kustomization");
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(key))
            .map(str::trim)
            .expect(key)
    };
    let deployed = format!("{}:{}", value("newName:"), value("newTag:"));
    assert_eq!(default_name(), deployed);
    let name: Reference = default_name().parse().expect("a name");
    assert_eq!(name.whole(), deployed);
}

#[test]
fn a_name_without_a_registry_or_tag_is_completed_as_docker_does() {
    let name = parse_name("probe-handler:dev").expect("a name");
    assert_eq!(name.whole(), "docker.io/library/probe-handler:dev");
    let name = parse_name("localhost:5000/probe-handler").expect("a name");
    assert_eq!(name.whole(), "localhost:5000/probe-handler:latest");
    for bad in [
        "",
        "Probe-Handler:1",
        "a b",
        &format!("a@sha256:{}", "0".repeat(64)),
    ] {
        assert!(parse_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_daemon_shows_twelve_digits_of_the_commit_and_whether_the_tree_was_clean() {
    assert_eq!(short("0123456789abcdef0123"), "0123456789ab");
    assert_eq!(short("0123456789abcdef0123-dirty"), "0123456789ab-dirty");
    assert_eq!(short("unknown"), "unknown");
}

#[test]
fn labels_contain_version_commit_source_and_licence() {
    let labels = labels("probe-handler", "0123-dirty", 0).expect("labels");
    let label = |name: &str| labels[&format!("org.opencontainers.image.{name}")].as_str();
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("revision"), "0123-dirty");
    assert_eq!(label("source"), env!("CARGO_PKG_REPOSITORY"));
    assert_eq!(label("licenses"), "Apache-2.0");
    assert_eq!(label("created"), "1970-01-01T00:00:00Z");
}

#[test]
fn the_containerfile_builds_the_same_image() {
    let text = fs::read_to_string(root().join("deploy/Containerfile")).expect("Containerfile");
    let labels = labels("probe-handler", "${COMMIT}", 0).expect("labels");
    // The container builder sets the time itself.
    for (key, value) in labels.iter().filter(|(key, _)| *key != ANNOTATION_CREATED) {
        let label = format!("{key}=\"{value}\"");
        assert!(text.contains(&label), "{label}");
    }
    let built = format!("target/*-unknown-linux-gnu/{}/probe-handler ", PROFILE);
    for part in [
        "RUN cargo xtask image ",
        &built,
        "FROM scratch",
        "USER 0:0",
        "ENV PATH=/",
        "WORKDIR /",
        "ENTRYPOINT [\"/probe-handler\"]",
    ] {
        assert!(text.contains(part), "{part}");
    }
}
