//! Fuzzes the target `settings`.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use pgha_image::log;

libfuzzer_sys::fuzz_target!(
    init: log::set_level(log::Level::Error),
    |bytes: &[u8]| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            targets::settings(text);
        }
    }
);
