//! Promoting a standby, and what must be looked at before.

use std::time::Duration;

use super::{Grant, Sql, SqlError, Task};

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

    /// True when somebody paused the replay; an error on a primary.
    pub async fn is_replay_paused(&self) -> Result<bool, SqlError> {
        const TASK: Task = Task::look("ask whether the replay is paused");
        let row = self.row(TASK, "SELECT pg_is_wal_replay_paused()", &[]).await?;
        Sql::value(TASK, &row, 0)
    }

    /// Lets a paused replay go on.
    pub async fn resume_replay(&self) -> Result<(), SqlError> {
        const TASK: Task = Task::needing("resume the replay", Grant::ResumeReplay);
        self.rows(TASK, "SELECT pg_wal_replay_resume()", &[]).await.map(|_| ())
    }
}
