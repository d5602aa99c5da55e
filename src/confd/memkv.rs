//! The keys that a template sees, with the questions that confd's store functions ask.

use super::path::{self, Pattern};
use anyhow::Result;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Keys and values; keys begin with a slash and are relative to the resource's prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store(BTreeMap<Arc<str>, Arc<str>>);

impl FromIterator<(Arc<str>, Arc<str>)> for Store {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(pairs: I) -> Store {
        Store(pairs.into_iter().collect())
    }
}

impl Store {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        self.0.get(key)
    }

    /// The pairs whose keys match a pattern of `path.Match`, sorted by key.
    ///
    /// # Errors
    /// When the pattern is malformed.
    pub fn matching(&self, pattern: &str) -> Result<Vec<(&Arc<str>, &Arc<str>)>> {
        let pattern = Pattern::new(pattern)?;
        let prefix = pattern.literal_prefix();
        let from = self.0.range::<str, _>((std::ops::Bound::Included(prefix.as_str()), std::ops::Bound::Unbounded));
        Ok(from.take_while(|(key, _)| key.starts_with(&prefix)).filter(|(key, _)| pattern.matches(key)).collect())
    }

    /// How many keys match a pattern; all keys without one.
    ///
    /// # Errors
    /// When the pattern is malformed.
    pub fn count(&self, pattern: Option<&str>) -> Result<usize> {
        pattern.map_or(Ok(self.0.len()), |pattern| Ok(self.matching(pattern)?.len()))
    }

    /// The names directly under a path, of keys and of folders; the path's own base if it is a key.
    ///
    /// As upstream, `/` shows only keys, not folders.
    pub fn list(&self, path: &str) -> Vec<String> {
        let prefix = terms(path);
        let names = self.0.keys().filter_map(|key| {
            if **key == *path {
                return Some(path::base(key).to_owned());
            }
            terms(&path::dir(key)).starts_with(&prefix).then(|| {
                let rest = key.strip_prefix(path).unwrap_or(key);
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                rest.split('/').next().unwrap_or_default().to_owned()
            })
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The names of folders directly under a path.
    pub fn list_folders(&self, path: &str) -> Vec<String> {
        let prefix = terms(path);
        let names = self.0.keys().filter(|key| key.starts_with(path)).filter_map(|key| {
            let folder = terms(&path::dir(key));
            (folder.starts_with(&prefix)).then(|| folder.get(prefix.len()).cloned()).flatten()
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn terms(path: &str) -> Vec<String> {
    path::clean(path).split('/').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        ["/app/db/pass", "/app/db/user", "/app/port", "/app/upstream/a1", "/app/upstream/a2", "/appx/no", "/top"]
            .iter()
            .map(|key| (Arc::from(*key), Arc::from(format!("value of {key}"))))
            .collect()
    }

    #[test]
    fn keys_are_found_by_name_and_by_pattern() {
        let store = store();
        assert_eq!(store.get("/app/port").map(|value| &**value), Some("value of /app/port"));
        assert_eq!(store.get("/app"), None);
        let keys = |pattern| -> Vec<&str> { store.matching(pattern).unwrap().iter().map(|(key, _)| &***key).collect() };
        assert_eq!(keys("/app/*"), ["/app/port"]);
        assert_eq!(keys("/app/upstream/*"), ["/app/upstream/a1", "/app/upstream/a2"]);
        assert_eq!(keys("/*/*/user"), ["/app/db/user"]);
        assert_eq!(keys("/none/*"), [""; 0]);
        assert!(store.matching("/[").is_err());
        assert_eq!((store.count(None).unwrap(), store.count(Some("/app/upstream/*")).unwrap()), (7, 2));
    }

    #[test]
    fn folders_are_listed() {
        let store = store();
        assert_eq!(store.list("/app"), ["db", "port", "upstream"]);
        assert_eq!(store.list("/app/"), ["db", "port", "upstream"]);
        assert_eq!(store.list("/app/upstream"), ["a1", "a2"]);
        assert_eq!(store.list("/app/port"), ["port"]);
        assert_eq!(store.list("/"), ["top"]);
        assert_eq!(store.list_folders("/app"), ["db", "upstream"]);
        assert_eq!(store.list_folders("/app/upstream"), [""; 0]);
        assert_eq!(store.list("/nowhere"), [""; 0]);
    }
}
