//! The replication slot: what keeps PostgreSQL's WAL until it is durable in the store.
//!
//! Nobody streams from it. It is advanced over SQL, so that freeing pg_wal depends on the local store alone. The SQL
//! connection lives only while there is something to do: a smart shutdown waits for every session to go.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::{CaptureError, Options, Reasons};
use crate::pg::sql::Sql;
use crate::pg::sql::slot::WalStatus;
use crate::pg::{Lsn, SegmentSize};
use crate::store::Store;
use crate::vitals::Vitals;

/// The slot is advanced at least this often, which also shows PostgreSQL that it is used.
const ADVANCE_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// And no more often than this, however many segments are sealed.
const ADVANCE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Makes sure that the slot exists and reserves WAL; returns from where. A slot that lost its WAL is made anew:
/// whether that WAL is missed shows when the stream starts.
pub async fn hold(sql: &Sql, name: &str) -> Result<Lsn, CaptureError> {
    match sql.slot(name).await? {
        Some(slot) if !slot.is_physical => return Err(CaptureError::SlotIsLogical { name: name.to_owned() }),
        Some(slot) => match slot.restart_lsn.filter(|_| slot.wal_status != WalStatus::Lost) {
            Some(restart_lsn) => return Ok(restart_lsn),
            None => {
                tracing::warn!(slot = name, "PostgreSQL let the slot's WAL go; making the slot anew");
                sql.drop_slot(name).await?;
            }
        },
        None => {}
    }
    let restart_lsn = sql.create_slot(name).await?;
    tracing::info!(slot = name, %restart_lsn, "made the replication slot");
    Ok(restart_lsn)
}

/// Where the slot may stand when the store is durable up to `durable`: at the start of the segment that holds its
/// last byte. PostgreSQL keeps whole segments anyway, and the next connect compares that one.
pub(super) fn target(durable: Lsn, size: SegmentSize) -> Lsn {
    size.start_of(Lsn(durable.0.saturating_sub(1)))
}

/// Advances the slot behind the store, for as long as it is polled. Its troubles are logged and tried again: WAL is
/// captured meanwhile, PostgreSQL only keeps more of it.
pub(super) async fn follow(options: &Options, store: &Store, vitals: &Vitals) -> Infallible {
    let size = store.identity().segment_size;
    let mut positions = store.positions();
    let mut reasons = Reasons::new("advance the replication slot");
    loop {
        let (begun, durable) = (Instant::now(), positions.borrow_and_update().durable);
        match advance(options, target(durable, size)).await {
            Ok(restart_lsn) => {
                reasons.clear();
                vitals.capture.update(|capture| capture.slot_restart_lsn = restart_lsn);
            }
            Err(error) => reasons.note(&error),
        }
        tokio::time::sleep_until((begun + ADVANCE_INTERVAL_MIN).into()).await;
        let news = positions.wait_for(|now| target(now.durable, size) > target(durable, size));
        // A sealed segment, or time: either way it is due.
        let _ = timeout_at((begun + ADVANCE_INTERVAL_MAX).into(), news).await;
    }
}

async fn advance(options: &Options, target: Lsn) -> Result<Lsn, CaptureError> {
    let sql = Sql::connect(&options.conninfo).await?;
    let restart_lsn = hold(&sql, &options.slot).await?;
    Ok(sql.advance_slot(&options.slot, target.max(restart_lsn)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_of_the_last_durable_byte_is_kept() {
        let size = SegmentSize::new(1 << 20).unwrap();
        assert_eq!(target(Lsn(3 << 20), size), Lsn(2 << 20), "sealed right there");
        assert_eq!(target(Lsn((3 << 20) + 1), size), Lsn(3 << 20));
        assert_eq!(target(Lsn(0), size), Lsn(0), "an empty store");
    }
}
