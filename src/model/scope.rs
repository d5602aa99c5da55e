//! The scope of templates: every value that a template with the suffix `.hbs` can use, by its path.
//!
//! It describes the cluster, one of its nodes, and the machine that the node is. `pgha-image schema scope` prints it.

use super::{
    ClusterSpec, Database, Member, Network, Node, PoolMode, Secret, Setting, SynchronousMode, keys::Keys,
    timing::Timing,
};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, net::IpAddr};

pub use super::tuning::Machine;

/// The ports that every node serves.
pub mod ports {
    /// HAProxy: the primary.
    pub const PRIMARY: u16 = 5000;
    /// HAProxy: all replicas.
    pub const REPLICAS: u16 = 5001;
    /// HAProxy: synchronous replicas.
    pub const SYNCHRONOUS: u16 = 5002;
    /// HAProxy: asynchronous replicas.
    pub const ASYNCHRONOUS: u16 = 5003;
    /// HAProxy: statistics.
    pub const STATISTICS: u16 = 7000;
    /// PostgreSQL.
    pub const POSTGRESQL: u16 = 5432;
    /// PgBouncer.
    pub const PGBOUNCER: u16 = 6432;
    /// Patroni's REST interface.
    pub const PATRONI: u16 = 8008;
    /// etcd, for clients.
    pub const ETCD_CLIENT: u16 = 2379;
    /// etcd, among its members; before etcd runs, nodes discover each other there.
    pub const ETCD_PEER: u16 = 2380;

    /// Every port, in the order in which people ask for them.
    pub const ALL: [u16; 10] = [
        PRIMARY,
        REPLICAS,
        SYNCHRONOUS,
        ASYNCHRONOUS,
        STATISTICS,
        POSTGRESQL,
        PGBOUNCER,
        PATRONI,
        ETCD_CLIENT,
        ETCD_PEER,
    ];
}

/// The folder of the node's certificates and keys.
pub const TLS_PATH: &str = "/etc/pgha/tls";

/// The list of the users' passwords that root's psql on a node reads (PostgreSQL, «The Password File»).
pub const PASSWORDS_PATH: &str = "/etc/pgha/pgpass";

/// The largest database file of a member of etcd, in bytes.
pub const ETCD_QUOTA: u64 = 1 << 30;

/// How this node's etcd member starts the first time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
pub struct EtcdStart {
    /// Whether it joins a cluster that runs, rather than forming one.
    pub existing: bool,
    /// The token from which etcd derives the ids of a cluster that forms; empty where a node has started before tokens
    /// had an incarnation.
    #[serde(default)]
    pub token: String,
    /// The members that it starts with: name and peer URL.
    pub members: Vec<(String, String)>,
}

impl EtcdStart {
    /// A start together with all members of the document, for trying templates.
    pub fn together(spec: &ClusterSpec) -> EtcdStart {
        let members = spec.members.iter().map(|member| (member.name.clone(), peer_url(member))).collect();
        EtcdStart { existing: false, token: Keys::new(spec).identity(), members }
    }
}

/// Where a member's etcd talks to its peers.
pub fn peer_url(member: &Member) -> String {
    format!("https://{}", host_port(member.address, ports::ETCD_PEER))
}

/// Where a member's etcd talks to clients.
pub fn client_url(member: &Member) -> String {
    format!("https://{}", host_port(member.address, ports::ETCD_CLIENT))
}

