//! Resolves host names once for all connections.
//!
//! Without it each request looks the address up again, even on a connection that was kept. Name servers that drop
//! queries when many come at once then cost seconds.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Deref as _,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use ureq::{
    Error,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

/// How long an address is used before it is looked up again.
const LIFETIME: Duration = Duration::from_secs(300);

/// Looks up names and caches their addresses.
#[derive(Debug, Default)]
pub(super) struct Names {
    resolver: DefaultResolver,
    known: Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

/// The addresses of one host; locked during a look-up, so that others wait for the same answer.
#[derive(Debug, Default)]
struct Known(Option<(Instant, Vec<SocketAddr>)>);

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host =
            format!("{} {}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |host| host.as_str()));
        let known = lock(&self.known).entry(host).or_default().clone();
        let mut known = lock(&known);
        if let Some((when, addresses)) = &known.0
            && when.elapsed() < LIFETIME
        {
            let mut found = self.empty();
            addresses.iter().for_each(|address| found.push(*address));
            return Ok(found);
        }
        let found = self.resolver.resolve(uri, config, timeout)?;
        known.0 = Some((Instant::now(), found.deref().to_vec()));
        Ok(found)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
