//! etcd's space: compacts its history, defragments its files, disarms its alarms.
//!
//! When a member's database file reaches its quota, etcd raises the alarm `NOSPACE`, and from then on every write is
//! refused: the primary goes on, and nobody can take over from it. The alarm stays until somebody lowers it, and the file
//! never shrinks by itself.
//!
//! Only the agent beside etcd's leader acts, so no two do: a lock in etcd would be refused just when it is needed (grants
//! of leases are writes). It defragments one member at a time, itself last: it then gives the leadership to a member that is
//! done already, whose agent finds it among the others. A member serves nothing while it is defragmented, so each one waits
//! until all answer a question that goes through the quorum. Only where etcd refuses writes already it does not wait for a
//! member that is away, as long as more than half answer: nobody can take over until it is done.

use super::{Attention, Concern, World};
use crate::{
    etcd::{Alarm, Client, EtcdError, RangeRequest, Settings, Status},
    log,
    model::scope::ETCD_QUOTA,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(30);
/// The same while etcd refuses writes: nobody can take over until it does not.
const HASTE: Duration = Duration::from_secs(5);
/// etcd's configuration, which has its quota.
const CONFIG_PATH: &str = "/etc/etcd/etcd.yaml";
/// How often the leader asks all members how they stand while nothing is wrong.
const ROUND: Duration = Duration::from_secs(300);
/// How long a member may take to give its space back.
const DEFRAGMENTED_WITHIN: Duration = Duration::from_secs(120);
/// How long an act that has not helped is not tried again.
const REST: Duration = Duration::from_secs(600);
const NO_SPACE: &str = "NOSPACE";

/// From when on space is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest database file, in bytes.
    pub quota: u64,
    /// The smallest file that is worth the pause, in bytes.
    pub floor: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { quota: ETCD_QUOTA, floor: 100 << 20 }
    }
}

/// The concern.
#[derive(Debug, Default)]
pub struct Store {
    limits: Limits,
    alarmed: bool,
    defragmented: BTreeMap<u64, Instant>,
    compacted: Option<Instant>,
    round: Option<Instant>,
}

impl Concern for Store {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn interval(&self) -> Duration {
        if self.alarmed { HASTE } else { INTERVAL }
    }

    fn tick(&mut self, world: &World, now: Instant) -> Result<Vec<Attention>> {
        let endpoint = world.etcd.endpoint().to_owned();
        let config = fs::read_to_string(CONFIG_PATH).unwrap_or_default();
        self.limits.quota = quota(&config).unwrap_or(ETCD_QUOTA);
        match self.look(&world.etcd, &endpoint, now) {
            // Before the node is up, nobody can expect an answer.
            Err(_) if !world.settled() => Ok(Vec::new()),
            looked => looked,
        }
    }
}

impl Store {
    /// A concern with other limits.
    pub fn with(limits: Limits) -> Store {
        Store { limits, ..Store::default() }
    }

    /// Looks through `client` at the member at `endpoint` and, if that leads, at all; does what is to be done next.
    ///
    /// # Errors
    /// When etcd does not answer, or refuses what is to be done.
    pub fn look(&mut self, client: &Client, endpoint: &str, now: Instant) -> Result<Vec<Attention>> {
        let own = client.status(endpoint).context("asking this node's etcd")?;
        let alarmed = !own.errors.is_empty();
        let leads = own.leader != 0 && own.leader == own.header.member_id;
        let due = self.round.is_none_or(|round| now.duration_since(round) >= ROUND);
        let alarms = if alarmed { client.alarms().context("asking etcd for its alarms")? } else { Vec::new() };
        self.alarmed = !alarms.is_empty();
        let mut told = tell(&own, &alarms, self.limits);
        if leads && (alarmed || due || self.limits.wants_space(own.db_size, own.db_size_in_use, false)) {
            self.round = Some(now);
            let view = self.gather(client, &own, alarms, now)?;
            let step = next(&view);
            if let Step::Wait(why) = &step {
                told.push(Attention::serious("etcd/waits", why.clone()));
            }
            self.act(client, endpoint, &view, &step, now)?;
        }
        Ok(told)
    }

