//! What is wrong with a cluster document beyond its shape: all problems at once, each with its place and its reason.

use super::{
    ClusterSpec, Secret, SynchronousMode,
    keys::{SECRET_BYTES, decode_secret},
};
use std::collections::BTreeMap;

/// One thing to say about a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: a JSON pointer (RFC 6901), such as `/members/1/address`.
    pub pointer: String,
    /// Whether the document must not be used.
    pub fatal: bool,
    /// What is wrong.
    pub message: String,
}

/// Roles that the project makes for itself.
const OWN_ROLES: [&str; 4] = ["postgres", "replicator", "rewinder", "pgbouncer"];

/// Server parameters that follow from the design; a user's value would break a promise.
const OWN_PARAMETERS: [&str; 20] = [
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_log_hints",
];

/// The most members that etcd serves well, each of them voting.
const MOST_MEMBERS: usize = 9;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn refuse(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(Finding { pointer: pointer.into(), fatal: true, message: message.into() });
    }

    fn warn(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(Finding { pointer: pointer.into(), fatal: false, message: message.into() });
    }
}

impl ClusterSpec {
    /// Everything that is wrong or doubtful; the document may be used if nothing found is fatal.
    pub fn check(&self) -> Vec<Finding> {
        let mut findings = Findings::default();
        if self.schema != 1 {
            findings
                .refuse("/schema", format!("schema {} is not known here; this program reads schema 1", self.schema));
        }
        if let Err(reason) = label(&self.cluster) {
            findings.refuse("/cluster", format!("the cluster's name `{}` {reason}", self.cluster));
        }
        match decode_secret(&self.secret) {
            None => findings.refuse("/secret", "the secret is not base64"),
            Some(bytes) if bytes.len() < SECRET_BYTES => findings
                .refuse("/secret", format!("the secret has {} bytes; {SECRET_BYTES} or more are needed", bytes.len())),
            Some(_) => {}
        }
        self.check_members(&mut findings);
        self.check_vip(&mut findings);
        self.check_synchronous(&mut findings);
        for (key, reason) in self.timing.timing().unsafe_combinations() {
            findings.refuse(format!("/timing/{key}"), reason);
        }
        self.check_postgresql(&mut findings);
        self.check_pool(&mut findings);
        self.check_provided(&mut findings);
        findings.0
    }

    fn check_members(&self, findings: &mut Findings) {
        for (index, member) in self.members.iter().enumerate() {
            if let Err(reason) = label(&member.name) {
                findings.refuse(format!("/members/{index}/name"), format!("the name `{}` {reason}", member.name));
            }
            let address = member.address;
            let multicast = address.is_multicast() || matches!(address, std::net::IpAddr::V4(v4) if v4.is_broadcast());
            if address.is_unspecified() || multicast || (address.is_loopback() && self.members.len() > 1) {
                findings.refuse(
                    format!("/members/{index}/address"),
                    format!("other nodes cannot reach `{}` at {address}", member.name),
                );
            }
        }
        self.twice(findings, "name", "name", |member| Some(member.name.clone()));
        self.twice(findings, "address", "address", |member| Some(member.address.to_string()));
        self.twice(findings, "instance-id", "instance id", |member| member.instance_id.clone());
        if self.members.iter().any(|member| member.address.is_ipv4() != self.members[0].address.is_ipv4()) {
            findings.refuse("/members", "all members must have IPv4 addresses, or all IPv6 addresses");
        }
        match self.members.len() {
            0 => findings.refuse("/members", "a cluster has one member at least"),
            1 => findings.warn("/members", "one member alone survives no failure: good for a trial only"),
            count if count > MOST_MEMBERS => findings.refuse(
                "/members",
                format!("{count} members are more than the {MOST_MEMBERS} among which etcd finds a majority quickly"),
            ),
            count if count % 2 == 0 => findings.warn(
                "/members",
                format!(
                    "{count} members survive the loss of {}, no more than {} would: an odd number is better",
                    (count - 1) / 2,
                    count - 1
                ),
            ),
            _ => {}
        }
    }

    /// Refuses values that two members share.
    fn twice(&self, findings: &mut Findings, key: &str, words: &str, value: impl Fn(&super::Member) -> Option<String>) {
        let mut seen = BTreeMap::new();
        for (index, member) in self.members.iter().enumerate() {
            let Some(value) = value(member) else { continue };
            if let Some(first) = seen.insert(value.clone(), &member.name) {
                findings.refuse(
                    format!("/members/{index}/{key}"),
                    format!("the {words} {value} is also that of the member `{first}`"),
                );
            }
        }
    }

