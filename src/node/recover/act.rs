//! Carries an order out: small steps, each of which may be cut off and begun again.
//!
//! Until the new incarnation is renamed into its place, nobody else sees anything of it, and the order can be dropped: the
//! data are as they were, but that the database may have got a timeline of its own. From then on it is the cluster.

use super::{
    branch::Ground,
    keys::{Beginning, Contents, Names, Origin, Recovered},
    look::Here,
    order::{self, Order, Phase},
    plan::{self, Etcd, Plan, Refusal, View},
    timeline::History,
};
use crate::{
    clock,
    error::UserError,
    files::{Presence, sync_folder, write_private},
    log,
    model::{
        keys::Keys,
        scope::{EtcdStart, peer_url},
    },
    node::{
        aside,
        etcd_data::{EtcdData, Ids},
        join::Begun,
        state::{STATE_PATH, State},
        units,
    },
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Who reads etcd, runs the database or is etcd: stopped in this order.
const UNITS: [&str; 4] = ["pgha-agent.service", "confd.service", "patroni.service", "etcd.service"];
/// Where the sockets of a server are that nobody reaches.
const SOCKETS: &str = "/run/pgha/recover";

/// What became of an order.
#[derive(Debug)]
pub enum Outcome {
    /// The cluster goes on from this node.
    Done(Box<Order>),
    /// It was dropped, and why.
    Dropped(Refusal),
}

/// The order that follows from a plan.
///
/// # Errors
/// When the system has no random numbers.
pub fn order(here: &Here<'_>, view: &View, plan: &Plan, contents: &Contents, force: bool) -> Result<Order> {
    let names = Names(&here.spec.cluster);
    let mut replaces = contents.recovered(names).map(|recovered| recovered.replaces).unwrap_or_default();
    let clusters = view.nodes.iter().filter_map(|node| match &node.etcd {
        Etcd::Present { cluster, .. } => cluster.clone(),
        Etcd::Absent | Etcd::Unknown { .. } => None,
    });
    for cluster in clusters {
        if !replaces.contains(&cluster) {
            replaces.push(cluster);
        }
    }
    Ok(Order {
        schema: 1,
        cluster: here.spec.cluster.clone(),
        identity: Keys::new(here.spec).identity(),
        node: here.me().name.clone(),
        time: now(),
        force,
        phase: Phase::Ordered,
        incarnation: draw()?,
        system: plan.database.as_ref().map(|copy| copy.reach.system.clone()),
        keys: plan.keys,
        newest: plan.newest,
        replaces,
        number: None,
        branch: None,
        ids: None,
    })
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

/// 128 random bits in hexadecimal digits.
fn draw() -> Result<String> {
    let mut random = [0_u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}

/// Stops what uses the data, and waits until it has stopped.
///
/// # Errors
/// When a service does not stop.
pub fn stop() -> Result<()> {
    for unit in UNITS {
        let now = units::show(unit)?;
        if matches!(now.active.as_str(), "inactive" | "failed" | "") {
            continue;
        }
        log::info!("recovering: stopping {unit}");
        units::stop(unit)?;
        let now = units::show(unit)?;
        if now.active == "active" {
            return Err(UserError::runtime(format!("{unit} does not stop: {}", now.words())).into());
        }
    }
    Ok(())
}

/// Goes on with an order that was cut off, if there is one.
///
/// # Errors
/// When a step of it fails; it is tried again then.
pub fn go_on(here: &Here<'_>, tell: impl FnMut(&str)) -> Result<()> {
    let Some(order) = Order::load(&here.below(order::PATH)).known()? else { return Ok(()) };
    match carry_out(here, order, stop, tell)? {
        Outcome::Done(_) => {}
        Outcome::Dropped(refusal) => log::warning!("the order to go on from this node is dropped: {refusal}"),
    }
    Ok(())
}

/// Carries an order out, from where it stands. `stop` stops what uses the data; `tell` is told what is being done.
///
/// # Errors
/// When a step fails; the order stays, and is gone on with when this is called again.
pub fn carry_out(
    here: &Here<'_>,
    mut order: Order,
    stop: impl FnOnce() -> Result<()>,
    mut tell: impl FnMut(&str),
) -> Result<Outcome> {
    let path = here.below(order::PATH);
    tell("stopping the services of this node");
    stop()?;
    if !is_in_place(here, &order) {
        tell("looking at the other nodes once more");
        let (view, contents) = here.view();
        // What has changed since the order was given may be what it was not given for.
        let plan = match plan::plan(&view, order.force) {
            Ok(plan) => plan,
            Err(refusal) => {
                drop_order(here, &order)?;
                return Ok(Outcome::Dropped(refusal));
            }
        };
        if order.phase == Phase::Ordered {
            if order.keys && !plan.keys {
                bail!("etcd's keys could be read when the order was given, and cannot be read now: {:?}", view.keys);
            }
            read(here, &order, &contents)?;
            advance(&mut order, Phase::Read, &path)?;
        }
        if order.phase == Phase::Read {
            if order.system.is_some() {
                tell("recovering the database to the end of its WAL, on a timeline of its own");
                branch(here, &mut order, &path)?;
            }
            advance(&mut order, Phase::Branched, &path)?;
        }
        if order.phase == Phase::Branched {
            tell("founding a new incarnation of etcd with this node as its only member");
            order.ids = Some(make(here, &order)?);
            advance(&mut order, Phase::Made, &path)?;
        }
        tell("putting the new incarnation in its place");
        place(here, &order)?;
    }
    remember(here, &order)?;
    order::retire(&here.below(order::KEYS_PATH), None)?;
    order::retire(&path, Some(&here.below(order::DONE_PATH)))?;
    log::warning!("the cluster goes on from this node, by a person's order of {}", clock::utc(order.time));
    Ok(Outcome::Done(Box::new(order)))
}

fn advance(order: &mut Order, phase: Phase, path: &Path) -> Result<()> {
    order.phase = phase;
    order.store(path)
}

/// Drops an order whose incarnation is not in its place.
///
/// # Errors
/// When it is in place, or the disk fails.
pub fn drop_order(here: &Here<'_>, order: &Order) -> Result<()> {
    if is_in_place(here, order) {
        return Err(UserError::usage("the order is carried out: the cluster goes on from this node").into());
    }
    let made = made_in(here, order);
    if Presence::of(&made).known()?.is_some() {
        aside::set_aside(&made, "dropped")?;
    }
    order::retire(&here.below(order::KEYS_PATH), None)?;
    order::retire(&here.below(order::PATH), None)
}

/// Whether the new incarnation is in its place.
fn is_in_place(here: &Here<'_>, order: &Order) -> bool {
    order.ids.is_some_and(|ids| EtcdData::look(&here.etcd_data()) == EtcdData::Data(ids))
}

/// Where the new incarnation is made.
fn made_in(here: &Here<'_>, order: &Order) -> PathBuf {
    here.etcd_data().with_file_name(format!("recovered-{}", order.incarnation))
}

/// Writes down what etcd has kept.
fn read(here: &Here<'_>, order: &Order, contents: &Contents) -> Result<()> {
    let contents = if order.keys { contents.clone() } else { Contents::default() };
    write_private(&here.below(order::KEYS_PATH), &serde_json::to_string_pretty(&contents)?)
}

fn branch(here: &Here<'_>, order: &mut Order, path: &Path) -> Result<()> {
    let ground = Ground { data: here.data(), programs: here.programs(), sockets: here.below(SOCKETS) };
    let number = match order.number {
        Some(number) => number,
        None => {
            let number = ground.number(order.newest)?;
            order.number = Some(number);
            order.store(path)?;
            number
        }
    };
    order.branch = Some(ground.branch(number)?);
    Ok(())
}

/// Makes the new incarnation of etcd, beside its place.
fn make(here: &Here<'_>, order: &Order) -> Result<Ids> {
    let made = made_in(here, order);
    if Presence::of(&made).known()?.is_some() {
        aside::set_aside(&made, "unfinished")?;
    }
    let path = here.below(order::KEYS_PATH);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let old: Contents = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let database = match (&order.system, &order.branch) {
        (Some(system), Some(branch)) => {
            let history: History = branch.history.clone();
            Some(Origin { system: system.clone(), timeline: branch.timeline, history })
        }
        (None, _) => None,
        (Some(_), None) => bail!("the order names a database and not its timeline"),
    };
    let recovered = Recovered {
        node: order.node.clone(),
        time: order.time,
        incarnation: order.incarnation.clone(),
        replaces: order.replaces.clone(),
        database,
    };
    let entries = Beginning { cluster: &order.cluster, recovered: &recovered }.entries(&old)?;
    let url = peer_url(here.me());
    here.private_etcd()?.found(&made, &order.token(), (&order.node, &url), &entries)
}

/// Sets etcd's old data aside and puts the new incarnation in its place.
fn place(here: &Here<'_>, order: &Order) -> Result<()> {
    let (data, made) = (here.etcd_data(), made_in(here, order));
    if Presence::of_folder(&data).known()?.is_some() {
        aside::set_aside(&data, "replaced")?;
    }
    fs::rename(&made, &data).with_context(|| format!("putting {} in its place", made.display()))?;
    sync_folder(data.parent().unwrap_or(Path::new("/")))?;
    if !is_in_place(here, order) {
        bail!("etcd's data in {} are not those of the new incarnation", data.display());
    }
    Ok(())
}

/// Makes this node remember how its member of etcd began.
fn remember(here: &Here<'_>, order: &Order) -> Result<()> {
    let path = here.below(STATE_PATH);
    let start =
        EtcdStart { existing: false, token: order.token(), members: vec![(order.node.clone(), peer_url(here.me()))] };
    let state = State::load(&path)?.filter(|state| state.identity == order.identity);
    let state = state.unwrap_or_else(|| State::new(here.spec, here.own, start.clone()));
    state.begin(Begun { start, ids: order.ids, seen: true }).named(here.spec, here.own).store(&path)
}

#[cfg(test)]
mod tests;
