//! Files for this node: all are rendered, then all are checked, then each replaces the old one atomically.

use crate::{
    accounts,
    exec::Run,
    files::{NewFile, read_text},
    model::{Manifest, Template, scope::Scope},
    render::render,
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// How long a checker may take.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// One rendered file.
pub struct Rendered<'a> {
    /// The overlay that owns it.
    pub component: &'a str,
    template: &'a Template,
    text: Zeroizing<String>,
}

impl std::fmt::Debug for Rendered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rendered({} ***)", self.template.target)
    }
}

/// Renders every template of the image below `root` (`/` on a node).
///
/// # Errors
/// When a template cannot be read, or names what the scope does not have.
pub fn render_all<'a>(manifest: &'a Manifest, scope: &Scope, root: &Path) -> Result<Vec<Rendered<'a>>> {
    let mut all = Vec::new();
    for component in &manifest.overlays {
        for template in &component.files {
            let text = read_text(&below(root, template.template.as_str()))?;
            let text = render(template.template.as_str(), &text, scope)?;
            all.push(Rendered { component: &component.name, template, text: Zeroizing::new(text) });
        }
    }
    Ok(all)
}

/// A file that was put in place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The overlay that owns it.
    pub component: String,
    /// Where it is.
    pub target: String,
}

/// Puts the files in place that differ from what is there. No file is touched before each has passed its check.
///
/// # Errors
/// When a checker refuses a file, or a file cannot be written.
pub fn install(rendered: &[Rendered<'_>], root: &Path) -> Result<Vec<Changed>> {
    let mut staged = Vec::new();
    for file in rendered {
        let target = below(root, file.template.target.as_str());
        let owner =
            (id_of(root, "/etc/passwd", &file.template.owner)?, id_of(root, "/etc/group", &file.template.group)?);
        if same(&target, file, owner) {
            continue;
        }
        let new = stage(&target, file, owner)?;
        check(file, new.path())?;
        staged.push((file, target, new));
    }
    let mut changed = Vec::new();
    for (file, target, new) in staged {
        new.publish(&target)?;
        changed.push(Changed { component: file.component.to_owned(), target: file.template.target.to_string() });
    }
    Ok(changed)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn same(target: &Path, file: &Rendered<'_>, (user, group): (u32, u32)) -> bool {
    let Ok(about) = fs::symlink_metadata(target) else { return false };
    about.is_file()
        && (about.uid(), about.gid()) == (user, group)
        && about.mode() & 0o7777 == file.template.mode
        && fs::read(target).is_ok_and(|bytes| bytes == file.text.as_bytes())
}

fn stage(target: &Path, file: &Rendered<'_>, (user, group): (u32, u32)) -> Result<NewFile> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    }
    let mut new = NewFile::beside(target)?;
    let whole = || format!("writing {}", target.display());
    new.write_all(file.text.as_bytes()).with_context(whole)?;
    fchown(new.file(), Some(user), Some(group)).with_context(whole)?;
    new.file().set_permissions(fs::Permissions::from_mode(file.template.mode)).with_context(whole)?;
    Ok(new)
}

/// Runs the file's own checker on the staged file. A file without content configures nothing and has nothing to check.
fn check(file: &Rendered<'_>, staged: &Path) -> Result<()> {
    let [program, arguments @ ..] = file.template.check.as_slice() else { return Ok(()) };
    if file.text.trim().is_empty() {
        return Ok(());
    }
    let staged = staged.to_string_lossy();
    let arguments = arguments.iter().map(|argument| argument.replace("{file}", &staged));
    Run::new(program)
        .args(arguments)
        .limit(CHECK_LIMIT)
        .capture()
        .with_context(|| format!("checking {} before it is put in place", file.template.target))?;
    Ok(())
}

/// The number of a user or group, from the table at `table`.
fn id_of(root: &Path, table: &str, name: &str) -> Result<u32> {
    let text = read_text(&below(root, table))?;
    accounts::number_of(&text, name).with_context(|| format!("{table} has no `{name}`"))
}

/// The numbers of the user `name` and of the group of the same name.
///
/// # Errors
/// When there is no such user or group.
pub fn ids_of_user(name: &str) -> Result<(u32, u32)> {
    let root = Path::new("/");
    Ok((id_of(root, "/etc/passwd", name)?, id_of(root, "/etc/group", name)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Component, Node, samples,
        scope::{EtcdStart, Machine},
    };

    fn scope() -> Scope {
        let node = Node::new(samples::three(), 0);
        Scope::new(&node, &Machine::sample(), &EtcdStart::together(&node.spec), &serde_json::Map::new())
    }

    fn image(root: &Path, text: &str, check: &[&str]) -> Manifest {
        let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), format!("me:x:{}:{}::/:/bin/sh\n", ids.0, ids.1)).unwrap();
        fs::write(root.join("etc/group"), format!("us:x:{}:\n", ids.1)).unwrap();
        fs::write(root.join("t.hbs"), text).unwrap();
        Manifest {
            schema: 1,
            name: "demo".into(),
            parameters: Default::default(),
            overlays: vec![Component {
                name: "one".into(),
                description: String::new(),
                files: vec![Template {
                    template: "/t.hbs".parse().unwrap(),
                    target: "/etc/new/one.conf".parse().unwrap(),
                    owner: "me".into(),
                    group: "us".into(),
                    mode: 0o640,
                    check: check.iter().map(|word| (*word).to_owned()).collect(),
                }],
                service: None,
            }],
        }
    }

    #[test]
    fn files_are_installed_once_with_owner_and_mode() {
        let root = tempfile::tempdir().unwrap();
        let manifest = image(root.path(), "name {{cluster.name}}\n", &["grep", "-q", "demo", "{file}"]);
        let rendered = render_all(&manifest, &scope(), root.path()).unwrap();
        let changed = install(&rendered, root.path()).unwrap();
        assert_eq!(changed, [Changed { component: "one".into(), target: "/etc/new/one.conf".into() }]);
        let target = root.path().join("etc/new/one.conf");
        assert_eq!(fs::read_to_string(&target).unwrap(), "name demo\n");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(install(&rendered, root.path()).unwrap(), []);
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(install(&rendered, root.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_its_checker_refuses_is_not_installed() {
        let root = tempfile::tempdir().unwrap();
        let manifest = image(root.path(), "password {{passwords.rest}}\n", &["grep", "-q", "demo", "{file}"]);
        let rendered = render_all(&manifest, &scope(), root.path()).unwrap();
        let error = format!("{:#}", install(&rendered, root.path()).unwrap_err());
        assert!(error.starts_with("checking /etc/new/one.conf before it is put in place: `grep -q demo"), "{error}");
        assert_eq!(fs::read_dir(root.path().join("etc/new")).unwrap().count(), 0);
        assert!(!format!("{rendered:?}").contains("password "));
    }

    #[test]
    fn a_key_that_is_missing_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let manifest = image(root.path(), "{{nothing}}", &[]);
        let error = format!("{:#}", render_all(&manifest, &scope(), root.path()).unwrap_err());
        assert_eq!(error, "rendering a template: /t.hbs:1:1: there is no value `nothing` here");
    }
}