    fn gather(&self, client: &Client, own: &Status, alarms: Vec<Alarm>, now: Instant) -> Result<View> {
        let rests = |at: &Instant| now.duration_since(*at) < REST;
        let members = client.members().context("asking for etcd's members")?.into_iter().map(|member| {
            let endpoint = member.client_urls.first().cloned().unwrap_or_default();
            let status = at(client, &endpoint, None).and_then(|client| {
                let status = client.status(&endpoint)?;
                // A member that is being defragmented tells how it stands, and reads nothing.
                client.range_at(&endpoint, &RangeRequest::key("/pgha"))?;
                Ok(status)
            });
            Standing {
                id: member.id,
                name: if member.name.is_empty() { format!("{:x}", member.id) } else { member.name },
                sizes: status.as_ref().ok().map(|status| (status.db_size, status.db_size_in_use)),
                index: status.map(|status| status.raft_index).unwrap_or_default(),
                rests: self.defragmented.get(&member.id).is_some_and(rests),
                endpoint,
            }
        });
        Ok(View {
            limits: self.limits,
            leader: own.leader,
            alarms,
            members: members.collect(),
            compacted: self.compacted.as_ref().is_some_and(rests),
        })
    }

    fn act(&mut self, client: &Client, endpoint: &str, view: &View, step: &Step, now: Instant) -> Result<()> {
        match step {
            Step::Nothing | Step::Wait(_) => {}
            Step::Compact => {
                let revision = client.status(endpoint)?.header.revision;
                match at(client, endpoint, Some(DEFRAGMENTED_WITHIN))?.compact_physically(revision) {
                    Ok(()) => log::info!("etcd's history is compacted up to revision {revision}"),
                    Err(error) if error.compacted() => {}
                    Err(error) => return Err(error).context("compacting etcd's history"),
                }
                self.compacted = Some(now);
                // What was not free before may be now.
                self.defragmented.clear();
            }
            Step::Defragment(member) => {
                // Whatever comes of it, this member is not asked again at once.
                self.defragmented.insert(member.id, now);
                log::info!("defragmenting the etcd of {}, {}", member.name, member.words());
                at(client, &member.endpoint, Some(DEFRAGMENTED_WITHIN))?
                    .defragment(&member.endpoint)
                    .with_context(|| format!("defragmenting the etcd of {}", member.name))?;
            }
            Step::HandOver(target) => {
                log::info!("moving etcd's leader to {}, so that this node's etcd can be defragmented", target.name);
                client.move_leader(endpoint, target.id).context("moving etcd's leader")?;
            }
            Step::Disarm => {
                for alarm in view.alarms.iter().filter(|alarm| alarm.kind == NO_SPACE) {
                    client.disarm(alarm).context("disarming etcd's alarm")?;
                }
                log::info!("etcd has space again: its alarm is disarmed");
            }
        }
        Ok(())
    }
}

/// The same client for one endpoint, with another time for a request.
fn at(client: &Client, endpoint: &str, request: Option<Duration>) -> Result<Client, EtcdError> {
    let settings = client.settings();
    let request = request.unwrap_or(settings.request);
    Client::new(Settings { endpoints: vec![endpoint.to_owned()], request, ..settings.clone() })
}

/// What this node tells of its own etcd.
fn tell(own: &Status, alarms: &[Alarm], limits: Limits) -> Vec<Attention> {
    let mut told = Vec::new();
    let used = format!("{} of {} MiB", mib(own.db_size), mib(limits.quota));
    for alarm in alarms {
        let text = match alarm.kind.as_str() {
            NO_SPACE => format!("etcd's space is used up ({used}): it refuses all writes, so no replica can take over"),
            "CORRUPT" => format!(
                "etcd's members differ in what they hold (alarm CORRUPT, member {:x}): replace that member's node",
                alarm.member
            ),
            other => format!("etcd has raised the alarm {other}"),
        };
        let key = format!("etcd/alarm-{}", alarm.kind.to_lowercase());
        if told.iter().all(|known: &Attention| known.key != key) {
            told.push(Attention::serious(&key, text));
        }
    }
    if alarms.is_empty() && limits.is_near(own.db_size) {
        told.push(Attention::notice("etcd/space", format!("etcd's space is nearly used up: {used}")));
    }
    told
}

/// The quota that etcd's configuration names.
fn quota(config: &str) -> Option<u64> {
    let value = config.lines().find_map(|line| line.strip_prefix("quota-backend-bytes:"))?;
    value.trim().parse().ok().filter(|quota| *quota > 0)
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

impl Limits {
    fn is_near(&self, size: u64) -> bool {
        size >= self.quota / 10 * 8
    }

    /// Whether a file of `size` bytes, of which `used` hold something, is to give space back: when half of it is free, and
    /// under an alarm whenever it is nearly full. What is in use is counted at a member's writes, which an alarm stops.
    fn wants_space(&self, size: u64, used: u64, alarm: bool) -> bool {
        let free = size.saturating_sub(used);
        (size > self.floor && free > size / 2) || (alarm && (self.is_full(size) || free >= self.quota / 10))
    }

    fn is_full(&self, size: u64) -> bool {
        size >= self.quota / 10 * 9
    }
}

/// How a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    id: u64,
    name: String,
    endpoint: String,
    /// Bytes of its file, and those in use; nothing if it does not answer.
    sizes: Option<(u64, u64)>,
    index: u64,
    /// It was defragmented a moment ago.
    rests: bool,
}

