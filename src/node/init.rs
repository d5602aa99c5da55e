//! `pgha-node init`: makes a running member of the machine, from its metadata, at every boot.
//!
//! Every step looks at what is there and does what is missing, and every file appears whole, so the power may fail
//! anywhere and the next boot goes on. The one thing that is remembered is written before the first service starts:
//! whose data this machine holds from then on ([`super::state`]).

use super::{
    agent,
    apply::{self, Changed},
    bootstrap::{Closed, Gate},
    first,
    form::{self, Entered},
    lock, machine, metadata,
    peers::{DiscoveryListener, TlsCredentials},
    pki::{Authority, Store},
    progress::Reporter,
    recover,
    state::{self, Data, STATE_PATH, State},
    this_node, units,
};
use crate::{
    error::{ErrorKind, UserError, kind_of},
    etcd::Client,
    files::read_text,
    log,
    model::{
        MANIFEST_PATH, Manifest, Node, Readiness, Service,
        scope::{EtcdStart, Machine, Scope},
        status::Phase,
    },
    poll::PollInterval,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

/// Exit status for systemd to try again (sysexits.h).
pub const EX_TEMPFAIL: u8 = 75;
/// Exit status when this machine holds data that is not the document's cluster's.
pub const EX_NOPERM: u8 = 77;
/// Exit status when there is no document; for systemd that is not a failure.
pub const EX_NOINPUT: u8 = 66;
/// Exit status when the document is wrong.
pub const EX_CONFIG: u8 = 78;

/// How often a node looks again while it waits.
const PAUSE: Duration = Duration::from_millis(500);
/// The overlay whose service makes the database.
const PATRONI: &str = "patroni";
/// For a service that says nothing about its readiness.
const PLAIN_WITHIN: Duration = Duration::from_secs(90);

/// Makes this machine a member. Exit status: 0, [`EX_TEMPFAIL`], [`EX_NOPERM`] or [`EX_CONFIG`]. With `changed`, a person has
/// given the document on purpose, so that it counts as the newest.
pub fn run(changed: bool) -> ExitCode {
    let mut reporter = Reporter::of_the_node();
    match init(changed, &mut reporter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            let phase = if code == EX_TEMPFAIL { Phase::Failed } else { Phase::Refused };
            let step = if code == EX_TEMPFAIL { "it failed and will be tried again" } else { "refused" };
            reporter.report(phase, step, &crate::error::report(&error));
            ExitCode::from(code)
        }
    }
}

struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        let code = match kind_of(&error) {
            _ if metadata::is_missing(&error) => EX_NOINPUT,
            ErrorKind::Usage => EX_CONFIG,
            ErrorKind::Runtime => EX_TEMPFAIL,
        };
        Failure { code, error }
    }
}

fn init(given: bool, reporter: &mut Reporter) -> Result<(), Failure> {
    let _held = lock::hold("init", |who| reporter.report(Phase::Waiting, "waiting for its turn", who))?;
    let (node, warnings) = this_node::find_with_warnings()?;
    reporter.cluster(&node.spec.cluster, warnings);
    reporter.node(&node.member().name);

    if !given {
        agent::document::refuse_older(&node)?;
    }
    let state_path = Path::new(STATE_PATH);
    let known = State::load(state_path)?;
    let data = Data::look(Path::new("/"));
    let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
        .with_context(|| format!("reading {MANIFEST_PATH}"))?;
    state::verify_ownership(&node, known.as_ref(), &data, this_node::postgresql_version(&manifest)?)
        .map_err(refused)?;
    if let Some(missing) = data.missing(known.as_ref()) {
        log::warning!("{missing}");
    }
    let facts = machine::facts(node.member().address)?;

    // What cannot be rendered is found before anything waits or changes.
    apply::render_all(&manifest, &scope(&node, &facts, &EtcdStart::together(&node.spec), &manifest), Path::new("/"))?;

    reporter.report(Phase::Working, "making certificates", "");
    let authority = Authority::of(&node.spec)?;
    let made = Store::of_the_node().ensure(&node, &authority, SystemTime::now())?;
    let reread: BTreeSet<&str> = made.iter().flat_map(|purpose| purpose.readers.iter().copied()).collect();

    let postgresql = this_node::postgresql_version(&manifest)?;
    // Until Patroni has its port.
    let mut window = None;
    if let Some(version) = postgresql {
        let here = recover::look::Here::of_the_node(&node, version);
        match recover::window::open(&here) {
            Ok(listener) => window = Some(listener),
            Err(error) => log::debug!("not telling the others what this node has: {error:#}"),
        }
        recover::act::go_on(&here, &mut window, |text| {
            reporter.report(Phase::Working, "recovering the cluster", text);
        })?;
    }
    loop {
        let entered = form::enter(&node, reporter)?;
        reporter.report(Phase::Working, "writing configuration", "");
        let rendered = apply::render_all(&manifest, &scope(&node, &facts, &entered.start, &manifest), Path::new("/"))?;
        let changed = apply::install(&rendered, Path::new("/"))?;
        for change in &changed {
            log::info!("wrote {}", change.target);
        }
        // A disk that is full or a replica that cannot follow may need it before all services are ready.
        if let Err(error) = agent::launch(&node.spec) {
            log::warning!("starting the agent: {error:#}");
        }
        let running = reread_changed(&manifest, &changed, &reread)?;
        // A node that formed the cluster with others may make its first database, until it has been complete once.
        let forms = !entered.start.existing && !known.as_ref().is_some_and(|state| state.complete);
        if !start_all(&node, &manifest, entered, &mut window, Start { forms, given }, reporter)? {
            continue;
        }
        let state = State::load(state_path)?.context("etcd serves, and nothing says how it started")?;
        State { complete: true, ..state.named(&node) }.store(state_path)?;
        let unchanged = changed.is_empty() && made.is_empty() && running == services(&manifest).count();
        reporter.report(
            Phase::Ready,
            "every service is ready",
            if unchanged { "nothing had to be changed" } else { "" },
        );
        return Ok(());
    }
}

