//! States in words, for traces.

use super::{
    decide::{Step, Way},
    moves::{How, Move},
    world::*,
};
use std::fmt;

/// What a node has and does.
pub(super) fn node(node: &Node) -> String {
    let mut words = Vec::new();
    let mut say = |is_so: bool, text: &str| {
        if is_so {
            words.push(text.to_owned());
        }
    };
    say(!node.on, "off");
    say(node.side != 0, "cut off");
    say(node.doc != 0, &format!("has document {}", node.doc));
    match &node.etcd {
        Etcd::Absent => {}
        Etcd::Unborn => say(true, "an etcd without a log"),
        Etcd::Data(data) => say(true, &log(data, node.runs)),
    }
    if let Some(begun) = &node.begun {
        say(true, &format!("has written that {}", beginning(begun)));
    }
    say(node.complete, "was complete");
    say(node.promises != Promises::default(), &promised(&node.promises));
    if let Some(order) = node.order {
        say(true, &format!("has an order to form the cluster of document {} without {:?}", order.doc, order.without));
    }
    match &node.db {
        Db::Absent => {}
        Db::Half(Mark::Bootstrap) => say(true, "half of a new database"),
        Db::Half(Mark::Clone) => say(true, "half of a copy"),
        Db::Whole(whole) => say(true, &database(whole)),
        Db::Damaged(whole) => say(true, &format!("damaged: {}", database(whole))),
    }
    say(node.etcd_unread || node.db_unread, "cannot read its disks");
    match node.mark {
        None => {}
        Some(Mark::Bootstrap) => say(true, "the mark of a new database"),
        Some(Mark::Clone) => say(true, "the mark of a copy"),
    }
    match &node.look {
        Look::Idle => {}
        Look::Asking(all) => {
            let heard = all.iter().enumerate().filter_map(|(at, it)| Some((name(at as u8), seen(it)?)));
            let heard: Vec<String> = heard.map(|(name, what)| format!("{name} {what}")).collect();
            say(true, &format!("has heard: {}", heard.join(", ")));
        }
        Look::Ready(what) => say(true, &format!("will {}", step(what))),
        Look::Acting(what, done) => say(true, &format!("has done {done} writes of the step to {}", step(what))),
    }
    match node.gate {
        Gate::Closed => {}
        Gate::Ready(what, _) => say(true, &format!("will {}", gate(what))),
        Gate::Patroni => say(true, "Patroni runs"),
    }
    if words.is_empty() { "fresh".to_owned() } else { words.join("; ") }
}

/// An etcd's member: which one it is, and how often its node was added before.
fn member(inc: Inc, gen_: u8) -> String {
    if gen_ == 0 { format!("{inc:?}") } else { format!("{inc:?} (added, {gen_})") }
}

fn log(data: &Data, runs: bool) -> String {
    let runs = if runs { "runs etcd" } else { "has etcd's data" };
    let ever = if data.ever { "" } else { ", which nobody has written into" };
    let members = nodes_of(&data.members);
    format!("{runs} of {}{ever}, log {} with the members {members:?}", member(data.inc, data.gen_), data.version)
}

fn beginning(begun: &Begun) -> String {
    let how = if begun.joins.is_some() { "joins" } else { "forms" };
    let seen = if begun.seen { " and its etcd has answered" } else { "" };
    format!("it {how} {}{seen}", member(begun.inc, begun.gen_))
}

fn promised(promises: &Promises) -> String {
    let held = match &promises.held {
        None => "promised nothing".to_owned(),
        Some(held) if held.without.is_empty() => format!("promised {} to form {:?}", name(held.founder), held.inc),
        Some(held) => {
            format!("promised {} to form {:?} without {:?}", name(held.founder), held.inc, held.without)
        }
    };
    if promises.outlived.is_empty() {
        return held;
    }
    let documents: Vec<String> = promises.outlived.iter().map(|doc| doc.to_string()).collect();
    format!("{held}, and keeps away from what may have formed with document {}", documents.join(", "))
}

fn seen(seen: &Seen) -> Option<String> {
    Some(match seen {
        Seen::NotAsked => return None,
        Seen::Silent => "is silent".to_owned(),
        Seen::Etcd { inc, ever: true } => format!("runs etcd of {inc:?}, which has data"),
        Seen::Etcd { inc, ever: false } => format!("runs etcd of {inc:?}, which waits for its quorum"),
        Seen::Told(told) => {
            let fresh = if told.fresh { "is fresh" } else { "is not fresh" };
            let promise = told.promise.map(|(founder, inc)| format!(", has promised {} {inc:?}", name(founder)));
            let cluster = told.cluster.map(|inc| format!(", is of {inc:?}"));
            format!("{fresh}{}{}", promise.unwrap_or_default(), cluster.unwrap_or_default())
        }
    })
}

fn step(step: &Step) -> String {
    match step {
        Step::Promise(promises) => format!("write that it has {}", promised(promises)),
        Step::Release(_) => "write that it holds its promise no longer".to_owned(),
        Step::Commit(begun) => format!("write that {}", beginning(begun)),
        Step::Start => "start etcd without data".to_owned(),
        Step::Resume => "start etcd with its data".to_owned(),
        Step::Remove(inc, whom, gen_) => format!("remove {} from {}", name(*whom), member(*inc, *gen_)),
        Step::Add(inc) => format!("add itself to {inc:?}"),
        Step::SetAside(why) => format!("set etcd's data aside ({})", why.word()),
        Step::Abandon(..) => "give up its beginning and set etcd's data aside".to_owned(),
        Step::Forget(_) => "give up its beginning, which has left no data".to_owned(),
        Step::Wait(_) => "wait".to_owned(),
    }
}

