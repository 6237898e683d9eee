//! WAL in PostgreSQL's own `pg_wal` past the point where its timeline was left: whether PostgreSQL can be brought back
//! there, and how (pg-facts, U3).
//!
//! A page goes to a standby's disk only once pg_control's minRecoveryPoint has passed the record that changed it. So while
//! that lies at or below the fork no file holds anything of what lies past it, and PostgreSQL is back there when it finds no
//! WAL to replay any further. All functions block; PostgreSQL is stopped.

use std::fs;
use std::io;
use std::path::Path;

use crate::durable::{self, FileError};
use crate::failpoint;
use crate::pg::control::{ClusterState, ControlError, ControlFile};
use crate::pg::label::BACKUP_LABEL_FILE;
use crate::pg::record::RecordScanner;
use crate::pg::{Lsn, SegmentSize, TimelineId, WAL_PAGE_BYTES};

const WAL_FOLDER: &str = "pg_wal";

/// Why a standby's files can't be brought back to a fork by removing WAL.
#[derive(Debug, thiserror::Error)]
pub enum Mixed {
    /// They hold what lies past it.
    #[error("its files hold changes up to {reached}, past {fork}")]
    Past {
        /// How far they go.
        reached: Lsn,
        /// Where the timeline was left.
        fork: Lsn,
    },
    /// The base backup that they came from reaches past it, or may.
    #[error("the base backup that they came from was not replayed to its end")]
    Backup,
    /// They are not a standby's.
    #[error("PostgreSQL was left \"{0}\", not as a standby")]
    State(ClusterState),
    /// How far they go is not known.
    #[error("how far its files go is not known")]
    Unknown,
    /// The control file can't be read.
    #[error("how far its files go is not known: {0}")]
    Control(ControlError),
    /// PostgreSQL would have it back from elsewhere.
    #[error("PostgreSQL has a restore_command ({0}), which may have the same WAL from an archive again")]
    Archive(String),
    /// Whole files were changed past it.
    #[error("databases, tablespaces or relations' files may have been changed up to {reached}, past {fork}")]
    Files {
        /// The last record that changes some.
        reached: Lsn,
        /// Where the timeline was left.
        fork: Lsn,
    },
}

/// Whether removing the WAL past `fork` brings the files of this data directory back there.
pub fn judge(data_directory: &Path, fork: Lsn) -> Result<(), Mixed> {
    let control = ControlFile::read(data_directory).map_err(Mixed::Control)?;
    if data_directory.join(BACKUP_LABEL_FILE).exists() {
        return Err(Mixed::Backup);
    }
    judge_control(&control, fork)
}

fn judge_control(control: &ControlFile, fork: Lsn) -> Result<(), Mixed> {
    match control.state {
        ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery => {}
        state => return Err(Mixed::State(state)),
    }
    if !control.minimum_recovery_lsn.is_valid() {
        return Err(Mixed::Unknown);
    }
    if control.backup_start_lsn.is_valid() {
        return Err(Mixed::Backup);
    }
    let reached = control.minimum_recovery_lsn.max(control.redo_lsn);
    if reached > fork {
        return Err(Mixed::Past { reached, fork });
    }
    // This one is where its record begins.
    if control.checkpoint_lsn >= fork {
        return Err(Mixed::Past { reached: control.checkpoint_lsn, fork });
    }
    Ok(())
}

