//! Creates a cluster with its network and nodes; if a step fails, nothing of it is left.

use super::{
    Cluster, DriverKind, Lock, Prepared, Record, StateDir, addresses, driver_of,
    owner::fresh_creation,
    qemu::{self, QemuDriver},
    seeds_of,
};
use crate::{
    container_engine::{Engine, Which},
    document::Document,
    error::UserError,
    machine::{Accel, Qemu},
    model::timing::TimingSpec,
    progress::size,
    seed::{Seeds, with_secret},
};
use anyhow::{Result, anyhow};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// A new cluster.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its document; with no secret, it gets one. Without a document, it is one of `nodes` nodes.
    pub document: Option<Document>,
    /// Its name.
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

/// What somebody says about a cluster that may be there already.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Its document.
    pub document: Option<Document>,
    /// How many nodes.
    pub nodes: Option<usize>,
    /// The timers' preset.
    pub timing: Option<String>,
    /// What runs its nodes.
    pub driver: Option<DriverKind>,
    /// What they are made of.
    pub image: Option<String>,
    /// The most memory that each may use, in bytes.
    pub memory: Option<u64>,
}

/// What a call that makes a cluster has begun, for whoever must end the call early.
#[derive(Clone, Default)]
pub struct Making(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stage: Mutex<Stage>,
    /// Set before the stage is asked for: whoever works takes it again and again.
    over: AtomicBool,
}

impl fmt::Debug for Making {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Making")
    }
}

#[derive(Default)]
enum Stage {
    /// Nothing was made.
    #[default]
    Nothing,
    /// Something was made, which this removes.
    Begun(Box<dyn Fn() -> Result<()> + Send>),
    /// What was made is removed. Both the call itself and who interrupts it may end it, in any order.
    Undone,
    /// The cluster is whole and remembered.
    Whole,
}

impl Making {
    /// The stage, unless the call is over.
    fn stage(&self) -> Result<MutexGuard<'_, Stage>> {
        let stage = self.0.stage.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.0.over.load(Ordering::SeqCst) { Err(anyhow!("interrupted")) } else { Ok(stage) }
    }

    /// Does something, unless the call is over. Whoever ends the call waits until it is done.
    fn act<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let _stage = self.stage()?;
        act()
    }

    /// From now on, something is made that `undo` removes.
    fn begin(&self, undo: impl Fn() -> Result<()> + Send + 'static) -> Result<()> {
        *self.stage()? = Stage::Begun(Box::new(undo));
        Ok(())
    }

    /// Does the last thing, after which all stays.
    fn finish(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut stage = self.stage()?;
        act()?;
        *stage = Stage::Whole;
        Ok(())
    }

    /// There is a whole cluster already.
    ///
    /// # Errors
    /// When the call is over.
    pub fn is_whole(&self) -> Result<()> {
        self.finish(|| Ok(()))
    }

    /// Ends the call: removes what it has made of a cluster that is not complete yet.
    ///
    /// # Errors
    /// When something stays.
    pub fn end(&self) -> Result<Ended> {
        self.0.over.store(true, Ordering::SeqCst);
        let mut stage = self.0.stage.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*stage {
            Stage::Whole => return Ok(Ended::Whole),
            Stage::Nothing => return Ok(Ended::Nothing),
            Stage::Undone => return Ok(Ended::Undone),
            Stage::Begun(undo) => undo()?,
        }
        *stage = Stage::Undone;
        Ok(Ended::Undone)
    }
}

/// What a call that was ended early leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It had not made anything.
    Nothing,
    /// What it had made is gone.
    Undone,
    /// The cluster is whole, and stays.
    Whole,
}

