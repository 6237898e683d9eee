//! How far a restore is: what a progress bar shows.

use std::fmt;

use crate::link::message;

/// Plain numbers, written as the copy goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What is being done or waited for.
    pub phase: Phase,
    /// Bytes of files that are as at the source: written, or left as they were.
    pub done_bytes: u64,
    /// Those that were here already.
    pub equal_bytes: u64,
    /// Bytes of files to come in all, as the source found them; zero when not yet known.
    pub total_bytes: u64,
    /// Files that are complete.
    pub files: u64,
    /// Files to come in all.
    pub total_files: u64,
    /// Bytes of files as they came over the wire.
    pub wire_bytes: u64,
    /// Bytes of WAL written.
    pub wal_bytes: u64,
    /// How often it was begun; what is counted above is of the last time.
    pub attempts: u32,
}

impl Progress {
    /// True while a copy is being made.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Done)
    }
}

/// The stretches of a restore.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    /// Nothing is copied.
    #[default]
    Idle,
    /// Reaching the source.
    Connecting,
    /// The source's PostgreSQL makes its checkpoint.
    WaitingForCheckpoint,
    /// The source looks through its data directory.
    Planning,
    /// Files arrive.
    Copying,
    /// The source's PostgreSQL ends the backup.
    Stopping,
    /// The last of the WAL arrives.
    WaitingForWal,
    /// Everything is made durable and complete.
    Finishing,
    /// The copy is complete.
    Done,
}

impl Phase {
    /// What the source says it does.
    pub(super) fn from_source(phase: message::Phase) -> Option<Phase> {
        match phase {
            message::Phase::Checkpoint => Some(Phase::WaitingForCheckpoint),
            message::Phase::Planning => Some(Phase::Planning),
            message::Phase::Copying => Some(Phase::Copying),
            message::Phase::Stopping => Some(Phase::Stopping),
            message::Phase::WaitingForWal => Some(Phase::WaitingForWal),
            message::Phase::Other => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Idle => "nothing is copied",
            Phase::Connecting => "connecting",
            Phase::WaitingForCheckpoint => "waiting for the checkpoint",
            Phase::Planning => "looking for files",
            Phase::Copying => "copying",
            Phase::Stopping => "ending the backup",
            Phase::WaitingForWal => "waiting for WAL",
            Phase::Finishing => "making it durable",
            Phase::Done => "done",
        })
    }
}