/// `ADDRESS:PORT`, as a URL writes it.
pub fn host_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Everything that a template can name. It serializes with its passwords, for [`crate::render::render`] alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Scope {
    /// The cluster of all members.
    pub cluster: ClusterScope,
    /// The node for which the template is rendered.
    pub node: NodeScope,
    /// All members of the cluster, in the document's order.
    pub members: Vec<MemberScope>,
    /// The members but this node, in the document's order.
    pub peers: Vec<MemberScope>,
    /// Whether the node's address is one of IPv6.
    pub ipv6: bool,
    /// The address for listening on every interface: `0.0.0.0` or `::`.
    pub any_address: &'static str,
    /// The address of the loopback interface: `127.0.0.1` or `::1`.
    pub loopback: &'static str,
    /// The virtual address; `null` if the cluster has none.
    pub vip: Option<VipScope>,
    /// Whether a commit waits for replicas.
    pub synchronous: SynchronousScope,
    /// Every timer. `seconds` and `milliseconds` write one as a number.
    pub timing: Timing,
    /// The ports that every node serves.
    pub ports: PortScope,
    /// The files with certificates; every one but `authority` has its key, too.
    pub tls: TlsScope,
    /// Passwords of the services, in plain text.
    pub passwords: PasswordScope,
    /// The database server.
    pub postgresql: PostgresqlScope,
    /// PgBouncer.
    pub pool: PoolScope,
    /// How much HAProxy takes on.
    pub haproxy: HaproxyScope,
    /// This node's member of etcd.
    pub etcd: EtcdScope,
    /// The size of the machine that the node is.
    pub machine: Machine,
    /// The image that the node runs.
    pub image: ImageScope,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct ClusterScope {
    /// The cluster's name.
    pub name: String,
    /// 16 hexadecimal digits that follow from name and secret: other clusters of the same name have others.
    pub identity: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct NodeScope {
    /// The member's name.
    pub name: String,
    /// The address by which the other nodes reach it.
    pub address: IpAddr,
    /// The member's place in the document, from 0.
    pub index: usize,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct MemberScope {
    /// The member's name.
    pub name: String,
    /// The address by which the other nodes reach it.
    pub address: IpAddr,
    /// Where its etcd talks to other members: `https://10.0.0.11:2380`.
    pub peer_url: String,
    /// Where its etcd talks to clients: `https://10.0.0.11:2379`.
    pub client_url: String,
    /// The same without a scheme: `10.0.0.11:2379`.
    pub client_host: String,
}

/// The virtual address.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct VipScope {
    /// The address alone: `10.0.0.10`.
    pub address: IpAddr,
    /// The address with the length of its network's prefix: `10.0.0.10/24`.
    pub cidr: Network,
    /// The network interface that carries it.
    pub interface: String,
    /// The number of its VRRP group, 1 to 255.
    pub router_id: u8,
    /// This node's VRRP priority, up to 100. Each member has another, so that two that start together agree at once on
    /// who holds the address.
    pub priority: usize,
}

/// Whether a commit waits for replicas.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct SynchronousScope {
    /// For which replicas: `off`, `on` or `quorum`.
    pub mode: SynchronousMode,
    /// How many replicas hold a commit before it is acknowledged: 1 or more.
    pub nodes: u32,
    /// Whether commits wait even while no replica is there.
    pub strict: bool,
}

/// The ports that every node serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct PortScope {
    /// HAProxy: the primary.
    pub primary: u16,
    /// HAProxy: all replicas.
    pub replicas: u16,
    /// HAProxy: synchronous replicas.
    pub synchronous: u16,
    /// HAProxy: asynchronous replicas.
    pub asynchronous: u16,
    /// HAProxy: statistics.
    pub statistics: u16,
    /// The database server, which HAProxy reaches through PgBouncer.
    pub postgresql: u16,
    /// PgBouncer.
    pub pgbouncer: u16,
    /// Patroni's REST interface.
    pub patroni: u16,
    /// etcd, for clients.
    pub etcd_client: u16,
    /// etcd, among its members.
    pub etcd_peer: u16,
}

/// Paths of certificates.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct TlsScope {
    /// The certificate of the cluster's authority.
    pub authority: String,
    /// etcd's, as a server, a client and a peer.
    pub etcd: String,
    /// PostgreSQL's and Patroni's.
    pub server: String,
    /// What clients of etcd and Patroni show.
    pub client: String,
    /// PgBouncer's.
    pub pooler: String,
    /// HAProxy's.
    pub haproxy: String,
}

/// Passwords of the services.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct PasswordScope {
    /// Of the role `postgres`.
    #[serde(serialize_with = "expose")]
    pub superuser: Secret,
    /// Of the role `replicator`.
    #[serde(serialize_with = "expose")]
    pub replication: Secret,
    /// Of the role `rewinder`.
    #[serde(serialize_with = "expose")]
    pub rewind: Secret,
    /// Of the role `pgbouncer`.
    #[serde(serialize_with = "expose")]
    pub pooler: Secret,
    /// Of the user `patroni` of Patroni's REST interface.
    #[serde(serialize_with = "expose")]
    pub rest: Secret,
    /// Of the user `admin` of HAProxy's statistics.
    #[serde(serialize_with = "expose")]
    pub statistics: Secret,
}

