//! Clusters on this machine, for people who try and tests that prove: nodes up, faults in, everything gone again.
//!
//! A [`Cluster`] is a document, the nodes that it names, and the [`Driver`] that runs them. It is remembered on a
//! [`Shelf`] between runs of the program; the nodes themselves need no supervisor.

mod addresses;
mod docker;
mod driver;
mod qemu;
mod record;
mod view;

pub use driver::{Driver, DriverKind, Ground, NodePlan, Peer, Power};
pub use record::{Record, Shelf};
pub use view::{Postgresql, Said, View, ailment, table};

use crate::{
    container_engine::{Executed, Which},
    document::Document,
    error::Fault,
    machine::{Accel, Qemu},
    model::{ClusterSpec, DOCUMENT_PATH, keys::Keys, scope::TLS_PATH},
    poll::Pace,
    progress::{Progress, Style, Unit},
    seed::{Addressing, Extras, Seeds, with_secret},
};
use anyhow::{Context as _, Result};
use docker::Docker;
use qemu::Virtual;
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

/// What a new cluster shall be.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its document; with no secret, it gets one. Without a document, it is one of `nodes` nodes with the name `name`.
    pub document: Option<Document>,
    /// Its name, where there is no document.
    pub name: String,
    /// How many nodes, where there is no document.
    pub nodes: usize,
    /// The timers' preset, where there is no document; without it, `fast`, or `wide` where processors are emulated, which
    /// have no time for the checks of others.
    pub timing: Option<String>,
    /// What runs its nodes.
    pub driver: DriverKind,
    /// What they are made of.
    pub image: String,
    /// The most memory that each may use, in bytes.
    pub memory: Option<u64>,
}

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    shelf: Shelf,
    record: Record,
    seeds: Seeds,
    driver: Box<dyn Driver>,
}

impl Cluster {
    /// Makes a cluster's network and nodes, all switched off.
    ///
    /// # Errors
    /// A wrong request when there is one of this name already or the document is wrong; failed work when the driver
    /// cannot. Nothing of it is left then.
    pub fn create(shelf: &Shelf, request: Request) -> Result<Cluster> {
        let document = match request.document {
            Some(document) => document,
            None => {
                let taken = match request.driver {
                    DriverKind::Docker => Docker::taken_subnets(Which::Auto)?,
                    // Its networks are known to their own switches only.
                    DriverKind::Qemu => Vec::new(),
                };
                let usual = match request.driver {
                    DriverKind::Qemu if Accel::probe(&Qemu::find()?)?.accel == Accel::Tcg => "wide",
                    _ => "fast",
                };
                let timing = request.timing.as_deref().unwrap_or(usual);
                addresses::document(&request.name, request.nodes, timing, &taken)?
            }
        };
        let (document, _) = with_secret(document, None)?;
        let seeds = seeds_of(request.driver, document)?;
        if shelf.has(&seeds.spec.cluster) {
            let name = &seeds.spec.cluster;
            return Err(Fault::request(format!("there is a cluster `{name}` already"))
                .hint(format!(
                    "go on with it: pgha-image cluster status {name}; or remove it: pgha-image cluster down {name}"
                ))
                .into());
        }
        let record = Record {
            schema: 1,
            driver: request.driver,
            image: match request.driver {
                DriverKind::Docker => request.image,
                DriverKind::Qemu => Virtual::find_image(&request.image)?,
            },
            memory: request.memory,
            ground: addresses::ground(&seeds.spec)?,
        };
        let driver = driver_of(shelf, &record)?;
        let cluster = Cluster { shelf: shelf.clone(), record, seeds, driver };
        let made = cluster.make();
        if made.is_err() {
            // The first error is the one to tell.
            let _ = cluster.driver.remove();
        }
        made.map(|()| cluster)
    }

    fn make(&self) -> Result<()> {
        self.driver.prepare()?;
        for own in 0..self.seeds.spec.members.len() {
            self.driver.create(&self.plan(own))?;
        }
        self.shelf.store(&self.record, &self.seeds.document)
    }

