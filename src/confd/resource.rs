//! Template resources: `conf.d/**/*.toml`.

use super::{
    document::{self, Entry},
    path,
    settings::{BackendSettings, Settings},
    template,
};
use crate::{accounts, error::UserError, files, log};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A file to render: from which keys, where to, and how its reader is reloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// The file that describes it.
    pub file: PathBuf,
    /// The template, relative to the folder `templates`.
    pub src: String,
    /// The file to render.
    pub dest: PathBuf,
    /// The keys to read, with the prefix.
    pub keys: Vec<String>,
    /// What keys are shown without; `/` at least.
    pub prefix: String,
    /// The mode; without it that of the file there, else 0644.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Run on the staged file; may name `{{.src}}` and `{{.dest}}`.
    pub check_cmd: Option<String>,
    /// Run after the file was replaced; may name `{{.src}}` and `{{.dest}}`.
    pub reload_cmd: Option<Reload>,
    /// Time for the check.
    pub check_timeout: Duration,
    /// Time for the reload.
    pub reload_timeout: Duration,
    /// The least time between two reloads.
    pub min_reload_interval: Duration,
    /// How long to wait for further changes.
    pub debounce: Duration,
    /// What the rendered text must be.
    pub output_format: Option<Format>,
    /// With fewer items than this, the file stays as it is.
    pub min_items: usize,
    /// The pattern of the keys that count as items; all without it.
    pub items: Option<String>,
    /// HAProxy's socket, if servers are to be changed through it.
    pub haproxy_socket: Option<PathBuf>,
    /// The backend, if it has its own.
    pub backend: Option<BackendSettings>,
}

/// A reload command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// With `{{.src}}` and `{{.dest}}` to fill in.
    Template(String),
    /// Run without changes: its braces belong to another language.
    Verbatim(String),
}

/// What a rendered text can be held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// TOML.
    Toml,
    /// XML: well-formed.
    Xml,
}

/// Loads all resources of `confdir`, sorted by their paths.
///
/// # Errors
/// When one is wrong.
pub fn load_all(settings: &Settings) -> Result<Vec<Resource>> {
    let folder = settings.confdir.join("conf.d");
    if !settings.confdir.exists() {
        log::warning!("the folder {} does not exist", settings.confdir.display());
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    find(&folder, &mut found)?;
    if found.is_empty() {
        log::warning!("there is no template resource in {}", folder.display());
    }
    found.iter().map(|path| load(path, settings)).collect()
}

/// Finds the files whose names end in `toml`, in the order of their paths.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let reading = || format!("reading the folder {}", folder.display());
    let entries: std::io::Result<Vec<_>> = fs::read_dir(folder).with_context(reading)?.collect();
    let mut paths: Vec<PathBuf> = entries.with_context(reading)?.iter().map(fs::DirEntry::path).collect();
    paths.sort_unstable();
    for path in paths {
        if path.is_dir() {
            find(&path, found)?;
        } else if path.to_string_lossy().ends_with("toml") {
            found.push(path);
        }
    }
    Ok(())
}

/// Loads one resource.
///
/// # Errors
/// When it cannot be read or is wrong.
pub fn load(path: &Path, settings: &Settings) -> Result<Resource> {
    parse(path, &files::read_text(path)?, settings)
}

/// Reads the resource `text` of the file `path`.
///
/// # Errors
/// When it is wrong.
pub fn parse(path: &Path, text: &str, settings: &Settings) -> Result<Resource> {
    let mut document = document::parse(path, text)?;
    let table = document.take_table("template")?;
    let table = table.ok_or_else(|| UserError::usage(format!("{}: there is no table [template]", path.display())))?;
    let backend = document.take_table("backend")?;
    for entry in document.entries() {
        log::warning!("{}: the key `{}` is not known and does nothing", entry.at(), entry.key());
    }
    let mut draft = Draft::new(path, settings);
    for entry in table.entries() {
        draft.set(&entry)?;
    }
    if let Some(backend) = backend.filter(|backend| backend.entries().any(|entry| entry.key() == "backend")) {
        let own = BackendSettings::from_table(backend.entries());
        draft.resource.backend = Some(own.with_context(|| format!("{}: [backend]", path.display()))?);
    }
    draft.finish(settings)
}

