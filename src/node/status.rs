//! `pgha-node status`: where this node stands, and why.

use super::{
    aside::{self, Aside},
    init::Node,
    join::RECOVER,
    machine,
    peers::TlsCredentials,
    progress::{PROGRESS_PATH, Phase, Progress},
    state::{STATE_PATH, State},
    units,
};
use crate::{
    files::read_text,
    model::{
        MANIFEST_PATH, Manifest,
        scope::{host_port, ports},
    },
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::{fmt, path::Path, time::Duration};

const PATIENCE: Duration = Duration::from_secs(5);

/// Where a node stands.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// What its first boot said last.
    #[serde(flatten)]
    pub progress: Progress,
    /// Whether every service was ready once.
    pub complete: bool,
    /// Each service, in the order in which they start.
    pub services: Vec<ServiceStatus>,
    /// What Patroni says of this node.
    pub postgresql: Option<Postgresql>,
    /// The cluster's etcd.
    pub etcd: Option<Etcd>,
    /// Whether this node holds the virtual address; nothing where there is none.
    pub vip: Option<bool>,
    /// Data that were set aside.
    pub asides: Vec<Aside>,
}

/// One service.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// The overlay's name.
    pub name: String,
    /// Whether it runs, or has nothing to do here.
    pub settled: bool,
    /// How it stands.
    pub state: String,
}

/// What Patroni says of this node.
#[derive(Debug, Clone, Serialize)]
pub struct Postgresql {
    /// `primary`, `replica` …
    pub role: String,
    /// `running`, `streaming` …
    pub state: String,
    /// Whether commits wait for this replica.
    pub synchronous: bool,
    /// How far it is behind the primary, in bytes.
    pub lag: Option<u64>,
    /// The timeline.
    pub timeline: Option<u64>,
    /// Whether it waits for a restart to use new parameters.
    pub pending_restart: bool,
}

/// This node's etcd.
#[derive(Debug, Clone, Serialize)]
pub struct Etcd {
    /// The leader's name.
    pub leader: Option<String>,
    /// Members that have started, and all; without a leader how many there were when it began.
    pub members: (usize, usize),
}

impl Status {
    /// Looks at everything; what does not answer is left out. Without `services`, a first boot that is at work is not
    /// kept from it: what it says itself is all then.
    ///
    /// # Errors
    /// When systemd does not answer or the image's own files cannot be read.
    pub fn look(services: bool) -> Result<Status> {
        let state = State::load(Path::new(STATE_PATH))?;
        let mut progress = Progress::load(Path::new(PROGRESS_PATH));
        let asides = aside::list(Path::new("/")).unwrap_or_else(|error| {
            progress.warnings.push(format!("it is not known what was set aside: {error:#}"));
            Vec::new()
        });
        let complete = state.as_ref().is_some_and(|state| state.complete);
        let at_work = !complete && matches!(progress.phase, Phase::Working | Phase::Waiting);
        if at_work && !services {
            let services = Vec::new();
            return Ok(Status { progress, complete, services, postgresql: None, etcd: None, vip: None, asides });
        }
        let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
            .with_context(|| format!("reading {MANIFEST_PATH}"))?;
        let with_service =
            manifest.overlays.iter().filter_map(|overlay| Some((&overlay.name, &overlay.service.as_ref()?.unit)));
        let (names, unit_names): (Vec<&String>, Vec<&str>) =
            with_service.map(|(name, unit)| (name, unit.as_str())).unzip();
        let services = names.into_iter().zip(units::show_all(&unit_names)?).map(|(name, unit)| ServiceStatus {
            name: name.clone(),
            settled: unit.settled(),
            state: unit.words(),
        });
        Ok(Status {
            services: services.collect(),
            complete,
            postgresql: state.as_ref().and_then(|state| ask_patroni(state).ok()),
            etcd: state.as_ref().and_then(|state| ask_etcd(state).ok()),
            vip: vip(),
            asides,
            progress,
        })
    }

    /// Whether the node is ready, and all its services run, with a quorum of etcd.
    pub fn good(&self) -> bool {
        self.progress.phase == Phase::Ready
            && self.services.iter().all(|service| service.settled)
            && self.etcd.as_ref().is_none_or(|etcd| etcd.leader.is_some())
    }
}