    fn check_vip(&self, findings: &mut Findings) {
        let Some(vip) = &self.vip else { return };
        let network = vip.address;
        for member in &self.members {
            if member.address == network.address {
                findings.refuse("/vip/address", format!("{} is the member `{}`'s own", network.address, member.name));
            } else if !network.contains(member.address) {
                findings.refuse(
                    "/vip/address",
                    format!("the member `{}` at {} is outside the network {network}", member.name, member.address),
                );
            }
        }
        if network.address.is_unspecified() || network.address.is_loopback() || network.address.is_multicast() {
            findings.refuse("/vip/address", format!("{} is not an address that clients can reach", network.address));
        }
        if vip.router_id == Some(0) {
            findings.refuse("/vip/router-id", "a VRRP group's number is 1 to 255");
        }
        if let Some(interface) = &vip.interface
            && (interface.is_empty()
                || interface.len() > 15
                || !interface.chars().all(|c| c.is_ascii_graphic() && c != '/'))
        {
            findings.refuse("/vip/interface", format!("`{interface}` is not a network interface's name"));
        }
    }

    fn check_synchronous(&self, findings: &mut Findings) {
        if self.synchronous.mode == SynchronousMode::Off {
            return;
        }
        let replicas = self.members.len().saturating_sub(1);
        let nodes = self.synchronous.nodes as usize;
        if nodes == 0 {
            findings.refuse("/synchronous/nodes", "commits that wait need one replica at least to wait for");
        } else if nodes > replicas && self.synchronous.strict {
            findings.refuse(
                "/synchronous/nodes",
                format!("commits would wait for {nodes} replicas for ever: there are {replicas}"),
            );
        } else if nodes > replicas && replicas > 0 {
            findings.warn("/synchronous/nodes", format!("there are {replicas} replicas, fewer than {nodes}"));
        } else if nodes == replicas && self.synchronous.strict {
            findings.warn("/synchronous/nodes", "with `strict`, writes stop when any replica is lost");
        }
    }

    fn check_postgresql(&self, findings: &mut Findings) {
        let spec = &self.postgresql;
        for (name, value) in &spec.parameters {
            let pointer = format!("/postgresql/parameters/{name}");
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.';
            if name.is_empty() || !name.chars().all(known) {
                findings.refuse(pointer, format!("`{name}` is not a server parameter's name"));
            } else if OWN_PARAMETERS.contains(&name.as_str()) {
                findings.refuse(pointer, format!("`{name}` is set by the cluster itself"));
            } else if matches!(value, super::Setting::Text(text) if text.contains(char::is_control)) {
                findings.refuse(pointer, format!("the value of `{name}` has a control character"));
            }
        }
        for (index, line) in spec.hba.iter().enumerate() {
            let kinds = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap_or_default();
            let least = if kind == "local" { 3 } else { 4 };
            if !kinds.contains(&kind) || words.count() < least || line.contains(char::is_control) {
                findings.refuse(format!("/postgresql/hba/{index}"), format!("`{line}` is not a line of pg_hba.conf"));
            }
        }
        let mut users = BTreeMap::new();
        for (index, user) in spec.users.iter().enumerate() {
            let pointer = format!("/postgresql/users/{index}");
            if let Err(reason) = role(&user.name) {
                findings.refuse(format!("{pointer}/name"), format!("the role `{}` {reason}", user.name));
            }
            if users.insert(&user.name, ()).is_some() {
                findings.refuse(format!("{pointer}/name"), format!("the role `{}` is listed twice", user.name));
            }
            if let Some(password) = &user.password {
                check_password(findings, &format!("{pointer}/password"), password);
            }
        }
        let mut databases = BTreeMap::new();
        for (index, database) in spec.databases.iter().enumerate() {
            let pointer = format!("/postgresql/databases/{index}");
            if let Err(reason) = identifier(&database.name) {
                findings.refuse(format!("{pointer}/name"), format!("the database `{}` {reason}", database.name));
            } else if ["postgres", "template0", "template1", "pgbouncer"].contains(&database.name.as_str()) {
                findings.refuse(format!("{pointer}/name"), format!("the database `{}` is taken", database.name));
            }
            if databases.insert(&database.name, ()).is_some() {
                findings.refuse(format!("{pointer}/name"), format!("the database `{}` is listed twice", database.name));
            }
            if let Err(reason) = role(&database.owner) {
                findings.refuse(format!("{pointer}/owner"), format!("the role `{}` {reason}", database.owner));
            }
        }
    }

    fn check_pool(&self, findings: &mut Findings) {
        for (key, value, most) in [("size", self.pool.size, 10_000), ("clients", self.pool.clients, 1_000_000)] {
            if value == 0 || value > most {
                findings.refuse(format!("/pool/{key}"), format!("{value} is not between 1 and {most}"));
            }
        }
    }

