//! Containers and networks of an engine.

use super::{Engine, Kind};
use crate::error::UserError;
use anyhow::{Context as _, Result};
use bollard::{
    body_full,
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    models::{
        self, ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, EndpointIpamConfig,
        EndpointSettings, HostConfig, HostConfigCgroupnsModeEnum, Ipam, IpamConfig, NetworkCreateRequest,
        NetworkingConfig, PortBinding,
    },
    query_parameters::{
        CreateContainerOptions, DownloadFromContainerOptions, InspectContainerOptions, KillContainerOptions,
        ListContainersOptions, ListNetworksOptions, LogsOptions, RemoveContainerOptions, StartContainerOptions,
        UploadToContainerOptions,
    },
};
use futures_util::StreamExt as _;
use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::io::AsyncWriteExt as _;

/// The capabilities that systemd as PID 1, keepalived and the services of a node need beyond an engine's defaults.
const CAPABILITIES: [&str; 3] = ["SYS_ADMIN", "NET_ADMIN", "NET_RAW"];
/// How long an engine may take to finish a removal that another client began.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);
/// How often that is checked.
const REMOVED_PAUSE: Duration = Duration::from_millis(200);
/// The largest archive that is read from a container, in bytes: it is a stranger's, until its files are known.
const LARGEST_ARCHIVE: usize = 4 << 20;

/// A network of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub name: String,
    /// Its addresses, as `10.0.0.0/24`.
    pub subnet: String,
    /// The engine's own address in it.
    pub gateway: IpAddr,
    pub labels: BTreeMap<String, String>,
}

/// A container that runs a whole system, with systemd as PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    pub name: String,
    /// The image it is made of.
    pub image: String,
    pub host_name: String,
    /// The network it is in, by id or name.
    pub network: String,
    /// Its address there.
    pub address: IpAddr,
    /// TCP ports that the host's loopback address forwards to it, each from a free port of the engine's choice.
    pub ports: Vec<u16>,
    /// The most memory it may use, in bytes.
    pub memory: Option<u64>,
    pub labels: BTreeMap<String, String>,
}

/// The state of a container.
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
    /// The engine's own id for it, which is never used again.
    pub id: String,
    pub name: String,
    /// The image that it was made of, as its maker named it.
    pub image: String,
    /// When it was made, as the engine writes it (RFC 3339).
    pub created: String,
    /// How it stands.
    pub state: ContainerState,
    pub labels: BTreeMap<String, String>,
    /// Its ports, and where the host forwards them from.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// The networks that it is in, by their ids, and the address that it was given there.
    pub networks: BTreeMap<String, Option<IpAddr>>,
    /// The volumes that hold some of its data.
    pub volumes: Vec<String>,
    /// The most memory it may use, in bytes.
    pub memory: Option<u64>,
}

