//! Other clusters of etcd beside this node's: two of one name, each with a quorum, of which only one is right.
//!
//! They arise when a cluster went on from a node by a person's order and members of the old one, enough for its quorum, come
//! back while they do not reach that node. Each side then takes writes. What a cluster says of its last recovery says which
//! of the two has replaced the other. Where it does not say it, a person decides.
//!
//! Members are asked one by one: a client of several endpoints hears the first that answers, of whichever cluster.

use super::keys::{Names, Recovered};
use crate::{
    model::{Member, scope::client_url},
    node::peers::TlsCredentials,
};
use serde::Serialize;
use std::thread;

/// A cluster of etcd whose quorum answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quorum {
    /// Its id, in hexadecimal digits.
    pub cluster: String,
    /// Its members, as it lists them.
    pub members: Vec<String>,
    /// The nodes of the document that run it and answer.
    pub nodes: Vec<String>,
}

/// The clusters whose quorum answers through one of these nodes, in their order; each node is asked by itself, all at once.
pub fn ask(nodes: &[&Member], credentials: &TlsCredentials) -> Vec<Quorum> {
    let told = thread::scope(|scope| {
        let asked: Vec<_> = nodes
            .iter()
            .map(|node| {
                scope.spawn(|| credentials.etcd(vec![client_url(node)]).and_then(|client| client.cluster()).ok())
            })
            .collect();
        let told = asked.into_iter().map(|asked| asked.join().unwrap_or_default());
        nodes.iter().zip(told).filter_map(|(node, told)| Some((node.name.clone(), told?))).collect::<Vec<_>>()
    });
    let name =
        |member: crate::etcd::Member| if member.name.is_empty() { format!("{:x}", member.id) } else { member.name };
    group(told.into_iter().map(|(node, (cluster, members))| (node, cluster, members.into_iter().map(name).collect())))
}

/// The clusters of which nodes tell, by the nodes' order: each node, the id of its cluster, and that one's members.
pub fn group(told: impl IntoIterator<Item = (String, u64, Vec<String>)>) -> Vec<Quorum> {
    let mut quorums: Vec<Quorum> = Vec::new();
    for (node, cluster, members) in told {
        let cluster = format!("{cluster:x}");
        match quorums.iter_mut().find(|known| known.cluster == cluster) {
            Some(known) => known.nodes.push(node),
            None => quorums.push(Quorum { cluster, members, nodes: vec![node] }),
        }
    }
    quorums
}

/// What is known of a cluster's last recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The cluster's id, in hexadecimal digits.
    pub cluster: String,
    /// What it says, which is nothing if there was none; `None` if it does not answer.
    pub recovered: Option<Option<Recovered>>,
}

impl Past {
    /// Asks the members of the cluster `cluster` among `nodes`, which are all of it.
    pub fn ask(cluster: String, nodes: &[&Member], name: &str, credentials: &TlsCredentials) -> Past {
        let client = credentials.etcd(nodes.iter().map(|node| client_url(node)).collect());
        let recovered = client.ok().and_then(|client| Recovered::ask(&client, Names(name)).ok());
        Past { cluster, recovered }
    }

    /// Whether this cluster has replaced `other`, by a person's order, and certainly not the other way round as well.
    pub fn has_replaced(&self, other: &Past) -> bool {
        let names = |this: &Past, that: &Past| {
            this.recovered
                .as_ref()
                .map(|recovered| recovered.as_ref().is_some_and(|recovered| recovered.replaces.contains(&that.cluster)))
        };
        self.cluster != other.cluster && names(self, other) == Some(true) && names(other, self) == Some(false)
    }
}

/// How this node's cluster stands to another whose quorum answers beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The other has replaced this one, which gives way.
    GivesWay,
    /// This one has replaced the other, whose nodes give way.
    Stays,
    /// Nothing says which is right.
    Open,
}

