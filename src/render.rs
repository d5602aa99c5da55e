//! Handlebars templates, strictly: a value that is not there is an error, and nothing is escaped for HTML.

use anyhow::{Context as _, Result};
use handlebars::Handlebars;
use serde::Serialize;

/// Renders `template`, which errors call `name`, with `data`.
///
/// # Errors
/// When the template is malformed or names what `data` does not have; line and column are told.
pub fn render(name: &str, template: &str, data: &impl Serialize) -> Result<String> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.register_escape_fn(handlebars::no_escape);
    engine.register_template_string(name, template).with_context(|| format!("reading the template {name}"))?;
    engine.render(name, data).with_context(|| format!("rendering the template {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_stand_as_they_are() {
        assert_eq!(
            render("t", "postgresql-{{v}} <{{s}}>", &json!({"v": 17, "s": "a&b"})).unwrap(),
            "postgresql-17 <a&b>"
        );
    }

    #[test]
    fn a_missing_value_is_an_error() {
        let error = format!("{:#}", render("t", "{{nope}}", &json!({})).unwrap_err());
        assert!(error.contains("rendering the template t") && error.contains("nope"), "{error}");
    }
}
