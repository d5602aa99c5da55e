//! One node at a time in the cluster: a key in etcd with a lease, so that it ends with its holder.

use super::World;
use crate::etcd::{Client, Compare, EtcdError, KeyValue, Op};

/// How long a turn lasts without being kept, in seconds. A concern keeps it at each look.
const TTL: i64 = 120;

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nobody's.
    Free,
    /// Ours, on this lease.
    Ours(i64),
    /// Another node's.
    Taken(String),
}

fn whose(key: Option<&KeyValue>, me: &str) -> Turn {
    match key {
        None => Turn::Free,
        Some(key) if key.value == me.as_bytes() => Turn::Ours(key.lease),
        Some(key) => Turn::Taken(String::from_utf8_lossy(&key.value).into_owned()),
    }
}

/// The turn for the work `name`, such as `repair`.
#[derive(Debug)]
pub struct Turns<'a> {
    client: &'a Client,
    key: String,
    me: &'a str,
}

impl<'a> Turns<'a> {
    /// This node's view of it.
    pub fn of(world: &'a World, name: &str) -> Turns<'a> {
        Turns { client: &world.etcd, key: world.key(name), me: &world.me().name }
    }

    /// The turn of the node `me` for the key `key`.
    pub fn new(client: &'a Client, key: &str, me: &'a str) -> Turns<'a> {
        Turns { client, key: key.to_owned(), me }
    }

    /// Whose it is.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn look(&self) -> Result<Turn, EtcdError> {
        Ok(whose(self.client.get(&self.key)?.as_ref(), self.me))
    }

    /// Takes it if it is free, and keeps it if it is ours; returns whose it is then.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn take(&self) -> Result<Turn, EtcdError> {
        match self.look()? {
            Turn::Ours(lease) => {
                if self.client.lease_keep_alive(lease)?.ttl > 0 {
                    Ok(Turn::Ours(lease))
                } else {
                    self.look()
                }
            }
            Turn::Free => {
                let lease = self.client.lease_grant(TTL)?;
                let key = self.key.as_bytes().to_vec();
                let put = Op::Put(key.clone(), self.me.into(), lease.id);
                let done = self.client.txn(&[Compare::Missing(key)], &[put], &[])?;
                if done.succeeded {
                    return Ok(Turn::Ours(lease.id));
                }
                let _ = self.client.lease_revoke(lease.id);
                self.look()
            }
            taken => Ok(taken),
        }
    }

    /// Gives it back, if it is ours.
    ///
    /// # Errors
    /// When etcd does not answer; it then ends by itself.
    pub fn give_back(&self) -> Result<(), EtcdError> {
        match self.look()? {
            Turn::Ours(lease) => self.client.lease_revoke(lease),
            _ => Ok(()),
        }
    }
}
