//! Keys and values: range, put, delete, transaction.

use super::{
    Client, Header, Result,
    transport::Repeat,
    wire::{bytes, encode, number},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A key with its value and history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub value: Vec<u8>,
    /// The revision that created it.
    #[serde(deserialize_with = "number")]
    pub create_revision: u64,
    /// The revision that changed it last.
    #[serde(deserialize_with = "number")]
    pub mod_revision: u64,
    /// How often it was written since it was created.
    #[serde(deserialize_with = "number")]
    pub version: u64,
    /// The lease it hangs on; 0 is none.
    #[serde(deserialize_with = "number")]
    pub lease: i64,
}

/// What to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeRequest {
    /// The first key.
    pub key: Vec<u8>,
    /// The key before which to stop; empty reads `key` alone.
    pub end: Vec<u8>,
    /// The revision to read at; 0 is the newest.
    pub revision: u64,
    /// How many keys at most; 0 is all.
    pub limit: usize,
    /// Only counts.
    pub count_only: bool,
}

impl RangeRequest {
    pub fn key(key: impl Into<Vec<u8>>) -> RangeRequest {
        RangeRequest { key: key.into(), ..RangeRequest::default() }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> RangeRequest {
        let key = prefix.into();
        RangeRequest { end: prefix_end(&key), key, ..RangeRequest::default() }
    }

    /// The request as the gateway takes it.
    pub fn json(&self) -> Value {
        let mut json = json!({"key": encode(&self.key)});
        if !self.end.is_empty() {
            json["range_end"] = encode(&self.end).into();
        }
        if self.revision > 0 {
            json["revision"] = self.revision.to_string().into();
        }
        if self.limit > 0 {
            json["limit"] = self.limit.to_string().into();
        }
        if self.count_only {
            json["count_only"] = true.into();
        }
        json
    }
}

/// The first key after all that begin with `prefix`; `\0` (the end of all keys) if there is none.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RangeResult {
    /// Who answers, at which revision.
    pub header: Header,
    /// The keys in their order.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// How many keys the range holds.
    #[serde(deserialize_with = "number")]
    pub count: u64,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Missing(Vec<u8>),
    /// The key was last changed at this revision.
    ModRevision(Vec<u8>, u64),
    /// The key has this value.
    Value(Vec<u8>, Vec<u8>),
}

impl Compare {
    fn json(&self) -> Value {
        match self {
            Compare::Missing(key) => {
                json!({"key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"})
            }
            Compare::ModRevision(key, revision) => {
                json!({"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
            }
            Compare::Value(key, value) => {
                json!({"key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(value)})
            }
        }
    }
}

/// A step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Range(RangeRequest),
    /// Writes a key, hung on a lease unless that is 0.
    Put(Vec<u8>, Vec<u8>, i64),
    /// Deletes a key.
    Delete(Vec<u8>),
}

impl Op {
    fn json(&self) -> Value {
        match self {
            Op::Range(range) => json!({"request_range": range.json()}),
            Op::Put(key, value, lease) => json!({"request_put": put_json(key, value, *lease)}),
            Op::Delete(key) => json!({"request_delete_range": {"key": encode(key)}}),
        }
    }
}

fn put_json(key: &[u8], value: &[u8], lease: i64) -> Value {
    let mut json = json!({"key": encode(key), "value": encode(value)});
    if lease != 0 {
        json["lease"] = lease.to_string().into();
    }
    json
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OpResult {
    /// Of [`Op::Range`].
    #[serde(rename = "response_range")]
    pub range: Option<RangeResult>,
}

/// What a transaction gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TxnResult {
    /// Who answers, at which revision.
    pub header: Header,
    /// Whether all conditions held.
    pub succeeded: bool,
    /// One per step of the branch that ran.
    pub responses: Vec<OpResult>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    header: Header,
    #[serde(default, deserialize_with = "number")]
    deleted: u64,
}

impl Client {
    /// Reads keys, through the quorum.
    ///
    /// # Errors
    /// When no endpoint with a leader answers, or etcd refuses.
    pub fn range(&self, range: &RangeRequest) -> Result<RangeResult> {
        self.call("/v3/kv/range", &range.json(), Repeat::Freely)
    }

    /// As [`Client::range`], at one endpoint.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn range_at(&self, endpoint: &str, range: &RangeRequest) -> Result<RangeResult> {
        self.call_at(endpoint, "/v3/kv/range", &range.json())
    }

    /// Reads one key.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(self.range(&RangeRequest::key(key))?.kvs.pop())
    }

    /// Writes a key, hung on `lease` unless that is 0; returns the revision.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn put(&self, key: &str, value: impl AsRef<[u8]>, lease: i64) -> Result<u64> {
        let body = put_json(key.as_bytes(), value.as_ref(), lease);
        self.call::<Written>("/v3/kv/put", &body, Repeat::OnlyUnsent).map(|written| written.header.revision)
    }

