//! Templates from anywhere: reading and rendering one ends, with a text or an error.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz template`
#![no_main]

use libfuzzer_sys::fuzz_target;

const KEYS: [(&str, &str); 5] = [
    ("/members/pg-1", r#"{"conn_url":"postgres://10.0.0.11:5432/postgres","role":"primary","n":1e21,"l":[1,{"a":null}]}"#),
    ("/members/pg-2", "10.0.0.12"),
    ("/leader", "pg-1"),
    ("/a/b/c", "7"),
    ("/empty", ""),
];

fuzz_target!(|source: &str| {
    // What asks the machine or the network, or loops for long by intent, shows nothing new here.
    let is_slow = ["lookup", "include", "fileExists", "repeat", "seq", "range"].iter().any(|word| source.contains(word))
        && source.as_bytes().windows(4).any(|digits| digits.iter().all(u8::is_ascii_digit));
    if is_slow || ["lookup", "include"].iter().any(|word| source.contains(word)) {
        return;
    }
    let _ = pgha_image::confd::render(source, KEYS);
});
