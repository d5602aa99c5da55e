//! What the templates of an image see: a cluster, one of its nodes, and the machine that the node is.

use super::{ClusterSpec, Member, Secret, Setting, SynchronousMode, keys::Keys};
use serde::Serialize;
use serde_json::{Map, Value, json};

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

/// What templates need to know about the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Memory that the services may use, in bytes.
    pub memory: u64,
    /// Processors.
    pub processors: u64,
    /// The file system of the databases, in bytes.
    pub disk: u64,
    /// The most files that one service may have open.
    pub open_files: u64,
    /// Whether there is a watchdog that resets the machine.
    pub watchdog: bool,
    /// The network interface with the member's address, empty if it is not known.
    pub interface: String,
}

impl Machine {
    /// A small machine, for trying templates.
    pub fn sample() -> Machine {
        Machine {
            memory: 4 << 30,
            processors: 2,
            disk: 40 << 30,
            open_files: 524_288,
            watchdog: true,
            interface: "ens3".to_owned(),
        }
    }
}

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
pub fn host_port(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// What templates see. It holds passwords: it is never printed.
#[derive(Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Scope(Value);

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scope(***)")
    }
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

const MIB: u64 = 1 << 20;

impl Scope {
    /// The scope of the member `own` (an index) of `spec` on `machine`, in an image with these parameters.
    pub fn new(
        spec: &ClusterSpec,
        own: usize,
        machine: &Machine,
        start: &EtcdStart,
        image: &serde_json::Map<String, Value>,
    ) -> Scope {
        let keys = Keys::new(spec);
        let node = &spec.members[own];
        let peers: Vec<_> = spec.members.iter().filter(|member| member.name != node.name).map(member_value).collect();
        Scope(json!({
            "cluster": {"name": spec.cluster, "identity": keys.identity()},
            "node": {"name": node.name, "address": node.address, "index": own},
            "members": spec.members.iter().map(member_value).collect::<Vec<_>>(),
            "peers": peers,
            "ipv6": node.address.is_ipv6(),
            "any_address": if node.address.is_ipv6() { "::" } else { "0.0.0.0" },
            "loopback": if node.address.is_ipv6() { "::1" } else { "127.0.0.1" },
            "vip": vip_value(spec, own, machine),
            "synchronous": synchronous_value(spec),
            "timing": spec.timing.timing(),
            "ports": ports_value(),
            "tls": {
                "authority": format!("{TLS_PATH}/ca.crt"),
                "etcd": format!("{TLS_PATH}/etcd.pem"),
                "server": format!("{TLS_PATH}/server.pem"),
                "client": format!("{TLS_PATH}/client.pem"),
                "pooler": format!("{TLS_PATH}/pooler.pem"),
                "haproxy": format!("{TLS_PATH}/haproxy.pem"),
            },
            "passwords": {
                "superuser": keys.superuser().expose(),
                "replication": keys.replication().expose(),
                "rewind": keys.rewind().expose(),
                "pooler": keys.pooler().expose(),
                "rest": keys.rest().expose(),
                "statistics": keys.statistics().expose(),
            },
            "postgresql": postgresql_value(spec, machine, &keys),
            "pool": {
                "mode": spec.pool.mode,
                "size": spec.pool.size,
                // Each client may hold a server connection too; some files are the program's own.
                "clients": u64::from(spec.pool.clients).min(machine.open_files.saturating_sub(500) / 2).max(10),
            },
            "haproxy": {
                "connections": (machine.open_files.min(65_536) / 2).saturating_sub(200).max(100),
            },
            "etcd": {
                "quota": ETCD_QUOTA,
                "state": if start.existing { "existing" } else { "new" },
                "token": if start.token.is_empty() { keys.identity() } else { start.token.clone() },
                "members": start.members.iter().map(|(name, url)| json!({"name": name, "url": url})).collect::<Vec<_>>(),
            },
            "machine": machine,
            "image": {"parameters": image},
        }))
    }
}

fn member_value(member: &Member) -> Value {
    json!({
        "name": member.name,
        "address": member.address,
        "peer_url": peer_url(member),
        "client_url": client_url(member),
        "client_host": host_port(member.address, ports::ETCD_CLIENT),
    })
}

fn ports_value() -> Value {
    json!({
        "primary": ports::PRIMARY,
        "replicas": ports::REPLICAS,
        "synchronous": ports::SYNCHRONOUS,
        "asynchronous": ports::ASYNCHRONOUS,
        "statistics": ports::STATISTICS,
        "postgresql": ports::POSTGRESQL,
        "pgbouncer": ports::PGBOUNCER,
        "patroni": ports::PATRONI,
        "etcd_client": ports::ETCD_CLIENT,
        "etcd_peer": ports::ETCD_PEER,
    })
}

fn vip_value(spec: &ClusterSpec, own: usize, machine: &Machine) -> Value {
    let Some(vip) = &spec.vip else { return Value::Null };
    let derived = Keys::new(spec).bytes("vrrp/router-id");
    json!({
        "address": vip.address.address,
        "cidr": vip.address,
        "interface": vip.interface.as_ref().unwrap_or(&machine.interface),
        "router_id": vip.router_id.unwrap_or(derived[0] % 255 + 1),
        // Different for each member, so that two that start together agree at once on who holds the address.
        "priority": 100 - own,
    })
}

