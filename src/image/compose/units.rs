//! systemd units enabled, disabled and masked in a tree that does not run, as `systemctl` does it (systemctl(1),
//! systemd.unit(5), "Install section options").

use super::overlay_view::OverlayView;
use crate::{document::suggest, error::UserError, model::GuestPath};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Where the machine's own units and all links lie.
const OWN: &str = "/etc/systemd/system";
/// Where units lie, the first one found counts (systemd.unit(5), "Unit File Load Path").
const FOLDERS: [&str; 3] = [OWN, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];
const TYPES: [&str; 11] =
    ["service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope"];

/// A unit's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    /// Before the `@`, or before the type.
    prefix: String,
    /// After the `@`: empty for a template.
    instance: Option<String>,
    /// `service`, `timer` and so on.
    kind: String,
}

impl Name {
    fn parse(text: &str) -> Result<Name, UserError> {
        let wrong = || {
            UserError::usage(format!("`{text}` is not a unit name"))
                .hint("a unit name ends in its type, such as haproxy.service or postgresql@17-main.service")
        };
        let (stem, kind) = text.rsplit_once('.').ok_or_else(wrong)?;
        let (prefix, instance) = match stem.split_once('@') {
            Some((prefix, instance)) => (prefix, Some(instance)),
            None => (stem, None),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
        let sound = |word: &str| word.chars().all(legal);
        if prefix.is_empty() || !sound(prefix) || !instance.is_none_or(sound) || !TYPES.contains(&kind) {
            return Err(wrong());
        }
        Ok(Name { prefix: prefix.to_owned(), instance: instance.map(str::to_owned), kind: kind.to_owned() })
    }

    fn text(&self) -> String {
        let Name { prefix, instance, kind } = self;
        match instance {
            Some(instance) => format!("{prefix}@{instance}.{kind}"),
            None => format!("{prefix}.{kind}"),
        }
    }

    fn with_instance(&self, instance: &str) -> Name {
        Name { instance: Some(instance.to_owned()), ..self.clone() }
    }

    fn is_template(&self) -> bool {
        self.instance.as_deref() == Some("")
    }

    /// The template that this is an instance of.
    fn template(&self) -> Option<Name> {
        self.instance.as_deref().filter(|instance| !instance.is_empty()).map(|_| self.with_instance(""))
    }

    /// Replaces the specifiers that an `[Install]` section may have (systemd.unit(5), "Specifiers").
    fn expand(&self, text: &str) -> Result<String, UserError> {
        let mut expanded = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                expanded.push(c);
                continue;
            }
            match chars.next() {
                Some('n') => expanded.push_str(&self.text()),
                Some('N') => expanded.push_str(self.text().trim_end_matches(&format!(".{}", self.kind))),
                Some('p') => expanded.push_str(&self.prefix),
                Some('j') => expanded.push_str(self.prefix.rsplit('-').next().unwrap_or_default()),
                Some('i') => expanded.push_str(self.instance.as_deref().unwrap_or_default()),
                Some('%') => expanded.push('%'),
                other => {
                    let specifier = other.map_or(String::new(), String::from);
                    return Err(UserError::usage(format!(
                        "the unit `{}` has `{text}` in its [Install] section, but `%{specifier}` is known only on a \
                         running machine",
                        self.text()
                    )));
                }
            }
        }
        Ok(expanded)
    }
}

/// A unit's `[Install]` section: values by key.
type Install = BTreeMap<String, Vec<String>>;

/// The links that `systemctl enable UNIT` makes: path and target.
///
/// # Errors
/// When there is no such unit, it is masked or another's alias, or it does not say how it is enabled.
pub fn enable(view: &mut OverlayView<'_>, unit: &str) -> Result<BTreeMap<GuestPath, String>> {
    let mut links = BTreeMap::new();
    for (name, file, install) in with_also(view, Name::parse(unit)?)? {
        links.extend(links_of(&name, &file, &install)?);
    }
    if links.is_empty() {
        return Err(UserError::usage(format!(
            "the unit `{unit}` has no [Install] section that says how it is enabled"
        ))
        .hint("it may be started by another unit already; add WantedBy= to an [Install] section, or do not enable it")
        .into());
    }
    Ok(links)
}