fn gate(step: GateStep) -> String {
    match step {
        GateStep::Start(None) => "start Patroni".to_owned(),
        GateStep::Start(Some(Mark::Bootstrap)) => "start Patroni, which makes the first database".to_owned(),
        GateStep::Start(Some(Mark::Clone)) => "start Patroni, which copies the database".to_owned(),
        GateStep::Open => "write that it makes the first database".to_owned(),
        GateStep::Pin(system) => format!("write that the cluster's database is S{system}"),
        GateStep::SetAside => "set aside what it has not finished".to_owned(),
        GateStep::Unmark => "take its mark away".to_owned(),
        GateStep::GiveUp => "give up its own beginning of the first database".to_owned(),
        GateStep::Wait | GateStep::Refuse => "wait".to_owned(),
    }
}

fn database(whole: &Whole) -> String {
    let use_ = match whole.use_ {
        Use::Made => "without its roles",
        Use::Copied => "a copy that no server has started with",
        Use::Used => "in use",
    };
    let commits: Vec<String> = (0..8).filter(|bit| whole.commits & 1 << bit != 0).map(|bit| bit.to_string()).collect();
    let commits = if commits.is_empty() { String::new() } else { format!(", with commit {}", commits.join(", ")) };
    format!("the database S{} ({use_}{commits})", whole.system)
}

/// The truth about an etcd.
pub(super) fn etcd(etcd: &Etcds) -> String {
    let keys = &etcd.keys;
    let members = nodes_of(&etcd.members);
    let mut words =
        vec![format!("log {}, members {members:?}, of which {:?} have started", etcd.version, etcd.started)];
    if !etcd.born {
        words.push("never had a quorum".to_owned());
    }
    match keys.first {
        None => {}
        Some((node, None)) => words.push(format!("{} makes the first database", name(node))),
        Some((_, Some(system))) => words.push(format!("the database is S{system}")),
    }
    match keys.initialize {
        None => {}
        Some(None) => words.push("`initialize` is empty".to_owned()),
        Some(Some(system)) => words.push(format!("`initialize` says S{system}")),
    }
    if let Some(leader) = keys.leader {
        words.push(format!("{} leads, {:?} have every commit", name(leader), keys.sync));
    }
    if let Some(newest) = keys.newest {
        words.push(format!("document {newest} is the newest"));
    }
    words.join("; ")
}

/// A question that is on its way.
pub(super) fn letter(letter: &Letter) -> String {
    format!("{} asks {} for a promise to form {:?}", name(letter.from), name(letter.to), letter.inc)
}

/// The ways on that a node names.
pub(super) fn way(way: &Way) -> String {
    let mut words = Vec::new();
    if let Some((on, without)) = way.form {
        words.push(format!("`form --without {without:?}` on {}", name(on)));
    }
    let named = [
        (way.recover, "`recover`"),
        (way.document, "another document"),
        (way.claim, "`claim`"),
        (way.aside, "`aside make`"),
        (way.take, "`first take`"),
        (way.keep, "`first keep`"),
    ];
    words.extend(named.into_iter().filter(|(is_named, _)| *is_named).map(|(_, word)| word.to_owned()));
    if words.is_empty() { "names no way on".to_owned() } else { format!("names {}", words.join(", ")) }
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
            Move::Act(by) => write!(f, "{} does what it has decided", n(by)),
            Move::Seen(node) => write!(f, "{} writes that its etcd has answered", n(node)),
            Move::Publish(node) => write!(f, "the etcd of {} tells its clients' addresses", n(node)),
            Move::LetGo(by, whom) => write!(f, "{} lets {} go, which never came", n(by), n(whom)),
            Move::Expelled(node) => write!(f, "the etcd of {} learns that it was removed, and ends", n(node)),
            Move::GateLook(node) => write!(f, "{} looks whether Patroni may start", n(node)),
            Move::GateAct(node) => write!(f, "the gate of {} does what it has decided", n(node)),
            Move::PatroniEnds(node) => write!(f, "Patroni ends on {}: its database is another cluster's", n(node)),
            Move::Initdb(node) => write!(f, "{} begins the first database", n(node)),
            Move::InitdbDone(node) => {
                write!(f, "the new database of {} is there, and `post_bootstrap` has run", n(node))
            }
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
            Move::Delete(inc) => write!(f, "a person deletes `initialize` of I{inc}"),
            Move::Failover(node) => write!(f, "a person makes {} the primary", n(node)),
            Move::Claim(node) => write!(f, "a person claims the data of {}", n(node)),
            Move::Take(node) => write!(f, "a person lets {} make the first database", n(node)),
            Move::AsideDb(node) => write!(f, "a person sets the database of {} aside", n(node)),
            Move::AsideEtcd(node) => write!(f, "a person sets etcd's data of {} aside", n(node)),
        }
    }
}
