//! When a replica that does not stream is cloned again, and how: a pure function of what is seen.
//!
//! Nothing is cloned on suspicion. There must be a running primary of the same system identifier whose timeline contains
//! ours, a replication connection to it must work, and something must show that waiting does not help: the primary does not
//! have the WAL any more, our data have gone another way, `pg_rewind` failed, or nothing moves for long while another
//! replica streams.
//!
//! Our data are set aside, not replaced. Only where there is no room for both they are replaced, and only if they hold
//! nothing that the primary's do not hold (position and history are known exactly and lie on the primary's way), and another copy
//! than the primary's streams, so that one disk that dies during the clone is not the end of all. Otherwise a person decides.

use crate::node::database::Lsn;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// How long a replica must not stream before anything is said or done. A failover takes less.
const NOTICE: Duration = Duration::from_secs(60);
/// After how long without a move its server is restarted, when nothing says why.
const RESTART_AFTER: Duration = Duration::from_secs(300);
/// After how long without a move it is cloned again although nothing says why, or nothing says so exactly.
const STILL: Duration = Duration::from_secs(600);
/// How long after a repair there is no other.
const BETWEEN: Duration = Duration::from_secs(3600);

/// What Patroni says of this node's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// It is the primary, or becomes it.
    Primary,
    /// It streams.
    Streaming,
    /// It is being cloned, stopped or started; in Patroni's words.
    Busy(String),
    /// It does not stream; in Patroni's words. A server that is starting cannot be asked.
    Apart(String),
}

/// The primary, as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Its name.
    pub name: String,
    /// The system identifier.
    pub system: String,
    /// Its timeline.
    pub timeline: u32,
    /// How far it has written.
    pub position: Lsn,
    /// The timelines before, each with the position at which the next one begins.
    pub history: Vec<(u32, Lsn)>,
    /// Where its oldest WAL begins.
    pub oldest: Lsn,
    /// Our slot.
    pub slot: Slot,
    /// How many other replicas stream.
    pub others: usize,
    /// Why a replication connection to it fails; nothing if it works.
    pub refuses: Option<String>,
}

/// Our replication slot on the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// There is none: Patroni makes one.
    Missing,
    /// It holds what it should.
    Good,
    /// It has lost what it should hold; nobody can stream from it again.
    Lost,
}

/// Our data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The system identifier.
    pub system: String,
    /// The timeline.
    pub timeline: u32,
    /// The position that they are known to have reached.
    pub position: Lsn,
    /// The timelines before ours, each with the position at which the next one begins; nothing if that is not known.
    pub history: Option<Vec<(u32, Lsn)>>,
    /// Whether that is exactly where they end: the server said so. The control file alone may be behind.
    pub exact: bool,
}

/// Who is being repaired in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nobody, or this node.
    Ours,
    /// This node.
    Taken(String),
}

/// A person's order to clone this node again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneOrder {
    /// Whether its data may be replaced where there is no room for both.
    pub in_place: bool,
}

/// What is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's server.
    pub server: Server,
    /// For how long it has not streamed.
    pub absent: Duration,
    /// For how long it has not moved.
    pub still: Duration,
    /// Patroni's maintenance mode: a person is at work.
    pub paused: bool,
    /// The primary; or why it is not known.
    pub primary: Result<Primary, String>,
    /// Our data; or why they are not known.
    pub own: Result<Own, String>,
    /// Where the WAL begins that a server looks for which does not answer.
    pub waits: Option<Lsn>,
    /// Patroni has tried to rewind and failed.
    pub rewind_failed: bool,
    /// The server was started again since it last moved.
    pub restarted: bool,
    /// The lost slot was dropped since it last moved.
    pub dropped: bool,
    /// Room for the primary's data beside ours; or what is missing.
    pub room: Result<(), NoRoom>,
    /// Whose turn it is.
    pub turn: Turn,
    /// How long ago this node was repaired last.
    pub last: Option<Duration>,
    /// A person's order.
    pub order: Option<CloneOrder>,
}

