//! Clusters on this machine, for trying and testing: creates nodes, injects faults, removes everything again.
//!
//! A [`Cluster`] is a document, the nodes that it names, and the [`Driver`] that runs them. It is remembered on a
//! [`StateDir`] between runs of the program; the nodes themselves need no supervisor.
//!
//! Data come first. A call removes only what it made itself, or what provably is the cluster's of its state directory (`owner.rs`);
//! a node goes with its disk only if other nodes have all that it has (`copies.rs`); whoever wants it otherwise says so.

mod addresses;
mod adopt;
mod change;
mod copies;
mod create;
mod docker;
mod down;
mod driver;
mod lock;
mod owner;
mod qemu;
mod record;
mod view;

pub use adopt::adopt;
pub use change::Care;
pub use create::{Ended, Making, Request, Wishes};
pub use down::{Consent, Removal};
pub use driver::{ClusterNetwork, Driver, DriverKind, NodePlan, Peer, PowerState, Prepared, Thing, ThingKind};
pub use lock::Lock;
pub use owner::{Claim, Owner, Title};
pub use record::{Record, StateDir};
pub use view::{View, problem, table};

use crate::{
    container_engine::{Engine, Executed, Which},
    document::Document,
    error::UserError,
    model::{
        ClusterSpec,
        scope::TLS_PATH,
        status::{NodeStatus, Phase},
    },
    poll::PollInterval,
    progress::{Progress, Style, Unit},
    seed::{Addressing, Extras, Seeds},
};
use anyhow::{Context as _, Result};
use docker::Docker;
use qemu::QemuDriver;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// The certificate of the authority, in the cluster's folder.
const AUTHORITY: &str = "ca.crt";
/// How often a cluster that is being waited for is looked at.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take to say how it stands.
const STATUS_WITHIN: Duration = Duration::from_secs(20);
/// How long a node may take to carry out a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(120);

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    state_dir: StateDir,
    record: Record,
    seeds: Seeds,
    driver: Box<dyn Driver>,
}

impl Cluster {
    /// Opens the cluster `name`.
    ///
    /// # Errors
    /// A wrong request when there is none of that name; failed work when its driver is not there.
    pub fn open(state_dir: &StateDir, name: &str) -> Result<Cluster> {
        let (record, document) = state_dir.load(name)?;
        let seeds = seeds_of(record.driver, document)?;
        let driver = driver_of(state_dir, &record, &seeds)?;
        Ok(Cluster { state_dir: state_dir.clone(), record, seeds, driver })
    }

    fn plan(&self, own: usize) -> NodePlan {
        let member = &self.seeds.spec.members[own];
        NodePlan { name: member.name.clone(), address: member.address, seed: self.seeds.seed(own) }
    }

    /// What is remembered of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its document, and what it says.
    pub fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// What runs its nodes.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The names of its nodes.
    pub fn nodes(&self) -> Vec<String> {
        names(&self.seeds.spec)
    }

    /// The nodes that `names` name; all if none is named.
    ///
    /// # Errors
    /// A wrong request when the cluster has no such node.
    pub fn choose(&self, names: &[String]) -> Result<Vec<String>> {
        let known = self.nodes();
        match names.iter().find(|name| !known.contains(name)) {
            Some(stranger) => {
                Err(UserError::usage(format!("the cluster `{}` has no node `{stranger}`", self.seeds.spec.cluster))
                    .hint(format!("its nodes are {}", known.join(", ")))
                    .into())
            }
            None if names.is_empty() => Ok(known),
            None => Ok(names.to_vec()),
        }
    }

    /// Switches on those of `nodes` that are off. Returns the names of those that did not exist and were made.
    ///
    /// # Errors
    /// When one cannot run.
    pub fn start(&self, _: &Lock, nodes: &[String]) -> Result<Vec<String>> {
        let mut made = Vec::new();
        for node in nodes {
            match self.driver.power(node)? {
                PowerState::Off => self.driver.start(node)?,
                PowerState::Absent => {
                    let own = self.index(node)?;
                    self.driver.create(&self.plan(own))?;
                    self.driver.start(node)?;
                    made.push(node.clone());
                }
                PowerState::Paused => self.driver.resume(node)?,
                PowerState::On => {}
            }
        }
        Ok(made)
    }

    fn index(&self, node: &str) -> Result<usize> {
        let found = self.seeds.spec.members.iter().position(|member| member.name == node);
        found.with_context(|| format!("the cluster has no node {node}"))
    }

