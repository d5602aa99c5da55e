//! Carries an order out in small steps, each of which may be interrupted and repeated.
//!
//! Until the new incarnation gets its place, nobody else sees anything of it, and the order can be dropped: the data are as
//! they were, but that the database may have got a timeline of its own, on which nothing was written. It gets its place by
//! one exchange of names, so that there is no moment between. From then on it is the cluster.

use super::{
    branch::{Branch, StoppedDatabase},
    keys::{Beginning, Contents, Names},
    lineage::{self, Lineage},
    look::{Here, READ_WITHIN},
    order::{self, Phase, RecoveryOrder},
    plan::{self, Database, Etcd, Plan, Refusal, Remark, View},
    window,
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
        peers::DiscoveryListener,
        state::{STATE_PATH, State},
        units,
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Who reads etcd, runs the database or is etcd: stopped in this order.
const UNITS: [&str; 4] = ["pgha-agent.service", "confd.service", "patroni.service", "etcd.service"];
/// Where the sockets of a server are that nobody reaches.
const SOCKETS: &str = "/run/pgha/recover";
/// How long a node that has answered may be silent before it is taken for one that does not answer: its services may be
/// changing places.
const SILENT_WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);

/// What became of an order.
#[derive(Debug)]
pub enum Outcome {
    /// The cluster goes on from this node.
    Done(Box<RecoveryOrder>),
    /// It was dropped, and why.
    Dropped(Refusal),
}

