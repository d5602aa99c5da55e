//! The environment: `DATABASE_HOST` is the key `/database/host`. It does not change while the program runs.

use super::{Backend, Snapshot, Stop, Values, WatchEvent};
use anyhow::Result;
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Variables as keys.
#[derive(Debug)]
pub struct Environment(Values);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Environment {
        Environment::of(
            std::env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())),
        )
    }

    fn of(variables: impl Iterator<Item = (String, String)>) -> Environment {
        Environment(variables.map(|(name, value)| (key_of(&name), Arc::from(value))).collect())
    }
}

fn key_of(name: &str) -> Arc<str> {
    Arc::from(format!("/{}", name.to_lowercase().replace('_', "/")))
}

fn name_of(place: &str) -> String {
    place.strip_prefix('/').unwrap_or(place).replace('/', "_").to_uppercase()
}

impl Backend for Environment {
    fn read(&self, places: &[String]) -> Result<Snapshot> {
        let is_wanted = |key: &str| places.iter().any(|place| self.covers(place, key));
        let values = self.0.iter().filter(|(key, _)| is_wanted(key));
        let values = values.map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect();
        Ok(Snapshot { values, ..Snapshot::default() })
    }

    fn watch(
        &self,
        _: &[String],
        _: &Snapshot,
        until: Instant,
        stop: &Stop,
        _: &mut dyn FnMut(WatchEvent),
    ) -> Result<()> {
        while !stop.is_set() && Instant::now() < until {
            thread::sleep(Duration::from_millis(500).min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// As upstream, by the beginning of the variable's name.
    fn covers(&self, place: &str, key: &str) -> bool {
        name_of(key).starts_with(&name_of(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_keys() {
        let variables = [("DATABASE_HOST", "h"), ("DATABASE_PORT", "1"), ("HOME", "/")];
        let environment = Environment::of(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        let read = |place: &str| -> Vec<String> {
            environment.read(&[place.into()]).unwrap().values.keys().map(|key| key.to_string()).collect()
        };
        assert_eq!(read("/database"), ["/database/host", "/database/port"]);
        assert_eq!(read("/database/host"), ["/database/host"]);
        assert_eq!(read("/").len(), 3);
    }
}
