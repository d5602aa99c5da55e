//! Members, leadership, authentication.

use super::{Client, Header, Result, transport::Repeat, wire::number};
use serde::Deserialize;
use serde_json::{Value, json};

/// A member of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: u64,
    /// Its name; empty until it has started.
    pub name: String,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
    /// Whether it has no vote yet.
    #[serde(rename = "isLearner")]
    pub is_learner: bool,
}

/// The state of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Who answers, at which revision.
    pub header: Header,
    /// etcd's version.
    pub version: String,
    /// Bytes of the database file.
    #[serde(rename = "dbSize", deserialize_with = "number")]
    pub db_size: u64,
    /// Bytes of it that hold something; the rest is given back by defragmentation alone.
    #[serde(rename = "dbSizeInUse", deserialize_with = "number")]
    pub db_size_in_use: u64,
    /// The leader's id; 0 if this member does not know one.
    #[serde(deserialize_with = "number")]
    pub leader: u64,
    /// The index that this member has reached.
    #[serde(rename = "raftIndex", deserialize_with = "number")]
    pub raft_index: u64,
    /// What is wrong with it, such as `NOSPACE`.
    pub errors: Vec<String>,
}

/// Why a member refuses work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Alarm {
    /// The member that raised it; 0 is all.
    #[serde(rename = "memberID", deserialize_with = "number")]
    pub member: u64,
    /// `NOSPACE`: the quota is used up, and all members refuse what would write. `CORRUPT`: members differ.
    #[serde(rename = "alarm")]
    pub kind: String,
}

#[derive(Deserialize)]
struct Members {
    #[serde(default)]
    header: Header,
    #[serde(default)]
    members: Vec<Member>,
}

impl Client {
    /// All members, as a quorum knows them: etcd 3.5 would otherwise answer with what one member knew last.
    ///
    /// # Errors
    /// When no endpoint with a quorum answers, or etcd refuses.
    pub fn members(&self) -> Result<Vec<Member>> {
        self.cluster().map(|(_, members)| members)
    }

    /// The cluster's id and all members, as a quorum knows them.
    ///
    /// # Errors
    /// As [`Client::members`]; also when the endpoint that answers has no quorum.
    pub fn cluster(&self) -> Result<(u64, Vec<Member>)> {
        let body = json!({"linearizable": true});
        let list = self.call::<Members>("/v3/cluster/member/list", &body, Repeat::Freely)?;
        Ok((list.header.cluster_id, list.members))
    }

    /// Adds a member that has not started yet; returns it.
    ///
    /// # Errors
    /// As [`Client::members`]; not repeated once etcd may have acted.
    pub fn member_add(&self, peer_urls: &[String], is_learner: bool) -> Result<Member> {
        #[derive(Deserialize)]
        struct Added {
            #[serde(default)]
            member: Member,
        }
        let body = json!({"peerURLs": peer_urls, "isLearner": is_learner});
        self.call::<Added>("/v3/cluster/member/add", &body, Repeat::OnlyUnsent).map(|added| added.member)
    }