impl Standing {
    fn words(&self) -> String {
        let (size, used) = self.sizes.unwrap_or_default();
        format!("which uses {} of {} MiB", mib(used), mib(size))
    }
}

/// How all members stand, as the leader's agent sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    limits: Limits,
    leader: u64,
    alarms: Vec<Alarm>,
    members: Vec<Standing>,
    /// The history was forgotten a moment ago.
    compacted: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Forget the history.
    Compact,
    /// Make this member give its space back.
    Defragment(Standing),
    /// Make this member the leader.
    HandOver(Standing),
    /// Lower the alarm.
    Disarm,
    /// Nothing can be done; why.
    Wait(String),
}

fn next(view: &View) -> Step {
    let alarm = view.alarms.iter().any(|alarm| alarm.kind == NO_SPACE);
    // Members that differ must be looked at as they are.
    if view.alarms.iter().any(|alarm| alarm.kind != NO_SPACE) {
        return Step::Nothing;
    }
    let silent: Vec<&str> =
        view.members.iter().filter(|member| member.sizes.is_none()).map(|member| member.name.as_str()).collect();
    if !silent.is_empty() && !alarm {
        return Step::Nothing;
    }
    if let Some(busy) = view.members.iter().find(|member| member.sizes.is_none() && member.rests) {
        return Step::Wait(format!("the etcd of {} is being defragmented", busy.name));
    }
    if silent.len() * 2 >= view.members.len() {
        return Step::Wait(format!(
            "etcd gets space again when more than half of its members answer; not here: {}",
            silent.join(", ")
        ));
    }
    let used = view.members.iter().filter_map(|member| member.sizes).map(|(_, used)| used).max().unwrap_or_default();
    if !view.compacted && (alarm || used >= view.limits.quota / 10 * 7) {
        return Step::Compact;
    }
    if let Some(step) = give_back(view, alarm) {
        return step;
    }
    let largest = view.members.iter().filter_map(|member| member.sizes).map(|(size, _)| size).max().unwrap_or_default();
    match alarm {
        true if !view.limits.is_full(largest) => Step::Disarm,
        true => Step::Wait(format!(
            "etcd's keys themselves take up to {} MiB: find who writes them (etcdctl get --prefix / --keys-only) and delete \
             them; ten minutes later etcd takes writes again",
            mib(used)
        )),
        false => Step::Nothing,
    }
}

