//! Nodes that form a cluster's etcd and join it: the real words between them over mutual TLS on loopback, and real etcds.
//! Only systemd is not there: a machine is a thread that does what `pgha-node init` does.

use pgha_image::{
    model::{
        ClusterSpec, Node, Secret, samples,
        scope::{EtcdStart, client_url, peer_url},
    },
    node::{
        etcd_data::{EtcdData, Ids},
        form::{Acted, Forming, ORDER_PATH},
        join::{self, FormingOrder, Peer, Step, View},
        peers::{self, TlsCredentials},
        pki::{Authority, Store},
        promise::Request,
        state::{ETCD_DATA, STATE_PATH, State},
    },
};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;

/// How long anything may take here.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long nothing must happen.
const QUIET: Duration = Duration::from_secs(4);

pub(crate) fn has_etcd() -> bool {
    crate::testing::require_program("etcd")
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A document whose members have loopback addresses that no other test has.
pub(crate) fn spec(count: usize) -> ClusterSpec {
    static NETWORK: AtomicU8 = AtomicU8::new(1);
    let network = NETWORK.fetch_add(1, Ordering::Relaxed);
    let mut spec = samples::five();
    spec.vip = None;
    spec.cluster = "demo".into();
    spec.members.truncate(count);
    for (number, member) in spec.members.iter_mut().enumerate() {
        member.address = [127, 92, network, number as u8 + 1].into();
    }
    spec
}

/// A machine, on or off.
pub(crate) struct Machine {
    pub(crate) node: Node,
    root: Arc<TempDir>,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    off: AtomicBool,
    /// For whom it waits.
    waits: Mutex<String>,
    steps: Mutex<Vec<Step>>,
    serves: AtomicBool,
}

impl Machine {
    fn new(node: Node) -> Machine {
        let (root, shared) = (Arc::new(tempfile::tempdir().unwrap()), Arc::default());
        Machine { node, root, shared, thread: None }
    }

    pub(crate) fn all(spec: &ClusterSpec) -> Vec<Machine> {
        Node::all(spec).map(Machine::new).collect()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn credentials(&self) -> TlsCredentials {
        TlsCredentials::at(&self.path("tls"))
    }

    pub(crate) fn certify(&self) {
        let authority = Authority::of(&self.node.spec).unwrap();
        Store::at(&self.path("tls")).ensure(&self.node, &authority, SystemTime::now()).unwrap();
        fs::create_dir_all(self.path("var/lib/pgha")).unwrap();
        fs::create_dir_all(self.path("var/lib/etcd")).unwrap();
    }

    fn forming(&self) -> Forming {
        Forming::new(&self.node, self.root.path(), self.credentials()).unwrap()
    }

    pub(crate) fn start(&mut self) {
        self.certify();
        self.shared = Arc::default();
        let (shared, node) = (Arc::clone(&self.shared), self.node.clone());
        let (root, forming) = (Arc::clone(&self.root), self.forming());
        self.thread = Some(thread::spawn(move || run(&shared, &node, root.path(), forming)));
    }

    /// As if its power failed.
    pub(crate) fn cut(&mut self) {
        self.shared.off.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Gives it an empty disk.
    pub(crate) fn replace(&mut self) {
        self.cut();
        self.root = Arc::new(tempfile::tempdir().unwrap());
    }

    pub(crate) fn serves(&self) -> bool {
        self.shared.serves.load(Ordering::Relaxed)
    }

    pub(crate) fn waits(&self) -> String {
        self.shared.waits.lock().unwrap().clone()
    }

    pub(crate) fn did(&self, what: impl Fn(&Step) -> bool) -> bool {
        self.shared.steps.lock().unwrap().iter().any(what)
    }

    pub(crate) fn ids(&self) -> Ids {
        match EtcdData::look(&self.path(ETCD_DATA)) {
            EtcdData::Data(ids) => ids,
            other => panic!("{other:?}"),
        }
    }

    fn order(&self, without: &[&str]) {
        let document = join::Document::of(&self.node.spec).unwrap().digest;
        let without: BTreeSet<String> = without.iter().map(|name| (*name).to_owned()).collect();
        fs::write(self.path(ORDER_PATH), serde_json::to_string(&FormingOrder { document, without }).unwrap()).unwrap();
    }

    pub(crate) fn client(&self) -> pgha_image::etcd::Client {
        self.credentials().etcd(vec![client_url(self.node.member())]).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut();
    }
}

fn run(shared: &Shared, node: &Node, root: &Path, mut forming: Forming) {
    let off = || shared.off.load(Ordering::Relaxed);
    while !off() {
        let Some(start) = enter(shared, &mut forming) else { return };
        let mut etcd = launch(node, root, &start);
        let again = serve(shared, node, root, &mut forming, &mut etcd);
        shared.serves.store(false, Ordering::Relaxed);
        let _ = etcd.kill();
        let _ = etcd.wait();
        if !again {
            return;
        }
    }
}

fn enter(shared: &Shared, forming: &mut Forming) -> Option<EtcdStart> {
    let discovery = forming.receive().unwrap();
    while !shared.off.load(Ordering::Relaxed) {
        let view = forming.look(false).unwrap();
        let step = join::next(&view);
        shared.steps.lock().unwrap().push(step.clone());
        match forming.act(&view, step, |_| Ok(())).unwrap() {
            Acted::Start(start) => {
                drop(discovery);
                return Some(start);
            }
            Acted::Again => {}
            Acted::Later(why) => {
                *shared.waits.lock().unwrap() = why;
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
    None
}

/// Looks after etcd until the machine is off, or its data turn out to be of no use.
fn serve(shared: &Shared, node: &Node, root: &Path, forming: &mut Forming, etcd: &mut Child) -> bool {
    let credentials = TlsCredentials::at(&root.join("tls"));
    let client = credentials.etcd(vec![client_url(node.member())]).unwrap();
    let mut doubted = Instant::now();
    while !shared.off.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        if client.get("x").is_ok() {
            shared.serves.store(true, Ordering::Relaxed);
            continue;
        }
        if doubted.elapsed() < Duration::from_secs(2) {
            continue;
        }
        // What `settle` does.
        let _ = forming.promote();
        doubted = Instant::now();
        let me = peers::own_etcd(node.member(), &credentials).unwrap();
        let view = forming.look(matches!(me, Peer::Etcd { ever: false, .. })).unwrap();
        let step = join::next(&view);
        if matches!(step, Step::SetAside(_) | Step::Abandon(..)) {
            shared.steps.lock().unwrap().push(step.clone());
            forming
                .act(&view, step, |_| {
                    let _ = etcd.kill();
                    Ok(etcd.wait().map(drop)?)
                })
                .unwrap();
            return true;
        }
    }
    false
}

fn launch(node: &Node, root: &Path, start: &EtcdStart) -> Child {
    let (me, tls) = (node.member(), root.join("tls"));
    let members: Vec<String> = start.members.iter().map(|(name, url)| format!("{name}={url}")).collect();
    let log = fs::OpenOptions::new().create(true).append(true).open(root.join("etcd.log")).unwrap();
    let mut command = Command::new("etcd");
    command.args(["--name", &me.name, "--initial-cluster", &members.join(",")]);
    command.args(["--initial-cluster-state", if start.existing { "existing" } else { "new" }]);
    command.args(["--initial-cluster-token", &start.token, "--strict-reconfig-check", "--enable-grpc-gateway"]);
    command.arg("--data-dir").arg(root.join(ETCD_DATA.trim_start_matches('/')));
    command.args(["--listen-client-urls", &client_url(me), "--advertise-client-urls", &client_url(me)]);
    command.args(["--listen-peer-urls", &peer_url(me), "--initial-advertise-peer-urls", &peer_url(me)]);
    command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"]);
    command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
    for (flag, file) in [("cert-file", "etcd.pem"), ("key-file", "etcd.pem"), ("trusted-ca-file", "ca.crt")] {
        command.arg(format!("--{flag}")).arg(tls.join(file)).arg(format!("--peer-{flag}")).arg(tls.join(file));
    }
    command.stderr(log).stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
}

pub(crate) fn start_all(machines: &mut [Machine]) {
    machines.iter_mut().for_each(Machine::start);
}

pub(crate) fn all_serve(machines: &[Machine]) {
    wait_for("all to serve", || machines.iter().all(Machine::serves).then_some(()));
    let clusters: BTreeSet<u64> = machines.iter().map(|machine| machine.ids().cluster).collect();
    assert_eq!(clusters.len(), 1);
}

#[test]
fn machines_that_start_together_form_one_cluster_at_once() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    machines.iter().for_each(Machine::certify);
    let began = Instant::now();
    start_all(&mut machines);
    all_serve(&machines);
    println!("    three etcds serve after {:.1} s", began.elapsed().as_secs_f64());
    // What is read from the log, what the promise gives and what etcd says are the same.
    let (id, members) = machines[0].client().cluster().unwrap();
    for machine in &machines {
        let ids = machine.ids();
        assert_eq!(ids.cluster, id);
        let name = &machine.node.member().name;
        assert!(members.iter().any(|member| member.id == ids.member && member.name == *name), "{members:?}");
        let state = State::load(&machine.path(STATE_PATH)).unwrap().unwrap();
        assert_eq!(state.etcd_ids, Some(ids));
        assert_eq!(state.etcd.members.len(), 3);
        let text = serde_json::to_string(&state).unwrap();
        assert!(!text.contains(spec.secret.expose()));
    }
    // A second cluster of the same document has other ids.
    let first = id;
    for machine in &mut machines {
        machine.replace();
    }
    start_all(&mut machines);
    all_serve(&machines);
    assert_ne!(machines[0].ids().cluster, first);
}

#[test]
fn a_machine_that_is_late_is_waited_for_and_then_all_form_at_once() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    machines.iter().for_each(Machine::certify);
    machines[0].start();
    machines[1].start();
    thread::sleep(QUIET);
    for machine in &machines[..2] {
        assert!(!machine.serves() && machine.waits().contains("pg-3: not started yet"), "{}", machine.waits());
        assert_eq!(EtcdData::look(&machine.path(ETCD_DATA)), EtcdData::Absent);
    }
    // The power fails on one that has promised.
    machines[1].cut();
    machines[1].start();
    let began = Instant::now();
    machines[2].start();
    all_serve(&machines);
    println!("    after the last came: {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn an_order_forms_without_a_machine_which_joins_when_it_comes() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    machines[1].start();
    machines[2].start();
    wait_for("the others to wait", || machines[1].waits().contains("pg-1: not started yet").then_some(()));
    machines[1].order(&["pg-1"]);
    all_serve(&machines[1..]);
    assert!(!machines[1].path(ORDER_PATH).exists(), "an order is carried out once");
    // What `settle` does.
    let client = machines[1].client();
    wait_for("the absent member to be let go", || {
        let members = client.members().ok()?;
        let absent: Vec<u64> = members.iter().filter(|member| member.client_urls.is_empty()).map(|m| m.id).collect();
        absent.iter().for_each(|id| drop(client.member_remove(*id)));
        absent.is_empty().then_some(())
    });
    machines[0].start();
    all_serve(&machines);
    assert!(machines[0].did(|step| *step == Step::Add));
    assert_eq!(machines[0].client().members().unwrap().len(), 3);
}

#[test]
fn two_that_were_replaced_wait_for_the_one_that_has_the_data() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    start_all(&mut machines);
    all_serve(&machines);
    machines[2].client().put("precious", "rows", 0).unwrap();
    let ids = machines[2].ids();
    machines[2].cut();
    for number in [0, 1] {
        machines[number].replace();
        machines[number].start();
    }
    thread::sleep(QUIET);
    machines[2].start();
    thread::sleep(QUIET);
    for machine in &machines[..2] {
        assert!(!machine.serves() && machine.waits().contains("majority is not here"), "{}", machine.waits());
        assert_eq!(EtcdData::look(&machine.path(ETCD_DATA)), EtcdData::Absent);
    }
    assert_eq!(machines[2].ids(), ids);
}

#[test]
fn a_member_of_another_incarnation_sets_its_data_aside_and_joins() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    start_all(&mut machines);
    all_serve(&machines);
    let old = machines[0].ids();
    machines[0].cut();
    for number in [1, 2] {
        machines[number].replace();
        machines[number].start();
    }
    wait_for("the order to be known", || machines[1].waits().contains("pg-1").then_some(()));
    machines[1].order(&["pg-1"]);
    all_serve(&machines[1..]);
    machines[1].client().put("new", "rows", 0).unwrap();
    machines[0].start();
    all_serve(&machines);
    assert!(machines[0].did(|step| *step == Step::SetAside(join::Aside::OtherCluster)));
    assert_ne!(machines[0].ids().cluster, old.cluster);
    let value = machines[0].client().get("new").unwrap().unwrap().value;
    assert_eq!(value, b"rows");
    let aside = fs::read_dir(machines[0].path("var/lib/etcd")).unwrap();
    let names: Vec<String> = aside.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let aside = names.iter().find(|name| name.contains(".aside-")).expect("its data are kept");
    assert_eq!(EtcdData::look(&machines[0].path("var/lib/etcd").join(aside)), EtcdData::Data(old));
}

#[test]
fn a_founder_whose_companions_are_replaced_before_they_began_forms_anew() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = Machine::all(&spec);
    // They promise and are gone.
    machines.iter().for_each(Machine::certify);
    machines[0].start();
    let listeners: Vec<_> = machines[1..].iter().map(|machine| machine.forming().receive().unwrap()).collect();
    wait_for("the founder to commit", || machines[0].did(|step| matches!(step, Step::Commit(_))).then_some(()));
    drop(listeners);
    wait_for("its etcd to begin", || {
        matches!(EtcdData::look(&machines[0].path(ETCD_DATA)), EtcdData::Data(_)).then_some(())
    });
    let first = machines[0].ids();
    for number in [1, 2] {
        machines[number].replace();
        machines[number].start();
    }
    all_serve(&machines);
    assert!(machines[0].did(|step| matches!(step, Step::Abandon(..))));
    assert_ne!(machines[0].ids().cluster, first.cluster);
}

/// How pg-1 sees pg-2.
fn seen(machine: &Machine) -> Peer {
    let document = join::Document::of(&machine.node.spec).unwrap().digest;
    let request = Request { from: "pg-1".into(), document, incarnation: None, without: BTreeSet::new() };
    let peers = peers::ask(&[&machine.node.spec.members[1]], &request, &machine.credentials()).unwrap();
    peers.into_iter().next().unwrap()
}

#[test]
fn what_answers_otherwise_is_unclear_and_nobody_is_silent() {
    let spec = spec(2);
    let machine = Machine::new(Node::new(spec.clone(), 0));
    machine.certify();
    assert_eq!(seen(&machine), Peer::Silent("not started yet".into()));
    // Plain text, then nothing at all.
    let address = peers::discovery_address(&spec.members[1]);
    let unclear = |answer: &'static [u8]| {
        let listener = TcpListener::bind(address).unwrap();
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(answer);
            thread::sleep(Duration::from_secs(3));
        });
        let peer = seen(&machine);
        answering.join().unwrap();
        peer
    };
    let peer = unclear(b"SSH-2.0-OpenSSH\r\n");
    assert!(matches!(&peer, Peer::Unclear(why) if why.contains("TLS")), "{peer:?}");
    assert_eq!(unclear(b""), Peer::Unclear("it accepts connections and does not answer".into()));
    // A node with another secret.
    let mut other = spec.clone();
    other.secret = Secret::new("CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=");
    let stranger = Machine::new(Node::new(other, 1));
    stranger.certify();
    let discovery = stranger.forming().receive().unwrap();
    let peer = seen(&machine);
    assert!(matches!(&peer, Peer::Unclear(why) if why.contains("secret")), "{peer:?}");
    drop(discovery);
    // Another node at its address.
    let mut moved = spec.clone();
    moved.members[0].address = spec.members[1].address;
    moved.members[1].address = spec.members[0].address;
    let moved = Machine::new(Node::new(moved, 0));
    moved.certify();
    let discovery = moved.forming().receive().unwrap();
    assert_eq!(seen(&machine), Peer::Unclear("pg-1 answers at its address".into()));
    drop(discovery);
    // What it remembers cannot be read.
    let damaged = Machine::new(Node::new(spec.clone(), 1));
    damaged.certify();
    fs::write(damaged.path(STATE_PATH), "{").unwrap();
    let discovery = damaged.forming().receive().unwrap();
    assert!(matches!(seen(&machine), Peer::Unclear(why) if why.contains("state.json")));
    drop(discovery);
}