/// Reads what `pg_wal` holds of a timeline past `fork`, segment by segment, as far as it is WAL that PostgreSQL would
/// replay, and hands it to `take`. An error when something of it changes files as a whole.
pub fn read(
    data_directory: &Path,
    size: SegmentSize,
    timeline: TimelineId,
    fork: Lsn,
    mut take: impl FnMut(Lsn, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Result<(), Mixed>> {
    let mut segment = size.segment_of(fork);
    let mut scanner = RecordScanner::new(size.first_lsn(segment));
    loop {
        let start = size.first_lsn(segment);
        let path = data_directory.join(WAL_FOLDER).join(size.file_name(timeline, segment));
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(FileError::new("read", &path, e).into()),
        };
        let is_whole = content.len() as u64 == size.bytes() && scanner.push(&content).is_ok();
        let ended = scanner.last_record_end().unwrap_or(start);
        let is_void = content.iter().rev().take(WAL_PAGE_BYTES as usize).all(|byte| *byte == 0);
        let end = if is_whole && !is_void { size.end_lsn(segment) } else { ended };
        let from = fork.max(start);
        let has = from.bytes_since(start) as usize..content.len().min(end.bytes_since(start) as usize);
        if !has.is_empty() {
            take(from, &content[has])?;
        }
        if !is_whole || (is_void && ended <= start) {
            break;
        }
        segment = segment.next();
    }
    match scanner.last_file_change().filter(|reached| *reached > fork) {
        Some(reached) => Ok(Err(Mixed::Files { reached, fork })),
        None => Ok(Ok(())),
    }
}

/// Removes from `pg_wal` what lies past `fork`, so that PostgreSQL's replay ends there. What it would read first goes
/// first; repeated, it finishes.
pub fn cut(
    data_directory: &Path,
    size: SegmentSize,
    timeline: TimelineId,
    fork: Lsn,
) -> Result<(), FileError> {
    let folder = data_directory.join(WAL_FOLDER);
    let segment = size.segment_of(fork);
    let offset = fork - size.first_lsn(segment);
    if offset > 0 {
        durable::zero_from(&folder.join(size.file_name(timeline, segment)), offset)?;
    }
    failpoint::hit("fork-segment-cut");
    let failed = |e| FileError::new("list", &folder, e);
    let mut surplus = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        // A file of an ancestor, past the end of that one, is taken where there is none of the timeline itself.
        let parsed = size.parse_file_name(name).filter(|(of, _)| *of <= timeline);
        if let Some((_, segment)) = parsed.filter(|(_, segment)| size.first_lsn(*segment) >= fork) {
            surplus.push((segment, name.to_owned()));
        }
    }
    surplus.sort_unstable();
    for (_, name) in surplus {
        durable::remove(&folder.join(&name))?;
        for mark in ["ready", "done"] {
            durable::remove(&folder.join("archive_status").join(format!("{name}.{mark}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_fixture::RandomWal;

    const TIMELINE: TimelineId = TimelineId(3);

    fn control(state: ClusterState, minimum: u64, checkpoint: u64, redo: u64, backup: u64) -> ControlFile {
        ControlFile {
            system_identifier: 7,
            control_version: 1300,
            catalog_version: 1,
            state,
            checkpoint_lsn: Lsn(checkpoint),
            redo_lsn: Lsn(redo),
            timeline: TIMELINE,
            minimum_recovery_lsn: Lsn(minimum),
            backup_start_lsn: Lsn(backup),
            full_page_writes: true,
            wal_log_hints: false,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            data_checksum_version: 0,
        }
    }

    #[test]
    fn files_are_below_the_fork_only_when_all_says_so() {
        use ClusterState::*;
        // State, minRecoveryPoint, checkpoint, redo, backup's start; what is said of a fork at 100.
        let cases = [
            (InArchiveRecovery, 100, 60, 50, 0, ""),
            (InArchiveRecovery, 99, 60, 50, 0, ""),
            (ShutDownInRecovery, 100, 60, 50, 0, ""),
            (InArchiveRecovery, 101, 60, 50, 0, "up to 0/65, past 0/64"),
            (ShutDownInRecovery, 200, 60, 50, 0, "up to 0/C8, past 0/64"),
            (InArchiveRecovery, 100, 100, 50, 0, "up to 0/64, past 0/64"),
            (InArchiveRecovery, 90, 130, 120, 0, "up to 0/78, past 0/64"),
            (InArchiveRecovery, 100, 60, 50, 40, "base backup"),
            (InArchiveRecovery, 0, 60, 50, 0, "not known"),
            (InProduction, 0, 60, 50, 0, "left \"in production\""),
            (InProduction, 100, 60, 50, 0, "left \"in production\""),
            (ShutDown, 0, 60, 50, 0, "left \"shut down\""),
            (InCrashRecovery, 90, 60, 50, 0, "left \"in crash recovery\""),
            (ShuttingDown, 90, 60, 50, 0, "left \"shutting down\""),
            (Starting, 90, 60, 50, 0, "left \"starting up\""),
        ];
        for (state, minimum, checkpoint, redo, backup, expected) in cases {
            let judged = judge_control(&control(state, minimum, checkpoint, redo, backup), Lsn(100));
            let said = judged.err().map(|mixed| mixed.to_string()).unwrap_or_default();
            let fits = said.contains(expected) && said.is_empty() == expected.is_empty();
            assert!(fits, "{state} {minimum} {checkpoint} {redo} {backup}: {said:?}");
        }
    }

    #[test]
    fn a_control_file_that_cannot_be_read_and_a_backup_that_was_not_begun_are_past() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(judge(folder.path(), Lsn(100)), Err(Mixed::Control(_))));
        fs::create_dir(folder.path().join("global")).unwrap();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/control/15/pg_control");
        fs::copy(fixture, folder.path().join("global/pg_control")).unwrap();
        assert!(matches!(judge(folder.path(), Lsn(100)), Err(Mixed::State(_))));
        fs::write(folder.path().join(BACKUP_LABEL_FILE), "").unwrap();
        assert!(matches!(judge(folder.path(), Lsn(100)), Err(Mixed::Backup)));
    }

    /// A `pg_wal` with some segments of WAL, the last of them zeros at its end, and a recycled one behind it.
    fn pg_wal(seed: u64) -> (tempfile::TempDir, RandomWal, SegmentSize) {
        let folder = tempfile::tempdir().unwrap();
        let wal = RandomWal::new(seed, 3_000);
        let size = SegmentSize::new(crate::pg::wal_fixture::SEGMENT_BYTES).unwrap();
        let place = folder.path().join(WAL_FOLDER);
        fs::create_dir_all(place.join("archive_status")).unwrap();
        let mut segment = size.segment_of(wal.start);
        let mut last = Vec::new();
        for piece in wal.bytes.chunks(size.bytes() as usize) {
            last = piece.to_vec();
            last.resize(size.bytes() as usize, 0);
            fs::write(place.join(size.file_name(TIMELINE, segment)), &last).unwrap();
            segment = segment.next();
        }
        fs::write(place.join(size.file_name(TIMELINE, segment)), last).unwrap();
        (folder, wal, size)
    }

    #[test]
    fn what_lies_past_a_fork_is_read_as_far_as_it_is_wal() {
        for seed in 0..8 {
            let (folder, wal, size) = pg_wal(seed);
            for at in [0, 1, wal.record_ends.len() / 3, wal.record_ends.len() - 1] {
                let fork = wal.record_ends[at];
                let mut found = Vec::new();
                let taken = read(folder.path(), size, TIMELINE, fork, |from, raw| {
                    assert_eq!(from, fork + found.len() as u64);
                    found.extend_from_slice(raw);
                    Ok(())
                });
                taken.unwrap().unwrap();
                let end = *wal.record_ends.last().unwrap();
                let expected =
                    &wal.bytes[(fork - wal.start) as usize..wal.bytes.len().min((end - wal.start) as usize)];
                assert!(found == expected, "seed {seed}: {} of {} bytes", found.len(), expected.len());
            }
        }
    }

    #[test]
    fn cut_no_wal_is_left_past_the_fork_and_all_of_it_below() {
        for seed in 0..8 {
            let (folder, wal, size) = pg_wal(seed);
            let place = folder.path().join(WAL_FOLDER);
            let fork = match seed {
                0 => size.start_of(wal.start + size.bytes() + 5),
                _ => wal.record_ends[wal.record_ends.len() * seed as usize / 9],
            };
            let beyond = size.segment_of(fork + 3 * size.bytes());
            let others = [
                (size.file_name(TimelineId(2), beyond), false),
                (size.file_name(TimelineId(4), beyond), true),
                (size.file_name(TimelineId(1), size.segment_of(Lsn(0))), true),
                ("00000003.history".to_owned(), true),
            ];
            others.iter().for_each(|(name, _)| fs::write(place.join(name), "").unwrap());
            let mark = place.join("archive_status").join(size.file_name(TimelineId(2), beyond) + ".ready");
            fs::write(&mark, "").unwrap();
            for _ in 0..2 {
                cut(folder.path(), size, TIMELINE, fork).unwrap();
                read(folder.path(), size, TIMELINE, fork, |from, raw| panic!("{} from {from}", raw.len()))
                    .unwrap()
                    .unwrap();
            }
            for (name, stays) in others {
                assert_eq!(place.join(&name).exists(), stays, "{name}");
            }
            assert!(!mark.exists());
            let mut at = wal.start;
            while at < fork {
                let content = fs::read(place.join(size.file_name(TIMELINE, size.segment_of(at)))).unwrap();
                let below = (fork - at).min(size.bytes()) as usize;
                assert!(content[..below] == wal.bytes[(at - wal.start) as usize..][..below]);
                assert!(content[below..].iter().all(|byte| *byte == 0));
                at = at + size.bytes();
            }
        }
    }
}