/// What is special at this start.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// The node may make the cluster's first database.
    forms: bool,
    /// A person has given the document just now.
    given: bool,
}

/// Starts every service, in order. Returns whether all are ready: they are not if etcd must be entered again.
fn start_all(
    node: &Node,
    manifest: &Manifest,
    mut entered: Entered,
    window: &mut Option<DiscoveryListener>,
    Start { forms, given }: Start,
    reporter: &mut Reporter,
) -> Result<bool, Failure> {
    for (name, service) in services(manifest) {
        if name == "etcd" {
            entered.close();
            if !form::serve(node, service, reporter)? {
                return Ok(false);
            }
            if !form::settle(node, reporter)? {
                return Ok(false);
            }
            if given {
                agent::document::declare_newest(node)?;
            }
            continue;
        }
        if name == PATRONI {
            bring_up_patroni(service, node, window, forms, this_node::postgresql_version(manifest)?, reporter)?;
        } else {
            bring_up(name, service, node, reporter)?;
        }
    }
    Ok(true)
}

/// A request that this machine's data do not allow: wrong, as long as nobody does something about them.
fn refused(problem: UserError) -> Failure {
    let code = if problem.kind == ErrorKind::Usage { EX_NOPERM } else { EX_TEMPFAIL };
    Failure { code, error: problem.into() }
}

fn scope(node: &Node, facts: &Machine, start: &EtcdStart, manifest: &Manifest) -> Scope {
    let parameters = manifest.parameters.clone().into_iter().collect();
    Scope::new(node, facts, start, &parameters)
}

fn services(manifest: &Manifest) -> impl Iterator<Item = (&str, &Service)> {
    manifest.overlays.iter().filter_map(|overlay| Some((overlay.name.as_str(), overlay.service.as_ref()?)))
}

/// Makes services that run already take up what has changed. Returns how many services run.
fn reread_changed(manifest: &Manifest, changed: &[Changed], certificates: &BTreeSet<&str>) -> Result<usize> {
    // The agent's folder has files of the components whose configuration it writes.
    let agent = changed.iter().any(|change| change.target.starts_with("/etc/confd/"));
    let mut running = 0;
    for (name, service) in services(manifest) {
        let unit = units::show(&service.unit)?;
        if unit.settled() {
            running += 1;
        }
        let own = changed.iter().any(|change| change.component == name) || (agent && name == "confd");
        if unit.active != "active" || !(own || certificates.contains(service.unit.as_str())) {
            continue;
        }
        match unit.kind.as_str() {
            _ if unit.reloads => units::reload(&service.unit)?,
            // It keeps state, and a restart of all at once would cost the quorum.
            "notify" => log::warning!("{} uses its new configuration after its next restart", service.unit),
            _ => units::restart(&service.unit)?,
        }
    }
    Ok(running)
}

