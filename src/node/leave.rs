//! A node leaves its cluster for good, so that the others need not find out that it is gone.

use super::{etcd::RangeRequest, init::Node, log, peers::Material, state::State, units};
use crate::{
    error::Fault,
    exec::Run,
    spec::scope::{client_url, peer_url},
};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// The units that go, in this order: clients first, the store of the cluster's truth last.
const UNITS: [&str; 6] =
    ["keepalived.service", "haproxy.service", "confd.service", "patroni.service", "pgbouncer.service", "etcd.service"];
/// How long a primary may take to hand over and stop.
const STOP_WITHIN: Duration = Duration::from_secs(150);

/// Stops the node's services in order and takes it out of Patroni's and etcd's lists. Its data stays. May be run again.
///
/// # Errors
/// When it is the last member, no other member of etcd answers, or a service does not stop.
pub fn leave(state: &State) -> Result<()> {
    let node = Node::find()?;
    let me = &node.spec.members[node.own];
    let others: Vec<_> = node.spec.members.iter().filter(|member| member.name != me.name).map(client_url).collect();
    if others.is_empty() {
        return Err(Fault::request(format!("{} is the last member of its cluster", me.name))
            .hint("stop the machine: there is nobody to tell")
            .into());
    }
    let client = Material::of_the_node().etcd(others)?;
    let members = client.members().context("asking the other members of etcd")?;
    for unit in &UNITS[..UNITS.len() - 1] {
        log::info!("leaving: stopping {unit}");
        stop(unit)?;
    }
    // Otherwise the others' front doors learn of it when the key's lease has ended.
    let key = format!("/service/{}/members/{}", state.cluster, me.name);
    client.delete(&RangeRequest::key(key)).context("taking the node out of Patroni's list")?;
    if let Some(own) = members.iter().find(|member| member.peer_urls.contains(&peer_url(me))) {
        log::info!("leaving: taking {} out of etcd", me.name);
        client.member_remove(own.id).context("taking the node out of etcd's members")?;
    }
    stop(UNITS[UNITS.len() - 1])
}

fn stop(unit: &str) -> Result<()> {
    Run::new("systemctl").args(["stop", unit]).limit(STOP_WITHIN).capture().map(drop)?;
    let now = units::show(unit)?;
    if now.active == "active" {
        return Err(Fault::work(format!("{unit} does not stop: {}", now.words())).into());
    }
    Ok(())
}
