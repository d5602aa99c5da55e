//! The cluster that scenarios run on, and what they ask of it.

use crate::{
    support::{Ran, builder, require_mirror, shared_store, wait},
    testing::{require, require_program},
    writer::Connection,
};
use pgha_image::{cluster::View, model::status::PostgresqlStatus};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The name of the shared cluster; a user's own clusters stay as they are.
pub const NAME: &str = "pgha-test";
/// Timers for emulated processors, which have no time for many checks.
const EMULATED: &str = "{preset: wide, ttl: 40s, loop-wait: 10s, retry-timeout: 15s, primary-start-timeout: 20s, \
                        vrrp-advert: 1s}";
/// How long a cluster may take to be well again after any event.
pub const HEALED_WITHIN: Duration = Duration::from_secs(180);

/// The names of the nodes of most clusters.
pub const NODES: [&str; 3] = ["pg-1", "pg-2", "pg-3"];

/// What runs the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    Docker,
    Qemu,
}

impl Runner {
    /// `PGHA_TEST_DRIVER`, or else containers.
    fn wanted() -> Runner {
        match std::env::var("PGHA_TEST_DRIVER").as_deref() {
            Err(_) | Ok("docker") => Runner::Docker,
            Ok("qemu") => Runner::Qemu,
            Ok(other) => panic!("PGHA_TEST_DRIVER is `{other}`; it can be docker or qemu"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Runner::Docker => "docker",
            Runner::Qemu => "qemu",
        }
    }
}

/// Whether nodes are virtual machines, which may be emulated: many times slower than this machine.
pub fn emulated() -> bool {
    Runner::wanted() == Runner::Qemu
}

/// Where clusters are remembered and built; the cluster goes when the value goes.
pub struct TestCluster {
    runner: Runner,
    folder: tempfile::TempDir,
    image: Option<String>,
    up: bool,
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.down();
        if let (Runner::Docker, Some(image)) = (self.runner, &self.image) {
            let _ = Command::new("docker").args(["rmi", "--force", image]).output();
        }
    }
}

impl TestCluster {
    /// Requires what scenarios need of this machine.
    pub fn is_possible() -> bool {
        let runner = Runner::wanted();
        let program = if runner == Runner::Docker { "docker" } else { "qemu-system-x86_64" };
        if !require_mirror() || ![program, "psql", "curl", "openssl"].into_iter().all(require_program) {
            return false;
        }
        if runner == Runner::Qemu {
            return true;
        }
        let answers = Ran::of(Command::new("docker").arg("info")).status == Some(0);
        require("docker", answers, "no Docker engine answers")
    }

    pub fn new() -> TestCluster {
        let cluster =
            TestCluster { runner: Runner::wanted(), folder: tempfile::tempdir().unwrap(), image: None, up: false };
        if cluster.runner == Runner::Docker {
            remove_leftovers(NAME);
        }
        cluster
    }

    /// Whether nodes are containers, as fast as this machine; emulated processors are many times slower.
    pub fn is_fast(&self) -> bool {
        self.runner == Runner::Docker
    }

    /// How long something may take that takes `time` on containers.
    pub fn patience(&self, time: Duration) -> Duration {
        if self.is_fast() { time } else { time * 5 }
    }

    /// The program, with clusters of its own.
    pub fn program(&self) -> Command {
        let mut command = builder();
        command.env("XDG_STATE_HOME", self.folder.path().join("state")).env_remove("PGPASSWORD");
        command
    }

    /// A folder for files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The same for what timers decide, and not processors.
    pub fn slow(&self, time: Duration) -> Duration {
        if self.is_fast() { time } else { time * 3 }
    }

