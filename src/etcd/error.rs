//! Why a call failed, and what that means for the next try.

use std::fmt;

/// Why a request to etcd failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdError {
    /// No connection, or it broke before the answer was complete.
    Unreachable {
        endpoint: String,
        /// What the transport said.
        message: String,
        /// Whether the request cannot have reached etcd.
        unsent: bool,
    },
    /// etcd answered with an error.
    Refused {
        endpoint: String,
        /// gRPC's status code.
        code: u32,
        /// etcd's message.
        message: String,
    },
    /// The settings cannot work: a file that cannot be read, an endpoint that is not a URL.
    Settings(String),
}

const UNKNOWN: u32 = 2;
const INVALID_ARGUMENT: u32 = 3;
const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;
const OUT_OF_RANGE: u32 = 11;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

impl EtcdError {
    /// Whether another endpoint may do better.
    pub fn elsewhere(&self) -> bool {
        match self {
            EtcdError::Unreachable { .. } => true,
            EtcdError::Refused { code, message, .. } => {
                matches!(*code, UNAVAILABLE | DEADLINE_EXCEEDED)
                    || message.contains("no leader")
                    || message.contains("request timed out")
                    || message.contains("context deadline exceeded")
            }
            EtcdError::Settings(_) => false,
        }
    }

    /// Whether a member answers that knows of no leader: it has no quorum.
    pub fn is_leaderless(&self) -> bool {
        matches!(self, EtcdError::Refused { message, .. } if message.contains("no leader"))
    }

    /// Whether etcd cannot have acted on the request.
    pub fn unsent(&self) -> bool {
        match self {
            EtcdError::Unreachable { unsent, .. } => *unsent,
            EtcdError::Refused { message, .. } => message.contains("no leader"),
            EtcdError::Settings(_) => true,
        }
    }

    /// Whether the token is the trouble, so that a new one may help.
    pub fn wants_new_token(&self) -> bool {
        let EtcdError::Refused { code, message, .. } = self else { return false };
        *code == UNAUTHENTICATED
            || message.contains("invalid auth token")
            || message.contains("revision of auth store is old")
            || message.contains("user name is empty")
    }

    /// Whether the wanted revision has been compacted away.
    pub fn compacted(&self) -> bool {
        matches!(self, EtcdError::Refused { code, message, .. }
            if *code == OUT_OF_RANGE && message.contains("compacted"))
    }

    /// Whether the answer was too large for the gateway, so that a smaller page may pass.
    pub fn too_large(&self) -> bool {
        matches!(self, EtcdError::Refused { code: RESOURCE_EXHAUSTED, message, .. } if message.contains("larger than max"))
    }

    /// Whether user or password are wrong, or the user lacks a right: nothing that a retry changes.
    pub fn denied(&self) -> bool {
        matches!(self, EtcdError::Refused { code, message, .. }
            if message.contains("permission denied") || message.contains("authentication failed")
                || (matches!(*code, INVALID_ARGUMENT | UNKNOWN) && message.contains("not enabled")))
    }
}

impl fmt::Display for EtcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EtcdError::Unreachable { endpoint, message, .. } => {
                write!(f, "etcd at {endpoint} does not answer: {message}")
            }
            EtcdError::Refused { endpoint, code, message } => {
                write!(f, "etcd at {endpoint} refuses (code {code}): {message}")
            }
            EtcdError::Settings(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for EtcdError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u32, message: &str) -> EtcdError {
        EtcdError::Refused { endpoint: "e".into(), code, message: message.into() }
    }

    #[test]
    fn an_error_tells_what_may_help() {
        assert!(refused(14, "etcdserver: no leader").elsewhere());
        assert!(refused(14, "etcdserver: no leader").unsent());
        assert!(refused(14, "etcdserver: no leader").is_leaderless());
        assert!(!refused(14, "etcdserver: request timed out").is_leaderless());
        assert!(!refused(14, "etcdserver: request timed out").unsent());
        assert!(refused(16, "etcdserver: invalid auth token").wants_new_token());
        assert!(refused(3, "etcdserver: user name is empty").wants_new_token());
        assert!(refused(11, "etcdserver: mvcc: required revision has been compacted").compacted());
        assert!(refused(8, "grpc: received message larger than max (5 vs. 4)").too_large());
        assert!(refused(7, "etcdserver: permission denied").denied());
        assert!(!refused(7, "etcdserver: permission denied").elsewhere());
    }
}