impl Cluster {
    /// Makes a cluster's network and nodes, all switched off.
    ///
    /// # Errors
    /// A wrong request when there is one of this name already, here or in the engine, or the document is wrong; failed
    /// work when the driver cannot. Nothing of it is left then, and nothing else was touched.
    pub fn create(state_dir: &StateDir, lock: &Lock, request: Request, making: &Making) -> Result<Cluster> {
        let name = request.name.clone();
        Cluster::try_create(state_dir, lock, request, making).map_err(|error| match making.end() {
            Ok(_) => error,
            Err(left) => error.context(
                UserError::runtime(format!("not all that was made could be removed: {left:#}"))
                    .hint(format!("pgha-image cluster down {name} removes it")),
            ),
        })
    }

    fn try_create(state_dir: &StateDir, lock: &Lock, request: Request, making: &Making) -> Result<Cluster> {
        let image = match request.driver {
            DriverKind::Docker => request.image.clone(),
            DriverKind::Qemu => QemuDriver::find_image(&request.image)?,
        };
        let creation = fresh_creation()?;
        let attempt = |document: Document| -> Result<Option<Cluster>> {
            let (document, _) = with_secret(document, None)?;
            let seeds = seeds_of(request.driver, document)?;
            let record = Record {
                schema: Record::SCHEMA,
                driver: request.driver,
                image: image.clone(),
                memory: request.memory,
                network: addresses::cluster_network(&seeds.spec)?,
                creation: Some(creation.clone()),
                adopted: false,
            };
            Cluster::attempt(state_dir, lock, record, seeds, making)
        };
        if let Some(document) = request.document {
            let name = document.name.clone();
            return attempt(document)?.ok_or_else(|| {
                UserError::usage(format!("addresses that {name} names are in another network of this machine already"))
                    .hint("see `docker network inspect`; give the members and the virtual address others")
                    .into()
            });
        }
        let usual = match request.driver {
            DriverKind::Qemu if Accel::probe(&Qemu::find()?)?.accel == Accel::Tcg => "wide",
            _ => "fast",
        };
        let timing = request.timing.as_deref().unwrap_or(usual);
        let mut taken = taken(request.driver)?;
        // Ends: when no network is left, there is no document.
        loop {
            let document = addresses::document(&request.name, request.nodes, timing, &taken)?;
            if let Some(cluster) = attempt(document.clone())? {
                return Ok(cluster);
            }
            let (document, _) = with_secret(document, None)?;
            taken.push(addresses::cluster_network(&document.cluster()?.0)?.subnet);
        }
    }

    /// Makes the cluster, if its addresses are free.
    fn attempt(
        state_dir: &StateDir,
        lock: &Lock,
        record: Record,
        seeds: Seeds,
        making: &Making,
    ) -> Result<Option<Cluster>> {
        let name = &seeds.spec.cluster;
        if state_dir.has(name)? {
            return Err(UserError::usage(format!("the cluster `{name}` exists already"))
                .hint(format!(
                    "see `pgha-image cluster status {name}`, or remove it with `pgha-image cluster down {name}`"
                ))
                .into());
        }
        // Whatever is to run its nodes: the folder may be that of machines.
        qemu::vacant(&state_dir.folder(name), name)?;
        let driver = driver_of(state_dir, &record, &seeds)?;
        let cluster = Cluster { state_dir: state_dir.clone(), record, seeds, driver };
        making.act(|| cluster.driver.vacant())?;
        Ok(match cluster.make(lock, making)? {
            Prepared::Ready => Some(cluster),
            Prepared::Taken => None,
        })
    }

    /// Makes everything. What there is to undo has the creation id of this call, or lies in a folder that was not there.
    fn make(&self, lock: &Lock, making: &Making) -> Result<Prepared> {
        let (state_dir, record, seeds) = (self.state_dir.clone(), self.record.clone(), self.seeds.clone());
        let lock = lock.clone();
        making.begin(move || {
            driver_of(&state_dir, &record, &seeds)?.remove()?;
            lock.tidy();
            Ok(())
        })?;
        if making.act(|| self.driver.prepare())? == Prepared::Taken {
            return Ok(Prepared::Taken);
        }
        for own in 0..self.seeds.spec.members.len() {
            making.act(|| self.driver.create(&self.plan(own)))?;
        }
        making.finish(|| self.state_dir.store(&self.record, &self.seeds.document))?;
        Ok(Prepared::Ready)
    }