#[test]
fn hostile_callers_get_nothing_and_harm_nobody() {
    let spec = spec(2);
    let machines = Machine::all(&spec);
    machines.iter().for_each(Machine::certify);
    let discovery = machines[1].forming().receive().unwrap();
    let address = SocketAddr::new(spec.members[1].address, 2380);
    // Many who say nothing, some who say nonsense.
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(text);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(3)));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"));
    }
    wait_for("it to answer again", || matches!(seen(&machines[0]), Peer::Told(_)).then_some(()));
    drop(idle);
    // With a certificate, but in the wrong words.
    let agent = machines[0].credentials().agent(Duration::from_secs(3)).unwrap();
    let url = peer_url(&spec.members[1]);
    let post =
        |body: &str| agent.post(format!("{url}/pgha/hello")).send(body).map(|response| response.status().as_u16());
    for body in [
        "",
        "{",
        "[]",
        r#"{"schema": 2, "from": "pg-1", "document": "d"}"#,
        r#"{"schema": 1, "from": 7, "document": "d"}"#,
    ] {
        assert_eq!(post(body).unwrap(), 400, "{body}");
    }
    assert!(post(&" ".repeat(1 << 20)).is_err());
    assert_eq!(agent.get(format!("{url}/pgha/hello/pg-1")).call().unwrap().status(), 503);
    // A founder that is none.
    let document = join::Document::of(&spec).unwrap().digest;
    let request = Request {
        from: "pg-2".into(),
        document,
        incarnation: Some("0".repeat(32)),
        without: BTreeSet::from(["pg-1".into()]),
    };
    let peers = peers::ask(&[&spec.members[1]], &request, &machines[0].credentials()).unwrap();
    assert!(matches!(&peers[0], Peer::Told(told) if told.promise.is_none() && told.refusal.is_some()), "{peers:?}");
    assert!(!machines[1].path("var/lib/pgha/promise.json").exists());
    // What it has.
    let facts = peers::facts(&spec.members[1], &machines[0].credentials()).unwrap();
    assert_eq!((facts.node.as_str(), facts.etcd, facts.complete), ("pg-2", None, false));
    drop(discovery);
}

#[test]
fn what_is_on_the_disks_decides_and_not_what_was_seen_before() {
    let spec = spec(3);
    let machines = Machine::all(&spec);
    machines.iter().for_each(Machine::certify);
    let listeners: Vec<_> = machines[1..].iter().map(|machine| machine.forming().receive().unwrap()).collect();
    let mut founder = machines[0].forming();
    let view = founder.look(false).unwrap();
    let Step::Promise(_) = join::next(&view) else { panic!() };
    let step = join::next(&view);
    founder.act(&view, step, |_| Ok(())).unwrap();
    let view: View = founder.look(false).unwrap();
    let step = join::next(&view);
    assert!(matches!(step, Step::Commit(_)), "{step:?}");
    // A database appears before the founder commits.
    let main = machines[0].path("var/lib/postgresql/17/main");
    fs::create_dir_all(&main).unwrap();
    fs::write(main.join("PG_VERSION"), "17").unwrap();
    assert_eq!(founder.act(&view, step, |_| Ok(())).unwrap(), Acted::Again);
    assert!(!machines[0].path(STATE_PATH).exists());
    let view = founder.look(false).unwrap();
    assert!(matches!(join::next(&view), Step::Wait { .. }));
    drop(listeners);
}
