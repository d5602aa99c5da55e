//! The addresses of a cluster on this machine.

use super::driver::ClusterNetwork;
use crate::{
    document::Document,
    error::UserError,
    model::{ClusterSpec, Network},
    seed::compose::subnet,
};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};

/// Where networks are looked for when a document names no addresses: 10.213.0.0 to 10.213.255.0, 24 bits each.
const RANGE: [u8; 2] = [10, 213];
/// The length of a network's prefix where the document does not tell it.
const PREFIX: u8 = 24;

/// The network of the cluster `spec`: the network of its virtual address, or the smallest usual one of its members.
///
/// # Errors
/// A wrong request when a member lies outside it, or no address is left for the host.
pub fn cluster_network(spec: &ClusterSpec) -> Result<ClusterNetwork, UserError> {
    let first = spec.members[0].address;
    let prefix = match &spec.vip {
        Some(vip) => vip.address.prefix,
        None if first.is_ipv4() => PREFIX,
        None => 64,
    };
    let network = Network { address: first, prefix };
    if let Some(member) = spec.members.iter().find(|member| !network.contains(member.address)) {
        return Err(UserError::usage(format!(
            "the member {} at {} is outside the network {}, which all nodes on one machine share",
            member.name,
            member.address,
            subnet(&network)
        )));
    }
    let vip = spec.vip.as_ref().map(|vip| vip.address.address);
    let taken = |address: IpAddr| vip == Some(address) || spec.members.iter().any(|member| member.address == address);
    let base: IpAddr = subnet(&network).split('/').next().and_then(|text| text.parse().ok()).unwrap_or(first);
    let gateway =
        (1..250).map(|number| plus(base, number)).find(|address| !taken(*address) && network.contains(*address));
    let gateway = gateway.ok_or_else(|| {
        UserError::usage(format!("the network {} has no address left for the host", subnet(&network)))
            .hint("give the virtual address a shorter prefix")
    })?;
    Ok(ClusterNetwork { cluster: spec.cluster.clone(), subnet: subnet(&network), gateway, vip })
}

fn plus(address: IpAddr, number: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().wrapping_add(number)).into(),
        IpAddr::V6(address) => std::net::Ipv6Addr::from_bits(address.to_bits().wrapping_add(u128::from(number))).into(),
    }
}

/// Whether two networks share an address; a text that is not a network shares none.
pub fn overlap(one: &str, other: &str) -> bool {
    let (Ok(one), Ok(other)) = (one.parse::<Network>(), other.parse::<Network>()) else { return false };
    one.contains(other.address) || other.contains(one.address)
}

/// A document for a cluster `name` of `nodes` nodes, in a network that is not one of `taken`.
///
/// # Errors
/// A wrong request when the number of nodes is none that a network has room for; failed work when no network is free.
pub fn document(name: &str, nodes: usize, timing: &str, taken: &[String]) -> Result<Document> {
    if !(1..=9).contains(&nodes) {
        return Err(UserError::usage(format!("a cluster cannot have {nodes} nodes")).hint("give 1 to 9").into());
    }
    let [a, b] = RANGE;
    // Other networks may be larger or smaller.
    let free = (0..=255u8)
        .map(|c| Ipv4Addr::new(a, b, c, 0))
        .find(|base| taken.iter().all(|other| !overlap(other, &format!("{base}/{PREFIX}"))));
    let Some(base) = free else {
        return Err(UserError::runtime(format!("no network {a}.{b}.x.0/{PREFIX} is free"))
            .hint("remove a cluster that is not needed: pgha-image cluster down NAME")
            .into());
    };
    let [.., c, _] = base.octets();
    let mut text = format!("schema: 1\ncluster: {name}\nmembers:\n");
    for node in 1..=nodes {
        text.push_str(&format!("  - {{name: pg-{node}, address: {a}.{b}.{c}.{}}}\n", 10 + node));
    }
    text.push_str(&format!(
        "vip: {{address: {a}.{b}.{c}.10/{PREFIX}}}\ntiming: {timing}\npostgresql: {{databases: [{{name: app, owner: app}}]}}\n"
    ));
    Ok(Document::new(format!("the document of the cluster {name}"), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_network_is_found() {
        let taken = ["172.17.0.0/16", "10.213.0.0/24", "10.213.1.128/25", "fd00::/64"].map(str::to_owned);
        let text = document("demo", 3, "fast", &taken).unwrap().text;
        assert!(text.contains("{name: pg-3, address: 10.213.2.13}") && text.contains("10.213.2.10/24"), "{text}");
        assert!(document("demo", 3, "fast", &["10.0.0.0/8".to_owned()]).is_err());
        assert!(document("demo", 0, "fast", &[]).is_err());
    }

    #[test]
    fn the_host_takes_an_address_that_nobody_has() {
        let spec = |members: &str, vip: &str| {
            let text = format!(
                "schema: 1\ncluster: demo\nsecret: AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\nmembers: [{members}]\n{vip}"
            );
            Document::new("demo", text).cluster().unwrap().0
        };
        let one = cluster_network(&spec("{name: a, address: 10.0.0.1}", "vip: {address: 10.0.0.2/24}\n")).unwrap();
        assert_eq!((one.subnet.as_str(), one.gateway.to_string().as_str()), ("10.0.0.0/24", "10.0.0.3"));
        let far = cluster_network(&spec("{name: a, address: 10.0.0.1}, {name: b, address: 10.0.9.1}", "")).unwrap_err();
        assert!(far.message.starts_with("the member b at 10.0.9.1 is outside the network 10.0.0.0/24"), "{far}");
    }
}
