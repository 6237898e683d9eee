//! What a server is, how far its WAL reaches, and how it is set.

use std::path::PathBuf;

use super::{Grant, Sql, SqlError, Task};
use crate::pg::{Lsn, SegmentSize, TimelineId};

/// What does not change while a server runs, but for `in_recovery`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerFacts {
    /// The cluster's identity.
    pub system_identifier: u64,
    /// The size of its WAL segments.
    pub segment_size: SegmentSize,
    /// True on a standby.
    pub in_recovery: bool,
    /// The catalog version, which names tablespace directories.
    pub catalog_version: i32,
}

/// How far the WAL of a server reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalPositions {
    /// On a primary.
    Primary {
        /// The timeline it writes.
        timeline: TimelineId,
        /// Inserted into its buffers.
        inserted: Lsn,
        /// Flushed to its disk.
        flushed: Lsn,
    },
    /// On a standby.
    Standby {
        /// The timeline of its last restartpoint; its replay may be on a later one.
        restartpoint_timeline: TimelineId,
        /// Received by streaming and flushed, since it started.
        received: Option<Lsn>,
        /// Replayed.
        replayed: Option<Lsn>,
        /// When the last replayed transaction committed, by the primary's clock: microseconds since 1970 UTC.
        replayed_commit_unix_micros: Option<i64>,
    },
}

/// One setting as `pg_settings` has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, in `unit`.
    pub value: String,
    /// The unit of the value, such as `8kB`; none for texts and switches.
    pub unit: Option<String>,
    /// True when the configuration has another value, which needs a restart.
    pub pending_restart: bool,
}

/// One row of `pg_stat_replication`; without [`Grant::ReadAllStats`] only `process` is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walsender {
    /// The backend's process.
    pub process: i32,
    /// The standby's name.
    pub application_name: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: Option<String>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: Option<String>,
    /// Sent to it.
    pub sent: Option<Lsn>,
    /// Written there.
    pub written: Option<Lsn>,
    /// Flushed there.
    pub flushed: Option<Lsn>,
    /// Replayed there.
    pub replayed: Option<Lsn>,
    /// The oldest transaction that hot-standby feedback holds back here.
    pub backend_xmin: Option<String>,
}

impl Sql {
    /// What the server is.
    pub async fn facts(&self) -> Result<ServerFacts, SqlError> {
        const TASK: Task = Task::look("read what the server is");
        let sql = "SELECT system_identifier, pg_size_bytes(current_setting('wal_segment_size')), \
                   pg_is_in_recovery(), catalog_version_no FROM pg_control_system()";
        let row = self.row(TASK, sql, &[]).await?;
        let other = |reason: String| SqlError::Other { task: TASK.name, reason };
        let (system_identifier, segment_bytes): (i64, i64) =
            (Sql::value(TASK, &row, 0)?, Sql::value(TASK, &row, 1)?);
        let segment_size =
            SegmentSize::new(segment_bytes.unsigned_abs()).map_err(|e| other(e.to_string()))?;
        Ok(ServerFacts {
            system_identifier: system_identifier.cast_unsigned(),
            segment_size,
            in_recovery: Sql::value(TASK, &row, 2)?,
            catalog_version: Sql::value(TASK, &row, 3)?,
        })
    }

    /// How far its WAL reaches now.
    pub async fn wal_positions(&self) -> Result<WalPositions, SqlError> {
        const TASK: Task = Task::look("read the WAL positions");
        // In recovery pg_walfile_name and the current positions raise an error, hence the CASEs.
        let sql = "SELECT r, CASE WHEN r THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END, \
                   CASE WHEN r THEN NULL ELSE pg_current_wal_insert_lsn() END, \
                   CASE WHEN r THEN NULL ELSE pg_current_wal_flush_lsn() END, \
                   (SELECT timeline_id FROM pg_control_checkpoint()), \
                   pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), \
                   (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint \
                   FROM pg_is_in_recovery() AS r";
        let row = self.row(TASK, sql, &[]).await?;
        let other = |reason: &str| SqlError::Other { task: TASK.name, reason: reason.to_owned() };
        if Sql::value(TASK, &row, 0)? {
            let timeline: i32 = Sql::value(TASK, &row, 4)?;
            return Ok(WalPositions::Standby {
                restartpoint_timeline: TimelineId(timeline.cast_unsigned()),
                received: Sql::position(TASK, &row, 5)?,
                replayed: Sql::position(TASK, &row, 6)?,
                replayed_commit_unix_micros: Sql::value(TASK, &row, 7)?,
            });
        }
        let file: Option<String> = Sql::value(TASK, &row, 1)?;
        let timeline = file.as_deref().and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        Ok(WalPositions::Primary {
            timeline: TimelineId(timeline.ok_or_else(|| other("no name of the current WAL file"))?),
            inserted: Sql::position(TASK, &row, 2)?.ok_or_else(|| other("no insert position"))?,
            flushed: Sql::position(TASK, &row, 3)?.ok_or_else(|| other("no flush position"))?,
        })
    }

    /// Where its data directory is, on its host.
    pub async fn data_directory(&self) -> Result<PathBuf, SqlError> {
        const TASK: Task = Task::needing("read data_directory", Grant::ReadAllSettings);
        let row = self.row(TASK, "SELECT current_setting('data_directory')", &[]).await?;
        Ok(PathBuf::from(Sql::value::<String>(TASK, &row, 0)?))
    }

    /// Settings by name; one that this version does not have, or that the role may not see, is left out.
    pub async fn settings(&self, names: &[&str]) -> Result<Vec<Setting>, SqlError> {
        const TASK: Task = Task::look("read the settings");
        let sql = "SELECT name, setting, unit, pending_restart FROM pg_settings WHERE name = ANY($1)";
        let rows = self.rows(TASK, sql, &[&names]).await?;
        let setting = |row| {
            Ok(Setting {
                name: Sql::value(TASK, row, 0)?,
                value: Sql::value(TASK, row, 1)?,
                unit: Sql::value(TASK, row, 2)?,
                pending_restart: Sql::value(TASK, row, 3)?,
            })
        };
        rows.iter().map(setting).collect()
    }

    /// The connections that stream from this server.
    pub async fn walsenders(&self) -> Result<Vec<Walsender>, SqlError> {
        const TASK: Task = Task::look("read pg_stat_replication");
        let sql = "SELECT pid, application_name, state, sync_state, sent_lsn, write_lsn, flush_lsn, replay_lsn, \
                   backend_xmin::text FROM pg_stat_replication ORDER BY application_name, pid";
        let rows = self.rows(TASK, sql, &[]).await?;
        let walsender = |row| {
            Ok(Walsender {
                process: Sql::value(TASK, row, 0)?,
                application_name: Sql::value(TASK, row, 1)?,
                state: Sql::value(TASK, row, 2)?,
                sync_state: Sql::value(TASK, row, 3)?,
                sent: Sql::position(TASK, row, 4)?,
                written: Sql::position(TASK, row, 5)?,
                flushed: Sql::position(TASK, row, 6)?,
                replayed: Sql::position(TASK, row, 7)?,
                backend_xmin: Sql::value(TASK, row, 8)?,
            })
        };
        rows.iter().map(walsender).collect()
    }
}
