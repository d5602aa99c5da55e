//! Leases: keys that vanish unless they are kept alive.

use super::{Client, Result, transport::Repeat, wire::number};
use serde::Deserialize;
use serde_json::{Value, json};

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Lease {
    /// What keys hang on.
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: i64,
    /// Seconds it lasts without being kept alive; 0 if it has ended.
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    pub ttl: i64,
}

impl Client {
    /// Grants a lease of `ttl` seconds.
    ///
    /// # Errors
    /// When no endpoint with a leader answers, or etcd refuses.
    pub fn lease_grant(&self, ttl: i64) -> Result<Lease> {
        self.call("/v3/lease/grant", &json!({"TTL": ttl.to_string()}), Repeat::Freely)
    }

    /// Keeps a lease alive; a lease that has ended comes back with a TTL of 0.
    ///
    /// # Errors
    /// As [`Client::lease_grant`].
    pub fn lease_keep_alive(&self, id: i64) -> Result<Lease> {
        #[derive(Deserialize)]
        struct Streamed {
            result: Lease,
        }
        let body = json!({"ID": id.to_string()});
        self.call::<Streamed>("/v3/lease/keepalive", &body, Repeat::Freely).map(|streamed| streamed.result)
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As [`Client::lease_grant`], and when there is no such lease.
    pub fn lease_revoke(&self, id: i64) -> Result<()> {
        self.call::<Value>("/v3/lease/revoke", &json!({"ID": id.to_string()}), Repeat::OnlyUnsent).map(drop)
    }
}
