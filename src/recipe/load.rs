//! Reads and checks a recipe and those that it extends.

use super::{
    Archive, Oci, ParameterType, Paths, RecipeFile, Size,
    schema::{DiskFile, Parameter, SourceFile},
};
use crate::{
    document::{Document, suggest},
    error::UserError,
    files,
    model::{Group, User},
    render,
};
use anyhow::{Context as _, Result};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A recipe with everything that it extends taken in, checked as far as it can be without its overlays.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// What the image is for, in one line.
    pub description: String,
    /// The names of the recipes it is made of, the outermost base first, its own last.
    pub lineage: Vec<String>,
    /// The folder of its overlays.
    pub overlay_folder: PathBuf,
    /// The parameters as they are set.
    pub parameters: BTreeMap<String, Value>,
    /// Apt archives, by name.
    pub sources: BTreeMap<String, Source>,
    /// Debian packages, parameters put in, maybe with a version constraint.
    pub packages: Vec<String>,
    /// Packages that must not be installed.
    pub forbid: Vec<String>,
    /// Whether recommended packages are installed too.
    pub recommends: bool,
    /// Debconf answers, parameters put in.
    pub preseed: Vec<String>,
    /// Paths of packages that are left out.
    pub paths: Paths,
    /// Users with fixed numbers.
    pub users: BTreeMap<String, User>,
    /// Groups with fixed numbers.
    pub groups: BTreeMap<String, Group>,
    /// Overlays by name, with where they are named, for errors.
    pub overlays: Vec<(String, UserError)>,
    /// VM images.
    pub disk: Option<Disk>,
    /// OCI images.
    pub oci: Oci,
}

/// What VM images have in addition.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// The disk's size; what the image needs if not given.
    pub size: Option<Size>,
    /// Debian packages, parameters put in.
    pub packages: Vec<String>,
    /// Overlays by name, with where they are named, for errors.
    pub overlays: Vec<(String, UserError)>,
    /// Arguments of the kernel.
    pub arguments: Vec<String>,
}

/// An apt archive, one suite of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The archive's base URI; a mirror of the Debian archive if there is none.
    pub uri: Option<String>,
    /// Which of Debian's archives, where there is no `uri`.
    pub archive: Archive,
    /// The suite or its codename.
    pub suite: String,
    /// The components.
    pub components: Vec<String>,
    /// The OpenPGP keys that may sign it: the file's name and its bytes.
    pub keys: Vec<(String, Vec<u8>)>,
}

/// One recipe of the chain, as read.
struct Link {
    path: PathBuf,
    document: Document,
    file: RecipeFile,
}

/// Loads the recipe `wanted`: a path if it ends in `.yaml` or has a slash, else a name below `project/recipes/`.
/// `settings` are the user's `NAME=VALUE`.
///
/// # Errors
/// A wrong request, shown with its line, when a recipe is wrong.
pub fn load(project: &Path, wanted: &str, settings: &[String]) -> Result<Recipe> {
    let path = find(project, wanted)?;
    let chain = read_chain(&path)?;
    let parameters = parameters(&chain, settings)?;
    merge(chain, parameters)
}

fn find(project: &Path, wanted: &str) -> Result<PathBuf> {
    let given = Path::new(wanted);
    let is_path = wanted.contains('/') || given.extension().is_some_and(|extension| extension == "yaml");
    let path = if is_path { given.to_owned() } else { project.join("recipes").join(format!("{wanted}.yaml")) };
    if path.is_file() {
        return Ok(path);
    }
    if is_path {
        return Err(UserError::usage(format!("there is no recipe {}", path.display())).into());
    }
    let folder = project.join("recipes");
    let names = recipe_names(&folder);
    let problem = UserError::usage(format!("there is no recipe `{wanted}` in {}", folder.display()));
    let hint = suggest(wanted, names.iter().map(String::as_str), "the recipes are")
        .unwrap_or_else(|| "run this in the project's folder, or name it with --project".to_owned());
    Err(problem.hint(hint).into())
}

fn recipe_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".yaml")?.to_owned())).collect();
    names.sort();
    names
}