/// Why our data cannot stay beside a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// What is in the way.
    pub why: String,
    /// What a person can do.
    pub hint: String,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why, self.hint)
    }
}

/// Why a replica is cloned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The primary does not have the WAL any more that comes next.
    WalGone,
    /// Its slot on the primary is lost.
    SlotLost,
    /// Its data have gone another way than the primary's.
    Diverged,
    /// `pg_rewind` failed.
    RewindFailed,
    /// It does not move, and another replica streams.
    Still,
    /// A person ordered it.
    Ordered,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::WalGone => "the primary does not have the WAL any more that comes next",
            Why::SlotLost => "its replication slot on the primary is lost",
            Why::Diverged => "its data have gone another way than the primary's",
            Why::RewindFailed => "pg_rewind failed",
            Why::Still => "it does not move, while another replica streams",
            Why::Ordered => "a person ordered it",
        })
    }
}

impl Why {
    /// The word in the name of what is set aside.
    pub fn word(self) -> &'static str {
        match self {
            Why::WalGone => "wal-gone",
            Why::SlotLost => "slot-lost",
            Why::Diverged => "diverged",
            Why::RewindFailed => "rewind-failed",
            Why::Still => "cannot-follow",
            Why::Ordered => "reclone",
        }
    }
}

/// Where the clone goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Our data are set aside.
    Aside,
    /// Our data are replaced.
    InPlace,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Nothing but to tell that the replica does not stream, and why nothing is done.
    Tell(String),
    /// The lost slot goes; the primary still has the WAL that comes next, and Patroni makes a new slot.
    DropSlot,
    /// The server is started again.
    Restart,
    /// The replica is cloned again.
    Repair(Why, Way),
}

/// How our data lie to the primary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    /// On the primary's way: it holds all that we hold.
    Contained,
    /// On its way up to some position, and then another.
    Diverged,
    /// On no way that the primary knows of.
    Stranger,
}

impl Own {
    /// Whether it is known to the last byte what they are.
    fn is_known(&self) -> bool {
        self.exact && self.history.is_some()
    }
}

fn kin(primary: &Primary, own: &Own) -> Kin {
    let end = if own.timeline == primary.timeline {
        Some(primary.position)
    } else {
        primary.history.iter().find(|(timeline, _)| *timeline == own.timeline).map(|(_, end)| *end)
    };
    // Two servers that were promoted apart from each other give their timelines the same number.
    let before = primary.history.iter().take_while(|(timeline, _)| *timeline != own.timeline);
    if own.history.as_ref().is_some_and(|history| !history.iter().eq(before)) {
        return Kin::Stranger;
    }
    match end {
        Some(end) if own.position.0 <= end.0 => Kin::Contained,
        Some(_) => Kin::Diverged,
        None => Kin::Stranger,
    }
}

/// What is done next.
pub fn next(view: &View) -> Step {
    let tell = |why: String| Step::Tell(why);
    let ordered = view.order.is_some();
    match &view.server {
        Server::Primary if ordered => return tell("this node is the primary: hand over first".to_owned()),
        Server::Primary => return Step::Nothing,
        Server::Streaming if !ordered => return Step::Nothing,
        _ if !ordered && view.absent < NOTICE => return Step::Nothing,
        Server::Busy(state) if !ordered => return tell(state.clone()),
        Server::Streaming | Server::Busy(_) | Server::Apart(_) => {}
    }
    if view.paused {
        return tell("Patroni is paused, so a person is at work".to_owned());
    }
    let primary = match &view.primary {
        Ok(primary) => primary,
        Err(why) => return tell(why.clone()),
    };
    if let Some(why) = &primary.refuses {
        return tell(format!("a replication connection to {} fails: {why}", primary.name));
    }
    if let Turn::Taken(by) = &view.turn {
        return tell(format!("it waits until {by} is repaired"));
    }
    match &view.order {
        Some(order) => obey(view, *order),
        None => by_itself(view, primary),
    }
}

