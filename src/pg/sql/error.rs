//! What can go wrong with SQL, sorted by what a caller does next.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use super::Grant;
use crate::pg::party::{AccessError, Party};
use crate::pg::version::Unsupported;

/// An SQL connection or query that failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// It does not talk to us, or not about this.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A server that walship does not work with.
    #[error("{what}")]
    Unsupported {
        /// What it has, and what is needed.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The server said no to a query for a reason of its own.
    #[error("PostgreSQL refused to {task}: {message} (SQLSTATE {code})")]
    Refused {
        /// What was tried, as a verb.
        task: &'static str,
        /// Its words.
        message: String,
        /// Five characters that say which error.
        code: String,
    },
    /// An answer that cannot be understood.
    #[error("could not {task}: {reason}")]
    Other {
        /// What was tried, as a verb.
        task: &'static str,
        /// Why not.
        reason: String,
    },
}

impl SqlError {
    /// True when the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, SqlError::Access(error) if error.is_transient())
    }

    /// The SQLSTATE of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            SqlError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl From<Unsupported> for SqlError {
    fn from(error: Unsupported) -> SqlError {
        SqlError::Unsupported { what: error.to_string(), hint: error.hint() }
    }
}

/// What a query is for and what it needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// As a verb: `read the replication slot`.
    pub name: &'static str,
    /// The privilege without which it fails with 42501.
    pub needs: Option<Grant>,
    /// How long it may take.
    pub time_max: Duration,
}

/// Long enough for any query that only looks, on a server that swaps.
const LOOK_TIME_MAX: Duration = Duration::from_secs(15);

impl Task {
    /// A quick query that everyone may run.
    pub const fn look(name: &'static str) -> Task {
        Task { name, needs: None, time_max: LOOK_TIME_MAX }
    }

    /// The same for those who have a privilege.
    pub const fn needing(name: &'static str, grant: Grant) -> Task {
        Task { name, needs: Some(grant), time_max: LOOK_TIME_MAX }
    }

    /// With another limit.
    pub const fn within(self, time_max: Duration) -> Task {
        Task { time_max, ..self }
    }
}

/// Sorts an error of tokio-postgres.
pub(super) fn sort(party: &Party, task: Task, error: &tokio_postgres::Error) -> SqlError {
    let Some(db) = error.as_db_error() else { return sort_client_error(party, task, error) };
    let (code, message) = (db.code().code(), db.message());
    if let Some(refused) = party.refused_access(code, message) {
        return refused.into();
    }
    match code {
        // It is going down, or went down.
        "57P01" | "57P02" => party.unreachable(message).into(),
        _ => SqlError::Refused { task: task.name, message: message.to_owned(), code: code.to_owned() },
    }
}

fn sort_client_error(party: &Party, task: Task, error: &tokio_postgres::Error) -> SqlError {
    let cause = error.source();
    let reason = cause.map_or_else(|| error.to_string(), |cause| cause.to_string());
    if error.is_closed() || cause.is_some_and(|cause| cause.is::<io::Error>()) {
        return party.unreachable(reason).into();
    }
    match error.to_string().as_str() {
        // The kinds are private; the texts are what they have instead. A password that is missing is an
        // "invalid configuration" there.
        "authentication error" | "invalid configuration" => party.unauthenticated(reason).into(),
        "error performing TLS handshake" | "timeout waiting for server" => {
            party.unreachable(format!("{error}: {reason}")).into()
        }
        _ => SqlError::Other { task: task.name, reason },
    }
}
