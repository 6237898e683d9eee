//! WAL out of the store for one stream, in pieces that may be sent as they are.
//!
//! The store is read on blocking threads; between reads a source waits for the store to grow. A position beyond the
//! store's end is waited for too: the standby may be ahead of us, and that is no error.

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::pg::{Lsn, TimelineId};
use crate::store::{Positions, RawCursor, RawStep, Store, StoreError, Visibility};

/// What comes next in a stream.
#[derive(Debug)]
pub(super) enum Piece {
    /// WAL, whose end is a safe cut.
    Wal {
        /// Position of its first byte.
        start_lsn: Lsn,
        /// The bytes.
        data: Bytes,
    },
    /// The timeline ends at `lsn`, which has been reached.
    Switched {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it branched off.
        lsn: Lsn,
    },
    /// The store can't go on.
    Failed(StoreError),
}

/// A position in one timeline of the store, and the reading from there.
pub(super) struct Source {
    store: Store,
    tasks: TaskTracker,
    timeline: TimelineId,
    lsn: Lsn,
    cursor: Option<RawCursor>,
    reading: Option<JoinHandle<(Option<RawCursor>, Found)>>,
    positions: watch::Receiver<Positions>,
    at_end: bool,
}

/// What one read found.
enum Found {
    Piece(Piece),
    Nothing,
}

impl Source {
    /// A source from `lsn` of `timeline`, whose reads `tasks` keeps track of.
    pub(super) fn new(store: Store, tasks: TaskTracker, timeline: TimelineId, lsn: Lsn) -> Source {
        let positions = store.positions();
        Source { store, tasks, timeline, lsn, cursor: None, reading: None, positions, at_end: false }
    }

    /// How far has been read.
    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// How far the store is durable, on its newest timeline.
    pub(super) fn store_lsn(&self) -> Lsn {
        self.positions.borrow().durable
    }

    /// The next piece, as soon as there is one. Cancellation-safe: a read under way goes on, and its result is
    /// returned by the next call.
    pub(super) async fn next(&mut self) -> anyhow::Result<Piece> {
        loop {
            if self.at_end {
                self.positions.changed().await.context("wait for the store to grow")?;
                self.at_end = false;
            }
            if self.reading.is_none() {
                // What changes from here on is a change to be waited for.
                self.positions.mark_unchanged();
                let (store, cursor, timeline, lsn) =
                    (self.store.clone(), self.cursor.take(), self.timeline, self.lsn);
                self.reading = Some(self.tasks.spawn_blocking(move || read(&store, cursor, timeline, lsn)));
            }
            let Some(reading) = self.reading.as_mut() else { continue };
            let read = reading.await;
            self.reading = None;
            let (cursor, found) = read.context("read the store")?;
            self.cursor = cursor;
            match found {
                Found::Nothing => self.at_end = true,
                Found::Piece(piece) => {
                    if let Piece::Wal { start_lsn, data } = &piece {
                        // PostgreSQL does not check this: a gap would be replayed.
                        let (start_lsn, lsn) = (*start_lsn, self.lsn);
                        anyhow::ensure!(start_lsn == lsn, "the store gave {start_lsn} where {lsn} was due");
                        self.lsn = start_lsn + data.len() as u64;
                    }
                    return Ok(piece);
                }
            }
        }
    }
}

/// Reads one step, never past the end of the timeline. Blocks.
fn read(
    store: &Store,
    cursor: Option<RawCursor>,
    timeline: TimelineId,
    lsn: Lsn,
) -> (Option<RawCursor>, Found) {
    let switch = store.switch_of(timeline);
    if let Some((next, switch_lsn)) = switch
        && lsn >= switch_lsn
    {
        return (None, Found::Piece(Piece::Switched { next, lsn: switch_lsn }));
    }
    let mut cursor = match cursor.map_or_else(|| open(store, timeline, lsn), Ok) {
        Ok(cursor) => cursor,
        Err(error) => return (None, on_error(error)),
    };
    match cursor.next() {
        Ok(RawStep::Bytes { start, mut data }) => {
            if let Some((_, switch_lsn)) = switch {
                let room = usize::try_from(switch_lsn.bytes_since(start)).unwrap_or(usize::MAX);
                data.truncate(room);
            }
            (Some(cursor), Found::Piece(Piece::Wal { start_lsn: start, data }))
        }
        Ok(RawStep::AtEnd) => (Some(cursor), Found::Nothing),
        Ok(RawStep::Switched { next, lsn }) => (None, Found::Piece(Piece::Switched { next, lsn })),
        Err(error) => (None, on_error(error)),
    }
}

/// WAL beyond the end may still come; anything else is final.
fn on_error(error: StoreError) -> Found {
    match error {
        StoreError::Beyond { .. } => Found::Nothing,
        error => Found::Piece(Piece::Failed(error)),
    }
}

/// Opens a cursor on `timeline` or, where the store begins after it, on the first later timeline whose first segment
/// repeats the end of it (pg-facts, E4).
fn open(store: &Store, timeline: TimelineId, lsn: Lsn) -> Result<RawCursor, StoreError> {
    let error = match store.raw_cursor(timeline, lsn, Visibility::Durable) {
        Err(error @ (StoreError::Removed { .. } | StoreError::UnknownTimeline { .. })) => error,
        opened_or_failed => return opened_or_failed,
    };
    let mut ancestor = timeline;
    while let Some((next, _)) = store.switch_of(ancestor) {
        if store.start_of(next).is_some_and(|start| start <= lsn) {
            return store.raw_cursor(next, lsn, Visibility::Durable);
        }
        ancestor = next;
    }
    Err(error)
}
