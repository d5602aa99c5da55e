use super::*;
use crate::{
    etcd::{Client, RangeRequest, Settings},
    model::{
        ClusterSpec, Node, samples,
        scope::{client_url, ports},
    },
    node::{
        peers::TlsCredentials,
        pki::{Authority, Store},
        recover::{
            account::Account,
            keys::{Entry, Recovered},
            lab::{Lab, names},
            plan::{Keys as Known, Remark},
            returning,
            timeline::Place,
        },
    },
};
use std::{
    net::IpAddr,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

/// A document whose members have loopback addresses that no other test has.
fn spec() -> ClusterSpec {
    static NETWORK: AtomicU8 = AtomicU8::new(1);
    let network = NETWORK.fetch_add(1, Ordering::Relaxed);
    let mut spec = samples::three();
    spec.cluster = "demo".into();
    spec.vip = None;
    for (number, member) in spec.members.iter_mut().enumerate() {
        member.address = IpAddr::from([127, 93, network, number as u8 + 1]);
    }
    spec
}

/// A node of three, of which the others do not answer, with a database whose server was killed.
struct Site {
    lab: Lab,
    node: Node,
    version: u32,
}

const MAIN: &str = "var/lib/postgresql/VERSION/main";

impl Site {
    /// `None`, and a word of it, where etcd or PostgreSQL is not installed.
    fn new() -> Option<Site> {
        if crate::exec::Run::new("etcd").arg("--version").capture().is_err() {
            crate::testing::require("etcd", false, "etcd is not installed");
            return None;
        }
        let lab = Lab::new()?;
        let version = lab.programs.parent()?.file_name()?.to_str()?.parse().ok()?;
        let site = Site { lab, node: Node::new(spec(), 0), version };
        for folder in ["etc/pgha/tls", "var/lib/etcd", "var/lib/pgha", "run/pgha", "var/lib/postgresql"] {
            fs::create_dir_all(site.root().join(folder)).unwrap();
        }
        let versions = site.root().join(site.main()).parent().unwrap().to_owned();
        fs::create_dir_all(&versions).unwrap();
        site.lab.account.own(&versions).unwrap();
        let authority = Authority::of(&site.node.spec).unwrap();
        Store::at(&site.root().join("etc/pgha/tls")).ensure(&site.node, &authority, SystemTime::now()).unwrap();
        Some(site)
    }

    fn root(&self) -> &Path {
        self.lab.folder.path()
    }

    fn main(&self) -> String {
        MAIN.replace("VERSION", &self.version.to_string())
    }

    fn here(&self) -> Here<'_> {
        self.here_at(self.root())
    }

    fn here_at(&self, root: &Path) -> Here<'_> {
        let credentials = TlsCredentials::at(&self.root().join("etc/pgha/tls"));
        Here { node: &self.node, root: root.to_owned(), version: self.version, credentials }
    }

    /// Makes a database of `rows` rows and cuts its power; returns its system identifier.
    fn database(&self, port: u16, rows: u32) -> String {
        self.lab.initdb(&self.main());
        let server = self.lab.start(&self.main(), port);
        server.sql(&format!("create table t as select generate_series(1, {rows}) i"));
        let system = server.sql("select system_identifier from pg_control_system()");
        server.kill();
        system
    }

    /// Makes etcd's old data.
    fn etcd(&self, entries: &[(&str, &str)]) -> Ids {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|(key, value)| Entry { key: (*key).into(), value: (*value).into(), leased: false })
            .collect();
        let here = self.here();
        let url = peer_url(here.me());
        here.private_etcd().unwrap().found(&here.etcd_data(), "old", (&here.me().name, &url), &entries).unwrap()
    }

    fn give(&self, force: bool) -> RecoveryOrder {
        let here = self.here();
        let (view, contents) = here.view();
        let plan = plan::plan(&view, force).unwrap();
        let order = order(&here, &view, &plan, &contents, force).unwrap();
        order.store(&here.below(order::PATH)).unwrap();
        order
    }
}

