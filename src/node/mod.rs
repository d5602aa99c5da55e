//! The guest program: makes one booted machine a member of the cluster.

pub mod cli;
pub mod clock;
pub mod confd;
pub mod dns;
pub mod etcd;
pub mod log;
pub mod tls;
