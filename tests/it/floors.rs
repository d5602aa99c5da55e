//! Imports go down the house's floors only, and no program's rooms lean on the other's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which program a room belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Both,
    Builder,
    Node,
}

/// Every room with its floor; `src/lib.rs` draws the same picture.
fn rooms() -> BTreeMap<&'static str, (u8, Program)> {
    use Program::*;
    [
        ("error", 0, Both),
        ("spec", 0, Both),
        ("document", 1, Both),
        ("exec", 1, Both),
        ("files", 1, Both),
        ("pace", 1, Both),
        ("render", 1, Both),
        ("http", 1, Builder),
        ("interrupt", 1, Builder),
        ("progress", 1, Builder),
        ("sandbox", 2, Builder),
        ("store", 1, Builder),
        ("rootfs", 2, Builder),
        ("debian", 3, Builder),
        ("disk", 3, Builder),
        ("overlay", 3, Builder),
        ("recipe", 3, Builder),
        ("archive", 4, Builder),
        ("plan", 4, Builder),
        ("base", 5, Builder),
        ("engine", 5, Builder),
        ("image", 5, Builder),
        ("machine", 5, Builder),
        ("seed", 5, Builder),
        ("build", 6, Builder),
        ("cluster", 6, Builder),
        ("inspect", 6, Builder),
        ("cli", 7, Builder),
        ("node", 7, Node),
    ]
    .map(|(room, floor, program)| (room, (floor, program)))
    .into()
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

/// The rooms that a source text names in `crate::ROOM` and `use crate::{ROOM…, ROOM…}`.
fn named_rooms(text: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => named.push(std::mem::take(&mut word)),
                    c if depth == 0 => word.push(c),
                    _ => {}
                }
            }
            named.push(word);
        } else {
            named.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    named
        .iter()
        .map(|name| name.trim().split("::").next().unwrap_or("").trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn imports_go_down_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms = rooms();
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut faults = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).unwrap();
        let room = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(room, "main" | "lib" | "bin") {
            continue;
        }
        let Some(&(floor, program)) = rooms.get(room) else {
            faults.push(format!("{}: the room `{room}` stands on no floor", relative.display()));
            continue;
        };
        for named in named_rooms(&fs::read_to_string(&file).unwrap()) {
            let Some(&(below, other)) = rooms.get(named.as_str()) else { continue };
            if named != room && below >= floor {
                faults.push(format!(
                    "{}: `{room}` on floor {floor} imports `{named}` on floor {below}",
                    relative.display()
                ));
            }
            if other != Program::Both && program != other && named != room {
                faults.push(format!("{}: `{room}` ({program:?}) imports `{named}` ({other:?})", relative.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_groups() {
    assert_eq!(
        named_rooms("use crate::{spec::{Digest, Arch}, store::Store};\nlet x = crate::exec::Run::new();"),
        ["spec", "store", "exec"]
    );
}