    /// What nodes are made of, built once: an image's name in the engine, or a file.
    pub fn image(&mut self) -> String {
        if let Some(image) = &self.image {
            return image.clone();
        }
        let out = self.folder.path().join("out");
        if self.runner == Runner::Qemu {
            let mut build = builder();
            build.args(["build", "ha-postgres", "--format", "qcow2", "--quiet", "--cache-dir"]).arg(shared_store());
            Ran::well(build.arg("-o").arg(&out));
            let mut files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
            let file = files.find(|path| path.extension().is_some_and(|kind| kind == "qcow2")).unwrap();
            self.image = Some(file.to_str().unwrap().to_owned());
            return self.image();
        }
        let project = self.folder.path().join("project");
        fs::create_dir(&project).unwrap();
        for part in ["recipes", "overlays"] {
            Ran::well(Command::new("cp").arg("-r").arg(crate::support::project().join(part)).arg(project.join(part)));
        }
        let name = "pgha-test-cluster";
        let recipe = project.join("recipes/ha-postgres.yaml");
        let text = fs::read_to_string(&recipe).unwrap().replace("name: ha-postgres", &format!("name: {name}"));
        fs::write(&recipe, text).unwrap();
        let mut build = builder();
        build.args(["build", "ha-postgres", "--load=docker", "--quiet", "--project"]).arg(&project);
        build.arg("--cache-dir").arg(shared_store()).arg("-o").arg(out);
        Ran::well(&mut build);
        self.image = Some(name.to_owned());
        name.to_owned()
    }

