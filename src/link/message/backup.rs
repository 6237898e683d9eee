//! Messages of a base backup.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Digest, WirePath, take_fields, text_u64};
use crate::link::LinkError;
use crate::link::frame::Frame;
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

/// A file or folder of the backup. Folders have neither chunks nor an end. Links in `pg_tblspc` are not sent: they
/// follow from [`BackupStarted::tablespaces`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileBegin {
    /// Relative to the data directory; in a tablespace, through its link in `pg_tblspc`.
    pub path: WirePath,
    /// What it is.
    pub kind: EntryKind,
    /// Exactly so many bytes follow.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time in whole seconds since 1970 UTC.
    pub modified_unix_seconds: i64,
}

/// What stands at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
}

/// Consecutive bytes of the file that [`FileBegin`] opened on this connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileChunk {
    /// Where in the file.
    pub offset: u64,
    /// `data` is one whole zstd frame that decodes to at most [`FileChunk::RAW_LIMIT_BYTES`]; otherwise it is the
    /// file's bytes.
    pub compressed: bool,
    /// The bytes.
    pub data: Bytes,
}

const COMPRESSED: u8 = 1;

impl FileChunk {
    /// The most bytes of a file that one chunk may stand for.
    pub const RAW_LIMIT_BYTES: usize = 2 << 20;

    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut fields = BytesMut::with_capacity(8);
        fields.put_u64(self.offset);
        let flags = if self.compressed { COMPRESSED } else { 0 };
        Frame { kind, flags, fields: fields.freeze(), body: self.data, ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<FileChunk, LinkError> {
        let Frame { flags, body: mut data, .. } = frame;
        let fields: [u8; 8] = take_fields("FileChunk", &mut data)?;
        let malformed = |reason: String| LinkError::Malformed { message: "FileChunk", reason };
        if flags & !COMPRESSED != 0 {
            return Err(malformed(format!("flags {flags:#04x} are unknown")));
        }
        let compressed = flags & COMPRESSED != 0;
        if !compressed && data.len() > FileChunk::RAW_LIMIT_BYTES {
            return Err(malformed(format!("{} bytes, over the limit", data.len())));
        }
        Ok(FileChunk { offset: (&fields[..]).get_u64(), compressed, data })
    }
}

/// The file is complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileEnd {
    /// Bytes sent; equal to [`FileBegin::size`].
    pub size: u64,
    /// Of the bytes sent.
    pub sha256: Digest,
    /// Modification time in whole seconds since 1970 UTC, after the reading.
    pub modified_unix_seconds: i64,
    /// Pages whose checksum was wrong twice.
    pub bad_pages: u32,
    /// The number of the first of them within this file.
    pub first_bad_page: Option<u32>,
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
    /// Files that were sent on all connections together: the taker must have as many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}
