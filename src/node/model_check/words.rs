//! States in words, for traces.

use super::world::*;

/// What a node has and does.
pub(super) fn node(node: &Node) -> String {
    let mut words = Vec::new();
    if !node.on {
        words.push("off".to_owned());
    }
    if node.side != 0 {
        words.push("cut off".to_owned());
    }
    if node.doc != 0 {
        words.push(format!("document {}", node.doc));
    }
    match &node.etcd {
        Etcd::Absent => {}
        Etcd::Unborn => words.push("etcd unborn".to_owned()),
        Etcd::Data(data) => words.push(format!(
            "{}etcd {} {:?}#{} log {} of {:?}",
            if node.runs { "running " } else { "" },
            if data.ever { "that had a quorum" } else { "" },
            data.inc,
            data.gen_,
            data.version,
            nodes_of(&data.members)
        )),
    }
    if let Some(begun) = node.begun {
        let how = if begun.joins.is_some() { "joins" } else { "forms" };
        let seen = if begun.seen { ", seen" } else { "" };
        words.push(format!("{how} {:?}#{}{seen}", begun.inc, begun.gen_));
    }
    if node.complete {
        words.push("complete".to_owned());
    }
    if node.promises != Promises::default() {
        words.push(format!("promised: {:?}", node.promises));
    }
    if let Some(order) = node.order {
        words.push(format!("order for document {} without {:?}", order.doc, order.without));
    }
    match &node.db {
        Db::Absent => {}
        Db::Half(mark) => words.push(format!("half a database ({mark:?})")),
        Db::Whole(whole) => words.push(database(whole)),
        Db::Damaged(whole) => words.push(format!("damaged {}", database(whole))),
    }
    if node.etcd_unread || node.db_unread {
        words.push("unreadable".to_owned());
    }
    if let Some(mark) = node.mark {
        words.push(format!("mark {mark:?}"));
    }
    match node.look {
        Look::Idle => {}
        Look::Asking(seen) => {
            let heard = seen.iter().enumerate().filter(|(_, seen)| **seen != Seen::NotAsked);
            let heard: Vec<_> = heard.map(|(node, seen)| format!("{}: {seen:?}", name(node as u8))).collect();
            words.push(format!("has heard {}", heard.join(", ")));
        }
        Look::Ready(step) => words.push(format!("will {step:?}")),
        Look::Acting(step, done) => words.push(format!("has done {done} writes of {step:?}")),
    }
    match node.gate {
        Gate::Closed => {}
        other => words.push(format!("gate {other:?}")),
    }
    if words.is_empty() { "fresh".to_owned() } else { words.join("; ") }
}

fn database(whole: &Whole) -> String {
    format!("database S{} ({:?}, commits {:#b})", whole.system, whole.use_, whole.commits)
}

/// The truth about an etcd.
pub(super) fn etcd(etcd: &Etcds) -> String {
    let keys = &etcd.keys;
    let mut words =
        vec![format!("version {}, members {:?}, started {:?}", etcd.version, nodes_of(&etcd.members), etcd.started)];
    if !etcd.born {
        words.push("never had a quorum".to_owned());
    }
    if let Some((node, system)) = keys.first {
        words.push(format!("first {} {}", name(node), system.map_or("?".to_owned(), |it| format!("S{it}"))));
    }
    match keys.initialize {
        None => {}
        Some(None) => words.push("initialize empty".to_owned()),
        Some(Some(system)) => words.push(format!("initialize S{system}")),
    }
    if let Some(leader) = keys.leader {
        words.push(format!("leader {}, sync {:?}", name(leader), keys.sync));
    }
    words.join("; ")
}
