//! The guest program: makes one booted machine a member of the cluster.
//!
//! A module imports from rows below its own only; `tests/it/layers.rs` reads this table and proves it.
//!
//! ```text
//! cli model_check
//! check claim leave renew status
//! init
//! agent
//! this_node
//! form leader
//! bootstrap machine recover
//! order peers
//! join state
//! aside first pki promise
//! apply begun database etcd_data identity lock metadata progress units
//! ```

pub mod agent;
pub mod apply;
pub mod aside;
pub mod begun;
pub mod bootstrap;
pub mod check;
pub mod claim;
pub mod cli;
pub mod database;
pub mod etcd_data;
pub mod first;
pub mod form;
pub mod identity;
pub mod init;
pub mod join;
pub mod leader;
pub mod leave;
pub mod lock;
pub mod machine;
pub mod metadata;
#[cfg(test)]
mod model_check;
pub mod order;
pub mod peers;
pub mod pki;
pub mod progress;
pub mod promise;
pub mod recover;
pub mod renew;
pub mod state;
pub mod status;
pub mod this_node;
pub mod units;