/// A network that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The engine's own id for it, which is never used again.
    pub id: String,
    /// Its name, which another network may have, too.
    pub name: String,
    /// When it was made, as the engine writes it (RFC 3339).
    pub created: String,
    /// Its addresses, as far as the engine reports them: `10.0.0.0/24`.
    pub subnets: Vec<String>,
    /// The engine's own address in it.
    pub gateway: Option<IpAddr>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFile {
    /// When it was written, in seconds since 1970.
    pub modified: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
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
    /// Makes a network and returns its id. Its addresses are nobody else's then; Docker gives the same name twice.
    ///
    /// # Errors
    /// When its addresses are taken.
    pub fn create_network(&self, spec: &NetworkSpec) -> Result<String> {
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
            .map(|made| made.id)
            .with_context(|| format!("creating the network {} with the addresses {}", spec.name, spec.subnet))
    }

    /// The networks of this engine.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn networks(&self) -> Result<Vec<Network>> {
        let all = self.wait(self.docker.list_networks(None::<ListNetworksOptions>)).context("listing networks")?;
        Ok(all.into_iter().map(Network::from).collect())
    }

    /// Removes a network; one that is gone already is not an error.
    ///
    /// # Errors
    /// When containers are still in it.
    pub fn remove_network(&self, id: &str) -> Result<()> {
        self.unless_gone(self.docker.remove_network(id)).with_context(|| format!("removing the network {id}"))
    }

    /// Makes a container, which does not run yet, and returns its id.
    ///
    /// # Errors
    /// When the image is missing, or the name, the address or a port is taken.
    pub fn create_container(&self, spec: &ContainerSpec) -> Result<String> {
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
            .map(|made| made.id)
            .with_context(|| format!("creating the container {}", spec.name))
    }

    /// The folder of the host's unified control groups, which systemd in a container writes its own below.
    fn control_groups(&self) -> Result<&'static str> {
        let about = self.wait(self.docker.info()).with_context(|| format!("asking {self} for its version"))?;
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
            .with_context(|| format!("copying files into the container {container}"))
    }

    /// Reads a file of a container, which need not run; `None` if there is no such file.
    ///
    /// # Errors
    /// When there is no such container, the path is not a file, or the file is larger than any document.
    pub fn file(&self, container: &str, path: &str) -> Result<Option<ContainerFile>> {
        let reading = || format!("reading {path} in the container {container}");
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let read = async {
            let mut archive = Vec::new();
            let mut parts = Box::pin(self.docker.download_from_container(container, Some(options)));
            while let Some(part) = parts.next().await {
                archive.extend_from_slice(&part?);
                if archive.len() > LARGEST_ARCHIVE {
                    return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge).into());
                }
            }
            Ok::<_, Error>(archive)
        };
        let archive = match self.runtime.block_on(read) {
            Ok(archive) => archive,
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                // The same status means that there is no such container, which is not an absent file.
                return match self.container(container).with_context(reading)? {
                    Some(_) => Ok(None),
                    None => Err(UserError::runtime("there is no such container")).with_context(reading),
                };
            }
            Err(error) => return Err(self.explained(error)).with_context(reading),
        };
        first_file(&archive).with_context(reading)
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
            .with_context(|| format!("resuming the container {container}"))
    }

    /// Removes a container with its volumes, running or not; one that is gone already is not an error.
    ///
    /// # Errors
    /// When the engine cannot.
    pub fn remove_container(&self, container: &str) -> Result<()> {
        let removing = || format!("removing the container {container}");
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match self.runtime.block_on(self.docker.remove_container(container, Some(options))) {
            // Somebody else removes it: it is gone when they have.
            Err(Error::DockerResponseServerError { status_code: 409, message })
                if message.contains("already in progress") =>
            {
                self.wait_gone(container).with_context(removing)
            }
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            other => other.map_err(|error| self.explained(error)).with_context(removing),
        }
    }

    fn wait_gone(&self, container: &str) -> Result<()> {
        let deadline = Instant::now() + REMOVED_WITHIN;
        while self.container(container)?.is_some() {
            if Instant::now() > deadline {
                return Err(UserError::runtime("another program is removing it, and does not finish").into());
            }
            std::thread::sleep(REMOVED_PAUSE);
        }
        Ok(())
    }

    /// All containers for which `chosen` holds, given the name and the labels; in the order of their names.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn containers(&self, chosen: impl Fn(&str, &BTreeMap<String, String>) -> bool) -> Result<Vec<Container>> {
        let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let found = self.wait(self.docker.list_containers(Some(options))).context("listing containers")?;
        let mut containers = Vec::new();
        for summary in found {
            let labels = summary.labels.unwrap_or_default().into_iter().collect();
            let names = summary.names.unwrap_or_default();
            let Some(id) = summary.id.filter(|_| names.iter().any(|name| chosen(bare(name), &labels))) else {
                continue;
            };
            // One that went in between is gone.
            containers.extend(self.container(&id)?);
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// The container with this id or name; `None` if there is none.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn container(&self, container: &str) -> Result<Option<Container>> {
        match self.runtime.block_on(self.docker.inspect_container(container, None::<InspectContainerOptions>)) {
            Ok(about) => Ok(Some(about.into())),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.explained(error)).with_context(|| format!("inspecting the container {container}")),
        }
    }

    /// How much a container has written to its own file system, in bytes; `None` if that takes longer than `within`, as
    /// the engine counts file by file.
    pub fn written(&self, container: &str, within: Duration) -> Option<u64> {
        let ask = self.docker.inspect_container(container, Some(InspectContainerOptions { size: true }));
        let about = self.runtime.block_on(async { tokio::time::timeout(within, ask).await });
        u64::try_from(about.ok()?.ok()?.size_rw?).ok()
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
                Err(UserError::runtime(format!("it did not end within {} s", within.as_secs()))).with_context(doing)
            }
            other => other.map_err(|error| self.explained(error)).with_context(doing),
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
                    // A program that does not read all of it is not an error.
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

    /// Waits for `work`, for which it is not an error that the thing is gone.
    fn unless_gone(&self, work: impl Future<Output = Result<(), Error>>) -> Result<()> {
        match self.runtime.block_on(work) {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            other => other.map_err(|error| self.explained(error)),
        }
    }
}

