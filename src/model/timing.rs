//! Every timer of a cluster, decided in one place, and the recovery times that follow from them.
//!
//! Patroni's lease (`ttl`) decides how long the others wait for a lost primary; all other timers are kept well below
//! it. Rules: Patroni, `docs/dynamic_configuration.rst` and `docs/watchdog.rst`; etcd, `tuning`; RFC 5798, section 6.1.

use super::Time;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, time::Duration};

/// A named set of timers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Nodes in one room, with disks and processors to spare.
    Fast,
    /// Nodes in one site.
    #[default]
    Norm,
    /// Busy machines, shared disks, virtual networks.
    Safe,
    /// Nodes in several sites.
    Wide,
}

impl Preset {
    /// All presets, fastest first.
    pub const ALL: [Preset; 4] = [Preset::Fast, Preset::Norm, Preset::Safe, Preset::Wide];
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Preset::Fast => "fast",
            Preset::Norm => "norm",
            Preset::Safe => "safe",
            Preset::Wide => "wide",
        })
    }
}

/// The document's `timing`: a preset's name, or keys of which `preset` is one and the others change single timers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimingSpec {
    /// Where the timers come from.
    pub preset: Preset,
    /// The timers that differ from it.
    pub changes: Changes,
}

/// Timers that differ from the preset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Changes {
    /// The preset that the others change.
    pub preset: Preset,
    /// How long the leader's lease holds without renewal; whole seconds, 20 s at least.
    pub ttl: Option<Time>,
    /// How often Patroni looks after its node; whole seconds.
    pub loop_wait: Option<Time>,
    /// How long Patroni retries etcd and PostgreSQL; whole seconds, 3 s at least.
    pub retry_timeout: Option<Time>,
    /// How long a crashed primary may take to come back before another is chosen; whole seconds.
    pub primary_start_timeout: Option<Time>,
    /// How often etcd's leader says that it lives.
    pub etcd_heartbeat: Option<Time>,
    /// How long etcd's members wait for that before they choose another.
    pub etcd_election: Option<Time>,
    /// How often the holder of the virtual address says that it lives; hundredths of a second, below 41 s.
    pub vrrp_advert: Option<Time>,
}

impl Serialize for TimingSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Changes { preset: self.preset, ..self.changes.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TimingSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TimingSpec, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TimingSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`fast`, `norm`, `safe`, `wide`, or keys with times")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimingSpec, E> {
                let preset = Preset::deserialize(de::value::StrDeserializer::<E>::new(text))?;
                Ok(TimingSpec { preset, changes: Changes { preset, ..Changes::default() } })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TimingSpec, A::Error> {
                let changes = Changes::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(TimingSpec { preset: changes.preset, changes })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(feature = "builder")]
impl schemars::JsonSchema for TimingSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timing".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let preset = generator.subschema_for::<Preset>();
        let changes = generator.subschema_for::<Changes>();
        schemars::json_schema!({"description": "Every timer of the cluster.", "anyOf": [preset, changes]})
    }
}

/// Every timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Timing {
    /// etcd's.
    pub etcd: Etcd,
    /// Patroni's.
    pub patroni: Patroni,
    /// HAProxy's.
    pub haproxy: Haproxy,
    /// keepalived's.
    pub vrrp: Vrrp,
    /// PostgreSQL's and PgBouncer's connections.
    pub connection: Connection,
}

/// etcd's timers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Etcd {
    /// Between two signs of life of the leader.
    pub heartbeat: Time,
    /// Without a sign of life, after this, an election.
    pub election: Time,
}

/// Patroni's timers, whole seconds all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Patroni {
    /// The lease of the leader key.
    pub ttl: Time,
    /// Between two looks at the node.
    pub loop_wait: Time,
    /// For retries of etcd and PostgreSQL.
    pub retry_timeout: Time,
    /// For a crashed primary to come back.
    pub primary_start_timeout: Time,
    /// For a primary's clean stop, before it is killed.
    pub primary_stop_timeout: Time,
    /// How long before the lease's end the watchdog resets the machine.
    pub watchdog_margin: Time,
}

/// HAProxy's timers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Haproxy {
    /// Between checks of a server that is up.
    pub inter: Time,
    /// Between checks of a server that is changing.
    pub fastinter: Time,
    /// Between checks of a server that is down, where writes wait for it; elsewhere `inter` is soon enough. Each check
    /// is a TLS handshake with Patroni on the other side.
    pub downinter: Time,
    /// Good checks that bring a server up.
    pub rise: u32,
    /// Bad checks that take a server down.
    pub fall: u32,
    /// For one check.
    pub check: Time,
    /// For a connection to a server.
    pub connect: Time,
    /// For a place in the queue.
    pub queue: Time,
    /// For an idle client or server. TCP keepalives find dead ones long before.
    pub idle: Time,
}

