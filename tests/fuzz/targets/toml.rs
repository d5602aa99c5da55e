//! Resources and settings from anywhere: reading one ends, well or with an error.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz toml`
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let path = Path::new("fuzz.toml");
    let _ = pgha_image::confd::check_resource(path, text);
    let _ = pgha_image::confd::check_settings(path, text);
});
