//! Renders templates once: Handlebars in strict mode, with the helpers that configuration files need.
//!
//! | helper | gives |
//! |---|---|
//! | `{{quote x}}` | `x` as a quoted YAML or JSON string, with every special character escaped; numbers stay numbers |
//! | `{{literal x}}` | `x` as a quoted SQL string |
//! | `{{name x}}` | `x` as a quoted SQL identifier |
//! | `{{password_field x}}` | `x` as a field of PostgreSQL's password file, with colons and backslashes escaped |
//! | `{{seconds t}}`, `{{milliseconds t}}` | a time as a number; seconds may have decimals |
//! | `{{host_port address port}}` | both as a URL writes them |
//! | `{{#if (eq a b)}}` | whether both are equal (`ne`, `gt`, `and`, `or`, `not` likewise) |
//!
//! Nothing else is escaped. A key that the scope does not have is an error, never an empty string.

use crate::model::{Time, scope::host_port};
use anyhow::{Context as _, Result};
use handlebars::{Context, Handlebars, Helper, HelperResult, Output, RenderContext, RenderErrorReason};
use serde::Serialize;
use serde_json::Value;
use std::{net::IpAddr, sync::LazyLock};

/// Renders the template `text`, which errors call `name`.
///
/// # Errors
/// The template's name, line and column: wrong syntax, a key that `data` does not have, or a value that a helper cannot
/// use. The message never contains a value.
pub fn render(name: &str, text: &str, data: &impl Serialize) -> Result<String> {
    static ENGINE: LazyLock<Handlebars<'static>> = LazyLock::new(engine);
    ENGINE
        .render_template(text, data)
        .map_err(|error| RenderError {
            name: name.to_owned(),
            line: error.line_no,
            column: error.column_no,
            reason: reason(&error),
        })
        .context("rendering a template")
}

/// Why a template could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}:{}:{}: {reason}", line.unwrap_or(1), column.unwrap_or(1))]
struct RenderError {
    name: String,
    line: Option<usize>,
    column: Option<usize>,
    reason: String,
}

fn reason(error: &handlebars::RenderError) -> String {
    match error.reason() {
        RenderErrorReason::MissingVariable(Some(path)) => format!("there is no value `{path}` here"),
        RenderErrorReason::MissingVariable(None) => "there is no such value".to_owned(),
        RenderErrorReason::TemplateError(error) => error.reason().to_string(),
        other => other.to_string(),
    }
}

fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.register_escape_fn(handlebars::no_escape);
    let helpers: [(&'static str, Convert); 7] = [
        ("quote", |values| Some(quote(values.first()?))),
        ("literal", |values| Some(sql_quote(&plain(values.first()?)?, '\''))),
        ("name", |values| Some(sql_quote(&plain(values.first()?)?, '"'))),
        ("password_field", |values| Some(plain(values.first()?)?.replace('\\', r"\\").replace(':', r"\:"))),
        ("seconds", |values| time(values.first()?).map(|time| decimal(time.0.as_millis()))),
        ("milliseconds", |values| time(values.first()?).map(|time| time.0.as_millis().to_string())),
        ("host_port", |values| {
            let address: IpAddr = values.first()?.as_str()?.parse().ok()?;
            Some(host_port(address, u16::try_from(values.get(1)?.as_u64()?).ok()?))
        }),
    ];
    for (name, convert) in helpers {
        engine.register_helper(name, Box::new(Written { name, convert }));
    }
    engine
}

type Convert = fn(&[Value]) -> Option<String>;

/// A helper that writes the result of a function.
struct Written {
    name: &'static str,
    convert: Convert,
}

impl handlebars::HelperDef for Written {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let values: Vec<Value> = helper.params().iter().map(|param| param.value().clone()).collect();
        let missing = helper.params().iter().find(|param| param.is_value_missing());
        if let Some(path) = missing.map(|param| param.relative_path().cloned()) {
            return Err(RenderErrorReason::MissingVariable(path).into());
        }
        match (self.convert)(&values) {
            Some(text) => Ok(out.write(&text)?),
            None => Err(RenderErrorReason::Other(format!("`{}` cannot use its arguments", self.name)).into()),
        }
    }
}

/// As YAML and JSON write it.
fn quote(value: &Value) -> String {
    // YAML and JSON accept each other's double-quoted strings, escapes included.
    value.to_string()
}

/// A scalar as text.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}

/// Between `mark`s, with those inside doubled; backslashes are not special (`standard_conforming_strings`).
fn sql_quote(text: &str, mark: char) -> String {
    format!("{mark}{}{mark}", text.replace(mark, &format!("{mark}{mark}")))
}

fn time(value: &Value) -> Option<Time> {
    value.as_str()?.parse().ok()
}

/// Milliseconds as seconds, with as many decimals as needed.
fn decimal(milliseconds: u128) -> String {
    let (whole, rest) = (milliseconds / 1000, milliseconds % 1000);
    match rest {
        0 => whole.to_string(),
        rest => format!("{whole}.{rest:03}").trim_end_matches('0').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Node, samples,
        scope::{EtcdStart, Machine, Scope},
    };
    use serde_json::json;

    fn rendered(text: &str) -> Result<String, String> {
        let node = Node::new(samples::three(), 0);
        let scope = Scope::new(&node, &Machine::sample(), &EtcdStart::together(&node.spec), &serde_json::Map::new());
        render("demo.hbs", text, &scope).map_err(|error| error.root_cause().to_string())
    }

    #[test]
    fn anything_can_be_the_data_of_a_template() {
        assert_eq!(
            render("t", "postgresql-{{v}} <{{s}}>", &json!({"v": 17, "s": "a&b"})).unwrap(),
            "postgresql-17 <a&b>"
        );
    }

    #[test]
    fn helpers_write_what_each_format_wants() {
        assert_eq!(rendered("{{quote cluster.name}}"), Ok("\"demo\"".into()));
        assert_eq!(rendered("{{literal \"it's\"}} {{name \"a\\\"b\"}}"), Ok("'it''s' \"a\"\"b\"".into()));
        assert_eq!(rendered("{{seconds timing.vrrp.advert}} {{seconds timing.patroni.ttl}}"), Ok("0.2 20".into()));
        assert_eq!(rendered(r#"{{password_field "a:b\\c"}}"#), Ok(r"a\:b\\c".into()));
        assert_eq!(rendered("{{milliseconds timing.etcd.election}}"), Ok("1000".into()));
        assert_eq!(rendered("{{host_port node.address ports.patroni}}"), Ok("10.0.0.11:8008".into()));
        assert_eq!(
            rendered("{{#if (eq synchronous.mode \"on\")}}yes{{/if}}{{#if vip}} vip{{/if}}"),
            Ok("yes vip".into())
        );
        assert_eq!(rendered("<&>{{cluster.name}}"), Ok("<&>demo".into()));
    }

    #[test]
    fn a_missing_key_is_an_error_with_its_place() {
        assert_eq!(rendered("a\n {{cluster.nam}}"), Err("demo.hbs:2:2: there is no value `cluster.nam` here".into()));
        assert_eq!(rendered("{{quote cluster.nam}}"), Err("demo.hbs:1:1: there is no value `cluster.nam` here".into()));
        assert!(rendered("{{#if}").is_err());
        assert_eq!(
            rendered("{{seconds cluster.name}}"),
            Err("demo.hbs:1:1: `seconds` cannot use its arguments".into())
        );
    }
}
