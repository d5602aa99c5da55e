//! The members of etcd: one that no document names is removed, after a while; a node that was removed joins again.
//!
//! A member is removed only by a node whose document is the newest, when that document does not name it, when this agent
//! has not heard of it for minutes on end, and while all that it takes to lose another one is there. Every doubt (etcd
//! without a quorum, a look that came late) begins those minutes again.
//!
//! The others are asked one by one whether they run another cluster's etcd, also while this node's own is well: members
//! of a cluster that was given up may be a quorum of it. Who runs what another cluster has replaced gives way to that.

use super::{
    Attention, Concern, World,
    document::{self, Place, Record},
    turn::{Turn, Turns},
};
use crate::{
    etcd::{EtcdError, Member},
    log,
    model::scope::{client_url, peer_url},
    node::{
        etcd_data::EtcdData,
        form::{self, Beside},
        join::is_named,
        lock,
        recover::rival::Standing,
        state::ETCD_DATA,
        units,
    },
};
use anyhow::{Context as _, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

/// How often the members are looked at.
const INTERVAL: Duration = Duration::from_secs(15);
/// The same while etcd is away: Patroni, which asks the others' etcd too, must not come first to a cluster that went on
/// without this node.
const AWAY_INTERVAL: Duration = Duration::from_secs(3);
/// How long the others must not list this node before it counts as removed.
const UNLISTED: Duration = Duration::from_secs(15);
/// How long a member that no document names must not have answered before it is removed.
const SILENCE: Duration = Duration::from_secs(300);
/// As [`SILENCE`], for a member that was added and has never told where its clients reach it: it may be on its way.
const NEVER_STARTED: Duration = Duration::from_secs(1200);
/// Two looks that lie further apart have not seen uninterrupted silence.
const LATE: Duration = Duration::from_secs(60);
/// How long etcd may be away before a person is told.
const AWAY: Duration = Duration::from_secs(60);
/// How long after a node was made to run `init` again it is not made to do so once more.
const AGAIN: Duration = Duration::from_secs(60);
const PATRONI_UNIT: &str = "patroni.service";
const ETCD_UNIT: &str = "etcd.service";
const NODE_UNIT: &str = "pgha-node.service";

/// The concern.
#[derive(Debug, Default)]
pub struct Members {
    /// Since when each member that nobody names has not answered.
    silent: BTreeMap<u64, Instant>,
    looked: Option<Instant>,
    away: Option<Instant>,
    /// Since when the others do not list this node.
    removed: Option<Instant>,
    restarted: Option<Instant>,
}

impl Concern for Members {
    fn name(&self) -> &'static str {
        "members"
    }

    fn interval(&self) -> Duration {
        if self.away.is_some() { AWAY_INTERVAL } else { INTERVAL }
    }

    fn tick(&mut self, world: &World, now: Instant) -> Result<Vec<Attention>> {
        if !world.settled() {
            *self = Members { restarted: self.restarted, ..Members::default() };
            return Ok(Vec::new());
        }
        match world.etcd.cluster() {
            Ok((cluster, listed)) => {
                (self.away, self.removed) = (None, None);
                let beside = form::beside(&world.node, cluster)?;
                if beside.iter().any(|beside| beside.standing == Standing::GivesWay) {
                    // What this etcd says of its members does not matter any more.
                    self.come_back(world, now, ComesBack::LeftBehind, || form::is_left_behind(&world.node))?;
                    return Ok(vec![Attention::serious("members/left-behind", ComesBack::LeftBehind.words())]);
                }
                let mut told: Vec<Attention> = beside.iter().map(|beside| rival(cluster, beside)).collect();
                told.extend(self.look_after(world, &listed, now)?);
                Ok(told)
            }
            Err(error) => {
                self.silent.clear();
                let since = *self.away.get_or_insert(now);
                self.look_from_outside(world, now, &error, now.duration_since(since))
            }
        }
    }
}

