//! `pgha-node recover`: the way back when a cluster does not come up again by itself.
pub mod plan;
pub mod timeline;