    /// Deletes a range (revision and limit do not matter); returns how many keys there were.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn delete(&self, range: &RangeRequest) -> Result<u64> {
        let range = RangeRequest { revision: 0, limit: 0, count_only: false, ..range.clone() };
        self.call::<Written>("/v3/kv/deleterange", &range.json(), Repeat::Freely).map(|written| written.deleted)
    }

    /// Does `then` if all of `compare` holds, else `otherwise`, at one revision. Not repeated once etcd may have acted.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn txn(&self, compare: &[Compare], then: &[Op], otherwise: &[Op]) -> Result<TxnResult> {
        self.call("/v3/kv/txn", &txn_json(compare, then, otherwise), Repeat::OnlyUnsent)
    }

    /// Reads several ranges at one revision, at one endpoint.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn ranges_at(&self, endpoint: &str, ranges: &[RangeRequest]) -> Result<TxnResult> {
        let then: Vec<Op> = ranges.iter().cloned().map(Op::Range).collect();
        self.call_at(endpoint, "/v3/kv/txn", &txn_json(&[], &then, &[]))
    }

    /// Forgets the history before `revision`.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn compact(&self, revision: u64) -> Result<()> {
        let body = json!({"revision": revision.to_string()});
        self.call::<Value>("/v3/kv/compaction", &body, Repeat::OnlyUnsent).map(drop)
    }

    /// As [`Client::compact`]; answers when the history is gone from the database of the member that is asked.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn compact_physically(&self, revision: u64) -> Result<()> {
        let body = json!({"revision": revision.to_string(), "physical": true});
        self.call::<Value>("/v3/kv/compaction", &body, Repeat::OnlyUnsent).map(drop)
    }
}

fn txn_json(compare: &[Compare], then: &[Op], otherwise: &[Op]) -> Value {
    json!({
        "compare": compare.iter().map(Compare::json).collect::<Vec<_>>(),
        "success": then.iter().map(Op::json).collect::<Vec<_>>(),
        "failure": otherwise.iter().map(Op::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(RangeRequest::prefix("/a/").end, b"/a0");
        assert_eq!(prefix_end(&[b'a', 0xff]), b"b");
        assert_eq!(prefix_end(&[0xff]), [0]);
    }

    #[test]
    fn answers_of_the_gateway_are_read() {
        let text = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437",
            "revision":"5","raft_term":"2"},"kvs":[{"key":"L2E=","create_revision":"4","mod_revision":"5",
            "version":"2","value":"eA=="}],"count":"1"}"#;
        let result: RangeResult = serde_json::from_str(text).unwrap();
        assert_eq!((result.header.revision, result.count, result.more), (5, 1, false));
        assert_eq!(
            (&result.kvs[0].key[..], &result.kvs[0].value[..], result.kvs[0].version),
            (&b"/a"[..], &b"x"[..], 2)
        );
        let txn: TxnResult =
            serde_json::from_str(r#"{"succeeded":true,"responses":[{"response_range":{"header":{"revision":"1"}}}]}"#)
                .unwrap();
        assert!(txn.succeeded && txn.responses[0].range.is_some());
    }
}
