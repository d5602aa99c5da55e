//! `pgha-image cluster`.

use super::print;
use crate::{
    cluster::{self, Cluster, DriverKind, Request, Shelf, View},
    document::Document,
    error::Fault,
    files::read_text,
    model::{
        Time,
        keys::Keys,
        scope::{PASSWORDS_PATH, TLS_PATH, ports},
    },
    progress::Progress,
};
use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

/// Run clusters on this machine: start nodes, look at them, break them, remove them.
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
    /// Make a cluster, start it, and wait until it is ready; or start the nodes of one that is there.
    Up(Up),
    /// Print how a cluster's nodes stand and where they are reached; the names of all clusters without one.
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
        /// How long it may take, if it is not run on a terminal.
        #[arg(long, value_name = "TIME", default_value = "10m")]
        within: Time,
        /// The command.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run psql against the cluster, through its front door.
    Psql {
        /// The cluster.
        name: String,
        /// The front door's port: 5000 the primary, 5001 replicas, 5002 synchronous, 5003 asynchronous ones.
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
    /// Print the settings with which this machine's own programs reach the cluster, for `eval`.
    Env {
        /// The cluster.
        name: String,
        /// The port.
        #[arg(long, default_value_t = ports::PRIMARY)]
        port: u16,
        /// The node [default: the one with the virtual address].
        #[arg(long)]
        node: Option<String>,
    },
    /// Print what nodes have written to their consoles.
    Logs {
        /// The cluster.
        name: String,
        /// Nodes; all if none is named.
        nodes: Vec<String>,
        /// The journal of this unit instead.
        #[arg(short, long)]
        unit: Option<String>,
    },
    /// Start nodes that were killed or paused.
    Start(Nodes),
    /// Cut nodes' power.
    Kill(Chosen),
    /// Stop nodes in their tracks.
    Pause(Chosen),
    /// Let paused nodes go on.
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
    /// Replace nodes by new ones with empty disks.
    Replace(Chosen),
    /// Change the primary, without losing anything.
    Switchover {
        /// The cluster.
        name: String,
        /// The new primary [default: the best replica].
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Give every node a changed document: members are added, changed and removed.
    Update {
        /// The cluster.
        name: String,
        /// The document; with no secret, it keeps the cluster's.
        spec: PathBuf,
        /// How long to wait until all is well again.
        #[arg(long, value_name = "TIME", default_value = "5m")]
        within: Time,
    },
    /// Remove a cluster with its nodes, their data and their network.
    Down {
        /// Clusters.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Every cluster.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Up {
    /// The cluster's name, where no document says it.
    #[arg(default_value = "demo")]
    name: String,
    /// The cluster's document.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "timing"])]
    spec: Option<PathBuf>,
    /// How many nodes, where there is no document.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The preset of all timers, where there is no document: fast, norm, safe, wide [default: fast; wide where
    /// processors are emulated].
    #[arg(long)]
    timing: Option<String>,
    /// What runs the nodes.
    #[arg(long, value_enum, default_value_t = DriverArg::Docker)]
    driver: DriverArg,
    /// What nodes are made of: an engine's image; for QEMU, a raw or qcow2 file, or a recipe whose image is in out/.
    #[arg(long, default_value = "ha-postgres")]
    image: String,
    /// The most memory for each node, in MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// How long the cluster may take to become ready.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    within: Time,
    /// Make the nodes, but start none.
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
        let shelf = Shelf::of_the_user()?;
        let open = |name: &str| Cluster::open(&shelf, name);
        let each = |chosen: Chosen, act: fn(&Cluster, &str) -> Result<()>| {
            let cluster = open(&chosen.name)?;
            cluster.choose(&chosen.nodes)?.iter().try_for_each(|node| act(&cluster, node))
        };
        match self.verb {
            Verb::Up(up) => up.run(&shelf),
            Verb::Status { name: Some(name), json, wait } => status(&open(&name)?, json, wait),
            Verb::Status { name: None, json, .. } => list(&shelf, json),
            Verb::Exec { name, node, within, command } => exec(&open(&name)?, &node, &command, within.0),
            Verb::Psql { name, port, user, dbname, arguments } => {
                let cluster = open(&name)?;
                let (node, command) = psql(&cluster, port, user, dbname, &arguments)?;
                exec(&cluster, &node, &command, Duration::from_secs(3600))
            }
            Verb::Env { name, port, node } => environment(&open(&name)?, port, node),
            Verb::Logs { name, nodes, unit } => logs(&open(&name)?, &nodes, unit.as_deref()),
            Verb::Start(Nodes { name, nodes }) => {
                let cluster = open(&name)?;
                cluster.start(&cluster.choose(&nodes)?)
            }
            Verb::Kill(chosen) => each(chosen, |cluster, node| cluster.driver().kill(node)),
            Verb::Pause(chosen) => each(chosen, |cluster, node| cluster.driver().pause(node)),
            Verb::Resume(chosen) => each(chosen, |cluster, node| cluster.driver().resume(node)),
            Verb::Replace(chosen) => each(chosen, Cluster::replace),
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
            Verb::Update { name, spec, within } => {
                let progress = Progress::for_people();
                let mut cluster = open(&name)?;
                cluster.update(Document::new(spec.display().to_string(), read_text(&spec)?))?;
                print(&cluster::table(&cluster.wait_ready(within.0, &progress)?))
            }
            Verb::Down { names, all } => {
                let names = if all { shelf.names()? } else { names };
                names.iter().try_for_each(|name| open(name)?.down())
            }
        }
    }
}

impl Up {
    fn run(self, shelf: &Shelf) -> Result<()> {
        let progress = Progress::for_people();
        let document = match &self.spec {
            Some(path) => Some(Document::new(path.display().to_string(), read_text(path)?)),
            None => None,
        };
        let cluster = if document.is_none() && shelf.has(&self.name) {
            Cluster::open(shelf, &self.name)?
        } else {
            let request = Request {
                document,
                name: self.name,
                nodes: self.nodes,
                timing: self.timing,
                driver: self.driver.into(),
                image: self.image,
                memory: self.memory.map(|mib| mib << 20),
            };
            Cluster::create(shelf, request)?
        };
        for warning in cluster.seeds().warnings.iter().chain(&cluster.driver().warning()) {
            progress.warn(warning);
        }
        if self.no_start {
            return print(&cluster::table(&cluster.views()?));
        }
        cluster.start(&cluster.nodes())?;
        let views = cluster.wait_ready(self.within.0, &progress)?;
        print(&describe(&cluster, &views)?)
    }
}

fn list(shelf: &Shelf, as_json: bool) -> Result<()> {
    let names = shelf.names()?;
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
        let ailment = cluster::ailment(&views, cluster.seeds().spec.vip.is_some());
        let value = json!({"cluster": cluster.record(), "nodes": views, "ailment": ailment});
        return print(&format!("{value:#}\n"));
    }
    print(&describe(cluster, &views)?)
}

/// The nodes, and where they are reached.
fn describe(cluster: &Cluster, views: &[View]) -> Result<String> {
    let mut text = cluster::table(views);
    let name = &cluster.seeds().spec.cluster;
    let vip = cluster.driver().vip_endpoint(ports::PRIMARY)?;
    let _ = writeln!(text, "\nFRONT DOOR");
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
    if terminal && let Some((program, arguments)) = cluster.driver().interactive(node, command) {
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
    Err(Fault::work(format!("`{}` on {node} ended with status {}", command[0], done.status)).into())
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
            place.with_context(|| format!("this machine does not reach port {port} of {node}"))?
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