    fn check_provided(&self, findings: &mut Findings) {
        let given = &self.passwords;
        for (key, password) in [
            ("superuser", &given.superuser),
            ("replication", &given.replication),
            ("rewind", &given.rewind),
            ("pooler", &given.pooler),
            ("rest", &given.rest),
            ("statistics", &given.statistics),
        ] {
            if let Some(password) = password {
                check_password(findings, &format!("/passwords/{key}"), password);
            }
        }
        if let Some(authority) = &self.authority {
            if !authority.certificate.contains("-----BEGIN CERTIFICATE-----") {
                findings.refuse("/authority/certificate", "there is no certificate in PEM here");
            }
            if !authority.key.expose().contains("-----BEGIN PRIVATE KEY-----") {
                findings.refuse("/authority/key", "there is no private key in PEM (PKCS #8) here");
            }
        }
    }
}

/// Refuses a password that some configuration file's quoting could change, or that is quickly guessed.
fn check_password(findings: &mut Findings, pointer: &str, password: &Secret) {
    let text = password.expose();
    if text.len() < 12 {
        findings.refuse(pointer, "the password has fewer than 12 characters");
    }
    if !text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\$#%{}`".contains(c)) {
        findings.refuse(
            pointer,
            "the password has a character other than ASCII letters, digits and ! & ( ) * + , - . / : ; < = > ? @ [ ] ^ _ | ~",
        );
    }
}

/// Whether `name` can be a host's name (RFC 1123).
fn label(name: &str) -> Result<(), &'static str> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() {
        Err("is empty")
    } else if name.len() > 63 {
        Err("has more than 63 characters")
    } else if !name.chars().all(|c| edge(c) || c == '-') || !name.starts_with(edge) || !name.ends_with(edge) {
        Err("is not of lower-case letters, digits and hyphens between them")
    } else {
        Ok(())
    }
}

/// Whether `name` can be PostgreSQL's name for something.
fn identifier(name: &str) -> Result<(), &'static str> {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    if name.is_empty() || name.len() > 63 {
        Err("does not have 1 to 63 characters")
    } else if !name.starts_with(first) || !name.chars().all(|c| first(c) || c.is_ascii_digit() || c == '-') {
        Err("is not of lower-case letters, digits, `_` and `-`, a letter first")
    } else {
        Ok(())
    }
}

/// Whether `name` can be a user's role.
fn role(name: &str) -> Result<(), &'static str> {
    identifier(name)?;
    if OWN_ROLES.contains(&name) {
        Err("is the cluster's own")
    } else if name.starts_with("pg_") || ["public", "none", "admin", "stats"].contains(&name) {
        Err("has a reserved name")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{ClusterSpec, samples};
    use std::fmt::Write as _;

    fn findings(spec: &ClusterSpec) -> String {
        let mut text = String::new();
        for finding in spec.check() {
            let word = if finding.fatal { "refused" } else { "warning" };
            writeln!(text, "{word} {}: {}", finding.pointer, finding.message).unwrap();
        }
        text
    }

    #[test]
    fn the_samples_are_good() {
        assert_eq!(
            findings(&samples::one()),
            "warning /members: one member alone survives no failure: good for a trial only\n"
        );
        assert_eq!(findings(&samples::three()), "");
        assert_eq!(findings(&samples::five()), "");
    }

    #[test]
    fn every_fault_is_found_at_once_with_its_reason() {
        let text = r#"
schema: 2
cluster: Demo_1
secret: c2hvcnQ=
members:
  - {name: pg-1, address: 10.0.0.11}
  - {name: pg-1, address: 10.0.0.10, instance-id: i-1}
  - {name: -pg, address: 10.0.1.11, instance-id: i-1}
  - {name: pg-4, address: 10.0.0.11}
  - {name: pg-5, address: 127.0.0.1}
  - {name: pg-6, address: "fd00::1"}
vip: {address: 10.0.0.10/24, router-id: 0, interface: "a/b"}
synchronous: {mode: on, nodes: 9, strict: true}
timing: {preset: fast, ttl: 12s}
postgresql:
  parameters: {port: 1234, Work: 1, a.b: "x\ny"}
  hba: ["all all all trust", "hostssl all app 10.0.0.0/8 scram-sha-256"]
  users: [{name: postgres}, {name: app, password: short}, {name: app}, {name: pg_x}]
  databases: [{name: template1, owner: app}, {name: App, owner: App}]
pool: {size: 0}
passwords: {rest: "with space and more", superuser: "x"}
authority: {certificate: none, key: none}
"#;
        insta::assert_snapshot!(findings(&serde_saphyr::from_str(text).unwrap()));
    }

    #[test]
    fn an_even_number_of_members_is_a_warning() {
        let mut spec = samples::five();
        spec.members.truncate(4);
        assert_eq!(
            findings(&spec),
            "warning /members: 4 members survive the loss of 1, no more than 3 would: an odd number is better\n"
        );
        spec.members.clear();
        assert!(findings(&spec).starts_with("refused /members: a cluster has one member at least"));
    }
}
