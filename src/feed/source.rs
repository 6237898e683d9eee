//! WAL out of the store for one stream, in pieces that may be sent as they are.
//!
//! The store is read on blocking threads; between reads a source waits for the store to grow. A position beyond the
//! store's end is waited for too: the standby may be ahead of us, and that is no error. Records are given whole:
//! [`whole`](super::whole) says why.

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::whole::{Held, Scan};
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
    tasks: TaskTracker,
    reader: Option<Box<Reader>>,
    reading: Option<JoinHandle<(Box<Reader>, Found)>>,
    held: Held,
    positions: watch::Receiver<Positions>,
    at_end: bool,
}

/// The blocking half: where the next read begins, and what it needs.
struct Reader {
    store: Store,
    timeline: TimelineId,
    lsn: Lsn,
    cursor: Option<RawCursor>,
    scan: Scan,
}

/// What one read found.
enum Found {
    /// WAL, which follows on what was found before.
    Wal {
        data: Bytes,
        /// Below here all records are whole.
        whole_lsn: Option<Lsn>,
    },
    /// Something that no WAL follows.
    Last(Piece),
    Nothing,
}

impl Source {
    /// A source from `lsn` of `timeline`, whose reads `tasks` keeps track of.
    pub(super) fn new(store: Store, tasks: TaskTracker, timeline: TimelineId, lsn: Lsn) -> Source {
        let positions = store.positions();
        let reader = Reader { store, timeline, lsn, cursor: None, scan: Scan::new(lsn) };
        let (reader, held) = (Some(Box::new(reader)), Held::new(lsn));
        Source { tasks, reader, reading: None, held, positions, at_end: false }
    }

    /// How far was given.
    pub(super) fn lsn(&self) -> Lsn {
        self.held.given_lsn()
    }

    /// How far the store is durable, on its newest timeline.
    pub(super) fn store_lsn(&self) -> Lsn {
        self.positions.borrow().durable
    }

    /// The next piece, as soon as there is one. Cancellation-safe: a read under way goes on, and its result is
    /// returned by the next call.
    pub(super) async fn next(&mut self) -> anyhow::Result<Piece> {
        loop {
            if let Some((start_lsn, data)) = self.held.take() {
                return Ok(Piece::Wal { start_lsn, data });
            }
            if self.at_end {
                self.positions.changed().await.context("wait for the store to grow")?;
                self.at_end = false;
            }
            if let Some(mut reader) = self.reader.take() {
                // What changes from here on is a change to be waited for.
                self.positions.mark_unchanged();
                if reader.is_at_end() {
                    (self.reader, self.at_end) = (Some(reader), true);
                    continue;
                }
                self.reading = Some(self.tasks.spawn_blocking(move || {
                    let found = reader.read();
                    (reader, found)
                }));
            }
            let reading = self.reading.as_mut().context("an earlier read of the store failed")?;
            let read = reading.await;
            self.reading = None;
            let (reader, found) = read.context("read the store")?;
            self.reader = Some(reader);
            match found {
                Found::Nothing => self.at_end = true,
                Found::Wal { data, whole_lsn } => self.held.put(data, whole_lsn),
                Found::Last(piece) => {
                    if let Piece::Switched { lsn, .. } = piece {
                        self.held.end_at(lsn);
                    }
                    match self.held.take() {
                        // The next read finds the end again.
                        Some((start_lsn, data)) => return Ok(Piece::Wal { start_lsn, data }),
                        None => return Ok(piece),
                    }
                }
            }
        }
    }
}

impl Reader {
    /// Whether there is nothing to read for now, as far as that can be said without the disk.
    fn is_at_end(&self) -> bool {
        let goes_on = self.store.switch_of(self.timeline).is_none_or(|(_, lsn)| self.lsn < lsn);
        goes_on && self.cursor.as_ref().is_some_and(RawCursor::is_at_end)
    }

    /// Reads one step, never past the end of the timeline. Blocks.
    fn read(&mut self) -> Found {
        let switch = self.store.switch_of(self.timeline);
        if let Some((next, lsn)) = switch.filter(|(_, lsn)| self.lsn >= *lsn) {
            return Found::Last(Piece::Switched { next, lsn });
        }
        let opened = match self.cursor.take() {
            Some(cursor) => Ok(cursor),
            None => open(&self.store, self.timeline, self.lsn),
        };
        let mut cursor = match opened {
            Ok(cursor) => cursor,
            Err(error) => return on_error(error),
        };
        match cursor.next() {
            Ok(RawStep::Bytes { start, mut data }) => {
                // PostgreSQL does not check this: a gap would be replayed.
                assert_eq!(start, self.lsn, "the store gave another position than was due");
                if let Some((_, switch_lsn)) = switch {
                    let room = usize::try_from(switch_lsn.bytes_since(start)).unwrap_or(usize::MAX);
                    data.truncate(room);
                }
                self.cursor = Some(cursor);
                self.lsn = start + data.len() as u64;
                let whole_lsn = self.scan.push(&data, self.lsn);
                Found::Wal { data, whole_lsn }
            }
            Ok(RawStep::AtEnd) => {
                self.cursor = Some(cursor);
                Found::Nothing
            }
            Ok(RawStep::Switched { next, lsn }) => Found::Last(Piece::Switched { next, lsn }),
            Err(error) => on_error(error),
        }
    }
}

/// WAL beyond the end may still come; anything else is final.
fn on_error(error: StoreError) -> Found {
    match error {
        StoreError::Beyond { .. } => Found::Nothing,
        error => Found::Last(Piece::Failed(error)),
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
