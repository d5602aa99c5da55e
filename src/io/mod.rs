//! Streams: what goes over sockets.

pub mod socket;