/// Reads a recipe and those it extends, the outermost base first.
fn read_chain(path: &Path) -> Result<Vec<Link>> {
    let mut chain: Vec<Link> = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next.take() {
        let document = Document::new(path.display().to_string(), files::read_text(&path)?);
        let file: RecipeFile = document.parse()?;
        check_words(&document, &file)?;
        if let Some(base) = &file.extends {
            let folder = path.parent().unwrap_or(Path::new("."));
            let base_path = folder.join(format!("{}.yaml", base.value));
            let seen = chain.iter().map(|link| &link.path).chain([&path]);
            if let Some(first) = seen.clone().position(|seen| *seen == base_path) {
                let circle: Vec<String> =
                    seen.skip(first).chain([&base_path]).map(|path| path.display().to_string()).collect();
                let message = format!("recipes extend each other in a circle: {}", circle.join(" → "));
                return Err(document.error_at(base.referenced, &message).into());
            }
            if !base_path.is_file() {
                let names = recipe_names(folder);
                let problem =
                    document.error_at(base.referenced, &format!("there is no recipe {}", base_path.display()));
                let hint = suggest(&base.value, names.iter().map(String::as_str), "the recipes are");
                return Err(UserError { hint, ..problem }.into());
            }
            next = Some(base_path);
        }
        chain.push(Link { path, document, file });
    }
    chain.reverse();
    Ok(chain)
}

/// Checks what the types cannot say.
fn check_words(document: &Document, file: &RecipeFile) -> Result<(), UserError> {
    if file.schema.value != 1 {
        return Err(document.error_at(file.schema.referenced, "the only schema there is has the number 1"));
    }
    let plain = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.+".contains(c))
    };
    let of_disk = file.disk.iter().flat_map(|disk| &disk.overlays);
    let names = file.overlays.iter().chain(of_disk).chain(&file.extends).chain([&file.name]);
    for name in names {
        if !plain(&name.value) {
            let message = format!("`{}` is not a name (lower-case letters, digits, `-`, `.` and `+`)", name.value);
            return Err(document.error_at(name.referenced, &message));
        }
    }
    Ok(())
}

