//! The targets of `tests/fuzz`, on their seeds and on what little changes make of them: they build, and their seeds pass.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use pgha_image::log;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{fs, path::Path};

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Warnings about what was damaged are of no use.
fn be_quiet() {
    log::set_level(log::Level::Error);
}

#[test]
fn the_seeds_of_the_fuzzers_pass() {
    be_quiet();
    for (name, target) in targets::ALL {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seed");
        seeds.iter().for_each(|seed| target(seed));
    }
}

#[test]
fn seeds_that_were_damaged_break_nothing() {
    be_quiet();
    for (name, target) in targets::ALL {
        let damaged =
            (prop::sample::select(seeds(name)), any::<(prop::sample::Index, prop::sample::Index)>(), ".{0,3}");
        let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&damaged, |(seed, (from, to), put)| {
            let letters: Vec<char> = seed.chars().collect();
            let (from, to) = (from.index(letters.len()), to.index(letters.len()));
            let kept = |range: &[char]| range.iter().collect::<String>();
            target(&format!("{}{put}{}", kept(&letters[..from.min(to)]), kept(&letters[from.max(to)..])));
            Ok(())
        });
        outcome.unwrap();
    }
}
