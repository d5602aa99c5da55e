//! Containers and networks of an engine.

use super::{Engine, Kind, said};
use crate::error::Fault;
use anyhow::{Context as _, Result};
use bollard::{
    body_full,
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    models::{
        ContainerCreateBody, ContainerSummaryStateEnum, EndpointIpamConfig, EndpointSettings, HostConfig,
        HostConfigCgroupnsModeEnum, Ipam, IpamConfig, NetworkCreateRequest, NetworkingConfig, PortBinding,
    },
    query_parameters::{
        CreateContainerOptions, KillContainerOptions, ListContainersOptions, ListNetworksOptions, LogsOptions,
        RemoveContainerOptions, StartContainerOptions, UploadToContainerOptions,
    },
};
use futures_util::StreamExt as _;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::io::AsyncWriteExt as _;

/// The capabilities that systemd as PID 1, keepalived and the services of a node need beyond an engine's defaults.
const CAPABILITIES: [&str; 3] = ["SYS_ADMIN", "NET_ADMIN", "NET_RAW"];

/// A network of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Its addresses, as `10.0.0.0/24`.
    pub subnet: String,
    /// The engine's own address in it.
    pub gateway: IpAddr,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A container that runs a whole system, with systemd as PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// The image it is made of.
    pub image: String,
    /// Its host name.
    pub host_name: String,
    /// The network it is in.
    pub network: String,
    /// Its address there.
    pub address: IpAddr,
    /// TCP ports that the host's loopback address forwards to it, each from a free port of the engine's choice.
    pub ports: Vec<u16>,
    /// The most memory it may use, in bytes.
    pub memory: Option<u64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// How a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs.
    Running,
    /// All its processes are stopped for a while.
    Paused,
    /// It does not run.
    Stopped,
}

/// A container that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: ContainerState,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its ports, and where the host forwards them from.
    pub ports: BTreeMap<u16, SocketAddr>,
}