/// The database server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct PostgresqlScope {
    /// Server parameters of this node: those that follow from the machine, and the document's.
    pub parameters: BTreeMap<String, Setting>,
    /// Server parameters that must be the same on all members.
    pub shared_parameters: BTreeMap<String, Setting>,
    /// Lines of `pg_hba.conf`.
    pub hba: Vec<String>,
    /// Roles that may log in, with the owners of databases.
    pub users: Vec<UserScope>,
    /// Databases, made when the cluster is made.
    pub databases: Vec<Database>,
    /// How many huge pages of 2 MiB to reserve.
    pub huge_pages: u64,
}

/// A role that may log in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct UserScope {
    /// The role's name.
    pub name: String,
    /// The role's password, in plain text.
    #[serde(serialize_with = "expose")]
    pub password: Secret,
}

/// The connection pool in front of each database server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct PoolScope {
    /// When a server connection goes back to the pool: `session` or `transaction`.
    pub mode: PoolMode,
    /// Server connections for each pair of user and database.
    pub size: u32,
    /// Client connections in all, as far as the machine can open files for them.
    pub clients: u64,
}

/// HAProxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct HaproxyScope {
    /// Connections in all, as far as the machine can open files for them.
    pub connections: u64,
}

/// A node's member of etcd, when it starts the first time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct EtcdScope {
    /// The largest database file, in bytes.
    pub quota: u64,
    /// `new` or `existing`.
    pub state: &'static str,
    /// The token from which etcd derives the ids of a cluster that forms.
    pub token: String,
    /// The members that it starts with.
    pub members: Vec<EtcdMemberScope>,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct EtcdMemberScope {
    /// The member's name.
    pub name: String,
    /// Where it talks to other members.
    pub url: String,
}

/// The image that the node runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct ImageScope {
    /// The recipe's parameters.
    pub parameters: Map<String, Value>,
}

/// Writes a password in plain text: templates are the one place that needs it.
fn expose<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

/// Parameters that must be the same on all members, so that Patroni keeps them in etcd
/// (Patroni, `docs/patroni_configuration.rst`, «PostgreSQL parameters controlled by Patroni»).
const SHARED_PARAMETERS: [&str; 9] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "track_commit_timestamp",
    "wal_keep_size",
    "wal_level",
];

impl Scope {
    /// The scope of `node` on `machine`, in an image with these parameters.
    pub fn new(node: &Node, machine: &Machine, start: &EtcdStart, image: &serde_json::Map<String, Value>) -> Scope {
        let (spec, own) = (&node.spec, node.member());
        let keys = Keys::new(spec);
        let ipv6 = own.address.is_ipv6();
        Scope {
            cluster: ClusterScope { name: spec.cluster.clone(), identity: keys.identity() },
            node: NodeScope { name: own.name.clone(), address: own.address, index: node.index() },
            members: spec.members.iter().map(MemberScope::of).collect(),
            peers: node.peers().map(MemberScope::of).collect(),
            ipv6,
            any_address: if ipv6 { "::" } else { "0.0.0.0" },
            loopback: if ipv6 { "::1" } else { "127.0.0.1" },
            vip: VipScope::of(node, machine, &keys),
            synchronous: SynchronousScope {
                mode: spec.synchronous.mode,
                nodes: spec.synchronous.nodes.max(1),
                strict: spec.synchronous.strict,
            },
            timing: spec.timing.timing(),
            ports: PortScope::all(),
            tls: TlsScope::all(),
            passwords: PasswordScope {
                superuser: keys.superuser(),
                replication: keys.replication(),
                rewind: keys.rewind(),
                pooler: keys.pooler(),
                rest: keys.rest(),
                statistics: keys.statistics(),
            },
            postgresql: PostgresqlScope::of(spec, machine, &keys),
            pool: PoolScope {
                mode: spec.pool.mode,
                size: spec.pool.size,
                clients: machine.pool_clients(spec.pool.clients),
            },
            haproxy: HaproxyScope { connections: machine.haproxy_connections() },
            etcd: EtcdScope::of(start, &keys),
            machine: machine.clone(),
            image: ImageScope { parameters: image.clone() },
        }
    }
}

impl MemberScope {
    fn of(member: &Member) -> MemberScope {
        MemberScope {
            name: member.name.clone(),
            address: member.address,
            peer_url: peer_url(member),
            client_url: client_url(member),
            client_host: host_port(member.address, ports::ETCD_CLIENT),
        }
    }
}

