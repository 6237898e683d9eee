//! SQL: one observed connection, and the few queries that walship needs, by noun.
//!
//! Every query has a time limit, so a server that hangs never hangs us; a query that ran into its limit leaves a
//! connection behind that its owner should drop. Works with PostgreSQL 14 to 18.

pub mod backup;
mod error;
mod grant;
pub mod promotion;
pub mod server;
pub mod slot;
pub mod sync;
pub mod walreceiver;

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::types::{FromSql, PgLsn, ToSql};
use tokio_postgres::{Client, Connection, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::party::{AccessError, Party};
pub use super::version::ServerVersion;
use super::{Conninfo, Lsn, WAL_PAGE_BYTES};
pub use error::SqlError;
use error::{Task, sort};
pub use grant::{Grant, quote_identifier};

/// What pg_stat_activity shows of us.
const APPLICATION_NAME: &str = "walship sql";

/// The SQLSTATE of a lacking privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// A connection for SQL. Dropping it closes it.
pub struct Sql {
    client: Client,
    party: Party,
    version: ServerVersion,
    /// Becomes `Some(reason)` when the connection ends.
    ended: watch::Receiver<Option<String>>,
}

impl Sql {
    /// Connects and checks that walship can work with this server.
    pub async fn connect(conninfo: &Conninfo) -> Result<Sql, SqlError> {
        let party = Party::for_sql(conninfo);
        let limit = conninfo.connect_time_max();
        match timeout(limit, Sql::connect_and_check(conninfo, party.clone())).await {
            Ok(result) => result,
            Err(_) => Err(party.unreachable(format!("no answer within {} s", limit.as_secs())).into()),
        }
    }

    async fn connect_and_check(conninfo: &Conninfo, party: Party) -> Result<Sql, SqlError> {
        const TASK: Task = Task::look("connect");
        let mut config = conninfo.sql_config().clone();
        config.application_name(APPLICATION_NAME);
        let sort = |error| sort(&party, TASK, &error);
        let (client, ended) = match conninfo.tls() {
            Some(tls) if config.get_ssl_mode() != SslMode::Disable => {
                let tls = MakeRustlsConnect::new(tls.as_ref().clone());
                let (client, connection) = config.connect(tls).await.map_err(sort)?;
                (client, observe(connection))
            }
            _ => {
                let (client, connection) = config.connect(NoTls).await.map_err(sort)?;
                (client, observe(connection))
            }
        };
        let mut sql = Sql { client, party, version: ServerVersion(0), ended };
        sql.version = sql.check_server().await?;
        Ok(sql)
    }

    async fn check_server(&self) -> Result<ServerVersion, SqlError> {
        const TASK: Task = Task::look("read the server's version");
        let sql = "SELECT current_setting('server_version_num')::int, current_setting('wal_block_size')::int";
        let row = self.row(TASK, sql, &[]).await?;
        let (number, page_bytes): (i32, i32) = (Sql::value(TASK, &row, 0)?, Sql::value(TASK, &row, 1)?);
        let version = ServerVersion(u32::try_from(number).unwrap_or_default());
        version.require_supported(format!("at {}", self.party.server))?;
        if i64::from(page_bytes) != WAL_PAGE_BYTES as i64 {
            let what = format!(
                "PostgreSQL at {} was built with WAL pages of {page_bytes} bytes; walship needs {WAL_PAGE_BYTES}",
                self.party.server
            );
            let hint = "Use a PostgreSQL with pages of the usual size.";
            return Err(SqlError::Unsupported { what, hint });
        }
        Ok(version)
    }

    /// The server's version, as of the connect.
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// Where the server is, for messages.
    pub fn server(&self) -> &str {
        &self.party.server
    }

    /// The role that we are.
    pub fn role(&self) -> &str {
        &self.party.role
    }

    /// Waits until the connection has ended, and says why. Cancel-safe.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| "the connection's task is gone".to_owned())
    }

    /// Runs a query that yields exactly one row.
    async fn row(&self, task: Task, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, SqlError> {
        let mut rows = self.rows(task, sql, parameters).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(SqlError::Other { task: task.name, reason: "expected one row".to_owned() }),
        }
    }

    /// Runs a query.
    async fn rows(
        &self,
        task: Task,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SqlError> {
        match timeout(task.time_max, self.client.query(sql, parameters)).await {
            Ok(Ok(rows)) => Ok(rows),
            // A closed connection is explained by how it ended.
            Ok(Err(error)) if error.is_closed() => Err(self.party.unreachable(self.ended().await).into()),
            Ok(Err(error)) => Err(match (sort(&self.party, task, &error), task.needs) {
                (SqlError::Refused { code, .. }, Some(grant)) if code == INSUFFICIENT_PRIVILEGE => {
                    let sql_that_mends = grant.sql_that_mends(self.role(), self.version);
                    AccessError::MissingGrant { what: grant.what(), sql_that_mends }.into()
                }
                (other, _) => other,
            }),
            Err(_) => Err(self
                .party
                .unreachable(format!(
                    "no answer within {} s when asked to {}",
                    task.time_max.as_secs(),
                    task.name
                ))
                .into()),
        }
    }

    /// One column of a row.
    fn value<'a, T: FromSql<'a>>(task: Task, row: &'a Row, column: usize) -> Result<T, SqlError> {
        row.try_get(column).map_err(|error| SqlError::Other {
            task: task.name,
            reason: format!("unexpected answer: {error}"),
        })
    }

    /// One column that holds a position; NULL where PostgreSQL has none.
    fn position(task: Task, row: &Row, column: usize) -> Result<Option<Lsn>, SqlError> {
        let value: Option<PgLsn> = Sql::value(task, row, column)?;
        Ok(value.map(|lsn| Lsn(u64::from(lsn))))
    }
}

/// Drives a connection in a task of its own until it ends, and keeps how it ended.
fn observe<S, T>(connection: Connection<S, T>) -> watch::Receiver<Option<String>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: TlsStream + Unpin + Send + 'static,
{
    let (sender, ended) = watch::channel(None);
    tokio::spawn(async move {
        let reason = match connection.await {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => match (error.as_db_error(), std::error::Error::source(&error)) {
                (Some(db), _) => db.message().to_owned(),
                (None, Some(cause)) => format!("{error}: {cause}"),
                (None, None) => error.to_string(),
            },
        };
        sender.send_replace(Some(reason));
    });
    ended
}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sql({} as {})", self.party.server, self.party.role)
    }
}
