//! Physical replication slots: what keeps the primary's WAL until it is in the store.
//!
//! Advancing over SQL works while a walsender streams without naming the slot (pg-facts, D2). PostgreSQL writes an
//! advance to its disk at the next checkpoint only, so after a crash a slot stands further back: never further on.

use tokio_postgres::types::PgLsn;

use super::{Grant, Sql, SqlError, Task};
use crate::pg::Lsn;

/// A slot as pg_replication_slots has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// True when it is of the kind that we need.
    pub is_physical: bool,
    /// WAL from here is kept; none before it is reserved and after it was lost.
    pub restart_lsn: Option<Lsn>,
    /// How safe that WAL is.
    pub wal_status: WalStatus,
    /// Whether a session holds it.
    pub is_active: bool,
    /// How many bytes may be written before it is in danger of being lost; none without a limit.
    pub safe_wal_bytes: Option<i64>,
}

/// `wal_status` of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalStatus {
    /// Nothing is reserved yet.
    None,
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, but kept.
    Extended,
    /// No longer kept: gone at the next checkpoint.
    Unreserved,
    /// Gone; the slot is useless.
    Lost,
}

impl Sql {
    /// Looks at a slot; none when there is no such slot.
    pub async fn slot(&self, name: &str) -> Result<Option<Slot>, SqlError> {
        const TASK: Task = Task::look("read the replication slot");
        let sql = "SELECT slot_type = 'physical', restart_lsn, wal_status, active, safe_wal_size \
                   FROM pg_replication_slots WHERE slot_name = $1::text";
        let rows = self.rows(TASK, sql, &[&name]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let restart_lsn = Sql::position(TASK, row, 1)?;
        let wal_status: Option<&str> = Sql::value(TASK, row, 2)?;
        Ok(Some(Slot {
            is_physical: Sql::value(TASK, row, 0)?,
            restart_lsn,
            wal_status: match wal_status {
                Some("reserved") => WalStatus::Reserved,
                Some("extended") => WalStatus::Extended,
                Some("unreserved") => WalStatus::Unreserved,
                Some(_) => WalStatus::Lost,
                None => WalStatus::None,
            },
            is_active: Sql::value(TASK, row, 3)?,
            safe_wal_bytes: Sql::value(TASK, row, 4)?,
        }))
    }

    /// How many slots of any kind there are, of `max_replication_slots`.
    pub async fn count_slots(&self) -> Result<usize, SqlError> {
        const TASK: Task = Task::look("count the replication slots");
        let row = self.row(TASK, "SELECT count(*) FROM pg_replication_slots", &[]).await?;
        let count: i64 = Sql::value(TASK, &row, 0)?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Makes a physical slot that keeps WAL from the last checkpoint on, at once.
    pub async fn create_slot(&self, name: &str) -> Result<Lsn, SqlError> {
        const TASK: Task = Task::needing("create the replication slot", Grant::Replication);
        let sql = "SELECT lsn FROM pg_create_physical_replication_slot($1::text::name, true)";
        let row = self.row(TASK, sql, &[&name]).await?;
        Sql::position(TASK, &row, 0)?
            .ok_or_else(|| SqlError::Other { task: TASK.name, reason: "it reserved no WAL".to_owned() })
    }

    /// Keeps WAL from the last checkpoint on for as long as this connection lives, in a temporary slot.
    pub async fn hold_wal(&self, slot: &str) -> Result<(), SqlError> {
        const TASK: Task = Task::needing("hold WAL in a temporary slot", Grant::Replication);
        let sql = "SELECT lsn FROM pg_create_physical_replication_slot($1::text::name, true, true)";
        self.row(TASK, sql, &[&slot]).await.map(|_| ())
    }

    /// Lets go of the WAL below `lsn`; returns where the slot stands then.
    pub async fn advance_slot(&self, name: &str, lsn: Lsn) -> Result<Lsn, SqlError> {
        const TASK: Task = Task::needing("advance the replication slot", Grant::Replication);
        let sql = "SELECT end_lsn FROM pg_replication_slot_advance($1::text::name, $2)";
        let row = self.row(TASK, sql, &[&name, &PgLsn::from(lsn.0)]).await?;
        Ok(Sql::position(TASK, &row, 0)?.unwrap_or(lsn))
    }

    /// Drops a slot and lets go of all it kept.
    pub async fn drop_slot(&self, name: &str) -> Result<(), SqlError> {
        const TASK: Task = Task::needing("drop the replication slot", Grant::Replication);
        self.rows(TASK, "SELECT pg_drop_replication_slot($1::text::name)", &[&name]).await.map(|_| ())
    }
}
