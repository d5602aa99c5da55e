//! `pgha-image schema`: the JSON Schema of what people write, and of the values that they write it with.

use super::print;
use crate::{model::scope::Scope, overlay::OverlayFile, recipe::RecipeFile};
use anyhow::Result;
use clap::ValueEnum;

/// Print the JSON Schema of recipes, overlays, or the values of templates, for editors and people.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the schema describes.
    kind: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// recipes/NAME.yaml
    Recipe,
    /// overlays/NAME/overlay.yaml
    Overlay,
    /// The values that templates (overlays/NAME/rootfs/PATH.hbs) can use
    Scope,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let schema = match self.kind {
            Kind::Recipe => schemars::schema_for!(RecipeFile),
            Kind::Overlay => schemars::schema_for!(OverlayFile),
            Kind::Scope => schemars::schema_for!(Scope),
        };
        print(&format!("{}\n", serde_json::to_string_pretty(&schema)?))
    }
}

#[cfg(test)]
mod tests {
    //! The schemas have what the parser accepts, key by key, no less and no more.

    use super::*;
    use crate::{
        document::Document,
        model::{
            Node, samples,
            scope::{EtcdStart, Machine},
        },
    };
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

    /// Every key of `value` must be in the schema, and every key with one shape must be in `value`.
    fn describes(schema: &Value, root: &Value, value: &Value, at: &str) {
        let schema = resolve(schema, root);
        match value {
            Value::Object(fields) if schema["properties"].is_object() => {
                let properties = schema["properties"].as_object().unwrap();
                let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
                assert_eq!(keys(fields), keys(properties), "{at}");
                fields.iter().for_each(|(key, value)| describes(&properties[key], root, value, &format!("{at}.{key}")));
            }
            Value::Object(_) => assert_eq!(schema["type"], "object", "{at}"),
            Value::Array(values) => {
                values.iter().for_each(|value| describes(&schema["items"], root, value, &format!("{at}[]")));
            }
            _ => {}
        }
    }

    #[test]
    fn the_schema_of_scopes_has_what_templates_can_use() {
        let schema = serde_json::to_value(schemars::schema_for!(Scope)).unwrap();
        for spec in samples::all() {
            let scope =
                Scope::new(&Node::new(spec.clone(), 0), &Machine::sample(), &EtcdStart::together(&spec), &Map::new());
            describes(&schema, &schema, &serde_json::to_value(scope).unwrap(), "scope");
        }
        let text = schema.to_string();
        assert!(text.contains("The virtual address"), "documentation is part of it");
    }
}