/// A person knows why; where both have room, nothing is lost.
fn obey(view: &View, order: CloneOrder) -> Step {
    match &view.room {
        Ok(()) => Step::Repair(Why::Ordered, Way::Aside),
        Err(_) if order.in_place => Step::Repair(Why::Ordered, Way::InPlace),
        Err(missing) => Step::Tell(missing.to_string()),
    }
}

fn by_itself(view: &View, primary: &Primary) -> Step {
    let tell = |why: String| Step::Tell(why);
    let own = match &view.own {
        Ok(own) => own,
        Err(why) => return tell(format!("{why}; `pgha-node reclone` clones it again")),
    };
    if own.system != primary.system {
        return tell(format!(
            "its data are of the system {}, those of {} of {}; `pgha-node reclone` sets them aside",
            own.system, primary.name, primary.system
        ));
    }
    let kin = kin(primary, own);
    if kin == Kin::Stranger {
        return tell(format!(
            "{} does not know its timeline {}; `pgha-node reclone` sets its data aside",
            primary.name, own.timeline
        ));
    }
    let why = match evidence(view, primary, own, kin) {
        Ok(why) => why,
        Err(step) => return step,
    };
    if let Some(last) = view.last.filter(|last| *last < BETWEEN) {
        let minutes = last.as_secs() / 60;
        return tell(format!("{why}; it was cloned again {minutes} min ago, the next time at the earliest in an hour"));
    }
    match &view.room {
        Ok(()) => Step::Repair(why, Way::Aside),
        Err(_) if own.is_known() && kin == Kin::Contained && primary.others > 0 => Step::Repair(why, Way::InPlace),
        Err(missing) => tell(format!("{why}; {missing}")),
    }
}

/// What shows that waiting does not help; else what is done before.
fn evidence(view: &View, primary: &Primary, own: &Own, kin: Kin) -> Result<Why, Step> {
    let patience = if own.exact { NOTICE } else { STILL };
    let gone =
        [Some(own.position).filter(|_| own.exact), view.waits].into_iter().flatten().any(|next| next < primary.oldest);
    let hard = if view.rewind_failed {
        Some(Why::RewindFailed)
    } else if kin == Kin::Diverged {
        Some(Why::Diverged)
    } else if gone {
        Some(Why::WalGone)
    } else if primary.slot == Slot::Lost {
        Some(Why::SlotLost)
    } else {
        None
    };
    match hard {
        Some(why) if view.still < patience => Err(Step::Tell(format!("{why}; if that stays so, it is cloned again"))),
        // The smallest act first.
        Some(Why::SlotLost) if !view.dropped => Err(Step::DropSlot),
        Some(Why::SlotLost) if view.still < STILL => Err(Step::Tell(Why::SlotLost.to_string())),
        Some(why) => Ok(why),
        None => unexplained(view, primary),
    }
}

fn unexplained(view: &View, primary: &Primary) -> Result<Why, Step> {
    let words = match &view.server {
        Server::Apart(state) if view.still < NOTICE => format!("{state}, catching up"),
        Server::Apart(state) | Server::Busy(state) => state.clone(),
        Server::Primary | Server::Streaming => String::new(),
    };
    let tell = |rest: &str| Err(Step::Tell(format!("{words}{rest}")));
    // Recovery after a crash takes as long as it takes, and shows nothing meanwhile.
    if !view.own.as_ref().is_ok_and(|own| own.exact) {
        return tell("; its server does not answer (journalctl -u patroni)");
    }
    if view.still < RESTART_AFTER {
        return tell("");
    }
    if !view.restarted {
        return Err(Step::Restart);
    }
    if primary.others == 0 {
        return tell("; no other replica streams either");
    }
    if view.still < STILL { tell("") } else { Ok(Why::Still) }
}

#[cfg(test)]
mod tests;