fn synchronous_value(spec: &ClusterSpec) -> Value {
    let mode = match spec.synchronous.mode {
        SynchronousMode::Off => "off",
        SynchronousMode::On => "on",
        SynchronousMode::Quorum => "quorum",
    };
    json!({"mode": mode, "nodes": spec.synchronous.nodes.max(1), "strict": spec.synchronous.strict})
}

fn postgresql_value(spec: &ClusterSpec, machine: &Machine, keys: &Keys<'_>) -> Value {
    let mut local = tuning(machine);
    let mut shared = Map::new();
    for (name, setting) in &spec.postgresql.parameters {
        let target = if SHARED_PARAMETERS.contains(&name.as_str()) { &mut shared } else { &mut local };
        target.insert(name.clone(), setting_value(setting));
    }
    let text = |name: &str, password: Secret| json!({"name": name, "password": password.expose()});
    let mut users: Vec<Value> =
        spec.postgresql.users.iter().map(|user| text(&user.name, keys.user(&user.name))).collect();
    let mut named: Vec<&str> = spec.postgresql.users.iter().map(|user| user.name.as_str()).collect();
    for owner in spec.postgresql.databases.iter().map(|database| database.owner.as_str()) {
        if !named.contains(&owner) {
            named.push(owner);
            users.push(text(owner, keys.user(owner)));
        }
    }
    json!({
        "parameters": local,
        "shared_parameters": shared,
        "hba": spec.postgresql.hba,
        "users": users,
        "databases": spec.postgresql.databases,
        "huge_pages": huge_pages(machine),
    })
}

fn setting_value(setting: &Setting) -> Value {
    match setting {
        Setting::Switch(on) => json!(if *on { "on" } else { "off" }),
        Setting::Integer(number) => json!(number),
        Setting::Number(number) => json!(number),
        Setting::Text(text) => json!(text),
    }
}

/// The parameters that follow from the size of the machine.
fn tuning(machine: &Machine) -> Map<String, Value> {
    let memory = machine.memory / MIB;
    let disk = machine.disk / MIB;
    let size = |mib: u64| json!(format!("{mib}MB"));
    let workers = machine.processors.clamp(2, 16);
    [
        ("shared_buffers", size(shared_buffers(machine))),
        ("effective_cache_size", size((memory * 3 / 4).max(64))),
        ("maintenance_work_mem", size((memory / 16).clamp(32, 2048))),
        ("work_mem", size((memory / 256).clamp(4, 64))),
        ("max_wal_size", size((disk / 20).clamp(256, 16_384))),
        ("min_wal_size", size((disk / 80).clamp(80, 4096))),
        // A replica that stays away must not fill the primary's disk: beyond this it is cloned anew.
        ("max_slot_wal_keep_size", size((disk / 5).clamp(512, 65_536))),
        ("max_parallel_workers", json!(workers)),
        ("max_parallel_workers_per_gather", json!((workers / 2).clamp(1, 4))),
        ("max_parallel_maintenance_workers", json!((workers / 2).clamp(1, 4))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// A quarter of the memory, in MiB.
fn shared_buffers(machine: &Machine) -> u64 {
    (machine.memory / MIB / 4).clamp(32, 32_768)
}

/// Huge pages of 2 MiB to set aside: worth it from 8 GiB of shared buffers on, with a tenth for the rest of shared memory.
fn huge_pages(machine: &Machine) -> u64 {
    match shared_buffers(machine) {
        small if small < 8192 => 0,
        buffers => buffers * 11 / 10 / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    fn scope(spec: &ClusterSpec, machine: &Machine) -> Value {
        Scope::new(spec, 0, machine, &EtcdStart::together(spec), &Map::new()).0
    }

    #[test]
    fn a_scope_shows_itself_to_nobody() {
        let spec = samples::three();
        let scope = Scope::new(&spec, 0, &Machine::sample(), &EtcdStart::together(&spec), &Map::new());
        assert_eq!(format!("{scope:?}"), "Scope(***)");
    }

    #[test]
    fn parameters_go_where_patroni_wants_them() {
        let value = scope(&samples::five(), &Machine::sample());
        assert_eq!(value["postgresql"]["shared_parameters"], json!({"max_connections": 300}));
        assert_eq!(value["postgresql"]["parameters"]["work_mem"], "16MB");
        assert_eq!(value["postgresql"]["parameters"]["jit"], "off");
    }

    #[test]
    fn memory_follows_the_machine() {
        let large = Machine { memory: 64 << 30, open_files: 20_000, ..Machine::sample() };
        let value = scope(&samples::three(), &large);
        assert_eq!(value["postgresql"]["parameters"]["shared_buffers"], "16384MB");
        assert_eq!(value["postgresql"]["huge_pages"], 9011);
        assert_eq!(value["haproxy"]["connections"], 9800);
        assert_eq!(scope(&samples::three(), &Machine::sample())["postgresql"]["huge_pages"], 0);
    }

    #[test]
    fn owners_become_users_once() {
        let value = scope(&samples::five(), &Machine::sample());
        let names: Vec<_> = value["postgresql"]["users"].as_array().unwrap().iter().map(|user| &user["name"]).collect();
        assert_eq!(names, ["reporting", "app", "second_owner"]);
    }
}