    /// How one node stands.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn view(&self, own: usize) -> Result<View> {
        let member = &self.seeds.spec.members[own];
        let power = self.driver.power(&member.name)?;
        let status = match power {
            PowerState::On => self.ask(&member.name),
            _ => None,
        };
        Ok(View { node: member.name.clone(), address: member.address.to_string(), power, status })
    }

    /// What a node says of itself; `None` while it boots.
    fn ask(&self, node: &str) -> Option<NodeStatus> {
        let command = ["pgha-node", "status", "--json"].map(str::to_owned);
        let done = self.driver.exec(node, &command, &[], self.driver.patience(STATUS_WITHIN)).ok()?;
        serde_json::from_slice(&done.stdout).ok()
    }

    /// How all nodes stand.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn views(&self) -> Result<Vec<View>> {
        (0..self.seeds.spec.members.len()).map(|own| self.view(own)).collect()
    }

    /// Waits until every node that is switched on is ready and the cluster whole.
    ///
    /// # Errors
    /// When it takes longer than `within`, with what is missing; at once when a node refuses its document.
    pub fn wait_ready(&self, within: Duration, progress: &Progress) -> Result<Vec<View>> {
        let within = self.driver.patience(within);
        let deadline = Instant::now() + within;
        let step = progress.step("cluster", self.seeds.spec.members.len() as u64, Unit::Items);
        let mut ready = 0;
        let mut told = String::new();
        let mut poll = PollInterval::new(PAUSE);
        loop {
            let views = self.views()?;
            let now = views.iter().filter(|view| view.problem().is_none()).count() as u64;
            step.advance(now.saturating_sub(ready));
            ready = ready.max(now);
            let Some(problem) = problem(&views, self.seeds.spec.vip.is_some()) else {
                step.finish("every node is ready");
                return Ok(views);
            };
            if let Some(refused) = views
                .iter()
                .find(|view| view.status.as_ref().is_some_and(|status| status.progress.phase == Phase::Refused))
            {
                let status = refused.status.as_ref().map(|status| status.progress.reason.clone()).unwrap_or_default();
                return Err(UserError::runtime(format!("{} refuses its document\n{status}", refused.node)).into());
            }
            if Instant::now() >= deadline {
                let name = &self.seeds.spec.cluster;
                return Err(UserError::runtime(format!(
                    "the cluster is not ready after {} s: {problem}",
                    within.as_secs()
                ))
                .hint(format!("see `pgha-image cluster status {name}` and `pgha-image cluster logs {name} NODE`"))
                .into());
            }
            // A bar shows where things stand; lines tell what has changed.
            if progress.style() != Style::Bars && problem != told {
                progress.note(&format!("cluster     {problem}"));
                told.clone_from(&problem);
            }
            step.detail(problem);
            poll.wait();
        }
    }

    /// Runs a command on a node.
    ///
    /// # Errors
    /// When the node does not run or the command does not end in time.
    pub fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed> {
        self.driver.exec(node, command, input, within)
    }

    /// A node that is switched on; the primary if there is one.
    ///
    /// # Errors
    /// When none is.
    pub fn a_running_node(&self) -> Result<String> {
        let views = self.views()?;
        let best =
            views.iter().find(|view| view.is_primary()).or_else(|| views.iter().find(|view| view.status.is_some()));
        best.map(|view| view.node.clone()).ok_or_else(|| {
            let name = &self.seeds.spec.cluster;
            UserError::runtime(format!("no node of the cluster `{name}` is running"))
                .hint(format!("pgha-image cluster start {name}"))
                .into()
        })
    }

    /// Cuts `nodes` off from all other nodes, and from clients too if `wholly`.
    ///
    /// # Errors
    /// When the driver cannot.
    pub fn partition(&self, nodes: &[String], wholly: bool) -> Result<()> {
        let (mut inside, mut outside): (Vec<_>, Vec<_>) = self
            .seeds
            .spec
            .members
            .iter()
            .map(|member| (nodes.contains(&member.name), Peer::Node(member.name.clone(), member.address)))
            .partition(|(inside, _)| *inside);
        if wholly {
            outside.push((false, Peer::Outside));
        }
        let peers = |side: &mut Vec<(bool, Peer)>| side.drain(..).map(|(_, peer)| peer).collect::<Vec<_>>();
        self.driver.cut(&peers(&mut inside), &peers(&mut outside))
    }

    /// Makes `to` the primary, or the best replica if nobody is named, without losing anything. Returns what Patroni
    /// says.
    ///
    /// # Errors
    /// When Patroni refuses.
    pub fn switchover(&self, to: Option<&str>) -> Result<String> {
        let views = self.views()?;
        let primary = views.iter().find(|view| view.is_primary()).context("there is no primary to switch over from")?;
        let name = &self.seeds.spec.cluster;
        let mut command: Vec<String> =
            ["patronictl", "-c", "/etc/patroni/config.yml", "switchover", name, "--leader", &primary.node, "--force"]
                .map(str::to_owned)
                .into();
        if let Some(to) = to {
            command.extend(["--candidate".to_owned(), to.to_owned()]);
        }
        let done = self.exec(&primary.node, &command, &[], REQUEST_WITHIN)?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        // Patroni answers so when it has begun, and the change takes longer than it waits.
        if text.contains("status unknown") {
            self.wait_for_successor(&primary.node)?;
            return Ok(text);
        }
        // patronictl tells a refusal in words and ends well.
        if done.status != 0 || !text.contains("Successfully") {
            let why = [text.trim(), String::from_utf8_lossy(&done.stderr).trim()].join("\n");
            return Err(UserError::runtime(format!("Patroni does not switch over: {}", why.trim())).into());
        }
        Ok(text)
    }

    /// Waits until there is a primary, which must not be `old` again.
    fn wait_for_successor(&self, old: &str) -> Result<()> {
        let end = Instant::now() + self.driver.patience(REQUEST_WITHIN);
        let mut poll = PollInterval::new(PAUSE);
        let problem = loop {
            match self.views()?.into_iter().find(View::is_primary) {
                Some(view) if view.node != old => return Ok(()),
                Some(_) => break format!("{old} is the primary again"),
                None if Instant::now() > end => break "no node is the primary".to_owned(),
                None => poll.wait(),
            }
        };
        let name = &self.seeds.spec.cluster;
        Err(UserError::runtime(format!("Patroni began to switch over from {old}, but {problem}"))
            .hint(format!("`pgha-image cluster status {name}` shows the roles"))
            .into())
    }

    /// The certificate of the cluster's authority, as a file of this machine.
    ///
    /// # Errors
    /// When no node runs.
    pub fn authority(&self) -> Result<PathBuf> {
        // It follows from the document alone.
        let known = self.state_dir.folder(&self.seeds.spec.cluster).join(AUTHORITY);
        if known.is_file() {
            return Ok(known);
        }
        let node = self.a_running_node()?;
        let command = ["cat".to_owned(), format!("{TLS_PATH}/ca.crt")];
        let done = self.exec(&node, &command, &[], STATUS_WITHIN)?;
        anyhow::ensure!(done.status == 0, "{node} has no certificate of the authority yet");
        self.state_dir.put(&self.seeds.spec.cluster, AUTHORITY, &String::from_utf8_lossy(&done.stdout))
    }
}

