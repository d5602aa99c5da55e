//! `pgha-node leave`: removes a node from its cluster, so that the others need not find out that it is gone.
//!
//! It must not take the last good copy of the data with it. What counts is what Patroni's members know of each other, and
//! what is not known is not good. [`decide`] says whether the node may go; a primary hands over first.

use super::{lock, peers::TlsCredentials, progress::Reporter, state::State, this_node, units};
use crate::{
    error::UserError,
    etcd::{Client, RangeRequest},
    exec::Run,
    log,
    model::{
        Node,
        scope::{client_url, host_port, peer_url, ports},
        status::Phase,
    },
};
use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

/// The units that go, in this order: those that would start others again, then clients, the store of the cluster's truth
/// last.
const UNITS: [&str; 8] = [
    "pgha-agent.service",
    "pgha-node.service",
    "keepalived.service",
    "haproxy.service",
    "confd.service",
    "patroni.service",
    "pgbouncer.service",
    "etcd.service",
];
/// How long a primary may take to hand over and stop.
const STOP_WITHIN: Duration = Duration::from_secs(150);
/// How long etcd may take to let a member go.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait before etcd or Patroni is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// How long it is looked again before the node is refused: a replica may just be connecting again.
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// How long a switchover may take until the others follow the new primary.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(120);
/// How long one member may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How far behind a replica may be and count as caught up, in bytes; Patroni's own bound for a new primary.
const CAUGHT_UP: u64 = 1 << 20;

/// What Patroni says of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether it holds the leader's key.
    pub leader: bool,
    /// Whether commits may wait for it.
    pub synchronous: bool,
    /// `running`, `streaming` …
    pub state: String,
    /// Its timeline, if it is known.
    pub timeline: Option<u64>,
    /// How far it is behind, if it is known.
    pub lag: Option<u64>,
}

/// What Patroni says of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's name.
    pub me: String,
    /// All members.
    pub members: Vec<Member>,
    /// Whether commits wait for replicas.
    pub synchronous: bool,
    /// How many replicas writes need; 0 where they go on without any.
    pub needed: usize,
}

/// What a node that is to leave does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It goes.
    Go,
    /// It makes this member the primary, then looks again.
    HandOver(String),
    /// It stays; why.
    Stay(String),
}

/// Whether a node may go.
pub fn decide(view: &View) -> Step {
    let leaders: Vec<&Member> = view.members.iter().filter(|member| member.leader).collect();
    let [leader] = leaders[..] else { return Step::Stay("no primary is known".to_owned()) };
    if leader.state != "running" {
        return Step::Stay(format!("the primary {} is {}", leader.name, leader.state));
    }
    let copies = |member: &&Member| is_copy(member, leader);
    let others: Vec<&Member> = view.members.iter().filter(|member| !member.leader && member.name != view.me).collect();
    let good: Vec<&Member> = others.iter().copied().filter(copies).collect();
    if leader.name == view.me {
        // Patroni hands over to a replica for which commits wait, where they wait for any.
        let successors = good.iter().filter(|member| member.synchronous || !view.synchronous);
        return match successors.min_by_key(|member| (member.lag, &member.name)) {
            None => Step::Stay(format!("no other member has a good copy to hand over to: {}", words(&others))),
            Some(_) if good.len() - 1 < view.needed => strict(view, &others),
            Some(successor) => Step::HandOver(successor.name.clone()),
        };
    }
    let own = view.members.iter().find(|member| member.name == view.me);
    if !own.is_some_and(|own| is_copy(own, leader)) {
        // It has no good copy that could be missed.
        return Step::Go;
    }
    if !others.is_empty() && good.is_empty() {
        return Step::Stay(format!("only {} would have a good copy of the data: {}", leader.name, words(&others)));
    }
    if good.len() < view.needed { strict(view, &others) } else { Step::Go }
}

/// Whether a replica has the primary's data, but for a moment's.
fn is_copy(member: &Member, leader: &Member) -> bool {
    member.state == "streaming"
        && member.timeline.is_some()
        && member.timeline == leader.timeline
        && member.lag.is_some_and(|lag| lag <= CAUGHT_UP)
}

