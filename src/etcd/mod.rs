//! A client of etcd's JSON gateway (`/v3/…`, etcd 3.4 and later), without gRPC and without an async runtime.
//!
//! [`Client`] knows several endpoints and stays with the one that answers. What can be repeated without harm (reads,
//! lease keep-alives) is repeated at the next endpoint when one does not answer, has no leader or is cut off from its
//! quorum: every request demands a leader (`hasleader`). What cannot be repeated is sent on only while no endpoint has
//! seen it. TLS material is read again when its files change, a token that has expired is renewed once per request.
//!
//! The gateway must be on: by default since etcd 3.5, by `enable-grpc-gateway: true` in a configuration file of 3.4.
//! With authentication on, a client certificate must have no Common Name; the gateway refuses the others.

mod cluster;
mod discover;
mod error;
mod kv;
mod lease;
mod transport;
mod watch;
mod wire;

pub use cluster::{Alarm, Member, Status};
pub use discover::endpoints_from_srv;
pub use error::EtcdError;
pub use kv::{Compare, KeyValue, Op, OpResult, RangeRequest, RangeResult, TxnResult};
pub use lease::Lease;
pub use transport::{Client, Settings};
pub use watch::{Event, Next, Watch};
pub use wire::Header;

/// What calls of this module return.
pub type Result<T> = std::result::Result<T, EtcdError>;
