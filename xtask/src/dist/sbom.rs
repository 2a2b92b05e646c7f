//! The list of what a released program contains, in the format of CycloneDX 1.5 (JSON).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::dependencies::Package;
use crate::image::rfc3339;

/// The list of `packages`, which program `name` contains. Contains no serial number, because that would have to differ each
/// time.
///
/// # Errors
/// The time is not valid.
pub fn cyclone_dx(name: &str, packages: &[Package], commit: &str, time: i64) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let components: Vec<Value> = packages.iter().map(component).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(time)?,
            "component": {
                "type": "application",
                "bom-ref": name,
                "name": name,
                "version": version,
                "licenses": [{"expression": env!("CARGO_PKG_LICENSE")}],
                "properties": [{"name": "commit", "value": commit}],
            },
        },
        "components": components,
    });
    let text = serde_json::to_string_pretty(&document).context("the list")?;
    Ok((text + "\n").into_bytes())
}

fn component(package: &Package) -> Value {
    let purl = format!("pkg:cargo/{}@{}", package.name, package.version);
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    });
    // Old manifests separate licences by a slash, which SPDX does not have.
    if let Some(license) = &package.license {
        let expression = license.replace(" / ", " OR ").replace('/', " OR ");
        component["licenses"] = json!([{"expression": expression}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_a_component_with_its_licence() {
        let package = json!({
            "name": "a", "version": "1.2.3", "license": "MIT/Apache-2.0", "source": "registry",
            "manifest_path": "/secret/Cargo.toml",
        });
        let package: Package = serde_json::from_value(package).expect("a package");
        let text = cyclone_dx("probe-handler", &[package], "c0ffee", 1).expect("list");
        let list: Value = serde_json::from_slice(&text).expect("JSON");
        let component = &list["components"][0];
        assert_eq!(component["purl"], "pkg:cargo/a@1.2.3");
        assert_eq!(component["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(list["metadata"]["timestamp"], "1970-01-01T00:00:01Z");
        assert!(!String::from_utf8_lossy(&text).contains("secret"));
    }
}