fn strict(view: &View, others: &[&Member]) -> Step {
    Step::Stay(format!(
        "writes need {} synchronous replica{} (strict mode), and without this node too few have a good copy: {}",
        view.needed,
        if view.needed == 1 { "" } else { "s" },
        words(others)
    ))
}

/// How members stand, for a person.
fn words(members: &[&Member]) -> String {
    let word = |member: &&Member| {
        let lag = member.lag.map_or("lag unknown".to_owned(), |lag| format!("{lag} bytes behind"));
        let timeline = member.timeline.map_or("unknown".to_owned(), |timeline| timeline.to_string());
        format!("{} is {}, timeline {timeline}, {lag}", member.name, member.state)
    };
    if members.is_empty() {
        "there is none".to_owned()
    } else {
        members.iter().map(word).collect::<Vec<_>>().join("; ")
    }
}

/// Reads what Patroni answers to `/cluster` and `/config`.
fn understand(me: &str, cluster: &Value, config: &Value) -> Result<View> {
    let listed = cluster["members"].as_array().context("Patroni lists no members")?;
    let members = listed.iter().map(|member| {
        let word = |key: &str| member[key].as_str().map(ToOwned::to_owned);
        let role = word("role").unwrap_or_default();
        Ok(Member {
            name: word("name").context("Patroni lists a member without a name")?,
            leader: role == "leader" || role == "standby_leader",
            synchronous: role == "sync_standby" || role == "quorum_standby",
            state: word("state").unwrap_or_else(|| "unknown".to_owned()),
            timeline: member["timeline"].as_u64(),
            lag: member["lag"].as_u64(),
        })
    });
    let mode = &config["synchronous_mode"];
    let synchronous = mode.as_bool().unwrap_or(!mode.is_null());
    let strict = synchronous && config["synchronous_mode_strict"].as_bool().unwrap_or(false);
    let count = config["synchronous_node_count"].as_u64().unwrap_or(1);
    Ok(View {
        me: me.to_owned(),
        members: members.collect::<Result<_>>()?,
        synchronous,
        needed: if strict { usize::try_from(count)? } else { 0 },
    })
}

/// Asks Patroni: the other members' first, since this node's may have been stopped already.
fn look(node: &Node) -> Result<View> {
    let agent = TlsCredentials::of_the_node().agent(PATIENCE)?;
    let me = node.member();
    let mut members: Vec<_> = node.spec.members.iter().collect();
    members.sort_by_key(|member| member.name == me.name);
    let ask = |address: std::net::IpAddr, path: &str| -> Result<Value> {
        let url = format!("https://{}/{path}", host_port(address, ports::PATRONI));
        let mut answer = agent.get(&url).call()?;
        anyhow::ensure!(answer.status() == 200, "{url} answers {}", answer.status());
        Ok(answer.body_mut().read_json()?)
    };
    let mut last = anyhow!("no member can be asked");
    for member in members {
        let answers = ask(member.address, "cluster").and_then(|cluster| Ok((cluster, ask(member.address, "config")?)));
        match answers.and_then(|(cluster, config)| understand(&me.name, &cluster, &config)) {
            Ok(view) => return Ok(view),
            Err(error) => last = error.context(format!("asking Patroni on {}", member.name)),
        }
    }
    Err(last)
}

/// Returns when the node may go, and hands over before if it is the primary.
fn make_sure(node: &Node) -> Result<()> {
    let me = &node.member().name;
    let mut deadline = Instant::now() + HEALED_WITHIN;
    let mut handed_over = false;
    loop {
        let why = match look(node).map(|view| decide(&view)) {
            Ok(Step::Go) => return Ok(()),
            Ok(Step::HandOver(successor)) if !handed_over => {
                log::info!("leaving: {me} is the primary and hands over to {successor}");
                switch_over(&node.spec.cluster, me, &successor)?;
                (handed_over, deadline) = (true, Instant::now() + HANDED_OVER_WITHIN);
                continue;
            }
            Ok(Step::HandOver(_)) => "it is still the primary".to_owned(),
            Ok(Step::Stay(why)) => why,
            Err(error) => format!("Patroni does not answer: {error:#}"),
        };
        if Instant::now() >= deadline {
            return Err(UserError::runtime(format!("{me} cannot leave: {why}")).hint(FORCE).into());
        }
        thread::sleep(PAUSE);
    }
}