/// keepalived's timers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Vrrp {
    /// Between two signs of life of the address's holder.
    pub advert: Time,
    /// Between two checks of the local HAProxy.
    pub interval: Time,
    /// For one check.
    pub timeout: Time,
    /// Bad checks that give the address away.
    pub fall: u32,
    /// Good checks that make a node a candidate again.
    pub rise: u32,
}

/// TCP connections of PostgreSQL and PgBouncer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Connection {
    /// Silence before the first keepalive probe.
    pub keepalive_idle: Time,
    /// Between probes.
    pub keepalive_interval: Time,
    /// Unanswered probes that end the connection.
    pub keepalive_count: u32,
    /// For sent data to be acknowledged.
    pub user_timeout: Time,
    /// For a replica that says nothing (`wal_sender_timeout`) and a primary that says nothing (`wal_receiver_timeout`).
    pub replication_timeout: Time,
}

const fn s(seconds: u64) -> Time {
    Time(Duration::from_secs(seconds))
}

const fn ms(milliseconds: u64) -> Time {
    Time(Duration::from_millis(milliseconds))
}

impl Preset {
    /// The preset's timers.
    pub fn timing(self) -> Timing {
        // One column for each preset, so that the table can be read as one.
        let pick = |fast: Time, norm: Time, safe: Time, wide: Time| match self {
            Preset::Fast => fast,
            Preset::Norm => norm,
            Preset::Safe => safe,
            Preset::Wide => wide,
        };
        let count = |fast: u32, norm: u32, safe: u32, wide: u32| match self {
            Preset::Fast => fast,
            Preset::Norm => norm,
            Preset::Safe => safe,
            Preset::Wide => wide,
        };
        Timing {
            etcd: Etcd { heartbeat: pick(ms(100), ms(200), ms(300), ms(500)), election: pick(s(1), s(2), s(3), s(5)) },
            patroni: Patroni {
                ttl: pick(s(20), s(30), s(60), s(120)),
                loop_wait: pick(s(5), s(5), s(10), s(20)),
                retry_timeout: pick(s(5), s(10), s(20), s(30)),
                primary_start_timeout: pick(s(5), s(20), s(60), s(120)),
                primary_stop_timeout: pick(s(10), s(20), s(60), s(120)),
                watchdog_margin: s(5),
            },
            haproxy: Haproxy {
                inter: pick(s(1), s(2), s(3), s(4)),
                fastinter: pick(ms(250), ms(500), s(1), s(2)),
                downinter: pick(ms(250), ms(500), s(1), s(2)),
                rise: count(2, 2, 2, 2),
                fall: count(2, 2, 3, 3),
                check: pick(s(2), s(3), s(5), s(5)),
                connect: pick(s(2), s(3), s(4), s(5)),
                queue: pick(s(5), s(5), s(10), s(10)),
                idle: s(24 * 3600),
            },
            vrrp: Vrrp {
                advert: pick(ms(200), ms(500), s(1), s(2)),
                interval: pick(s(1), s(1), s(2), s(3)),
                timeout: pick(ms(500), s(1), s(2), s(3)),
                fall: count(2, 2, 2, 3),
                rise: count(2, 2, 2, 2),
            },
            connection: Connection {
                keepalive_idle: pick(s(10), s(15), s(30), s(60)),
                keepalive_interval: pick(s(3), s(5), s(10), s(10)),
                keepalive_count: count(3, 3, 3, 6),
                user_timeout: pick(s(15), s(25), s(50), s(100)),
                replication_timeout: pick(s(15), s(25), s(50), s(100)),
            },
        }
    }
}

impl TimingSpec {
    /// The settings of a preset.
    pub fn preset(preset: Preset) -> TimingSpec {
        TimingSpec { preset, changes: Changes { preset, ..Changes::default() } }
    }

    /// Every timer.
    pub fn timing(&self) -> Timing {
        let mut timing = self.preset.timing();
        let changes = &self.changes;
        for (timer, change) in [
            (&mut timing.patroni.ttl, changes.ttl),
            (&mut timing.patroni.loop_wait, changes.loop_wait),
            (&mut timing.patroni.retry_timeout, changes.retry_timeout),
            (&mut timing.patroni.primary_start_timeout, changes.primary_start_timeout),
            (&mut timing.etcd.heartbeat, changes.etcd_heartbeat),
            (&mut timing.etcd.election, changes.etcd_election),
            (&mut timing.vrrp.advert, changes.vrrp_advert),
        ] {
            *timer = change.unwrap_or(*timer);
        }
        timing
    }
}