    /// Refuses wishes that the cluster, which is there, does not fulfil.
    ///
    /// # Errors
    /// A wrong request that names every difference.
    pub fn refuse_others(&self, wishes: &Wishes) -> Result<()> {
        let mut wishes = wishes.clone();
        if self.record.driver == DriverKind::Qemu {
            wishes.image = wishes.image.map(|image| QemuDriver::find_image(&image)).transpose()?;
        }
        let differences = differences(&self.record, &self.seeds, &wishes)?;
        if differences.is_empty() {
            return Ok(());
        }
        let name = &self.seeds.spec.cluster;
        let mut message = format!("the cluster `{name}` is there already, and is another than was asked for");
        differences.iter().for_each(|difference| message.push_str(&format!("\n{difference}")));
        Err(UserError::usage(message)
            .hint(format!(
                "without these options, `cluster up {name}` starts it; a changed document is taken up by `cluster update \
                 {name} FILE`; driver, image and memory stay as they are until `cluster down {name}`"
            ))
            .into())
    }
}

/// In what the cluster of `record` and `seeds` differs from what is wished for.
fn differences(record: &Record, seeds: &Seeds, wishes: &Wishes) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if let Some(document) = &wishes.document {
        let (document, _) = with_secret(document.clone(), Some(&seeds.document))?;
        if document.cluster()?.0 != seeds.spec {
            found.push(format!("--spec {}: the cluster has another document", document.name));
        }
    }
    let members = seeds.spec.members.len();
    if let Some(nodes) = wishes.nodes.filter(|nodes| *nodes != members) {
        found.push(format!("--nodes {nodes}: it has {members}"));
    }
    if let Some(timing) = &wishes.timing {
        let wished: Result<TimingSpec, _> = serde_json::from_value(timing.as_str().into());
        if !wished.is_ok_and(|wished| wished == seeds.spec.timing) {
            found.push(format!("--timing {timing}: its timers are `{}`", shown(&seeds.spec.timing)));
        }
    }
    if let Some(driver) = wishes.driver.filter(|driver| *driver != record.driver) {
        found.push(format!("--driver {driver}: its nodes run with {}", record.driver));
    }
    // Engines take a name without a tag for one with this tag.
    let tagged = |image: &str| image.strip_suffix(":latest").unwrap_or(image).to_owned();
    if let Some(image) = wishes.image.as_ref().filter(|image| tagged(image) != tagged(&record.image)) {
        found.push(format!("--image {image}: its nodes are made of {}", record.image));
    }
    if let Some(memory) = wishes.memory.filter(|memory| Some(*memory) != record.memory) {
        let had = record.memory.map_or_else(|| "has no limit".to_owned(), |had| format!("is {}", size(had)));
        found.push(format!("--memory: {} were asked for, and its nodes' memory {had}", size(memory)));
    }
    Ok(found)
}

fn shown(timing: &TimingSpec) -> String {
    let preset = format!("{:?}", timing.preset).to_lowercase();
    let bare: Result<TimingSpec, _> = serde_json::from_value(preset.as_str().into());
    if bare.is_ok_and(|bare| bare == *timing) { preset } else { format!("{preset} with changes") }
}

