//! States in words, for traces.

use super::{
    moves::{How, Move},
    world::*,
};
use std::fmt;

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

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |node: &u8| name(*node);
        match self {
            Move::Ask(by, to, How::Answered) => write!(f, "{} asks {} and is answered", n(by), n(to)),
            Move::Ask(by, to, How::Unanswered) => write!(f, "{} asks {}, and the answer is lost", n(by), n(to)),
            Move::Ask(by, to, How::Lost) => write!(f, "{} asks {} in vain", n(by), n(to)),
            Move::Ask(by, to, How::Late) => {
                write!(f, "{} asks {}, whom the question has not reached yet", n(by), n(to))
            }
            Move::Alone(by) => write!(f, "{} looks, and no member can be asked", n(by)),
            Move::Count(node) => write!(f, "the agent of {} counts its document as the newest", n(node)),
            Move::Declare(node) => write!(f, "a person says that the document of {} is the newest", n(node)),
            Move::Prune(node, whom) => {
                write!(
                    f,
                    "the agent of {} removes {}, which its document does not name and which was silent",
                    n(node),
                    n(whom)
                )
            }
            Move::Restore(node) => write!(f, "the agent of {} writes `initialize` back", n(node)),
            Move::InVain(node) => write!(f, "init of {} stops Patroni, which waits in vain", n(node)),
            Move::Deliver => write!(f, "a late question arrives"),
            Move::Beside(by, inc) => write!(f, "{} sees the quorum of I{inc}", n(by)),
            Move::Listed(by, via) => write!(f, "{} sees the members that {} lists without its quorum", n(by), n(via)),
            Move::Act(by) => write!(f, "{} does what it has decided", n(by)),
            Move::Seen(node) => write!(f, "{} writes that its etcd has answered", n(node)),
            Move::Publish(node) => write!(f, "the etcd of {} tells its clients' addresses", n(node)),
            Move::LetGo(by, whom) => write!(f, "{} lets {} go, which never came", n(by), n(whom)),
            Move::Expelled(node) => write!(f, "the etcd of {} learns that it was removed, and ends", n(node)),
            Move::GateLook(node) => write!(f, "{} looks whether Patroni may start", n(node)),
            Move::GateAct(node) => write!(f, "the gate of {} does what it has decided", n(node)),
            Move::PatroniEnds(node) => write!(f, "Patroni ends on {}: its database is another cluster's", n(node)),
            Move::Initdb(node) => write!(f, "{} begins the first database", n(node)),
            Move::InitdbDone(node) => write!(f, "initdb is done on {}", n(node)),
            Move::Announce(node) => write!(f, "{} writes its system identifier into `initialize`", n(node)),
            Move::Copy(node) => write!(f, "{} begins to copy the primary", n(node)),
            Move::CopyDone(node) => write!(f, "the copy of {} is there", n(node)),
            Move::CopyFails(node) => write!(f, "the copy of {} fails, and Patroni removes what it has copied", n(node)),
            Move::StartCopy(node) => write!(f, "the server of {} starts with its copy", n(node)),
            Move::Follow(node) => write!(f, "{} streams and is a synchronous standby", n(node)),
            Move::Lead(node) => write!(f, "{} is the primary", n(node)),
            Move::Expire(inc) => write!(f, "the leader key of I{inc} expires"),
            Move::Drop(by, whom) => write!(f, "{} goes on without the standby {}", n(by), n(whom)),
            Move::Write(node) => write!(f, "{} acknowledges a commit", n(node)),
            Move::Finish(node) => write!(f, "{} writes down that its database is whole", n(node)),
            Move::Cut(node) => write!(f, "the power of {} is cut", n(node)),
            Move::Boot(node) => write!(f, "{} boots", n(node)),
            Move::Replace(node) => write!(f, "{} is replaced: all its disks are new", n(node)),
            Move::LoseEtcd(node) => write!(f, "{} boots without the volume of etcd", n(node)),
            Move::LoseDb(node) => write!(f, "{} boots without the volume of the database", n(node)),
            Move::LoseState(node) => write!(f, "{} boots without what it remembers", n(node)),
            Move::CutStarting(node) => write!(f, "the power of {} is cut before its etcd has written its log", n(node)),
            Move::Unreadable(node) => write!(f, "{} cannot read its disks", n(node)),
            Move::Readable(node) => write!(f, "{} can read its disks", n(node)),
            Move::Damage(node) => write!(f, "pg_control of {} is damaged", n(node)),
            Move::Part(node) => write!(f, "{} is cut off", n(node)),
            Move::Rejoin(node) => write!(f, "{} is not cut off any more", n(node)),
            Move::Order(node, without) => write!(f, "a person on {}: form --without {without:?}", n(node)),
            Move::Document(node, doc) => write!(f, "{} gets document {doc}", n(node)),
            Move::Empty(inc) => write!(f, "a person empties `initialize` of I{inc}"),
            Move::Failover(node) => write!(f, "a person makes {} the primary", n(node)),
            Move::Claim(node) => write!(f, "a person claims the data of {}", n(node)),
            Move::Take(node) => write!(f, "a person lets {} make the first database", n(node)),
            Move::AsideDb(node) => write!(f, "a person sets the database of {} aside", n(node)),
            Move::AsideEtcd(node) => write!(f, "a person sets etcd's data of {} aside", n(node)),
        }
    }
}