/// The order that follows from a plan.
///
/// # Errors
/// When the system has no random numbers.
pub fn order(here: &Here<'_>, view: &View, plan: &Plan, contents: &Contents, force: bool) -> Result<RecoveryOrder> {
    let names = Names(&here.node.spec.cluster);
    let lineages = view.nodes.iter().filter_map(|node| node.lineage.as_ref());
    let lineages = lineages.flat_map(|known| known.recovered.replaces.iter().chain([&known.cluster]).cloned());
    let clusters = view.nodes.iter().filter_map(|node| match &node.etcd {
        Etcd::Present { cluster, .. } => cluster.clone(),
        Etcd::Absent | Etcd::Unknown { .. } => None,
    });
    let mut replaces = contents.recovered(names).map(|recovered| recovered.replaces).unwrap_or_default();
    for cluster in lineages.chain(clusters) {
        if !replaces.contains(&cluster) {
            replaces.push(cluster);
        }
    }
    Ok(RecoveryOrder {
        schema: 1,
        cluster: here.node.spec.cluster.clone(),
        identity: Keys::new(&here.node.spec).identity(),
        node: here.me().name.clone(),
        time: now(),
        force,
        accepts: plan.doubtful(),
        phase: Phase::Ordered,
        incarnation: draw()?,
        system: plan.database.as_ref().map(|copy| copy.reach.system.clone()),
        keys: plan.keys,
        newest: plan.newest,
        replaces,
        number: None,
        since: None,
        branch: None,
        ids: None,
        dropped: None,
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

/// Goes on with an order, if there is one: it was given, or cut off. Others see it through `window` meanwhile.
///
/// # Errors
/// When a step of it fails; it is tried again then.
pub fn go_on(here: &Here<'_>, window: &mut Option<DiscoveryListener>, tell: impl FnMut(&str)) -> Result<()> {
    let Some(order) = RecoveryOrder::load(&here.below(order::PATH)).known()? else { return Ok(()) };
    // Patroni may have the port.
    stop()?;
    if window.is_none() {
        let open = window::open(here).context("another node that is given such an order could not see this node's");
        *window = Some(open?);
    }
    match carry_out(here, order, || Ok(()), tell)? {
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
    mut order: RecoveryOrder,
    stop: impl FnOnce() -> Result<()>,
    mut tell: impl FnMut(&str),
) -> Result<Outcome> {
    let path = here.below(order::PATH);
    tell("stopping the services of this node");
    stop()?;
    if !is_in_place(here, &order)? {
        tell("looking at the other nodes once more");
        let (view, contents) = here.view();
        let plan = match speaks_against(&view, &order) {
            Ok(plan) => plan,
            Err(refusal) => return drop_for(here, order, refusal),
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
        // The steps before may have taken long.
        tell("looking at the other nodes for the last time");
        if let Err(refusal) = look_again(here, &order, &answering(&view)) {
            return drop_for(here, order, refusal);
        }
        tell("putting the new incarnation in its place");
        place(here, &order)?;
    }
    set_replaced_aside(here, &order)?;
    remember(here, &order)?;
    order::retire(&here.below(order::KEYS_PATH), None)?;
    order::retire(&path, Some(&here.below(order::DONE_PATH)))?;
    log::warning!("the cluster goes on from this node, by a person's order of {}", clock::utc(order.time));
    Ok(Outcome::Done(Box::new(order)))
}

/// The plan as it is now; what has changed since the order was given may be what it was not given for.
fn speaks_against(view: &View, order: &RecoveryOrder) -> Result<Plan, Refusal> {
    let plan = plan::plan(view, order.force)?;
    plan.beyond(&order.accepts).map_or(Ok(plan), Err)
}

/// The nodes that answer.
fn answering(view: &View) -> BTreeSet<String> {
    view.nodes.iter().filter(|node| node.silent.is_none()).map(|node| node.name.clone()).collect()
}

/// Looks at the others once more. One that has answered and does not now may be the one that the cluster goes on from in
/// this moment: its services change places then.
fn look_again(here: &Here<'_>, order: &RecoveryOrder, answered: &BTreeSet<String>) -> Result<Plan, Refusal> {
    let deadline = Instant::now() + SILENT_WITHIN;
    loop {
        let (view, _) = here.view();
        let plan = speaks_against(&view, order)?;
        if answering(&view).is_superset(answered) || Instant::now() >= deadline {
            return Ok(plan);
        }
        thread::sleep(PAUSE);
    }
}

fn drop_for(here: &Here<'_>, order: RecoveryOrder, refusal: Refusal) -> Result<Outcome> {
    drop_order(here, order, &refusal.to_string())?;
    Ok(Outcome::Dropped(refusal))
}

fn advance(order: &mut RecoveryOrder, phase: Phase, path: &Path) -> Result<()> {
    order.phase = phase;
    order.store(path)
}

/// Drops an order whose incarnation is not in its place, and remembers why.
///
/// # Errors
/// When it is in place, or that or whether the database has got its timeline is not known, or the disk fails; the order
/// stays then.
pub fn drop_order(here: &Here<'_>, order: RecoveryOrder, why: &str) -> Result<()> {
    if is_in_place(here, &order)? {
        return Err(UserError::usage("the order is carried out: the cluster goes on from this node").into());
    }
    let branch = branched(here, &order)?;
    let path = here.below(order::DROPPED_PATH);
    let earlier = RecoveryOrder::load(&path).known()?;
    let made = made_in(here, &order);
    if Presence::of(&made).known()?.is_some() {
        aside::set_aside(&made, "dropped")?;
    }
    order.dropped_for(why, branch, earlier).store(&path)?;
    order::retire(&here.below(order::KEYS_PATH), None)?;
    order::retire(&here.below(order::PATH), None)
}

/// The timeline that the database has got by an order, also where the promotion was cut off before it was written down.
/// Whoever did not know of it would take what others have more for something that a promotion has given up.
fn branched(here: &Here<'_>, order: &RecoveryOrder) -> Result<Option<Branch>> {
    let (Some(number), None) = (order.number, &order.branch) else { return Ok(order.branch.clone()) };
    let unknown = || {
        UserError::runtime(format!(
            "whether the database in {} has got timeline {number} by the order is not known: the order stays",
            here.data().display()
        ))
        .hint(
            "without it, what others have more would not be seen any more. If this node's database is not wanted: \
             `pgha-node aside make database`, and drop the order again",
        )
    };
    stopped(here).settle(number).with_context(unknown)
}

/// Whether the new incarnation is in its place.
fn is_in_place(here: &Here<'_>, order: &RecoveryOrder) -> Result<bool> {
    let Some(ids) = order.ids else { return Ok(false) };
    match EtcdData::look(&here.etcd_data()) {
        EtcdData::Data(found) => Ok(found == ids),
        EtcdData::Absent | EtcdData::Unborn => Ok(false),
        EtcdData::Unknown(why) => bail!("whether the new etcd is in its place is not known: {why}"),
    }
}

/// Where the new incarnation is made.
fn made_in(here: &Here<'_>, order: &RecoveryOrder) -> PathBuf {
    here.etcd_data().with_file_name(format!("recovered-{}", order.incarnation))
}

/// Writes down what etcd has kept.
fn read(here: &Here<'_>, order: &RecoveryOrder, contents: &Contents) -> Result<()> {
    let contents = if order.keys { contents.clone() } else { Contents::default() };
    write_private(&here.below(order::KEYS_PATH), &serde_json::to_string_pretty(&contents)?)
}

fn branch(here: &Here<'_>, order: &mut RecoveryOrder, path: &Path) -> Result<()> {
    let stopped = stopped(here);
    let number = match order.number {
        Some(number) => number,
        None => {
            let number = stopped.number(order.newest, here.node.index())?;
            order.number = Some(number);
            order.since = Some(since(here)?.unwrap_or(number));
            order.store(path)?;
            number
        }
    };
    order.branch = Some(stopped.branch(number)?);
    Ok(())
}

fn stopped(here: &Here<'_>) -> StoppedDatabase {
    StoppedDatabase { data: here.data(), programs: here.programs(), sockets: here.below(SOCKETS) }
}

/// The first of the timelines that this database got by orders that were dropped, if it is on such a one.
fn since(here: &Here<'_>) -> Result<Option<u32>> {
    let Some(dropped) = RecoveryOrder::load(&here.below(order::DROPPED_PATH)).known()? else { return Ok(None) };
    match here.database_as_it_is(READ_WITHIN) {
        Database::Present(copy) => Ok(dropped.before(&copy.reach).and(dropped.since)),
        Database::Unknown { why } | Database::Unusable { why } => bail!("how far the database has come: {why}"),
        Database::Absent => bail!("the database is not there any more"),
    }
}

/// Makes the new incarnation of etcd, beside its place.
fn make(here: &Here<'_>, order: &RecoveryOrder) -> Result<Ids> {
    let made = made_in(here, order);
    if Presence::of(&made).known()?.is_some() {
        aside::set_aside(&made, "unfinished")?;
    }
    let path = here.below(order::KEYS_PATH);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let old: Contents = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let recovered = order.recovered()?;
    let end = order.branch.as_ref().map(|branch| branch.end.position);
    let entries = Beginning { cluster: &order.cluster, recovered: &recovered, end }.entries(&old)?;
    if old.kept(Names(&order.cluster)).paused {
        log::warning!("{}", Remark::MaintenanceEnds);
    }
    let url = peer_url(here.me());
    here.private_etcd()?.found(&made, &order.token(), (&order.node, &url), &entries)
}

/// Puts the new incarnation in its place, in exchange for etcd's old data.
fn place(here: &Here<'_>, order: &RecoveryOrder) -> Result<()> {
    let (data, made) = (here.etcd_data(), made_in(here, order));
    // A link would change places, and what it leads to would not.
    aside::must_be_movable(&data)?;
    let doing = || format!("putting {} in its place", made.display());
    match Presence::of(&data).known()?.is_some() {
        true => renameat_with(CWD, &made, CWD, &data, RenameFlags::EXCHANGE).with_context(doing)?,
        false => fs::rename(&made, &data).with_context(doing)?,
    }
    sync_folder(data.parent().unwrap_or(Path::new("/")))?;
    ensure!(is_in_place(here, order)?, "etcd's data in {} are not those of the new incarnation", data.display());
    Ok(())
}

/// Sets etcd's old data aside, which the new incarnation got the place of.
fn set_replaced_aside(here: &Here<'_>, order: &RecoveryOrder) -> Result<()> {
    let old = made_in(here, order);
    let unseen = || {
        UserError::runtime(format!(
            "the new etcd is in its place, and its old data, {}, cannot be set aside: this node waits for that",
            old.display()
        ))
        .hint("move them away by hand, to a place where they are kept; the node goes on by itself then")
    };
    if Presence::of(&old).known().with_context(unseen)?.is_some() {
        aside::set_aside_as(&old, &here.etcd_data(), "replaced").with_context(unseen)?;
    }
    Ok(())
}

/// Makes this node remember how its member of etcd began.
fn remember(here: &Here<'_>, order: &RecoveryOrder) -> Result<()> {
    let ids = order.ids.context("the order does not say which etcd it made")?;
    let lineage = Lineage { cluster: format!("{:x}", ids.cluster), recovered: order.recovered()? };
    lineage.store(&here.below(lineage::PATH))?;
    let path = here.below(STATE_PATH);
    let start =
        EtcdStart { existing: false, token: order.token(), members: vec![(order.node.clone(), peer_url(here.me()))] };
    let state = State::load(&path)?.filter(|state| state.identity == order.identity);
    let state = state.unwrap_or_else(|| State::new(here.node, start.clone()));
    state.begin(Begun { start, ids: order.ids, seen: true }).named(here.node).store(&path)
}

#[cfg(test)]
mod tests;
