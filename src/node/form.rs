//! Forms or joins the cluster's etcd: gathers a view of the other members, and carries out what [`join::next`] decides.
//!
//! Two places decide at once: the loop of `pgha-node init`, and whoever answers the other nodes in its name. Both read what
//! this node has from its disks again and write what they decide there under one lock ([`Desk`]), so that a promise that was
//! given meanwhile is never overlooked. No other process of this node can do the same: it would need etcd's peer port.

use super::{
    aside::set_aside,
    database::{self, Database},
    etcd_data::{EtcdData, Ids},
    join::{
        self, Aside, Begun, Cluster, Document, FormingOrder, Found, Listed, Own, Peer, RECOVER, Step, Stopped,
        Suggestion, View, Write,
    },
    lock,
    peers::{self, DiscoveryListener, Facts, Host, TlsCredentials},
    progress::Reporter,
    promise::{self, Answer, Promises, Request},
    recover::{
        keys::{Names, Recovered},
        lineage::{self, Lineage},
        rival::{self, Past, Standing},
    },
    state::{ETCD_DATA, POSTGRESQL_DATA, STATE_PATH, State},
    units,
};
use crate::{
    clock,
    error::UserError,
    files::{Presence, sync_folder, write_private},
    log,
    model::{
        Member, Node, Service,
        scope::{EtcdStart, client_url, peer_url, ports},
        status::Phase,
    },
};
use anyhow::{Context as _, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Where this node keeps what it has promised.
pub const PROMISES_PATH: &str = "/var/lib/pgha/promise.json";
/// Where a person's order to form the cluster without some members is.
pub const ORDER_PATH: &str = "/var/lib/pgha/order.json";

/// etcd's unit.
const UNIT: &str = "etcd.service";
/// Patroni's unit.
const PATRONI: &str = "patroni.service";
/// How often a node looks again while it waits.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest file of this program's own that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// How many acts may follow each other without a pause.
const HASTE: u32 = 8;
/// After how long a person is told what could be done.
const TOLD_AFTER: Duration = Duration::from_secs(60);
/// How long a member with this node's name at another address must have been silent before it counts as dead.
const NAMESAKE_AFTER: Duration = Duration::from_secs(30);
/// How long a forming cluster waits for all its members.
const LATECOMERS: Duration = Duration::from_secs(10);
/// How often a node whose etcd waits for its quorum asks whether it waits for the right one.
const DOUBT: Duration = Duration::from_secs(3);

const ENTERING: &str = "entering the cluster's etcd";
const STARTING: &str = "starting etcd";
const SETTLING: &str = "forming the cluster's etcd";
const LEFT_BEHIND: &str = "the cluster went on in another etcd than this node's";

/// What this node has on its disks, and where it is decided about.
#[derive(Debug)]
pub struct Desk {
    node: Node,
    document: Document,
    root: PathBuf,
    deciding: Mutex<()>,
}

impl Desk {
    /// The desk of a node whose files lie below `root` (`/` on the node itself).
    ///
    /// # Errors
    /// When the document has no digest.
    pub fn new(node: &Node, root: &Path) -> Result<Desk> {
        let document = Document::of(&node.spec)?;
        Ok(Desk { node: node.clone(), document, root: root.to_owned(), deciding: Mutex::new(()) })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn me(&self) -> &Member {
        self.node.member()
    }

    fn decide(&self) -> MutexGuard<'_, ()> {
        // Each holder writes whole files.
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it remembers as a member of this cluster.
    fn state(&self) -> Result<Option<State>> {
        let state = State::load(&self.path(STATE_PATH))?;
        Ok(state.filter(|state| state.identity == self.document.identity))
    }

    fn promises(&self) -> Result<Promises> {
        let promises: Promises = read_json(&self.path(PROMISES_PATH))?.unwrap_or_default();
        // What was promised to another cluster, whose document this machine had, says nothing about this one.
        let prefix = format!("{}-", self.document.identity);
        Ok(if promises.held.as_ref().is_none_or(|held| held.token.starts_with(&prefix)) {
            promises
        } else {
            Promises::default()
        })
    }

    fn order(&self) -> Option<FormingOrder> {
        read_json(&self.path(ORDER_PATH)).unwrap_or_else(|error| {
            log::warning!("the order to form the cluster is ignored: {error:#}");
            None
        })
    }

    /// What this node has, by its disks.
    ///
    /// # Errors
    /// When what it remembers cannot be read: then it is nothing that could be answered for.
    pub fn look(&self) -> Result<Own> {
        let state = self.state()?;
        let marked = match state.as_ref().and_then(|state| self.mark(&state.begun())) {
            Some(mark) => Presence::of(&mark).known()?.is_some(),
            None => false,
        };
        Ok(Own {
            etcd: EtcdData::look(&self.path(ETCD_DATA)),
            idle: false,
            database: match database::all(&self.path(POSTGRESQL_DATA)) {
                Presence::Present(_) => Found::Present,
                Presence::Absent => Found::Absent,
                Presence::Unknown(doubt) => Found::Unknown(doubt.to_string()),
            },
            begun: state.as_ref().map(State::begun),
            marked,
            complete: state.is_some_and(|state| state.complete),
            promises: self.promises()?,
        })
    }

    /// Carries out an act if this node still is as it was when the step was decided. Returns whether it was.
    fn act(&self, before: &Own, act: impl FnOnce() -> Result<()>) -> Result<bool> {
        let _deciding = self.decide();
        if (Own { idle: before.idle, ..self.look()? }) != *before {
            return Ok(false);
        }
        act().map(|()| true)
    }

    fn write_promises(&self, promises: &Promises) -> Result<()> {
        write_private(&self.path(PROMISES_PATH), &serde_json::to_string_pretty(promises)?)
    }

    /// The mark of a beginning, which lies beside etcd's data: a disk that is empty, or not mounted, does not have it.
    fn mark(&self, begun: &Begun) -> Option<PathBuf> {
        let beside = self.path(ETCD_DATA);
        begun.ids.map(|ids| beside.with_file_name(format!("begun-{:016x}", ids.member)))
    }

    fn write_begun(&self, begun: Begun) -> Result<()> {
        let state = self.state()?.unwrap_or_else(|| State::new(&self.node, begun.start.clone()));
        state.begin(begun).named(&self.node).store(&self.path(STATE_PATH))
    }

    /// Does what a step does to the disks, if this node still is as it was when the step was decided. `stop` stops a
    /// service, if it runs. Returns whether it was.
    fn carry_out(&self, before: &Own, step: &Step, mut stop: impl FnMut(Stopped) -> Result<()>) -> Result<bool> {
        self.act(before, || {
            for write in join::writes(step) {
                match write {
                    Write::Promises(promises) => self.write_promises(&promises)?,
                    Write::Mark(begun) => {
                        if let Some(mark) = self.mark(&begun) {
                            write_private(&mark, &begun.start.token)?;
                        }
                    }
                    Write::Begun(begun) => self.write_begun(begun)?,
                    Write::Seen => self.write_seen()?,
                    Write::NotBegun => remove_file(&self.path(STATE_PATH))?,
                    Write::Ordered => remove_file(&self.path(ORDER_PATH))?,
                    Write::Stop(service) => stop(service)?,
                    Write::Aside(why) => set_aside(&self.path(ETCD_DATA), why).map(drop)?,
                }
            }
            Ok(())
        })
    }

    /// Remembers that its etcd has answered.
    fn saw_etcd(&self) -> Result<()> {
        let _deciding = self.decide();
        self.write_seen()
    }

    fn write_seen(&self) -> Result<()> {
        match self.state()? {
            Some(state) => State { etcd_seen: true, ..state }.store(&self.path(STATE_PATH)),
            None => Ok(()),
        }
    }
}

impl Host for Desk {
    fn name(&self) -> &str {
        &self.me().name
    }

    fn answer(&self, request: &Request) -> Result<Answer> {
        let _deciding = self.decide();
        let reply = promise::answer(&self.document, &self.me().name, &self.look()?, request);
        if let Some(promises) = &reply.store {
            self.write_promises(promises)?;
        }
        Ok(reply.answer)
    }

    fn facts(&self) -> Result<Facts> {
        let own = self.look()?;
        Ok(Facts {
            schema: 1,
            node: self.me().name.clone(),
            cluster: self.node.spec.cluster.clone(),
            document: self.document.digest.clone(),
            etcd: match own.etcd {
                EtcdData::Data(ids) => Some(ids),
                _ => None,
            },
            complete: own.complete,
            databases: databases(&self.path(POSTGRESQL_DATA))?,
            recover: None,
        })
    }
}

/// Reads JSON; `None` if there certainly is not a such file.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = Presence::of_text(path, LONGEST).known()? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("reading {}", path.display()))
}

/// Removes a file of this program's own, for good also after a power cut.
fn remove_file(path: &Path) -> Result<()> {
    let doing = || format!("removing {}", path.display());
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(doing),
    }
}