/// A resource while its keys are read.
#[derive(Debug)]
struct Draft {
    resource: Resource,
    uid: Option<u32>,
    gid: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Draft {
    fn new(path: &Path, settings: &Settings) -> Draft {
        let resource = Resource {
            file: path.into(),
            src: String::new(),
            dest: PathBuf::new(),
            keys: Vec::new(),
            prefix: String::new(),
            mode: None,
            uid: 0,
            gid: 0,
            check_cmd: None,
            reload_cmd: None,
            check_timeout: settings.check_timeout,
            reload_timeout: settings.reload_timeout,
            min_reload_interval: Duration::ZERO,
            debounce: settings.debounce,
            output_format: None,
            min_items: 0,
            items: None,
            haproxy_socket: None,
            backend: None,
        };
        Draft { resource, uid: None, gid: None, owner: None, group: None }
    }

    fn set(&mut self, entry: &Entry<'_>) -> Result<()> {
        let resource = &mut self.resource;
        match entry.key() {
            "src" => resource.src = entry.text()?,
            "dest" => resource.dest = entry.text()?.into(),
            "keys" => resource.keys = entry.texts()?,
            "prefix" => resource.prefix = entry.text()?,
            "mode" => resource.mode = mode(entry)?,
            "uid" => self.uid = id(entry)?,
            "gid" => self.gid = id(entry)?,
            "owner" => self.owner = named(entry, "/etc/passwd")?,
            "group" => self.group = named(entry, "/etc/group")?,
            "check_cmd" => resource.check_cmd = Some(check_command(entry)?).filter(|command| !command.is_empty()),
            "reload_cmd" => resource.reload_cmd = reload_command(entry)?,
            "check_cmd_timeout" => resource.check_timeout = entry.duration()?,
            "reload_cmd_timeout" => resource.reload_timeout = entry.duration()?,
            "min_reload_interval" => resource.min_reload_interval = entry.duration()?,
            "debounce" => resource.debounce = entry.duration()?,
            "output_format" => resource.output_format = format(entry)?,
            "min_items" => {
                let number = entry.int()?;
                resource.min_items = usize::try_from(number).map_err(|_| entry.wrong("must not be negative"))?;
            }
            "items" => {
                let pattern = entry.text()?;
                path::Pattern::new(&pattern).map_err(|error| entry.wrong(error))?;
                resource.items = Some(pattern);
            }
            "haproxy_socket" => resource.haproxy_socket = Some(entry.text()?.into()),
            key => log::warning!("{}: the key `{key}` is not known and does nothing", entry.at()),
        }
        Ok(())
    }

    fn finish(self, settings: &Settings) -> Result<Resource> {
        let mut resource = self.resource;
        let missing = |key: &str| UserError::usage(format!("{}: `{key}` is missing", resource.file.display()));
        if resource.src.is_empty() {
            return Err(missing("src").into());
        }
        if resource.dest.as_os_str().is_empty() {
            return Err(missing("dest").into());
        }
        if resource.haproxy_socket.is_some() && resource.reload_cmd.is_none() {
            let message = format!("{}: `haproxy_socket` needs a `reload_cmd`", resource.file.display());
            return Err(UserError::usage(message)
                .hint("changes of structure are not possible through the socket")
                .into());
        }
        if !settings.prefix.is_empty() {
            resource.prefix.clone_from(&settings.prefix);
        }
        if !resource.prefix.starts_with('/') {
            resource.prefix.insert(0, '/');
        }
        resource.keys = resource.keys.iter().map(|key| path::join(&resource.prefix, key)).collect();
        resource.uid = self.uid.or(self.owner).unwrap_or_else(|| rustix::process::geteuid().as_raw());
        resource.gid = self.gid.or(self.group).unwrap_or_else(|| rustix::process::getegid().as_raw());
        Ok(resource)
    }
}

/// Reads a mode as Go does: `0644`, `0o644` and `0x1a4` are what they look like, `420` is decimal.
fn mode(entry: &Entry<'_>) -> Result<Option<u32>> {
    let text = entry.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        [b'0', b'o' | b'O', ..] => (&text[2..], 8),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (&text[..], 10),
    };
    let mode = u32::from_str_radix(digits, radix).ok().filter(|mode| *mode <= 0o7777 && !digits.starts_with('+'));
    mode.map(Some).ok_or_else(|| entry.wrong(format!("`{text}` is not a mode such as 0644")))
}