impl Members {
    /// What a node whose etcd answers does.
    fn look_after(&mut self, world: &World, listed: &[Member], now: Instant) -> Result<Vec<Attention>> {
        let (place, record) = document::count(world, listed)?;
        self.listen(world, listed, now);
        let view = MembersView { place, listed: listed.iter().map(|member| self.seen(world, member, now)).collect() };
        let left_out: BTreeSet<String> =
            view.listed.iter().filter(|seen| !seen.named).map(|seen| seen.name.clone()).collect();
        let mut told: Vec<Attention> = out_of_date(place, &record, &left_out).into_iter().collect();
        if let Some(id) = ripe(&view)
            && view.is_safe(&self.answering(world, listed))
        {
            // Another node may see the same, or another member that is to go: one at a time.
            let turns = Turns::of(world, "members");
            if let Turn::Ours(_) = turns.take()? {
                world.etcd.member_remove(id).with_context(|| format!("removing the member {id:x} from etcd"))?;
                log::warning!(
                    "removed {} from etcd: the document does not name it, and it was silent for long",
                    label(listed, id)
                );
                self.silent.remove(&id);
                turns.give_back()?;
            }
        }
        told.extend(view.listed.iter().filter_map(leaving));
        Ok(told)
    }

    /// Asks the members that nobody names whether they are there.
    fn listen(&mut self, world: &World, listed: &[Member], now: Instant) {
        let is_late = self.looked.is_none_or(|looked| now.duration_since(looked) > LATE);
        if is_late {
            self.silent.clear();
        }
        self.looked = Some(now);
        let strangers: Vec<&Member> =
            listed.iter().filter(|member| !is_named(&world.node.spec, &member.name, &member.peer_urls)).collect();
        self.silent.retain(|id, _| strangers.iter().any(|member| member.id == *id));
        for member in strangers {
            if answers(world, member) {
                self.silent.remove(&member.id);
            } else {
                self.silent.entry(member.id).or_insert(now);
            }
        }
    }

    fn seen(&self, world: &World, member: &Member, now: Instant) -> SeenMember {
        SeenMember {
            id: member.id,
            name: if member.name.is_empty() { format!("{:x}", member.id) } else { member.name.clone() },
            named: is_named(&world.node.spec, &member.name, &member.peer_urls),
            started: !member.client_urls.is_empty(),
            silent: self.silent.get(&member.id).map(|since| now.duration_since(*since)),
        }
    }

    /// The members that answer at this moment.
    fn answering(&self, world: &World, listed: &[Member]) -> BTreeSet<u64> {
        listed.iter().filter(|member| answers(world, member)).map(|member| member.id).collect()
    }

    /// Lets `init` begin again, if `again` still says so when nobody else can change this node, and it was not made to do
    /// so a moment ago.
    fn come_back(
        &mut self,
        world: &World,
        now: Instant,
        why: ComesBack,
        again: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        if self.was_lately(now) {
            return Ok(());
        }
        let held = lock::hold_now("agent")?;
        world.ensure_not_ordered()?;
        // Until the lock was ours, others may have changed this node.
        if !world.settled() || !again()? {
            return Ok(());
        }
        log::warning!("{}", why.words());
        if why == ComesBack::LeftBehind {
            units::stop(PATRONI_UNIT)?;
        }
        // One that was away when it was removed does not know of it, and waits for a leader; `init` does not ask what
        // runs.
        units::stop(ETCD_UNIT)?;
        drop(held);
        units::run_again(NODE_UNIT).with_context(|| format!("restarting {NODE_UNIT}"))?;
        self.restarted = Some(now);
        Ok(())
    }

    fn was_lately(&self, now: Instant) -> bool {
        self.restarted.is_some_and(|at| now.duration_since(at) < AGAIN)
    }

    /// What a node whose etcd does not answer does: asks the others whether it is still a member.
    fn look_from_outside(
        &mut self,
        world: &World,
        now: Instant,
        error: &EtcdError,
        away: Duration,
    ) -> Result<Vec<Attention>> {
        let (others, own) = (ask_others(world), EtcdData::look(Path::new(ETCD_DATA)));
        let seen = |others: &Option<(u64, Vec<Member>)>, own: &EtcdData| -> Result<(Option<bool>, bool)> {
            let Some((cluster, listed)) = others else { return Ok((None, false)) };
            let left_behind = is_other(*cluster, own) && form::is_left_behind(&world.node)?;
            Ok((is_listed(*cluster, listed, &peer_url(world.me()), own), left_behind))
        };
        let (listed, left_behind) = seen(&others, &own)?;
        self.removed = (listed == Some(false)).then(|| self.removed.unwrap_or(now));
        let outside = Outside {
            listed,
            left_behind,
            unlisted: self.removed.map(|since| now.duration_since(since)).unwrap_or_default(),
            lately: self.was_lately(now),
        };
        if let Some(why) = outside.comes_back() {
            // etcd may be back.
            self.come_back(world, now, why, || {
                let again = seen(&ask_others(world), &EtcdData::look(Path::new(ETCD_DATA)))?;
                Ok(world.etcd.members().is_err() && again == (listed, left_behind))
            })?;
        }
        if listed == Some(false) {
            return Ok(vec![Attention::serious("members/removed", ComesBack::Removed.words())]);
        }
        if left_behind {
            return Ok(vec![Attention::serious("members/left-behind", ComesBack::LeftBehind.words())]);
        }
        if away < AWAY {
            return Ok(Vec::new());
        }
        let text = match &others {
            Some((cluster, _)) if is_other(*cluster, &own) => format!(
                "the other nodes run another cluster's etcd ({cluster:x}) than this node has data of: `pgha-node recover` shows \
                 which data are where"
            ),
            Some(_) => format!("this node's etcd does not answer, the others have a quorum: {error}"),
            None => format!("etcd has no quorum that this node reaches, so no replica can take over: {error}"),
        };
        Ok(vec![Attention::serious("members/no-etcd", text)])
    }
}

