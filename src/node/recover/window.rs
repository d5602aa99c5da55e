//! Where this node tells the others what it has, while Patroni does not run: on Patroni's port.
//!
//! etcd's port is etcd's own as soon as that starts, and a member without its quorum waits for hours. Patroni's is free
//! then; HAProxy's checks there fail as they do without anybody.

use super::{
    look::{Here, Told},
    order,
};
use crate::{
    log,
    model::{ClusterSpec, scope::ports},
    node::{
        join::Document,
        peers::{DiscoveryListener, Facts, Host, TlsCredentials},
        promise::{Answer, Request},
    },
};
use anyhow::{Result, bail};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// For how long what was read of the WAL is told again.
const FRESH: Duration = Duration::from_secs(30);

/// What is told there.
#[derive(Debug)]
struct Window {
    spec: ClusterSpec,
    own: usize,
    root: PathBuf,
    version: u32,
    credentials: TlsCredentials,
    told: Mutex<Option<(Instant, Told)>>,
}

/// Opens the window of a node; `None` where that is not possible, as where Patroni runs. It is closed when it is dropped.
pub fn open(here: &Here<'_>) -> Option<DiscoveryListener> {
    let window = Window {
        spec: here.spec.clone(),
        own: here.own,
        root: here.root.clone(),
        version: here.version,
        credentials: here.credentials.clone(),
        told: Mutex::new(None),
    };
    let address = SocketAddr::new(here.me().address, ports::PATRONI);
    match DiscoveryListener::open(address, &here.credentials, Arc::new(window)) {
        Ok(listener) => Some(listener),
        Err(error) => {
            log::debug!("not telling the others what this node has: {error:#}");
            None
        }
    }
}

impl Window {
    fn here(&self) -> Here<'_> {
        Here {
            spec: &self.spec,
            own: self.own,
            root: self.root.clone(),
            version: self.version,
            credentials: self.credentials.clone(),
        }
    }

    fn told(&self) -> Told {
        let mut known = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let here = self.here();
        if let Some((since, told)) = &*known
            && since.elapsed() < FRESH
        {
            return Told { order: order::pending(&here.below(order::PATH)), ..told.clone() };
        }
        let told = here.told();
        *known = Some((Instant::now(), told.clone()));
        told
    }
}

impl Host for Window {
    fn name(&self) -> &str {
        &self.spec.members[self.own].name
    }

    fn answer(&self, _: &Request) -> Result<Answer> {
        bail!("promises are given on etcd's port")
    }

    fn facts(&self) -> Result<Facts> {
        Ok(Facts {
            schema: 1,
            node: self.name().to_owned(),
            cluster: self.spec.cluster.clone(),
            document: Document::of(&self.spec)?.digest,
            etcd: None,
            complete: false,
            databases: Vec::new(),
            recover: Some(self.told()),
        })
    }
}