/// The next member to be defragmented, the leader last.
fn give_back(view: &View, alarm: bool) -> Option<Step> {
    let wants = |member: &&Standing| {
        let wants = member.sizes.is_some_and(|(size, used)| view.limits.wants_space(size, used, alarm));
        wants && !member.rests
    };
    let (leader, others): (Vec<&Standing>, Vec<&Standing>) =
        view.members.iter().partition(|member| member.id == view.leader);
    if let Some(member) = others.iter().copied().find(wants) {
        return Some(Step::Defragment(member.clone()));
    }
    let leader = leader.into_iter().find(wants)?;
    match others.into_iter().filter(|member| member.sizes.is_some()).max_by_key(|member| member.index) {
        Some(successor) => Some(Step::HandOver(successor.clone())),
        None => Some(Step::Defragment(leader.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { quota: 1000 << 20, floor: 100 << 20 };

    fn standing(id: u64, size: u64, used: u64) -> Standing {
        Standing {
            id,
            name: format!("pg-{id}"),
            endpoint: String::new(),
            sizes: Some((size << 20, used << 20)),
            index: id,
            rests: false,
        }
    }

    fn view(alarm: bool, members: Vec<Standing>) -> View {
        let raised = Alarm { member: 2, kind: NO_SPACE.into() };
        View {
            limits: LIMITS,
            leader: 1,
            alarms: if alarm { vec![raised] } else { Vec::new() },
            members,
            compacted: false,
        }
    }

    fn silent(id: u64) -> Standing {
        Standing { sizes: None, ..standing(id, 0, 0) }
    }

    #[test]
    fn a_file_that_is_mostly_empty_is_made_small_before_it_is_full() {
        let small = |id| standing(id, 90, 1);
        assert_eq!(next(&view(false, vec![small(1), small(2), small(3)])), Step::Nothing);
        let full = |id| standing(id, 400, 201);
        assert_eq!(next(&view(false, vec![full(1), full(2), full(3)])), Step::Nothing);
        let empty = standing(3, 400, 199);
        assert_eq!(next(&view(false, vec![full(1), full(2), empty.clone()])), Step::Defragment(empty.clone()));
        let rests = Standing { rests: true, ..empty };
        assert_eq!(next(&view(false, vec![full(1), full(2), rests])), Step::Nothing);
        // Long history is forgotten before the file is full.
        assert_eq!(next(&view(false, vec![standing(1, 900, 700), full(2), full(3)])), Step::Compact);
    }

    #[test]
    fn nothing_is_done_while_a_member_is_away_unless_etcd_refuses_writes_and_more_than_half_are_here() {
        let empty = |id| standing(id, 400, 10);
        for bits in 0..8_u32 {
            let away = |id: u64| bits >> (id - 1) & 1 == 1;
            let members = |alarm| {
                let members = [1, 2, 3].map(|id| if away(id) { silent(id) } else { empty(id) });
                View { compacted: true, ..view(alarm, members.into()) }
            };
            if bits > 0 {
                assert_eq!(next(&members(false)), Step::Nothing, "{bits:b}");
            }
            match (bits.count_ones(), next(&members(true))) {
                (0 | 1, Step::Defragment(member)) => assert!(!away(member.id) && member.id != 1, "{bits:b}"),
                (2 | 3, Step::Wait(why)) => {
                    assert!(why.contains("more than half of its members answer; not here: pg-"))
                }
                (_, other) => panic!("{bits:b}: {other:?}"),
            }
        }
        let mut alarmed = view(true, vec![empty(1), empty(2), Standing { rests: true, ..silent(3) }]);
        alarmed.compacted = true;
        assert_eq!(next(&alarmed), Step::Wait("the etcd of pg-3 is being defragmented".into()));
    }

    #[test]
    fn a_full_store_gets_space_step_by_step_the_leader_last() {
        let full = |id| standing(id, 1000, 980);
        let mut view = view(true, vec![full(1), full(2), full(3)]);
        assert_eq!(next(&view), Step::Compact);
        view.compacted = true;
        for member in &mut view.members {
            member.sizes = Some((1000 << 20, 50 << 20));
        }
        let mut order = Vec::new();
        for _ in 0..10 {
            let step = next(&view);
            match &step {
                Step::Defragment(member) => {
                    order.push(format!("defragment {}", member.name));
                    let known = view.members.iter_mut().find(|known| known.id == member.id).unwrap();
                    (known.sizes, known.rests) = (Some((50 << 20, 50 << 20)), true);
                }
                Step::HandOver(member) => {
                    order.push(format!("hand over to {}", member.name));
                    view.leader = member.id;
                }
                Step::Disarm => {
                    order.push("disarm".into());
                    view.alarms.clear();
                }
                Step::Nothing => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(order, ["defragment pg-2", "defragment pg-3", "hand over to pg-3", "defragment pg-1", "disarm"]);
    }

    #[test]
    fn a_member_alone_is_its_own_leader() {
        let mut alone = view(true, vec![standing(1, 1000, 20)]);
        alone.compacted = true;
        assert!(matches!(next(&alone), Step::Defragment(member) if member.id == 1));
    }

    #[test]
    fn keys_that_fill_the_store_are_a_persons() {
        let full = |id| Standing { rests: true, ..standing(id, 1000, 990) };
        let mut full = view(true, vec![full(1), full(2), full(3)]);
        full.compacted = true;
        let Step::Wait(why) = next(&full) else { panic!("not waiting") };
        assert!(why.starts_with("etcd's keys themselves take up to 990 MiB"), "{why}");
    }

    #[test]
    fn members_that_differ_stay_as_they_are() {
        let mut corrupt = view(true, vec![standing(1, 1000, 20)]);
        corrupt.alarms.push(Alarm { member: 1, kind: "CORRUPT".into() });
        assert_eq!(next(&corrupt), Step::Nothing);
        let own = Status { db_size: 1000 << 20, ..Status::default() };
        let told = tell(&own, &corrupt.alarms, LIMITS);
        assert_eq!(
            told.iter().map(|told| told.key.as_str()).collect::<Vec<_>>(),
            ["etcd/alarm-nospace", "etcd/alarm-corrupt"]
        );
        assert!(told.iter().all(|told| told.serious));
    }

    #[test]
    fn the_quota_is_etcds_own() {
        assert_eq!(quota("name: x\nquota-backend-bytes: 16777216\nlogger: zap\n"), Some(16 << 20));
        assert_eq!(
            (quota(""), quota("quota-backend-bytes: 0"), quota("quota-backend-bytes: much")),
            (None, None, None)
        );
    }

    #[test]
    fn a_store_that_is_nearly_full_is_told_of() {
        let told = |mib: u64| tell(&Status { db_size: mib << 20, ..Status::default() }, &[], LIMITS);
        assert_eq!(told(799), []);
        assert_eq!(told(801)[0].text, "etcd's space is nearly used up: 801 of 1000 MiB");
    }
}
