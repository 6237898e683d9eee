//! From the socket to the disk in three steps that go on at the same time: WAL is collected in a batch, the batch
//! before it is compressed and written, and what was written before that is fsynced.
//!
//! Files are touched on blocking threads only. One fsync covers all that was written while the last one ran.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::CaptureError;
use super::overlap::Absorber;
use crate::pg::Lsn;
use crate::store::{Positions, Store, StoreError};

/// Collected and not yet handed on; beyond this there is no room.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The way of WAL into the store.
pub(super) struct Pipeline {
    store: Store,
    positions: watch::Receiver<Positions>,
    batch: Batch,
    /// Here, or lent to `writing`.
    absorber: Option<Absorber>,
    writing: Job<(Absorber, Result<(), CaptureError>)>,
    syncing: Job<Result<Lsn, StoreError>>,
    /// Where what was written ends in a shutdown checkpoint.
    shutdown_end: Option<Lsn>,
}

/// WAL in order, in the pieces it came in.
struct Batch {
    start: Lsn,
    bytes: usize,
    pieces: Vec<Bytes>,
}

/// Work on a blocking thread, at most one of a kind.
struct Job<T> {
    handle: Option<JoinHandle<T>>,
    begun_at: Instant,
}

impl Pipeline {
    /// For WAL from `start` on.
    pub fn new(store: Store, absorber: Absorber, start: Lsn) -> Pipeline {
        let positions = store.positions();
        let batch = Batch { start, bytes: 0, pieces: Vec::new() };
        let (writing, syncing) = (Job::idle(), Job::idle());
        Pipeline { store, positions, batch, absorber: Some(absorber), writing, syncing, shutdown_end: None }
    }

    /// The end of what was collected: where the next piece must begin.
    pub fn end(&self) -> Lsn {
        self.batch.start + self.batch.bytes as u64
    }

    /// Whether another piece may be collected.
    pub fn has_room(&self) -> bool {
        self.batch.bytes < BATCH_BYTES_MAX
    }

    /// Collects a piece, which ends where a message of the server's ended.
    pub fn push(&mut self, start: Lsn, wal: Bytes) -> Result<(), CaptureError> {
        if start != self.end() {
            return Err(CaptureError::Gap { expected: self.end(), received: start });
        }
        self.batch.bytes += wal.len();
        self.batch.pieces.push(wal);
        Ok(())
    }

    /// What is fsynced in the store.
    pub fn durable(&self) -> Lsn {
        self.positions.borrow().durable
    }

    /// Whether all that was collected ends in a shutdown checkpoint.
    pub fn ends_in_shutdown(&self) -> bool {
        self.shutdown_end == Some(self.end())
    }

    /// Since when the oldest work has been going on; a disk that hangs shows here.
    pub fn busy_since(&self) -> Option<Instant> {
        self.writing.since().into_iter().chain(self.syncing.since()).min()
    }

    /// Starts whatever can be started.
    pub fn start(&mut self) {
        if self.batch.bytes > 0
            && let Some(mut absorber) = self.absorber.take()
        {
            let next = Batch { start: self.end(), bytes: 0, pieces: Vec::new() };
            let batch = std::mem::replace(&mut self.batch, next);
            self.writing.spawn(move || {
                let result = absorber.absorb(batch.start, &batch.pieces.concat());
                (absorber, result)
            });
        }
        let Positions { appended, durable, .. } = *self.positions.borrow_and_update();
        if appended > durable && self.syncing.since().is_none() {
            let store = self.store.clone();
            self.syncing.spawn(move || store.sync());
        }
    }

    /// Waits until a step is done; for ever when none is under way. Cancel-safe: the work goes on, and its result is
    /// kept for the next call.
    pub async fn progress(&mut self) -> Result<(), CaptureError> {
        tokio::select! {
            // Both are cancel-safe.
            written = self.writing.done() => {
                let (absorber, result) = written?;
                self.shutdown_end = absorber.shutdown_end();
                self.absorber = Some(absorber);
                result
            }
            synced = self.syncing.done() => {
                synced??;
                Ok(())
            }
        }
    }

    /// Brings everything that was collected to the disk.
    pub async fn drain(&mut self, step_time_max: Duration) -> Result<(), CaptureError> {
        loop {
            self.start();
            if self.busy_since().is_none() {
                return Ok(());
            }
            let step = timeout(step_time_max, self.progress()).await;
            step.map_err(|_| CaptureError::StoreHangs(step_time_max))??;
        }
    }
}

impl<T: Send + 'static> Job<T> {
    fn idle() -> Job<T> {
        Job { handle: None, begun_at: Instant::now() }
    }

    fn since(&self) -> Option<Instant> {
        self.handle.as_ref().map(|_| self.begun_at)
    }

    fn spawn(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        assert!(self.handle.is_none(), "one at a time");
        *self = Job { handle: Some(spawn_blocking(work)), begun_at: Instant::now() };
    }

    /// The result, once; for ever waiting when there is nothing to wait for. Cancel-safe.
    async fn done(&mut self) -> Result<T, JoinError> {
        let Some(handle) = &mut self.handle else { return std::future::pending().await };
        let result = handle.await;
        self.handle = None;
        result
    }
}
