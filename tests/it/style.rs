//! Words and phrases that the project does not use: those that a person of the field would not understand.
//!
//! Each has its replacement, which the failure names. `typos` finds misspelt words (`.ci/run`).

use std::{fs, path::Path, process::Command};

/// What is looked for in source files: types and functions of former names.
const NAMES: [(&str, &str); 22] = [
    ("Fault::", "UserError::usage or UserError::runtime"),
    ("Blame", "ErrorKind"),
    ("Teller", "Reporter"),
    ("Pace", "PollInterval"),
    ("Said", "HelloAnswer, or NodeStatus"),
    ("Bell", "Notify"),
    ("Rung", "WakeReason"),
    ("Pulse", "Heartbeat"),
    ("Crew", "Workers"),
    ("Veil", "Redactor"),
    ("UNASKED", "EX_NOINPUT"),
    ("Shelf", "StateDir"),
    ("Workshop", "BuildContext, or Fixture in tests"),
    ("furniture", "boot_files"),
    ("Reception", "DiscoveryListener"),
    ("porter", "accept_thread"),
    ("ailment", "problem"),
    ("Ground", "ClusterNetwork, or TestCluster in tests"),
    ("Traits", "HostIdentity"),
    ("crate::spec", "crate::model"),
    ("crate::build", "crate::pipeline"),
    ("crate::engine", "crate::container_engine"),
];

/// What is looked for in all text, without regard to upper case.
const PHRASES: [(&str, &str); 14] = [
    ("cannot be had", "is not available, cannot be fetched, is not supported"),
    ("to be had", "available"),
    ("what came of", "the result of"),
    ("came of it", "the result"),
    ("taken away", "removed"),
    ("takes away", "removes"),
    ("take away", "remove"),
    ("in nobody's way", "does no harm"),
    (" shall ", "must, or the present tense"),
    ("whose failure", "the kind of error"),
    ("is told that", "gets, receives"),
    ("as good as none", "counts as missing"),
    ("front door", "HAProxy, entry point"),
    ("looked anew", "read again, checked again"),
];

/// Names and contents of all text files of the project, but this one.
fn texts() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    let kinds = ["rs", "md", "toml", "yaml", "yml", "snap", "hbs", "tmpl", "sh"];
    let is_text = |name: &&str| {
        let kind = Path::new(name).extension().and_then(|kind| kind.to_str());
        *name != "tests/it/style.rs" && (kind.is_some_and(|kind| kinds.contains(&kind)) || *name == ".ci/run")
    };
    names
        .lines()
        .filter(is_text)
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(root.join(name)).ok()?)))
        .collect()
}

/// Whether `text` has `phrase` as whole words.
fn has_word(text: &str, phrase: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(phrase).any(|(at, _)| {
        let ends = phrase.ends_with(is_word) && text[at + phrase.len()..].starts_with(is_word);
        let begins = phrase.starts_with(is_word) && text[..at].ends_with(is_word);
        !ends && !begins
    })
}

/// "`x` is no number", but not "there is no number" and "is no longer".
fn denies_by_no(line: &str) -> bool {
    line.match_indices(" is no ").any(|(at, found)| {
        let before = line[..at].to_lowercase();
        let after = &line[at + found.len()..];
        !before.ends_with("there") && !["longer", "more", "package is"].iter().any(|word| after.starts_with(word))
    })
}

#[test]
fn former_names_and_riddles_do_not_come_back() {
    let mut found = Vec::new();
    for (name, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            let mut note = |what: &str, instead: &str| {
                found.push(format!("{name}:{}: `{what}`: write {instead}", number + 1));
            };
            let lower = line.to_lowercase();
            PHRASES.iter().filter(|(phrase, _)| has_word(&lower, phrase)).for_each(|(phrase, new)| note(phrase, new));
            if name.ends_with(".rs") {
                NAMES.iter().filter(|(old, _)| has_word(line, old)).for_each(|(old, new)| note(old, new));
            }
            if denies_by_no(line) {
                note("is no x", "`is not a x`");
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn phrases_are_found_as_whole_words() {
    assert!(has_word("it cannot be had here", "cannot be had"));
    assert!(!has_word("Grounded", "Ground"));
    assert!(denies_by_no("`abc` is no number"));
    assert!(!denies_by_no("there is no number that is no longer used"));
}
