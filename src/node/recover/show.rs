//! What `pgha-node recover` shows: to people, and as JSON.

use super::{
    order::RecoveryOrder,
    plan::{Advice, Choice, Database, END_THE_SPLIT, Etcd, Keys, KnownNode, Loss, Obstacle, Plan, Remark, View, plan},
    rival::Quorum,
};
use crate::clock;
use serde::Serialize;
use serde_json::json;
use std::fmt::{self, Write as _};

/// What is shown.
#[derive(Debug)]
pub struct Report<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// What is known.
    pub view: &'a View,
    /// From which node the cluster should go on.
    pub advice: &'a Advice,
    /// The last order that was carried out here.
    pub done: Option<&'a RecoveryOrder>,
    /// The last order that was dropped here.
    pub dropped: Option<&'a RecoveryOrder>,
}

impl Report<'_> {
    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        let View { me, nodes, quorums, keys, obstacle: _ } = self.view;
        // One cluster's members are nobody's quorum beside another's.
        let quorum = match quorums.as_slice() {
            [quorum] => Some(&quorum.members),
            _ => None,
        };
        let kept = match keys {
            Keys::Absent => json!({"is": "absent"}),
            Keys::Unknown(why) => json!({"is": "unknown", "why": why}),
            Keys::Read(kept) => json!({
                "is": "read",
                "system": kept.system,
                "synchronous": kept.synchronous,
                "paused": kept.paused,
                "revision": kept.revision,
            }),
        };
        let refusal = plan(self.view, false).err().map(|refusal| refusal.to_string());
        json!({
            "schema": 1,
            "cluster": self.cluster,
            "node": me,
            "nodes": nodes,
            "quorum": quorum,
            "quorums": quorums,
            "kept": kept,
            "advice": Advised::of(self.advice),
            "refusal": refusal,
            "recovered": self.done.map(|order| json!({
                "time": order.time,
                "incarnation": order.incarnation,
                "timeline": order.branch.as_ref().map(|branch| branch.end.timeline),
            })),
        })
    }
}

