//! Modules import from layers below their own only, and no program's modules from the other's.
//!
//! The tables in `src/lib.rs` and `src/node/mod.rs` are read: they are the only place that says what is below what.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which program a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Both,
    Builder,
    Node,
}

/// Modules with their row, counted from the top, and their program.
type Table = BTreeMap<String, (usize, Program)>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The lines of the first `text` block in the module documentation of `text`.
fn block(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("//!"));
    lines.skip_while(|line| line.trim() != "```text").skip(1).take_while(|line| line.trim() != "```").collect()
}

/// The table of all modules: columns for the programs, under a header that names them.
fn layers(text: &str) -> Table {
    let lines = block(text);
    let column = |name| lines[0].find(name).unwrap();
    let columns =
        [(column("builder"), Program::Builder), (column("both"), Program::Both), (column("node"), Program::Node)];
    let mut table = Table::new();
    for (row, line) in lines[2..].iter().enumerate() {
        for (&(start, program), end) in
            columns.iter().zip(columns[1..].iter().map(|(start, _)| *start).chain([line.len()]))
        {
            let words = line.get(start..end.clamp(start, line.len().max(start))).unwrap_or("");
            for module in words.split_whitespace() {
                assert!(table.insert(module.to_owned(), (row, program)).is_none(), "`{module}` stands there twice");
            }
        }
    }
    table
}

/// The table of one program's own modules: rows alone.
fn rows(text: &str) -> Table {
    let rows = block(text).into_iter().enumerate();
    rows.flat_map(|(row, line)| line.split_whitespace().map(move |module| (module.to_owned(), (row, Program::Node))))
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All paths that begin with `root` in the code of a source text, without it: `use crate::{a::b, c}` names `a::b` and `c`.
/// Comments may point upwards.
fn named(text: &str, root: &str) -> Vec<String> {
    let text: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| line.to_owned() + "\n").collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for (at, _) in text.match_indices(root) {
        if !text[..at].ends_with(|c: char| is_word(c) || c == ':') {
            read_paths(&text[at + root.len()..], "", &mut paths);
        }
    }
    paths
}

/// Reads one path or one group of paths that follow `prefix`; returns the text after them.
fn read_paths<'a>(text: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        text = group.trim_start();
        while !text.is_empty() && !text.starts_with('}') {
            text = read_paths(text, prefix, paths);
            // `as name`, if there is one, and the comma.
            text = text.trim_start_matches(|c| c != ',' && c != '}').trim_start_matches(',').trim_start();
        }
        return text.strip_prefix('}').unwrap_or(text);
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    match text[end..].strip_prefix("::") {
        Some(rest) => read_paths(rest, &format!("{path}::"), paths),
        None => {
            paths.push(path);
            &text[end..]
        }
    }
}

/// What is wrong with the imports of `module`, which stands in `table`.
fn wrong_imports(file: &Path, module: &str, imported: &[String], table: &Table) -> Vec<String> {
    let file = file.display();
    let Some(&(row, program)) = table.get(module) else {
        return vec![format!("{file}: the module `{module}` does not stand in the table of layers")];
    };
    let mut wrong = Vec::new();
    for name in imported {
        let name = name.split("::").next().unwrap_or_default();
        let Some(&(below, other)) = table.get(name).filter(|_| name != module) else { continue };
        if below <= row {
            wrong.push(format!("{file}: `{module}` imports `{name}`, which is not in a row below"));
        }
        if other != Program::Both && other != program {
            wrong.push(format!("{file}: `{module}` ({program:?}) imports `{name}` ({other:?})"));
        }
    }
    wrong
}

/// The module that `file` is or belongs to, among those directly below `folder`.
fn module_of<'a>(file: &'a Path, folder: &Path) -> &'a str {
    file.strip_prefix(folder).unwrap().iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs")
}

#[test]
fn imports_go_down_only() {
    let source = source();
    let table = layers(&fs::read_to_string(source.join("lib.rs")).unwrap());
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let module = module_of(file, &source);
        if !matches!(module, "main" | "lib" | "bin") {
            let imported = named(&fs::read_to_string(file).unwrap(), "crate::");
            wrong.extend(wrong_imports(file, module, &imported, &table));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_go_down_only_inside_the_guest_program() {
    let folder = source().join("node");
    let table = rows(&fs::read_to_string(folder.join("mod.rs")).unwrap());
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("mod.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let mut imported: Vec<String> =
            named(&text, "crate::").iter().filter_map(|path| path.strip_prefix("node::")).map(str::to_owned).collect();
        if file.parent() == Some(&folder) {
            imported.extend(named(&text, "super::"));
        }
        wrong.extend(wrong_imports(file, module_of(file, &folder), &imported, &table));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_read_from_paths_and_groups() {
    let text = "//! See [`crate::cli`].\nuse crate::{model::{Digest, Arch as A}, store::{self, Store}, log};\nlet x = crate::exec::Run::new();";
    assert_eq!(
        named(text, "crate::"),
        ["model::Digest", "model::Arch", "store::self", "store::Store", "log", "exec::Run::new"]
    );
    assert_eq!(named("use super::{a, b::c}; self::super::d; super::*;", "super::"), ["a", "b::c", ""]);
}

#[test]
fn the_table_is_read_by_columns() {
    let text = "//! ```text\n//! layer  builder  both  node\n//! ---\n//! top    cli      x\n//!                 y     z\n//! ```\n";
    let row = |name: &str| layers(text).get(name).copied();
    assert_eq!(row("cli"), Some((0, Program::Builder)));
    assert_eq!(row("x"), Some((0, Program::Both)));
    assert_eq!(row("z"), Some((1, Program::Node)));
    assert_eq!(row("top"), None);
}
