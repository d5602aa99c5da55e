//! `pgha-image cluster`.

use super::print;
use crate::{
    cluster::{
        self, Care, Cluster, Consent, DriverKind, Ended, Lock, Making, Removal, Request, StateDir, View, Wishes,
    },
    document::Document,
    error::UserError,
    files::read_text,
    interrupt,
    model::{
        Time,
        keys::Keys,
        scope::{PASSWORDS_PATH, TLS_PATH, ports},
    },
    progress::Progress,
};
use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::json;
use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

/// The number of nodes of a cluster by default.
const NODES: usize = 3;
/// The image of nodes by default.
const IMAGE: &str = "ha-postgres";

/// Run clusters on this machine: create, inspect, break and remove them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pgha-image cluster up demo
  pgha-image cluster psql demo -- -c 'select now()'
  pgha-image cluster kill demo pg-1 && pgha-image cluster status demo
  pgha-image cluster down demo")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a cluster, start it, and wait until it is ready; or start the nodes of an existing one.
    Up(Up),
    /// Print the state of a cluster's nodes and their addresses; without a name, the names of all clusters.
    Status {
        /// The cluster.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Wait until all nodes that run are ready, for at most this long.
        #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "5m", require_equals = true)]
        wait: Option<Time>,
    },
    /// Run a command on a node, as root.
    Exec {
        /// The cluster.
        name: String,
        /// The node.
        node: String,
        /// The time limit of the command, unless it runs on a terminal.
        #[arg(long, value_name = "TIME", default_value = "10m")]
        within: Time,
        /// The command.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run psql against the cluster, through HAProxy.
    Psql {
        /// The cluster.
        name: String,
        /// HAProxy's port: 5000 for the primary, 5001 for replicas, 5002 for synchronous, 5003 for asynchronous ones.
        #[arg(long, default_value_t = ports::PRIMARY)]
        port: u16,
        /// The role [default: the first database's owner].
        #[arg(short = 'U', long)]
        user: Option<String>,
        /// The database [default: the first one].
        #[arg(short, long)]
        dbname: Option<String>,
        /// psql's own arguments.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Print shell variables with which programs on this machine connect to the cluster, for `eval`.
    Env {
        /// The cluster.
        name: String,
        /// HAProxy's port, as for `psql`.
        #[arg(long, default_value_t = ports::PRIMARY)]
        port: u16,
        /// The node [default: the one with the virtual address].
        #[arg(long)]
        node: Option<String>,
    },
    /// Print the console output of nodes.
    Logs {
        /// The cluster.
        name: String,
        /// Nodes; all if none is named.
        nodes: Vec<String>,
        /// Print the journal of this systemd unit instead.
        #[arg(short, long)]
        unit: Option<String>,
    },
    /// Start nodes that were killed or paused; create those that do not exist.
    Start(Nodes),
    /// Switch nodes off, as a power failure does.
    Kill(Chosen),
    /// Freeze nodes: nothing runs on them until they are resumed.
    Pause(Chosen),
    /// Resume paused nodes.
    Resume(Chosen),
    /// Cut nodes off from all other nodes: packets between them are lost.
    Partition {
        #[command(flatten)]
        chosen: Chosen,
        /// Cut them off from clients, too.
        #[arg(long)]
        wholly: bool,
    },
    /// End every partition.
    Heal {
        /// The cluster.
        name: String,
    },
    /// Replace nodes by new ones with empty disks, which then copy the data from the others.
    ///
    /// Nodes are removed one after the other, each as soon as the others have all of its data; a primary hands over
    /// first. A node that may have the last good copy of the data is not removed.
    Replace {
        #[command(flatten)]
        chosen: Chosen,
        /// Replace them at once, as if they were lost: without hand-over; data that no other node has are lost.
        #[arg(long)]
        force: bool,
        /// The longest time to wait until a node can be removed.
        #[arg(long, value_name = "TIME", default_value = "5m", conflicts_with = "force")]
        within: Time,
    },
    /// Make a replica the primary, without loss of data.
    Switchover {
        /// The cluster.
        name: String,
        /// The new primary [default: the best replica].
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Give every node a changed document: members are added, changed and removed.
    ///
    /// A member that is to be removed leaves first, and hands over if it is the primary. A member that may have the last
    /// good copy of the data is not removed.
    Update {
        /// The cluster.
        name: String,
        /// The document; without a secret, the cluster's secret stays.
        spec: PathBuf,
        /// The longest time to wait until members can be removed, and until the cluster is ready again.
        #[arg(long, value_name = "TIME", default_value = "5m")]
        within: Time,
        /// Remove members even if they cannot leave, do not answer, or may have the last good copy: data that no other
        /// member has are lost.
        #[arg(long)]
        force: bool,
    },
    /// Restore the record of a cluster whose state folder is lost, from its nodes. Nothing is removed or changed.
    ///
    /// Containers are found in the engine by their labels. Virtual machines are found in the folder of the cluster's name
    /// in the state folder (`$XDG_STATE_HOME/pgha-image/clusters/NAME`), whatever else is lost there.
    Adopt {
        /// The cluster.
        name: String,
        /// The image of new nodes [default: that of the others].
        #[arg(long)]
        image: Option<String>,
    },
    /// Remove a cluster with its nodes, their data and their network.
    ///
    /// Prints what is removed. If not all of it was made for this state folder, the cluster's name must be typed on the
    /// terminal; without a terminal, nothing is removed without --yes or --force.
    Down {
        /// Clusters.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Every cluster in this state folder.
        #[arg(long)]
        all: bool,
        /// Do not ask: remove a cluster in this state folder even if another user made it.
        #[arg(long)]
        yes: bool,
        /// Do not ask: remove everything that has the cluster's name, whoever made it.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Up {
    /// The cluster's name, if no document is given.
    #[arg(default_value = "demo")]
    name: String,
    /// The cluster's document.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "timing"])]
    spec: Option<PathBuf>,
    /// The number of nodes, if no document is given [default: 3].
    #[arg(long)]
    nodes: Option<usize>,
    /// The preset of all timers, if no document is given: fast, norm, safe, wide [default: fast; wide where
    /// processors are emulated].
    #[arg(long)]
    timing: Option<String>,
    /// What runs the nodes [default: docker].
    #[arg(long, value_enum)]
    driver: Option<DriverArg>,
    /// The image of the nodes: one of the container engine; for QEMU, a raw or qcow2 file, or a recipe whose image is in
    /// out/ [default: ha-postgres].
    #[arg(long)]
    image: Option<String>,
    /// The memory limit of each node, in MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// The longest time to wait until the cluster is ready.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    within: Time,
    /// Create the nodes without starting them.
    #[arg(long)]
    no_start: bool,
}

#[derive(Debug, clap::Args)]
struct Nodes {
    /// The cluster.
    name: String,
    /// Nodes; all if none is named.
    nodes: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Chosen {
    /// The cluster.
    name: String,
    /// Nodes.
    #[arg(required = true)]
    nodes: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverArg {
    /// Containers of Docker or Podman.
    Docker,
    /// Virtual machines of QEMU.
    Qemu,
}

impl From<DriverArg> for DriverKind {
    fn from(driver: DriverArg) -> DriverKind {
        match driver {
            DriverArg::Docker => DriverKind::Docker,
            DriverArg::Qemu => DriverKind::Qemu,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let state_dir = StateDir::of_the_user()?;
        let open = |name: &str| Cluster::open(&state_dir, name);
        let each = |chosen: Chosen, act: fn(&Cluster, &str) -> Result<()>| {
            let cluster = open(&chosen.name)?;
            cluster.choose(&chosen.nodes)?.iter().try_for_each(|node| act(&cluster, node))
        };
        match self.verb {
            Verb::Up(up) => up.run(&state_dir),
            Verb::Status { name: Some(name), json, wait } => status(&open(&name)?, json, wait),
            Verb::Status { name: None, json, .. } => list(&state_dir, json),
            Verb::Exec { name, node, within, command } => exec(&open(&name)?, &node, &command, within.0),
            Verb::Psql { name, port, user, dbname, arguments } => {
                let cluster = open(&name)?;
                let (node, command) = psql(&cluster, port, user, dbname, &arguments)?;
                exec(&cluster, &node, &command, Duration::from_secs(3600))
            }
            Verb::Env { name, port, node } => environment(&open(&name)?, port, node),
            Verb::Logs { name, nodes, unit } => logs(&open(&name)?, &nodes, unit.as_deref()),
            Verb::Start(Nodes { name, nodes }) => {
                let progress = Progress::for_people();
                let lock = Lock::take(&state_dir, &name, "start", &progress)?;
                let cluster = open(&name)?;
                start(&cluster, &lock, &cluster.choose(&nodes)?, &progress)
            }
            Verb::Kill(chosen) => each(chosen, |cluster, node| cluster.driver().kill(node)),
            Verb::Pause(chosen) => each(chosen, |cluster, node| cluster.driver().pause(node)),
            Verb::Resume(chosen) => each(chosen, |cluster, node| cluster.driver().resume(node)),
            Verb::Replace { chosen: Chosen { name, nodes }, force, within } => {
                let progress = Progress::for_people();
                let lock = Lock::take(&state_dir, &name, "replace", &progress)?;
                let cluster = open(&name)?;
                let care = if force { Care::Forced } else { Care::Within(within.0) };
                cluster.replace(&lock, &cluster.choose(&nodes)?, care, &progress)
            }
            Verb::Partition { chosen, wholly } => {
                let cluster = open(&chosen.name)?;
                cluster.partition(&cluster.choose(&chosen.nodes)?, wholly)
            }
            Verb::Heal { name } => open(&name)?.driver().heal(),
            Verb::Switchover { name, to } => {
                let cluster = open(&name)?;
                if let Some(to) = &to {
                    cluster.choose(std::slice::from_ref(to))?;
                }
                print(&cluster.switchover(to.as_deref())?)
            }
            Verb::Update { name, spec, within, force } => {
                let progress = Progress::for_people();
                let lock = Lock::take(&state_dir, &name, "update", &progress)?;
                let mut cluster = open(&name)?;
                let document = Document::new(spec.display().to_string(), read_text(&spec)?);
                let care = if force { Care::Forced } else { Care::Within(within.0) };
                cluster.update(&lock, document, care, &progress)?;
                drop(lock);
                print(&cluster::table(&cluster.wait_ready(within.0, &progress)?))
            }
            Verb::Adopt { name, image } => {
                let progress = Progress::for_people();
                let lock = Lock::take(&state_dir, &name, "adopt", &progress)?;
                let cluster = cluster::adopt(&state_dir, &lock, &name, image.as_deref(), &progress)?;
                print(&describe(&cluster, &cluster.views()?)?)
            }
            Verb::Down { names, all, yes, force } => {
                let names = if all { state_dir.names()? } else { names };
                names.iter().try_for_each(|name| down(&state_dir, name, yes, force))
            }
        }
    }
}

/// Starts nodes, and reports which had to be created.
fn start(cluster: &Cluster, lock: &Lock, nodes: &[String], progress: &Progress) -> Result<()> {
    let made = cluster.start(lock, nodes)?;
    if !made.is_empty() {
        progress.note(&format!("{} did not exist: made, with an empty disk", made.join(", ")));
    }
    Ok(())
}

fn down(state_dir: &StateDir, name: &str, yes: bool, force: bool) -> Result<()> {
    let progress = Progress::for_people();
    let lock = Lock::take(state_dir, name, "down", &progress)?;
    let mut removal = Removal::look(state_dir, &lock, name)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if terminal || removal.consent() != Consent::NotNeeded {
        removal.weigh();
    }
    print(&removal.to_string())?;
    let agreed = match removal.consent() {
        Consent::NotNeeded => true,
        Consent::Needed => yes || force,
        Consent::Forceful => force,
    };
    if !agreed {
        if !terminal {
            return Err(removal.unanswered().into());
        }
        let _ = write!(std::io::stderr(), "{}", removal.question());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("reading the answer")?;
        if answer.trim() != name {
            return Err(UserError::usage(format!("`{name}` was not removed: the answer was not its name")).into());
        }
    }
    for path in removal.carry_out(force)? {
        progress.note(&format!("{} stays: it may be another cluster's", path.display()));
    }
    Ok(())
}

impl Up {
    fn run(self, state_dir: &StateDir) -> Result<()> {
        let progress = Progress::for_people();
        let document = match &self.spec {
            Some(path) => Some(Document::new(path.display().to_string(), read_text(path)?)),
            None => None,
        };
        let name = match &document {
            Some(document) => document.parse::<Named>()?.cluster,
            None => self.name.clone(),
        };
        let making = Making::default();
        let (end, called) = (making.clone(), name.clone());
        interrupt::on_signal_alone(move || tell_end(&end, &called))?;
        let lock = Lock::take(state_dir, &name, "up", &progress)?;
        let wishes = Wishes {
            document,
            nodes: self.nodes,
            timing: self.timing,
            driver: self.driver.map(DriverKind::from),
            image: self.image,
            memory: self.memory.map(|mib| mib << 20),
        };
        let cluster = if state_dir.has(&name)? {
            let cluster = Cluster::open(state_dir, &name)?;
            cluster.refuse_others(&wishes)?;
            making.is_whole()?;
            cluster
        } else {
            let left = state_dir.left_document(&name)?;
            let request = Request {
                document: wishes.document,
                name,
                nodes: wishes.nodes.unwrap_or(NODES),
                timing: wishes.timing,
                driver: wishes.driver.unwrap_or(DriverKind::Docker),
                image: wishes.image.unwrap_or_else(|| IMAGE.to_owned()),
                memory: wishes.memory,
            };
            let cluster = Cluster::create(state_dir, &lock, request, &making)?;
            if let Some(path) = left {
                let path = path.display();
                progress
                    .note(&format!("{path} was left of another cluster: it is kept beside the new one, as `.before`"));
            }
            cluster
        };
        for warning in cluster.seeds().warnings.iter().chain(&cluster.driver().warning()) {
            progress.warn(warning);
        }
        if self.no_start {
            return print(&cluster::table(&cluster.views()?));
        }
        start(&cluster, &lock, &cluster.nodes(), &progress)?;
        drop(lock);
        let views = cluster.wait_ready(self.within.0, &progress)?;
        print(&describe(&cluster, &views)?)
    }
}

/// The part of a document that names its cluster.
#[derive(Deserialize)]
struct Named {
    cluster: String,
}

/// Ends a call of `up`; returns whether nothing is wrong.
fn tell_end(making: &Making, name: &str) -> bool {
    let words = match making.end() {
        Ok(Ended::Whole) => format!(
            "the cluster `{name}` is there, and its nodes go on: see `pgha-image cluster status {name}`; remove it with \
             `pgha-image cluster down {name}`"
        ),
        Ok(Ended::Undone) => format!("nothing of the cluster `{name}` is left"),
        Ok(Ended::Nothing) => "nothing was made".to_owned(),
        Err(error) => format!("{error:#}\nremove the rest with `pgha-image cluster down {name}`"),
    };
    let _ = writeln!(std::io::stderr(), "{words}");
    true
}

fn list(state_dir: &StateDir, as_json: bool) -> Result<()> {
    let names = state_dir.names()?;
    if as_json {
        return print(&format!("{}\n", json!({"clusters": names})));
    }
    print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

fn status(cluster: &Cluster, as_json: bool, wait: Option<Time>) -> Result<()> {
    let views = match wait {
        Some(within) => cluster.wait_ready(within.0, &Progress::for_people())?,
        None => cluster.views()?,
    };
    if as_json {
        let problem = cluster::problem(&views, cluster.seeds().spec.vip.is_some());
        let value = json!({"cluster": cluster.record(), "nodes": views, "problem": problem});
        return print(&format!("{value:#}\n"));
    }
    print(&describe(cluster, &views)?)
}

/// The nodes and their addresses.
fn describe(cluster: &Cluster, views: &[View]) -> Result<String> {
    let mut text = cluster::table(views);
    let name = &cluster.seeds().spec.cluster;
    let vip = cluster.driver().vip_endpoint(ports::PRIMARY)?;
    let _ = writeln!(text, "\nENTRY POINT");
    for (port, what) in [
        (ports::PRIMARY, "the primary"),
        (ports::REPLICAS, "replicas"),
        (ports::SYNCHRONOUS, "synchronous replicas"),
        (ports::ASYNCHRONOUS, "asynchronous replicas"),
        (ports::STATISTICS, "statistics"),
    ] {
        let mut places = Vec::new();
        if vip.is_some() {
            places.extend(cluster.driver().vip_endpoint(port)?.map(|place| place.to_string()));
        }
        for view in views {
            places.extend(cluster.driver().endpoint(&view.node, port)?.map(|place| place.to_string()));
        }
        let _ = writeln!(text, "  {port} {what:<22} {}", places.join("  "));
    }
    let _ = writeln!(
        text,
        "\npgha-image cluster psql {name}, or this machine's own: eval \"$(pgha-image cluster env {name})\" && psql"
    );
    Ok(text)
}

fn exec(cluster: &Cluster, node: &str, command: &[String], within: Duration) -> Result<()> {
    cluster.choose(std::slice::from_ref(&node.to_owned()))?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal && let Some((program, arguments)) = cluster.driver().interactive(node, command)? {
        let error = Command::new(&program).args(arguments).exec();
        return Err(error).with_context(|| format!("running {program}, which gives the command this terminal"));
    }
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_end(&mut input).context("reading standard input")?;
    }
    let done = cluster.exec(node, command, &input, within)?;
    std::io::stdout().write_all(&done.stdout).context("writing to standard output")?;
    // Nothing can be told if standard error is gone.
    let _ = std::io::stderr().write_all(&done.stderr);
    if done.status == 0 {
        return Ok(());
    }
    Err(UserError::runtime(format!("`{}` on {node} ended with status {}", command[0], done.status)).into())
}

/// The node and the command that run psql there. No password is among its arguments.
fn psql(
    cluster: &Cluster,
    port: u16,
    user: Option<String>,
    dbname: Option<String>,
    arguments: &[String],
) -> Result<(String, Vec<String>)> {
    let spec = &cluster.seeds().spec;
    let node = cluster.a_running_node()?;
    let database = spec.postgresql.databases.first();
    let user = user.or_else(|| database.map(|database| database.owner.clone()));
    let dbname = dbname.or_else(|| database.map(|database| database.name.clone())).unwrap_or_else(|| "postgres".into());
    let Some(user) = user.filter(|user| user != "postgres") else {
        // The superuser comes over the node's own socket.
        let mut command: Vec<String> =
            ["runuser", "-u", "postgres", "--", "psql", "-d", &dbname].map(str::to_owned).into();
        command.extend(arguments.iter().cloned());
        return Ok((node, command));
    };
    let member = spec.members.iter().find(|member| member.name == node).context("the node is in the document")?;
    let host = spec.vip.as_ref().map_or(member.address, |vip| vip.address.address);
    let target = format!(
        "host={host} port={port} user={user} dbname={dbname} sslmode=verify-full sslrootcert={TLS_PATH}/ca.crt"
    );
    // The node's own list of passwords, which only root can read.
    let mut command: Vec<String> =
        ["env", &format!("PGPASSFILE={PASSWORDS_PATH}"), "psql", &target].map(str::to_owned).into();
    command.extend(arguments.iter().cloned());
    Ok((node, command))
}

fn environment(cluster: &Cluster, port: u16, node: Option<String>) -> Result<()> {
    let spec = &cluster.seeds().spec;
    let authority = cluster.authority()?;
    let place = match (node, cluster.driver().vip_endpoint(port)?) {
        (None, Some(place)) => place,
        (node, _) => {
            let node = node.map_or_else(|| cluster.a_running_node(), Ok)?;
            cluster.choose(std::slice::from_ref(&node))?;
            let place = cluster.driver().endpoint(&node, port)?;
            place.with_context(|| format!("port {port} of {node} cannot be reached from this machine"))?
        }
    };
    let database = spec.postgresql.databases.first();
    let (user, dbname) = match database {
        Some(database) => (database.owner.as_str(), database.name.as_str()),
        None => ("postgres", "postgres"),
    };
    let secret = match user {
        "postgres" => Keys::new(spec).superuser(),
        user => Keys::new(spec).user(user),
    };
    print(&format!(
        "export PGHOST={} PGPORT={} PGUSER='{user}' PGDATABASE='{dbname}' PGPASSWORD='{}' PGSSLMODE=verify-full \
         PGSSLROOTCERT='{}'\n",
        place.ip(),
        place.port(),
        secret.expose(),
        authority.display()
    ))
}

fn logs(cluster: &Cluster, nodes: &[String], unit: Option<&str>) -> Result<()> {
    let nodes = cluster.choose(nodes)?;
    let mut text = String::new();
    for node in &nodes {
        if nodes.len() > 1 {
            let _ = writeln!(text, "=== {node}");
        }
        match unit {
            None => text.push_str(&cluster.driver().console(node)?),
            Some(unit) => {
                let command = ["journalctl", "--no-pager", "--unit", unit].map(str::to_owned);
                let done = cluster.exec(node, &command, &[], Duration::from_secs(60))?;
                text.push_str(&String::from_utf8_lossy(&done.stdout));
            }
        }
    }
    print(&text)
}
