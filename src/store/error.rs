//! What can go wrong with a store.

use std::io;
use std::path::PathBuf;

use crate::durable::FileError;
use crate::pg::{Lsn, TimelineId};

/// An error of the store; callers branch on the first few.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The WAL asked for lies below what is kept.
    #[error("WAL from {lsn} on timeline {timeline} is no longer in the store, which begins at {start}")]
    Removed {
        /// The timeline asked for.
        timeline: TimelineId,
        /// The position asked for.
        lsn: Lsn,
        /// Where the store begins on that timeline.
        start: Lsn,
    },
    /// The timeline is not in the store.
    #[error("timeline {timeline} is not in the store")]
    UnknownTimeline {
        /// The timeline asked for.
        timeline: TimelineId,
    },
    /// The position lies beyond what is there.
    #[error("{lsn} on timeline {timeline} lies beyond the store's end, {end}")]
    Beyond {
        /// The timeline asked for.
        timeline: TimelineId,
        /// The position asked for.
        lsn: Lsn,
        /// The end of the store.
        end: Lsn,
    },
    /// Bytes offered do not follow on what is there.
    #[error("WAL at {offered} does not follow on the store's end, {end}")]
    Gap {
        /// Where the bytes would begin.
        offered: Lsn,
        /// Where the store ends.
        end: Lsn,
    },
    /// A file that is not what it should be.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Compressed bytes that can't be right.
    #[error("compressed WAL is damaged: {0}")]
    BadFrame(&'static str),
    /// Another process has the store open.
    #[error("the store {} is in use by another walship process", folder.display())]
    Locked {
        /// The store.
        folder: PathBuf,
    },
    /// There is a store already.
    #[error("{} already holds a store", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// There is none.
    #[error("{} holds no store", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A second writer was asked for.
    #[error("the store already has a writer")]
    WriterTaken,
    /// An fsync failed earlier, so what is on disk is unknown; only a restart, which reads it back, can tell.
    #[error("an earlier fsync of the store failed, so nothing more is promised until walship is restarted")]
    Failed,
    /// The two ends have different WAL at the same position.
    #[error("the store's timeline {timeline} ends at {end}, past the switch at {switch_lsn}")]
    PastSwitch {
        /// The old timeline.
        timeline: TimelineId,
        /// Where the new one branched off.
        switch_lsn: Lsn,
        /// Where the store's old timeline ends.
        end: Lsn,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// zstd refused.
    #[error("zstd: {0}")]
    Zstd(String),
}

impl StoreError {
    pub(super) fn zstd(error: io::Error) -> StoreError {
        StoreError::Zstd(error.to_string())
    }

    /// True when the disk under the store did not do what it was told: the store itself keeps and tells that, as its
    /// [`Troubles`](super::Troubles).
    pub fn is_of_disk(&self) -> bool {
        matches!(self, StoreError::File(_) | StoreError::Failed)
    }

    /// True when the disk under the store is full.
    pub fn is_full(&self) -> bool {
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, StoreError::File(error) if kinds.contains(&error.kind()))
    }
}
