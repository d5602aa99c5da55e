//! The functions of templates: Go's own come from `gotmpl`, confd's and the store's are here.
//!
//! Arguments are checked as Go checks them: a string where the parameter is a string, a whole number where it is an
//! int; nothing is converted silently.

mod data;
mod format;
mod host;
mod number;
mod store;
mod text;
mod time;

pub use host::open_include;

use super::{super::memkv::Store, rewrite};
use crate::error::UserError;
use gotmpl::{FuncMap, TemplateError, Value, ValueFunc};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

/// What one rendering can see.
#[derive(Debug)]
pub struct Scope {
    store: Arc<Store>,
    folder: PathBuf,
    /// The files being rendered, the outermost first.
    stack: Vec<PathBuf>,
}

impl Scope {
    /// A rendering of a template file.
    pub fn new(store: Arc<Store>, folder: PathBuf, stack: Vec<PathBuf>) -> Arc<Scope> {
        Arc::new(Scope { store, folder, stack })
    }

    /// A rendering that sees no keys and includes nothing.
    pub fn bare() -> Arc<Scope> {
        Scope::new(Arc::default(), PathBuf::new(), Vec::new())
    }
}

type Outcome = Result<Value, TemplateError>;
type Function = fn(&Scope, &Args<'_>) -> Outcome;

/// Go's functions; `gotmpl` has them all, those that print are put right in `format`.
const BUILT_IN: [&str; 19] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print", "printf",
    "println", "slice", "urlquery",
];

/// Functions of confd that are not supported, with the reason.
const REFUSED: [(&str, &str); 4] = [
    ("cget", "encrypted values need confd's -secret-keyring, which is not supported"),
    ("cgets", "encrypted values need confd's -secret-keyring, which is not supported"),
    ("cgetv", "encrypted values need confd's -secret-keyring, which is not supported"),
    ("cgetvs", "encrypted values need confd's -secret-keyring, which is not supported"),
];

static TABLE: LazyLock<BTreeMap<&'static str, Function>> = LazyLock::new(|| {
    let rooms: [&[(&'static str, Function)]; 7] =
        [store::TABLE, text::TABLE, number::TABLE, data::TABLE, host::TABLE, time::TABLE, format::TABLE];
    rooms.into_iter().flatten().copied().collect()
});

/// The names of all functions that templates may call, sorted.
#[cfg(test)]
pub fn names() -> Vec<&'static str> {
    let public = TABLE.keys().copied().filter(|name| !name.starts_with('_'));
    let mut names: Vec<_> = public.chain(BUILT_IN).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether a function may be called.
///
/// # Errors
/// When there is none of that name, or it is not supported.
pub fn check(name: &str) -> anyhow::Result<()> {
    if BUILT_IN.contains(&name) || (TABLE.contains_key(name) && !name.starts_with('_')) {
        return Ok(());
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Err(UserError::usage(format!("the function `{name}` is not supported: {reason}")).into());
    }
    Err(UserError::usage(format!("function \"{name}\" not defined")).into())
}

/// All functions, bound to what a rendering can see.
pub fn bind(scope: &Arc<Scope>) -> FuncMap {
    let bind = |(name, function): (&&'static str, &Function)| {
        let (name, function, scope) = (*name, *function, Arc::clone(scope));
        let bound: ValueFunc = Arc::new(move |values| function(&scope, &Args { name, values }));
        (name.to_owned(), bound)
    };
    TABLE.iter().map(bind).collect()
}

/// The arguments of a call.
#[derive(Debug)]
struct Args<'a> {
    name: &'static str,
    values: &'a [Value],
}

impl<'a> Args<'a> {
    /// Demands `least` to `most` arguments.
    fn between(&self, least: usize, most: usize) -> Result<(), TemplateError> {
        let got = self.values.len();
        if (least..=most).contains(&got) {
            return Ok(());
        }
        let want = if got < least && most > least { format!("at least {least}") } else { least.to_string() };
        Err(error(format!("wrong number of args for {}: want {want} got {got}", self.name)))
    }

    fn exactly(&self, count: usize) -> Result<(), TemplateError> {
        self.between(count, count)
    }

    fn value(&self, at: usize) -> Result<&'a Value, TemplateError> {
        self.values
            .get(at)
            .ok_or_else(|| error(format!("wrong number of args for {}: got {}", self.name, self.values.len())))
    }

    fn wrong(&self, at: usize, expected: &str) -> TemplateError {
        let got = self.values.get(at).map_or("nothing", type_name);
        error(format!(
            "error calling {}: wrong type for argument {}; expected {expected}; got {got}",
            self.name,
            at + 1
        ))
    }

    fn text(&self, at: usize) -> Result<&'a str, TemplateError> {
        match self.value(at)? {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong(at, "string")),
        }
    }

    fn int(&self, at: usize) -> Result<i64, TemplateError> {
        match self.value(at)? {
            Value::Int(number) => Ok(*number),
            Value::Uint(number) => i64::try_from(*number).map_err(|_| self.wrong(at, "int")),
            // A whole number of a JSON text is a float; Go would refuse it unless it stands in the template itself.
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => Ok(*number as i64),
            _ => Err(self.wrong(at, "int")),
        }
    }

    fn bool(&self, at: usize) -> Result<bool, TemplateError> {
        match self.value(at)? {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.wrong(at, "bool")),
        }
    }

    /// A list; nothing counts as an empty one.
    fn list(&self, at: usize) -> Result<&'a [Value], TemplateError> {
        match self.value(at)? {
            Value::List(items) => Ok(items),
            Value::Nil => Ok(&[]),
            _ => Err(self.wrong(at, "list")),
        }
    }

    fn texts(&self, at: usize) -> Result<Vec<&'a str>, TemplateError> {
        let text = |value: &'a Value| {
            if let Value::String(text) = value { Ok(&**text) } else { Err(self.wrong(at, "[]string")) }
        };
        self.list(at)?.iter().map(text).collect()
    }

    fn map(&self, at: usize) -> Result<&'a BTreeMap<Arc<str>, Value>, TemplateError> {
        match self.value(at)? {
            Value::Map(map) => Ok(map),
            _ => Err(self.wrong(at, "map")),
        }
    }

    /// The error of a call that went wrong, as Go words it.
    fn failed(&self, reason: impl std::fmt::Display) -> TemplateError {
        error(format!("error calling {}: {reason}", self.name))
    }
}

fn error(message: String) -> TemplateError {
    TemplateError::Exec(message)
}

fn type_name(value: &Value) -> &'static str {
    value.type_name()
}

fn text(text: impl AsRef<str>) -> Value {
    Value::String(Arc::from(text.as_ref()))
}

fn list(items: impl IntoIterator<Item = Value>) -> Value {
    Value::List(items.into_iter().collect())
}

/// A key with its value, as templates see it.
fn pair(key: &Arc<str>, value: &Arc<str>) -> Value {
    static NAMES: LazyLock<[Arc<str>; 2]> = LazyLock::new(|| ["Key".into(), "Value".into()]);
    let [key_name, value_name] = &*NAMES;
    let fields = [
        (Arc::clone(key_name), Value::String(Arc::clone(key))),
        (Arc::clone(value_name), Value::String(Arc::clone(value))),
    ];
    Value::Map(Arc::new(BTreeMap::from(fields)))
}

/// The key and the value, if `value` is a pair.
fn as_pair(value: &Value) -> Option<(&str, &str)> {
    let Value::Map(map) = value else { return None };
    match (map.len(), map.get("Key"), map.get("Value")) {
        (2, Some(Value::String(key)), Some(Value::String(value))) => Some((key, value)),
        _ => None,
    }
}
