//! `global/pg_control`: what a cluster is and how it was last left (`catalog/pg_control.h`, PostgreSQL 14 to 18).
//!
//! The file is the in-memory struct of a little-endian, 8-byte aligned build, protected by a CRC-32C behind its
//! last field. Every field used here has the same offset in all supported versions; only the end moved in 18.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Lsn, SegmentSize, TimelineId};

/// Its path in the data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Its size on disk, whatever the version: the rest is zeros.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// The settings that a standby must have as high as its primary, in the order in which a control file holds them.
const LIMITS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// How often one is read whose checksum is wrong, and the pause in between.
const READS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(10);

/// What a control file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlFile {
    /// The cluster's identity, from `initdb`.
    pub system_identifier: u64,
    /// Format of the control file: 1300 for PostgreSQL 13 to 16, 1700, 1800.
    pub control_version: u32,
    /// Format of the catalogs; it is in the name of every tablespace's folder.
    pub catalog_version: u32,
    /// How the cluster was last left.
    pub state: ClusterState,
    /// The last checkpoint's record.
    pub checkpoint_lsn: Lsn,
    /// Where replay would begin.
    pub redo_lsn: Lsn,
    /// The last checkpoint's timeline.
    pub timeline: TimelineId,
    /// A standby is consistent from here; zero when the cluster was not in recovery.
    pub minimum_recovery_lsn: Lsn,
    /// Where the base backup began whose end has not been replayed yet; zero when there is none.
    pub backup_start_lsn: Lsn,
    /// `full_page_writes` at the last checkpoint.
    pub full_page_writes: bool,
    /// `wal_log_hints`, as the server last ran.
    pub wal_log_hints: bool,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
    /// Version of the data page checksums; zero when there are none.
    pub data_checksum_version: u32,
}

/// `DBState`: how a cluster was last left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// Starting for the first time.
    Starting,
    /// Shut down cleanly as a primary.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// Was shutting down.
    ShuttingDown,
    /// Was replaying after a crash.
    InCrashRecovery,
    /// Running as a standby, or crashed as one.
    InArchiveRecovery,
    /// Running as a primary, or crashed as one.
    InProduction,
}

/// A control file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Fewer bytes than any version has.
    #[error("pg_control has only {bytes} bytes")]
    Short {
        /// What there is.
        bytes: usize,
    },
    /// A version that is not known here.
    #[error(
        "pg_control has format {version}; walship knows PostgreSQL 14 to 18 (formats 1300, 1700 and 1800)"
    )]
    Version {
        /// What the file says.
        version: u32,
    },
    /// The bytes changed since PostgreSQL wrote them, or were read while it wrote them.
    #[error("the checksum of pg_control is wrong: computed {computed:08X}, stored {stored:08X}")]
    Checksum {
        /// Of the bytes.
        computed: u32,
        /// In the file.
        stored: u32,
    },
    /// A field holds what PostgreSQL cannot have written there.
    #[error("pg_control holds an impossible {field}: {value}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

/// Offsets in `ControlFileData`; the embedded `CheckPoint` begins at 40.
mod offset {
    pub const SYSTEM_IDENTIFIER: usize = 0;
    pub const CONTROL_VERSION: usize = 8;
    pub const CATALOG_VERSION: usize = 12;
    pub const STATE: usize = 16;
    pub const CHECKPOINT: usize = 32;
    pub const REDO: usize = 40;
    pub const TIMELINE: usize = 48;
    pub const FULL_PAGE_WRITES: usize = 56;
    pub const MINIMUM_RECOVERY: usize = 136;
    pub const BACKUP_START: usize = 152;
    pub const WAL_LOG_HINTS: usize = 176;
    /// The first of [`super::LIMITS`], four bytes each.
    pub const LIMITS: usize = 180;
    pub const SEGMENT_SIZE: usize = 228;
    pub const DATA_CHECKSUM_VERSION: usize = 252;
}