/// The links of `/etc/systemd/system` that `systemctl disable UNIT` removes, in order. Links below `/usr` belong to the
/// distribution, and stay.
///
/// # Errors
/// When there is no such unit.
pub fn disable(view: &mut OverlayView<'_>, unit: &str) -> Result<Vec<GuestPath>> {
    let name = Name::parse(unit)?;
    // A unit whose file is gone or masked may still have links.
    let names = match find(view, &name) {
        Found::Unit(..) => with_also(view, name)?.into_iter().map(|(name, ..)| name).collect(),
        Found::Masked => vec![name],
        found => return Err(refusal(view, &name, found).into()),
    };
    let is_one = |path: &GuestPath| {
        let target = view.link(path).filter(|target| *target != "/dev/null");
        target.is_some_and(|target| names.iter().any(|name| leads_to(path, target, name)))
    };
    Ok(view.below(&GuestPath::constant(OWN)).into_iter().filter(is_one).collect())
}

/// The link that `systemctl mask UNIT` makes: path and target. The unit need not be there.
///
/// # Errors
/// When the unit's file lies where the link must be.
pub fn mask(view: &OverlayView<'_>, unit: &str) -> Result<(GuestPath, String)> {
    Name::parse(unit)?;
    let path = GuestPath::constant(OWN).join(unit)?;
    if view.has(&path) && view.link(&path).is_none() {
        return Err(UserError::usage(format!("`{path}` is the unit itself, which a mask would replace"))
            .hint("remove the unit, or disable it")
            .into());
    }
    Ok((path, "/dev/null".to_owned()))
}

/// Whether the link at `path` is one that enables `name`, or an alias of it.
fn leads_to(path: &GuestPath, target: &str, name: &Name) -> bool {
    let is_named = |text: &str| {
        Name::parse(text)
            .is_ok_and(|other| other == *name || name.is_template() && other.template().as_ref() == Some(name))
    };
    let target = target.rsplit('/').next().unwrap_or_default();
    let in_folder = path.parent().is_some_and(|parent| parent.as_str() != OWN);
    is_named(path.file_name()) || !in_folder && is_named(target)
}

/// The unit and all that its `Also=` names, each with its file and section.
fn with_also(view: &mut OverlayView<'_>, name: Name) -> Result<Vec<(Name, GuestPath, Install)>> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![name];
    let mut units = Vec::new();
    while let Some(name) = todo.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let (file, name) = match find(view, &name) {
            Found::Unit(file) => (file, name),
            found => return Err(refusal(view, &name, found).into()),
        };
        let install = install(view, &name, &file)?;
        for also in install.get("Also").into_iter().flatten() {
            todo.push(Name::parse(&name.expand(also)?)?);
        }
        units.push((name, file, install));
    }
    Ok(units)
}

fn links_of(name: &Name, file: &GuestPath, install: &Install) -> Result<BTreeMap<GuestPath, String>> {
    let values = |key: &str| install.get(key).into_iter().flatten();
    let started = match values("DefaultInstance").last() {
        Some(default) if name.is_template() => &name.with_instance(&name.expand(default)?),
        _ => name,
    };
    let own = GuestPath::constant(OWN);
    let mut links = BTreeMap::new();
    for (key, suffix) in [("WantedBy", "wants"), ("RequiredBy", "requires"), ("UpheldBy", "upholds")] {
        for wanting in values(key) {
            if started.is_template() {
                let example = started.with_instance("INSTANCE").text();
                let message = format!("the unit `{}` is a template without a default instance", started.text());
                return Err(UserError::usage(message).hint(format!("name an instance: {example}")).into());
            }
            let wanting = Name::parse(&started.expand(wanting)?)?.text();
            links.insert(own.join(&format!("{wanting}.{suffix}/{}", started.text()))?, file.to_string());
        }
    }
    for alias in values("Alias") {
        let mut alias = Name::parse(&name.expand(alias)?)?;
        if let Some(instance) = name.instance.as_deref().filter(|_| alias.is_template()) {
            alias = alias.with_instance(instance);
        }
        if alias != *name {
            links.insert(own.join(&alias.text())?, file.to_string());
        }
    }
    Ok(links)
}

