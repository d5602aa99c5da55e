//! Sample clusters, with which every template is rendered in tests and builds: one, three and five nodes, with and
//! without each optional part.

use super::{
    AuthoritySpec, ClusterSpec, Database, Login, Member, PasswordSpec, PoolMode, PoolSpec, PostgresqlSpec, Secret,
    Setting, Synchronous, SynchronousMode, Vip,
    timing::{Preset, TimingSpec},
};

fn member(number: u8) -> Member {
    Member { name: format!("pg-{number}"), address: [10, 0, 0, 10 + number].into(), instance_id: None }
}

fn cluster(name: &str, nodes: u8) -> ClusterSpec {
    ClusterSpec {
        schema: 1,
        cluster: name.to_owned(),
        // 32 bytes of 7: a sample's secret must never look like a real one.
        secret: Secret::new("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="),
        members: (1..=nodes).map(member).collect(),
        vip: None,
        synchronous: Synchronous::default(),
        timing: TimingSpec::default(),
        postgresql: PostgresqlSpec::default(),
        pool: PoolSpec::default(),
        passwords: PasswordSpec::default(),
        authority: None::<AuthoritySpec>,
    }
}

/// One node, with nothing that can be left out.
pub fn one() -> ClusterSpec {
    ClusterSpec {
        synchronous: Synchronous { mode: SynchronousMode::Off, ..Synchronous::default() },
        ..cluster("solo", 1)
    }
}

/// Three nodes with a virtual address and a database: what most people run.
pub fn three() -> ClusterSpec {
    ClusterSpec {
        vip: Some(Vip {
            address: "10.0.0.10/24".parse().unwrap_or_else(|_| unreachable!()),
            interface: None,
            router_id: None,
        }),
        timing: TimingSpec::preset(Preset::Fast),
        postgresql: PostgresqlSpec {
            databases: vec![Database { name: "app".into(), owner: "app".into() }],
            ..PostgresqlSpec::default()
        },
        ..cluster("demo", 3)
    }
}

/// Five nodes with everything that can be said.
pub fn five() -> ClusterSpec {
    ClusterSpec {
        vip: Some(Vip {
            address: "10.0.0.10/24".parse().unwrap_or_else(|_| unreachable!()),
            interface: Some("eth0".into()),
            router_id: Some(77),
        }),
        synchronous: Synchronous { mode: SynchronousMode::Quorum, nodes: 2, strict: true },
        timing: TimingSpec::preset(Preset::Wide),
        postgresql: PostgresqlSpec {
            parameters: [
                ("max_connections".to_owned(), Setting::Integer(300)),
                ("work_mem".to_owned(), Setting::Text("16MB".into())),
                ("random_page_cost".to_owned(), Setting::Number(1.5)),
                ("jit".to_owned(), Setting::Switch(false)),
                ("application_name".to_owned(), Setting::Text("it's \"quoted\": # here".into())),
            ]
            .into(),
            hba: vec!["hostssl all reporting 192.0.2.0/24 scram-sha-256".into()],
            users: vec![
                Login { name: "reporting".into(), password: Some(Secret::new("it-is-a-sample-1")) },
                Login { name: "app".into(), password: None },
            ],
            databases: vec![
                Database { name: "app".into(), owner: "app".into() },
                Database { name: "second".into(), owner: "second_owner".into() },
            ],
        },
        pool: PoolSpec { mode: PoolMode::Transaction, size: 20, clients: 5000 },
        ..cluster("large", 5)
    }
}

/// All of them.
pub fn all() -> [ClusterSpec; 3] {
    [one(), three(), five()]
}
