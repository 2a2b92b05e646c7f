//! Lists the kernel modules that the suite needs, with their dependencies, in loading order.
//!
//! The dependencies are read from the modules (`depends=` in section `.modinfo`), because Debian's packages
//! have no `modules.dep`: it is written at installation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// Modules for the pods' networking and the meshes' rules. The guest loads all of them; nothing loads others later.
const NEEDED: &[&str] = &[
    // networking
    "veth",
    // iptables' nftables backend, and native nftables
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_nat",
    "nft_redir",
    "nft_masq",
    // iptables' legacy backend
    "ip_tables",
    "iptable_nat",
    "ip6_tables",
    "ip6table_nat",
    // matches and targets
    "xt_tcpudp",
    "xt_REDIRECT",
    "xt_nat",
    "xt_owner",
    "xt_multiport",
    "xt_mark",
    "xt_connmark",
    "xt_conntrack",
    "xt_CT",
    "xt_TPROXY",
    "xt_comment",
    // our own rules in a pod
    "xt_bpf",
    "nft_objref",
    // the same on kernels without xt_bpf
    "sch_ingress",
    "cls_bpf",
    // finding out where a pod's own rules redirect a connection
    "nf_conntrack_netlink",
    // listing a pod's sockets
    "inet_diag",
    "tcp_diag",
];

/// A module for the guest.
#[derive(Debug)]
pub struct Module {
    /// File name in the guest.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// The modules in `directory` that the suite needs, each after its dependencies. Modules that this kernel
/// does not have are left out: their function may be built in or have another name, and the suite fails
/// where it is missing.
///
/// # Errors
/// When one cannot be read.
pub fn needed(directory: &Path) -> Result<Vec<Module>> {
    let mut index = BTreeMap::new();
    collect(&directory.join("kernel"), &mut index)?;
    let mut loader = Loader {
        index: &index,
        seen: BTreeSet::new(),
        order: Vec::new(),
    };
    for name in NEEDED {
        loader.add(name)?;
    }
    if loader.order.is_empty() {
        bail!(
            "{} contains none of the modules that the suite needs",
            directory.display()
        );
    }
    Ok(loader.order)
}

struct Loader<'a> {
    index: &'a BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Loader<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = canonical(name);
        let Some(path) = self.index.get(&name) else {
            return Ok(());
        };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let bytes = read(path)?;
        let depends = dependencies(&bytes).with_context(|| path.display().to_string())?;
        for other in depends {
            self.add(&other)?;
        }
        self.order.push(Module {
            name: format!("{name}.ko"),
            bytes,
        });
        Ok(())
    }
}

/// Module names are written with `-` or `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// All modules below a directory, by name.
fn collect(directory: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, index)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            let _other = index.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// A module's ELF file, decompressed, because not every kernel can decompress modules.
fn read(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| path.display().to_string()),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: unknown compression", path.display()),
    };
    let output = Command::new(unpacker)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {unpacker}, which {} needs", path.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{unpacker} {}: {}", path.display(), said.trim());
    }
    Ok(output.stdout)
}

/// The names of the modules that a module depends on.
fn dependencies(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let section = file
        .section_by_name(".modinfo")
        .context("not a kernel module: it has no section .modinfo")?;
    Ok(depends(section.data()?))
}

/// Reads `depends` from section `.modinfo`, whose fields `name=value` end with a zero byte.
fn depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(Into::into)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let modinfo = b"license=GPL\0depends=nf_tables,x_tables\0name=nft_compat\0";
        assert_eq!(depends(modinfo), ["nf_tables", "x_tables"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }

    #[test]
    fn a_file_that_is_not_a_module_is_refused() {
        assert!(dependencies(b"not an ELF file").is_err());
    }

    #[test]
    fn a_module_is_found_with_any_separator_and_compression() {
        let directory = tempfile::tempdir().expect("directory");
        let below = directory.path().join("kernel/net");
        fs::create_dir_all(&below).expect("directories");
        for name in ["nf-tables.ko.xz", "veth.ko", "modules.order"] {
            fs::write(below.join(name), "").expect("file");
        }
        let mut index = BTreeMap::new();
        collect(directory.path(), &mut index).expect("readable");
        let names: Vec<&str> = index.keys().map(String::as_str).collect();
        assert_eq!(names, ["nf_tables", "veth"]);
    }
}