enum Found {
    /// The file that describes the unit: that of its template, if it has none of its own.
    Unit(GuestPath),
    /// Nothing may start it.
    Masked,
    /// Another name of this unit.
    Alias(String),
    Nothing,
}

fn find(view: &mut OverlayView<'_>, name: &Name) -> Found {
    for name in [Some(name.clone()), name.template()].into_iter().flatten() {
        for folder in FOLDERS {
            let Ok(path) = GuestPath::constant(folder).join(&name.text()) else { continue };
            match view.link(&path) {
                Some("/dev/null") => return Found::Masked,
                Some(target) => return Found::Alias(target.rsplit('/').next().unwrap_or_default().to_owned()),
                None if view.has(&path) => return Found::Unit(path),
                None => {}
            }
        }
    }
    Found::Nothing
}

fn refusal(view: &OverlayView<'_>, name: &Name, found: Found) -> UserError {
    let text = name.text();
    match found {
        Found::Masked => UserError::usage(format!("the unit `{text}` is masked")),
        Found::Alias(real) => {
            UserError::usage(format!("`{text}` is another name of the unit `{real}`")).hint(format!("write `{real}`"))
        }
        Found::Nothing | Found::Unit(_) => {
            let known: BTreeSet<String> = FOLDERS
                .iter()
                .flat_map(|folder| view.below(&GuestPath::constant(folder)))
                .map(|path| path.file_name().to_owned())
                .filter(|file| Name::parse(file).is_ok())
                .collect();
            let near = suggest(&text, known.iter().map(String::as_str), "").filter(|hint| hint.starts_with("did"));
            let hint = near.unwrap_or_else(|| "a package or an overlay must bring it".to_owned());
            UserError::usage(format!("the image has no unit `{text}`")).hint(hint)
        }
    }
}

/// The section of the unit's file and of its drop-ins, which are read in the order of their names; of two with one name
/// that in the folder searched first counts.
fn install(view: &mut OverlayView<'_>, name: &Name, file: &GuestPath) -> Result<Install> {
    let mut drop_ins: BTreeMap<String, GuestPath> = BTreeMap::new();
    for name in [Some(name.clone()), name.template()].into_iter().flatten() {
        for folder in FOLDERS {
            let folder = GuestPath::constant(folder).join(&format!("{}.d", name.text()))?;
            for path in view.below(&folder).into_iter().filter(|path| path.as_str().ends_with(".conf")) {
                drop_ins.entry(path.file_name().to_owned()).or_insert(path);
            }
        }
    }
    let mut install = Install::new();
    for path in std::iter::once(file).chain(drop_ins.values()) {
        read_install(&view.text(path)?.unwrap_or_default(), &mut install);
    }
    Ok(install)
}

/// Adds what an `[Install]` section says (systemd.syntax(7)); an empty value takes the earlier ones back.
fn read_install(text: &str, install: &mut Install) {
    let mut in_section = false;
    let mut logical = String::new();
    for line in text.lines() {
        let comment = line.trim_start().starts_with(['#', ';']);
        if comment {
            continue;
        }
        logical.push_str(line.trim());
        if logical.ends_with('\\') {
            logical.pop();
            logical.push(' ');
            continue;
        }
        let line = std::mem::take(&mut logical);
        if line.starts_with('[') {
            in_section = line == "[Install]";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| in_section) {
            let values = install.entry(key.trim().to_owned()).or_default();
            if value.trim().is_empty() {
                values.clear();
            }
            values.extend(value.split_whitespace().map(str::to_owned));
        }
    }
}

#[cfg(test)]
mod tests;
