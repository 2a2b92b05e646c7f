//! Checks from its ELF headers what a program needs to start.
//!
//! An image with one program has no dynamic loader and no libraries: a program that needs them would fail
//! with "no such file or directory" on the node, long after it was built.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use object::LittleEndian;
use object::elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, FileHeader64, PT_INTERP, ProgramHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use oci_spec::image::Arch;

/// An architecture that images can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// 64-bit x86
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// 64-bit ARM
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Machine {
    /// Its name in Rust.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Its name in images.
    pub fn oci(self) -> Arch {
        match self {
            Self::X86_64 => Arch::Amd64,
            Self::Aarch64 => Arch::ARM64,
        }
    }

    /// Its number in ELF headers.
    fn elf(self) -> u16 {
        match self {
            Self::X86_64 => EM_X86_64,
            Self::Aarch64 => EM_AARCH64,
        }
    }
}

/// Checks that a program is static and for that architecture.
///
/// # Errors
/// It is not: the reason.
pub fn require_static(program: &[u8], machine: Machine) -> Result<()> {
    let (endian, segments) = parsed(program, machine)?;
    for segment in segments {
        if segment.p_type(endian) == PT_INTERP {
            bail!("it is dynamically linked: it has an interpreter (PT_INTERP)");
        }
        let needs = segment.dynamic(endian, program)?.unwrap_or_default();
        if needs.iter().any(|entry| entry.tag(endian) == DT_NEEDED) {
            bail!("it is dynamically linked: it needs libraries (DT_NEEDED)");
        }
    }
    Ok(())
}

/// Checks that `program` is a program for `machine`.
///
/// # Errors
/// It is not: the reason.
pub fn require_program(program: &[u8], machine: Machine) -> Result<()> {
    parsed(program, machine).map(drop)
}

/// The segments of a program for `machine`.
fn parsed(
    program: &[u8],
    machine: Machine,
) -> Result<(LittleEndian, &[ProgramHeader64<LittleEndian>])> {
    let header =
        FileHeader64::<LittleEndian>::parse(program).context("it is not an ELF program")?;
    let endian = header
        .endian()
        .context("it is not a little-endian program")?;
    if header.e_machine(endian) != machine.elf() {
        bail!(
            "it is not for {} (ELF machine {})",
            machine.name(),
            header.e_machine(endian)
        );
    }
    let segments = header.program_headers(endian, program)?;
    if segments.is_empty() {
        bail!("it has no loadable segment: an object file, not a program");
    }
    Ok((endian, segments))
}
