//! Promoting a standby, and what must be looked at before.

use std::time::Duration;

use super::{Grant, Sql, SqlError, Task};
use crate::pg::Lsn;

/// Even one that finds all buffers changed is over by then.
const CHECKPOINT_TIME_MAX: Duration = Duration::from_secs(600);

/// How a standby replays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replay {
    /// Somebody paused it.
    pub is_paused: bool,
    /// How far it is; `None` before the first record.
    pub replayed_lsn: Option<Lsn>,
    /// `recovery_min_apply_delay`: commits wait for so long.
    pub delay: Duration,
}

impl Sql {
    /// Promotes the standby and waits until it is a primary; false when it is not one within `time_max`.
    pub async fn promote(&self, time_max: Duration) -> Result<bool, SqlError> {
        const TASK: Task = Task::needing("promote the standby", Grant::Promote);
        let seconds = i32::try_from(time_max.as_secs()).unwrap_or(i32::MAX).max(1);
        // The server stops waiting first, so that its answer is heard.
        let task = TASK.within(Duration::from_secs(seconds.unsigned_abs().into()) + Duration::from_secs(15));
        let row = self.row(task, "SELECT pg_promote(true, $1)", &[&seconds]).await?;
        Sql::value(task, &row, 0)
    }

    /// True while the server is a standby.
    pub async fn is_in_recovery(&self) -> Result<bool, SqlError> {
        const TASK: Task = Task::look("ask whether the server is a standby");
        let row = self.row(TASK, "SELECT pg_is_in_recovery()", &[]).await?;
        Sql::value(TASK, &row, 0)
    }

    /// How a standby replays; `None` on a primary.
    pub async fn replay(&self) -> Result<Option<Replay>, SqlError> {
        const TASK: Task = Task::look("ask how the standby replays");
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END, \
                   pg_last_wal_replay_lsn(), setting::bigint FROM pg_settings WHERE name = 'recovery_min_apply_delay'";
        let row = self.row(TASK, sql, &[]).await?;
        let Some(is_paused) = Sql::value(TASK, &row, 0)? else { return Ok(None) };
        let delay_millis: i64 = Sql::value(TASK, &row, 2)?;
        Ok(Some(Replay {
            is_paused,
            replayed_lsn: Sql::position(TASK, &row, 1)?,
            delay: Duration::from_millis(u64::try_from(delay_millis).unwrap_or(0)),
        }))
    }

    /// Lets a paused replay go on.
    pub async fn resume_replay(&self) -> Result<(), SqlError> {
        const TASK: Task = Task::needing("resume the replay", Grant::ResumeReplay);
        self.rows(TASK, "SELECT pg_wal_replay_resume()", &[]).await.map(|_| ())
    }

    /// Makes a checkpoint at once.
    pub async fn checkpoint(&self) -> Result<(), SqlError> {
        let task = Task::needing("make a checkpoint", Grant::Checkpoint).within(CHECKPOINT_TIME_MAX);
        self.rows(task, "CHECKPOINT", &[]).await.map(|_| ())
    }
}