/// What is told of another cluster beside this node's, which has the id `own`, as long as this one does not give way.
fn rival(own: u64, beside: &Beside) -> Attention {
    let Beside { cluster, nodes, standing } = beside;
    let both = format!(
        "two clusters of one name run and may both take writes: this node is part of the etcd {own:x}, and {} of {cluster}, \
         each with a quorum",
        nodes.join(", ")
    );
    let way_out = match standing {
        Standing::Stays => {
            "This node's has replaced the other by a person's order, and those nodes give way by themselves within a \
             minute. If they do not"
        }
        Standing::Open | Standing::GivesWay => "Nothing says which has replaced the other: decide which is right",
    };
    Attention::serious(
        &format!("members/rival-{cluster}"),
        format!("{both}. {way_out}: `pgha-node recover`, and the manual, `pgha-node help recover`"),
    )
}

/// The cluster's id and its members as a quorum of the others lists them; nothing if none answers.
fn ask_others(world: &World) -> Option<(u64, Vec<Member>)> {
    let others: Vec<String> = world.others().map(client_url).collect();
    if others.is_empty() {
        return None;
    }
    world.credentials.etcd(others).and_then(|client| client.cluster()).ok()
}

/// What is told of a document that is not the newest; `left_out` are the members of etcd that it does not name.
fn out_of_date(place: Place, record: &Record, left_out: &BTreeSet<String>) -> Option<Attention> {
    let names = record.members.join(", ");
    let newest = match record.generation {
        0 => "no document is known that names all".to_owned(),
        generation => format!("the newest so far is generation {generation} (members {names})"),
    };
    let text = match place {
        Place::Current => return None,
        Place::Older { generation, newest } => format!(
            "this node's document is generation {generation}, the newest is {newest} (members {names}): give it that document"
        ),
        Place::Unknown => format!(
            "this node's document is not one that the cluster has seen, and does not name {}, members of etcd: if it is \
             right, `pgha-node init --changed`; {newest}",
            left_out.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
    };
    Some(Attention::notice("members/older-document", text))
}

/// A member as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenMember {
    /// Its id.
    pub id: u64,
    /// Its name, or its id where it has not told it yet.
    pub name: String,
    /// Whether the document names it.
    pub named: bool,
    /// Whether it has ever started.
    pub started: bool,
    /// For how long it has not answered; nothing if it does, or was not asked.
    pub silent: Option<Duration>,
}

impl SeenMember {
    /// After how much silence it may be removed.
    fn patience(&self) -> Duration {
        if self.started { SILENCE } else { NEVER_STARTED }
    }
}

/// What is known of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersView {
    /// Where this node's document stands.
    pub place: Place,
    /// The members of etcd.
    pub listed: Vec<SeenMember>,
}

/// The member that may be removed, if there is one.
pub fn ripe(view: &MembersView) -> Option<u64> {
    if view.place != Place::Current {
        return None;
    }
    let gone = |seen: &&SeenMember| !seen.named && seen.silent.is_some_and(|silent| silent >= seen.patience());
    view.listed.iter().find(gone).map(|seen| seen.id)
}

impl MembersView {
    /// Whether the members that answer are more than half of all as they are now: etcd then carries the change out at once,
    /// and what remains has its quorum.
    pub fn is_safe(&self, answering: &BTreeSet<u64>) -> bool {
        self.listed.iter().filter(|seen| answering.contains(&seen.id)).count() > self.listed.len() / 2
    }
}

