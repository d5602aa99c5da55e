//! How nodes get their addresses.

use crate::{
    error::UserError,
    model::{ClusterSpec, Member, Network},
};
use std::net::IpAddr;

/// How nodes come to their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Addressing {
    /// From the network: DHCP, router advertisements.
    #[default]
    Dynamic,
    /// Each sets its own on its first Ethernet interface.
    Static {
        /// The length of the network's prefix, in bits.
        prefix: u8,
        /// Where packets to other networks go.
        gateway: Option<IpAddr>,
        /// Name servers.
        nameservers: Vec<IpAddr>,
    },
    /// Somebody else has set them before the node starts, as container engines do.
    Preset,
}

impl Addressing {
    /// Whether the members of `spec` can have addresses so.
    ///
    /// # Errors
    /// A wrong request when members, gateway and virtual address do not lie in one network.
    pub fn check(&self, spec: &ClusterSpec) -> Result<(), UserError> {
        let Addressing::Static { prefix, gateway, .. } = self else { return Ok(()) };
        let Some(first) = spec.members.first() else { return Ok(()) };
        let longest = if first.address.is_ipv4() { 32 } else { 128 };
        if *prefix > longest {
            return Err(UserError::usage(format!("a prefix of {prefix} bits is longer than an address")));
        }
        let network = Network { address: first.address, prefix: *prefix };
        if let Some(gateway) = gateway
            && !network.contains(*gateway)
        {
            return Err(UserError::usage(format!("the gateway {gateway} is outside the nodes' network {network}")));
        }
        match spec.members.iter().find(|member| !network.contains(member.address)) {
            Some(member) => Err(UserError::usage(format!(
                "the member {} at {} is outside the network {network}",
                member.name, member.address
            ))
            .hint("with static addresses, all members of this document lie in one network; leave out --static if your network gives the addresses")),
            None => Ok(()),
        }
    }

    /// The node's `network-config` (cloud-init, «Networking config Version 2»).
    pub fn network_config(&self, spec: &ClusterSpec, member: &Member) -> String {
        // Without it cloud-init uses DHCP on every interface, Docker's own among them.
        match self {
            Addressing::Preset => "config: disabled\n".to_owned(),
            Addressing::Dynamic => {
                "version: 2\nethernets:\n  first:\n    match: {name: \"e*\"}\n    dhcp4: true\n".to_owned()
                    + if spec.members.iter().any(|member| member.address.is_ipv6()) { "    dhcp6: true\n" } else { "" }
            }
            Addressing::Static { prefix, gateway, nameservers } => {
                let mut text = format!(
                    "version: 2\nethernets:\n  first:\n    match: {{name: \"e*\"}}\n    addresses: [\"{}/{prefix}\"]\n",
                    member.address
                );
                if let Some(gateway) = gateway {
                    text.push_str(&format!("    routes: [{{to: default, via: \"{gateway}\"}}]\n"));
                }
                if !nameservers.is_empty() {
                    let all: Vec<_> = nameservers.iter().map(|address| format!("\"{address}\"")).collect();
                    text.push_str(&format!("    nameservers: {{addresses: [{}]}}\n", all.join(", ")));
                }
                text
            }
        }
    }
}
