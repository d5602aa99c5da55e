//! `pgha-node recover`: a person lets a cluster continue that does not start again by itself.

use super::data::confirm;
use crate::{
    clock,
    error::UserError,
    files::{Presence, read_text},
    log,
    model::{
        MANIFEST_PATH, Manifest, Node,
        status::{BootProgress, Phase},
    },
    node::{
        lock,
        progress::{self, PROGRESS_PATH},
        recover::{
            act,
            look::Here,
            order::{self, RecoveryOrder},
            plan::{self, Refusal},
            show::{self, Report},
        },
        this_node::{self, postgresql_version},
        units,
    },
};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, Command};
use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The manual's page, as `pgha-node help recover` and the project have it.
const MANUAL: &str = include_str!("../../../overlays/node/RECOVERY.md");
/// The unit that makes this node a member.
const NODE_UNIT: &str = "pgha-node.service";
/// How long that may be away: systemd starts it again five seconds after it has failed.
const RUNS_WITHIN: Duration = Duration::from_secs(30);
/// How long it may be unknown how an order stands, as its files cannot be read.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked how far an order is.
const PAUSE: Duration = Duration::from_millis(300);

/// How `recover` is described.
pub fn recover_command() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("recover")
        .about("Shows what each node has when a cluster does not start again, and lets it continue from one of them")
        .arg(flag("json", "Prints JSON").conflicts_with_all(["from-this-node", "cancel"]))
        .arg(flag(
            "from-this-node",
            "Makes this node the only member of a new etcd; its data are the cluster's from then on",
        ))
        .arg(flag("yes", "Does not ask for confirmation").requires("from-this-node"))
        .arg(flag("force", "Also if other nodes have more, or if that is unknown").requires("from-this-node"))
        .arg(
            flag("cancel", "Drops an order that was given here and is not carried out")
                .conflicts_with("from-this-node"),
        )
        .after_help(
            "Without a flag it changes nothing and may be run at any time. The whole manual: pgha-node recover --help",
        )
        .after_long_help(MANUAL)
}

