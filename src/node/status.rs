//! `pgha-node status`: the state of this node, and the reason for it.

use super::{
    agent::{
        self,
        report::{REPORT_PATH, Report},
    },
    aside,
    join::RECOVER,
    machine,
    peers::TlsCredentials,
    progress::{self, PROGRESS_PATH},
    state::{STATE_PATH, State},
    this_node, units,
};
use crate::{
    clock,
    files::read_text,
    model::{
        MANIFEST_PATH, Manifest,
        scope::{host_port, ports},
        status::{Attention, BootProgress, EtcdStatus, NodeStatus, Phase, PostgresqlStatus, ServiceStatus},
    },
};
use anyhow::{Context as _, Result};
use std::{fmt, path::Path, time::Duration};

const PATIENCE: Duration = Duration::from_secs(5);

/// Gathers the node's status; what does not answer is left out. Without `services`, only the progress of a first boot
/// that is at work is read, so that it is not slowed down.
///
/// # Errors
/// When systemd does not answer or the image's own files cannot be read.
pub fn look(services: bool) -> Result<NodeStatus> {
    let state = State::load(Path::new(STATE_PATH))?;
    let mut progress = progress::load(Path::new(PROGRESS_PATH));
    let asides = aside::list(Path::new("/")).unwrap_or_else(|error| {
        progress.warnings.push(format!("it is not known what was set aside: {error:#}"));
        Vec::new()
    });
    let complete = state.as_ref().is_some_and(|state| state.complete);
    let at_work = !complete && matches!(progress.phase, Phase::Working | Phase::Waiting);
    if at_work && !services {
        return Ok(NodeStatus { progress, complete, asides, ..NodeStatus::default() });
    }
    let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
        .with_context(|| format!("reading {MANIFEST_PATH}"))?;
    let with_service =
        manifest.overlays.iter().filter_map(|overlay| Some((&overlay.name, &overlay.service.as_ref()?.unit)));
    let (names, unit_names): (Vec<&String>, Vec<&str>) = with_service.map(|(name, unit)| (name, unit.as_str())).unzip();
    let mut units = units::show_all(&[&unit_names[..], &[agent::UNIT]].concat())?;
    let agent = units.pop().unwrap_or_default();
    let services = names.into_iter().zip(units).map(|(name, unit)| ServiceStatus {
        name: name.clone(),
        settled: unit.settled(),
        state: unit.words(),
    });
    Ok(NodeStatus {
        services: services.collect(),
        complete,
        postgresql: state.as_ref().and_then(|state| ask_patroni(state).ok()),
        etcd: state.as_ref().and_then(|state| ask_etcd(state).ok()),
        vip: vip(),
        // It is started last: before the node is ready, nobody misses it.
        attention: if state.is_some() && (progress.phase == Phase::Ready || agent.active == "active") {
            attention(&agent)
        } else {
            Vec::new()
        },
        asides,
        progress,
    })
}

/// What the agent tells. Where it does not run, what it told last may be over: then only that is told.
fn attention(unit: &units::Unit) -> Vec<Attention> {
    if unit.active == "active" {
        return Report::load(Path::new(REPORT_PATH)).attention;
    }
    let text = format!("the agent does not run: {} is {}", agent::UNIT, unit.words());
    vec![Attention::notice("agent/away", text)]
}

/// Whether this node holds its document's virtual address.
fn vip() -> Option<bool> {
    let vip = this_node::find().ok()?.spec.vip?.address.address;
    Some(machine::addresses().ok()?.iter().any(|(_, address)| *address == vip))
}