/// The parameters' values: as set by the user, else the default.
fn parameters(chain: &[Link], settings: &[String]) -> Result<BTreeMap<String, Value>> {
    let mut declared: BTreeMap<&str, (&Document, &Parameter)> = BTreeMap::new();
    for link in chain {
        declared
            .extend(link.file.parameters.iter().map(|(name, parameter)| (name.as_str(), (&link.document, parameter))));
    }
    let mut set: BTreeMap<&str, &str> = BTreeMap::new();
    for setting in settings {
        let (name, value) = setting.split_once('=').ok_or_else(|| {
            UserError::usage(format!("`--set {setting}` sets nothing")).hint("write --set NAME=VALUE")
        })?;
        if !declared.contains_key(name) {
            let problem = UserError::usage(format!("the recipe has no parameter `{name}`"));
            return Err(
                UserError { hint: suggest(name, declared.keys().copied(), "its parameters are"), ..problem }.into()
            );
        }
        set.insert(name, value);
    }
    let mut values = BTreeMap::new();
    for (name, (document, parameter)) in declared {
        let value = match (set.get(name), &parameter.default) {
            (Some(text), _) => read_value(text, parameter.kind).ok_or_else(|| {
                UserError::usage(format!("`--set {name}={text}`: the parameter `{name}` is {}", parameter.kind))
            })?,
            (None, Some(default)) => {
                if !is_of(&default.value, parameter.kind) {
                    let message = format!("the default of `{name}` is not {}", parameter.kind);
                    return Err(document.error_at(default.referenced, &message).into());
                }
                default.value.clone()
            }
            (None, None) => {
                let message =
                    format!("{}: the parameter `{name}` is not set ({})", document.name, parameter.description);
                return Err(UserError::usage(message).hint(format!("give it with --set {name}=VALUE")).into());
            }
        };
        if !parameter.choices.is_empty() && !parameter.choices.contains(&value) {
            let choices: Vec<String> = parameter.choices.iter().map(Value::to_string).collect();
            let message = format!("the parameter `{name}` cannot be {value} (it can be {})", choices.join(", "));
            return Err(UserError::usage(message).into());
        }
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

fn read_value(text: &str, kind: ParameterType) -> Option<Value> {
    match kind {
        ParameterType::Integer => text.parse::<i64>().ok().map(Value::from),
        ParameterType::Boolean => text.parse::<bool>().ok().map(Value::from),
        ParameterType::String => Some(Value::from(text)),
    }
}

fn is_of(value: &Value, kind: ParameterType) -> bool {
    match kind {
        ParameterType::Integer => value.is_i64(),
        ParameterType::Boolean => value.is_boolean(),
        ParameterType::String => value.is_string(),
    }
}

/// Sums the chain: lists one after the other, values of later recipes over those of earlier ones.
fn merge(chain: Vec<Link>, parameters: BTreeMap<String, Value>) -> Result<Recipe> {
    let mut recipe = without_content(&chain, parameters)?;
    let mut seen = BTreeSet::new();
    for link in chain {
        recipe.absorb(link, &mut seen)?;
    }
    if recipe.sources.is_empty() {
        let message = format!("the recipe `{}` has no `sources`, so there is nothing to install from", recipe.name);
        return Err(UserError::usage(message).hint("extend a base such as `debian-trixie`").into());
    }
    Ok(recipe)
}

/// What a recipe is before the files of its chain are summed.
fn without_content(chain: &[Link], parameters: BTreeMap<String, Value>) -> Result<Recipe> {
    let last = chain.last().context("a chain of recipes")?;
    let folder = last.path.parent().unwrap_or(Path::new("."));
    let project = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Recipe {
        name: last.file.name.value.clone(),
        description: last.file.description.clone(),
        lineage: chain.iter().map(|link| link.file.name.value.clone()).collect(),
        overlay_folder: if folder.as_os_str().is_empty() {
            PathBuf::from("../overlays")
        } else {
            project.join("overlays")
        },
        parameters,
        sources: BTreeMap::new(),
        packages: Vec::new(),
        forbid: Vec::new(),
        recommends: false,
        preseed: Vec::new(),
        paths: Paths::default(),
        users: BTreeMap::new(),
        groups: BTreeMap::new(),
        overlays: Vec::new(),
        disk: None,
        oci: Oci::default(),
    })
}

impl Recipe {
    /// Adds what a file of the chain has; `seen` are the overlays so far.
    fn absorb(&mut self, link: Link, seen: &mut BTreeSet<String>) -> Result<()> {
        let Link { path, document, file } = link;
        for (name, source) in file.sources {
            self.sources.insert(name, read_source(&path, &document, source)?);
        }
        self.packages.extend(put_in(&document, &file.packages, &self.parameters)?);
        self.preseed.extend(put_in(&document, &file.preseed, &self.parameters)?);
        self.forbid.extend(file.forbid);
        self.recommends = file.recommends.unwrap_or(self.recommends);
        self.paths.exclude.extend(file.paths.exclude);
        self.paths.include.extend(file.paths.include);
        self.users.extend(file.users);
        self.groups.extend(file.groups);
        for overlay in file.overlays {
            self.overlays.push(named(&document, overlay, seen)?);
        }
        if let Some(written) = file.disk {
            let DiskFile { size: set, packages, overlays, arguments } = written;
            let disk = self.disk.get_or_insert_default();
            disk.size = set.or(disk.size);
            disk.packages.extend(put_in(&document, &packages, &self.parameters)?);
            disk.arguments.extend(arguments);
            for overlay in overlays {
                disk.overlays.push(named(&document, overlay, seen)?);
            }
        }
        self.oci.ports.extend(file.oci.ports);
        self.oci.labels.extend(file.oci.labels);
        Ok(())
    }
}

/// An overlay's name and its place in the document; a document may name an overlay once.
fn named(document: &Document, overlay: Spanned<String>, seen: &mut BTreeSet<String>) -> Result<(String, UserError)> {
    let site = document.error_at(overlay.referenced, &format!("the overlay `{}`", overlay.value));
    if !seen.insert(overlay.value.clone()) {
        let message = format!("the overlay `{}` is in the recipe already", overlay.value);
        return Err(document.error_at(overlay.referenced, &message).into());
    }
    Ok((overlay.value, site))
}

/// Puts parameters where strings name them.
fn put_in(document: &Document, texts: &[Spanned<String>], parameters: &BTreeMap<String, Value>) -> Result<Vec<String>> {
    texts
        .iter()
        .map(|text| {
            render::render(&document.name, &text.value, parameters).map_err(|_| {
                let message = format!("`{}` names a parameter that the recipe does not have", text.value);
                let problem = document.error_at(text.referenced, &message);
                let known: Vec<&str> = parameters.keys().map(String::as_str).collect();
                match known.is_empty() {
                    true => problem.hint("declare it under `parameters:`").into(),
                    false => problem.hint(format!("its parameters are: {}", known.join(", "))).into(),
                }
            })
        })
        .collect()
}

fn read_source(recipe: &Path, document: &Document, source: SourceFile) -> Result<Source> {
    let folder = recipe.parent().unwrap_or(Path::new("."));
    let mut keys = Vec::new();
    for key in &source.signed_by {
        let path = folder.join(&key.value);
        let bytes = fs::read(&path).map_err(|error| {
            let message = format!("the key file {} cannot be read: {error}", path.display());
            document.error_at(key.referenced, &message).hint("key files lie relative to the recipe")
        })?;
        keys.push((key.value.clone(), bytes));
    }
    if keys.is_empty() {
        let message = format!("{}: the source `{}` has no `signed-by`", document.name, source.suite);
        return Err(UserError::usage(message).hint("name a file with the keys that sign it").into());
    }
    let SourceFile { uri, archive, suite, components, .. } = source;
    Ok(Source { uri, archive, suite, components, keys })
}