/// What is told of a member that nobody names and that does not answer.
fn leaving(seen: &SeenMember) -> Option<Attention> {
    let silent = seen.silent.filter(|silent| !seen.named && *silent >= AWAY)?;
    let minutes = silent.as_secs() / 60;
    Some(Attention::notice(
        &format!("members/silent-{:x}", seen.id),
        format!("{} is a member of etcd that the document does not name, silent for {minutes} min", seen.name),
    ))
}

/// What a node whose own etcd does not answer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outside {
    /// Whether a quorum of the others lists this node; nothing if none answers, or it is not this node's cluster.
    listed: Option<bool>,
    /// For how long it has not been listed.
    unlisted: Duration,
    /// Whether the others are another cluster of etcd, which this node may follow.
    left_behind: bool,
    /// Whether `init` was begun again a moment ago.
    lately: bool,
}

/// Why a node must run `init` again to become a member again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ComesBack {
    /// The others have removed it.
    Removed,
    /// The cluster went on without it.
    LeftBehind,
}

impl ComesBack {
    fn words(self) -> &'static str {
        match self {
            ComesBack::Removed => "the others have removed this node from etcd: it joins again",
            ComesBack::LeftBehind => {
                "the cluster went on in another etcd than this node's: Patroni is stopped, and the node joins the cluster"
            }
        }
    }
}

impl Outside {
    /// Whether the node must run `init` again to become a member again, and why. `init` decides about the database of a
    /// node that was left behind before Patroni rewinds it; so that one does not look twice first.
    fn comes_back(self) -> Option<ComesBack> {
        match self {
            Outside { lately: true, .. } => None,
            Outside { left_behind: true, .. } => Some(ComesBack::LeftBehind),
            Outside { listed: Some(false), unlisted, .. } if unlisted >= UNLISTED => Some(ComesBack::Removed),
            _ => None,
        }
    }
}

/// The member whose peers reach it there.
fn own<'a>(listed: &'a [Member], url: &str) -> Option<&'a Member> {
    listed.iter().find(|member| member.peer_urls.iter().any(|known| known == url))
}

/// Whether this node is a member of the cluster `cluster`, by the ids in its etcd's data: one with its address and another id
/// was added after it was removed. Nothing if the data are another cluster's, or cannot be read.
fn is_listed(cluster: u64, listed: &[Member], url: &str, own: &EtcdData) -> Option<bool> {
    match own {
        EtcdData::Data(ids) if ids.cluster == cluster => Some(listed.iter().any(|member| member.id == ids.member)),
        EtcdData::Data(_) | EtcdData::Unknown(_) => None,
        EtcdData::Absent | EtcdData::Unborn => Some(self::own(listed, url).is_some()),
    }
}

/// Whether this node's etcd data are another cluster's.
fn is_other(cluster: u64, own: &EtcdData) -> bool {
    matches!(own, EtcdData::Data(ids) if ids.cluster != cluster)
}

/// Whether a member is there: one that refuses is.
fn answers(world: &World, member: &Member) -> bool {
    member.client_urls.iter().any(|endpoint| {
        let status = world.credentials.etcd(vec![endpoint.clone()]).and_then(|client| client.status(endpoint));
        matches!(status, Ok(_) | Err(EtcdError::Refused { .. }))
    })
}

