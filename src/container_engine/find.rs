//! Finds the sockets of container engines.

use crate::error::UserError;
use std::{
    env, fmt, io,
    path::{Path, PathBuf},
};

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// Docker if it answers, or else Podman.
    #[default]
    Auto,
    Docker,
    Podman,
}

/// A place where an engine may listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// `tcp://HOST:PORT`, not encrypted.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(uri) => f.write_str(uri),
        }
    }
}

/// The variables of this process's environment that say where engines listen.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    pub docker_host: Option<String>,
    pub container_host: Option<String>,
    pub runtime_folder: Option<PathBuf>,
    pub home: Option<PathBuf>,
    pub user: u32,
}

impl Surroundings {
    pub fn of_this_process() -> Surroundings {
        let text = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Surroundings {
            docker_host: text("DOCKER_HOST"),
            container_host: text("CONTAINER_HOST"),
            runtime_folder: text("XDG_RUNTIME_DIR").map(PathBuf::from),
            home: text("HOME").map(PathBuf::from),
            user: rustix::process::getuid().as_raw(),
        }
    }

    fn runtime_folder(&self) -> PathBuf {
        self.runtime_folder.clone().unwrap_or_else(|| format!("/run/user/{}", self.user).into())
    }

    /// Docker's own, then that of rootless Docker, then that of Docker Desktop.
    fn docker(&self) -> Result<Vec<Address>, UserError> {
        if let Some(host) = &self.docker_host {
            return Ok(vec![address("DOCKER_HOST", host)?]);
        }
        let mut sockets = vec!["/var/run/docker.sock".into(), self.runtime_folder().join("docker.sock")];
        sockets.extend(self.home.as_ref().map(|home| home.join(".docker/run/docker.sock")));
        Ok(sockets.into_iter().map(Address::Unix).collect())
    }

    /// The user's own, then the system's.
    fn podman(&self) -> Result<Vec<Address>, UserError> {
        if let Some(host) = &self.container_host {
            return Ok(vec![address("CONTAINER_HOST", host)?]);
        }
        let sockets = [self.runtime_folder().join("podman/podman.sock"), "/run/podman/podman.sock".into()];
        Ok(sockets.map(Address::Unix).into())
    }
}

/// The places to try, in order.
pub(super) fn addresses(which: Which, around: &Surroundings) -> Result<Vec<Address>, UserError> {
    match which {
        Which::Docker => around.docker(),
        Which::Podman => around.podman(),
        // A host that is named is the only one to try.
        Which::Auto if around.docker_host.is_some() => around.docker(),
        Which::Auto if around.container_host.is_some() => around.podman(),
        Which::Auto => Ok([around.docker()?, around.podman()?].concat()),
    }
}

fn address(variable: &str, host: &str) -> Result<Address, UserError> {
    match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        Some(("tcp", rest)) if !rest.is_empty() => Ok(Address::Tcp(host.to_owned())),
        _ => Err(UserError::usage(format!("{variable} is `{host}`, which cannot be used"))
            .hint("it must be unix:///PATH or tcp://HOST:PORT; forward a remote engine's socket with `ssh -L`")),
    }
}

/// The error with the addresses that were tried, and the hint that fits best.
pub(super) fn none_answers(tried: &[(Address, io::Error)]) -> UserError {
    let mut message = "no container engine answers".to_owned();
    for (address, why) in tried {
        let why = match why.kind() {
            io::ErrorKind::NotFound => "no such socket".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
            _ => why.to_string(),
        };
        message.push_str(&format!("\n{address}: {why}"));
    }
    let denied = tried.iter().find_map(|(address, why)| match address {
        Address::Unix(path) if why.kind() == io::ErrorKind::PermissionDenied => Some(path),
        _ => None,
    });
    UserError::runtime(message).hint(match denied {
        Some(path) => denied_hint(path),
        None => {
            "start one: `systemctl start docker`, or `systemctl --user start podman.socket`; or name its socket in \
                 DOCKER_HOST"
                .to_owned()
        }
    })
}

fn denied_hint(socket: &Path) -> String {
    format!(
        "you may not use {}: join the group that owns it (`usermod -aG docker USER`, then log in again), or use your \
         own Podman (`systemctl --user start podman.socket`)",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: Vec<Address>) -> Vec<String> {
        addresses.iter().map(Address::to_string).collect()
    }

    fn around() -> Surroundings {
        Surroundings { home: Some("/home/u".into()), user: 1000, ..Surroundings::default() }
    }

    #[test]
    fn default_sockets_are_tried_in_order() {
        let all = [
            "unix:///var/run/docker.sock",
            "unix:///run/user/1000/docker.sock",
            "unix:///home/u/.docker/run/docker.sock",
            "unix:///run/user/1000/podman/podman.sock",
            "unix:///run/podman/podman.sock",
        ];
        assert_eq!(texts(addresses(Which::Auto, &around()).unwrap()), all);
        assert_eq!(texts(addresses(Which::Docker, &around()).unwrap()), all[..3]);
        assert_eq!(texts(addresses(Which::Podman, &around()).unwrap()), all[3..]);
        let around = Surroundings { runtime_folder: Some("/tmp/r".into()), ..around() };
        assert_eq!(texts(addresses(Which::Podman, &around).unwrap())[0], "unix:///tmp/r/podman/podman.sock");
    }

    #[test]
    fn a_named_host_is_the_only_one_tried() {
        let docker = Surroundings { docker_host: Some("tcp://127.0.0.1:2375".into()), ..around() };
        assert_eq!(texts(addresses(Which::Auto, &docker).unwrap()), ["tcp://127.0.0.1:2375"]);
        assert_eq!(addresses(Which::Podman, &docker).unwrap().len(), 2, "it is Docker's");
        let podman = Surroundings { container_host: Some("unix:///p.sock".into()), ..around() };
        assert_eq!(texts(addresses(Which::Auto, &podman).unwrap()), ["unix:///p.sock"]);
        assert_eq!(addresses(Which::Docker, &podman).unwrap().len(), 3);
    }

    #[test]
    fn a_host_of_another_kind_is_refused() {
        for host in ["ssh://root@host", "unix://relative", "/run/docker.sock", "tcp://"] {
            let around = Surroundings { docker_host: Some(host.to_owned()), ..around() };
            let problem = addresses(Which::Auto, &around).unwrap_err();
            assert_eq!(problem.message, format!("DOCKER_HOST is `{host}`, which cannot be used"));
        }
    }
}
