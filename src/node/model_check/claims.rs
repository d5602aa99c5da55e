//! What must hold in every state.

use super::{moves::Model, world::*};

impl Model {
    /// Looks for a rule that the state breaks. The rules about one act are where the act is.
    pub(super) fn check(&self, world: &mut World) {
        let lives = |inc: &u8| world.incs[*inc as usize].born && world.could_have_quorum(*inc);
        let alive = (0..world.incs.len() as u8).filter(lives).count();
        if alive > 1 {
            world.breaks("two clusters of one name can both accept writes");
        }
    }

    /// A cluster is not formed while a node of its document has data of another one, unless a person has left that node out.
    pub(super) fn check_formed(&self, world: &mut World, inc: u8) {
        let members = self.decider.nodes(world.incs[inc as usize].doc);
        let has_data = |node: &u8| {
            let it = world.node(*node);
            let database = matches!(it.db, Db::Whole(whole) | Db::Damaged(whole) if whole.use_ == Use::Used);
            let etcd = it.data().is_some_and(|data| data.inc.no != inc && data.ever);
            (database || etcd) && !world.ordered.without.has(*node)
        };
        if members.iter().filter(|node| (*node as usize) < world.nodes.len()).any(|node| has_data(&node)) {
            world.breaks("a cluster forms while a node of its document has another one's data");
        }
    }

    /// A first database is not made while a node of the document holds one, unless a person has left that node out.
    pub(super) fn check_initdb(&self, world: &mut World, by: u8) {
        let members = self.decider.nodes(world.node(by).doc);
        let holder = members.iter().filter(|node| (*node as usize) < world.nodes.len()).find(|node| {
            let has = matches!(world.node(*node).db, Db::Whole(Whole { use_: Use::Used, .. }) | Db::Damaged(_));
            has && !world.ordered.without.has(*node)
        });
        if holder.is_some() && !world.ordered.taken {
            world.breaks("a first database is made while a node of the document has one");
        }
    }

    /// Whether all is well: one cluster of all nodes of the document, and one database.
    pub(super) fn is_well(&self, world: &World, doc: u8) -> bool {
        let nodes = self.decider.nodes(doc);
        let quorums = Set::of((0..world.incs.len() as u8).filter(|inc| world.has_quorum(*inc, 0)));
        let Some(inc) = quorums.iter().next().filter(|_| quorums.len() == 1) else { return false };
        let truth = &world.incs[inc as usize];
        let all_members = nodes.iter().all(|node| world.is_in_quorum(node) && truth.started.has(node));
        all_members && (!self.patroni || self.is_served(world, truth, nodes))
    }

    fn is_served(&self, world: &World, truth: &Etcds, nodes: Set) -> bool {
        // A primary that runs does not need Patroni's key.
        let pinned = truth.keys.first.and_then(|(_, system)| system);
        let Some(system) = truth.keys.initialize.flatten().or(pinned) else { return false };
        let complete = |node: u8| {
            let it = world.node(node);
            let whole = it.whole().is_some_and(|whole| {
                let all = world.systems[system as usize];
                whole.system == system && whole.use_ == Use::Used && whole.commits & all == all
            });
            whole && it.patroni() && it.complete && it.mark.is_none()
        };
        truth.keys.leader.is_some_and(|leader| self.leads(world, leader)) && nodes.iter().all(complete)
    }
}