/// A number of a user or group; -1 means none.
fn id(entry: &Entry<'_>) -> Result<Option<u32>> {
    match entry.int()? {
        -1 => Ok(None),
        id => u32::try_from(id).map(Some).map_err(|_| entry.wrong("must be a user's or group's number")),
    }
}

/// The number of a name that a file such as `/etc/passwd` lists.
fn named(entry: &Entry<'_>, file: &str) -> Result<Option<u32>> {
    let name = entry.text()?;
    if name.is_empty() {
        return Ok(None);
    }
    let list = files::read_text(Path::new(file))?;
    accounts::number_of(&list, &name).map(Some).ok_or_else(|| entry.wrong(format!("`{name}` is not in {file}")))
}

fn check_command(entry: &Entry<'_>) -> Result<String> {
    let command = entry.text()?;
    template::expand_command(&command, &[("src", "x"), ("dest", "x")])
        .map_err(|error| entry.wrong(format!("{error:#}")))?;
    Ok(command)
}

/// The original runs a reload command without changes, so braces of other languages stay.
fn reload_command(entry: &Entry<'_>) -> Result<Option<Reload>> {
    let command = entry.text()?;
    if command.is_empty() {
        return Ok(None);
    }
    if let Err(error) = template::expand_command(&command, &[("src", "x"), ("dest", "x")]) {
        log::warning!("{}: the reload command is run as it is: {error:#}", entry.at());
        return Ok(Some(Reload::Verbatim(command)));
    }
    Ok(Some(Reload::Template(command)))
}