fn ask_patroni(state: &State) -> Result<PostgresqlStatus> {
    let agent = TlsCredentials::of_the_node().agent(PATIENCE)?;
    let ask = |path: &str| -> Result<serde_json::Value> {
        let url = format!("https://{}/{path}", host_port(state.address, ports::PATRONI));
        Ok(agent.get(&url).call()?.body_mut().read_json()?)
    };
    let answer = ask("patroni")?;
    // Before it runs, this node's own words are heard on its port.
    anyhow::ensure!(answer["patroni"].is_object(), "Patroni does not run");
    // What the cluster knows of this node; nothing while etcd is away.
    let cluster = ask("cluster").unwrap_or_default();
    let members = cluster["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = members.iter().find(|member| member["name"] == state.node.as_str());
    let word = |key: &str| answer[key].as_str().unwrap_or("unknown").to_owned();
    let streaming = answer["replication_state"].as_str();
    Ok(PostgresqlStatus {
        role: word("role"),
        state: streaming.map_or_else(|| word("state"), ToOwned::to_owned),
        synchronous: own.is_some_and(|own| own["role"] == "sync_standby" || own["role"] == "quorum_standby"),
        lag: own.and_then(|own| own["lag"].as_u64()),
        timeline: answer["timeline"].as_u64(),
        pending_restart: answer["pending_restart"].as_bool().unwrap_or(false),
    })
}

fn ask_etcd(state: &State) -> Result<EtcdStatus> {
    let endpoint = format!("https://{}", host_port(state.address, ports::ETCD_CLIENT));
    let client = TlsCredentials::of_the_node().etcd(vec![endpoint.clone()])?;
    let alone = EtcdStatus { leader: None, members: (0, state.etcd.members.len()), alarms: Vec::new() };
    let leader = match client.status(&endpoint) {
        Ok(status) if status.leader == 0 => return Ok(alone),
        Ok(status) => status.leader,
        Err(error) if error.is_leaderless() => return Ok(alone),
        Err(error) => return Err(error.into()),
    };
    let members = client.members()?;
    Ok(EtcdStatus {
        leader: members.iter().find(|member| member.id == leader).map(|member| member.name.clone()),
        members: (members.iter().filter(|member| !member.client_urls.is_empty()).count(), members.len()),
        alarms: client.alarms()?.into_iter().map(|alarm| alarm.kind).collect(),
    })
}

/// The status in lines, for people.
#[derive(Debug)]
pub struct Lines<'a>(pub &'a NodeStatus);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        let BootProgress { phase, step, reason, cluster, node, warnings, .. } = &status.progress;
        let known = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        writeln!(f, "node        {} of cluster {}", known(node), known(cluster))?;
        writeln!(
            f,
            "first boot  {}{}",
            phase.word(),
            if step.is_empty() { String::new() } else { format!(": {step}") }
        )?;
        for line in reason.lines() {
            writeln!(f, "            {line}")?;
        }
        for warning in warnings.iter().flat_map(|warning| warning.lines()) {
            writeln!(f, "warning     {warning}")?;
        }
        if let Some(postgresql) = &status.postgresql {
            let restart = if postgresql.pending_restart { ", new parameters wait for a restart" } else { "" };
            let timeline = postgresql.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
            let synchronous = if postgresql.synchronous { "synchronous " } else { "" };
            writeln!(f, "postgresql  {synchronous}{}, {}{timeline}{restart}", postgresql.role, postgresql.state)?;
        }
        if let Some(etcd) = &status.etcd {
            match &etcd.leader {
                Some(leader) => {
                    let (started, all) = etcd.members;
                    let alarms: String = etcd.alarms.iter().map(|alarm| format!(", alarm {alarm}")).collect();
                    writeln!(f, "etcd        {started} of {all} members started, {leader} leads{alarms}")?;
                }
                None => writeln!(
                    f,
                    "etcd        no leader: there is no quorum of its members, and the database takes no writes\n            \
                     If those that are missing cannot come back: {RECOVER}"
                )?,
            }
        }
        if let Some(holds) = status.vip {
            writeln!(f, "vip         {}", if holds { "here" } else { "elsewhere" })?;
        }
        for Attention { text, since, .. } in &status.attention {
            let since = if *since == 0 { String::new() } else { format!(" (since {})", clock::utc(*since as i64)) };
            writeln!(f, "attention   {text}{since}")?;
        }
        for aside in &status.asides {
            writeln!(f, "set aside   {}", aside::line(aside))?;
        }
        for service in &status.services {
            writeln!(f, "  {:<12}{}", service.name, service.state)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{Aside, AsideSize};

    #[test]
    fn a_person_reads_where_the_node_stands() {
        let status = NodeStatus {
            progress: BootProgress {
                phase: Phase::Waiting,
                step: "entering the cluster's etcd".into(),
                reason: "1 of 2 nodes that form the cluster are here; not yet pg-2 (no answer)".into(),
                cluster: "demo".into(),
                node: "pg-1".into(),
                warnings: vec!["an even number".into()],
                since: 0,
            },
            complete: false,
            services: vec![ServiceStatus { name: "etcd".into(), settled: false, state: "inactive (dead)".into() }],
            postgresql: Some(PostgresqlStatus {
                role: "replica".into(),
                state: "streaming".into(),
                synchronous: true,
                lag: Some(0),
                timeline: Some(3),
                pending_restart: true,
            }),
            etcd: Some(EtcdStatus { leader: Some("pg-2".into()), members: (2, 3), alarms: vec!["NOSPACE".into()] }),
            vip: Some(false),
            attention: vec![Attention {
                since: 1_795_744_500,
                ..Attention::serious("disk/full", "96 % of the disk of the databases are used")
            }],
            asides: vec![Aside {
                path: "/var/lib/postgresql/17/main.aside-20261127T010909Z-diverged".into(),
                was: "/var/lib/postgresql/17/main".into(),
                since: 1_795_741_749,
                why: "diverged".into(),
                size: AsideSize { bytes: 3 << 29, more: false },
                what: None,
                system: Some("7712652082925278041".into()),
                timeline: Some(2),
            }],
        };
        insta::assert_snapshot!(Lines(&status));
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
        assert!(!status.is_good());
    }

    #[test]
    fn a_node_is_good_unless_something_serious_is_told_of_it() {
        let ready = BootProgress { phase: Phase::Ready, ..BootProgress::default() };
        let good = NodeStatus {
            progress: ready,
            complete: true,
            services: Vec::new(),
            postgresql: None,
            etcd: None,
            vip: None,
            attention: vec![Attention::notice("members/older-document", "old")],
            asides: Vec::new(),
        };
        assert!(good.is_good());
        let alarm = EtcdStatus { leader: Some("pg-1".into()), members: (3, 3), alarms: vec!["NOSPACE".into()] };
        assert!(!NodeStatus { etcd: Some(alarm), ..good.clone() }.is_good());
        assert!(!NodeStatus { attention: vec![Attention::serious("disk/full", "full")], ..good }.is_good());
    }

    #[test]
    fn an_agent_that_does_not_run_tells_nothing_but_that() {
        let dead = units::Unit { active: "failed".into(), sub: "failed".into(), ..units::Unit::default() };
        let told = attention(&dead);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].text, "the agent does not run: pgha-agent.service is failed (failed)");
        assert!(!told[0].serious, "everything else works without it");
    }

    #[test]
    fn a_node_without_a_quorum_is_not_ready_and_says_so() {
        let with_leader = |leader: Option<&str>| NodeStatus {
            progress: BootProgress { phase: Phase::Ready, ..BootProgress::default() },
            complete: true,
            services: Vec::new(),
            postgresql: None,
            etcd: Some(EtcdStatus { leader: leader.map(ToOwned::to_owned), members: (3, 3), alarms: Vec::new() }),
            vip: None,
            attention: Vec::new(),
            asides: Vec::new(),
        };
        assert!(with_leader(Some("pg-2")).is_good());
        let alone = with_leader(None);
        assert!(!alone.is_good());
        let text = Lines(&alone).to_string();
        assert!(text.contains("no quorum") && text.contains("pgha-node recover"), "{text}");
    }
}
