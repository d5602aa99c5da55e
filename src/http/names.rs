//! Addresses of hosts, looked up once for all connections.
//!
//! Without this each request asks for the address again, even on a connection that was kept; name servers that drop
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

/// How long an address is believed.
const LIFETIME: Duration = Duration::from_secs(300);

/// Looks names up and remembers their addresses.
#[derive(Debug, Default)]
pub(super) struct Names {
    resolver: DefaultResolver,
    known: Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

/// What is known of one host; locked while it is being looked up, so that others wait for the same answer.
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