/// Runs `recover`.
///
/// # Errors
/// When the arguments are wrong, the order is refused, or a step of it fails.
pub fn recover(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = recover_command().try_get_matches_from(arguments)?;
    let node = this_node::find()?;
    let here = here_of(&node)?;
    if matches.get_flag("cancel") {
        cancel(&here)?;
    } else if matches.get_flag("from-this-node") {
        from_this_node(&here, matches.get_flag("force"), matches.get_flag("yes"))?;
    } else {
        look(&here, matches.get_flag("json"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn here_of(node: &Node) -> Result<Here<'_>> {
    let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
        .with_context(|| format!("reading {MANIFEST_PATH}"))?;
    let version = postgresql_version(&manifest)?.ok_or_else(|| UserError::usage("this image has no PostgreSQL"))?;
    Ok(Here::of_the_node(node, version))
}

fn look(here: &Here<'_>, json: bool) -> Result<()> {
    let (view, _) = here.view();
    let advice = plan::advise(&view);
    let known = |path: &str| match RecoveryOrder::load(&here.below(path)) {
        Presence::Present(order) => Some(order),
        Presence::Absent | Presence::Unknown(_) => None,
    };
    let (done, dropped) = (known(order::DONE_PATH), known(order::DROPPED_PATH));
    let is_last = |dropped: &&RecoveryOrder| done.as_ref().is_none_or(|done| done.time < dropped.time);
    let dropped = dropped.as_ref().filter(is_last);
    let report =
        Report { cluster: &here.node.spec.cluster, view: &view, advice: &advice, done: done.as_ref(), dropped };
    let text = if json { format!("{}\n", serde_json::to_string_pretty(&report.json())?) } else { report.to_string() };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn refused(refusal: &Refusal, me: &str) -> UserError {
    UserError::runtime(refusal.to_string()).hint(refusal.hint(me))
}

/// Gives the order, which `pgha-node init` carries out: a connection that breaks off in the middle interrupts nothing.
fn from_this_node(here: &Here<'_>, force: bool, yes: bool) -> Result<()> {
    let began = now();
    let order = match RecoveryOrder::load(&here.below(order::PATH)).known()? {
        Some(order) => {
            log::info!("an order was given here before ({}): it is continued", clock::utc(order.time));
            order
        }
        None => {
            let (view, contents) = here.view();
            let plan = plan::plan(&view, force).map_err(|refusal| refused(&refusal, &here.me().name))?;
            let told = show::told(&plan, &here.me().name);
            if yes {
                write!(io::stderr(), "{told}")?;
            }
            confirm(yes, &told, &here.node.spec.cluster)?;
            act::order(here, &view, &plan, &contents, force)?
        }
    };
    give(here, &order)?;
    follow(here, &order, began)
}

/// Writes the order down and lets `pgha-node init` begin again, which finds it.
fn give(here: &Here<'_>, order: &RecoveryOrder) -> Result<()> {
    stop_init()?;
    let write = || {
        let _held = lock::hold("recover", |who| log::info!("waiting for {who}"))?;
        order.store(&here.below(order::PATH))
    };
    let given = write();
    // Whatever became of it: the node goes on, with the order or without it.
    units::start(NODE_UNIT)?;
    given
}

/// Who waits for the others waits no longer. It may be stopped anywhere.
fn stop_init() -> Result<()> {
    if units::show(NODE_UNIT)?.active != "inactive" {
        units::stop(NODE_UNIT)?;
    }
    Ok(())
}

/// How an order stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It is not carried out yet.
    Given,
    /// It is carried out.
    Done,
    /// It is dropped; why.
    Dropped(String),
}

/// How the order for `incarnation` stands, by the files that `load` reads.
fn standing<E>(
    mut load: impl FnMut(&str) -> Result<Option<RecoveryOrder>, E>,
    incarnation: &str,
) -> Result<Standing, E> {
    let mut load = |path| Ok(load(path)?.filter(|order| order.incarnation == incarnation));
    if load(order::DONE_PATH)?.is_some() {
        return Ok(Standing::Done);
    }
    if load(order::PATH)?.is_some() {
        return Ok(Standing::Given);
    }
    // It becomes the order that is done by a rename, which may lie between the two looks.
    if load(order::DONE_PATH)?.is_some() {
        return Ok(Standing::Done);
    }
    let dropped = load(order::DROPPED_PATH)?.and_then(|order| order.dropped);
    Ok(Standing::Dropped(dropped.unwrap_or_else(|| "it is not there any more".to_owned())))
}

/// Tells how the order is carried out, until it is, or is dropped, or fails.
fn follow(here: &Here<'_>, order: &RecoveryOrder, began: u64) -> Result<()> {
    let stays = "the order stays, and is gone on with by itself. How it stands: pgha-node recover. To drop it: pgha-node \
                 recover --cancel";
    let (mut told, mut ran, mut known) = (String::new(), Instant::now(), Instant::now());
    loop {
        match standing(|path| RecoveryOrder::load(&here.below(path)).known(), &order.incarnation) {
            Ok(Standing::Done) => {
                log::info!("the cluster goes on from this node, and the others join when they come: pgha-node status");
                return Ok(());
            }
            Ok(Standing::Dropped(why)) => {
                return Err(UserError::runtime(format!("the order is dropped, and nothing has changed: {why}"))
                    .hint("see `pgha-node recover`")
                    .into());
            }
            Ok(Standing::Given) => known = Instant::now(),
            // Another process writes these files: the next look may tell.
            Err(_) if known.elapsed() < KNOWN_WITHIN => {}
            Err(error) => return Err(UserError::runtime(error.message).hint(stays).into()),
        }
        let BootProgress { phase, step, reason, since, .. } = progress::load(Path::new(PROGRESS_PATH));
        let text = if reason.is_empty() { step } else { format!("{step}: {reason}") };
        if since >= began && text != told {
            if matches!(phase, Phase::Failed | Phase::Refused) {
                return Err(UserError::runtime(text).hint(stays).into());
            }
            log::info!("{text}");
            told = text;
        }
        if units::show(NODE_UNIT)?.active == "active" {
            ran = Instant::now();
        }
        if ran.elapsed() > RUNS_WITHIN {
            return Err(UserError::runtime(format!("{NODE_UNIT} does not run")).hint(stays).into());
        }
        thread::sleep(PAUSE);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn cancel(here: &Here<'_>) -> Result<()> {
    let path = here.below(order::PATH);
    let load = || -> Result<RecoveryOrder> {
        let none = || UserError::usage("there is no order on this node that is not carried out");
        Ok(RecoveryOrder::load(&path).known()?.ok_or_else(none)?)
    };
    load()?;
    stop_init()?;
    let dropping = || {
        let _held = lock::hold("recover", |who| log::info!("waiting for {who}"))?;
        act::drop_order(here, load()?, "a person dropped it")
    };
    let dropped = dropping();
    units::start(NODE_UNIT)?;
    dropped?;
    log::info!("the order is dropped, and this node goes on as before: pgha-node status");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(incarnation: &str, dropped: Option<&str>) -> RecoveryOrder {
        let json = serde_json::json!({"schema": 1, "cluster": "demo", "identity": "a1", "node": "pg-1", "time": 7,
            "force": false, "accepts": [], "phase": "made", "incarnation": incarnation, "system": null, "keys": true,
            "newest": 1, "replaces": [], "dropped": dropped});
        serde_json::from_value(json).unwrap()
    }

    /// How the order `1` stands where each look finds the next of `looks`: a file, and which order is in it.
    fn seen(looks: &[(&str, Option<RecoveryOrder>)]) -> Standing {
        let mut looks = looks.iter();
        let look = |path: &str| {
            let (expected, found) = looks.next().unwrap();
            assert_eq!(path, *expected);
            Ok::<_, UserError>(found.clone())
        };
        standing(look, "1").unwrap()
    }

    #[test]
    fn an_order_that_is_done_between_two_looks_is_done() {
        let this = || Some(order("1", None));
        assert_eq!(seen(&[(order::DONE_PATH, this())]), Standing::Done);
        let other = || Some(order("2", None));
        assert_eq!(seen(&[(order::DONE_PATH, other()), (order::PATH, this())]), Standing::Given);
        assert_eq!(seen(&[(order::DONE_PATH, None), (order::PATH, None), (order::DONE_PATH, this())]), Standing::Done);
        let gone = [(order::DONE_PATH, None), (order::PATH, other()), (order::DONE_PATH, None)];
        let dropped = [&gone[..], &[(order::DROPPED_PATH, Some(order("1", Some("a person dropped it"))))]].concat();
        assert_eq!(seen(&dropped), Standing::Dropped("a person dropped it".to_owned()));
        let nowhere = [&gone[..], &[(order::DROPPED_PATH, other())]].concat();
        assert_eq!(seen(&nowhere), Standing::Dropped("it is not there any more".to_owned()));
        let unknown: Result<Standing, &str> = standing(|_| Err("a disk"), "1");
        assert_eq!(unknown, Err("a disk"), "that does not end the order");
    }
}