/// What a command said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit status.
    pub status: i64,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Engine {
    /// Makes a network.
    ///
    /// # Errors
    /// When its name or its addresses are taken.
    pub fn create_network(&self, spec: &NetworkSpec) -> Result<()> {
        let config = IpamConfig {
            subnet: Some(spec.subnet.clone()),
            gateway: Some(spec.gateway.to_string()),
            ..IpamConfig::default()
        };
        let request = NetworkCreateRequest {
            name: spec.name.clone(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
            labels: Some(spec.labels.clone().into_iter().collect()),
            ..NetworkCreateRequest::default()
        };
        self.wait(self.docker.create_network(request))
            .map(drop)
            .with_context(|| format!("making the network {} with the addresses {}", spec.name, spec.subnet))
    }

    /// The networks of this engine: name and subnets, as far as it tells.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn networks(&self) -> Result<Vec<(String, Vec<String>)>> {
        let all = self.wait(self.docker.list_networks(None::<ListNetworksOptions>)).context("listing networks")?;
        Ok(all
            .into_iter()
            .map(|network| {
                let configs = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
                (network.name.unwrap_or_default(), configs.into_iter().filter_map(|config| config.subnet).collect())
            })
            .collect())
    }

    /// Removes a network; one that is gone already is no error.
    ///
    /// # Errors
    /// When containers are still in it.
    pub fn remove_network(&self, name: &str) -> Result<()> {
        self.unless_gone(self.docker.remove_network(name)).with_context(|| format!("removing the network {name}"))
    }

    /// Makes a container; it does not run yet.
    ///
    /// # Errors
    /// When the image is missing, or the name, the address or a port is taken.
    pub fn create_container(&self, spec: &ContainerSpec) -> Result<()> {
        let address = EndpointIpamConfig {
            ipv4_address: spec.address.is_ipv4().then(|| spec.address.to_string()),
            ipv6_address: spec.address.is_ipv6().then(|| spec.address.to_string()),
            ..EndpointIpamConfig::default()
        };
        let endpoint = EndpointSettings { ipam_config: Some(address), ..EndpointSettings::default() };
        let binding = || PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(String::new()) };
        let ports: HashMap<_, _> =
            spec.ports.iter().map(|port| (format!("{port}/tcp"), Some(vec![binding()]))).collect();
        let tmpfs = ["/run", "/run/lock", "/tmp"].map(|folder| (folder.to_owned(), String::new()));
        let host = HostConfig {
            network_mode: Some(spec.network.clone()),
            port_bindings: Some(ports),
            cap_add: Some(CAPABILITIES.map(str::to_owned).into()),
            security_opt: Some(["seccomp=unconfined", "apparmor=unconfined"].map(str::to_owned).into()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::HOST),
            binds: Some(vec![format!("{}:/sys/fs/cgroup", self.control_groups()?)]),
            tmpfs: Some(tmpfs.into()),
            memory: spec.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            ..HostConfig::default()
        };
        let body = ContainerCreateBody {
            image: Some(spec.image.clone()),
            hostname: Some(spec.host_name.clone()),
            labels: Some(spec.labels.clone().into_iter().collect()),
            exposed_ports: Some(spec.ports.iter().map(|port| format!("{port}/tcp")).collect()),
            host_config: Some(host),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some([(spec.network.clone(), endpoint)].into()),
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..CreateContainerOptions::default() };
        self.wait(self.docker.create_container(Some(options), body))
            .map(drop)
            .with_context(|| format!("making the container {}", spec.name))
    }

    /// The folder of the host's unified control groups, which systemd in a container writes its own below.
    fn control_groups(&self) -> Result<&'static str> {
        let about = self.wait(self.docker.info()).with_context(|| format!("asking {self} about itself"))?;
        let version = about.cgroup_version.map(|version| version.to_string()).unwrap_or_default();
        // Where the first hierarchies are of the old kind, systemd mounts the unified one below them (systemd's
        // CGROUP_DELEGATION, «hybrid»).
        Ok(if version == "1" { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" })
    }

    /// Unpacks a tar archive into a container's folder.
    ///
    /// # Errors
    /// When there is no such container or folder.
    pub fn put_archive(&self, container: &str, folder: &str, archive: Vec<u8>) -> Result<()> {
        let options = UploadToContainerOptions { path: folder.to_owned(), ..UploadToContainerOptions::default() };
        self.wait(self.docker.upload_to_container(container, Some(options), body_full(archive.into())))
            .with_context(|| format!("putting files into the container {container}"))
    }

    /// Starts a container.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot run.
    pub fn start(&self, container: &str) -> Result<()> {
        self.wait(self.docker.start_container(container, None::<StartContainerOptions>))
            .with_context(|| format!("starting the container {container}"))
    }

    /// Ends all processes of a container at once, as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, container: &str) -> Result<()> {
        let options = KillContainerOptions { signal: "KILL".to_owned() };
        self.wait(self.docker.kill_container(container, Some(options)))
            .with_context(|| format!("killing the container {container}"))
    }

    /// Stops all processes of a container until [`Engine::unpause`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, container: &str) -> Result<()> {
        self.wait(self.docker.pause_container(container)).with_context(|| format!("pausing the container {container}"))
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn unpause(&self, container: &str) -> Result<()> {
        self.wait(self.docker.unpause_container(container))
            .with_context(|| format!("letting the container {container} go on"))
    }

    /// Removes a container with its volumes, running or not; one that is gone already is no error.
    ///
    /// # Errors
    /// When the engine cannot.
    pub fn remove_container(&self, container: &str) -> Result<()> {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        self.unless_gone(self.docker.remove_container(container, Some(options)))
            .with_context(|| format!("removing the container {container}"))
    }

    /// All containers that have `label` with `value`, by name.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn containers(&self, label: &str, value: Option<&str>) -> Result<Vec<Container>> {
        let filter = value.map_or_else(|| label.to_owned(), |value| format!("{label}={value}"));
        let options = ListContainersOptions {
            all: true,
            filters: Some([("label".to_owned(), vec![filter])].into()),
            ..ListContainersOptions::default()
        };
        let found = self.wait(self.docker.list_containers(Some(options))).context("listing containers")?;
        let mut containers: Vec<Container> = found
            .into_iter()
            .map(|summary| {
                let name = summary.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
                let ports = summary.ports.unwrap_or_default().into_iter().filter_map(|port| {
                    let address: IpAddr = port.ip?.parse().ok()?;
                    Some((port.private_port, SocketAddr::new(address, port.public_port?)))
                });
                Container {
                    name: name.trim_start_matches('/').to_owned(),
                    state: match summary.state {
                        Some(ContainerSummaryStateEnum::RUNNING) => ContainerState::Running,
                        Some(ContainerSummaryStateEnum::PAUSED) => ContainerState::Paused,
                        _ => ContainerState::Stopped,
                    },
                    labels: summary.labels.unwrap_or_default().into_iter().collect(),
                    ports: ports.collect(),
                }
            })
            .collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// Runs a command in a container as root, with `input` as its standard input, and waits until it ends.
    ///
    /// # Errors
    /// When the container does not run, the program cannot be started, or it takes longer than `within`.
    pub fn exec(&self, container: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed> {
        let doing = || format!("running `{}` in the container {container}", command.join(" "));
        let work = async {
            match tokio::time::timeout(within, self.execute(container, command, input)).await {
                Ok(done) => done,
                Err(_) => Err(Error::RequestTimeoutError),
            }
        };
        let executed = self.runtime.block_on(work);
        match executed {
            Err(Error::RequestTimeoutError) => {
                Err(Fault::work(format!("it did not end within {} s", within.as_secs()))).with_context(doing)
            }
            other => other.map_err(|error| self.told(error)).with_context(doing),
        }
    }

    async fn execute(&self, container: &str, command: &[String], input: &[u8]) -> Result<Executed, Error> {
        let options = CreateExecOptions {
            attach_stdin: Some(!input.is_empty()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            ..CreateExecOptions::default()
        };
        let id = self.docker.create_exec(container, options).await?.id;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let start = StartExecOptions { detach: false, tty: false, output_capacity: None };
        if let StartExecResults::Attached { mut output, input: mut pipe } =
            self.docker.start_exec(&id, Some(start)).await?
        {
            let feed = async {
                if !input.is_empty() {
                    // A program that does not read all of it is no error.
                    let _ = pipe.write_all(input).await;
                    let _ = pipe.shutdown().await;
                }
            };
            let read = async {
                while let Some(part) = output.next().await {
                    match part? {
                        LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                        LogOutput::StdOut { message } | LogOutput::Console { message } => {
                            stdout.extend_from_slice(&message);
                        }
                        LogOutput::StdIn { .. } => {}
                    }
                }
                Ok::<_, Error>(())
            };
            let ((), read) = tokio::join!(feed, read);
            read?;
        }
        // The engine learns of the end a moment after the output has ended.
        loop {
            let about = self.docker.inspect_exec(&id).await?;
            if about.running != Some(true) {
                return Ok(Executed { status: about.exit_code.unwrap_or(-1), stdout, stderr });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a container has written to its console.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn logs(&self, container: &str) -> Result<String> {
        let options = LogsOptions { stdout: true, stderr: true, tail: "all".to_owned(), ..LogsOptions::default() };
        let read = async {
            let mut text = Vec::new();
            let mut parts = Box::pin(self.docker.logs(container, Some(options)));
            while let Some(part) = parts.next().await {
                text.extend_from_slice(&part?.into_bytes());
            }
            Ok::<_, Error>(text)
        };
        let text = self.wait(read).with_context(|| format!("reading the log of the container {container}"))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The command line that runs `command` in a container on this terminal.
    pub fn interactive(&self, container: &str, command: &[String]) -> (String, Vec<String>) {
        let program = match self.kind {
            Kind::Docker => "docker",
            Kind::Podman => "podman",
        };
        let mut arguments = ["exec", "--interactive", "--tty", container].map(str::to_owned).to_vec();
        arguments.extend(command.iter().cloned());
        (program.to_owned(), arguments)
    }

    /// Waits for `work`, for which it is no error that the thing is gone.
    fn unless_gone(&self, work: impl Future<Output = Result<(), Error>>) -> Result<()> {
        match self.runtime.block_on(work) {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            other => other.map_err(|error| anyhow::Error::msg(said(&error))),
        }
    }
}
