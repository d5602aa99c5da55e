//! Checks a person's order to form the cluster without members that do not come, and explains what it means.

use super::join::{FormingOrder, Peer, View};
use crate::error::UserError;
use std::collections::BTreeSet;

/// The order to form the cluster without these members, on the node that `view` is of.
///
/// # Errors
/// A wrong request: why it cannot be given here, and the way out.
pub fn give(view: &View, without: &BTreeSet<String>) -> Result<FormingOrder, UserError> {
    let names = list(without);
    if let Some(cluster) = &view.cluster {
        return Err(UserError::usage(format!(
            "the cluster runs: a quorum of {} members answers",
            cluster.members.len()
        ))
        .hint("this node joins it by itself: pgha-node status"));
    }
    if let Err(why) = view.own.fresh() {
        return Err(UserError::usage(format!("this node forms no cluster: {why}")).hint(
            "a cluster is formed once; to go on from what is left of it: pgha-node recover, on a node that has the data",
        ));
    }
    if let Some(stranger) = without.iter().find(|name| view.document.place(name).is_none()) {
        let members: Vec<&str> = view.document.members.iter().map(|(name, _)| name.as_str()).collect();
        return Err(UserError::usage(format!("the document has no member `{stranger}`"))
            .hint(format!("its members are {}", members.join(", "))));
    }
    if without.is_empty() {
        return Err(
            UserError::usage("nobody is left out").hint("without an order the cluster forms when all members are here")
        );
    }
    if let Err(why) = view.document.allows(without) {
        return Err(UserError::usage(format!("the cluster cannot be formed without {names}: {why}")).hint(format!(
            "fewer than a majority could form a second cluster beside the others; if {names} will never come, give the nodes a \
             document without them"
        )));
    }
    let founder = view.document.founder(without).unwrap_or_default();
    if founder != view.me {
        return Err(UserError::usage(format!(
            "without {names}, {founder} forms the cluster, not this node ({})",
            view.me
        ))
        .hint(format!("on {founder}: pgha-node form --without {names}")));
    }
    for (name, peer) in &view.peers {
        refuse(name, peer, without.contains(name))?;
    }
    Ok(FormingOrder { document: view.document.digest.clone(), without: without.clone() })
}

/// Refuses an order that one of the others speaks against.
fn refuse(name: &str, peer: &Peer, left_out: bool) -> Result<(), UserError> {
    let exists = |what: &str| {
        UserError::usage(format!("{name} has {what}: no other cluster is formed beside it")).hint(
            "start the nodes that have the data; if they are lost: pgha-node recover, on a node that has the data",
        )
    };
    match peer {
        Peer::Silent(_) => Ok(()),
        Peer::Etcd { ever: true, .. } => Err(exists("the data of a cluster")),
        Peer::Told(told) if told.not_fresh.is_some() && told.cluster.is_none() => Err(exists("data")),
        Peer::Unclear(why) if left_out => Err(UserError::usage(format!("{name} answers: {why}"))
            .hint(format!("{name} is not away: correct what is wrong there, or switch it off first"))),
        Peer::Told(_) | Peer::Etcd { .. } if left_out => Err(UserError::usage(format!("{name} answers"))
            .hint(format!("{name} is not away: form the cluster with it, or switch it off first"))),
        _ => Ok(()),
    }
}

/// What the order means, for the person who gives it.
pub fn meaning(view: &View, cluster: &str, order: &FormingOrder) -> String {
    let names = list(&order.without);
    let with: Vec<&str> = view
        .document
        .members
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| !order.without.contains(*name))
        .collect();
    let mut text = format!(
        "The cluster `{cluster}` is formed by {}, without {names}, with a new, empty database.\n\
         If {names} has data of this cluster, give no order: start it, or recover the cluster from it.\n\
         {names} must be off until the cluster runs, and joins it then.\n",
        with.join(", ")
    );
    let away: Vec<&str> = view
        .peers
        .iter()
        .filter(|(name, peer)| matches!(peer, Peer::Silent(_)) && !order.without.contains(name))
        .map(|(name, _)| name.as_str())
        .collect();
    if !away.is_empty() {
        text.push_str(&format!("{} does not answer either: the cluster forms when it does.\n", away.join(", ")));
    }
    text
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::report,
        node::{
            etcd_data::EtcdData,
            join::{Document, Found, Own},
            promise::{Answer, Promises},
        },
    };

    fn own() -> Own {
        Own {
            etcd: EtcdData::Absent,
            idle: false,
            database: Found::Absent,
            begun: None,
            marked: false,
            complete: false,
            promises: Promises::default(),
        }
    }

    fn told(not_fresh: Option<&str>) -> Peer {
        Peer::Told(Answer {
            document: "d".into(),
            not_fresh: not_fresh.map(str::to_owned),
            promise: None,
            cluster: None,
            refusal: None,
        })
    }

    fn silent() -> Peer {
        Peer::Silent("no answer".into())
    }

    fn view(me: &str, own: Own, peers: [Peer; 2]) -> View {
        let members = [1, 2, 3].map(|n| (format!("pg-{n}"), format!("https://10.0.0.1{n}:2380"))).to_vec();
        let names: Vec<String> = members.iter().map(|(name, _)| name.clone()).filter(|name| name != me).collect();
        View {
            document: Document { digest: "d".into(), identity: "feed".into(), members },
            me: me.into(),
            own,
            order: None,
            cluster: None,
            peers: names.into_iter().zip(peers).collect(),
            draw: String::new(),
            added: None,
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_order_says_what_it_means() {
        let near = view("pg-1", own(), [told(None), silent()]);
        let order = give(&near, &set(&["pg-3"])).unwrap();
        assert_eq!(order, FormingOrder { document: "d".into(), without: set(&["pg-3"]) });
        let alone = view("pg-2", own(), [silent(), silent()]);
        let other = give(&alone, &set(&["pg-1"])).unwrap();
        insta::assert_snapshot!(format!("{}\n{}", meaning(&near, "demo", &order), meaning(&alone, "demo", &other)));
    }

    #[test]
    fn an_order_that_cannot_be_given_names_the_way_out() {
        let text = [
            (view("pg-1", own(), [told(None), silent()]), set(&[])),
            (view("pg-1", own(), [told(None), silent()]), set(&["pg-4"])),
            (view("pg-1", own(), [silent(), silent()]), set(&["pg-2", "pg-3"])),
            (view("pg-2", own(), [told(None), silent()]), set(&["pg-3"])),
            (view("pg-1", own(), [told(None), silent()]), set(&["pg-1"])),
            (view("pg-1", own(), [told(None), told(None)]), set(&["pg-3"])),
            (view("pg-1", own(), [told(None), Peer::Unclear("503".into())]), set(&["pg-3"])),
            (view("pg-1", own(), [told(Some("it has a database")), silent()]), set(&["pg-3"])),
            (view("pg-1", own(), [Peer::Etcd { cluster: Some(7), ever: true }, silent()]), set(&["pg-3"])),
            (view("pg-1", Own { complete: true, ..own() }, [told(None), silent()]), set(&["pg-3"])),
        ]
        .map(|(view, without)| report(&give(&view, &without).unwrap_err().into()));
        insta::assert_snapshot!(text.join("\n\n"));
    }
}
