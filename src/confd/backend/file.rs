//! YAML and JSON files: nested maps and lists are keys with slashes, scalars their values. Changes are seen by inotify.

use super::{Backend, Snapshot, Stop, Values, WatchEvent};
use crate::{
    confd::{path::Pattern, settings::BackendSettings},
    error::UserError,
    files,
};
use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Files and folders.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    filter: Pattern,
}

impl Files {
    /// The files of the settings.
    ///
    /// # Errors
    /// When none is given, or the filter is malformed.
    pub fn new(settings: &BackendSettings) -> Result<Files> {
        if settings.files.is_empty() {
            return Err(UserError::usage("the file backend has no file").hint("give one with -file").into());
        }
        let filter = Pattern::new(&settings.filter).map_err(|error| UserError::usage(format!("filter: {error}")))?;
        Ok(Files { paths: settings.files.clone(), filter })
    }

    /// The files that count, and the folders in which they may change.
    fn look(&self) -> Result<(Vec<PathBuf>, BTreeSet<PathBuf>)> {
        let (mut found, mut folders) = (Vec::new(), BTreeSet::new());
        for path in &self.paths {
            if path.is_dir() {
                self.descend(path, &mut found, &mut folders)?;
            } else {
                // A file that is named counts, whatever the filter says.
                found.push(path.clone());
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                folders.insert(parent.into());
            }
        }
        Ok((found, folders))
    }

    fn descend(&self, folder: &Path, found: &mut Vec<PathBuf>, folders: &mut BTreeSet<PathBuf>) -> Result<()> {
        folders.insert(folder.into());
        let reading = || format!("reading the folder {}", folder.display());
        let entries: std::io::Result<Vec<_>> = fs::read_dir(folder).with_context(reading)?.collect();
        let mut paths: Vec<PathBuf> = entries.with_context(reading)?.iter().map(fs::DirEntry::path).collect();
        paths.sort_unstable();
        for path in paths {
            if path.is_dir() {
                self.descend(&path, found, folders)?;
            } else if self.filter.matches(&path.file_name().unwrap_or_default().to_string_lossy()) {
                found.push(path);
            }
        }
        Ok(())
    }
}

/// Reads one file into `values`; YAML is a superset of JSON.
fn read_file(path: &Path, values: &mut Values) -> Result<()> {
    let text = files::read_text(path)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let tree: Value =
        serde_saphyr::from_str(&text).map_err(|error| UserError::usage(format!("{}: {error}", path.display())))?;
    if !tree.is_object() && !tree.is_null() {
        return Err(UserError::usage(format!("{} holds no map", path.display())).into());
    }
    walk(&tree, "", values);
    Ok(())
}

fn walk(node: &Value, key: &str, values: &mut Values) {
    let scalar = match node {
        Value::Null => return,
        Value::Array(items) => {
            return items.iter().enumerate().for_each(|(at, item)| walk(item, &format!("{key}/{at}"), values));
        }
        Value::Object(fields) => {
            return fields.iter().for_each(|(name, field)| walk(field, &format!("{key}/{name}"), values));
        }
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
    };
    values.insert(Arc::from(super::super::path::clean(key)), Arc::from(scalar));
}

impl Backend for Files {
    fn read(&self, places: &[String]) -> Result<Snapshot> {
        let mut values = Values::new();
        for path in self.look()?.0 {
            read_file(&path, &mut values)?;
        }
        values.retain(|key, _| places.iter().any(|place| self.covers(place, key)));
        Ok(Snapshot { values, ..Snapshot::default() })
    }

    fn watch(
        &self,
        places: &[String],
        from: &Snapshot,
        until: Instant,
        stop: &Stop,
        _: &mut dyn FnMut(WatchEvent),
    ) -> Result<()> {
        let watcher = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("starting inotify")?;
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVE | WatchFlags::CREATE | WatchFlags::DELETE;
        let (found, folders) = self.look()?;
        for folder in &folders {
            inotify::add_watch(&watcher, folder, flags).with_context(|| format!("watching {}", folder.display()))?;
        }
        // Nothing reports a change between reading and watching.
        if self.read(places)? != *from {
            return Ok(());
        }
        // Files may change elsewhere than in their folders, behind links.
        let stamps = |paths: &[PathBuf]| -> Vec<_> {
            paths.iter().map(|path| fs::metadata(path).and_then(|file| file.modified()).ok()).collect()
        };
        let before = stamps(&found);
        while !stop.is_set() && Instant::now() < until {
            let wait = Duration::from_millis(500).min(until.saturating_duration_since(Instant::now()));
            let wait = Timespec::try_from(wait).ok();
            let mut ready = [PollFd::new(&watcher, PollFlags::IN)];
            let count = match poll(&mut ready, wait.as_ref()) {
                // A signal is another thread's affair.
                Err(Errno::INTR) => 0,
                count => count.context("waiting for inotify")?,
            };
            if count > 0 || stamps(&found) != before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// As upstream, by the beginning of the key.
    fn covers(&self, place: &str, key: &str) -> bool {
        key.starts_with(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_become_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        fs::write(
            &path,
            "app:\n  port: 80\n  ratio: 1.50\n  on: true\n  none: null\n  hosts: [a, {b: c}]\n  name: 'x'\n",
        )
        .unwrap();
        let mut values = Values::new();
        read_file(&path, &mut values).unwrap();
        let pairs: Vec<String> = values.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected =
            ["/app/hosts/0=a", "/app/hosts/1/b=c", "/app/name=x", "/app/on=true", "/app/port=80", "/app/ratio=1.5"];
        assert_eq!(pairs, expected);
        fs::write(&path, "- a").unwrap();
        assert!(read_file(&path, &mut values).is_err());
        fs::write(&path, "{\"a\": {\"b\": \"c\"}}").unwrap();
        let mut values = Values::new();
        read_file(&path, &mut values).unwrap();
        assert_eq!(values.get("/a/b").map(|value| &**value), Some("c"));
    }
}
