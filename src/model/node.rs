//! A node: the cluster, and which of its members it is.

use super::{ClusterSpec, Member};

/// One member of a cluster, with the document that describes all.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The cluster's document.
    pub spec: ClusterSpec,
    index: usize,
}

impl Node {
    /// The member with this index, counted from 0, in the document.
    ///
    /// # Panics
    /// When the document has no such member.
    pub fn new(spec: ClusterSpec, index: usize) -> Node {
        assert!(index < spec.members.len(), "the document has {} members, not {}", spec.members.len(), index + 1);
        Node { spec, index }
    }

    /// All members of a cluster as nodes, in the document's order.
    pub fn all(spec: &ClusterSpec) -> impl Iterator<Item = Node> + '_ {
        (0..spec.members.len()).map(|index| Node::new(spec.clone(), index))
    }

    /// The index of its member in the document, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its member.
    pub fn member(&self) -> &Member {
        &self.spec.members[self.index]
    }

    /// The cluster's other members, in the document's order.
    pub fn peers(&self) -> impl Iterator<Item = &Member> + Clone {
        let own = self.index;
        self.spec.members.iter().enumerate().filter(move |(index, _)| *index != own).map(|(_, member)| member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    #[test]
    fn peers_are_all_others() {
        let names: Vec<(usize, String, String)> = Node::all(&samples::three())
            .map(|node| {
                let peers: Vec<&str> = node.peers().map(|member| member.name.as_str()).collect();
                (node.index(), node.member().name.clone(), peers.join(" "))
            })
            .collect();
        let expected = [(0, "pg-1", "pg-2 pg-3"), (1, "pg-2", "pg-1 pg-3"), (2, "pg-3", "pg-1 pg-2")];
        assert_eq!(names, expected.map(|(index, name, peers)| (index, name.to_owned(), peers.to_owned())));
    }
}
