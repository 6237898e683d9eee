//! Messages of a base backup, but for its files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{WirePath, text_u64};
use crate::pg::{Lsn, TimelineId};

/// Begin a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupStart {
    /// The label, as in `pg_backup_start`.
    pub label: String,
    /// Do not spread the checkpoint.
    pub fast_checkpoint: bool,
    /// For all file connections together; `None` for as fast as it goes.
    pub max_rate_bytes_per_second: Option<u64>,
    /// Compress file chunks with zstd at this level; `None` sends them as they are.
    pub compression: Option<i32>,
}

/// What the source is doing; repeated at least every [`crate::link::HEARTBEAT_EVERY`] while the taker waits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupPhase {
    /// What it is doing.
    pub phase: Phase,
    /// Done of it, when that can be known.
    pub done_bytes: u64,
    /// All of it; zero when unknown.
    pub total_bytes: u64,
}

/// The stretches of a backup that the taker waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `pg_backup_start` waits for its checkpoint.
    Checkpoint,
    /// The data directory is walked and cut into jobs.
    Planning,
    /// Files are being read.
    Copying,
    /// `pg_backup_stop` runs.
    Stopping,
    /// The last of the needed WAL is awaited.
    WaitingForWal,
    /// Something that a newer version does.
    #[serde(other)]
    Other,
}

/// The backup has begun.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BackupStarted {
    /// Its number at the source, for [`super::Purpose::Files`].
    pub backup: u64,
    /// Where replay of the copy will begin.
    pub start_lsn: Lsn,
    /// The timeline of `start_lsn`.
    pub timeline: TimelineId,
    /// The cluster's.
    #[serde(with = "text_u64")]
    pub system_identifier: u64,
    /// `wal_segment_size` in bytes.
    pub segment_size: u64,
    /// Such as 15.
    pub postgres_major: u32,
    /// `catalog_version_no`, part of the folder names in tablespaces.
    pub catalog_version: u32,
    /// Whether pages have checksums.
    pub data_checksums: bool,
    /// All tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Bytes to be copied, as the walk found them.
    pub total_bytes: u64,
    /// Files to be copied.
    pub files: u64,
    /// Folders to be made.
    pub folders: u64,
    /// Settings that a hot standby must have at least as high as its primary (`max_connections` and the like).
    #[serde(default)]
    pub standby_settings: BTreeMap<String, String>,
}

/// A tablespace, as it lies at the source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// The absolute path that the link points to at the source.
    pub path: String,
}

/// A part of what there is to copy, folders before what is in them. All parts together have the files and folders that
/// [`BackupStarted`] announced. Links in `pg_tblspc` are not listed: they follow from [`BackupStarted::tablespaces`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// Relative to the data directory; in a tablespace, through its link in `pg_tblspc`.
    pub path: WirePath,
    /// The size of a file when it was seen; `None` for a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Listed {
    /// How much of [`Listed::bytes_max`] may go into one part.
    pub const PART_BYTES: usize = 256 << 10;

    /// What it takes in a message at the most: JSON may need six characters for one.
    pub fn bytes_max(&self) -> usize {
        const AROUND: usize = 64;
        self.path.as_path().as_os_str().len() * 6 + AROUND
    }
}

/// The backup has ended; the control file is still to come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupStopped {
    /// The copy is consistent once replayed to here.
    pub stop_lsn: Lsn,
    /// The timeline of `stop_lsn`.
    pub timeline: TimelineId,
    /// The file `backup_label`, byte for byte.
    pub backup_label: String,
    /// The file `tablespace_map`, byte for byte; empty for none.
    pub tablespace_map: String,
    /// The cluster's, once more.
    #[serde(with = "text_u64")]
    pub system_identifier: u64,
    /// Files that were answered for on all connections together: the taker must have as many.
    pub files: u64,
    /// Their bytes, sent or found equal.
    pub bytes: u64,
}