impl PortScope {
    fn all() -> PortScope {
        PortScope {
            primary: ports::PRIMARY,
            replicas: ports::REPLICAS,
            synchronous: ports::SYNCHRONOUS,
            asynchronous: ports::ASYNCHRONOUS,
            statistics: ports::STATISTICS,
            postgresql: ports::POSTGRESQL,
            pgbouncer: ports::PGBOUNCER,
            patroni: ports::PATRONI,
            etcd_client: ports::ETCD_CLIENT,
            etcd_peer: ports::ETCD_PEER,
        }
    }
}

impl TlsScope {
    fn all() -> TlsScope {
        let path = |name: &str| format!("{TLS_PATH}/{name}");
        TlsScope {
            authority: path("ca.crt"),
            etcd: path("etcd.pem"),
            server: path("server.pem"),
            client: path("client.pem"),
            pooler: path("pooler.pem"),
            haproxy: path("haproxy.pem"),
        }
    }
}

impl VipScope {
    fn of(node: &Node, machine: &Machine, keys: &Keys<'_>) -> Option<VipScope> {
        let vip = node.spec.vip.as_ref()?;
        let derived = keys.bytes("vrrp/router-id");
        Some(VipScope {
            address: vip.address.address,
            cidr: vip.address,
            interface: vip.interface.as_ref().unwrap_or(&machine.interface).clone(),
            router_id: vip.router_id.unwrap_or(derived[0] % 255 + 1),
            priority: 100 - node.index(),
        })
    }
}

impl PostgresqlScope {
    fn of(spec: &ClusterSpec, machine: &Machine, keys: &Keys<'_>) -> PostgresqlScope {
        let mut parameters = machine.parameters();
        let mut shared_parameters = BTreeMap::new();
        for (name, setting) in &spec.postgresql.parameters {
            let target =
                if SHARED_PARAMETERS.contains(&name.as_str()) { &mut shared_parameters } else { &mut parameters };
            target.insert(name.clone(), as_postgresql_has_it(setting));
        }
        let mut names: Vec<&String> = spec.postgresql.users.iter().map(|user| &user.name).collect();
        for owner in spec.postgresql.databases.iter().map(|database| &database.owner) {
            if !names.contains(&owner) {
                names.push(owner);
            }
        }
        PostgresqlScope {
            parameters,
            shared_parameters,
            hba: spec.postgresql.hba.clone(),
            users: names.iter().map(|name| UserScope { name: (*name).clone(), password: keys.user(name) }).collect(),
            databases: spec.postgresql.databases.clone(),
            huge_pages: machine.huge_pages(),
        }
    }
}

/// A setting in PostgreSQL's words for switches.
fn as_postgresql_has_it(setting: &Setting) -> Setting {
    match setting {
        Setting::Switch(on) => Setting::Text(if *on { "on" } else { "off" }.to_owned()),
        other => other.clone(),
    }
}

impl EtcdScope {
    fn of(start: &EtcdStart, keys: &Keys<'_>) -> EtcdScope {
        let members = start.members.iter();
        EtcdScope {
            quota: ETCD_QUOTA,
            state: if start.existing { "existing" } else { "new" },
            token: if start.token.is_empty() { keys.identity() } else { start.token.clone() },
            members: members.map(|(name, url)| EtcdMemberScope { name: name.clone(), url: url.clone() }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    fn scope(spec: &ClusterSpec) -> Scope {
        Scope::new(&Node::new(spec.clone(), 0), &Machine::sample(), &EtcdStart::together(spec), &Map::new())
    }

    #[test]
    fn a_scope_shows_no_password() {
        let spec = samples::five();
        let (scope, keys) = (scope(&spec), Keys::new(&spec));
        let shown = format!("{scope:?}");
        let serialized = serde_json::to_string(&scope).unwrap();
        for secret in [keys.superuser(), keys.rest(), keys.user("app")] {
            assert!(!shown.contains(secret.expose()), "{shown}");
            assert!(serialized.contains(secret.expose()), "templates need it");
        }
    }

    #[test]
    fn parameters_go_where_patroni_wants_them() {
        let postgresql = scope(&samples::five()).postgresql;
        assert_eq!(postgresql.shared_parameters, [("max_connections".to_owned(), Setting::Integer(300))].into());
        assert_eq!(postgresql.parameters["work_mem"], Setting::Text("16MB".to_owned()));
        assert_eq!(postgresql.parameters["jit"], Setting::Text("off".to_owned()));
    }

    #[test]
    fn owners_become_users_once() {
        let users = scope(&samples::five()).postgresql.users;
        let names: Vec<_> = users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["reporting", "app", "second_owner"]);
    }
}