/// The etcd of `here`, on two ports of loopback from `port` on.
fn serve(here: &Here<'_>, port: u16) -> (crate::exec::Running, Client) {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let data = here.etcd_data();
    let mut etcd = Account::owner_of(data.parent().unwrap())
        .unwrap()
        .run("etcd")
        .arg(format!("--data-dir={}", data.display()))
        .args(["listen-client-urls", "advertise-client-urls"].map(|flag| format!("--{flag}={}", url(port))))
        .args([format!("--listen-peer-urls={}", url(port + 1)), "--log-level=error".into(), "--logger=zap".into()])
        .start()
        .unwrap();
    let mut output = etcd.stdout().unwrap();
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let client = Client::new(Settings::new([url(port)])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = client.get("/") {
        assert!(Instant::now() < deadline, "{error}");
        thread::sleep(PAUSE / 10);
    }
    (etcd, client)
}

/// Carries the order at `here` out.
fn finish(here: &Here<'_>, tell: impl FnMut(&str)) -> RecoveryOrder {
    let order = RecoveryOrder::load(&here.below(order::PATH)).known().unwrap().unwrap();
    match carry_out(here, order, || Ok(()), tell).unwrap() {
        Outcome::Done(order) => *order,
        Outcome::Dropped(refusal) => panic!("{refusal}"),
    }
}

fn kept(here: &Here<'_>) -> Contents {
    here.private_etcd().unwrap().read(&here.etcd_data(), &["/".to_owned()]).unwrap()
}

fn value<'a>(contents: &'a Contents, key: &str) -> Option<&'a str> {
    contents.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

