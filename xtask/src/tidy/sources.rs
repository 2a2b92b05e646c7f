//! Rules about Rust source files.

use std::collections::BTreeSet;

use super::File;

/// Maximum length of a source file, in lines.
const LONGEST: usize = 600;

/// Every file begins with a doc comment that describes it.
pub fn module_docs(files: &[File]) -> Vec<String> {
    let first = |file: &File| {
        file.text
            .lines()
            .find(|line| !line.trim().is_empty())
            .map(str::to_owned)
    };
    files
        .iter()
        .filter(|file| file.is_rust())
        .filter(|file| !first(file).is_some_and(|line| line.starts_with("//! ")))
        .map(|file| file.finding(0, "does not open with a `//!` module doc"))
        .collect()
}

/// A file that no `mod` names is never compiled, and so never checked.
pub fn orphans(files: &[File]) -> Vec<String> {
    let declares = |path: &str, module: &str| {
        let parent = files.iter().find(|file| file.path == path);
        let declaration = format!("mod {module};");
        parent.is_some_and(|file| {
            file.text.lines().any(|line| {
                line.trim_start_matches("pub(crate) ")
                    .trim_start_matches("pub ")
                    .trim()
                    == declaration
            })
        })
    };
    let is_orphan = |file: &&File| {
        let Some((directory, name)) = file.path.rsplit_once('/') else {
            return false;
        };
        let stem = name.trim_end_matches(".rs");
        let (directory, module) = match (stem, directory.rsplit_once('/')) {
            _ if !directory.contains("/src") || directory.ends_with("/src/bin") => return false,
            ("main" | "lib", _) if directory.ends_with("/src") => return false,
            ("mod", Some((above, last))) => (above, last),
            _ => (directory, stem),
        };
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|parent| format!("{directory}/{parent}"));
        let beside = format!("{directory}.rs");
        !parents
            .iter()
            .chain([&beside])
            .any(|parent| declares(parent, module))
    };
    files
        .iter()
        .filter(|file| file.is_rust())
        .filter(is_orphan)
        .map(|file| file.finding(0, "no `mod` names this file"))
        .collect()
}

/// A file covers one thing, so it is short.
pub fn lengths(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is_rust())
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(file, lines)| file.finding(LONGEST, format!("{lines} lines: split the file")))
        .collect()
}

/// Unfinished code is not committed.
pub fn stubs(files: &[File]) -> Vec<String> {
    // Written in two parts, so that this file is not a finding.
    const STUBS: [&str; 4] = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("d", "bg!("),
        concat!("#[", "ignore"),
    ];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(stub) = STUBS.iter().find(|stub| line.contains(**stub)) {
                findings.push(file.finding(number, format!("`{stub}`")));
            }
        }
    }
    findings
}

/// Fields of `repr(C)` structs in `probe-handler-common` are integers, arrays of them, or other such
/// structs: a `bool` or an enum read from a map could hold a value that Rust forbids, a `usize` differs
/// between the bpf target and a 32-bit machine.
pub fn shared_types(files: &[File]) -> Vec<String> {
    let shared: Vec<(&File, Struct)> = files
        .iter()
        .filter(|file| file.is_rust() && file.path.starts_with("probe-handler-common/src/"))
        .flat_map(|file| {
            repr_c_structs(&file.text)
                .into_iter()
                .map(move |s| (file, s))
        })
        .collect();
    let mut plain: BTreeSet<&str> = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"].into();
    plain.extend(shared.iter().map(|(_, shared)| shared.name));
    let mut findings = Vec::new();
    for (file, Struct { line, name, fields }) in &shared {
        if fields.is_empty() {
            findings.push(file.finding(*line, format!("{name}: write one named field per line")));
        }
        for (line, kind) in fields {
            let element = kind
                .strip_prefix('[')
                .and_then(|array| array.split_once(';'))
                .map_or(*kind, |(element, _)| element.trim());
            if !plain.contains(element) {
                findings.push(file.finding(*line, format!("{name} has a field of type {kind}")));
            }
        }
    }
    findings
}

/// A `repr(C)` struct of a source text.
struct Struct<'a> {
    /// Line of its `repr`.
    line: usize,
    name: &'a str,
    /// Line and type of each field.
    fields: Vec<(usize, &'a str)>,
}

