//! What can go wrong on a replication connection, sorted by what a caller does next.

use crate::pg::message::MessageError;
use crate::pg::message::backend::ServerMessage;
use crate::pg::party::{AccessError, Party};
use crate::pg::sql::{Grant, ServerVersion};

/// A replication connection that could not be made, a command that was refused, or a stream that broke.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// It does not talk to us, or not about this.
    #[error(transparent)]
    Access(#[from] AccessError),
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
        match self {
            ReplicationError::Access(error) => error.is_transient(),
            ReplicationError::Terminating { .. } | ReplicationError::SlotActive { .. } => true,
            _ => false,
        }
    }
}

pub(super) fn protocol(party: &Party, reason: impl Into<String>) -> ReplicationError {
    ReplicationError::Protocol { server: party.server.clone(), reason: reason.into() }
}

/// Sorts a connection that ended or failed, or bytes that are no message.
pub(super) fn sort_message_error(party: &Party, error: MessageError) -> ReplicationError {
    match error {
        MessageError::Io(_) | MessageError::Truncated { .. } => party.unreachable(error.to_string()).into(),
        other => protocol(party, other.to_string()),
    }
}

/// Sorts an ErrorResponse by its SQLSTATE.
pub(super) fn sort(party: &Party, error: ServerMessage) -> ReplicationError {
    if let Some(refused) = party.refused_access(&error.code, &error.message) {
        return refused.into();
    }
    let message = error.message.clone();
    match error.code.as_str() {
        "57P01" | "57P02" => ReplicationError::Terminating { message },
        "55006" => ReplicationError::SlotActive { message },
        "58P01" => ReplicationError::WalRemoved { message },
        "XX000" => ReplicationError::NotInHistory { message },
        "42501" => {
            let grant = Grant::Replication;
            // An attribute's SQL is the same in every version.
            let sql_that_mends = grant.sql_that_mends(&party.role, ServerVersion(0));
            AccessError::MissingGrant { what: grant.what(), sql_that_mends }.into()
        }
        _ => ReplicationError::Refused(error),
    }
}