fn names(spec: &ClusterSpec) -> Vec<String> {
    spec.members.iter().map(|member| member.name.clone()).collect()
}

/// The seeds of a cluster that `driver` runs: containers find their addresses set, machines set their own.
fn seeds_of(driver: DriverKind, document: Document) -> Result<Seeds> {
    let extras = Extras { addressing: Addressing::Preset, ..Extras::default() };
    let mut seeds = Seeds::new(document, extras)?;
    if driver == DriverKind::Qemu {
        let network = addresses::cluster_network(&seeds.spec)?;
        let prefix = network.subnet.split_once('/').and_then(|(_, prefix)| prefix.parse().ok());
        let prefix = prefix.context("the subnet has a prefix")?;
        seeds.extras.addressing =
            Addressing::Static { prefix, gateway: Some(network.gateway), nameservers: Vec::new() };
    }
    Ok(seeds)
}

fn driver_of(state_dir: &StateDir, record: &Record, seeds: &Seeds) -> Result<Box<dyn Driver>> {
    let network = record.network.clone();
    Ok(match record.driver {
        DriverKind::Docker => {
            let claim = Claim::new(state_dir, record, seeds);
            Box::new(Docker::new(Engine::connect(Which::Auto)?, network, &record.image, record.memory, claim))
        }
        DriverKind::Qemu => {
            Box::new(QemuDriver::new(&state_dir.folder(&network.cluster), network, &record.image, record.memory))
        }
    })
}