/// What `--force` means.
const FORCE: &str = "let the others catch up first. `pgha-node leave --force` goes all the same: what no other member has is \
                     then on this node's disk alone, and the cluster may stop writing";

fn switch_over(cluster: &str, from: &str, to: &str) -> Result<()> {
    let command =
        ["-c", "/etc/patroni/config.yml", "switchover", cluster, "--leader", from, "--candidate", to, "--force"];
    let said = Run::new("patronictl").args(command).limit(HANDED_OVER_WITHIN).text()?;
    // It tells a refusal in words and ends well; the next look shows the result.
    if said.contains("Successfully") || said.contains("status unknown") {
        return Ok(());
    }
    Err(UserError::runtime(format!("Patroni does not switch over to {to}: {}", said.trim())).hint(FORCE).into())
}

/// Stops the node's services in order and takes it out of Patroni's and etcd's lists. Its data stays. May be run again.
/// With `force` it does so even if it takes the last good copy of the data away.
///
/// # Errors
/// When it is the last member, no other member of etcd answers, the others have no good copy, or a service does not stop.
pub fn leave(state: &State, force: bool) -> Result<()> {
    let _held = lock::hold("leave", |who| log::info!("{who}"))?;
    let node = this_node::find()?;
    let me = node.member();
    let others: Vec<_> = node.peers().map(client_url).collect();
    if others.is_empty() {
        return Err(UserError::usage(format!("{} is the last member of its cluster", me.name))
            .hint("stop the machine: no other member has to be informed")
            .into());
    }
    let client = TlsCredentials::of_the_node().etcd(others)?;
    let members = client.members().context("asking the other members of etcd")?;
    if let Err(error) = make_sure(&node) {
        if !force {
            return Err(error);
        }
        log::warning!("leaving by force: {error:#}");
    }
    for unit in &UNITS[..UNITS.len() - 1] {
        log::info!("leaving: stopping {unit}");
        stop(unit)?;
    }
    // Otherwise HAProxy on the other nodes learns of it when the key's lease has ended.
    let key = format!("/service/{}/members/{}", state.cluster, me.name);
    client.delete(&RangeRequest::key(key)).context("removing the node from Patroni's list")?;
    if let Some(own) = members.iter().find(|member| member.peer_urls.contains(&peer_url(me))) {
        log::info!("leaving: removing {} from etcd", me.name);
        remove(&client, own.id, REMOVED_WITHIN, PAUSE).context("removing the node from etcd's members")?;
    }
    stop(UNITS[UNITS.len() - 1])?;
    let then = "it joins again at its next boot as long as its document names it";
    Reporter::of_the_node().report(Phase::Waiting, "this node has left its cluster", then);
    Ok(())
}

/// Removes a member of etcd, and asks again for as long as `within`.
///
/// etcd refuses while another member has not been connected for five seconds, and a busy one acts without answering in
/// time. An id is never used again, so that asking twice does no harm.
fn remove(client: &Client, id: u64, within: Duration, pause: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let Err(error) = client.member_remove(id) else { return Ok(()) };
        if client.members().is_ok_and(|members| members.iter().all(|member| member.id != id)) {
            return Ok(());
        }
        if error.denied() || Instant::now() >= deadline {
            return Err(error.into());
        }
        log::info!("leaving: {error}; asking again");
        thread::sleep(pause);
    }
}