/// Finds structs in rustfmt's layout: one field per line.
fn repr_c_structs(text: &str) -> Vec<Struct<'_>> {
    let mut structs = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((line, attribute)) = lines.next() {
        if !attribute.trim_start().starts_with("#[repr(C") {
            continue;
        }
        let declaration = lines.by_ref().find(|(_, line)| line.contains("struct "));
        let Some((_, declaration)) = declaration else {
            break;
        };
        let name = declaration.split("struct ").nth(1).unwrap_or_default();
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
        let mut fields = Vec::new();
        if declaration.trim_end().ends_with('{') {
            let body = lines.by_ref().map(|(number, line)| (number, line.trim()));
            for (number, field) in body.take_while(|(_, line)| *line != "}") {
                let is_field = !field.starts_with("//") && !field.starts_with('#');
                if let Some((_, kind)) = field.split_once(": ").filter(|_| is_field) {
                    fields.push((number, kind.trim_end_matches(',')));
                }
            }
        }
        structs.push(Struct {
            line,
            name: &name[..end.unwrap_or(name.len())],
            fields,
        });
    }
    structs
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[track_caller]
    fn check(rule: fn(&[File]) -> Vec<String>, files: &[File], expect: &[&str]) {
        assert_eq!(rule(files), expect);
    }

    #[test]
    fn a_file_without_a_module_doc_is_found() {
        let missing = "a/src/b.rs:1: does not open with a `//!` module doc";
        check(module_docs, &[file("a/src/b.rs", "//! B.\nuse c;\n")], &[]);
        check(
            module_docs,
            &[file("a/src/b.rs", "use c;\n//! B.\n")],
            &[missing],
        );
        check(module_docs, &[file("a/src/b.rs", "")], &[missing]);
        check(module_docs, &[file("a/b.md", "text")], &[]);
    }

    #[test]
    fn a_file_that_no_module_names_is_found() {
        let files = [
            file("a/src/lib.rs", "pub mod b;\nmod c;\n"),
            file("a/src/b.rs", "pub(crate) mod d;\n"),
            file("a/src/b/d.rs", ""),
            file("a/src/c/mod.rs", ""),
            file("a/src/e.rs", ""),
            file("a/tests/f.rs", ""),
            file("a/build.rs", ""),
        ];
        check(orphans, &files, &["a/src/e.rs:1: no `mod` names this file"]);
    }

    #[test]
    fn long_files_are_found() {
        check(lengths, &[file("a.rs", &"x\n".repeat(LONGEST))], &[]);
        let found = lengths(&[file("a.rs", &"x\n".repeat(LONGEST + 1))]);
        assert_eq!(found, ["a.rs:601: 601 lines: split the file"]);
    }

    #[test]
    fn stubs_are_found() {
        let stub = concat!("fn f() {\n    to", "do!()\n}\n");
        let found = stubs(&[file("a.rs", stub)]);
        assert_eq!(found, [concat!("a.rs:2: `to", "do!(`")]);
        check(stubs, &[file("a.rs", "// nothing to do!\n")], &[]);
    }

    #[test]
    fn shared_structs_hold_integers_only() {
        let path = "probe-handler-common/src/a.rs";
        let good = "#[repr(C)]\n#[derive(Clone)]\npub struct A {\n    /// Note: text.\n    pub b: [u32; 4],\n    pub c: u64,\n}\n\
                    #[repr(C)]\npub struct D {\n    pub a: A,\n}\npub struct Free {\n    pub x: Option<bool>,\n}\n";
        check(shared_types, &[file(path, good)], &[]);
        for kind in ["bool", "usize", "Option<u32>", "[bool; 4]", "Why"] {
            let bad = format!("#[repr(C)]\npub struct A {{\n    pub b: {kind},\n}}\n");
            let finding = format!("{path}:3: A has a field of type {kind}");
            check(shared_types, &[file(path, &bad)], &[&finding]);
            check(shared_types, &[file("testbed/src/a.rs", &bad)], &[]);
        }
        let tuple = "#[repr(C)]\npub struct A(bool);\n";
        let finding = format!("{path}:1: A: write one named field per line");
        check(shared_types, &[file(path, tuple)], &[&finding]);
    }
}
