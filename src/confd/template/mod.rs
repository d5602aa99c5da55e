//! Templates: Go's `text/template` with confd's functions.
//!
//! [`Template`] is what the rest of confd sees; `gotmpl` renders behind it. What differs from Go is put right before
//! rendering: fields of pairs are checked, an invoked template without an argument sees nothing, methods of a time
//! work, numbers print as Go prints them (`rewrite`). Every function name in every branch is checked when a
//! template is loaded.

mod blocks;
mod functions;
mod rewrite;

use super::memkv::Store;
use crate::{error::UserError, files};
use anyhow::{Context as _, Result};
use functions::Scope;
use gotmpl::{Value, parse::Parser};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A template that is known to be whole, and whose functions all exist.
pub trait Template: fmt::Debug + Send + Sync {
    /// Renders with the keys of `store`.
    ///
    /// # Errors
    /// When the template reads a key that is not there.
    fn render(&self, store: &Arc<Store>) -> Result<String>;
}

/// Loads the template `name` of `folder`, with what it includes by a literal name.
///
/// # Errors
/// When a file cannot be read, is not a template, or calls an unknown function.
pub fn load(folder: &Path, name: &str) -> Result<Box<dyn Template>> {
    let path = folder.join(name);
    let source = files::read_text(&path)?;
    let label = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let loaded = Loaded { compiled: compile(&label, &source)?, folder: folder.into(), path };
    check_includes(folder, &loaded.compiled, &mut vec![loaded.path.clone()])?;
    Ok(Box::new(loaded))
}

/// Renders a template without files around it, with the keys of `store`.
///
/// # Errors
/// When it is not a template, or reads a key that is not there.
pub fn render_text(source: &str, store: Arc<Store>) -> Result<String> {
    compile("text", source)?.render(&Scope::new(store, PathBuf::new(), Vec::new()), &Value::Nil)
}

/// Fills the text of a command, which may name `{{.src}}` and `{{.dest}}` and use Go's own functions.
///
/// # Errors
/// When it is not a template or names anything else.
pub fn expand_command(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let compiled = compile("command", text)?;
    let known: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = compiled.root_fields.iter().find(|field| !known.contains(&field.as_str())) {
        return Err(UserError::usage(format!("the command `{text}` names `.{unknown}`"))
            .hint(format!(
                "it may name {}",
                known.iter().map(|name| format!("{{{{.{name}}}}}")).collect::<Vec<_>>().join(" and ")
            ))
            .into());
    }
    let data: BTreeMap<Arc<str>, Value> =
        values.iter().map(|(name, value)| (Arc::from(*name), Value::String(Arc::from(*value)))).collect();
    compiled.render(&Scope::bare(), &Value::Map(Arc::new(data)))
}

#[derive(Debug)]
struct Loaded {
    compiled: Compiled,
    folder: PathBuf,
    path: PathBuf,
}

impl Template for Loaded {
    fn render(&self, store: &Arc<Store>) -> Result<String> {
        let scope = Scope::new(Arc::clone(store), self.folder.clone(), vec![self.path.clone()]);
        self.compiled.render(&scope, &Value::Nil)
    }
}

/// A parsed and corrected template.
#[derive(Debug, Clone)]
struct Compiled {
    name: String,
    trees: Arc<Vec<(String, gotmpl::parse::ListNode)>>,
    /// The fields of the outermost value that it names.
    root_fields: Vec<String>,
    /// The literal names that it includes.
    includes: Vec<String>,
}

/// How often the loops of one rendering may go round, all together.
const MOST_ROUNDS: u64 = 5_000_000;
/// The longest text that a rendering may give, in bytes.
const LONGEST: usize = 256 << 20;

/// A text that refuses to grow beyond [`LONGEST`].
#[derive(Debug, Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The name under which the body of a template is kept; no `define` can have it.
const BODY: &str = "\u{0}body";

fn compile(name: &str, source: &str) -> Result<Compiled> {
    blocks::check(name, source)?;
    let (body, defines) = Parser::with_name(Some(name), source, "{{", "}}")
        .and_then(Parser::parse)
        .map_err(|error| UserError::usage(error.to_string()))?;
    let mut trees = vec![(BODY.to_owned(), body)];
    for define in defines {
        // As in Go, the last of two equal names would win only if the first were empty.
        if let Some((_, known)) = trees.iter_mut().find(|(known, _)| known.as_str() == define.name.as_str()) {
            match (known.is_empty_tree(), define.body.is_empty_tree()) {
                (_, true) => continue,
                (true, false) => *known = define.body,
                (false, false) => {
                    let message = format!(
                        "template: {name}:{}: multiple definition of template {:?}",
                        define.pos.line, &*define.name
                    );
                    return Err(UserError::usage(message).into());
                }
            }
        } else {
            trees.push((define.name.to_string(), define.body));
        }
    }
    let mut names = rewrite::Names::default();
    for (_, tree) in &mut trees {
        rewrite::list(tree, &mut names);
    }
    for (function, line) in &names.functions {
        functions::check(function).with_context(|| format!("template: {name}:{line}"))?;
    }
    Ok(Compiled {
        name: name.to_owned(),
        trees: Arc::new(trees),
        root_fields: names.root_fields,
        includes: names.includes,
    })
}

impl Compiled {
    fn render(&self, scope: &Arc<Scope>, data: &Value) -> Result<String> {
        let mut template = gotmpl::Template::new("").max_range_iters(MOST_ROUNDS).funcs(functions::bind(scope));
        for (name, tree) in self.trees.iter() {
            template = template.add_parse_tree(name, tree.clone());
        }
        let mut text = Bounded::default();
        template
            .execute_template_fmt(&mut text, BODY, data)
            .map_err(|error| anyhow::anyhow!("template: {}: {error}", self.name))?;
        Ok(text.0)
    }
}

/// Checks the templates that are included by a literal name, and theirs.
fn check_includes(folder: &Path, compiled: &Compiled, stack: &mut Vec<PathBuf>) -> Result<()> {
    for name in &compiled.includes {
        let (path, included) = functions::open_include(folder, name, stack)?;
        stack.push(path);
        check_includes(folder, &included, stack)?;
        stack.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
