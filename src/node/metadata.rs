//! Where a node's cluster document comes from.
//!
//! `/etc/pgha/cluster.yaml` wins: cloud-init's `write_files` puts it there, or a person. Else the key `pgha` of what
//! cloud-init exposes of instance metadata (`/run/cloud-init/instance-data-sensitive.json`, and without the sensitive
//! parts `instance-data.json`): in user data, in NoCloud's and ConfigDrive's meta-data, in EC2's instance tags,
//! OpenStack's `meta` or GCE's attributes. Its value is the document, or a text that is the document.

use crate::{document::Document, error::UserError, files::read_text, model::DOCUMENT_PATH};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;

/// Files in which cloud-init exposes metadata, best first.
const EXPOSED: [&str; 3] = [
    "/run/cloud-init/instance-data-sensitive.json",
    "/run/cloud-init/combined-cloud-config.json",
    "/run/cloud-init/instance-data.json",
];

/// Where the key may be in them (JSON pointers, RFC 6901), user data before metadata.
const POINTERS: [&str; 10] = [
    "/pgha",
    "/merged_cfg/pgha",
    "/merged_system_cfg/pgha",
    "/ds/meta_data/pgha",
    "/ds/meta_data/meta/pgha",
    "/ds/meta_data/tags/instance/pgha",
    "/ds/meta_data/tags/pgha",
    "/ds/meta_data/attributes/pgha",
    "/ds/meta_data/instance-data/pgha",
    "/ds/meta_data/instance/attributes/pgha",
];

const MISSING: &str = "this machine has no cluster document";

/// Whether `error` is that there is no document: nobody has asked this machine to be a node yet.
pub fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<UserError>().is_some_and(|problem| problem.message == MISSING)
}

/// Finds the document below `root` (`/` on a node).
///
/// # Errors
/// A wrong request when there is none; failed work when a file is there and cannot be read.
pub fn find(root: &Path) -> Result<Document> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let own = below(DOCUMENT_PATH);
    if own.exists() {
        return Ok(Document::new(DOCUMENT_PATH, read_text(&own)?));
    }
    for path in EXPOSED {
        let file = below(path);
        if !file.exists() {
            continue;
        }
        let value: Value =
            serde_json::from_str(&read_text(&file)?).with_context(|| format!("reading {}", file.display()))?;
        if let Some(document) = in_exposed(path, &value) {
            return Ok(document);
        }
    }
    Err(UserError::usage(MISSING)
        .hint(format!(
            "write it to {DOCUMENT_PATH} (cloud-init: write_files), or give the instance the metadata `pgha`; then run `pgha-node init`"
        ))
        .into())
}

/// The document among exposed metadata.
fn in_exposed(path: &str, value: &Value) -> Option<Document> {
    let (pointer, found) = POINTERS.iter().find_map(|pointer| Some((pointer, value.pointer(pointer)?)))?;
    let text = match found {
        Value::String(text) => text.clone(),
        // JSON is YAML; on several lines, so that errors can show one.
        other => format!("{other:#}"),
    };
    Some(Document::new(format!("{path}#{pointer}"), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_file_wins_over_metadata() {
        let root = tempfile::tempdir().unwrap();
        let error = crate::error::report(&find(root.path()).unwrap_err());
        assert!(error.starts_with("error: this machine has no cluster document\n\nhint: write it to"), "{error}");
        write(root.path(), EXPOSED[2], r#"{"ds": {"meta_data": {"pgha": {"schema": 1, "cluster": "demo"}}}}"#);
        let document = find(root.path()).unwrap();
        assert_eq!(document.name, "/run/cloud-init/instance-data.json#/ds/meta_data/pgha");
        assert_eq!(document.text, "{\n  \"schema\": 1,\n  \"cluster\": \"demo\"\n}");
        write(root.path(), DOCUMENT_PATH, "schema: 1\n");
        assert_eq!(find(root.path()).unwrap().text, "schema: 1\n");
    }

    #[test]
    fn every_cloud_has_its_place_for_it() {
        for json in [
            r#"{"merged_system_cfg": {"pgha": "schema: 1"}}"#,
            r#"{"ds": {"meta_data": {"tags": {"instance": {"pgha": "schema: 1"}}}}}"#,
            r#"{"ds": {"meta_data": {"meta": {"pgha": "schema: 1"}}}}"#,
            r#"{"ds": {"meta_data": {"attributes": {"pgha": "schema: 1"}}}}"#,
        ] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), EXPOSED[0], json);
            assert_eq!(find(root.path()).unwrap().text, "schema: 1", "{json}");
        }
    }
}
