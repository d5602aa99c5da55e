//! The state of a cluster's nodes, as each of them reports it.

use super::driver::PowerState;
use crate::model::status::{NodeStatus, Phase, PostgresqlStatus};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The widest that a node's state may be in a table, in characters.
const STATE_WIDTH: usize = 60;

/// How one node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: String,
    /// Whether it runs.
    pub power: PowerState,
    /// What it says of itself, if it says something.
    pub status: Option<NodeStatus>,
}

impl View {
    fn postgresql(&self) -> Option<&PostgresqlStatus> {
        self.status.as_ref()?.postgresql.as_ref()
    }

    /// Whether its server takes writes.
    pub fn is_primary(&self) -> bool {
        self.postgresql().is_some_and(|postgresql| postgresql.role == "primary" && postgresql.state == "running")
    }

    /// Whether its server follows the primary.
    pub fn is_streaming(&self) -> bool {
        self.postgresql().is_some_and(|postgresql| postgresql.role == "replica" && postgresql.state == "streaming")
    }

    /// Whether commits wait for its server.
    pub fn is_synchronous(&self) -> bool {
        self.postgresql().is_some_and(|postgresql| postgresql.synchronous)
    }

    /// How far its server is behind the primary, in bytes.
    pub fn lag(&self) -> Option<u64> {
        self.postgresql()?.lag
    }

    /// The timeline of its server.
    pub fn timeline(&self) -> Option<u64> {
        self.postgresql()?.timeline
    }

    /// Who leads etcd, as its own member knows.
    pub fn etcd_leader(&self) -> Option<&str> {
        self.status.as_ref()?.etcd.as_ref()?.leader.as_deref()
    }

    /// How many members etcd has, as its own member knows.
    pub fn etcd_members(&self) -> Option<usize> {
        Some(self.status.as_ref()?.etcd.as_ref()?.members.1)
    }

    /// Whether it holds the virtual address.
    pub fn holds_vip(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.vip == Some(true))
    }

    /// What keeps it from being well; `None` if nothing does.
    pub fn problem(&self) -> Option<String> {
        let Some(status) = &self.status else { return Some(self.power.to_string()) };
        let progress = &status.progress;
        if progress.phase != Phase::Ready {
            let step = [progress.step.as_str(), progress.reason.as_str()];
            let step: Vec<_> = step.into_iter().filter(|text| !text.is_empty()).collect();
            return Some(format!("{}: {}", progress.phase.word(), step.join(": ").replace('\n', " ")));
        }
        if let Some(service) = status.services.iter().find(|service| !service.settled) {
            return Some(format!("{} is {}", service.name, service.state));
        }
        if status.etcd.as_ref().is_some_and(|etcd| etcd.leader.is_none()) {
            return Some("etcd has no quorum".to_owned());
        }
        match &status.postgresql {
            None => Some("Patroni does not answer".to_owned()),
            Some(_) if self.is_primary() || self.is_streaming() => None,
            Some(postgresql) => Some(format!("{} is {}", postgresql.role, postgresql.state)),
        }
    }
}

/// What keeps the cluster from being well; `None` if nothing does.
pub fn problem(views: &[View], has_vip: bool) -> Option<String> {
    let unhealthy = views.iter().find_map(|view| Some(format!("{}: {}", view.node, view.problem()?)));
    let count = |is: fn(&View) -> bool| views.iter().filter(|view| is(view)).count();
    let holders = count(View::holds_vip);
    unhealthy.or_else(|| match count(View::is_primary) {
        1 if !has_vip || holders == 1 => None,
        1 => Some(format!("the virtual address is on {holders} nodes")),
        primaries => Some(format!("there are {primaries} primaries")),
    })
}

/// A text that fits a column.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(STATE_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The nodes as a table.
pub fn table(views: &[View]) -> String {
    let head = ["NODE", "ADDRESS", "POWER", "STATE", "POSTGRESQL", "TIMELINE", "LAG", "ETCD", "VIP"];
    let mut rows = vec![head.map(str::to_owned)];
    for view in views {
        let dash = || "-".to_owned();
        let (role, timeline, lag) = match view.postgresql() {
            None => (dash(), dash(), dash()),
            Some(postgresql) => (
                format!(
                    "{}{} {}",
                    if postgresql.synchronous { "synchronous " } else { "" },
                    postgresql.role,
                    postgresql.state
                ),
                postgresql.timeline.map_or_else(dash, |timeline| timeline.to_string()),
                postgresql.lag.map_or_else(dash, |lag| format!("{lag} B")),
            ),
        };
        let etcd = view.status.as_ref().and_then(|status| status.etcd.as_ref()).map_or_else(dash, |etcd| {
            let leads = if etcd.leader.as_deref() == Some(&view.node) { " leads" } else { "" };
            format!("{}/{}{leads}", etcd.members.0, etcd.members.1)
        });
        let state = match (&view.status, view.problem()) {
            (None, _) => dash(),
            (_, None) => "ready".to_owned(),
            (_, Some(problem)) => shortened(&problem),
        };
        let vip = if view.holds_vip() { "here".to_owned() } else { dash() };
        rows.push([
            view.node.clone(),
            view.address.clone(),
            view.power.to_string(),
            state,
            role,
            timeline,
            lag,
            etcd,
            vip,
        ]);
    }
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{BootProgress, EtcdStatus};

    fn view(node: &str, role: &str, state: &str) -> View {
        let postgresql = PostgresqlStatus {
            role: role.into(),
            state: state.into(),
            synchronous: node == "pg-2",
            lag: (role == "replica").then_some(0),
            timeline: Some(1),
            pending_restart: false,
        };
        View {
            node: node.into(),
            address: "10.0.0.11".into(),
            power: PowerState::On,
            status: Some(NodeStatus {
                progress: BootProgress { phase: Phase::Ready, ..BootProgress::default() },
                postgresql: Some(postgresql),
                etcd: Some(EtcdStatus { leader: Some("pg-2".into()), members: (3, 3), alarms: Vec::new() }),
                vip: Some(node == "pg-1"),
                ..NodeStatus::default()
            }),
        }
    }

    fn three() -> Vec<View> {
        vec![
            view("pg-1", "primary", "running"),
            view("pg-2", "replica", "streaming"),
            view("pg-3", "replica", "streaming"),
        ]
    }

    #[test]
    fn a_table_shows_who_does_what() {
        let mut views = three();
        views[2].status = None;
        views[2].power = PowerState::Off;
        insta::assert_snapshot!(table(&views));
    }

    #[test]
    fn one_primary_and_one_holder_make_a_cluster_well() {
        assert_eq!(problem(&three(), true), None);
        let change = |change: fn(&mut Vec<View>)| {
            let mut views = three();
            change(&mut views);
            problem(&views, true).unwrap()
        };
        assert_eq!(change(|views| views[1].status = None), "pg-2: on");
        assert_eq!(change(|views| views[1] = view("pg-2", "primary", "running")), "there are 2 primaries");
        assert_eq!(change(|views| views[1] = view("pg-2", "replica", "starting")), "pg-2: replica is starting");
        assert_eq!(
            change(|views| views[0].status.as_mut().unwrap().vip = Some(false)),
            "the virtual address is on 0 nodes"
        );
    }
}
