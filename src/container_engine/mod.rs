//! Container engines: Docker and Podman, through the API that both offer. Async ends here.
//!
//! An [`Engine`] is found by `DOCKER_HOST`, or at the sockets where engines listen by default, and owns the runtime on
//! which its connection lives. Its functions wait until the work is done.

mod containers;
mod find;

pub use containers::{Container, ContainerFile, ContainerSpec, ContainerState, Executed, Network, NetworkSpec};
pub use find::Which;

use crate::{
    error::UserError,
    progress::{Progress, Step, Unit, size},
};
use anyhow::{Context as _, Result};
use bollard::{
    Docker,
    errors::Error,
    models::SystemVersion,
    query_parameters::{ImportImageOptions, RemoveImageOptions},
};
use find::{Address, Surroundings};
use futures_util::{StreamExt as _, stream};
use std::{
    fmt,
    fs::File,
    future::Future,
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

/// How long an engine may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// How long an engine may take to load an image: its disk may be slow and the image large.
const LOAD_WITHIN: Duration = Duration::from_secs(3600);
/// Bytes of an archive that are sent at once.
const CHUNK: usize = 256 << 10;

/// Which program an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Docker,
    /// Podman's service.
    Podman,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Docker => "Docker",
            Kind::Podman => "Podman",
        })
    }
}

/// A connection to a container engine.
#[derive(Debug)]
pub struct Engine {
    runtime: Runtime,
    docker: Docker,
    kind: Kind,
    version: String,
    address: String,
}

/// An image that an engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// The image's name in the engine; its id if it has no name.
    pub reference: String,
    /// The engine's own id for it: `sha256:` and 64 digits.
    pub id: String,
}

impl Engine {
    /// Connects to the engine that `DOCKER_HOST` names (`CONTAINER_HOST` for Podman), or else to the first that answers
    /// at the sockets where engines listen by default.
    ///
    /// # Errors
    /// When none answers; the error names every place that was tried.
    pub fn connect(which: Which) -> Result<Engine> {
        Engine::first_of(find::addresses(which, &Surroundings::of_this_process())?)
    }

    /// Which program the engine is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The engine's own version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where the engine was found: `unix:///var/run/docker.sock`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether layers compressed with zstd can be loaded: Docker before 23 says `invalid tar header` of them.
    pub fn reads_zstd(&self) -> bool {
        let major = self.version.split('.').next().and_then(|major| major.parse().ok());
        self.kind == Kind::Podman || major.is_none_or(|major: u32| major >= 23)
    }

    /// Loads an image archive into the engine. Returns the images that the engine says it has loaded.
    ///
    /// # Errors
    /// When the archive cannot be read, the engine refuses it, or the connection is cut off.
    pub fn load(&self, archive: &Path, progress: &Progress) -> Result<Vec<LoadedImage>> {
        let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
        let total = file.metadata().with_context(|| format!("reading {}", archive.display()))?.len();
        let step = progress.step("load", total, Unit::Bytes);
        let references =
            self.wait(self.send(file, &step)).with_context(|| format!("loading {} into {self}", archive.display()))?;
        let images: Vec<LoadedImage> = references
            .into_iter()
            .map(|reference| {
                let id = self.image_id(&reference)?.unwrap_or_else(|| reference.clone());
                Ok(LoadedImage { reference, id })
            })
            .collect::<Result<_>>()?;
        let names: Vec<&str> = images.iter().map(|image| image.reference.as_str()).collect();
        step.finish(format!("{} into {self}, {}", names.join(", "), size(total)));
        Ok(images)
    }

