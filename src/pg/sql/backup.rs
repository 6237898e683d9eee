//! The low-level base backup: begin and end. Both must run on one connection; when it ends, so does the backup.

use std::time::Duration;

use super::{Grant, Sql, SqlError, Task};
use crate::pg::Lsn;

/// Beginning waits for a checkpoint, which may be spread over up to `checkpoint_timeout`, at most a day.
const CHECKPOINT_TIME_MAX: Duration = Duration::from_secs(25 * 3600);

/// Ending forces a WAL switch and waits for nothing else.
const STOP_TIME_MAX: Duration = Duration::from_secs(120);

/// What the server says at the end of a base backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupEnd {
    /// WAL up to here is needed.
    pub stop_lsn: Lsn,
    /// The file `backup_label`, byte for byte.
    pub backup_label: String,
    /// The file `tablespace_map`; none without tablespaces.
    pub tablespace_map: Option<String>,
}

impl Sql {
    /// Begins a base backup; WAL from the returned position is needed. `fast` makes the checkpoint immediate.
    pub async fn begin_backup(&self, label: &str, fast: bool) -> Result<Lsn, SqlError> {
        const TASK: Task =
            Task::needing("begin a base backup", Grant::BackupStart).within(CHECKPOINT_TIME_MAX);
        let sql = match self.version().major() {
            ..15 => "SELECT pg_start_backup($1::text, $2::boolean, false)",
            15.. => "SELECT pg_backup_start($1::text, $2::boolean)",
        };
        let row = self.row(TASK, sql, &[&label, &fast]).await?;
        Sql::position(TASK, &row, 0)?
            .ok_or_else(|| SqlError::Other { task: TASK.name, reason: "no start position came".to_owned() })
    }

    /// Ends the base backup that was begun on this connection. Does not wait for WAL archiving: the WAL comes
    /// through the store.
    pub async fn end_backup(&self) -> Result<BackupEnd, SqlError> {
        const TASK: Task = Task::needing("end the base backup", Grant::BackupStop).within(STOP_TIME_MAX);
        let sql = match self.version().major() {
            ..15 => "SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)",
            15.. => "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)",
        };
        let row = self.row(TASK, sql, &[]).await?;
        let map: Option<String> = Sql::value(TASK, &row, 2)?;
        Ok(BackupEnd {
            stop_lsn: Sql::position(TASK, &row, 0)?.unwrap_or_default(),
            backup_label: Sql::value(TASK, &row, 1)?,
            tablespace_map: map.filter(|map| !map.is_empty()),
        })
    }
}
