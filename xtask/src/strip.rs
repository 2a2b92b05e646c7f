//! Removes the debug information from the eBPF object.
//!
//! The linker makes BTF from it, so the compiler must write it; the loader reads only BTF. Debug information
//! is eight ninths of the object, which the daemon holds in memory.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without its debug sections (DWARF) and what refers to them.
///
/// # Errors
/// It is not an ELF object.
pub fn debug_information(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the object can't be read")?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        let name = name.strip_prefix(b".rel").unwrap_or(&name);
        section.delete = name.starts_with(b".debug_");
    }
    builder.delete_orphans();
    name_sections_apart(&mut builder);
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("the object can't be written without its debug information")?;
    Ok(stripped)
}

/// LLVM stores section names in the symbols' string table; the writer here needs a separate table for
/// them.
fn name_sections_apart(builder: &mut Builder<'_>) {
    let is_there = |data: &SectionData<'_>| matches!(data, SectionData::SectionString);
    if builder
        .sections
        .iter()
        .any(|section| is_there(&section.data))
    {
        return;
    }
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
}

#[cfg(test)]
mod tests {
    use object::Endianness;
    use object::elf::{SHF_ALLOC, SHF_EXECINSTR, SHT_PROGBITS};

    use super::*;

    /// An object with these sections, each of which holds its own name.
    fn object(names: &[&'static str]) -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        for name in names {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = SHT_PROGBITS;
            section.sh_addralign = 8;
            section.data = SectionData::Data(name.as_bytes().into());
            if *name == ".text" {
                section.sh_flags = u64::from(SHF_ALLOC | SHF_EXECINSTR);
                section.sh_offset = 64;
            }
        }
        name_sections_apart(&mut builder);
        let mut object = Vec::new();
        builder.write(&mut object).expect("an object");
        object
    }

    fn sections(object: &[u8]) -> Vec<(String, Vec<u8>)> {
        let builder = Builder::read(object).expect("an object");
        let sections = builder.sections.iter().filter_map(|section| {
            let SectionData::Data(data) = &section.data else {
                return None;
            };
            let name = String::from_utf8_lossy(&section.name).into_owned();
            Some((name, data.to_vec()))
        });
        sections.collect()
    }

    #[test]
    fn programs_maps_and_btf_are_unchanged() {
        let kept = [".text", "maps", ".BTF", ".BTF.ext"];
        let all = [
            ".text",
            ".debug_info",
            ".rel.debug_info",
            "maps",
            ".debug_str",
            ".BTF",
            ".BTF.ext",
        ];
        let stripped = debug_information(&object(&all)).expect("stripped");
        assert_eq!(sections(&stripped), sections(&object(&kept)));
        // An object without debug information is unchanged.
        let again = debug_information(&stripped).expect("stripped");
        assert_eq!(sections(&again), sections(&stripped));
    }

    #[test]
    fn a_file_that_is_not_an_object_is_refused() {
        assert!(debug_information(b"text").is_err());
    }
}
