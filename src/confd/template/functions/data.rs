//! Lists, maps, JSON, defaults.

use super::{Args, Function, Outcome, Scope, as_pair, format, list, text};
use gotmpl::Value;
use std::{collections::BTreeMap, sync::Arc};

pub const TABLE: &[(&str, Function)] = &[
    ("json", |_, args| json(args, Kind::Object)),
    ("jsonArray", |_, args| json(args, Kind::Array)),
    ("fromJson", |_, args| json(args, Kind::Any)),
    ("toJson", |_, args| written(args, format::json)),
    ("toPrettyJson", |_, args| written(args, format::pretty_json)),
    ("map", map),
    ("dict", map),
    ("list", |_, args| Ok(list(args.values.iter().cloned()))),
    ("reverse", reverse),
    ("sortByLength", |_, args| {
        sorted(args, |value| if let Value::String(text) = value { Some(text.len()) } else { None })
    }),
    ("sortKVByLength", |_, args| sorted(args, |value| as_pair(value).map(|(key, _)| key.len()))),
    ("default", default),
    ("ternary", ternary),
    ("coalesce", |_, args| Ok(args.values.iter().find(|value| !is_empty(value)).cloned().unwrap_or(Value::Nil))),
    ("empty", |_, args| args.exactly(1).map(|()| Value::Bool(is_empty(&args.values[0])))),
    ("hasKey", has_key),
    ("keys", |_, args| args.exactly(1).and_then(|()| Ok(list(args.map(0)?.keys().map(text))))),
    ("values", |_, args| args.exactly(1).and_then(|()| Ok(list(args.map(0)?.values().cloned())))),
    ("append", append),
    ("pluck", pluck),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    Any,
}

fn json(args: &Args<'_>, kind: Kind) -> Outcome {
    args.exactly(1)?;
    let parsed: serde_json::Value = serde_json::from_str(args.text(0)?).map_err(|error| args.failed(error))?;
    match (&parsed, kind) {
        (serde_json::Value::Object(_), Kind::Object) | (serde_json::Value::Array(_), Kind::Array) | (_, Kind::Any) => {}
        // Go leaves the map or the slice empty.
        (serde_json::Value::Null, Kind::Object) => return Ok(Value::Map(Arc::default())),
        (serde_json::Value::Null, Kind::Array) => return Ok(list([])),
        (_, Kind::Object) => return Err(args.failed("the JSON text is not an object")),
        (_, Kind::Array) => return Err(args.failed("the JSON text is not an array")),
    }
    Ok(from_json(parsed))
}

/// Every number is a float, as in Go.
fn from_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(string) => text(string),
        serde_json::Value::Array(items) => list(items.into_iter().map(from_json)),
        serde_json::Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (Arc::from(name), from_json(value)));
            Value::Map(Arc::new(fields.collect()))
        }
    }
}

fn written(args: &Args<'_>, write: fn(&Value) -> Result<String, String>) -> Outcome {
    args.exactly(1)?;
    write(&args.values[0]).map(text).map_err(|reason| args.failed(reason))
}

fn map(_: &Scope, args: &Args<'_>) -> Outcome {
    if !args.values.len().is_multiple_of(2) {
        return Err(args.failed("invalid map call"));
    }
    let field = |pair: &[Value]| match pair {
        [Value::String(key), value] => Ok((Arc::clone(key), value.clone())),
        _ => Err(args.failed("map keys must be strings")),
    };
    let fields: Result<BTreeMap<_, _>, _> = args.values.chunks(2).map(field).collect();
    Ok(Value::Map(Arc::new(fields?)))
}

fn reverse(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    match args.value(0)? {
        Value::List(items) => Ok(list(items.iter().rev().cloned())),
        // As in Go, a value that is not a list does not change.
        other => Ok(other.clone()),
    }
}

fn sorted(args: &Args<'_>, length: fn(&Value) -> Option<usize>) -> Outcome {
    args.exactly(1)?;
    let mut items = args.list(0)?.to_vec();
    if items.iter().any(|item| length(item).is_none()) {
        return Err(args.wrong(0, if args.name == "sortByLength" { "[]string" } else { "[]KVPair" }));
    }
    items.sort_by_key(length);
    Ok(list(items))
}

/// Nothing, zero, false, and what has no elements.
fn is_empty(value: &Value) -> bool {
    !value.is_truthy()
}

fn default(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    Ok(args.values[usize::from(!is_empty(&args.values[1]))].clone())
}

fn ternary(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(3)?;
    Ok(args.values[usize::from(!args.bool(2)?)].clone())
}

fn has_key(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    Ok(Value::Bool(args.map(0)?.contains_key(args.text(1)?)))
}

fn append(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    Ok(list(args.list(0)?.iter().cloned().chain([args.values[1].clone()])))
}

fn pluck(_: &Scope, args: &Args<'_>) -> Outcome {
    args.between(1, usize::MAX)?;
    let key = args.text(0)?;
    let maps: Result<Vec<_>, _> = (1..args.values.len()).map(|at| args.map(at)).collect();
    Ok(list(maps?.into_iter().filter_map(|map| map.get(key).cloned())))
}
