//! Why capture paused or stopped, and which of the two it is.

use std::time::Duration;

use crate::fault;
use crate::pg::replication::ReplicationError;
use crate::pg::sql::SqlError;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::store::StoreError;

/// A capture that cannot go on, for now or for good.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A query failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The replication connection failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The store failed.
    #[error("write to the store: {}", fault::in_full(.0))]
    Store(StoreError),
    /// Not the cluster that the store was made for.
    #[error(
        "PostgreSQL's system identifier is {theirs}, the store's {ours}: this is another cluster; \
         point the connection string at the right one, or give this one a store of its own"
    )]
    WrongSystem {
        /// The store's.
        ours: u64,
        /// The server's.
        theirs: u64,
    },
    /// As above: one cluster has one segment size.
    #[error("PostgreSQL's WAL segments have {theirs}, the store's {ours}: this is another cluster")]
    WrongSegmentSize {
        /// The store's.
        ours: SegmentSize,
        /// The server's.
        theirs: SegmentSize,
    },
    /// A server that does not write WAL of its own.
    #[error("PostgreSQL is a standby; capture waits until it is a primary")]
    IsStandby,
    /// The slot's name is taken.
    #[error("the replication slot {name} is a logical one; drop it, or name another in replication.slot")]
    SlotIsLogical {
        /// The slot.
        name: String,
    },
    /// The server forgot WAL that the store holds as durable.
    #[error(
        "PostgreSQL's WAL ends at {flushed}, but the store already holds it up to {durable}: this server was \
         put back to an earlier state (a restored copy, a snapshot, a lying disk), and its standbys are ahead of it"
    )]
    PastIsShorter {
        /// The server's end.
        flushed: Lsn,
        /// The store's end.
        durable: Lsn,
    },
    /// The server has other WAL than the store at the same position.
    #[error(
        "PostgreSQL's WAL differs from the store's at {lsn} on timeline {timeline}: this server was put back to an \
         earlier state and went on differently, and its standbys follow what is in the store"
    )]
    PastDiffers {
        /// The timeline.
        timeline: TimelineId,
        /// The first byte that differs.
        lsn: Lsn,
    },
    /// The server removed WAL that was not captured yet.
    #[error(
        "PostgreSQL removed WAL before it was captured: {} on timeline {timeline} is missing, which nobody can follow \
         over; `walship primary --new-log` begins a new log, and every standby must then be seeded anew",
        missing(*.from, *.to)
    )]
    WalLost {
        /// The timeline.
        timeline: TimelineId,
        /// The store's end.
        from: Lsn,
        /// From here on the slot holds it again; at or below `from` when that is not known.
        to: Lsn,
    },
    /// The server is on a timeline that no promotion by walship made.
    #[error(
        "PostgreSQL is on timeline {theirs}, the store on {ours}: somebody promoted or recovered it without walship; \
         its WAL is not shipped until the timeline is adopted"
    )]
    UnknownTimeline {
        /// The store's newest.
        ours: TimelineId,
        /// The server's.
        theirs: TimelineId,
    },
    /// The server is behind a promotion.
    #[error(
        "PostgreSQL is on timeline {theirs}, but the store already follows timeline {ours}: this is an old primary, \
         or an old copy of one"
    )]
    OldTimeline {
        /// The store's newest.
        ours: TimelineId,
        /// The server's.
        theirs: TimelineId,
    },
    /// The server's timeline does not descend from the store's.
    #[error("timeline {theirs} of PostgreSQL does not descend from timeline {ours} of the store")]
    Unrelated {
        /// The store's newest.
        ours: TimelineId,
        /// The server's.
        theirs: TimelineId,
    },
    /// A history file that cannot be read.
    #[error("PostgreSQL's history of timeline {timeline} cannot be read: {reason}")]
    BadHistory {
        /// Whose history.
        timeline: TimelineId,
        /// What is wrong.
        reason: String,
    },
    /// WAL did not follow on what came before.
    #[error("PostgreSQL sent WAL at {received} where {expected} was expected")]
    Gap {
        /// Where it had to begin.
        expected: Lsn,
        /// Where it began.
        received: Lsn,
    },
    /// The slot let go of the segment before the store's end, which is complete.
    #[error("PostgreSQL no longer has the segment before {end}, to be compared with the store's")]
    NothingToCompare {
        /// The store's end.
        end: Lsn,
    },
    /// A timeline ended before it began to be streamed.
    #[error("PostgreSQL ended timeline {timeline} at {lsn}")]
    TimelineEnded {
        /// The timeline.
        timeline: TimelineId,
        /// Where.
        lsn: Lsn,
    },
    /// Nothing came, not even an answer to our question.
    #[error("PostgreSQL has been silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The disk under the store hangs: the connection is given up, so that PostgreSQL can be stopped.
    #[error("the store has not taken any WAL for {} s", .0.as_secs())]
    StoreHangs(Duration),
    /// A task of ours died.
    #[error("a task of capture's failed: {0}")]
    Task(String),
}

impl CaptureError {
    /// True when only a person can mend it, so trying again is pointless, or would do harm.
    pub fn is_final(&self) -> bool {
        use CaptureError::{
            BadHistory, OldTimeline, PastDiffers, PastIsShorter, SlotIsLogical, UnknownTimeline, Unrelated,
            WalLost, WrongSegmentSize, WrongSystem,
        };
        match self {
            WrongSystem { .. } | WrongSegmentSize { .. } | SlotIsLogical { .. } => true,
            PastIsShorter { .. } | PastDiffers { .. } | WalLost { .. } => true,
            UnknownTimeline { .. } | OldTimeline { .. } | Unrelated { .. } | BadHistory { .. } => true,
            CaptureError::Replication(error) => {
                matches!(error, ReplicationError::NotInHistory { .. })
            }
            CaptureError::Sql(error) => matches!(error, SqlError::Unsupported { .. }),
            CaptureError::Store(error) => {
                matches!(error, StoreError::Corrupt { .. } | StoreError::BadFrame(_))
            }
            _ => false,
        }
    }

    /// True when the store did not take what was offered.
    pub(super) fn is_of_store(&self) -> bool {
        use CaptureError::{PastDiffers, Store, StoreHangs, Task};
        matches!(self, Store(_) | StoreHangs(_) | PastDiffers { .. } | Task(_))
    }

    /// True when it mends itself, as a restart of PostgreSQL does: nobody has to look.
    pub fn is_passing(&self) -> bool {
        match self {
            CaptureError::Sql(error) => error.is_transient(),
            CaptureError::Replication(error) => error.is_transient(),
            CaptureError::Silent(_) | CaptureError::IsStandby => true,
            CaptureError::TimelineEnded { .. } | CaptureError::NothingToCompare { .. } => true,
            CaptureError::Store(StoreError::WriterTaken) => true,
            // The store itself tells of its disk.
            CaptureError::Store(error) => error.is_of_disk(),
            _ => false,
        }
    }
}

/// A gap in words. Some of it PostgreSQL may still have, but nothing keeps it there.
fn missing(from: Lsn, to: Lsn) -> String {
    if to > from { format!("WAL from {from} on, at most to {to},") } else { format!("WAL from {from} on") }
}

impl From<StoreError> for CaptureError {
    fn from(error: StoreError) -> CaptureError {
        CaptureError::Store(error)
    }
}

impl From<tokio::task::JoinError> for CaptureError {
    fn from(error: tokio::task::JoinError) -> CaptureError {
        CaptureError::Task(error.to_string())
    }
}
