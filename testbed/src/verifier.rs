//! `testbed verifier`: shows how many instructions the kernel's verifier processes for each of our programs.
//!
//! Since Linux 5.16 the kernel reports that number for a loaded program. Before, only the end of the
//! verifier's log contains it, which the daemon's eBPF library discards when a program loads. So this
//! module loads the programs again with bpf(2) and reads the log.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::{Map, Object};
use kernel::programs::{self, LoadOptions, Programs};
use probe_handler_common::globals;
use probe_handler_common::programs::ALL;

use crate::bpf;

/// Prints a line `name instructions` for each program, in the variant for this kernel.
///
/// # Errors
/// When the kernel refuses a map or a program.
pub fn main() -> Result<()> {
    for (name, instructions) in processed()? {
        println!("{name} {instructions}");
    }
    Ok(())
}

/// Programs and the number of instructions that the verifier processed.
///
/// # Errors
/// When the kernel refuses a map or a program.
pub fn processed() -> Result<Vec<(&'static str, u64)>> {
    // Detected by trying, as the daemon does.
    let (daemons, _maps) = Programs::load(&LoadOptions::default())?;
    let set_retval = [u8::from(daemons.refuses_with_econnrefused())];
    let mut object = Object::parse(programs::object()).context("the eBPF object")?;
    object.patch_map_data([(globals::HAS_SET_RETVAL, (&set_retval[..], true))].into())?;
    let maps: Vec<(String, Map)> = object.maps.drain().collect();
    let made = maps
        .iter()
        .map(|(name, map)| make(map).with_context(|| format!("making map {name}")))
        .collect::<Result<Vec<OwnedFd>>>()?;
    let text = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let named = maps.iter().zip(&made);
    object.relocate_maps(
        named.map(|((name, map), fd)| (name.as_str(), fd.as_raw_fd(), map)),
        &text,
    )?;
    object.relocate_calls(&text)?;
    ALL.into_iter()
        .map(|name| {
            let program = object
                .programs
                .get(name)
                .with_context(|| format!("no program {name}"))?;
            let function = object
                .functions
                .get(&program.function_key())
                .with_context(|| format!("no code of {name}"))?;
            let log = bpf::verifier_statistics(name, &function.instructions, &program.license)?;
            Ok((
                name,
                of_log(&log).with_context(|| format!("{name}: no figure in {log:?}"))?,
            ))
        })
        .collect()
}

fn make(map: &Map) -> Result<OwnedFd> {
    let fd = bpf::make_map(
        map.map_type(),
        map.key_size(),
        map.value_size(),
        map.max_entries(),
        map.map_flags(),
    )?;
    if !map.data().is_empty() {
        bpf::set_constants(&fd, map.data())?;
    }
    Ok(fd)
}

/// Parses `processed 1234 insns (limit 1000000) ...`, the log's statistics.
fn of_log(log: &str) -> Option<u64> {
    let rest = log
        .lines()
        .find_map(|line| line.strip_prefix("processed "))?;
    let (count, rest) = rest.split_once(' ')?;
    rest.starts_with("insns").then(|| count.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::of_log;

    #[test]
    fn the_figure_is_read_from_the_logs_end() {
        let log = "verification time 120 usec\nstack depth 64\nprocessed 1234 insns (limit 1000000) \
                   max_states_per_insn 1 total_states 9\n";
        assert_eq!(of_log(log), Some(1234));
        // The format of Linux 7.2.
        let log =
            "stack depth 136 max 144\ninsns processed 822\nprocessed 822 insns (limit 1000000)\n";
        assert_eq!(of_log(log), Some(822));
        assert_eq!(of_log("processed nothing"), None);
        assert_eq!(of_log(""), None);
    }
}