/// What is known of the databases of each major version.
fn databases(root: &Path) -> Result<Vec<peers::DatabaseFacts>> {
    let held = database::all(root).known()?.unwrap_or_default();
    Ok(held
        .into_iter()
        .map(|held| peers::DatabaseFacts {
            version: held.version,
            facts: match &held.database {
                Database::Present(facts) => serde_json::to_value(facts).ok(),
                _ => None,
            },
            words: held.database.words(),
        })
        .collect())
}

/// 128 random bits in hexadecimal digits.
fn draw() -> Result<String> {
    let mut random = [0_u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    /// The node has changed, or should have: it looks again at once.
    Again,
    /// It looks again later; for whom and why it waits.
    Later(String),
    /// etcd starts, with data or without, and was configured so.
    Start(EtcdStart),
}

/// A node on its way into its cluster's etcd.
#[derive(Debug)]
pub struct Forming {
    desk: Arc<Desk>,
    credentials: TlsCredentials,
    namesake_silent: Option<Instant>,
    added: Option<u64>,
    waits: Option<(Instant, i64)>,
}

impl Forming {
    /// Of a node whose files lie below `root` (`/` on the node itself).
    ///
    /// # Errors
    /// As [`Desk::new`].
    pub fn new(node: &Node, root: &Path, credentials: TlsCredentials) -> Result<Forming> {
        let desk = Arc::new(Desk::new(node, root)?);
        Ok(Forming { desk, credentials, namesake_silent: None, added: None, waits: None })
    }

    /// Answers the other nodes until the listener is dropped.
    ///
    /// # Errors
    /// When etcd or another process of this node has the port.
    pub fn receive(&self) -> Result<DiscoveryListener> {
        let desk = Arc::clone(&self.desk);
        DiscoveryListener::open(peers::discovery_address(self.desk.me()), &self.credentials, desk)
    }

    /// What this node sees now; `idle` if its etcd runs and has never been part of a quorum.
    ///
    /// # Errors
    /// When its own disks or certificates cannot be read.
    pub fn look(&mut self, idle: bool) -> Result<View> {
        let own = Own { idle, ..self.desk.look()? };
        let request = Request::of(&self.desk.document, &self.desk.me().name, &own);
        let view = self.view(own, &request)?;
        Ok(self.patient(view))
    }

    /// The same, without asking anybody for a promise.
    ///
    /// # Errors
    /// As [`Forming::look`].
    pub fn survey(&self) -> Result<View> {
        let own = self.desk.look()?;
        let request = Request::of(&self.desk.document, &self.desk.me().name, &own);
        self.view(own, &Request { incarnation: None, without: BTreeSet::new(), ..request })
    }

    fn view(&self, own: Own, request: &Request) -> Result<View> {
        let desk = &self.desk;
        let me = desk.me();
        let others: Vec<&Member> = desk.node.peers().collect();
        let found = peers::ask(&others, request, &self.credentials)?;
        let cluster = self.cluster(&own, &others, &found);
        Ok(View {
            document: desk.document.clone(),
            me: me.name.clone(),
            own,
            order: desk.order(),
            cluster,
            peers: others.iter().map(|member| member.name.clone()).zip(found).collect(),
            draw: draw()?,
            added: self.added,
        })
    }

    /// The cluster whose quorum answers; of several, the one that this node belongs to.
    fn cluster(&self, own: &Own, others: &[&Member], found: &[Peer]) -> Option<Cluster> {
        // A client hears the first that answers: members of another cluster must not hide this one's.
        let mut running: BTreeMap<Option<u64>, Vec<&Member>> = BTreeMap::new();
        for (member, peer) in others.iter().zip(found) {
            if let Peer::Etcd { cluster, ever: true } = peer {
                running.entry(*cluster).or_default().push(member);
            }
        }
        let me = self.desk.me();
        let mut clusters: Vec<(Cluster, Vec<&Member>)> = Vec::new();
        for (_, members) in running {
            if let Some(cluster) = peers::cluster(&members, me, &self.credentials)
                && clusters.iter().all(|(known, _)| known.id != cluster.id)
            {
                clusters.push((cluster, members));
            }
        }
        if clusters.len() < 2 {
            return clusters.pop().map(|(cluster, _)| cluster);
        }
        let past = |(cluster, members): &(Cluster, Vec<&Member>)| self.past(cluster.id, members);
        let known: Vec<Past> = clusters.iter().map(past).collect();
        let own = match &own.etcd {
            EtcdData::Data(ids) => Some(format!("{:x}", ids.cluster)),
            EtcdData::Absent | EtcdData::Unborn | EtcdData::Unknown(_) => None,
        };
        rival::right(&known, own.as_deref()).map(|at| clusters.swap_remove(at).0)
    }

    /// What the cluster of etcd with the id `cluster`, which these members run, says of its last recovery.
    fn past(&self, cluster: u64, members: &[&Member]) -> Past {
        Past::ask(format!("{cluster:x}"), members, &self.desk.node.spec.cluster, &self.credentials)
    }

    /// Writes a person's order, which `pgha-node init` finds at its next look.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_order(&self, order: &FormingOrder) -> Result<()> {
        write_private(&self.desk.path(ORDER_PATH), &serde_json::to_string_pretty(order)?)
    }

    /// The same view, in which a namesake of this node has answered if it did a short time ago: one slow answer is not a death.
    fn patient(&mut self, mut view: View) -> View {
        let url = peer_url(self.desk.me());
        let is_elsewhere = |member: &Listed| member.name == view.me && !member.peer_urls.contains(&url);
        let members = view.cluster.iter_mut().flat_map(|cluster: &mut Cluster| cluster.members.iter_mut());
        let Some(namesake) = members.into_iter().find(|member| is_elsewhere(member)) else {
            self.namesake_silent = None;
            return view;
        };
        if namesake.answers {
            self.namesake_silent = None;
        } else {
            let since = *self.namesake_silent.get_or_insert_with(Instant::now);
            namesake.answers = since.elapsed() < NAMESAKE_AFTER;
        }
        view
    }

    /// Carries out a step that was decided from `view`. `stop` stops a service, if it runs.
    ///
    /// # Errors
    /// When a disk or systemd fails.
    pub fn act(&mut self, view: &View, step: Step, stop: impl FnMut(Stopped) -> Result<()>) -> Result<Acted> {
        if let Step::SetAside(Aside::OtherCluster) = step
            && let Some(text) = self.stays(view)?
        {
            return Ok(Acted::Later(text));
        }
        let (desk, before) = (&self.desk, &view.own);
        if !matches!(step, Step::Wait { .. }) {
            self.waits = None;
        }
        match step {
            Step::Start(start) => return Ok(Acted::Start(start)),
            Step::Resume => {
                let state = desk.state()?.context("etcd has data, and nothing says how it started")?;
                return Ok(Acted::Start(state.etcd));
            }
            Step::Wait { why, order } => return Ok(Acted::Later(self.waiting(&why, order.as_ref()))),
            change @ (Step::Remove(_) | Step::Add | Step::Readdress(_)) => {
                // etcd refuses changes while a member has not been connected for five seconds: it is asked again.
                if let Err(error) = self.ask_cluster(view, &change) {
                    return Ok(Acted::Later(format!("{}: {error:#}", words(&change))));
                }
            }
            step => {
                if desk.carry_out(before, &step, stop)?
                    && let Step::Commit(begun) = &step
                {
                    log::info!("this node's etcd member begins: {}", words_of(begun));
                    // Nothing else has changed, so that there is nothing to look at.
                    let view = View { own: desk.look()?, ..view.clone() };
                    if let Step::Start(start) = join::next(&view) {
                        return Ok(Acted::Start(start));
                    }
                }
            }
        }
        Ok(Acted::Again)
    }

    /// Why this node keeps its etcd's data beside the cluster that is seen: a person had them replace that one.
    fn stays(&self, view: &View) -> Result<Option<String>> {
        let (EtcdData::Data(ids), Some(other)) = (&view.own.etcd, &view.cluster) else { return Ok(None) };
        let path = self.desk.path(lineage::PATH);
        if Lineage::load(&path).known()?.is_none() {
            return Ok(None);
        }
        let client = self.credentials.etcd(self.endpoints(view, other))?;
        match Recovered::ask(&client, Names(&self.desk.node.spec.cluster)) {
            Ok(theirs) => lineage::stays(&path, ids.cluster, theirs.as_ref()),
            Err(error) => {
                Ok(Some(format!("whether the cluster that answers has replaced this node's is not known: {error:#}")))
            }
        }
    }

    /// Where the nodes are asked that run `cluster`: another cluster's member would say, or change, something else.
    fn endpoints(&self, view: &View, cluster: &Cluster) -> Vec<String> {
        let is_its =
            |found: &Peer| matches!(found, Peer::Etcd { cluster: its, .. } if its.is_none_or(|id| id == cluster.id));
        let its = |name: &String| view.peers.iter().any(|(known, found)| known == name && is_its(found));
        self.desk.node.spec.members.iter().filter(|member| its(&member.name)).map(client_url).collect()
    }

    /// Whether the cluster went on from another node by a person's order, in another etcd than this node's, which runs:
    /// another cluster's quorum answers. While this node's own has its quorum, too, the other must say that it has
    /// replaced it.
    fn is_left_behind(&self) -> Result<bool> {
        let own = self.credentials.etcd(vec![client_url(self.desk.me())]);
        if let Ok((cluster, _)) = own.and_then(|client| client.cluster()) {
            let found = self.beside(cluster);
            return Ok(found.iter().any(|beside| beside.standing == Standing::GivesWay));
        }
        let view = self.survey()?;
        let is_another = matches!(
            (&view.own.etcd, &view.cluster),
            (EtcdData::Data(ids), Some(other)) if ids.cluster != other.id
        );
        Ok(is_another && self.stays(&view)?.is_none())
    }

    /// The clusters of etcd whose quorum answers beside this node's own, which has the id `own` and a quorum.
    fn beside(&self, own: u64) -> Vec<Beside> {
        let others: Vec<&Member> = self.desk.node.peers().collect();
        let mut found = rival::ask(&others, &self.credentials);
        found.retain(|quorum| quorum.cluster != format!("{own:x}"));
        if found.is_empty() {
            return Vec::new();
        }
        let mine = self.past(own, &[self.desk.me()]);
        let seen = |quorum: rival::Quorum| {
            let its = others.iter().filter(|member| quorum.nodes.contains(&member.name)).copied().collect::<Vec<_>>();
            let theirs = Past::ask(quorum.cluster.clone(), &its, &self.desk.node.spec.cluster, &self.credentials);
            Beside { standing: rival::standing(&mine, &theirs), cluster: quorum.cluster, nodes: quorum.nodes }
        };
        found.into_iter().map(seen).collect()
    }

    /// Makes this node's etcd count, if it runs and was added as one that does not yet.
    ///
    /// # Errors
    /// When the others do not do it: it must have all that they have before.
    pub fn promote(&self) -> Result<()> {
        let EtcdData::Data(ids) = EtcdData::look(&self.desk.path(ETCD_DATA)) else { return Ok(()) };
        let others: Vec<String> = self.desk.node.peers().map(client_url).collect();
        if others.is_empty() {
            return Ok(());
        }
        let client = self.credentials.etcd(others)?;
        if client.members()?.iter().any(|member| member.id == ids.member && member.is_learner) {
            client.member_promote(ids.member)?;
            log::info!("this node's etcd has all that the others have, and counts from now on");
        }
        Ok(())
    }

    /// Remembers from where the cluster went on, as this node's etcd says.
    fn remember_recovery(&self) -> Result<()> {
        let client = self.credentials.etcd(vec![client_url(self.desk.me())])?;
        let theirs = Recovered::ask(&client, Names(&self.desk.node.spec.cluster))?;
        match EtcdData::look(&self.desk.path(ETCD_DATA)) {
            EtcdData::Data(ids) => lineage::learn(&self.desk.path(lineage::PATH), ids.cluster, theirs),
            other => anyhow::bail!("etcd serves, and its data are not found: {other:?}"),
        }
    }

    /// Changes the cluster's members.
    fn ask_cluster(&mut self, view: &View, step: &Step) -> Result<()> {
        let me = self.desk.me();
        let cluster = view.cluster.as_ref().context("no cluster answers")?;
        let client = self.credentials.etcd(self.endpoints(view, cluster))?;
        match step {
            Step::Remove(id) => client.member_remove(*id)?,
            Step::Add => {
                let learns = join::must_learn(cluster);
                self.added = Some(client.member_add(&[peer_url(me)], learns)?.id);
            }
            Step::Readdress(id) => client.member_update(*id, &[peer_url(me)])?,
            _ => {}
        }
        Ok(())
    }

    /// For whom and why it waits; after a minute also since when, and what a person could do.
    fn waiting(&mut self, why: &str, order: Option<&Suggestion>) -> String {
        let (since, at) = *self.waits.get_or_insert_with(|| (Instant::now(), now()));
        if since.elapsed() < TOLD_AFTER {
            return why.to_owned();
        }
        let mut text = format!("{why}\nsince {}", clock::utc(at));
        if let Some(Suggestion { on, without }) = order {
            let names = without.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            text.push_str(&format!(
                "\nif {names} will not come: switch it off, then on {on}: pgha-node form --without {names}"
            ));
        }
        text
    }
}

