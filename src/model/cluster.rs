//! The cluster document: what a user gives every node of a cluster, the same text to each.
//!
//! ```yaml
//! schema: 1
//! cluster: demo
//! secret: <32 random bytes, base64>
//! members:
//!   - {name: pg-1, address: 10.0.0.11}
//!   - {name: pg-2, address: 10.0.0.12}
//!   - {name: pg-3, address: 10.0.0.13}
//! vip: {address: 10.0.0.10/24}
//! synchronous: {mode: on, nodes: 1, strict: false}
//! timing: norm
//! postgresql: {databases: [{name: app, owner: app}]}
//! ```

use super::{Secret, timing::TimingSpec};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// One cluster, as its users describe it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClusterSpec {
    /// The version of this shape: 1.
    pub schema: u32,
    /// The cluster's name: lower-case letters, digits and hyphens. Patroni calls it the scope.
    pub cluster: String,
    /// 32 or more random bytes in base64. Every password and the certificate authority are derived from it.
    pub secret: Secret,
    /// The nodes, each of which runs every service.
    pub members: Vec<Member>,
    /// The address that moves to a node whose HAProxy is open.
    #[serde(default)]
    pub vip: Option<Vip>,
    /// Whether a commit waits for a replica.
    #[serde(default)]
    pub synchronous: Synchronous,
    /// Every timer of the cluster: `fast`, `norm`, `safe`, `wide`, or one of them with changes.
    #[serde(default)]
    pub timing: TimingSpec,
    /// The database server.
    #[serde(default)]
    pub postgresql: PostgresqlSpec,
    /// The connection pool in front of each database server.
    #[serde(default)]
    pub pool: PoolSpec,
    /// Passwords to use instead of the derived ones.
    #[serde(default)]
    pub passwords: PasswordSpec,
    /// A certificate authority to use instead of the derived one.
    #[serde(default)]
    pub authority: Option<AuthoritySpec>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Member {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// The address by which the other nodes reach it.
    pub address: IpAddr,
    /// The cloud's id of the instance, for nodes that neither address nor host name identifies.
    #[serde(default)]
    pub instance_id: Option<String>,
}

/// The virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vip {
    /// The address and the length of its network's prefix, such as `10.0.0.10/24`.
    pub address: Network,
    /// The network interface that carries it; the one with the member's address if nothing is said.
    #[serde(default)]
    pub interface: Option<String>,
    /// The number of this address's VRRP group, 1 to 255, different from others on the same network; by default,
    /// derived from the cluster's name and address.
    #[serde(default)]
    pub router_id: Option<u8>,
}

/// An address and its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub prefix: u8,
}

/// Why a string is not an address with its network.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an address with the length of its network's prefix (such as 10.0.0.10/24)")]
pub struct NetworkError(String);

impl Network {
    /// Whether `other` lies in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 4),
            IpAddr::V6(address) => (address.to_bits(), 6),
        };
        let ((own, own_family), (other, family)) = (bits(self.address), bits(other));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        own_family == family && own & mask == other & mask
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let refuse = || NetworkError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let prefix = prefix.parse().map_err(|_| refuse())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(refuse()) } else { Ok(Network { address, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "builder")]
impl schemars::JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "An address and the length of its network's prefix.",
            "pattern": "^[0-9a-fA-F:.]+/[0-9]+$",
        })
    }
}

/// How commits wait for replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Synchronous {
    /// Whether they wait, and for whom.
    pub mode: SynchronousMode,
    /// How many replicas hold a commit before it is acknowledged.
    pub nodes: u32,
    /// Whether commits wait even while no replica is there.
    pub strict: bool,
}

/// For whom a commit waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SynchronousMode {
    /// No replica.
    Off,
    /// For chosen replicas.
    On,
    /// For any of the replicas.
    Quorum,
}

impl Default for Synchronous {
    fn default() -> Synchronous {
        Synchronous { mode: SynchronousMode::On, nodes: 1, strict: false }
    }
}

/// The database server, as far as a user decides about it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PostgresqlSpec {
    /// Server parameters, on top of those that this project sets.
    pub parameters: BTreeMap<String, Setting>,
    /// Lines of `pg_hba.conf`, asked after the project's own.
    pub hba: Vec<String>,
    /// Roles that may log in, made when the cluster is made. Owners of databases need not be listed.
    pub users: Vec<Login>,
    /// Databases, made when the cluster is made.
    pub databases: Vec<Database>,
}

/// A server parameter's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Setting {
    /// `on` or `off`.
    Switch(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Anything else.
    Text(String),
}

/// A role that may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Login {
    /// Its name.
    pub name: String,
    /// Its password; derived from the secret if nothing is said.
    #[serde(default)]
    pub password: Option<Secret>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The role that owns it; made if it is not listed among the users.
    pub owner: String,
}

/// The connection pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PoolSpec {
    /// When a server connection goes back to the pool.
    pub mode: PoolMode,
    /// Server connections for each pair of user and database.
    pub size: u32,
    /// Client connections in all.
    pub clients: u32,
}

/// When a server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// When the client leaves: every feature of a session works.
    Session,
    /// After each transaction: many more clients, no session state.
    Transaction,
}

impl Default for PoolSpec {
    fn default() -> PoolSpec {
        PoolSpec { mode: PoolMode::Session, size: 50, clients: 2000 }
    }
}

/// Passwords given instead of derived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PasswordSpec {
    /// Of the role `postgres`.
    pub superuser: Option<Secret>,
    /// Of the role `replicator`.
    pub replication: Option<Secret>,
    /// Of the role `rewinder`.
    pub rewind: Option<Secret>,
    /// Of the role `pgbouncer`.
    pub pooler: Option<Secret>,
    /// Of the user `patroni` of Patroni's REST interface.
    pub rest: Option<Secret>,
    /// Of the user `admin` of HAProxy's statistics.
    pub statistics: Option<Secret>,
}

/// A certificate authority given instead of derived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AuthoritySpec {
    /// Its certificate, in PEM.
    pub certificate: String,
    /// Its private key (PKCS #8), in PEM.
    pub key: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let network: Network = "10.0.0.10/24".parse().unwrap();
        assert!(network.contains("10.0.0.255".parse().unwrap()));
        assert!(!network.contains("10.0.1.1".parse().unwrap()));
        assert!(!network.contains("::1".parse().unwrap()));
        let everything: Network = "0.0.0.0/0".parse().unwrap();
        assert!(everything.contains("203.0.113.9".parse().unwrap()));
        let six: Network = "fd00::10/64".parse().unwrap();
        assert!(six.contains("fd00::ffff".parse().unwrap()));
        assert!(!six.contains("fd00:1::1".parse().unwrap()));
        assert_eq!(network.to_string(), "10.0.0.10/24");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["10.0.0.10", "10.0.0.10/33", "10.0.0/8", "fd00::/129", "a/8", "10.0.0.1/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