impl ControlFile {
    /// Reads and checks the control file of a data directory. Blocks, a moment longer where the checksum is wrong: a read
    /// that meets a write of PostgreSQL's is torn, and the next one is not.
    pub fn read(data_directory: &Path) -> Result<ControlFile, ControlError> {
        for _ in 1..READS {
            match ControlFile::read_once(data_directory) {
                Err(ControlError::Checksum { .. }) => std::thread::sleep(PAUSE),
                read => return read,
            }
        }
        ControlFile::read_once(data_directory)
    }

    fn read_once(data_directory: &Path) -> Result<ControlFile, ControlError> {
        let path = data_directory.join(CONTROL_FILE);
        let bytes = fs::read(&path).map_err(|source| ControlError::Read { path, source })?;
        ControlFile::parse(&bytes)
    }

    /// Reads the content of a control file, its checksum first of all.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        let short = || ControlError::Short { bytes: bytes.len() };
        let version = field_u32(bytes, offset::CONTROL_VERSION).ok_or_else(short)?;
        let checksum_at = checksum_offset(version).ok_or(ControlError::Version { version })?;
        let stored = field_u32(bytes, checksum_at).ok_or_else(short)?;
        let computed = crc32c::crc32c(&bytes[..checksum_at]);
        if computed != stored {
            return Err(ControlError::Checksum { computed, stored });
        }
        let u32_at = |at| field_u32(bytes, at).ok_or_else(short);
        let u64_at = |at| field_u64(bytes, at).ok_or_else(short);
        // Below the checksum, so they are there.
        let is_set = |at: usize| bytes[at] != 0;
        Ok(ControlFile {
            system_identifier: u64_at(offset::SYSTEM_IDENTIFIER)?,
            control_version: version,
            catalog_version: u32_at(offset::CATALOG_VERSION)?,
            state: ClusterState::from_raw(u32_at(offset::STATE)?)?,
            checkpoint_lsn: Lsn(u64_at(offset::CHECKPOINT)?),
            redo_lsn: Lsn(u64_at(offset::REDO)?),
            timeline: timeline_from(u32_at(offset::TIMELINE)?)?,
            minimum_recovery_lsn: Lsn(u64_at(offset::MINIMUM_RECOVERY)?),
            backup_start_lsn: Lsn(u64_at(offset::BACKUP_START)?),
            full_page_writes: is_set(offset::FULL_PAGE_WRITES),
            wal_log_hints: is_set(offset::WAL_LOG_HINTS),
            segment_size: segment_size_from(u32_at(offset::SEGMENT_SIZE)?)?,
            data_checksum_version: u32_at(offset::DATA_CHECKSUM_VERSION)?,
        })
    }

    /// What the server that wrote the control file of a data directory had for the settings that a standby must have as
    /// high. Blocks.
    pub fn limits_in(data_directory: &Path) -> Result<BTreeMap<String, String>, ControlError> {
        ControlFile::read(data_directory)?;
        let path = data_directory.join(CONTROL_FILE);
        let bytes = fs::read(&path).map_err(|source| ControlError::Read { path, source })?;
        ControlFile::limits(&bytes)
    }

    fn limits(bytes: &[u8]) -> Result<BTreeMap<String, String>, ControlError> {
        let limit = |(index, name): (usize, &&str)| {
            let value = field_u32(bytes, offset::LIMITS + 4 * index);
            let value = value.ok_or(ControlError::Short { bytes: bytes.len() })?;
            Ok(((*name).to_owned(), value.to_string()))
        };
        LIMITS.iter().enumerate().map(limit).collect()
    }

    /// True when data pages carry checksums.
    pub fn has_data_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }
}

impl ClusterState {
    fn from_raw(raw: u32) -> Result<ClusterState, ControlError> {
        Ok(match raw {
            0 => ClusterState::Starting,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            other => return Err(ControlError::Field { field: "cluster state", value: other.into() }),
        })
    }

