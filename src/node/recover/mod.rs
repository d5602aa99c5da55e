//! `pgha-node recover`: the way back when a cluster does not come up again by itself.

pub mod account;
pub mod branch;
pub mod incarnation;
pub mod keys;
#[cfg(test)]
mod lab;
pub mod plan;
pub mod timeline;
pub mod wal;
