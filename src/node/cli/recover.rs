//! The verb by which a person lets a cluster go on that does not come up again by itself.

use super::data::confirm;
use crate::{
    error::UserError,
    files::{Presence, read_text},
    log,
    model::{MANIFEST_PATH, Manifest},
    node::{
        init::{Node, postgresql_version},
        lock,
        recover::{
            act::{self, Outcome},
            look::Here,
            order::{self, Order},
            plan::{self, Refusal},
            show::{self, Report},
            window,
        },
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
};

/// The manual's page, as `pgha-node help recover` and the project have it.
const MANUAL: &str = include_str!("../../../overlays/node/RECOVERY.md");
/// The unit that makes this node a member.
const NODE_UNIT: &str = "pgha-node.service";

/// How `recover` is described.
pub fn recover_command() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("recover")
        .about("Shows what each node has when a cluster does not come up again, and lets it go on from one of them")
        .arg(flag("json", "Prints JSON").conflicts_with_all(["from-this-node", "cancel"]))
        .arg(flag(
            "from-this-node",
            "Makes this node the only member of a new etcd; its data are the cluster's from then on",
        ))
        .arg(flag("yes", "Does it without asking").requires("from-this-node"))
        .arg(flag("force", "Also where other nodes have more, or that is not known").requires("from-this-node"))
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
    let node = Node::find()?;
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
    Ok(Here::of_the_node(&node.spec, node.own, version))
}

fn look(here: &Here<'_>, json: bool) -> Result<()> {
    let (view, _) = here.view();
    let advice = plan::advise(&view);
    let done = match Order::load(&here.below(order::DONE_PATH)) {
        Presence::Present(order) => Some(order),
        Presence::Absent | Presence::Unknown(_) => None,
    };
    let report = Report { cluster: &here.spec.cluster, view: &view, advice: &advice, done: done.as_ref() };
    let text = if json { format!("{}\n", serde_json::to_string_pretty(&report.json())?) } else { report.to_string() };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn refused(refusal: &Refusal, me: &str) -> UserError {
    UserError::runtime(refusal.to_string()).hint(refusal.hint(me))
}

fn from_this_node(here: &Here<'_>, force: bool, yes: bool) -> Result<()> {
    let me = &here.me().name;
    let path = here.below(order::PATH);
    let order = match Order::load(&path).known()? {
        // It was cut off: what was confirmed then is gone on with.
        Some(order) => order,
        None => {
            let (view, contents) = here.view();
            let plan = plan::plan(&view, force).map_err(|refusal| refused(&refusal, me))?;
            confirm(yes, &show::told(&plan, me), &here.spec.cluster)?;
            act::order(here, &view, &plan, &contents, force)?
        }
    };
    // Who waits for the others waits no longer; what a service does meanwhile would be done twice.
    if units::show(NODE_UNIT)?.active != "inactive" {
        units::stop(NODE_UNIT)?;
    }
    let _held = lock::hold("recover", |who| log::info!("waiting for {who}"))?;
    order.store(&path)?;
    act::stop()?;
    // Another node that is given such an order meanwhile sees this one's.
    let window = window::open(here);
    let outcome = act::carry_out(here, order, act::stop, |text| log::info!("recovering: {text}"));
    drop(window);
    // Whatever became of it: the node goes on, with the order or without it.
    units::start(NODE_UNIT)?;
    match outcome? {
        Outcome::Done(_) => log::info!("the others join when they come; see pgha-node status"),
        Outcome::Dropped(refusal) => return Err(refused(&refusal, me).into()),
    }
    Ok(())
}

fn cancel(here: &Here<'_>) -> Result<()> {
    let path = here.below(order::PATH);
    let _held = lock::hold_now("recover")?;
    let Some(order) = Order::load(&path).known()? else {
        return Err(UserError::usage("no order was given on this node").into());
    };
    act::drop_order(here, &order)?;
    log::info!("the order is dropped; this node goes on as before: systemctl restart pgha-node");
    Ok(())
}