/// The advice, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
enum Advised<'a> {
    Quorum { members: &'a [String] },
    Clusters { clusters: &'a [Quorum], way_out: &'static str },
    Pending { node: &'a str },
    Split { nodes: Vec<&'a str> },
    From { nodes: &'a [String], order: String },
    Choose { choices: Vec<serde_json::Value> },
    NoDatabase { nodes: &'a [String] },
}

impl Advised<'_> {
    fn of(advice: &Advice) -> Advised<'_> {
        match advice {
            Advice::Quorum(members) => Advised::Quorum { members },
            Advice::Clusters(clusters) => Advised::Clusters { clusters, way_out: END_THE_SPLIT },
            Advice::Pending(node) => Advised::Pending { node },
            Advice::Split(parts) => Advised::Split { nodes: parts.iter().map(|(node, _)| node.as_str()).collect() },
            Advice::From(nodes) => {
                Advised::From { nodes, order: order_on(nodes.first().map_or("", String::as_str), false) }
            }
            Advice::Choose(choices) => {
                let choice = |Choice { node, losses, doubts }: &Choice| {
                    let doubts: Vec<String> = doubts.iter().map(Remark::to_string).collect();
                    json!({"node": node, "losses": losses, "doubts": doubts, "order": order_on(node, true)})
                };
                Advised::Choose { choices: choices.iter().map(choice).collect() }
            }
            Advice::NoDatabase(nodes) => Advised::NoDatabase { nodes },
        }
    }
}

fn order_on(node: &str, force: bool) -> String {
    format!("on {node}: pgha-node recover --from-this-node{}", if force { " --force" } else { "" })
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { me, nodes, keys, obstacle, .. } = self.view;
        writeln!(f, "cluster {}, as {me} sees it", self.cluster)?;
        for node in nodes {
            writeln!(f, "\n{}{}", node.name, if node.name == *me { " (this node)" } else { "" })?;
            show_node(f, node)?;
        }
        match keys {
            Keys::Absent => {}
            Keys::Unknown(why) => writeln!(f, "\nWhat this node's etcd has kept cannot be read: {why}")?,
            Keys::Read(kept) => {
                let system = kept.system.as_deref().unwrap_or("none yet");
                writeln!(f, "\nThis node's etcd has kept revision {}: system identifier {system}", kept.revision)?;
                if !kept.synchronous.is_empty() {
                    let names = kept.synchronous.join(", ");
                    writeln!(
                        f,
                        "As far as this node's etcd knows, each of these has every acknowledged commit: {names}."
                    )?;
                    writeln!(
                        f,
                        "If others went on without this node after that, they may have commits that are missing here."
                    )?;
                }
                if kept.paused {
                    writeln!(f, "Patroni was in maintenance mode")?;
                }
            }
        }
        if let Some(Obstacle { what, way_out }) = obstacle {
            writeln!(f, "\nNot from {me}, as it is: {what}. The way out: {way_out}")?;
        }
        if let Some(done) = self.done {
            writeln!(f, "\nThe cluster went on from this node by the order of {}", clock::utc(done.time))?;
        }
        if let Some(RecoveryOrder { time, dropped: Some(why), .. }) = self.dropped {
            writeln!(f, "\nThe order of {} to go on from this node was dropped: {why}", clock::utc(*time))?;
        }
        f.write_char('\n')?;
        self.show_advice(f)
    }
}

fn show_node(f: &mut fmt::Formatter<'_>, node: &KnownNode) -> fmt::Result {
    if let Some(why) = &node.silent {
        return writeln!(f, "  unknown     {why}");
    }
    match &node.database {
        Database::Unknown { why } => writeln!(f, "  database    not known: {why}")?,
        Database::Absent => writeln!(f, "  database    none")?,
        Database::Unusable { why } => writeln!(f, "  database    cannot be used: {why}")?,
        Database::Present(copy) => {
            let least = if copy.reach.exact { "" } else { "at least " };
            writeln!(f, "  database    {least}{}, system identifier {}", copy.reach.end, copy.reach.system)?;
            if let Some(last) = copy.last {
                writeln!(f, "              last commit or checkpoint {}", clock::utc(last))?;
            }
        }
    }
    match &node.etcd {
        Etcd::Unknown { why } => writeln!(f, "  etcd        not known: {why}")?,
        Etcd::Absent => writeln!(f, "  etcd        no data")?,
        Etcd::Present { cluster, member } => {
            let known = |id: &Option<String>| id.clone().unwrap_or_else(|| "not known".to_owned());
            write!(f, "  etcd        cluster {}", known(cluster))?;
            if member.is_some() {
                write!(f, ", member {}", known(member))?;
            }
            writeln!(f)?;
        }
    }
    if node.patroni {
        writeln!(f, "  patroni     runs{}", if node.primary { ", its server is a primary" } else { "" })?;
    }
    if let Some(lineage) = &node.lineage {
        writeln!(f, "  cluster     {}", lineage.words())?;
    }
    if let Some(order) = &node.order {
        writeln!(f, "  order       to go on from it: {order}")?;
    }
    Ok(())
}

impl Report<'_> {
    fn show_advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.advice {
            Advice::Quorum(names) => {
                return writeln!(f, "A quorum of etcd answers ({}): there is nothing to recover.", names.join(", "));
            }
            Advice::Clusters(clusters) => {
                writeln!(
                    f,
                    "ATTENTION: {} clusters of one name run, each with a quorum of its own etcd:",
                    clusters.len()
                )?;
                for Quorum { cluster, members, nodes } in clusters {
                    writeln!(f, "  {cluster}, of the members {}, on {}", members.join(", "), nodes.join(", "))?;
                }
                writeln!(f, "Each may take writes that the other has not.")?;
                return writeln!(
                    f,
                    "Where one has replaced the other by a person's order, the nodes of the old one give way by themselves \
                     within a minute. Else {END_THE_SPLIT}"
                );
            }
            Advice::Pending(node) => {
                return writeln!(
                    f,
                    "{node} has an order to go on from it. It goes on by itself; where it cannot: pgha-node recover \
                     --cancel, on {node}."
                );
            }
            Advice::Split(parts) => {
                writeln!(f, "No quorum of etcd answers, and two clusters have gone on, each without the other:")?;
                for (node, lineage) in parts {
                    writeln!(f, "  {node} is part of {}", lineage.words())?;
                }
                return writeln!(
                    f,
                    "Decide which is right, and switch the nodes of the other off. Then, on a node of the right one: \
                     pgha-node recover"
                );
            }
            Advice::From(names) => {
                let best = names.first().map_or("", String::as_str);
                writeln!(f, "No quorum of etcd answers. Nobody who answers has more than {}.", names.join(" or "))?;
                writeln!(f, "The order, if no quorum can come back:\n    {}", order_on(best, false))?;
            }
            Advice::Choose(choices) => {
                writeln!(f, "No quorum of etcd answers, and no node is known to have everything. Going on from")?;
                for Choice { node, losses, doubts } in choices {
                    writeln!(f, "  {node} gives up:")?;
                    losses.iter().try_for_each(|loss| writeln!(f, "    {loss}"))?;
                    doubts.iter().try_for_each(|doubt| writeln!(f, "    {doubt}"))?;
                    writeln!(f, "    {}", order_on(node, true))?;
                }
            }
            Advice::NoDatabase(names) if names.is_empty() => {
                writeln!(f, "No quorum of etcd answers, and nobody who answers has data.")?;
                writeln!(f, "If no node has ever had data, the cluster has not begun yet: pgha-node help form")?;
            }
            Advice::NoDatabase(names) => {
                writeln!(
                    f,
                    "No quorum of etcd answers, and nobody who answers has a usable database. etcd has data on {}.",
                    names.join(", ")
                )?;
            }
        }
        let silent: Vec<&str> =
            self.view.nodes.iter().filter(|node| node.silent.is_some()).map(|node| node.name.as_str()).collect();
        if !silent.is_empty() {
            writeln!(f, "Nothing is known of {}. {UNKNOWN}", silent.join(", "))?;
        }
        Ok(())
    }
}

