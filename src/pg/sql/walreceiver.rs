//! A standby's own view of its stream: `pg_stat_wal_receiver`.

use std::time::Duration;

use super::{Sql, SqlError, Task};
use crate::pg::Lsn;

/// The running walreceiver; without [`super::Grant::ReadAllStats`] nothing of it is known but that it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walreceiver {
    /// True once it streams.
    pub is_streaming: bool,
    /// Written to pg_wal, not all of it flushed.
    pub written: Option<Lsn>,
    /// The end of the WAL as the sender last told it.
    pub primary_end: Option<Lsn>,
    /// How long ago it last heard from the sender, by the standby's clock.
    pub last_message_age: Option<Duration>,
}

impl Sql {
    /// The walreceiver; none when none runs.
    pub async fn walreceiver(&self) -> Result<Option<Walreceiver>, SqlError> {
        const TASK: Task = Task::look("read pg_stat_wal_receiver");
        let sql = "SELECT coalesce(status = 'streaming', false), written_lsn, latest_end_lsn, \
                   (extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000000)::bigint \
                   FROM pg_stat_wal_receiver WHERE pid IS NOT NULL";
        let rows = self.rows(TASK, sql, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let age_micros: Option<i64> = Sql::value(TASK, row, 3)?;
        Ok(Some(Walreceiver {
            is_streaming: Sql::value(TASK, row, 0)?,
            written: Sql::position(TASK, row, 1)?,
            primary_end: Sql::position(TASK, row, 2)?,
            last_message_age: age_micros
                .map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))),
        }))
    }
}
