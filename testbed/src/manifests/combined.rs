//! Combinations of components, each as a kustomization that a user writes next to a checkout.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

/// Pages with examples of kustomizations, which are rendered too.
const KUBERNETES: &str = include_str!("../../../docs/kubernetes.md");
const OPERATING: &str = include_str!("../../../docs/operating.md");
const INSTALL: &str = include_str!("../../../docs/install.md");

/// Part of the name of a combination with images from a registry.
pub const REGISTRY: &str = "registry";

/// Part of the name of a combination with settings of the daemon.
pub const SETTINGS: &str = "settings";

/// The file with settings in that example.
const SETTINGS_FILE: &str = "settings.yaml";

/// Part of the name of a combination with other names and another namespace.
const RENAMED: &str = "renamed";

/// The path of `deploy/` in that example and in the text of every combination.
const CHECKOUT: &str = "probe-handler/deploy";

/// Writes kustomizations below `scratch` and returns their names and directories. A name lists the parts, joined by `+`.
///
/// # Errors
/// `deploy` can't be read, `scratch` can't be written, or the documentation contains no combination.
pub fn write(deploy: &Path, scratch: &Path) -> Result<Vec<(String, PathBuf)>> {
    let components = super::entries(&deploy.join("components"))?;
    let components: Vec<&str> = components.iter().map(String::as_str).collect();
    let mut written = Vec::new();
    for (name, text) in combinations(&components)? {
        let directory = scratch.join(&name);
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let file = directory.join("kustomization.yaml");
        let text = text.replace(CHECKOUT, &way(&directory, deploy)?);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        if super::has(&name, SETTINGS) {
            let settings = example(OPERATING, "mode: ").context("docs/operating.md")?;
            fs::write(directory.join(SETTINGS_FILE), settings)?;
        }
        written.push((name, directory));
    }
    Ok(written)
}

/// Each pair of the daemon's components, because two components can conflict; all of the daemon's components; all
/// components with the webhook; the documented examples; and all components around other names.
fn combinations(components: &[&str]) -> Result<Vec<(String, String)>> {
    let daemons: Vec<&str> = components
        .iter()
        .copied()
        .filter(|name| !name.starts_with("webhook"))
        .collect();
    let mut combinations = vec![
        documented("documented", KUBERNETES, "\ncomponents:")?,
        documented(REGISTRY, KUBERNETES, "\nimages:")?,
        documented(SETTINGS, OPERATING, "\nconfigMapGenerator:")?,
        documented(REGISTRY, INSTALL, "/cleanup\n")?,
        combination(&["cleanup"], &["least-privilege"]),
    ];
    for (index, one) in daemons.iter().enumerate() {
        for other in &daemons[index + 1..] {
            combinations.push(combination(&["base"], &[*one, *other]));
        }
    }
    combinations.push(combination(&["base"], &daemons));
    combinations.push(combination(&["base", "webhook"], components));
    combinations.extend(renamed(components)?);
    Ok(combinations)
}

/// Name and text of a kustomization.
fn combination(resources: &[&str], components: &[&str]) -> (String, String) {
    let path = |name: &&str| match *name {
        "base" => CHECKOUT.to_owned(),
        name => format!("{CHECKOUT}/{name}"),
    };
    let paths: Vec<String> = resources.iter().map(path).collect();
    let name = [resources, components].concat().join("+");
    (name, kustomization(&paths, components))
}

fn kustomization(resources: &[String], components: &[&str]) -> String {
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
        "components": components
            .iter()
            .map(|name| format!("{CHECKOUT}/components/{name}"))
            .collect::<Vec<_>>(),
    });
    text.to_string()
}

/// The documented example of other names; and all other components in a kustomization around it, as documented. The same with no
/// component in the example, because each may be around it.
fn renamed(components: &[&str]) -> Result<[(String, String); 4]> {
    let (name, text) = documented(RENAMED, KUBERNETES, "\nnamePrefix:")?;
    let others: Vec<&str> = components
        .iter()
        .copied()
        .filter(|component| !super::has(&name, component))
        .collect();
    let outer = kustomization(&[format!("../{name}")], &others);
    let outer_name = format!("{name}+{}", others.join("+"));
    let bare = text.split("components:").next().unwrap_or(&text);
    let bare_name = format!("bare-{}", name.replace("+monitoring", ""));
    let around = kustomization(&[format!("../{bare_name}")], components);
    let around_name = format!("{bare_name}+{}", components.join("+"));
    let bare = bare.to_owned();
    Ok([
        (name, text),
        (outer_name, outer),
        (bare_name, bare),
        (around_name, around),
    ])
}

/// The first example of YAML in `page` that contains `sign`.
fn example<'p>(page: &'p str, sign: &str) -> Option<&'p str> {
    page.split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.contains(sign))
}

/// The first example in `page` that contains `sign`, and its name: `name` and its parts.
fn documented(name: &str, page: &str, sign: &str) -> Result<(String, String)> {
    let example = example(page, sign)
        .with_context(|| format!("the page for {name} shows no example with {sign:?}"))?;
    let parts: Vec<&str> = example
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ")?.strip_prefix(CHECKOUT))
        .map(|path| path.rsplit_once('/').map_or("base", |(_, name)| name))
        .collect();
    Ok((format!("{name}+{}", parts.join("+")), example.to_owned()))
}

/// The relative path from one directory to another, because kustomize accepts no absolute paths.
fn way(from: &Path, to: &Path) -> Result<String> {
    let real = |path: &Path| {
        path.canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))
    };
    let (from, to) = (real(from)?, real(to)?);
    // The first component is the root directory.
    let up = from.components().skip(1).map(|_| Path::new(".."));
    let way: PathBuf = up.chain([to.strip_prefix("/")?]).collect();
    let way = way.to_str().context("a directory that is no UTF-8")?;
    Ok(way.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_a_combination_and_a_registry() {
        let (name, _) = documented("documented", KUBERNETES, "\ncomponents:").expect("an example");
        assert!(name.starts_with("documented+base+"), "{name}");
        let (name, _) = documented(REGISTRY, KUBERNETES, "\nimages:").expect("an example");
        assert_eq!(name, "registry+base+webhook");
        let (name, _) = documented(RENAMED, KUBERNETES, "\nnamePrefix:").expect("an example");
        assert_eq!(name, "renamed+base+webhook+admission-policy+monitoring");
        let (name, _) =
            documented(SETTINGS, OPERATING, "\nconfigMapGenerator:").expect("an example");
        assert_eq!(name, "settings+base");
        let (name, _) = documented(REGISTRY, INSTALL, "/cleanup\n").expect("an example");
        assert_eq!(name, "registry+cleanup+least-privilege");
        assert!(documented("none", KUBERNETES, "\nno such line").is_err());
    }

    #[test]
    fn each_two_components_are_combined_and_all() {
        let found = combinations(&["a", "b", "c", "webhook-d"]).expect("an example");
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names[5..],
            [
                "base+a+b",
                "base+a+c",
                "base+b+c",
                "base+a+b+c",
                "base+webhook+a+b+c+webhook-d",
                "renamed+base+webhook+admission-policy+monitoring",
                "renamed+base+webhook+admission-policy+monitoring+a+b+c+webhook-d",
                "bare-renamed+base+webhook+admission-policy",
                "bare-renamed+base+webhook+admission-policy+a+b+c+webhook-d",
            ]
        );
    }
}