fn words_of(begun: &Begun) -> String {
    let kind = if begun.start.existing { "it joins the cluster" } else { "it forms the cluster" };
    let ids = begun.ids.map(|Ids { cluster, member }| format!(" {cluster:x} as the member {member:x}"));
    format!("{kind}{}", ids.unwrap_or_default())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

/// What a step does, for a person; `None` for those that are not worth a word.
fn words(step: &Step) -> String {
    match step {
        Step::Promise(_) => "founding the cluster".to_owned(),
        Step::Release(_) => "its founder does not found the cluster any more".to_owned(),
        Step::Commit(begun) => words_of(begun),
        Step::Remove(id) => format!("removing the member {id:x}, whose data are lost"),
        Step::Add => "asking to be added".to_owned(),
        Step::Readdress(id) => format!("reporting the new address of the member {id:x}"),
        Step::SetAside(Aside::Removed) => "the cluster does not know this member any more: it joins again".to_owned(),
        Step::SetAside(Aside::OtherCluster) => {
            "ATTENTION: etcd's data here are another cluster's than the one that runs; they are set aside, and this node joins \
             the one that runs"
                .to_owned()
        }
        Step::SetAside(Aside::Unfinished) => "setting aside what an earlier start of etcd has left".to_owned(),
        Step::Abandon(..) | Step::Forget(_) => "the cluster was begun and can never have a quorum: it is formed again".to_owned(),
        Step::Start(_) | Step::Resume | Step::Wait { .. } => String::new(),
    }
}

/// Whether the cluster went on from another node by a person's order, in another etcd than that of `node`, this machine,
/// which it may follow.
///
/// # Errors
/// When its own disks or certificates cannot be read.
pub fn is_left_behind(node: &Node) -> Result<bool> {
    Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?.is_left_behind()
}

/// Another cluster of etcd with a quorum, beside this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// Its id, in hexadecimal digits.
    pub cluster: String,
    /// The nodes of the document that run it and answer.
    pub nodes: Vec<String>,
    /// How this node's cluster stands to it.
    pub standing: Standing,
}