/// Whether this node holds its document's virtual address.
fn vip() -> Option<bool> {
    let vip = Node::find().ok()?.spec.vip?.address.address;
    Some(machine::addresses().ok()?.iter().any(|(_, address)| *address == vip))
}

fn ask_patroni(state: &State) -> Result<Postgresql> {
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
    Ok(Postgresql {
        role: word("role"),
        state: streaming.map_or_else(|| word("state"), ToOwned::to_owned),
        synchronous: own.is_some_and(|own| own["role"] == "sync_standby" || own["role"] == "quorum_standby"),
        lag: own.and_then(|own| own["lag"].as_u64()),
        timeline: answer["timeline"].as_u64(),
        pending_restart: answer["pending_restart"].as_bool().unwrap_or(false),
    })
}

fn ask_etcd(state: &State) -> Result<Etcd> {
    let endpoint = format!("https://{}", host_port(state.address, ports::ETCD_CLIENT));
    let client = TlsCredentials::of_the_node().etcd(vec![endpoint.clone()])?;
    let alone = Etcd { leader: None, members: (0, state.etcd.members.len()) };
    let leader = match client.status(&endpoint) {
        Ok(status) if status.leader == 0 => return Ok(alone),
        Ok(status) => status.leader,
        Err(error) if error.is_leaderless() => return Ok(alone),
        Err(error) => return Err(error.into()),
    };
    let members = client.members()?;
    Ok(Etcd {
        leader: members.iter().find(|member| member.id == leader).map(|member| member.name.clone()),
        members: (members.iter().filter(|member| !member.client_urls.is_empty()).count(), members.len()),
    })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { phase, step, reason, cluster, node, warnings, .. } = &self.progress;
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
        if let Some(postgresql) = &self.postgresql {
            let restart = if postgresql.pending_restart { ", new parameters wait for a restart" } else { "" };
            let timeline = postgresql.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
            let synchronous = if postgresql.synchronous { "synchronous " } else { "" };
            writeln!(f, "postgresql  {synchronous}{}, {}{timeline}{restart}", postgresql.role, postgresql.state)?;
        }
        if let Some(etcd) = &self.etcd {
            match &etcd.leader {
                Some(leader) => {
                    writeln!(
                        f,
                        "etcd        {} of {} members started, {leader} leads",
                        etcd.members.0, etcd.members.1
                    )?;
                }
                None => writeln!(
                    f,
                    "etcd        no leader: there is no quorum of its members, and the database takes no writes\n            \
                     If those that are missing cannot come back: {RECOVER}"
                )?,
            }
        }
        if let Some(holds) = self.vip {
            writeln!(f, "vip         {}", if holds { "here" } else { "elsewhere" })?;
        }
        for aside in &self.asides {
            writeln!(f, "set aside   {aside}")?;
        }
        for service in &self.services {
            writeln!(f, "  {:<12}{}", service.name, service.state)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_where_the_node_stands() {
        let status = Status {
            progress: Progress {
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
            postgresql: Some(Postgresql {
                role: "replica".into(),
                state: "streaming".into(),
                synchronous: true,
                lag: Some(0),
                timeline: Some(3),
                pending_restart: true,
            }),
            etcd: Some(Etcd { leader: Some("pg-2".into()), members: (2, 3) }),
            vip: Some(false),
            asides: vec![Aside {
                path: "/var/lib/postgresql/17/main.aside-20261127T010909Z-diverged".into(),
                was: "/var/lib/postgresql/17/main".into(),
                since: 1_795_741_749,
                why: "diverged".into(),
                size: aside::Size { bytes: 3 << 29, more: false },
                what: None,
                system: Some("7712652082925278041".into()),
                timeline: Some(2),
            }],
        };
        insta::assert_snapshot!(status);
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
        assert!(!status.good());
    }

    #[test]
    fn a_node_without_a_quorum_is_not_ready_and_says_so() {
        let with_leader = |leader: Option<&str>| Status {
            progress: Progress { phase: Phase::Ready, ..Progress::default() },
            complete: true,
            services: Vec::new(),
            postgresql: None,
            etcd: Some(Etcd { leader: leader.map(ToOwned::to_owned), members: (3, 3) }),
            vip: None,
            asides: Vec::new(),
        };
        assert!(with_leader(Some("pg-2")).good());
        let alone = with_leader(None);
        assert!(!alone.good());
        let text = alone.to_string();
        assert!(text.contains("no quorum") && text.contains("pgha-node recover"), "{text}");
    }
}
