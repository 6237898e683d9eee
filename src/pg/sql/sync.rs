//! Whether PostgreSQL waits for standbys, and for whom.

use super::{Grant, Sql, SqlError, Task};
use crate::pg::Lsn;
use crate::pg::sync_names::SyncNames;

/// The settings that decide what a commit waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncSetting {
    /// `synchronous_standby_names`.
    pub standby_names: String,
    /// `synchronous_commit`, where a transaction sets nothing else.
    pub commit: String,
}

impl SyncSetting {
    /// Whom it names.
    pub fn names(&self) -> SyncNames {
        SyncNames::parse(&self.standby_names)
    }
}

impl Sql {
    /// The settings as this session has them.
    pub async fn sync_setting(&self) -> Result<SyncSetting, SqlError> {
        const TASK: Task = Task::look("read what commits wait for");
        let sql =
            "SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit')";
        let row = self.row(TASK, sql, &[]).await?;
        Ok(SyncSetting { standby_names: Sql::value(TASK, &row, 0)?, commit: Sql::value(TASK, &row, 1)? })
    }

    /// Writes `synchronous_standby_names` into postgresql.auto.conf and has the server read it; sessions follow as they
    /// come to it. `standby` is a plain name, or empty for nobody.
    pub async fn set_sync_names(&self, standby: &str) -> Result<(), SqlError> {
        const SET: Task = Task::needing("set synchronous_standby_names", Grant::SetSyncNames);
        const RELOAD: Task = Task::needing("reload PostgreSQL's configuration", Grant::ReloadConfiguration);
        assert!(standby.bytes().all(|b| b.is_ascii_lowercase()), "it goes into SQL as it is");
        self.rows(SET, &format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'"), &[]).await?;
        self.rows(RELOAD, "SELECT pg_reload_conf()", &[]).await?;
        Ok(())
    }

    /// Whether the role may do that.
    pub async fn may_set_sync_names(&self) -> Result<bool, SqlError> {
        Ok(self.has(Grant::SetSyncNames).await? && self.has(Grant::ReloadConfiguration).await?)
    }
}

/// Who waits for standbys at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncWaiters {
    /// How far the WAL was flushed: whoever waits has its commit below.
    pub flushed: Lsn,
    /// Each backend's process, and what tells its transaction from others of the same backend.
    pub waiters: Vec<(i32, String)>,
}

impl Sql {
    /// Who waits for standbys now. Without [`Grant::ReadAllStats`] that is refused, as it would show nobody.
    pub async fn sync_waiters(&self) -> Result<SyncWaiters, SqlError> {
        const TASK: Task = Task::look("see who waits for standbys");
        if !self.has(Grant::ReadAllStats).await? {
            let reason = format!("the role may not {}", Grant::ReadAllStats.what());
            return Err(SqlError::Other { task: TASK.name, reason });
        }
        // First who waits, then how far the WAL is.
        let sql = "SELECT pid, concat_ws(' ', backend_xid, backend_start, state_change) FROM pg_stat_activity \
                   WHERE wait_event = 'SyncRep'";
        let rows = self.rows(TASK, sql, &[]).await?;
        let waiter = |row| Ok((Sql::value(TASK, row, 0)?, Sql::value(TASK, row, 1)?));
        let waiters = rows.iter().map(waiter).collect::<Result<_, SqlError>>()?;
        let row = self.row(TASK, "SELECT pg_current_wal_flush_lsn()", &[]).await?;
        let flushed = Sql::position(TASK, &row, 0)?.unwrap_or_default();
        Ok(SyncWaiters { flushed, waiters })
    }
}
