//! Answers the other nodes' questions about this node's data on Patroni's port, while Patroni does not run.
//!
//! etcd's port is etcd's own as soon as that starts, and a member without its quorum waits for hours. Patroni's is free
//! then; HAProxy's checks there fail as they do without anybody.

use super::{
    look::{Here, TOLD_WITHIN, Told},
    plan::Database,
};
use crate::{
    model::{Node, scope::ports},
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
    node: Node,
    root: PathBuf,
    version: u32,
    credentials: TlsCredentials,
    known: Mutex<Option<(Instant, Database)>>,
}

/// Opens the window of a node. It is closed when it is dropped.
///
/// # Errors
/// When it is not possible, as where Patroni runs.
pub fn open(here: &Here<'_>) -> Result<DiscoveryListener> {
    let window = Window {
        node: here.node.clone(),
        root: here.root.clone(),
        version: here.version,
        credentials: here.credentials.clone(),
        known: Mutex::new(None),
    };
    let address = SocketAddr::new(here.me().address, ports::PATRONI);
    DiscoveryListener::open(address, &here.credentials, Arc::new(window))
}

impl Window {
    fn here(&self) -> Here<'_> {
        Here { node: &self.node, root: self.root.clone(), version: self.version, credentials: self.credentials.clone() }
    }

    /// What is told: what takes long to read is told again for a while, as no server runs meanwhile.
    fn told(&self) -> Told {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let here = self.here();
        let database = match known.take() {
            Some((since, database)) if since.elapsed() < FRESH => {
                *known = Some((since, database.clone()));
                database
            }
            _ => {
                let database = here.database(TOLD_WITHIN);
                *known = Some((Instant::now(), database.clone()));
                database
            }
        };
        here.told(database)
    }
}

impl Host for Window {
    fn name(&self) -> &str {
        &self.node.member().name
    }

    fn answer(&self, _: &Request) -> Result<Answer> {
        bail!("promises are given on etcd's port")
    }

    fn facts(&self) -> Result<Facts> {
        Ok(Facts {
            schema: 1,
            node: self.name().to_owned(),
            cluster: self.node.spec.cluster.clone(),
            document: Document::of(&self.node.spec)?.digest,
            etcd: None,
            complete: false,
            databases: Vec::new(),
            recover: Some(serde_json::to_value(self.told())?),
        })
    }
}
