//! Who is talking to which server, and why it does not talk to us: what SQL and replication connections share.

use super::Conninfo;

/// A connection that cannot be had, or may not be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nobody answers, or the connection broke: worth another try.
    #[error("PostgreSQL at {server} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        server: String,
        /// The system's or the server's words.
        reason: String,
    },
    /// It answers, but takes no connections now (57P03): worth another try.
    #[error("PostgreSQL at {server} is not accepting connections: {message}")]
    StartingUp {
        /// Its address.
        server: String,
        /// Its words, such as `the database system is starting up`.
        message: String,
    },
    /// The role, its password or pg_hba.conf.
    #[error("PostgreSQL at {server} does not let {role} in{purpose}: {message}")]
    AuthenticationFailed {
        /// Its address.
        server: String,
        /// The role we tried.
        role: String,
        /// For what, unless it is SQL: ` for replication`.
        purpose: &'static str,
        /// Its words.
        message: String,
    },
    /// The role may not do this; a superuser mends it.
    #[error("the role may not {what}; a superuser grants it with: {sql_that_mends}")]
    MissingGrant {
        /// What it may not do.
        what: &'static str,
        /// The statement to run.
        sql_that_mends: String,
    },
}

impl AccessError {
    /// True when the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, AccessError::Unreachable { .. } | AccessError::StartingUp { .. })
    }
}

/// The two ends of a connection: what every error of it has in common.
#[derive(Clone, Debug)]
pub(super) struct Party {
    pub server: String,
    pub role: String,
    /// As [`AccessError::AuthenticationFailed`] has it.
    purpose: &'static str,
}

impl Party {
    /// Of a connection for SQL.
    pub fn for_sql(conninfo: &Conninfo) -> Party {
        Party { server: conninfo.endpoint().to_string(), role: conninfo.user().to_owned(), purpose: "" }
    }

    /// Of a connection for replication.
    pub fn for_replication(conninfo: &Conninfo) -> Party {
        Party { purpose: " for replication", ..Party::for_sql(conninfo) }
    }

    pub fn unreachable(&self, reason: impl Into<String>) -> AccessError {
        AccessError::Unreachable { server: self.server.clone(), reason: reason.into() }
    }

    pub fn unauthenticated(&self, message: impl Into<String>) -> AccessError {
        let (server, role) = (self.server.clone(), self.role.clone());
        AccessError::AuthenticationFailed { server, role, purpose: self.purpose, message: message.into() }
    }

    /// What a server says that takes no connection, by its SQLSTATE; `None` for an error of another kind.
    pub fn refused_access(&self, code: &str, message: &str) -> Option<AccessError> {
        match code {
            "57P03" => {
                let (server, message) = (self.server.clone(), message.to_owned());
                Some(AccessError::StartingUp { server, message })
            }
            // No room for one more connection: max_connections or max_wal_senders.
            "53300" => Some(self.unreachable(message)),
            class if class.starts_with("28") => Some(self.unauthenticated(message)),
            _ => None,
        }
    }
}
