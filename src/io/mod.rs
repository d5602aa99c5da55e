//! Streams and sockets.

pub mod socket;
