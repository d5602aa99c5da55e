//! A Compose file that starts a cluster's nodes as containers with stock Docker or Podman.

use super::Seeds;
use crate::model::scope::ports;
use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// The image that the file names if nothing else is said.
pub const DEFAULT_IMAGE: &str = "ha-postgres";

/// What a Compose file needs to know beyond the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compose {
    pub image: String,
    /// The length of the network's prefix, in bits.
    pub prefix: u8,
    /// Which control groups the host has.
    pub groups: ControlGroups,
}

/// The control groups of a host, which systemd in containers writes its own below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlGroups {
    /// The unified hierarchy alone, as on every distribution of today.
    Unified,
    /// The old hierarchies, and the unified one below them (systemd's CGROUP_DELEGATION, «hybrid»).
    Hybrid,
}

impl ControlGroups {
    /// Those of this host.
    pub fn of_this_host() -> ControlGroups {
        let hybrid = std::path::Path::new(ControlGroups::Hybrid.folder()).is_dir();
        if hybrid { ControlGroups::Hybrid } else { ControlGroups::Unified }
    }

    /// The folder of the unified hierarchy.
    pub fn folder(self) -> &'static str {
        match self {
            ControlGroups::Unified => "/sys/fs/cgroup",
            ControlGroups::Hybrid => "/sys/fs/cgroup/unified",
        }
    }
}

impl Compose {
    /// The file's text. It names the seeds by their folders, which lie beside it.
    ///
    /// # Errors
    /// When the file has no form in YAML.
    pub fn text(&self, seeds: &Seeds) -> anyhow::Result<String> {
        let spec = &seeds.spec;
        let network = crate::model::Network { address: spec.members[0].address, prefix: self.prefix };
        let mut services = Map::new();
        for (index, member) in spec.members.iter().enumerate() {
            let data = |folder: &str| format!("{}-{folder}", member.name);
            // The first node's doors are the host's own; the others' are found with `docker compose port`.
            let published: Vec<String> = [ports::PRIMARY, ports::REPLICAS, ports::STATISTICS]
                .iter()
                .map(|port| if index == 0 { format!("127.0.0.1:{port}:{port}") } else { format!("127.0.0.1::{port}") })
                .collect();
            let mut service = json!({
                "image": self.image,
                "hostname": member.name,
                "networks": {"nodes": {if_v4(member.address): member.address.to_string()}},
                "cap_add": ["SYS_ADMIN", "NET_ADMIN", "NET_RAW"],
                "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
                "tmpfs": ["/run", "/run/lock", "/tmp"],
                "volumes": [
                    format!("{}:/sys/fs/cgroup", self.groups.folder()),
                    format!("./{}:/var/lib/cloud/seed/nocloud:ro", member.name),
                    format!("{}:/var/lib/etcd", data("etcd")),
                    format!("{}:/var/lib/postgresql", data("postgresql")),
                    format!("{}:/var/lib/pgha", data("state")),
                ],
                "ports": published,
                "stop_signal": "SIGRTMIN+3",
                "stop_grace_period": "60s",
                "restart": "unless-stopped",
            });
            // Engines give containers a namespace of control groups of their own there, in which they may not write.
            if self.groups == ControlGroups::Unified {
                service["cgroup"] = "host".into();
            }
            services.insert(member.name.clone(), service);
        }
        let volumes: Map<String, Value> = spec
            .members
            .iter()
            .flat_map(|member| ["etcd", "postgresql", "state"].map(|folder| format!("{}-{folder}", member.name)))
            .map(|name| (name, json!({})))
            .collect();
        let file = json!({
            "services": services,
            "networks": {"nodes": {"ipam": {"config": [{"subnet": subnet(&network)}]}}},
            "volumes": volumes,
        });
        let head = "# Written by `pgha-image seed --compose`. Start: docker compose up --detach\n";
        Ok(format!("{head}{}", serde_saphyr::to_string(&file).context("writing the Compose file")?))
    }
}

fn if_v4(address: std::net::IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4_address" } else { "ipv6_address" }
}

/// The network without the bits of a host.
pub fn subnet(network: &crate::model::Network) -> String {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let prefix = u32::from(network.prefix);
    let address = match network.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::from(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::from(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    };
    format!("{address}/{prefix}")
}
