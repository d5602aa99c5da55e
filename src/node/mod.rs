//! The guest program: makes one booted machine a member of the cluster.

pub mod cli;
