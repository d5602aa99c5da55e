//! Keeps etcd's leader off the primary's node.
//!
//! A new etcd leader starts every lease afresh. Were the lost primary's node also etcd's leader, the others would wait
//! for an election and then for a whole lease rather than for the rest of one.

use super::{peers::TlsCredentials, state::State};
use crate::{
    etcd::Client,
    log,
    model::scope::{host_port, ports},
};
use anyhow::{Context as _, Result};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);

/// Gives etcd's leadership to another member if this node has it and PostgreSQL's primary too.
///
/// # Errors
/// When Patroni or etcd does not answer.
pub fn move_away(state: &State) -> Result<()> {
    let credentials = TlsCredentials::of_the_node();
    let primary = format!("https://{}/primary", host_port(state.address, ports::PATRONI));
    if credentials.agent(PATIENCE)?.get(&primary).call().context("asking Patroni")?.status() != 200 {
        return Ok(());
    }
    let endpoint = format!("https://{}", host_port(state.address, ports::ETCD_CLIENT));
    let client = credentials.etcd(vec![endpoint.clone()])?;
    let status = client.status(&endpoint)?;
    if status.leader == 0 || status.leader != status.header.member_id {
        return Ok(());
    }
    let Some(target) = successor(&client, status.leader)? else { return Ok(()) };
    client.move_leader(&endpoint, target)?;
    log::info!("moved etcd's leader off the primary, to the member {target:x}");
    Ok(())
}

/// The member with a vote that answers and has come furthest.
fn successor(client: &Client, leader: u64) -> Result<Option<u64>> {
    let members = client.members()?;
    let others = members.iter().filter(|member| member.id != leader && !member.is_learner);
    let answering = others.filter_map(|member| {
        let status = client.status(member.client_urls.first()?).ok()?;
        (status.leader == leader).then_some((status.raft_index, member.id))
    });
    Ok(answering.max().map(|(_, id)| id))
}