fn stop(unit: &str) -> Result<()> {
    // An image may not have it.
    if units::show(unit)?.active == "inactive" {
        return Ok(());
    }
    Run::new("systemctl").args(["stop", unit]).limit(STOP_WITHIN).capture().map(drop)?;
    let now = units::show(unit)?;
    if now.active == "active" {
        return Err(UserError::runtime(format!("{unit} does not stop: {}", now.words())).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::Settings;
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    /// Every member of three that this node, pg-1, can see: as a leader, good, or not good in one of the ways there are.
    fn every_member(name: &str) -> Vec<Member> {
        let leader = |state: &str| Member {
            name: name.to_owned(),
            leader: true,
            synchronous: false,
            state: state.to_owned(),
            timeline: Some(2),
            lag: None,
        };
        let replica = |state: &str, timeline, lag| {
            [true, false].map(|synchronous| Member { leader: false, synchronous, timeline, lag, ..leader(state) })
        };
        let replicas = [
            replica("streaming", Some(2), Some(0)),
            replica("streaming", Some(2), Some(CAUGHT_UP + 1)),
            replica("streaming", Some(2), None),
            replica("streaming", None, Some(0)),
            replica("streaming", Some(1), Some(0)),
            replica("running", Some(2), Some(0)),
            replica("unknown", None, None),
        ];
        [leader("running"), leader("stopping")].into_iter().chain(replicas.into_iter().flatten()).collect()
    }

    fn every_view() -> Vec<View> {
        let optional = |name: &str| -> Vec<Option<Member>> {
            std::iter::once(None).chain(every_member(name).into_iter().map(Some)).collect()
        };
        let mut views = Vec::new();
        for first in optional("pg-1") {
            for second in optional("pg-2") {
                for third in optional("pg-3") {
                    for (synchronous, needed) in [(false, 0), (true, 0), (true, 1), (true, 2)] {
                        let members = [first.clone(), second.clone(), third.clone()].into_iter().flatten().collect();
                        views.push(View { me: "pg-1".into(), members, synchronous, needed });
                    }
                }
            }
        }
        views
    }

    #[test]
    fn a_good_copy_stays_whatever_the_members_are() {
        for view in every_view() {
            let leader = view.members.iter().find(|member| member.leader);
            let leaders = view.members.iter().filter(|member| member.leader).count();
            let good = |member: &&Member| {
                !member.leader
                    && member.state == "streaming"
                    && member.timeline == Some(2)
                    && member.lag.is_some_and(|lag| lag <= CAUGHT_UP)
            };
            let others = || view.members.iter().filter(|member| member.name != "pg-1" && !member.leader);
            let own_is_good = view.members.iter().any(|member| member.name == "pg-1" && good(&member));
            match decide(&view) {
                Step::Go => {
                    let leader = leader.unwrap();
                    assert!(leaders == 1 && leader.name != "pg-1" && leader.state == "running", "{view:?}");
                    let enough = others().filter(good).count() >= view.needed.max(usize::from(others().count() > 0));
                    assert!(enough || !own_is_good, "{view:?}");
                }
                Step::HandOver(to) => {
                    assert!(leaders == 1 && leader.unwrap().name == "pg-1", "{view:?}");
                    let successor = others().find(|member| member.name == to).unwrap();
                    assert!(good(&successor) && (successor.synchronous || !view.synchronous), "{view:?}");
                    assert!(others().filter(good).count() > view.needed, "{view:?}");
                }
                Step::Stay(why) => assert!(!why.is_empty()),
            }
        }
    }

    #[test]
    fn a_replica_of_two_may_go_and_a_primary_hands_over() {
        let member = |name: &str, leader: bool| Member {
            name: name.into(),
            leader,
            synchronous: !leader,
            state: if leader { "running".into() } else { "streaming".into() },
            timeline: Some(2),
            lag: (!leader).then_some(0),
        };
        let view = |me: &str, needed| View {
            me: me.into(),
            members: vec![member("pg-1", true), member("pg-2", false)],
            synchronous: true,
            needed,
        };
        assert_eq!(decide(&view("pg-2", 0)), Step::Go);
        assert_eq!(decide(&view("pg-1", 0)), Step::HandOver("pg-2".into()));
        assert!(matches!(decide(&view("pg-2", 1)), Step::Stay(_)), "writes would stop");
        assert!(matches!(decide(&view("pg-1", 1)), Step::Stay(_)), "writes would stop");
        assert_eq!(decide(&view("pg-9", 1)), Step::Go, "it is not in Patroni's list any more");
    }

    #[test]
    fn what_patroni_says_is_read_and_what_it_does_not_say_is_unknown() {
        let cluster = serde_json::json!({"members": [
            {"name": "pg-1", "role": "leader", "state": "running", "timeline": 2},
            {"name": "pg-2", "role": "quorum_standby", "state": "streaming", "timeline": 2, "lag": 0},
            {"name": "pg-3", "role": "replica", "state": "start failed", "lag": "unknown"},
        ]});
        let config = |mode: Value| {
            serde_json::json!({
                "synchronous_mode": mode, "synchronous_mode_strict": true, "synchronous_node_count": 2,
            })
        };
        let view = |mode: Value| understand("pg-2", &cluster, &config(mode)).unwrap();
        assert_eq!((view("quorum".into()).synchronous, view("quorum".into()).needed), (true, 2));
        assert_eq!((view(true.into()).synchronous, view(false.into()).needed), (true, 0));
        assert!(!view(Value::Null).synchronous);
        let third = &view(false.into()).members[2];
        assert_eq!((third.lag, third.timeline, third.synchronous), (None, None, false));
        assert!(understand("pg-2", &serde_json::json!({}), &Value::Null).is_err());
        insta::assert_snapshot!(words(&view(false.into()).members.iter().collect::<Vec<_>>()));
    }

    const MEMBER: &str = r#"{"members":[{"ID":"7"},{"ID":"8"}]}"#;
    const NO_MEMBER: &str = r#"{"members":[{"ID":"8"}]}"#;
    const UNHEALTHY: &str = r#"{"code":14,"message":"etcdserver: unhealthy cluster"}"#;

    /// An etcd that answers request after request as it is told: a status and a body, or nothing but the end of the
    /// connection. Returns a client of it and the paths that are asked for.
    fn etcd(answers: Vec<Option<(u16, &'static str)>>) -> (Client, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(Settings::new([format!("http://{}", listener.local_addr().unwrap())])).unwrap();
        let (tell, paths) = mpsc::channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                tell.send(read_request(&stream)).unwrap();
                if let Some((status, body)) = answer {
                    let head =
                        format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).unwrap();
                }
            }
        });
        (client, paths)
    }

    /// The path of a request that is read whole.
    fn read_request(stream: &TcpStream) -> String {
        let mut reader = BufReader::new(stream);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        reader.take(length).read_to_end(&mut Vec::new()).unwrap();
        first.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned()
    }

    fn removing(
        answers: Vec<Option<(u16, &'static str)>>,
        within: Duration,
    ) -> (std::result::Result<(), String>, Vec<String>) {
        let (client, paths) = etcd(answers);
        let outcome = remove(&client, 7, within, Duration::ZERO).map_err(|error| error.to_string());
        (outcome, paths.try_iter().collect())
    }

    #[test]
    fn a_removal_that_was_not_answered_is_looked_up() {
        let (outcome, paths) = removing(vec![None, Some((200, NO_MEMBER))], Duration::from_secs(60));
        assert_eq!((outcome, paths), (Ok(()), vec!["remove".into(), "list".into()]));
    }

    #[test]
    fn a_removal_that_is_refused_for_now_is_asked_for_again() {
        let answers = vec![Some((503, UNHEALTHY)), Some((200, MEMBER)), Some((200, "{}"))];
        let (outcome, paths) = removing(answers, Duration::from_secs(60));
        assert_eq!((outcome, paths), (Ok(()), vec!["remove".into(), "list".into(), "remove".into()]));
    }

    #[test]
    fn a_removal_that_does_not_come_about_is_told() {
        let (outcome, paths) = removing(vec![Some((503, UNHEALTHY)), Some((200, MEMBER))], Duration::ZERO);
        assert!(outcome.unwrap_err().ends_with("unhealthy cluster"));
        assert_eq!(paths.len(), 2);
    }
}
