//! `pgha-image schema`: the JSON Schema of what people write.

use super::print;
use crate::{overlay::OverlayFile, recipe::RecipeFile};
use anyhow::Result;
use clap::ValueEnum;

/// Print the JSON Schema of recipes or overlays, for editors.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of which document.
    kind: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// recipes/NAME.yaml
    Recipe,
    /// overlays/NAME/overlay.yaml
    Overlay,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let schema = match self.kind {
            Kind::Recipe => schemars::schema_for!(RecipeFile),
            Kind::Overlay => schemars::schema_for!(OverlayFile),
        };
        print(&format!("{}\n", serde_json::to_string_pretty(&schema)?))
    }
}

#[cfg(test)]
mod tests {
    //! The schemas say what the parser takes, key by key, no less and no more.

    use super::*;
    use crate::document::Document;
    use serde::de::DeserializeOwned;
    use serde_json::{Map, Value, json};
    use std::collections::BTreeSet;

    /// Follows references and takes the branch of a choice that is not null.
    fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
        if let Some(name) = schema["$ref"].as_str() {
            return resolve(root.pointer(name.trim_start_matches('#')).unwrap(), root);
        }
        match schema["anyOf"].as_array() {
            Some(branches) => resolve(branches.iter().find(|branch| branch["type"] != "null").unwrap(), root),
            None => schema,
        }
    }

    /// The schema of a map's values. Where keys have a pattern, values are found under it.
    fn values(schema: &Value) -> &Value {
        match schema["patternProperties"].as_object() {
            Some(patterns) => patterns.values().next().unwrap(),
            None => &schema["additionalProperties"],
        }
    }

    /// A value that the schema allows, with every key there is.
    fn sample(schema: &Value, root: &Value) -> Value {
        let schema = resolve(schema, root);
        if let Some(values) = schema["enum"].as_array() {
            return values[0].clone();
        }
        if let Some(branches) = schema["oneOf"].as_array() {
            return branches[0]["const"].clone();
        }
        let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
        match kind {
            Some("object") if schema["properties"].is_object() => {
                let properties = schema["properties"].as_object().unwrap();
                properties.iter().map(|(key, value)| (key.clone(), sample(value, root))).collect::<Map<_, _>>().into()
            }
            // Some maps have guest paths as keys, and a path does for a name, too.
            Some("object") => json!({"/key": sample(values(schema), root)}),
            Some("array") => json!([sample(&schema["items"], root)]),
            Some("string") => match schema["pattern"].as_str() {
                None => json!("text"),
                Some("^/") => json!("/path"),
                Some(pattern) if pattern.contains("GiB") => json!("1GiB"),
                Some(pattern) if pattern.contains("ms") => json!("1s"),
                Some(pattern) if pattern.contains("0-7") => json!("0644"),
                Some(_) => json!("name"),
            },
            Some("integer") => json!(1),
            Some("boolean") => json!(true),
            _ => json!("anything"),
        }
    }

    /// The pointers of all objects with fixed keys in a sample, and those keys as the schema has them.
    fn objects(schema: &Value, root: &Value, at: &str, found: &mut Vec<(String, BTreeSet<String>)>) {
        let schema = resolve(schema, root);
        if let Some(properties) = schema["properties"].as_object() {
            found.push((at.to_owned(), properties.keys().cloned().collect()));
            for (key, value) in properties {
                objects(value, root, &format!("{at}/{key}"), found);
            }
        }
        if values(schema).is_object() {
            objects(values(schema), root, &format!("{at}/~1key"), found);
        }
        if schema["items"].is_object() {
            objects(&schema["items"], root, &format!("{at}/0"), found);
        }
    }

    fn compare<T: DeserializeOwned>(schema: &schemars::Schema) {
        let schema = serde_json::to_value(schema).unwrap();
        let full = sample(&schema, &schema);
        let parse = |value: &Value| Document::new("sample", value.to_string()).parse::<T>();
        if let Err(error) = parse(&full) {
            panic!("the schema allows what the parser refuses: {error}\n{full:#}");
        }
        let mut found = Vec::new();
        objects(&schema, &schema, "", &mut found);
        assert!(found.len() > 4, "{found:?}");
        for (at, keys) in found {
            let mut with_stranger = full.clone();
            with_stranger.pointer_mut(&at).unwrap()["zzzzzzzzzzzzzzzz"] = json!(1);
            let Err(problem) = parse(&with_stranger) else { panic!("{at} takes any key") };
            let hint = problem.hint.unwrap_or_default();
            let taken: BTreeSet<String> = hint.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            assert_eq!(taken, keys, "at `{at}`, the parser takes one, the schema has the other");
        }
    }

    #[test]
    fn schemas_say_what_the_parser_takes() {
        compare::<RecipeFile>(&schemars::schema_for!(RecipeFile));
        compare::<OverlayFile>(&schemars::schema_for!(OverlayFile));
    }
}
