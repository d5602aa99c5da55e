//! `pgha-node recover`: recovers a cluster that does not start again by itself.
//!
//! Where most members of etcd are gone for good, or all of its data, nothing may go on by itself: the others may only be
//! away. A person says from which node the cluster goes on. [`look`] gathers what each node has, [`plan`] decides by pure
//! functions from which node it may and should, [`act`] carries an order out in steps that may be cut off anywhere, and
//! [`returning`] looks at databases that come back later. `overlays/node/RECOVERY.md` is the manual.

pub mod account;
pub mod act;
pub mod branch;
pub mod incarnation;
pub mod keys;
#[cfg(test)]
mod lab;
pub mod lineage;
pub mod look;
pub mod order;
pub mod plan;
pub mod returning;
pub mod rival;
pub mod show;
pub mod timeline;
pub mod wal;
pub mod window;