fn format(entry: &Entry<'_>) -> Result<Option<Format>> {
    match entry.text()?.as_str() {
        "" => Ok(None),
        "json" => Ok(Some(Format::Json)),
        "yaml" | "yml" => Ok(Some(Format::Yaml)),
        "toml" => Ok(Some(Format::Toml)),
        "xml" => Ok(Some(Format::Xml)),
        other => Err(entry.wrong(format!("`{other}` is not one of json, yaml, yml, toml, xml"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::gather(
            [(
                "config-file",
                super::super::settings::Raw { texts: vec!["/nonexistent".into()], source: String::new() },
            )]
            .into(),
            |_| None,
        )
        .unwrap()
    }

    fn read(text: &str) -> Result<Resource> {
        parse(Path::new("/etc/confd/conf.d/x.toml"), text, &settings())
    }

    #[test]
    fn the_ancestors_resource_is_understood() {
        let resource = read(
            r#"
            [template]
            prefix = "/service/demo"
            src = "haproxy.tmpl"
            dest = "/etc/haproxy/haproxy.cfg"
            check_cmd = "/usr/sbin/haproxy -c -f {{ .src }}"
            reload_cmd = "/bin/systemctl reload haproxy"
            keys = [
                "/members/",
            ]"#,
        )
        .unwrap();
        assert_eq!(resource.keys, ["/service/demo/members"]);
        assert_eq!(resource.prefix, "/service/demo");
        assert_eq!(resource.reload_cmd, Some(Reload::Template("/bin/systemctl reload haproxy".into())));
        assert_eq!(resource.mode, None);
        assert_eq!(resource.uid, rustix::process::geteuid().as_raw());
    }

    #[test]
    fn every_key_has_its_effect() {
        let resource = read(
            r#"
            [template]
            src = "a"
            dest = "/b"
            keys = ["x", "/"]
            mode = "0o640"
            owner = "root"
            group = "root"
            gid = 7
            check_cmd_timeout = "5s"
            reload_cmd_timeout = "1m"
            min_reload_interval = "10s"
            debounce = "200ms"
            output_format = "json"
            min_items = 1
            items = "/members/*"
            haproxy_socket = "/run/haproxy/admin.sock"
            reload_cmd = "docker ps --format '{{.Names}}'"
            surprise = 1
            [backend]
            backend = "file"
            file = ["/a.yaml"]
            "#,
        )
        .unwrap();
        assert_eq!((resource.mode, resource.uid, resource.gid), (Some(0o640), 0, 7));
        assert_eq!(resource.keys, ["/x", "/"]);
        assert_eq!((resource.min_items, resource.items.as_deref()), (1, Some("/members/*")));
        assert_eq!((resource.check_timeout.as_secs(), resource.reload_timeout.as_secs()), (5, 60));
        assert_eq!((resource.min_reload_interval.as_secs(), resource.debounce.as_millis()), (10, 200));
        assert_eq!(resource.output_format, Some(Format::Json));
        assert_eq!(resource.haproxy_socket.as_deref(), Some(Path::new("/run/haproxy/admin.sock")));
        assert!(matches!(resource.reload_cmd, Some(Reload::Verbatim(_))));
        assert_eq!(resource.backend.map(|backend| backend.name), Some("file".to_owned()));
    }

    #[test]
    fn numbers_of_users_win_over_names_and_minus_one_is_none() {
        let ids = |lines: &str| {
            let resource = read(&format!("[template]\nsrc='a'\ndest='/b'\n{lines}")).unwrap();
            (resource.uid, resource.gid)
        };
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!(ids(""), (uid, gid));
        assert_eq!(ids("uid = -1\ngid = -1"), (uid, gid));
        assert_eq!(ids("owner = 'daemon'\ngroup = 'daemon'"), (1, 1));
        assert_eq!(ids("owner = 'daemon'\nuid = 7\ngroup = 'daemon'\ngid = 8"), (7, 8));
    }

    #[test]
    fn formats_are_known_by_all_their_names() {
        for (name, format) in [
            ("json", Format::Json),
            ("yaml", Format::Yaml),
            ("yml", Format::Yaml),
            ("toml", Format::Toml),
            ("xml", Format::Xml),
        ] {
            let resource = read(&format!("[template]\nsrc='a'\ndest='/b'\noutput_format = '{name}'")).unwrap();
            assert_eq!(resource.output_format, Some(format), "{name}");
        }
    }

    #[test]
    fn modes_are_read_as_go_reads_them() {
        for (text, mode) in [("0644", 0o644), ("420", 420), ("0x1a4", 0o644), ("0", 0)] {
            let resource = read(&format!("[template]\nsrc='a'\ndest='/b'\nmode='{text}'")).unwrap();
            assert_eq!(resource.mode, Some(mode), "{text}");
        }
    }

    #[test]
    fn wrong_values_are_named_with_their_line() {
        for (line, reason) in [
            ("mode = \"rw-\"", "x.toml:4: `mode` `rw-` is not a mode"),
            ("mode = 644", "must be a quoted string"),
            ("uid = -2", "must be a user's"),
            ("owner = \"nobody-at-all\"", "is not in /etc/passwd"),
            ("check_cmd = \"x {{.sorc}}\"", "names `.sorc`"),
            ("check_cmd = \"x {{.src\"", "`check_cmd`"),
            ("output_format = \"ini\"", "not one of json"),
            ("items = \"[\"", "malformed"),
            ("min_items = -1", "negative"),
            ("keys = \"/a\"", "list of strings"),
            ("debounce = 5", "must be a quoted string"),
            ("[backend]\nbackend = 'vault'", "x.toml: [backend]: the backend `vault` is not supported"),
            ("[backend]\nbackend = 'etcdv3'\nclient_cert = '/x'", "without client_key"),
        ] {
            let error = format!("{:#}", read(&format!("[template]\nsrc='a'\ndest='/b'\n{line}")).unwrap_err());
            assert!(error.contains(reason), "{line}: {error}");
        }
        assert!(read("[template]\ndest='/b'").unwrap_err().to_string().contains("`src` is missing"));
        assert!(read("[template]\nsrc='b'").unwrap_err().to_string().contains("`dest` is missing"));
        assert!(read("src='b'").is_err());
    }
}