fn label(listed: &[Member], id: u64) -> String {
    let name = listed.iter().find(|member| member.id == id).map(|member| member.name.as_str()).unwrap_or_default();
    if name.is_empty() { format!("the member {id:x}") } else { format!("the member {name} ({id:x})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::etcd_data::Ids;

    fn member(id: u64) -> Member {
        Member { id, peer_urls: vec![format!("https://10.0.0.1{id}:2380")], ..Member::default() }
    }

    #[test]
    fn only_the_newest_document_removes_and_only_whom_it_does_not_name_after_long_silence() {
        let places = [Place::Current, Place::Unknown, Place::Older { generation: 1, newest: 2 }];
        let times = [None, Some(0), Some(299), Some(300), Some(1199), Some(1200)];
        for place in places {
            for named in [true, false] {
                for started in [true, false] {
                    for seconds in times {
                        let silent = seconds.map(Duration::from_secs);
                        let seen = SeenMember { id: 9, name: "pg-9".into(), named, started, silent };
                        let enough = seconds >= Some(if started { 300 } else { 1200 });
                        let expected = place == Place::Current && !named && enough;
                        let view = MembersView { place, listed: vec![seen] };
                        assert_eq!(ripe(&view).is_some(), expected, "{view:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nobody_is_removed_while_half_of_all_are_silent() {
        for count in 1..=7_u64 {
            let seen = |id| SeenMember { id, name: String::new(), named: true, started: true, silent: None };
            let view = MembersView { place: Place::Current, listed: (0..count).map(seen).collect() };
            for answering in 0..=count {
                let safe = view.is_safe(&(0..answering).collect());
                assert_eq!(safe, answering > count / 2, "{answering} of {count}");
                if safe {
                    assert!(answering > (count - 1) / 2, "what remains has its quorum");
                }
            }
        }
        let view = MembersView { place: Place::Current, listed: Vec::new() };
        assert!(!view.is_safe(&BTreeSet::from([7])), "an answer of no member counts nothing");
    }

    #[test]
    fn a_node_comes_back_only_when_it_is_known_to_be_removed() {
        for listed in [None, Some(true), Some(false)] {
            for unlisted in [0, 14, 15].map(Duration::from_secs) {
                for lately in [true, false] {
                    let outside = Outside { listed, unlisted, left_behind: false, lately };
                    let removed = listed == Some(false) && unlisted >= UNLISTED && !lately;
                    assert_eq!(outside.comes_back(), removed.then_some(ComesBack::Removed), "{outside:?}");
                    let behind = Outside { left_behind: true, ..outside };
                    assert_eq!(behind.comes_back(), (!lately).then_some(ComesBack::LeftBehind), "{outside:?}");
                }
            }
        }
    }

    #[test]
    fn a_node_whose_etcd_is_away_looks_often() {
        let mut members = Members::default();
        assert_eq!(members.interval(), INTERVAL);
        members.away = Some(Instant::now());
        assert!(members.interval() < Duration::from_secs(5), "Patroni looks every ten seconds");
    }

    #[test]
    fn a_member_is_known_by_its_id_and_else_by_its_address() {
        let listed = [member(1), member(2)];
        let asked = |url: &str, own: EtcdData| is_listed(9, &listed, url, &own);
        let data = |cluster, member| EtcdData::Data(Ids { cluster, member });
        assert_eq!(asked("https://10.0.0.11:2380", EtcdData::Absent), Some(true));
        assert_eq!(asked("https://10.0.0.13:2380", EtcdData::Unborn), Some(false));
        assert_eq!(asked("https://10.0.0.99:2380", data(9, 2)), Some(true));
        assert_eq!(asked("https://10.0.0.11:2380", data(9, 7)), Some(false), "it was removed and added again");
        // Another cluster at the addresses of the document's members says nothing about this one.
        assert_eq!(asked("https://10.0.0.11:2380", data(8, 7)), None);
        assert_eq!(asked("https://10.0.0.13:2380", EtcdData::Unknown("damaged".into())), None);
        assert!(is_other(9, &data(8, 1)) && !is_other(9, &data(9, 1)) && !is_other(9, &EtcdData::Absent));
    }

    #[test]
    fn both_sides_of_two_clusters_are_told_which_nodes_run_the_other() {
        let of = |standing| Beside { cluster: "2f".into(), nodes: vec!["pg-2".into(), "pg-3".into()], standing };
        for standing in [Standing::Open, Standing::Stays] {
            let told = rival(0x1f, &of(standing));
            assert_eq!((told.key.as_str(), told.serious), ("members/rival-2f", true));
            for part in ["etcd 1f", "pg-2, pg-3 of 2f", "`pgha-node recover`", "`pgha-node help recover`"] {
                assert!(told.text.contains(part), "{part}: {}", told.text);
            }
            assert_eq!(told.text.contains("give way by themselves"), standing == Standing::Stays, "{}", told.text);
        }
    }

    #[test]
    fn silence_is_told_after_a_minute() {
        let seen = |seconds| SeenMember {
            id: 9,
            name: "pg-9".into(),
            named: false,
            started: true,
            silent: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(leaving(&seen(59)), None);
        let told = leaving(&seen(185)).unwrap();
        assert_eq!(told.text, "pg-9 is a member of etcd that the document does not name, silent for 3 min");
        assert_eq!(leaving(&SeenMember { named: true, ..seen(185) }), None);
    }
}