/// Starts Patroni when it may start, and waits until this node has a whole database.
fn bring_up_patroni(
    service: &Service,
    node: &Node,
    window: &mut Option<DiscoveryListener>,
    forms: bool,
    version: Option<u32>,
    reporter: &mut Reporter,
) -> Result<(), Failure> {
    let step = format!("starting {PATRONI}");
    let client = own_etcd(node)?;
    let version = version.context("the image has Patroni and does not say which version of PostgreSQL")?;
    let (cluster, me, root) = (&node.spec.cluster, &node.member().name, PathBuf::from("/"));
    let gate = Gate { client: &client, cluster, me, forms, version, root };
    if units::show(&service.unit)?.active != "active" {
        // systemd may be about to start it again.
        units::stop(&service.unit)?;
        let here = recover::look::Here::of_the_node(node, version);
        // The cluster may go on in another etcd meanwhile.
        let mut attention = form::Attention::new(node)?;
        let mut rest = |pause| {
            lock::rest(pause)?;
            attention.pay()
        };
        while let Some(why) = recover::returning::admit(&here, &client)? {
            reporter.report(Phase::Waiting, &step, &why);
            rest(PAUSE)?;
        }
        let told = |why: &str| reporter.report(Phase::Waiting, &step, why);
        gate.admit(told, rest).map_err(|closed| match closed {
            Closed::Refused(problem) => refused(problem),
            Closed::Failed(error) => error.into(),
        })?;
    }
    *window = None;
    let outcome = wait_for_database(service, node, &gate, reporter);
    if outcome.is_err() && gate.look().is_ok_and(|view| first::is_in_vain(&view)) {
        log::warning!("Patroni waits for what will not come: it is stopped, and whether it may start is decided again");
        units::stop(&service.unit)?;
    }
    Ok(outcome?)
}

/// Starts Patroni, which may start, and waits until this node has a whole database.
fn wait_for_database(service: &Service, node: &Node, gate: &Gate<'_>, reporter: &mut Reporter) -> Result<()> {
    let step = format!("starting {PATRONI}");
    bring_up(PATRONI, service, node, reporter)?;
    let within = service.ready.as_ref().map_or(PLAIN_WITHIN, |ready| ready.within.0);
    let deadline = Instant::now() + within;
    while let Some(missing) = gate.missing()? {
        if Instant::now() >= deadline {
            let problem =
                UserError::runtime(format!("there is no whole database after {} s: {missing}", within.as_secs()));
            return Err(problem.hint(format!("journalctl -u {}", service.unit)).into());
        }
        reporter.report(Phase::Waiting, &step, &missing);
        lock::rest(PAUSE)?;
    }
    Ok(())
}

/// Starts a service and waits until it is ready.
fn bring_up(name: &str, service: &Service, node: &Node, reporter: &mut Reporter) -> Result<()> {
    let within = service.ready.as_ref().map_or(PLAIN_WITHIN, |ready| ready.within.0);
    let step = format!("starting {name}");
    if !units::show(&service.unit)?.settled() {
        reporter.report(Phase::Working, &step, "");
        units::start(&service.unit)?;
    }
    let deadline = Instant::now() + within;
    let mut poll = PollInterval::new(PAUSE / 2);
    loop {
        let unit = units::show(&service.unit)?;
        let missing = if !unit.settled() {
            Some(unit.words())
        } else if unit.active != "active" {
            None
        } else {
            service.ready.as_ref().and_then(|ready| not_ready(ready, node))
        };
        let Some(missing) = missing else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(UserError::runtime(format!(
                "{} is not ready after {} s: {missing}",
                service.unit,
                within.as_secs()
            ))
            .hint(format!("journalctl -u {}", service.unit))
            .into());
        }
        reporter.report(Phase::Waiting, &step, &missing);
        lock::rest(poll.next_pause())?;
    }
}

/// A client of this node's own etcd.
fn own_etcd(node: &Node) -> Result<Client> {
    Ok(TlsCredentials::of_the_node().etcd(vec![crate::model::scope::client_url(node.member())])?)
}

/// What is missing for readiness; `None` when nothing is.
fn not_ready(ready: &Readiness, node: &Node) -> Option<String> {
    if let Some(port) = ready.tcp {
        let address = SocketAddr::new(node.member().address, port);
        if let Err(error) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            return Some(format!("port {port}: {error}"));
        }
    }
    if let Some([program, arguments @ ..]) = ready.command.as_deref() {
        let run = crate::exec::Run::new(program).args(arguments.iter().cloned()).limit(Duration::from_secs(15));
        if let Err(error) = run.capture() {
            return Some(match error {
                crate::exec::ExecError::Failed { tail, .. } if !tail.is_empty() => tail,
                other => other.to_string(),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_request_is_never_tried_again_and_failed_work_is() {
        let code = |error: anyhow::Error| Failure::from(error).code;
        assert_eq!(code(UserError::usage("wrong").into()), EX_CONFIG);
        assert_eq!(code(UserError::runtime("not yet").into()), EX_TEMPFAIL);
        assert_eq!(code(anyhow::anyhow!("disk")), EX_TEMPFAIL);
    }
}