    /// Opens the cluster `name`.
    ///
    /// # Errors
    /// A wrong request when there is none of that name; failed work when its driver is not there.
    pub fn open(shelf: &Shelf, name: &str) -> Result<Cluster> {
        let (record, document) = shelf.load(name)?;
        let seeds = seeds_of(record.driver, document)?;
        let driver = driver_of(shelf, &record)?;
        Ok(Cluster { shelf: shelf.clone(), record, seeds, driver })
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
                Err(Fault::request(format!("the cluster `{}` has no node `{stranger}`", self.seeds.spec.cluster))
                    .hint(format!("its nodes are {}", known.join(", ")))
                    .into())
            }
            None if names.is_empty() => Ok(known),
            None => Ok(names.to_vec()),
        }
    }

    /// Switches on those of `nodes` that are off.
    ///
    /// # Errors
    /// When one cannot run.
    pub fn start(&self, nodes: &[String]) -> Result<()> {
        for node in nodes {
            match self.driver.power(node)? {
                Power::Off => self.driver.start(node)?,
                Power::Absent => {
                    let own = self.index(node)?;
                    self.driver.create(&self.plan(own))?;
                    self.driver.start(node)?;
                }
                Power::Paused => self.driver.resume(node)?,
                Power::On => {}
            }
        }
        Ok(())
    }

    fn index(&self, node: &str) -> Result<usize> {
        let found = self.seeds.spec.members.iter().position(|member| member.name == node);
        found.with_context(|| format!("the cluster has no node {node}"))
    }

    /// Replaces a node by a new one with the same name and address, and an empty disk.
    ///
    /// # Errors
    /// When the driver cannot.
    pub fn replace(&self, node: &str) -> Result<()> {
        let own = self.index(node)?;
        self.driver.destroy(node)?;
        self.driver.create(&self.plan(own))?;
        self.driver.start(node)
    }

    /// How one node stands.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn view(&self, own: usize) -> Result<View> {
        let member = &self.seeds.spec.members[own];
        let power = self.driver.power(&member.name)?;
        let said = match power {
            Power::On => self.ask(&member.name),
            _ => None,
        };
        Ok(View { node: member.name.clone(), address: member.address.to_string(), power, said })
    }

    /// What a node says of itself; `None` while it boots.
    fn ask(&self, node: &str) -> Option<Said> {
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
        let mut pace = Pace::new(PAUSE);
        loop {
            let views = self.views()?;
            let now = views.iter().filter(|view| view.ailment().is_none()).count() as u64;
            step.advance(now.saturating_sub(ready));
            ready = ready.max(now);
            let Some(ailment) = ailment(&views, self.seeds.spec.vip.is_some()) else {
                step.finish("every node is ready");
                return Ok(views);
            };
            if let Some(refused) =
                views.iter().find(|view| view.said.as_ref().is_some_and(|said| said.phase == "refused"))
            {
                let said = refused.said.as_ref().map(|said| said.reason.clone()).unwrap_or_default();
                return Err(Fault::work(format!("{} refuses its document\n{said}", refused.node)).into());
            }
            if Instant::now() >= deadline {
                let name = &self.seeds.spec.cluster;
                return Err(Fault::work(format!("the cluster is not ready after {} s: {ailment}", within.as_secs()))
                    .hint(format!("see `pgha-image cluster status {name}` and `pgha-image cluster logs {name} NODE`"))
                    .into());
            }
            // A bar shows where things stand; lines tell what has changed.
            if progress.style() != Style::Bars && ailment != told {
                progress.note(&format!("cluster     {ailment}"));
                told.clone_from(&ailment);
            }
            step.detail(ailment);
            pace.rest();
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
            views.iter().find(|view| view.is_primary()).or_else(|| views.iter().find(|view| view.said.is_some()));
        best.map(|view| view.node.clone()).ok_or_else(|| {
            let name = &self.seeds.spec.cluster;
            Fault::work(format!("no node of the cluster `{name}` runs"))
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
            return Err(Fault::work(format!("Patroni does not switch over: {}", why.trim())).into());
        }
        Ok(text)
    }

    /// Waits until there is a primary, which must not be `old` again.
    fn wait_for_successor(&self, old: &str) -> Result<()> {
        let end = Instant::now() + self.driver.patience(REQUEST_WITHIN);
        let mut pace = Pace::new(PAUSE);
        let ailment = loop {
            match self.views()?.into_iter().find(View::is_primary) {
                Some(view) if view.node != old => return Ok(()),
                Some(_) => break format!("{old} is the primary again"),
                None if Instant::now() > end => break "no node is the primary".to_owned(),
                None => pace.rest(),
            }
        };
        let name = &self.seeds.spec.cluster;
        Err(Fault::work(format!("Patroni began to switch over from {old}, but {ailment}"))
            .hint(format!("see who is what: pgha-image cluster status {name}"))
            .into())
    }

    /// Gives every node a changed document: new members are made and started, members that are gone leave and are
    /// removed, all others take up the change.
    ///
    /// # Errors
    /// A wrong request when the document is another cluster's or wrong; failed work when a node cannot take it. The same
    /// update may be given again then.
    pub fn update(&mut self, document: Document) -> Result<()> {
        let (document, _) = with_secret(document, Some(&self.seeds.document))?;
        let seeds = Seeds::new(document, self.seeds.extras.clone())?;
        let ours = Keys::new(&self.seeds.spec).identity() == Keys::new(&seeds.spec).identity();
        if seeds.spec.cluster != self.seeds.spec.cluster || !ours {
            return Err(Fault::request(format!(
                "the document is not that of the cluster `{}`: its name and its secret cannot change",
                self.seeds.spec.cluster
            ))
            .into());
        }
        let ground = addresses::ground(&seeds.spec)?;
        if ground.subnet != self.record.ground.subnet {
            return Err(Fault::request("the document's members lie in another network than the cluster's").into());
        }
        // Whoever goes is gone before the new document is remembered: if one cannot leave, the same update can be given
        // again, and no node runs that nobody knows of.
        let now = names(&seeds.spec);
        for node in self.nodes().iter().filter(|node| !now.contains(node)) {
            if self.driver.power(node)? == Power::On {
                let command = ["pgha-node", "leave"].map(str::to_owned);
                let done = self.driver.exec(node, &command, &[], self.driver.patience(REQUEST_WITHIN))?;
                anyhow::ensure!(
                    done.status == 0,
                    "{node} cannot leave: {}",
                    String::from_utf8_lossy(&done.stderr).trim()
                );
            }
            self.driver.destroy(node)?;
        }
        self.seeds = seeds;
        self.shelf.store(&self.record, &self.seeds.document)?;
        let mut absent = Vec::new();
        for node in now {
            match self.driver.power(&node)? {
                Power::On => {}
                Power::Absent => {
                    absent.push(node);
                    continue;
                }
                Power::Off | Power::Paused => continue,
            }
            let script = format!(
                "cat > {DOCUMENT_PATH}.new && chmod 600 {DOCUMENT_PATH}.new && mv {DOCUMENT_PATH}.new {DOCUMENT_PATH} && pgha-node init"
            );
            let command = ["sh", "-c", &script].map(str::to_owned);
            let done = self.driver.exec(
                &node,
                &command,
                self.seeds.document.text.as_bytes(),
                self.driver.patience(REQUEST_WITHIN),
            )?;
            anyhow::ensure!(
                done.status == 0,
                "{node} cannot take the document up: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        self.start(&absent)
    }

    /// The certificate of the cluster's authority, as a file of this machine.
    ///
    /// # Errors
    /// When no node runs.
    pub fn authority(&self) -> Result<PathBuf> {
        // It follows from the document alone.
        let known = self.shelf.folder(&self.seeds.spec.cluster).join(AUTHORITY);
        if known.is_file() {
            return Ok(known);
        }
        let node = self.a_running_node()?;
        let command = ["cat".to_owned(), format!("{TLS_PATH}/ca.crt")];
        let done = self.exec(&node, &command, &[], STATUS_WITHIN)?;
        anyhow::ensure!(done.status == 0, "{node} has no certificate of the authority yet");
        self.shelf.put(&self.seeds.spec.cluster, AUTHORITY, &String::from_utf8_lossy(&done.stdout))
    }

    /// Removes everything of the cluster.
    ///
    /// # Errors
    /// When something stays.
    pub fn down(self) -> Result<()> {
        self.driver.remove()?;
        self.shelf.forget(&self.seeds.spec.cluster)
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
        let ground = addresses::ground(&seeds.spec)?;
        let prefix = ground.subnet.split_once('/').and_then(|(_, prefix)| prefix.parse().ok());
        let prefix = prefix.context("the subnet has a prefix")?;
        seeds.extras.addressing = Addressing::Static { prefix, gateway: Some(ground.gateway), nameservers: Vec::new() };
    }
    Ok(seeds)
}

fn driver_of(shelf: &Shelf, record: &Record) -> Result<Box<dyn Driver>> {
    let ground = record.ground.clone();
    Ok(match record.driver {
        DriverKind::Docker => Box::new(Docker::new(Which::Auto, ground, &record.image, record.memory)?),
        DriverKind::Qemu => {
            Box::new(Virtual::new(&shelf.folder(&ground.cluster), ground, &record.image, record.memory))
        }
    })
}