impl Timing {
    /// Why these timers must not be used together: the key of the document at fault, and the reason.
    pub fn unsafe_combinations(&self) -> Vec<(&'static str, String)> {
        let Timing { etcd, patroni, vrrp, .. } = self;
        let whole = |time: Time| time.0.subsec_nanos() == 0;
        let mut found = Vec::new();
        let mut refuse = |wrong: bool, key: &'static str, reason: String| {
            if wrong {
                found.push((key, reason));
            }
        };
        for (key, time) in [
            ("ttl", patroni.ttl),
            ("loop-wait", patroni.loop_wait),
            ("retry-timeout", patroni.retry_timeout),
            ("primary-start-timeout", patroni.primary_start_timeout),
        ] {
            refuse(!whole(time), key, format!("{time} is not a whole number of seconds, which Patroni counts in"));
        }
        refuse(patroni.ttl < s(20), "ttl", format!("{} is less than the 20s that Patroni allows", patroni.ttl));
        refuse(
            patroni.loop_wait < s(1),
            "loop-wait",
            format!("{} is less than the 1s that Patroni allows", patroni.loop_wait),
        );
        refuse(
            patroni.retry_timeout < s(3),
            "retry-timeout",
            format!("{} is less than the 3s that Patroni allows", patroni.retry_timeout),
        );
        let busy = Time(patroni.loop_wait.0.saturating_add(patroni.retry_timeout.0.saturating_mul(2)));
        refuse(
            busy > patroni.ttl,
            "ttl",
            format!(
                "loop-wait {} and twice retry-timeout {} are {busy}, more than ttl {}: a primary that only retries \
                 would lose its lease",
                patroni.loop_wait, patroni.retry_timeout, patroni.ttl
            ),
        );
        refuse(
            etcd.heartbeat < ms(10),
            "etcd-heartbeat",
            format!("{} is less than the 10ms that a network needs", etcd.heartbeat),
        );
        refuse(
            etcd.election.0 < etcd.heartbeat.0.saturating_mul(5),
            "etcd-election",
            format!("{} is less than five heartbeats of {}, which etcd demands", etcd.election, etcd.heartbeat),
        );
        refuse(
            etcd.election > s(50),
            "etcd-election",
            format!("{} is more than the 50s that etcd allows", etcd.election),
        );
        refuse(
            etcd.election.0.saturating_mul(2) > patroni.retry_timeout.0,
            "etcd-election",
            format!(
                "two elections of {} take longer than Patroni retries ({}): it would give up its lease whenever \
                 etcd's leader changes",
                etcd.election, patroni.retry_timeout
            ),
        );
        refuse(
            vrrp.advert < ms(50) || vrrp.advert > ms(40_950) || vrrp.advert.0.as_millis() % 10 != 0,
            "vrrp-advert",
            format!("{} is not a number of hundredths of a second from 50ms to 40950ms", vrrp.advert),
        );
        found
    }

    /// How long writes stop, reckoned from the timers.
    pub fn recovery(&self) -> Recovery {
        let Timing { etcd, patroni, haproxy, vrrp, .. } = self;
        // From «Patroni says primary» to «HAProxy sends writes there».
        let rise = haproxy.fastinter.0 * (haproxy.rise - 1);
        let door = Span { best: rise, worst: rise + haproxy.downinter.0 };
        // A vote, the leader key, pg_promote; a peer that is gone costs Patroni's 2 s connect timeout.
        let promote = Span { best: Duration::from_millis(100), worst: Duration::from_secs(1) };
        let probe = Span::of(Duration::from_secs(2));
        let lease = Span { best: patroni.ttl.0.saturating_sub(patroni.loop_wait.0), worst: patroni.ttl.0 };
        // A new etcd leader starts every lease afresh.
        let afresh = Span { best: patroni.ttl.0, worst: etcd.election.0 * 2 + patroni.ttl.0 };
        let after = promote + door;
        // The server restarts at once when Patroni looks, or does not and is replaced.
        let crash = Span {
            best: Duration::from_millis(500),
            worst: patroni.loop_wait.0 + patroni.primary_start_timeout.0 + after.worst,
        };
        let stop = Span { best: Duration::from_millis(300), worst: Duration::from_secs(2) };
        let silent = Span { best: vrrp.advert.0 * 2, worst: vrrp.advert.0 * 4 };
        Recovery {
            crash: crash.estimate(),
            loss: (lease + probe + after).estimate(),
            loss_with_etcd_leader: (afresh + probe + after).estimate(),
            switchover: (stop + after).estimate(),
            vip: silent.estimate(),
            vip_hung: Span {
                best: vrrp.interval.0 * (vrrp.fall - 1) + vrrp.timeout.0,
                worst: vrrp.interval.0 * vrrp.fall + vrrp.timeout.0 + vrrp.advert.0,
            }
            .estimate(),
        }
    }
}

