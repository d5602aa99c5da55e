//! What is fuzzed: each target takes any text; it panics where a promise is broken. Used by the fuzzers and, with their
//! seeds, by the tests.

use pgha_image::confd;
use std::path::Path;

/// A target.
pub type Target = fn(&str);

/// All targets by name; the seeds of each lie in `seeds/NAME`.
pub const ALL: [(&str, Target); 3] = [("template", template), ("resource", resource), ("settings", settings)];

/// The keys that fuzzed templates see.
const KEYS: [(&str, &str); 5] = [
    ("/app/port", "5432"),
    ("/app/upstream/a1", "10.0.1.12:80"),
    ("/app/upstream/b1", "10.0.1.11:80"),
    (
        "/m/pg-1",
        r#"{"conn_url":"postgres://10.0.0.11:5432/postgres","n":5432,"tags":{"a":true},"list":[1,2.5,"x",null]}"#,
    ),
    ("/top", "x"),
];

/// A template renders, twice the same, or is refused.
pub fn template(text: &str) {
    // These ask the network or read files.
    if ["lookup", "include", "fileExists"].iter().any(|word| text.contains(word)) {
        return;
    }
    let once = confd::render(text, KEYS);
    if !text.contains("{{") {
        assert_eq!(once.as_ref().ok().map(String::as_str), Some(text), "a text without actions stays as it is");
    }
    if !text.contains("datetime")
        && let Ok(once) = once
    {
        assert_eq!(confd::render(text, KEYS).ok(), Some(once), "the same keys give the same text");
    }
}

/// A resource file is read, or refused with an error that names it.
pub fn resource(text: &str) {
    if let Err(error) = confd::check_resource(Path::new("resource.toml"), text) {
        let said = format!("{error:#}");
        assert!(said.contains("resource.toml"), "an error without its file: {said}");
    }
}

/// A settings file is read or refused.
pub fn settings(text: &str) {
    let _ = confd::check_settings(Path::new("confd.toml"), text);
}