/// The clusters of etcd whose quorum answers beside that of `node`, this machine, which has the id `own` and a quorum.
/// Who does not answer is unknown, and not among them.
///
/// # Errors
/// When the document has no digest.
pub fn beside(node: &Node, own: u64) -> Result<Vec<Beside>> {
    Ok(Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?.beside(own))
}

/// How this node's etcd starts. The other nodes are answered until this is dropped, which must be before etcd starts.
#[derive(Debug)]
pub struct Entered {
    /// How etcd starts, or started the first time.
    pub start: EtcdStart,
    discovery: Option<DiscoveryListener>,
}

impl Entered {
    /// Frees etcd's port.
    pub fn close(&mut self) {
        self.discovery = None;
    }
}

/// Finds out how this node's etcd member starts, and waits as long as it may not.
///
/// # Errors
/// When a disk or systemd fails, or another process of this node does the same.
pub fn enter(node: &Node, reporter: &mut Reporter) -> Result<Entered> {
    let mut forming = Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?;
    if runs()?
        && let Some(state) = forming.desk.state()?
    {
        if !forming.is_left_behind()? {
            return Ok(Entered { start: state.etcd, discovery: None });
        }
        reporter.report(Phase::Working, ENTERING, LEFT_BEHIND);
        stop(Stopped::Patroni)?;
        stop(Stopped::Etcd)?;
    }
    let discovery = forming.receive()?;
    let (mut acts, began) = (0, Instant::now());
    loop {
        let view = forming.look(false)?;
        let step = join::next(&view);
        if join::listens(&view, &step, began.elapsed()) {
            let why = format!("listening for the other members before etcd starts ({})", view.standing());
            reporter.report(Phase::Waiting, ENTERING, &why);
            lock::rest(PAUSE)?;
            continue;
        }
        let text = words(&step);
        if !text.is_empty() {
            reporter.report(Phase::Working, ENTERING, &text);
        }
        match forming.act(&view, step, stop)? {
            Acted::Start(start) => return Ok(Entered { start, discovery: Some(discovery) }),
            Acted::Again if acts < HASTE => acts += 1,
            Acted::Again => {
                acts = 0;
                lock::rest(PAUSE)?;
            }
            Acted::Later(why) => {
                reporter.report(Phase::Waiting, ENTERING, &why);
                acts = 0;
                lock::rest(PAUSE)?;
            }
        }
    }
}