/// How the cluster `own` stands to `other`.
pub fn standing(own: &Past, other: &Past) -> Standing {
    match (other.has_replaced(own), own.has_replaced(other)) {
        (true, _) => Standing::GivesWay,
        (_, true) => Standing::Stays,
        _ => Standing::Open,
    }
}

/// Which of several clusters with a quorum a node belongs to: the one that has replaced all others. Where nothing says
/// which that is, its own (`own`, the id in its etcd's data) if that is among them, and else the first.
pub fn right(known: &[Past], own: Option<&str>) -> Option<usize> {
    let is_newest = |this: &Past| known.iter().all(|other| other.cluster == this.cluster || this.has_replaced(other));
    let newest = known.iter().position(is_newest);
    let is_own = || known.iter().position(|past| Some(past.cluster.as_str()) == own);
    newest.or_else(is_own).or((!known.is_empty()).then_some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(cluster: &str, replaces: &[&str]) -> Past {
        let recovered = (!replaces.is_empty()).then(|| Recovered {
            node: "pg-3".into(),
            time: 1_795_741_749,
            incarnation: cluster.into(),
            replaces: replaces.iter().map(|id| (*id).to_owned()).collect(),
            database: None,
        });
        Past { cluster: cluster.into(), recovered: Some(recovered) }
    }

    #[test]
    fn answers_of_two_clusters_are_two_quorums() {
        let all = ["pg-1", "pg-2", "pg-3"].map(ToOwned::to_owned).to_vec();
        let told = [
            ("pg-1".to_owned(), 0x1f, all.clone()),
            ("pg-2".to_owned(), 0x1f, all.clone()),
            ("pg-3".to_owned(), 0x2f, vec!["pg-3".to_owned()]),
        ];
        let of = |cluster: &str, members: &[String], nodes: &[String]| Quorum {
            cluster: cluster.into(),
            members: members.to_vec(),
            nodes: nodes.to_vec(),
        };
        assert_eq!(group(told), [of("1f", &all, &all[..2]), of("2f", &all[2..], &all[2..])]);
        assert_eq!(group([]), []);
    }

    #[test]
    fn only_a_record_that_names_the_other_makes_a_cluster_give_way() {
        let (old, new) = (past("1f", &[]), past("2f", &["1f"]));
        assert_eq!(standing(&old, &new), Standing::GivesWay);
        assert_eq!(standing(&new, &old), Standing::Stays);
        // Two orders of the same time, no order at all, and records that contradict each other.
        for (own, other) in [
            (past("2f", &["1f"]), past("3f", &["1f"])),
            (past("1f", &[]), past("2f", &[])),
            (past("2f", &["3f"]), past("3f", &["2f"])),
            (past("2f", &["2f"]), past("2f", &["2f"])),
            (Past { recovered: None, ..old.clone() }, new.clone()),
            (old, Past { recovered: None, ..new }),
        ] {
            assert_eq!(standing(&own, &other), Standing::Open, "{own:?} {other:?}");
        }
    }

    #[test]
    fn a_node_belongs_to_what_has_replaced_all_others_and_never_leaves_its_own_by_chance() {
        let (old, new, newest) = (past("1f", &[]), past("2f", &["1f"]), past("3f", &["1f", "2f"]));
        for own in [None, Some("1f"), Some("2f")] {
            assert_eq!(right(&[old.clone(), new.clone()], own), Some(1));
            assert_eq!(right(&[new.clone(), old.clone()], own), Some(0));
            assert_eq!(right(&[old.clone(), newest.clone(), new.clone()], own), Some(1));
        }
        let apart = [past("2f", &["1f"]), past("3f", &["1f"])];
        assert_eq!(right(&apart, Some("3f")), Some(1));
        assert_eq!(right(&apart, Some("1f")), Some(0));
        assert_eq!((right(&apart, None), right(&[], None)), (Some(0), None));
        assert_eq!(right(&[old], Some("9f")), Some(0));
    }
}
