//! Queries PostgreSQL servers through psql: to this node's own over its socket, to others over TLS.

use super::World;
use crate::{
    exec::Run,
    files::write_private,
    model::{
        keys::Keys,
        scope::{TLS_PATH, ports},
    },
    node::{database::Lsn, state::POSTGRESQL_DATA},
};
use anyhow::{Context as _, Result, bail};
use std::{net::IpAddr, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// Where the passwords of the cluster's own roles lie for psql.
const PASSWORDS_PATH: &str = "/run/pgha/agent.pgpass";
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SOCKETS: &str = "/var/run/postgresql";

/// Which server is asked, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// This node's, as a superuser.
    Own,
    /// This node's, over a replication connection.
    OwnReplication,
    /// Another node's, as a superuser.
    Other(IpAddr),
    /// Another node's, over a replication connection.
    OtherReplication(IpAddr),
}

impl At {
    /// How libpq finds it.
    fn connection(self) -> String {
        let role = match self {
            At::Own | At::Other(_) => "user=postgres dbname=postgres",
            At::OwnReplication | At::OtherReplication(_) => "user=replicator replication=true",
        };
        let place = match self {
            At::Own | At::OwnReplication => format!("host={SOCKETS}"),
            At::Other(address) | At::OtherReplication(address) => format!(
                "host={address} sslmode=verify-full sslrootcert={TLS_PATH}/ca.crt sslcert={TLS_PATH}/client.pem \
                 sslkey={TLS_PATH}/client.pem passfile={PASSWORDS_PATH}"
            ),
        };
        format!(
            "{place} port={} {role} connect_timeout=5 application_name=pgha-agent \
             options='-c statement_timeout=20s -c lock_timeout=5s'",
            ports::POSTGRESQL
        )
    }
}

impl World {
    /// What the server answers to `sql`: rows without headings, columns between `|`.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn query(&self, at: At, sql: &str) -> Result<String> {
        let Some(version) = self.postgresql else { bail!("the image has no PostgreSQL") };
        let run = Run::new(format!("/usr/lib/postgresql/{version}/bin/psql"))
            .args(["--no-psqlrc", "--no-password", "--quiet", "--no-align", "--tuples-only"])
            .args(["--set=ON_ERROR_STOP=1", "--dbname", &at.connection(), "--command", sql])
            .env("LC_ALL", "C")
            .limit(PATIENCE);
        match at {
            At::Own | At::OwnReplication => {
                // The server knows the operating system's user by its own.
                let owner =
                    Path::new(POSTGRESQL_DATA).metadata().with_context(|| format!("looking at {POSTGRESQL_DATA}"))?;
                Ok(run.user(owner.uid(), owner.gid()).text()?)
            }
            At::Other(_) | At::OtherReplication(_) => {
                let keys = Keys::new(&self.node.spec);
                let (superuser, replication) = (keys.superuser(), keys.replication());
                let line = |role: &str, password: &str| {
                    format!("*:*:*:{role}:{}\n", password.replace('\\', "\\\\").replace(':', "\\:"))
                };
                let text = line("postgres", superuser.expose()) + &line("replicator", replication.expose());
                write_private(Path::new(PASSWORDS_PATH), &text)?;
                Ok(run.text()?)
            }
        }
    }
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The system identifier.
    pub system: String,
    /// The timeline.
    pub timeline: u32,
    /// How far the server has written, or a replica's has received or replayed, whichever is further.
    pub position: Lsn,
}

impl World {
    /// Who a server is, over a replication connection.
    ///
    /// # Errors
    /// As [`World::query`].
    pub fn identify(&self, at: At) -> Result<Identity> {
        let answer = self.query(at, "IDENTIFY_SYSTEM")?;
        identity(&answer).with_context(|| format!("the answer to IDENTIFY_SYSTEM is not understood: {answer}"))
    }
}

fn identity(answer: &str) -> Option<Identity> {
    let mut columns = answer.split('|');
    Some(Identity {
        system: columns.next()?.to_owned(),
        timeline: columns.next()?.parse().ok()?,
        position: lsn(columns.next()?)?,
    })
}

/// Reads a position as PostgreSQL writes it.
pub fn lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.trim().split_once('/')?;
    Some(Lsn(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?)))
}

/// `text` as a literal of SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let identity = identity("7712652082925278041|2|1/ABC|").unwrap();
        assert_eq!((identity.timeline, identity.position), (2, Lsn(0x1_0000_0abc)));
        assert_eq!(lsn("0/17497C0"), Some(Lsn(0x17497c0)));
        assert_eq!(lsn("17497C0"), None);
        assert_eq!(super::identity(""), None);
    }

    #[test]
    fn text_is_quoted_for_sql() {
        assert_eq!(literal("a'; DROP TABLE x; --"), "'a''; DROP TABLE x; --'");
    }

    #[test]
    fn others_are_reached_over_tls_alone() {
        let address: IpAddr = "fd00::12".parse().unwrap();
        let connection = At::OtherReplication(address).connection();
        assert!(connection.starts_with("host=fd00::12 sslmode=verify-full"), "{connection}");
        assert!(connection.contains("user=replicator replication=true") && !connection.contains("password="));
        assert!(At::Own.connection().starts_with("host=/var/run/postgresql port=5432 user=postgres"));
    }
}