fn runs() -> Result<bool> {
    Ok(matches!(units::show(UNIT)?.active.as_str(), "active" | "activating" | "reloading" | "deactivating"))
}

fn stop(service: Stopped) -> Result<()> {
    let unit = match service {
        Stopped::Patroni => PATRONI,
        Stopped::Etcd => UNIT,
    };
    if matches!(units::show(unit)?.active.as_str(), "inactive" | "failed" | "") {
        return Ok(());
    }
    Ok(units::stop(unit)?)
}

/// Starts etcd and waits until it serves, for the quorum as long as it takes. Returns whether it does: it does not when its
/// data turned out to be of no use and were set aside, so that the node must enter again.
///
/// # Errors
/// When a disk or systemd fails, or etcd does not run.
pub fn serve(node: &Node, service: &Service, reporter: &mut Reporter) -> Result<bool> {
    let mut forming = Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?;
    let me = forming.desk.me().clone();
    if !units::show(&service.unit)?.settled() {
        reporter.report(Phase::Working, STARTING, "");
        units::start(&service.unit)?;
    }
    let within = service.ready.as_ref().map_or(Duration::from_secs(90), |ready| ready.within.0);
    let (mut seen, mut ran, mut doubted) = (false, Instant::now(), Instant::now());
    // What the last look at the others gave.
    let mut waits = None;
    loop {
        let unit = units::show(&service.unit)?;
        let own = peers::own_etcd(&me, &forming.credentials)?;
        if !seen && matches!(own, Peer::Etcd { .. }) {
            forming.desk.saw_etcd()?;
            seen = true;
        }
        if unit.active == "active" && takes_clients(&me) {
            return Ok(true);
        }
        if matches!(own, Peer::Etcd { .. }) {
            ran = Instant::now();
        }
        if doubted.elapsed() >= DOUBT && unit.active != "active" {
            doubted = Instant::now();
            let view = forming.look(matches!(own, Peer::Etcd { ever: false, .. }))?;
            match join::next(&view) {
                step @ (Step::SetAside(_) | Step::Abandon(..)) => {
                    reporter.report(Phase::Working, STARTING, &words(&step));
                    match forming.act(&view, step, stop)? {
                        Acted::Later(why) => waits = Some(why),
                        _ => return Ok(false),
                    }
                }
                Step::Resume | Step::Start(_) if matches!(own, Peer::Etcd { .. }) => {
                    let lost =
                        format!("it waits for its quorum ({}). If that cannot come back: {RECOVER}", view.standing());
                    waits = Some(forming.waiting(&lost, None));
                }
                Step::Wait { why, order } => waits = Some(forming.waiting(&why, order.as_ref())),
                _ => waits = None,
            }
        }
        if ran.elapsed() >= within {
            return Err(UserError::runtime(format!(
                "{} is not ready after {} s: {}",
                service.unit,
                within.as_secs(),
                unit.words()
            ))
            .hint(format!("journalctl -u {}", service.unit))
            .into());
        }
        reporter.report(Phase::Waiting, STARTING, &waits.clone().unwrap_or_else(|| unit.words()));
        lock::rest(PAUSE / 2)?;
    }
}

