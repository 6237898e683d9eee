//! What can go wrong with SQL, sorted by what a caller does next.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use super::Grant;

/// An SQL connection or query that failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
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
    #[error("PostgreSQL at {server} does not let {role} in: {message}")]
    AuthenticationFailed {
        /// Its address.
        server: String,
        /// The role we tried.
        role: String,
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
    /// A server that walship does not work with.
    #[error("{what}")]
    Unsupported {
        /// What it has, and what is needed.
        what: String,
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
        matches!(self, SqlError::Unreachable { .. } | SqlError::StartingUp { .. })
    }

    /// The SQLSTATE of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            SqlError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// Who is talking to whom: what every error of one connection has in common.
#[derive(Clone, Debug)]
pub(super) struct Party {
    pub server: String,
    pub role: String,
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

impl Party {
    pub fn unreachable(&self, reason: impl Into<String>) -> SqlError {
        SqlError::Unreachable { server: self.server.clone(), reason: reason.into() }
    }

    /// Sorts an error of tokio-postgres.
    pub fn sort(&self, task: Task, error: &tokio_postgres::Error) -> SqlError {
        let Some(db) = error.as_db_error() else { return self.sort_client_error(task, error) };
        let (server, message) = (self.server.clone(), db.message().to_owned());
        match db.code().code() {
            "57P03" => SqlError::StartingUp { server, message },
            // It is going down, went down, or has no room for one more connection.
            "57P01" | "57P02" | "53300" => self.unreachable(message),
            class if class.starts_with("28") => {
                SqlError::AuthenticationFailed { server, role: self.role.clone(), message }
            }
            code => SqlError::Refused { task: task.name, message, code: code.to_owned() },
        }
    }

    fn sort_client_error(&self, task: Task, error: &tokio_postgres::Error) -> SqlError {
        let cause = error.source();
        let reason = cause.map_or_else(|| error.to_string(), |cause| cause.to_string());
        if error.is_closed() || cause.is_some_and(|cause| cause.is::<io::Error>()) {
            return self.unreachable(reason);
        }
        match error.to_string().as_str() {
            // The kinds are private; the texts are what they have instead. A password that is missing is an
            // "invalid configuration" there.
            "authentication error" | "invalid configuration" => SqlError::AuthenticationFailed {
                server: self.server.clone(),
                role: self.role.clone(),
                message: reason,
            },
            "error performing TLS handshake" | "timeout waiting for server" => {
                self.unreachable(format!("{error}: {reason}"))
            }
            _ => SqlError::Other { task: task.name, reason },
        }
    }
}
