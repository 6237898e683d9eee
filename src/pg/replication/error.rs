//! What can go wrong on a replication connection, sorted by what a caller does next.

use crate::pg::message::MessageError;
use crate::pg::message::backend::ServerMessage;
use crate::pg::sql::{Grant, ServerVersion};

/// A replication connection that could not be made, a command that was refused, or a stream that broke.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// Nobody answers, or the connection broke: worth another try.
    #[error("PostgreSQL at {server} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why, as far as is known.
        reason: String,
    },
    /// It takes no connections now (57P03): worth another try.
    #[error("PostgreSQL at {server} is not accepting connections: {message}")]
    StartingUp {
        /// Its address.
        server: String,
        /// Its words.
        message: String,
    },
    /// It ended the session (57P01, 57P02): it is being stopped, or somebody ended us. Worth another try.
    #[error("PostgreSQL ended the replication connection: {message}")]
    Terminating {
        /// Its words.
        message: String,
    },
    /// Another session holds the slot (55006): worth another try until that one times out.
    #[error("the replication slot is in use: {message}")]
    SlotActive {
        /// The server's words.
        message: String,
    },
    /// The role, its password or pg_hba.conf.
    #[error("PostgreSQL at {server} does not let {role} in for replication: {message}")]
    AuthenticationFailed {
        /// Its address.
        server: String,
        /// The role we tried.
        role: String,
        /// Its words.
        message: String,
    },
    /// The role may not replicate.
    #[error("the role may not {what}; a superuser grants it with: {sql_that_mends}")]
    MissingGrant {
        /// What it may not do.
        what: &'static str,
        /// The statement to run.
        sql_that_mends: String,
    },
    /// The WAL asked for is gone (58P01).
    #[error("PostgreSQL no longer has the WAL asked for: {message}")]
    WalRemoved {
        /// Its words, with the segment's name.
        message: String,
    },
    /// The position asked for is not on this server's past, or beyond its end (XX000).
    #[error("PostgreSQL's history does not have the position asked for: {message}")]
    NotInHistory {
        /// Its words.
        message: String,
    },
    /// Any other refusal.
    #[error("PostgreSQL refused: {0}")]
    Refused(ServerMessage),
    /// It says what makes no sense here.
    #[error("PostgreSQL at {server} broke the replication protocol: {reason}")]
    Protocol {
        /// Its address.
        server: String,
        /// How.
        reason: String,
    },
}

impl ReplicationError {
    /// True when the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        use ReplicationError::{SlotActive, StartingUp, Terminating, Unreachable};
        matches!(self, Unreachable { .. } | StartingUp { .. } | Terminating { .. } | SlotActive { .. })
    }
}

/// Who is talking to whom.
#[derive(Clone, Debug)]
pub(super) struct Party {
    pub server: String,
    pub role: String,
}

impl Party {
    pub fn unreachable(&self, reason: impl Into<String>) -> ReplicationError {
        ReplicationError::Unreachable { server: self.server.clone(), reason: reason.into() }
    }

    pub fn protocol(&self, reason: impl Into<String>) -> ReplicationError {
        ReplicationError::Protocol { server: self.server.clone(), reason: reason.into() }
    }

    pub fn unauthenticated(&self, message: impl Into<String>) -> ReplicationError {
        let (server, role) = (self.server.clone(), self.role.clone());
        ReplicationError::AuthenticationFailed { server, role, message: message.into() }
    }

    /// Sorts a connection that ended or failed, or bytes that are no message.
    pub fn sort_message_error(&self, error: MessageError) -> ReplicationError {
        match error {
            MessageError::Io(error) => self.unreachable(error.to_string()),
            MessageError::Truncated { .. } => self.unreachable(error.to_string()),
            other => self.protocol(other.to_string()),
        }
    }

    /// Sorts an ErrorResponse by its SQLSTATE.
    pub fn sort(&self, error: ServerMessage) -> ReplicationError {
        let (server, message) = (self.server.clone(), error.message.clone());
        match error.code.as_str() {
            "57P03" => ReplicationError::StartingUp { server, message },
            "57P01" | "57P02" => ReplicationError::Terminating { message },
            "53300" => self.unreachable(message), // max_wal_senders or max_connections
            "55006" => ReplicationError::SlotActive { message },
            "58P01" => ReplicationError::WalRemoved { message },
            "XX000" => ReplicationError::NotInHistory { message },
            "42501" => ReplicationError::MissingGrant {
                what: Grant::Replication.what(),
                // An attribute's SQL is the same in every version.
                sql_that_mends: Grant::Replication.sql_that_mends(&self.role, ServerVersion(0)),
            },
            class if class.starts_with("28") => self.unauthenticated(message),
            _ => ReplicationError::Refused(error),
        }
    }
}