fn takes_clients(me: &Member) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(me.address, ports::ETCD_CLIENT), Duration::from_secs(2)).is_ok()
}

/// Waits until etcd's cluster knows its version, without which Patroni cannot speak to it; members that do not come for
/// ten seconds are let go, see [`join::absent`], and those that an order leaves out at once. Then this node remembers from
/// where the cluster went on last. Returns whether it is so: it is not when the cluster has gone on in another etcd
/// meanwhile, so that the node must enter again.
///
/// # Errors
/// When a disk fails.
pub fn settle(node: &Node, reporter: &mut Reporter) -> Result<bool> {
    let forming = Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?;
    let promises = forming.desk.promises()?;
    let me = forming.desk.me().clone();
    let (deadline, mut doubted) = (Instant::now() + LATECOMERS, Instant::now());
    loop {
        match peers::unsettled(&me, &forming.credentials) {
            Ok(None) => match forming.remember_recovery() {
                Ok(()) => return Ok(true),
                Err(error) => {
                    let why = forming.promote().err().unwrap_or(error);
                    reporter.report(Phase::Waiting, SETTLING, &format!("etcd does not answer yet: {why:#}"));
                }
            },
            Ok(Some(cluster)) => {
                let gone = join::going(&cluster, &promises, Instant::now() >= deadline);
                if gone.is_empty() {
                    reporter.report(Phase::Waiting, SETTLING, "not every member has come yet");
                } else {
                    reporter.report(Phase::Working, SETTLING, "going on without the members that have not come");
                    let client = forming.credentials.etcd(vec![client_url(&me)])?;
                    for id in gone {
                        // Another node may have done it, or etcd wants all connections to be five seconds old: looked at again.
                        if let Err(error) = client.member_remove(id) {
                            log::info!("removing the member {id:x}: {error}");
                        }
                    }
                }
            }
            // An etcd that is busy answers later.
            Err(error) => {
                // One that does not count yet answers nothing.
                let why = forming.promote().err().unwrap_or(error);
                reporter.report(Phase::Waiting, SETTLING, &format!("etcd does not answer yet: {why:#}"));
                if doubted.elapsed() >= DOUBT {
                    doubted = Instant::now();
                    if forming.is_left_behind()? {
                        return Ok(false);
                    }
                }
            }
        }
        lock::rest(PAUSE)?;
    }
}

/// Looks from time to time whether the cluster has gone on in another etcd, while this node waits for something else.
#[derive(Debug)]
pub struct Attention {
    forming: Forming,
    paid: Instant,
}

impl Attention {
    /// That of a node.
    ///
    /// # Errors
    /// As [`Desk::new`].
    pub fn new(node: &Node) -> Result<Attention> {
        let forming = Forming::new(node, Path::new("/"), TlsCredentials::of_the_node())?;
        Ok(Attention { forming, paid: Instant::now() })
    }

    /// Looks, if it is time.
    ///
    /// # Errors
    /// When it has: this node must enter it. Also when its own disks or certificates cannot be read.
    pub fn pay(&mut self) -> Result<()> {
        if self.paid.elapsed() < DOUBT {
            return Ok(());
        }
        self.paid = Instant::now();
        if self.forming.is_left_behind()? { Err(UserError::runtime(LEFT_BEHIND).into()) } else { Ok(()) }
    }
}