/// What it means that a node does not answer.
const UNKNOWN: &str = "If one of them can come back, let it come first: it may have more. A node that comes back later \
                       joins; whatever only it has is set aside there, and is not in the cluster. If it still runs and is only \
                       cut off, switch it off first.";

/// What happens by an order, before it is confirmed.
pub fn told(plan: &Plan, me: &str) -> String {
    let mut text = String::new();
    for remark in plan.remarks.iter().filter(|remark| remark.is_warning()) {
        let _ = writeln!(text, "WARNING: {remark}.");
    }
    match &plan.database {
        Some(copy) => {
            let _ = writeln!(text, "The cluster will go on from {me}, with its database up to {}.", copy.reach.end);
        }
        None => {
            let _ = writeln!(text, "The cluster's etcd will go on from {me}.");
        }
    }
    let _ = writeln!(
        text,
        "{me} will be the only member of a new etcd; {}. The others join it when they come, with their own etcd data set \
         aside. Nobody is synchronous with {me} until one of them has caught up.",
        if plan.keys { "the keys of the old one are kept" } else { "its keys are made again" }
    );
    let list = |text: &mut String, title: &str, losses: &[&Loss]| {
        if !losses.is_empty() {
            let _ = writeln!(text, "{title}");
            for loss in losses {
                let _ = writeln!(text, "  {loss}");
            }
        }
    };
    let lost: Vec<&Loss> = plan.losses.iter().filter(|loss| !loss.given_up).collect();
    let given_up: Vec<&Loss> = plan.losses.iter().filter(|loss| loss.given_up).collect();
    list(&mut text, "Not in the cluster any more, and set aside where it is:", &lost);
    list(&mut text, "Given up by a promotion before, and set aside where it is:", &given_up);
    for remark in plan.remarks.iter().filter(|remark| !remark.is_warning()) {
        let _ = writeln!(text, "Note: {remark}.");
    }
    if !plan.unknown.is_empty() {
        let names: Vec<String> = plan.unknown.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        let _ = writeln!(text, "Nothing is known of {}. {UNKNOWN}", names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{
        database::Lsn,
        recover::{
            plan::{Copy, Kept, advise},
            timeline::{History, Place, Reach},
        },
    };

    fn node(name: &str, position: Option<u64>) -> KnownNode {
        let end = |position| Place { timeline: 1, position: Lsn(position) };
        let copy = |position| Copy {
            reach: Reach {
                system: "7712652082925278041".into(),
                end: end(position),
                exact: true,
                history: Some(History::default()),
            },
            last: Some(1_795_741_749),
        };
        let why = || "no answer".to_owned();
        KnownNode {
            name: name.to_owned(),
            silent: position.is_none().then(why),
            database: position.map_or(Database::Unknown { why: why() }, |position| Database::Present(copy(position))),
            etcd: match position {
                None => Etcd::Unknown { why: why() },
                Some(_) => Etcd::Present { cluster: Some("20f7d2aea1a7a31f".into()), member: Some("7".into()) },
            },
            patroni: false,
            primary: false,
            order: None,
            lineage: None,
        }
    }

    fn view() -> View {
        View {
            me: "pg-1".into(),
            nodes: vec![node("pg-1", Some(0x3000148)), node("pg-2", None), node("pg-3", Some(0x3000000))],
            quorums: Vec::new(),
            keys: Keys::Read(Kept {
                system: Some("7712652082925278041".into()),
                synchronous: vec!["pg-2".into()],
                paused: true,
                revision: 812,
            }),
            obstacle: None,
        }
    }

    fn shown(view: &View) -> String {
        Report { cluster: "demo", view, advice: &advise(view), done: None, dropped: None }.to_string()
    }

    fn contains(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
    }

    #[test]
    fn a_person_reads_what_each_node_has_and_the_order_to_give() {
        let view = view();
        contains(
            &shown(&view),
            &[
                "cluster demo, as pg-1 sees it\n\npg-1 (this node)\n",
                "  database    0/3000148 on timeline 1, system identifier 7712652082925278041\n",
                "              last commit or checkpoint 2026-11-27T01:09:09Z\n",
                "  etcd        cluster 20f7d2aea1a7a31f, member 7\n",
                "\npg-2\n  unknown     no answer\n",
                "kept revision 812: system identifier 7712652082925278041\n",
                "each of these has every acknowledged commit: pg-2.\n",
                "Nobody who answers has more than pg-1.\n",
                "    on pg-1: pgha-node recover --from-this-node\n",
                "Nothing is known of pg-2.",
            ],
        );
        let json = Report { cluster: "demo", view: &view, advice: &advise(&view), done: None, dropped: None }.json();
        assert_eq!(json["advice"]["order"], "on pg-1: pgha-node recover --from-this-node");
        assert_eq!(json["nodes"][0]["database"]["end"]["position"], "0/3000148");
        assert_eq!(json["nodes"][1]["silent"], "no answer");
        assert_eq!(json["kept"]["revision"], 812);
        assert_eq!(json["refusal"], serde_json::Value::Null);
        contains(
            &told(&plan(&view, false).unwrap(), "pg-1"),
            &[
                "with its database up to 0/3000148 on timeline 1.",
                "the keys of the old one are kept",
                "WARNING: replication was synchronous",
                "Note: Patroni was in maintenance mode (`pause`), in which it starts no server: that mode ends",
                "Nothing is known of pg-2 (no answer).",
            ],
        );
    }

    #[test]
    fn two_clusters_are_never_one_quorum() {
        let of = |cluster: &str, nodes: &[&str]| Quorum {
            cluster: cluster.into(),
            members: ["pg-1", "pg-2", "pg-3"].map(ToOwned::to_owned).to_vec(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        };
        let view = View { quorums: vec![of("1f", &["pg-1", "pg-2"]), of("2f", &["pg-3"])], ..view() };
        let text = shown(&view);
        contains(
            &text,
            &[
                "ATTENTION: 2 clusters of one name run",
                "  1f, of the members pg-1, pg-2, pg-3, on pg-1, pg-2\n",
                "  2f, of the members pg-1, pg-2, pg-3, on pg-3\n",
                "pgha-node aside make etcd",
                "pgha-node help recover",
            ],
        );
        assert!(!text.contains("nothing to recover"), "{text}");
        let json = Report { cluster: "demo", view: &view, advice: &advise(&view), done: None, dropped: None }.json();
        assert_eq!(json["advice"]["is"], "clusters");
        assert_eq!(
            json["advice"]["clusters"][1],
            json!({"cluster": "2f", "members": ["pg-1", "pg-2", "pg-3"], "nodes": ["pg-3"]})
        );
        assert_eq!((&json["quorum"], json["quorums"][0]["cluster"].as_str()), (&serde_json::Value::Null, Some("1f")));
        assert!(json["refusal"].as_str().unwrap().contains("1f on pg-1, pg-2; 2f on pg-3"), "{json}");
    }

    #[test]
    fn a_person_reads_what_each_choice_gives_up() {
        let mut view = view();
        // Both have written beyond the position at which they parted.
        let Database::Present(copy) = &mut view.nodes[2].database else { panic!() };
        copy.reach.end = Place { timeline: 2, position: Lsn(0x3000200) };
        copy.reach.history = Some(History(vec![Place { timeline: 1, position: Lsn(0x3000100) }]));
        view.nodes[0].database = Database::Present(Copy {
            reach: Reach {
                end: Place { timeline: 3, position: Lsn(0x3000300) },
                history: Some(History(vec![Place { timeline: 1, position: Lsn(0x3000080) }])),
                ..view.nodes[0].copy().unwrap().reach.clone()
            },
            last: None,
        });
        let loss = "pg-3 has 384 bytes of WAL more, from 0/3000080 on timeline 1 to 0/3000200 on timeline 2";
        contains(
            &shown(&view),
            &[
                "  pg-1 gives up:\n",
                "  pg-3 gives up:\n",
                loss,
                "on pg-3: pgha-node recover --from-this-node --force\n",
            ],
        );
        let lost = format!("Not in the cluster any more, and set aside where it is:\n  {loss}");
        contains(&told(&plan(&view, true).unwrap(), "pg-1"), &[lost.as_str()]);
        for node in &mut view.nodes {
            node.database = Database::Absent;
        }
        view.nodes[0].patroni = true;
        view.nodes[0].order = Some("the order is given, and nothing has changed".into());
        contains(
            &shown(&view),
            &[
                "  database    none\n",
                "  patroni     runs\n",
                "  order       to go on from it: the order is given, and nothing has changed\n",
                "pg-1 has an order to go on from it.",
            ],
        );
    }
}