    /// Runs `pgha-image cluster VERB` with the shared cluster and `arguments`; it must end well.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> String {
        let mut command = self.program();
        command.args(["cluster", verb, NAME]).args(arguments);
        Ran::well(&mut command).stdout
    }

    /// The document of the shared cluster, as it would be made for `nodes` nodes.
    pub fn document(&self, nodes: usize) -> PathBuf {
        let members: String = (1..=nodes)
            .map(|number| format!("  - {{name: pg-{number}, address: 10.214.7.{}}}\n", 10 + number))
            .collect();
        let timing = if self.is_fast() { "fast" } else { EMULATED };
        let text = format!(
            "schema: 1\ncluster: {NAME}\nmembers:\n{members}vip: {{address: 10.214.7.10/24}}\ntiming: {timing}\n\
             postgresql: {{databases: [{{name: app, owner: app}}]}}\n"
        );
        let path = self.folder.path().join(format!("cluster-of-{nodes}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// Makes the shared cluster's nodes, but starts none.
    pub fn prepare(&mut self) {
        let image = self.image();
        let document = self.document(3);
        let mut command = self.program();
        command.args(["cluster", "up", "--no-start", "--driver", self.runner.name(), "--image", &image]);
        command.arg("--spec").arg(document);
        Ran::well(&mut command);
        self.up = true;
    }

    /// The shared cluster, well.
    pub fn healthy(&mut self) {
        if !self.up {
            self.prepare();
            self.verb("start", &[]);
        }
        self.wait_healthy();
    }

    /// Waits until every node is ready, and HAProxy's ports agree with the roles.
    pub fn wait_healthy(&self) -> Vec<Node> {
        let within = self.patience(HEALED_WITHIN);
        let began = Instant::now();
        let nodes = wait("a healthy cluster", within, || {
            let status = self.status();
            if status.problem.is_empty() { Ok(status.nodes) } else { Err(status.problem) }
        });
        let left = within.saturating_sub(began.elapsed());
        wait("two replicas behind HAProxy", left, || {
            let synchronous = self.who(5002);
            let asynchronous = self.who(5003);
            if synchronous.is_ok() && (nodes.len() < 3 || asynchronous.is_ok()) && self.who(5000).is_ok() {
                Ok(())
            } else {
                Err(format!("5002: {synchronous:?}, 5003: {asynchronous:?}"))
            }
        });
        nodes
    }

    /// How the shared cluster stands.
    pub fn status(&self) -> Status {
        let text = self.verb("status", &["--json"]);
        let mut value: Value = serde_json::from_str(&text).unwrap();
        let views: Vec<View> = serde_json::from_value(value["nodes"].take()).unwrap();
        let problem = value["problem"].as_str().unwrap_or_default().to_owned();
        Status { nodes: views.into_iter().map(Node::from).collect(), problem }
    }

    /// The name of the primary, of which there must be one.
    pub fn primary(&self) -> String {
        let status = self.status();
        let primaries: Vec<_> = status.nodes.iter().filter(|node| node.role == "primary").collect();
        assert_eq!(primaries.len(), 1, "{status:?}");
        primaries[0].name.clone()
    }

    /// The node that holds the virtual address, of which there must be one.
    pub fn vip_holder(&self) -> String {
        let status = self.status();
        let holders: Vec<_> = status.nodes.iter().filter(|node| node.vip).collect();
        assert_eq!(holders.len(), 1, "{status:?}");
        holders[0].name.clone()
    }

    /// Runs a command on a node; it must end well.
    pub fn on(&self, node: &str, script: &str) -> String {
        let ran = self.try_on(node, script);
        assert_eq!(ran.status, Some(0), "{node}: {script}\n{}\n{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Runs a command on a node.
    pub fn try_on(&self, node: &str, script: &str) -> Ran {
        Ran::of(self.program().args(["cluster", "exec", NAME, node, "--", "sh", "-c", script]))
    }

    /// Runs a command on a node with `input` as its standard input; it must end well.
    pub fn feed(&self, node: &str, script: &str, input: &str) -> String {
        let mut command = self.program();
        command.args(["cluster", "exec", NAME, node, "--", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.status, Some(0), "{node}: {script}\n{}\n{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// How this machine reaches the port of the virtual address.
    pub fn door(&self, port: u16) -> Connection {
        self.try_door(port).unwrap()
    }

    /// How this machine reaches the port of a node.
    pub fn node_door(&self, node: &str, port: u16) -> Connection {
        Connection::from_environment(&self.verb("env", &["--node", node, "--port", &port.to_string()]))
    }

    /// Who answers behind the port of the virtual address: `primary`, or the name of a replica.
    pub fn who(&self, port: u16) -> Result<String, String> {
        // A replica's slot on the primary has its name (Patroni, `slot_name_from_member_name`).
        self.try_door(port)?.ask(
            "select case when pg_is_in_recovery() then replace(current_setting('primary_slot_name'), '_', '-') \
             else 'primary' end",
        )
    }

    pub fn try_door(&self, port: u16) -> Result<Connection, String> {
        let ran = Ran::of(self.program().args(["cluster", "env", NAME, "--port", &port.to_string()]));
        if ran.status == Some(0) { Ok(Connection::from_environment(&ran.stdout)) } else { Err(ran.stderr) }
    }

    /// Tells how things stand, for whoever reads of a failure.
    pub fn tell(&self) {
        if !self.up {
            return;
        }
        println!("{}", Ran::of(self.program().args(["cluster", "status", NAME])).stdout);
        for node in NODES {
            let journal = self.try_on(
                node,
                "journalctl --no-pager --lines 60 --priority 6 -u pgha-node -u patroni -u confd -u keepalived",
            );
            println!("=== {node}\n{}", journal.stdout);
        }
    }

    /// Takes a cluster that a scenario has made by itself, so that it goes when the value goes.
    pub fn take_over(&mut self) {
        self.up = true;
    }

    /// Removes the shared cluster, so that the next scenario makes a new one.
    pub fn start_afresh(&mut self) {
        self.down();
    }

    fn down(&mut self) {
        if self.up {
            let _ = Ran::of(self.program().args(["cluster", "down", NAME]));
            self.up = false;
        }
    }
}

/// How a cluster stands.
#[derive(Debug)]
pub struct Status {
    pub nodes: Vec<Node>,
    pub problem: String,
}

/// How a node stands.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub role: String,
    pub state: String,
    pub synchronous: bool,
    pub vip: bool,
}

impl From<View> for Node {
    fn from(view: View) -> Node {
        let vip = view.holds_vip();
        let postgresql = view.status.and_then(|status| status.postgresql).unwrap_or_default();
        let PostgresqlStatus { role, state, synchronous, .. } = postgresql;
        Node { name: view.node, role, state, synchronous, vip }
    }
}

/// Removes the containers and the network of a cluster that nobody remembers.
fn remove_leftovers(name: &str) {
    let label = format!("label=io.pgha.cluster={name}");
    let found = Ran::of(Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &label]));
    for id in found.stdout.split_whitespace() {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", id]).output();
    }
    let found = Ran::of(Command::new("docker").args(["network", "ls", "--quiet", "--filter", &label]));
    for id in found.stdout.split_whitespace() {
        let _ = Command::new("docker").args(["network", "rm", id]).output();
    }
}