/// What must be so whenever an order for a database with etcd's keys is carried out.
fn check(here: &Here<'_>, order: &RecoveryOrder, system: &str, old: Ids) {
    let ids = order.ids.unwrap();
    assert!(ids.cluster != old.cluster && ids.member != old.member);
    assert_eq!(EtcdData::look(&here.etcd_data()), EtcdData::Data(ids));
    let above = here.etcd_data().parent().unwrap().to_owned();
    let asides: Vec<String> = names(&above).into_iter().filter(|name| name.ends_with("-replaced")).collect();
    assert_eq!(asides.len(), 1, "{:?}", names(&above));
    assert_eq!(EtcdData::look(&above.join(&asides[0])), EtcdData::Data(old));

    let contents = kept(here);
    assert_eq!(value(&contents, "/service/demo/initialize"), Some(system));
    assert_eq!(value(&contents, "/service/demo/leader"), Some("pg-1"));
    assert_eq!(value(&contents, "/service/demo/config"), Some(r#"{"ttl":42}"#));
    assert_eq!(value(&contents, "/service/demo/members/pg-2"), None);
    let end = order.branch.as_ref().unwrap().end.position.0;
    assert_eq!(value(&contents, "/service/demo/status"), Some(format!(r#"{{"optime":{end},"slots":null}}"#).as_str()));
    assert!(value(&contents, "/service/demo/sync").unwrap().contains(r#""sync_standby":null"#));
    let recovered = contents.recovered(Names("demo")).unwrap();
    assert_eq!(recovered.replaces, [format!("{:x}", old.cluster)]);
    let origin = recovered.database.unwrap();
    assert_eq!(origin.system, system);
    assert!(origin.timeline >= 65 && origin.history.0.len() == 1, "{origin:?}");

    let state = State::load(&here.below(STATE_PATH)).unwrap().unwrap();
    assert_eq!((state.etcd_ids, state.etcd_seen, state.etcd.existing), (Some(ids), true, false));
    assert_eq!(order::pending(&here.below(order::PATH)), None);
    assert_eq!(names(&here.below("/var/lib/pgha")), ["lineage.json", "recovered.json", "state.json"]);
    // It does not go back by itself.
    let stays = lineage::stays(&here.below(lineage::PATH), ids.cluster, None).unwrap();
    assert!(stays.is_some());
}

fn copy(from: &Path, to: &Path) {
    crate::exec::Run::new("cp").arg("-a").arg(from).arg(to).capture().unwrap();
}

/// A folder for copies of a node's disk.
fn disks() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("pgha-lab").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Carries the order at `here` out until it tells that it is about to do `what`, and cuts the power.
fn cut_at(here: &Here<'_>, what: &str) {
    let order = RecoveryOrder::load(&here.below(order::PATH)).known().unwrap().unwrap();
    let cut = |text: &str| assert!(!text.contains(what), "cut off here");
    let stopped =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| carry_out(here, order, || Ok(()), cut).map(drop)));
    assert!(stopped.is_err(), "{what}");
}

const OLD: [(&str, &str); 5] = [
    ("/pgha/demo/document", r#"{"generation":3}"#),
    ("/service/demo/config", r#"{"ttl":42,"pause":true}"#),
    ("/service/demo/history", r#"[[1,83886232,"no recovery target specified"]]"#),
    ("/service/demo/members/pg-2", "{}"),
    ("/service/demo/sync", r#"{"leader":"pg-2","sync_standby":"pg-3","quorum":0}"#),
];

#[test]
fn an_order_is_carried_out_and_a_power_cut_anywhere_ends_well() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let system = site.database(54401, 1000);
    let old = site.etcd(&[&OLD[..], &[("/service/demo/initialize", &system)]].concat());

    let (view, _) = here.view();
    // The addresses of the others are this machine's: it is on, and nothing runs there.
    let Err(Refusal::Doubtful(losses, doubts)) = plan::plan(&view, false) else { panic!("{view:?}") };
    assert!(losses.is_empty() && doubts.len() == 2, "{doubts:?}");
    let plan = plan::plan(&view, true).unwrap();
    assert!(plan.keys && plan.losses.is_empty(), "{plan:?}");
    assert!(plan.remarks.contains(&Remark::NotSynchronous(vec!["pg-2".into(), "pg-3".into()])), "{plan:?}");
    assert!(plan.remarks.contains(&Remark::MaintenanceEnds), "{plan:?}");
    let before = EtcdData::look(&here.etcd_data());
    assert_eq!(before, EtcdData::Data(old), "looking changes nothing");

    let order = site.give(true);
    assert_eq!(order.replaces, [format!("{:x}", old.cluster)]);
    assert_eq!(order.accepts, ["pg-2", "pg-3"]);
    // The disk at each moment at which something begins.
    let disks = disks();
    let mut cuts: Vec<(String, PathBuf)> = Vec::new();
    let done = finish(&here, |what| {
        let disk = disks.path().join(cuts.len().to_string());
        copy(site.root(), &disk);
        cuts.push((what.to_owned(), disk));
    });
    check(&here, &done, &system, old);

    assert_eq!(cuts.len(), 6, "{cuts:?}");
    let of = |number: usize, name: &str| {
        let disk = disks.path().join(format!("{number}-{name}"));
        copy(&cuts[number].1, &disk);
        disk
    };
    for (number, (what, _)) in cuts.iter().enumerate() {
        println!("    cut off when {what}");
        let here = of(number, "cut");
        let here = site.here_at(&here);
        check(&here, &finish(&here, |_| {}), &system, old);
    }
    // Cut off while etcd was being founded.
    let disk = of(3, "half");
    let made = disk.join("var/lib/etcd").join(format!("recovered-{}", order.incarnation));
    fs::create_dir(&made).unwrap();
    fs::write(made.join("half"), "").unwrap();
    check(&site.here_at(&disk), &finish(&site.here_at(&disk), |_| {}), &system, old);
    assert!(names(&disk.join("var/lib/etcd")).iter().any(|name| name.ends_with("-unfinished")));
    // When the new etcd was in its place, and the old not yet set aside; when that was, and nothing remembered it.
    let last = RecoveryOrder::load(&cuts[5].1.join("var/lib/pgha/recover.json")).known().unwrap().unwrap();
    let disk = of(5, "placed");
    place(&site.here_at(&disk), &last).unwrap();
    let error = drop_order(&site.here_at(&disk), last.clone(), "too late").unwrap_err().to_string();
    assert!(error.contains("is carried out"), "{error}");
    check(&site.here_at(&disk), &finish(&site.here_at(&disk), |_| {}), &system, old);
    let disk = of(5, "aside");
    place(&site.here_at(&disk), &last).unwrap();
    set_replaced_aside(&site.here_at(&disk), &last).unwrap();
    check(&site.here_at(&disk), &finish(&site.here_at(&disk), |_| {}), &system, old);

    // Until then it can be dropped, and all is as it was, but for a timeline that nobody has written on.
    for (number, unwritten) in [(1, false), (2, true), (3, false), (3, true), (5, false)] {
        println!("    dropped when {}{}", cuts[number].0, if unwritten { ", not written down" } else { "" });
        let disk = of(number, if unwritten { "unwritten" } else { "dropped" });
        let here = site.here_at(&disk);
        let mut order = RecoveryOrder::load(&here.below(order::PATH)).known().unwrap().unwrap();
        if unwritten {
            // Cut off between the number and the promotion, or between that and its being written down.
            let (number, since) = (done.number, done.since);
            order = RecoveryOrder { phase: Phase::Read, number, since, branch: None, ..order };
        }
        drop_order(&here, order, "a person dropped it").unwrap();
        let dropped = RecoveryOrder::load(&here.below(order::DROPPED_PATH)).known().unwrap().unwrap();
        assert_eq!((dropped.number.is_some(), dropped.branch.is_some()), (number > 2, number > 2));
        assert_eq!(EtcdData::look(&here.etcd_data()), EtcdData::Data(old));
        assert_eq!(order::pending(&here.below(order::PATH)), None);
        let own = |here: &Here<'_>| here.view().0.own().and_then(plan::KnownNode::copy).unwrap().reach.clone();
        let (now, then) = (own(&here), view.own().and_then(plan::KnownNode::copy).unwrap().reach.clone());
        assert_eq!(now, then, "what others have more is more, whatever the order has begun");
        // Also when another order is dropped before it has begun.
        let (view, contents) = here.view();
        let plan = plan::plan(&view, true).unwrap();
        drop_order(&here, super::order(&here, &view, &plan, &contents, true).unwrap(), "again").unwrap();
        assert_eq!(own(&here), then);
        // The next order goes from there.
        let (view, contents) = here.view();
        let plan = plan::plan(&view, true).unwrap();
        super::order(&here, &view, &plan, &contents, true).unwrap().store(&here.below(order::PATH)).unwrap();
        let done = finish(&here, |_| {});
        let places = done.branch.as_ref().unwrap().history.0.len();
        assert_eq!(places, if number > 2 { 2 } else { 1 }, "{done:?}");
        let origin = kept(&here).recovered(Names("demo")).unwrap().database.unwrap();
        // One that has more on the old timeline has what no promotion of the cluster had given up.
        let more = Place { timeline: 1, position: crate::node::database::Lsn(then.end.position.0 + 8) };
        let other = super::super::timeline::Reach { end: more, ..then };
        assert_eq!(returning::standing(&other, &origin), returning::Standing::Past(done_left(&done)));
    }

    // The rows are all there, on the new timeline.
    let server = site.lab.start(&site.main(), 54401);
    assert_eq!(server.sql("select count(*) from t"), "1000");
    server.stop();
}

/// Where the database left the timeline that it had in the cluster.
fn done_left(order: &RecoveryOrder) -> Place {
    order.branch.as_ref().unwrap().history.0[0]
}

#[test]
fn an_order_stays_where_it_is_not_known_whether_the_database_was_promoted() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    site.database(54408, 10);
    let order = RecoveryOrder { number: Some(80), phase: Phase::Read, ..site.give(true) };
    order.store(&here.below(order::PATH)).unwrap();
    let control = here.data().join("global/pg_control");
    let whole = fs::read(&control).unwrap();
    fs::write(&control, "").unwrap();
    let report = crate::error::report(&drop_order(&here, order.clone(), "why").unwrap_err());
    for part in ["has got timeline 80 by the order is not known: the order stays", "hint: ", "aside make database"] {
        assert!(report.contains(part), "`{part}` is not in {report}");
    }
    assert_eq!(names(&here.below("/var/lib/pgha")), ["recover.json"]);
    fs::write(&control, whole).unwrap();
    drop_order(&here, order, "why").unwrap();
    assert_eq!(names(&here.below("/var/lib/pgha")), ["recover-dropped.json"]);
}

#[test]
fn where_etcds_data_cannot_change_places_nothing_begins() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let system = site.database(54409, 10);
    let old = site.etcd(&[&OLD[..], &[("/service/demo/initialize", &system)]].concat());
    let order = site.give(true);
    let (data, real) = (here.etcd_data(), here.below("/var/lib/etcd/real"));
    fs::rename(&data, &real).unwrap();
    std::os::unix::fs::symlink(&real, &data).unwrap();
    let is_told = |refusal: &Refusal| {
        let text = format!("{refusal} {}", refusal.hint("pg-1"));
        assert!(text.contains(&format!("{} is a symbolic link", data.display())), "{text}");
        assert!(text.contains("move what it leads to into its place"), "{text}");
    };
    is_told(&plan::plan(&here.view().0, true).unwrap_err());
    let facts = crate::node::database::Database::look(&here.data());
    match carry_out(&here, order.clone(), || Ok(()), |_| {}).unwrap() {
        Outcome::Dropped(refusal) => is_told(&refusal),
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&here.below("/var/lib/pgha")), ["recover-dropped.json"]);
    assert_eq!(names(&here.below("/var/lib/etcd")), ["default", "real"]);
    assert_eq!(EtcdData::look(&data), EtcdData::Data(old));
    assert_eq!(crate::node::database::Database::look(&here.data()), facts);
    // Nor where it has become one since the last look.
    assert!(place(&here, &order).unwrap_err().to_string().contains("is a symbolic link"));
    // What has changed places and cannot be set aside is not passed over.
    fs::rename(&data, made_in(&here, &order)).unwrap();
    let report = crate::error::report(&set_replaced_aside(&here, &order).unwrap_err());
    let told = format!("its old data, {}, cannot be set aside", made_in(&here, &order).display());
    assert!(report.contains(&told) && report.contains("hint: move them away by hand"), "{report}");
}

#[test]
fn one_that_comes_with_more_while_an_order_is_carried_out_is_seen() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let system = site.database(54407, 10);
    site.etcd(&[&OLD[..], &[("/service/demo/initialize", &system)]].concat());
    site.give(true);
    cut_at(&here, "new incarnation of etcd with");
    assert!(here.database_as_it_is(READ_WITHIN) != here.database(READ_WITHIN), "it has got its timeline");
    // The person was not told of pg-2 that it has more, but that nothing was known of it: that was accepted. Without it, an
    // order is dropped.
    let path = here.below(order::PATH);
    let order = RecoveryOrder::load(&path).known().unwrap().unwrap();
    let order = RecoveryOrder { accepts: vec!["pg-3".into()], ..order };
    order.store(&path).unwrap();
    match carry_out(&here, order, || Ok(()), |_| {}).unwrap() {
        Outcome::Dropped(Refusal::Doubtful(losses, doubts)) => {
            assert_eq!((losses.len(), doubts.len()), (0, 1), "{doubts:?}");
        }
        other => panic!("{other:?}"),
    }
    let dropped = RecoveryOrder::load(&here.below(order::DROPPED_PATH)).known().unwrap().unwrap();
    assert!(dropped.dropped.unwrap().contains("pg-2"));
}

#[test]
fn all_of_etcd_is_lost_and_no_other_database_can_be_made() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let system = site.database(54402, 10);
    let (view, _) = here.view();
    assert_eq!(view.keys, Known::Absent);
    site.give(true);
    let done = finish(&here, |_| {});
    assert_eq!(done.replaces, Vec::<String>::new());
    let contents = kept(&here);
    let keys: Vec<&str> = contents.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "/pgha/demo/first",
            "/pgha/demo/recovered",
            "/service/demo/history",
            "/service/demo/initialize",
            "/service/demo/leader",
            "/service/demo/status",
            "/service/demo/sync"
        ]
    );
    let first: crate::node::first::First = serde_json::from_str(value(&contents, keys[0]).unwrap()).unwrap();
    assert_eq!(first.system, Some(system));
}

#[test]
fn without_a_database_etcd_goes_on_and_protects_what_was_acknowledged() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let (view, _) = here.view();
    assert_eq!(plan::plan(&view, true), Err(Refusal::Nothing));
    let old = site.etcd(&OLD);
    let (view, _) = here.view();
    assert_eq!(plan::plan(&view, true), Err(Refusal::NeverBegun));
    fs::rename(here.etcd_data(), here.below("/var/lib/etcd/other")).unwrap();
    site.etcd(&[&OLD[..], &[("/service/demo/initialize", "77")]].concat());
    site.give(true);
    let done = finish(&here, |_| {});
    assert_ne!(done.ids.unwrap().cluster, old.cluster);
    let contents = kept(&here);
    assert_eq!(value(&contents, "/service/demo/leader"), None);
    assert_eq!(value(&contents, "/service/demo/sync"), Some(OLD[4].1));
    assert_eq!(value(&contents, "/service/demo/config"), Some(r#"{"ttl":42}"#));
    assert_eq!(contents.system(Names("demo")).as_deref(), Some("77"));
}

#[test]
fn an_order_is_dropped_when_a_quorum_answers_and_nothing_has_changed() {
    let Some(site) = Site::new() else { return };
    let here = site.here();
    let system = site.database(54404, 10);
    let old = site.etcd(&[&OLD[..], &[("/service/demo/initialize", &system)]].concat());
    let order = site.give(true);
    // Another member has a quorum.
    let tls = site.root().join("etc/pgha/second");
    let authority = Authority::of(&site.node.spec).unwrap();
    fs::create_dir_all(&tls).unwrap();
    Store::at(&tls).ensure(&Node::new(site.node.spec.clone(), 1), &authority, SystemTime::now()).unwrap();
    let member = &site.node.spec.members[1];
    let peer = peer_url(member);
    let mut run = Account::owner_of(site.root().join("var/lib/etcd").as_path())
        .unwrap()
        .run("etcd")
        .arg(format!("--data-dir={}", site.root().join("second").display()))
        .args(["listen-client-urls", "advertise-client-urls"].map(|flag| format!("--{flag}={}", client_url(member))))
        .args(["listen-peer-urls", "initial-advertise-peer-urls"].map(|flag| format!("--{flag}={peer}")))
        .args([format!("--name={}", member.name), format!("--initial-cluster={}={peer}", member.name)])
        .args(["--log-level=error", "--logger=zap", "--client-cert-auth", "--peer-client-cert-auth"]);
    for (flag, file) in [("cert-file", "etcd.pem"), ("key-file", "etcd.pem"), ("trusted-ca-file", "ca.crt")] {
        let path = tls.join(file);
        run = run.args(["", "peer-"].map(|peer| format!("--{peer}{flag}={}", path.display())));
    }
    let mut etcd = run.start().unwrap();
    let mut output = etcd.stdout().unwrap();
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !matches!(plan::plan(&here.view().0, true), Err(Refusal::Quorum(_))) {
        assert!(std::time::Instant::now() < deadline, "no quorum");
    }
    let facts = || crate::node::database::Database::look(&here.data());
    let before = facts();
    match carry_out(&here, order, || Ok(()), |_| {}).unwrap() {
        Outcome::Dropped(Refusal::Quorum(members)) => assert_eq!(members, ["pg-2"]),
        other => panic!("{other:?}"),
    }
    drop(etcd);
    assert_eq!((EtcdData::look(&here.etcd_data()), facts()), (EtcdData::Data(old), before));
    assert_eq!(names(&here.below("/var/lib/pgha")), ["recover-dropped.json"]);
    assert_eq!(names(&here.below("/var/lib/etcd")), ["default"]);
}

#[test]
fn a_node_that_waits_tells_what_it_has_and_one_that_has_more_is_gone_on_from() {
    let (Some(one), Some(mut other)) = (Site::new(), Site::new()) else { return };
    // Two nodes of one document, with copies of one database.
    let system = one.database(54405, 10);
    other.node = one.node.clone();
    let authority = Authority::of(&other.node.spec).unwrap();
    let tls = other.root().join("etc/pgha/other");
    fs::create_dir_all(&tls).unwrap();
    Store::at(&tls).ensure(&Node::new(other.node.spec.clone(), 1), &authority, SystemTime::now()).unwrap();
    let (from, to) = (one.root().join(one.main()), other.root().join(other.main()));
    crate::exec::Run::new("cp").arg("-a").arg(&from).arg(&to).capture().unwrap();
    let server = other.lab.start(&other.main(), 54406);
    server.sql("insert into t values (11)");
    server.kill();
    let second = Node::new(other.node.spec.clone(), 1);
    let there = Here { node: &second, credentials: TlsCredentials::at(&tls), ..other.here() };
    let window = window::open(&there).unwrap();

    let here = one.here();
    let (view, _) = here.view();
    let node = &view.nodes[1];
    assert_eq!((node.silent.as_deref(), node.patroni), (None, false));
    assert_eq!(node.copy().unwrap().reach.system, system);
    assert!(node.copy().unwrap().reach.end > view.nodes[0].copy().unwrap().reach.end);
    assert!(node.copy().unwrap().last.is_some());
    let plan::Advice::Choose(choices) = plan::advise(&view) else { panic!("{view:?}") };
    assert!(choices[1].node == "pg-2" && choices[1].losses.is_empty(), "{choices:?}");
    let Err(Refusal::Doubtful(losses, _)) = plan::plan(&view, false) else { panic!("{view:?}") };
    assert_eq!(losses[0].node, "pg-2");
    // A third node has a copy of what this one has.
    let disks = disks();
    copy(one.root(), &disks.path().join("third"));
    let third = one.here_at(&disks.path().join("third"));
    // Insisting gives it up; there it is set aside when it comes.
    one.give(true);
    let done = finish(&here, |_| {});
    let origin = kept(&here).recovered(Names("demo")).unwrap().database.unwrap();
    let Database::Present(copy) = there.database(READ_WITHIN) else { panic!() };
    let standing = returning::standing(&copy.reach, &origin);
    let Some(Place { position, .. }) = done.branch.unwrap().history.0.last().copied() else { panic!() };
    assert_eq!(standing, returning::Standing::Past(Place { timeline: 1, position }));

    // When it comes, its database is set aside as soon as the primary runs, and not before.
    let (etcd, client) = serve(&here, 24_991);
    let why = returning::admit(&there, &client).unwrap().unwrap();
    assert!(why.contains("is kept in its place until a primary runs"), "{why}");
    // Nor does one start that has less: without a primary, it would become it.
    let why = returning::admit(&third, &client).unwrap().unwrap();
    for part in ["follows as soon as a primary runs", "pgha-node status, on pg-1", "pgha-node recover"] {
        assert!(why.contains(part), "`{part}` is not in {why}");
    }
    assert_eq!(returning::admit(&here, &client).unwrap(), None, "the one from which the cluster went on starts");
    let member = format!(r#"{{"state":"running","role":"primary","timeline":{}}}"#, origin.timeline + 1);
    client.put(&Names("demo").member("pg-1"), member, 0).unwrap();
    assert_eq!(returning::admit(&third, &client).unwrap(), None);
    assert!(third.data().exists(), "it follows with what it has");
    // What does not move with the folder would be overwritten by the copy that comes next.
    let space = there.data().join("pg_tblspc/16384");
    std::os::unix::fs::symlink("/srv/ts", &space).unwrap();
    let why = returning::admit(&there, &client).unwrap().unwrap();
    assert!(why.contains("has data outside that do not move with it") && why.contains("mv /srv/ts "), "{why}");
    assert!(there.data().exists());
    fs::remove_file(&space).unwrap();
    // It was part of the cluster once, by what it remembers: one that does not know of that is not followed.
    let remembered = Lineage {
        cluster: "9".into(),
        recovered: Recovered {
            incarnation: "other".into(),
            ..Recovered::ask(&client, Names("demo")).unwrap().unwrap()
        },
    };
    remembered.store(&there.below(lineage::PATH)).unwrap();
    assert!(returning::admit(&there, &client).unwrap().is_none(), "it is not a copy of that one's");
    fs::remove_file(there.below(lineage::PATH)).unwrap();
    let main = there.data();
    let asides = names(main.parent().unwrap());
    let aside = asides.iter().find(|name| name.ends_with("-before-recovery")).unwrap();
    assert!(!main.exists(), "{asides:?}");
    assert_eq!(returning::admit(&there, &client).unwrap(), None);
    fs::rename(main.with_file_name(aside), &main).unwrap();
    // The database from which the cluster went on does not follow one that does not know of it.
    assert_eq!(returning::admit(&here, &client).unwrap(), None);
    client.delete(&RangeRequest::key(Names("demo").recovered())).unwrap();
    let why = returning::admit(&here, &client).unwrap().unwrap();
    assert!(why.contains("two clusters of one name"), "{why}");
    assert_eq!(returning::admit(&there, &client).unwrap(), None);
    drop((etcd, client));

    // The cluster went on from here: whoever sees that has nothing to go on from.
    let first = window::open(&here).unwrap();
    let (view, _) = there.view();
    assert!(matches!(plan::plan(&view, true), Err(Refusal::Elsewhere(node, _)) if node == "pg-1"), "{view:?}");
    let plan::Advice::Choose(choices) = plan::advise(&view) else { panic!("{view:?}") };
    assert!(choices.len() == 1 && choices[0].node == "pg-1", "{choices:?}");
    drop(first);

    // An order there is seen here.
    let (view, contents) = there.view();
    let plan = plan::plan(&view, true).unwrap();
    order(&there, &view, &plan, &contents, true).unwrap().store(&there.below(order::PATH)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !matches!(plan::plan(&here.view().0, true), Err(Refusal::Pending(_))) {
        assert!(std::time::Instant::now() < deadline, "the order is not seen");
    }
    drop(window);
    assert!(std::net::TcpListener::bind((here.node.spec.members[1].address, ports::PATRONI)).is_ok());
}