/// The derived times without writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The primary's PostgreSQL dies, its node lives.
    pub crash: Estimate,
    /// The primary's node dies.
    pub loss: Estimate,
    /// The primary's node dies and was etcd's leader too, which the leader's mover makes rare.
    pub loss_with_etcd_leader: Estimate,
    /// A planned change of primary.
    pub switchover: Estimate,
    /// The node with the virtual address dies; counts together with `loss` where it was the primary, in parallel.
    pub vip: Estimate,
    /// HAProxy hangs on the node with the virtual address.
    pub vip_hung: Estimate,
}

/// A time's bounds and middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// In the best case.
    pub best: Time,
    /// Half way between.
    pub mean: Time,
    /// If every timer has just begun.
    pub worst: Time,
}

#[derive(Clone, Copy)]
struct Span {
    best: Duration,
    worst: Duration,
}

impl Span {
    fn of(time: Duration) -> Span {
        Span { best: time, worst: time }
    }

    fn estimate(self) -> Estimate {
        let round = |time: Duration| ms(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Estimate { best: round(self.best), mean: round((self.best + self.worst) / 2), worst: round(self.worst) }
    }
}

impl std::ops::Add for Span {
    type Output = Span;

    fn add(self, other: Span) -> Span {
        Span { best: self.best + other.best, worst: self.worst + other.worst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_safe_and_each_is_slower_than_the_one_before() {
        let mut before = Duration::ZERO;
        for preset in Preset::ALL {
            let timing = preset.timing();
            assert_eq!(timing.unsafe_combinations(), [], "{preset:?}");
            assert_eq!(serde_json::to_value(preset).unwrap(), preset.to_string(), "it is shown as it is written");
            let worst = timing.recovery().loss.worst.0;
            assert!(worst > before, "{preset:?}");
            before = worst;
        }
    }

    #[test]
    fn recovery_times_follow_from_the_timers() {
        let text = Preset::ALL.map(|preset| format!("{preset:?} {:#?}", preset.timing().recovery())).join("\n");
        insta::assert_snapshot!(text.replace("Time(\n", "(\n"));
    }

    #[test]
    fn unsafe_combinations_are_refused_with_their_reason() {
        let changed = |change: fn(&mut Changes)| {
            let mut spec = TimingSpec::preset(Preset::Fast);
            change(&mut spec.changes);
            spec.timing()
                .unsafe_combinations()
                .into_iter()
                .map(|(key, why)| format!("{key}: {why}"))
                .collect::<Vec<_>>()
        };
        let all = [
            changed(|c| c.ttl = Some(s(10))),
            changed(|c| c.ttl = Some(ms(20_500))),
            changed(|c| c.loop_wait = Some(s(11))),
            changed(|c| c.retry_timeout = Some(s(2))),
            changed(|c| c.etcd_heartbeat = Some(ms(300))),
            changed(|c| c.etcd_election = Some(s(4))),
            changed(|c| c.vrrp_advert = Some(ms(205))),
        ];
        assert!(all.iter().all(|found| !found.is_empty()));
        insta::assert_snapshot!(all.concat().join("\n"));
    }

    #[test]
    fn a_preset_is_named_alone_or_with_changes() {
        let read = |text: &str| serde_saphyr::from_str::<TimingSpec>(text);
        assert_eq!(read("fast").unwrap(), TimingSpec::preset(Preset::Fast));
        let changed = read("{preset: fast, ttl: 25s}").unwrap();
        assert_eq!(changed.timing().patroni.ttl, s(25));
        assert_eq!(changed.timing().patroni.loop_wait, s(5));
        assert_eq!(read("{ttl: 45s}").unwrap().preset, Preset::Norm);
        assert!(read("quick").is_err());
        assert!(read("{tttl: 45s}").is_err());
        let back: TimingSpec = serde_saphyr::from_str(&serde_json::to_string(&changed).unwrap()).unwrap();
        assert_eq!(back, changed);
    }
}
