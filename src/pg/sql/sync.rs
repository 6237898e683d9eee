//! Whether PostgreSQL waits for standbys, and for whom.

use super::{Grant, Sql, SqlError, Task};
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