/// The addresses of networks that the driver cannot use.
fn taken(driver: DriverKind) -> Result<Vec<String>> {
    match driver {
        DriverKind::Docker => {
            let networks = Engine::connect(Which::Auto)?.networks()?;
            Ok(networks.into_iter().flat_map(|network| network.subnets).collect())
        }
        // Its networks are known to their own switches only.
        DriverKind::Qemu => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        progress::{Progress, Style},
        seed::Extras,
    };
    use std::{fs, sync::atomic::AtomicU32};

    const TEXT: &str = "schema: 1\ncluster: demo\nmembers: [{name: a, address: 10.0.0.11}, {name: b, address: \
                        10.0.0.12}]\nvip: {address: 10.0.0.10/24}\ntiming: fast\n";

    fn demo() -> (Record, Seeds) {
        let (document, _) = with_secret(Document::new("demo.yaml", TEXT), None).unwrap();
        let seeds = Seeds::new(document, Extras::default()).unwrap();
        let record = Record {
            schema: 2,
            driver: DriverKind::Docker,
            image: "ha-postgres".to_owned(),
            memory: None,
            network: addresses::cluster_network(&seeds.spec).unwrap(),
            creation: None,
            adopted: false,
        };
        (record, seeds)
    }

    #[test]
    fn what_is_asked_for_again_must_be_the_same() {
        let (record, seeds) = demo();
        let same = Wishes {
            document: Some(Document::new("demo.yaml", TEXT)),
            nodes: Some(2),
            timing: Some("fast".to_owned()),
            driver: Some(DriverKind::Docker),
            image: Some("ha-postgres:latest".to_owned()),
            memory: None,
        };
        assert!(differences(&record, &seeds, &Wishes::default()).unwrap().is_empty());
        assert!(differences(&record, &seeds, &same).unwrap().is_empty());
        let other = Wishes {
            document: Some(Document::new("other.yaml", TEXT.replace("fast", "wide"))),
            nodes: Some(0),
            timing: Some("quick".to_owned()),
            driver: Some(DriverKind::Qemu),
            image: Some("nope".to_owned()),
            memory: Some(100 << 20),
        };
        insta::assert_snapshot!(differences(&record, &seeds, &other).unwrap().join("\n"));
    }

    #[test]
    fn no_driver_makes_a_cluster_where_machines_are() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::at(folder.path().to_owned());
        let own = state_dir.folder("demo");
        fs::create_dir_all(own.join("qemu/pg-1")).unwrap();
        fs::write(own.join("qemu/pg-1/disk.qcow2"), "disk").unwrap();
        fs::write(own.join("cluster.yaml"), "the only copy of their secret").unwrap();
        let (record, seeds) = demo();
        let lock = Lock::take(&state_dir, "demo", "up", &Progress::new(Style::Silent)).unwrap();
        for driver in [DriverKind::Docker, DriverKind::Qemu] {
            let record = Record { driver, ..record.clone() };
            let refused = Cluster::attempt(&state_dir, &lock, record, seeds.clone(), &Making::default()).unwrap_err();
            let told = crate::error::report(&refused);
            for part in ["qemu has machines of a cluster whose record is lost", "another name", "cluster adopt demo"] {
                assert!(told.contains(part), "`{part}` is not in {told}");
            }
        }
        assert_eq!(fs::read_to_string(own.join("cluster.yaml")).unwrap(), "the only copy of their secret");
    }

    #[test]
    fn what_was_begun_is_undone_once_and_nothing_is_made_after_that() {
        let undone = Arc::new(AtomicU32::new(0));
        let making = Making::default();
        assert_eq!(making.clone().end().unwrap(), Ended::Nothing);
        assert!(making.act(|| Ok(())).is_err());

        let making = Making::default();
        let count = Arc::clone(&undone);
        let undo = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        making.begin(undo).unwrap();
        making.act(|| Ok(())).unwrap();
        assert_eq!((making.end().unwrap(), making.end().unwrap()), (Ended::Undone, Ended::Undone));
        assert_eq!(undone.load(Ordering::SeqCst), 1);
        assert!(making.act(|| Ok(())).is_err() && making.finish(|| Ok(())).is_err());

        let making = Making::default();
        let count = Arc::clone(&undone);
        let undo = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        making.begin(undo).unwrap();
        making.finish(|| Ok(())).unwrap();
        assert_eq!(making.end().unwrap(), Ended::Whole);
        assert_eq!(undone.load(Ordering::SeqCst), 1);
    }
}
