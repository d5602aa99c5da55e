//! The ids of a cluster and its members, as etcd derives and keeps them.

use ring::digest;
use std::collections::BTreeMap;

/// The ids of one member and its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// The cluster's.
    pub cluster: u64,
    /// The member's.
    pub member: u64,
}

/// etcd's data on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EtcdData {
    /// There is nothing.
    Absent,
    /// etcd began to make them and has not written its log: it has never voted.
    Unborn,
    /// They are this member's.
    Data(Ids),
    /// They cannot be read, and why.
    Unknown(String),
}

/// The ids that etcd gives the member `name` and its cluster when it forms one of `members` (each a name and a peer URL)
/// with `token`; `None` if `name` is not one of them (etcd, `server/etcdserver/api/membership/{member,cluster}.go`,
/// `computeMemberId` and `genID`).
pub fn ids(token: &str, members: &[(String, String)], name: &str) -> Option<Ids> {
    let mut urls: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, url) in members {
        urls.entry(name).or_default().push(url);
    }
    let id = |urls: &mut Vec<&str>| {
        urls.sort_unstable();
        short(format!("{}{token}", urls.concat()).as_bytes())
    };
    let members: BTreeMap<&str, u64> = urls.iter_mut().map(|(name, urls)| (*name, id(urls))).collect();
    let mut all: Vec<u64> = members.values().copied().collect();
    all.sort_unstable();
    let bytes: Vec<u8> = all.iter().flat_map(|id| id.to_be_bytes()).collect();
    Some(Ids { cluster: short(&bytes), member: *members.get(name)? })
}

/// The first eight bytes of the SHA-1 digest.
fn short(bytes: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let first = digest.as_ref().first_chunk::<8>();
    first.map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_token_gives_other_ids() {
        let members = [1, 2, 3].map(|n| (format!("pg-{n}"), format!("https://10.0.0.1{n}:2380")));
        let (one, other) = (ids("a", &members, "pg-1").unwrap(), ids("b", &members, "pg-1").unwrap());
        assert!(one.cluster != other.cluster && one.member != other.member);
        assert_eq!(ids("a", &members, "pg-2").unwrap().cluster, one.cluster);
        assert_eq!(ids("a", &members, "pg-4"), None);
    }
}