    /// The id of the image `reference` in the engine; `None` if there is none.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn image_id(&self, reference: &str) -> Result<Option<String>> {
        match self.runtime.block_on(self.docker.inspect_image(reference)) {
            Ok(image) => Ok(image.id),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => {
                Err(self.explained(error)).with_context(|| format!("inspecting the image {reference} of {self}"))
            }
        }
    }

    /// Takes the name `reference` from an image, and the image away if that was its last name.
    ///
    /// # Errors
    /// When there is no such image, a container uses it, or the engine does not answer.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        self.wait(self.docker.remove_image(reference, None::<RemoveImageOptions>, None))
            .map(drop)
            .with_context(|| format!("removing the image {reference} from {self}"))
    }

    fn first_of(addresses: Vec<Address>) -> Result<Engine> {
        let mut tried = Vec::new();
        for address in addresses {
            match Engine::at(&address) {
                Ok(engine) => return Ok(engine),
                Err(why) => tried.push((address, why)),
            }
        }
        Err(find::none_answers(&tried).into())
    }

    fn at(address: &Address) -> Result<Engine, io::Error> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let within = ANSWER_WITHIN.as_secs();
        let connected = match address {
            Address::Unix(path) => {
                // Says why it cannot be reached, which the client does not.
                UnixStream::connect(path)?;
                Docker::connect_with_unix(&path.to_string_lossy(), within, bollard::API_DEFAULT_VERSION)
            }
            Address::Tcp(uri) => Docker::connect_with_http(uri, within, bollard::API_DEFAULT_VERSION),
        };
        let (docker, version) = runtime
            .block_on(async {
                let docker = connected?.negotiate_version().await?;
                let version = docker.version().await?;
                Ok::<_, Error>((docker, version))
            })
            .map_err(|error| io::Error::other(said(&error)))?;
        let (kind, version) = identify(version);
        Ok(Engine { runtime, docker, kind, version, address: address.to_string() })
    }

    /// Sends an archive; returns the names that the engine says it has loaded.
    async fn send(&self, file: File, step: &Step) -> Result<Vec<String>, Error> {
        let sent = step.clone();
        let chunks = stream::iter(Chunks(file)).map(move |chunk| {
            chunk.map(|bytes| {
                sent.advance(bytes.len() as u64);
                bytes.into()
            })
        });
        let docker = self.docker.clone().with_timeout(LOAD_WITHIN);
        let mut answers = docker.import_image_stream(ImportImageOptions::default(), chunks, None).boxed();
        let mut loaded = Vec::new();
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            if let Some(status) = answer.status {
                step.detail(status);
            }
            loaded.extend(answer.stream.iter().flat_map(|said| said.lines()).filter_map(loaded_image));
        }
        if loaded.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(loaded)
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T> {
        self.runtime.block_on(work).map_err(|error| self.explained(error))
    }

    /// The error in our words where the client's do not help.
    fn explained(&self, error: Error) -> anyhow::Error {
        match error {
            Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message } => {
                UserError::runtime(format!("{} refused: {}", self.kind, message.trim())).into()
            }
            Error::RequestTimeoutError => UserError::runtime(format!("{} does not answer", self.kind)).into(),
            error if is_local(&error) => anyhow::Error::msg(said(&error)),
            error => anyhow::Error::msg(said(&error)).context(
                UserError::runtime(format!("{} closed the connection", self.kind)).hint(format!(
                    "check whether the engine at {} is still running, and what it has logged",
                    self.address
                )),
            ),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.version)
    }
}

/// Reads a file piece by piece; ends after an error.
struct Chunks(File);

impl Iterator for Chunks {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        let mut chunk = Vec::with_capacity(CHUNK);
        match (&self.0).take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => None,
            Ok(_) => Some(Ok(chunk)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// What the line says was loaded: a name, or the id of an image without one.
fn loaded_image(line: &str) -> Option<String> {
    let name = line.strip_prefix("Loaded image: ").or_else(|| line.strip_prefix("Loaded image ID: "))?;
    Some(name.trim().to_owned())
}

fn identify(version: SystemVersion) -> (Kind, String) {
    let components = version.components.unwrap_or_default();
    let podman = components.iter().find(|component| component.name.contains("Podman"));
    match podman {
        Some(podman) => (Kind::Podman, podman.version.clone()),
        None => (Kind::Docker, version.version.unwrap_or_default()),
    }
}

/// Whether it failed here, before anything was sent.
fn is_local(error: &Error) -> bool {
    matches!(error, Error::URLParseError { .. } | Error::URLEncodedError { .. } | Error::JsonSerdeError { .. })
}

/// An error and its causes, each said once.
fn said(error: &Error) -> String {
    let mut error: &dyn std::error::Error = match error {
        Error::HyperLegacyError { err } => err,
        error => error,
    };
    let mut text = error.to_string();
    while let Some(cause) = error.source() {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        error = cause;
    }
    text
}

#[cfg(test)]
mod tests;