    /// Removes a member.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub fn member_remove(&self, id: u64) -> Result<()> {
        self.call::<Value>("/v3/cluster/member/remove", &json!({"ID": id.to_string()}), Repeat::OnlyUnsent).map(drop)
    }

    /// Changes where a member's peers reach it.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub fn member_update(&self, id: u64, peer_urls: &[String]) -> Result<()> {
        let body = json!({"ID": id.to_string(), "peerURLs": peer_urls});
        self.call::<Value>("/v3/cluster/member/update", &body, Repeat::OnlyUnsent).map(drop)
    }

    /// Gives a learner its vote.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub fn member_promote(&self, id: u64) -> Result<()> {
        self.call::<Value>("/v3/cluster/member/promote", &json!({"ID": id.to_string()}), Repeat::OnlyUnsent).map(drop)
    }

    /// Makes `target` the leader; `endpoint` must be the present leader's.
    ///
    /// # Errors
    /// When it is not, or does not answer.
    pub fn move_leader(&self, endpoint: &str, target: u64) -> Result<()> {
        let body = json!({"targetID": target.to_string()});
        self.call_at::<Value>(endpoint, "/v3/maintenance/transfer-leadership", &body).map(drop)
    }

    /// The state of the member at `endpoint`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self, endpoint: &str) -> Result<Status> {
        self.call_at(endpoint, "/v3/maintenance/status", &json!({}))
    }

    /// The alarms that are raised.
    ///
    /// # Errors
    /// As [`Client::members`].
    pub fn alarms(&self) -> Result<Vec<Alarm>> {
        self.alarm("GET", &Alarm { member: 0, kind: "NONE".to_owned() })
    }

    /// Lowers an alarm; the members raise it again if its cause is still there.
    ///
    /// # Errors
    /// As [`Client::members`].
    pub fn disarm(&self, alarm: &Alarm) -> Result<()> {
        self.alarm("DEACTIVATE", alarm).map(drop)
    }

    fn alarm(&self, action: &str, alarm: &Alarm) -> Result<Vec<Alarm>> {
        #[derive(Deserialize)]
        struct Raised {
            #[serde(default)]
            alarms: Vec<Alarm>,
        }
        let body = json!({"action": action, "memberID": alarm.member.to_string(), "alarm": alarm.kind});
        self.call::<Raised>("/v3/maintenance/alarm", &body, Repeat::Freely).map(|raised| raised.alarms)
    }

    /// Gives the unused part of the database file of the member at `endpoint` back to the file system. The member serves
    /// nothing meanwhile.
    ///
    /// # Errors
    /// When it does not answer within the client's time for a request; it may be at work then.
    pub fn defragment(&self, endpoint: &str) -> Result<()> {
        self.call_at::<Value>(endpoint, "/v3/maintenance/defragment", &json!({})).map(drop)
    }

    /// Adds a user, with a password and a role.
    ///
    /// # Errors
    /// As [`Client::members`].
    pub fn user_add(&self, name: &str, password: &str, role: &str) -> Result<()> {
        let add = json!({"name": name, "password": password});
        self.call::<Value>("/v3/auth/user/add", &add, Repeat::OnlyUnsent)?;
        self.call::<Value>("/v3/auth/user/grant", &json!({"user": name, "role": role}), Repeat::OnlyUnsent).map(drop)
    }

    /// Adds a role that may read and write all keys that begin with `prefix`.
    ///
    /// # Errors
    /// As [`Client::members`].
    pub fn role_add(&self, name: &str, prefix: &str) -> Result<()> {
        self.call::<Value>("/v3/auth/role/add", &json!({"name": name}), Repeat::OnlyUnsent)?;
        let mut range = super::RangeRequest::prefix(prefix).json();
        range["permType"] = "READWRITE".into();
        self.call::<Value>("/v3/auth/role/grant", &json!({"name": name, "perm": range}), Repeat::OnlyUnsent).map(drop)
    }

    /// Turns authentication on; the user `root` with the role `root` must exist.
    ///
    /// # Errors
    /// As [`Client::members`].
    pub fn auth_enable(&self) -> Result<()> {
        self.call::<Value>("/v3/auth/enable", &json!({}), Repeat::OnlyUnsent).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_read() {
        // etcd leaves out what is 0.
        let alarms: Vec<Alarm> =
            serde_json::from_str(r#"[{"alarm":"NOSPACE"},{"memberID":"7","alarm":"CORRUPT"}]"#).unwrap();
        assert_eq!((alarms[0].member, alarms[0].kind.as_str()), (0, "NOSPACE"));
        assert_eq!((alarms[1].member, alarms[1].kind.as_str()), (7, "CORRUPT"));
    }

    #[test]
    fn members_and_status_are_read() {
        let text = r#"{"members":[{"ID":"10276657743932975437","name":"pg-1","peerURLs":["https://10.0.0.11:2380"],
            "clientURLs":["https://10.0.0.11:2379"]},{"ID":"7","peerURLs":["https://10.0.0.12:2380"],"isLearner":true}]}"#;
        let members: Members = serde_json::from_str(text).unwrap();
        assert_eq!((members.members[0].id, members.members[0].is_learner), (10276657743932975437, false));
        assert!(members.members[1].name.is_empty() && members.members[1].is_learner);
        let status: Status = serde_json::from_str(r#"{"version":"3.5.16","dbSize":"20480","leader":"7"}"#).unwrap();
        assert_eq!((status.leader, status.db_size), (7, 20480));
    }
}