    /// True when PostgreSQL stopped in order; otherwise it runs, or crashed.
    pub fn is_clean(self) -> bool {
        matches!(self, ClusterState::ShutDown | ClusterState::ShutDownInRecovery)
    }
}

impl fmt::Display for ClusterState {
    /// The words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClusterState::Starting => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::InCrashRecovery => "in crash recovery",
            ClusterState::InArchiveRecovery => "in archive recovery",
            ClusterState::InProduction => "in production",
        })
    }
}

/// 18 has one more byte, `default_char_signedness`, before the nonce.
fn checksum_offset(control_version: u32) -> Option<usize> {
    match control_version {
        1300 | 1700 => Some(288),
        1800 => Some(292),
        _ => None,
    }
}

fn timeline_from(raw: u32) -> Result<TimelineId, ControlError> {
    if raw == 0 { Err(ControlError::Field { field: "timeline", value: 0 }) } else { Ok(TimelineId(raw)) }
}

fn segment_size_from(raw: u32) -> Result<SegmentSize, ControlError> {
    let value = u64::from(raw);
    SegmentSize::new(value).map_err(|_| ControlError::Field { field: "WAL segment size", value })
}

fn field_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn field_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(major: u32) -> Vec<u8> {
        let path = format!("{}/fixtures/control/{major}/pg_control", env!("CARGO_MANIFEST_DIR"));
        fs::read(path).unwrap()
    }

    /// The fixtures are the first 512 bytes of what `initdb` of each version wrote; the values are those that
    /// `pg_controldata` printed.
    #[test]
    fn every_supported_version_is_read() {
        let known = [
            (14, 7711349599934125871, 1300, 202107181, 0xA43200, 1),
            (15, 7711349833985173420, 1300, 202209061, 0x17414F8, 16),
            (16, 7711349602911291208, 1300, 202307071, 0x1720FC8, 16),
            (17, 7711349605610125153, 1700, 202406281, 0x17218D8, 16),
            (18, 7711349608282015610, 1800, 202506291, 0x174B290, 16),
        ];
        for (major, system_identifier, control_version, catalog_version, checkpoint, mebibytes) in known {
            let expected = ControlFile {
                system_identifier,
                control_version,
                catalog_version,
                state: ClusterState::ShutDown,
                checkpoint_lsn: Lsn(checkpoint),
                redo_lsn: Lsn(checkpoint),
                timeline: TimelineId(1),
                minimum_recovery_lsn: Lsn::INVALID,
                backup_start_lsn: Lsn::INVALID,
                full_page_writes: true,
                wal_log_hints: false,
                segment_size: SegmentSize::new(mebibytes << 20).unwrap(),
                data_checksum_version: 1,
            };
            assert_eq!(ControlFile::parse(&fixture(major)).unwrap(), expected, "PostgreSQL {major}");
        }
    }

    #[test]
    fn the_limits_of_a_new_cluster_are_read() {
        for major in 14..=18 {
            let limits = ControlFile::limits(&fixture(major)).unwrap();
            let values: Vec<&str> = LIMITS.iter().map(|name| limits[*name].as_str()).collect();
            assert_eq!(values, ["100", "8", "10", "0", "64"], "PostgreSQL {major}");
        }
        assert!(ControlFile::limits(&fixture(15)[..199]).is_err());
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        for major in [15, 18] {
            let good = fixture(major);
            for at in 0..292 {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert!(ControlFile::parse(&bad).is_err(), "PostgreSQL {major}, byte {at}");
            }
        }
    }

    #[test]
    fn short_and_foreign_files_are_refused() {
        let good = fixture(15);
        for length in 0..292 {
            assert!(
                matches!(ControlFile::parse(&good[..length]), Err(ControlError::Short { .. })),
                "{length}"
            );
        }
        let mut future = good;
        future[8..12].copy_from_slice(&1900u32.to_le_bytes());
        assert!(matches!(ControlFile::parse(&future), Err(ControlError::Version { version: 1900 })));
    }
}
