//! `pgha-node agent`: maintains a node once it is a member.
//!
//! A few concerns, each with its own interval, share one thread. A concern gathers what it sees, decides by a pure
//! function, and does at most one small act that can be repeated; whatever it leaves half done, it finds at its next look.
//! What a person should know is told once when it begins and once when it ends, and stays in a file for
//! `pgha-node status` meanwhile. An idle node on which all is well has no line of it in its journal.
//!
//! Nothing of the cluster waits for the agent: if it is dead, Patroni, HAProxy's checks and keepalived go on without it.

pub mod disk;
pub mod document;
pub mod keys;
pub mod members;
pub mod patroni;
pub mod repair;
pub mod report;
pub mod sql;
pub mod store;
pub mod turn;

use super::{
    peers::TlsCredentials,
    progress::{self, PROGRESS_PATH},
    recover::order,
    this_node::{self, postgresql_version},
    units,
};
use crate::{
    error::UserError,
    etcd::Client,
    files::read_text,
    model::{
        ClusterSpec, MANIFEST_PATH, Manifest, Member, Node,
        scope::client_url,
        status::{Attention, Phase},
    },
};
use anyhow::{Context as _, Result};
use report::{Board, REPORT_PATH, say};
use std::{
    convert::Infallible,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The agent's unit.
pub const UNIT: &str = "pgha-agent.service";
/// How often the agent wakes at least, to tell systemd that it lives.
const LONGEST_REST: Duration = Duration::from_secs(20);

/// What a concern needs to look and to act.
#[derive(Debug)]
pub struct World {
    /// The document that this node works with, and which of its members it is.
    pub node: Node,
    /// What is counted of that document.
    pub document: document::Own,
    /// The node's certificates.
    pub credentials: TlsCredentials,
    /// This node's own etcd.
    pub etcd: Client,
    /// The major version of the image's PostgreSQL, if it has one.
    pub postgresql: Option<u32>,
}

impl World {
    fn open() -> Result<World> {
        let node = this_node::find()?;
        let credentials = TlsCredentials::of_the_node();
        let etcd = credentials.etcd(vec![client_url(node.member())])?;
        let document = document::Own::of(&node.spec)?;
        let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
            .with_context(|| format!("reading {MANIFEST_PATH}"))?;
        let postgresql = postgresql_version(&manifest)?;
        Ok(World { node, document, credentials, etcd, postgresql })
    }

    /// This node's member.
    pub fn me(&self) -> &Member {
        self.node.member()
    }

    /// The other members of the document.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.node.peers()
    }

    /// A key of the cluster's in etcd.
    pub fn key(&self, name: &str) -> String {
        format!("/pgha/{}/{name}", self.node.spec.cluster)
    }

    /// Fails while a person's order to go on from this node is there, or may be: its data are what the person was
    /// shown, until the order is carried out or dropped.
    ///
    /// # Errors
    /// A request for later: how far the order is.
    pub fn ensure_not_ordered(&self) -> Result<(), UserError> {
        not_ordered(Path::new(order::PATH))
    }

    /// Whether `pgha-node init` has brought this node up and is not at work: only then is the agent free to act.
    pub fn settled(&self) -> bool {
        progress::load(Path::new(PROGRESS_PATH)).phase == Phase::Ready
    }
}

fn not_ordered(path: &Path) -> Result<(), UserError> {
    match order::pending(path) {
        None => Ok(()),
        Some(how) => Err(UserError::runtime(format!("an order to go on from this node is not carried out yet: {how}"))
            .hint("pgha-node recover shows how it stands; pgha-node recover --cancel drops it")),
    }
}

/// One thing that the agent looks after.
pub trait Concern {
    /// Its name, with which the keys of all that it tells open.
    fn name(&self) -> &'static str;
    /// How often it looks.
    fn interval(&self) -> Duration;
    /// Looks, and does what is to be done next; returns all that a person should know now.
    ///
    /// # Errors
    /// When it cannot look or act; it is tried again after the interval.
    fn tick(&mut self, world: &World, now: Instant) -> Result<Vec<Attention>>;
}

fn concerns() -> Vec<Box<dyn Concern>> {
    vec![
        Box::new(disk::Disk::default()),
        Box::new(keys::Initialize),
        Box::new(members::Members::default()),
        Box::new(repair::Repair::default()),
        Box::new(store::Store::default()),
    ]
}

/// Looks after this node until it is told to end.
///
/// # Errors
/// When there is no document or no certificate yet.
pub fn run() -> Result<Infallible> {
    let world = World::open().context("starting the agent")?;
    let mut crew: Vec<(Box<dyn Concern>, Instant)> =
        concerns().into_iter().map(|concern| (concern, Instant::now())).collect();
    let names: Vec<&'static str> = crew.iter().map(|(concern, _)| concern.name()).collect();
    let mut board = Board::load(Path::new(REPORT_PATH), &world.document.digest, &names);
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    loop {
        for (concern, due) in &mut crew {
            let now = Instant::now();
            if now < *due {
                continue;
            }
            *due = now + concern.interval();
            if world.ensure_not_ordered().is_err() {
                continue;
            }
            let found = concern.tick(&world, now);
            say(board.take(concern.name(), found, unix_now()));
            *due = Instant::now() + concern.interval();
            tell_systemd(&[sd_notify::NotifyState::Watchdog]);
        }
        // A full /run must not end the agent; the journal has all lines.
        let _ = board.write(unix_now());
        tell_systemd(&[sd_notify::NotifyState::Watchdog]);
        let now = Instant::now();
        let next = crew.iter().map(|(_, due)| due.saturating_duration_since(now)).min().unwrap_or(LONGEST_REST);
        thread::sleep(next.min(LONGEST_REST));
    }
}

fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    // Without a service manager nobody listens.
    let _ = sd_notify::notify(states);
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Starts the agent, or starts it again if it works with another document than `spec`. `init` does so as soon as the node's
/// files are written: a disk that is full needs the agent before all services run.
///
/// # Errors
/// When systemd refuses.
pub fn launch(spec: &ClusterSpec) -> Result<()> {
    let known = report::Report::load(Path::new(REPORT_PATH)).document;
    if known == document::Own::of(spec)?.digest {
        units::start(UNIT)?
    } else {
        units::run_again(UNIT)?
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_while_there_is_an_order_or_may_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recover.json");
        assert!(not_ordered(&path).is_ok());
        std::fs::write(&path, "{").unwrap();
        let error = not_ordered(&path).unwrap_err();
        assert!(error.hint.is_some_and(|hint| hint.contains("recover --cancel")), "{}", error.message);
    }
}