/// A container's name, which Docker writes with a slash before it.
fn bare(name: &str) -> &str {
    name.trim_start_matches('/')
}

impl From<ContainerInspectResponse> for Container {
    fn from(about: ContainerInspectResponse) -> Container {
        let config = about.config.unwrap_or_default();
        let settings = about.network_settings.unwrap_or_default();
        let ports = settings.ports.unwrap_or_default().into_iter().filter_map(|(port, bindings)| {
            let port = port.strip_suffix("/tcp")?.parse().ok()?;
            let host = bindings?.into_iter().find_map(|binding| {
                Some(SocketAddr::new(binding.host_ip?.parse().ok()?, binding.host_port?.parse().ok()?))
            });
            Some((port, host?))
        });
        let networks = settings.networks.unwrap_or_default().into_values().filter_map(|endpoint| {
            let fixed = endpoint.ipam_config.and_then(|config| config.ipv4_address.or(config.ipv6_address));
            let id = endpoint.network_id.filter(|id| !id.is_empty())?;
            Some((id, fixed.and_then(|address| address.parse().ok())))
        });
        let volumes =
            about.mounts.unwrap_or_default().into_iter().filter_map(|mount| {
                mount.name.filter(|name| mount.typ.as_deref() == Some("volume") && !name.is_empty())
            });
        let memory = about.host_config.and_then(|host| host.memory).unwrap_or_default();
        Container {
            id: about.id.unwrap_or_default(),
            name: bare(&about.name.unwrap_or_default()).to_owned(),
            image: config.image.unwrap_or_default(),
            created: about.created.unwrap_or_default(),
            state: match about.state.and_then(|state| state.status) {
                Some(ContainerStateStatusEnum::RUNNING) => ContainerState::Running,
                Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
                _ => ContainerState::Stopped,
            },
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            ports: ports.collect(),
            networks: networks.collect(),
            volumes: volumes.collect(),
            memory: u64::try_from(memory).ok().filter(|bytes| *bytes > 0),
        }
    }
}

impl From<models::Network> for Network {
    fn from(about: models::Network) -> Network {
        let configs = about.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        Network {
            id: about.id.unwrap_or_default(),
            name: about.name.unwrap_or_default(),
            created: about.created.unwrap_or_default(),
            gateway: configs.iter().find_map(|config| config.gateway.as_ref()?.parse().ok()),
            subnets: configs.into_iter().filter_map(|config| config.subnet).collect(),
            labels: about.labels.unwrap_or_default().into_iter().collect(),
        }
    }
}

/// The first entry of a tar archive, which must be a file.
fn first_file(archive: &[u8]) -> Result<Option<ContainerFile>> {
    let mut archive = tar::Archive::new(archive);
    let Some(entry) = archive.entries()?.next() else { return Ok(None) };
    let mut entry = entry?;
    if !entry.header().entry_type().is_file() {
        return Err(UserError::runtime("it is not a file").into());
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(Some(ContainerFile { modified: entry.header().mtime()?, bytes }))
}
