//! The guest program: makes one booted machine a member of the cluster.

pub mod agent;
pub mod apply;
pub mod bootstrap;
pub mod check;
pub mod cli;
pub mod clock;
pub mod confd;
pub mod dns;
pub mod etcd;
pub mod identity;
pub mod init;
pub mod join;
pub mod leader;
pub mod leave;
pub mod log;
pub mod machine;
pub mod metadata;
pub mod peers;
pub mod pki;
pub mod progress;
pub mod renew;
pub mod state;
pub mod status;
pub mod tls;
pub mod units;
