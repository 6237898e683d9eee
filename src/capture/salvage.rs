//! The last of a stopped PostgreSQL's WAL into the store: what its pg_wal has beyond what was streamed.
//!
//! A primary that died may have flushed WAL that nobody streamed from it any more. Its files tell where it ends: behind
//! the last record whose checksum is right, as in PostgreSQL's own recovery. What the store has already must be equal.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::CaptureError;
use super::overlap::Absorber;
use crate::durable::FileError;
use crate::pg::record::RecordScanner;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::store::{Store, StoreError};

const PIECE_BYTES: usize = 1 << 20;

/// Why it can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file in pg_wal.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is another WAL than the store's.
    #[error("pg_wal does not continue the store")]
    Differs(#[source] Box<CaptureError>),
}

/// Takes what `pg_wal` has of the store's newest timeline beyond the store, and fsyncs it; where the WAL ends. PostgreSQL
/// is not running. Blocks.
pub fn from_pg_wal(store: &Store, pg_wal: &Path) -> Result<Lsn, SalvageError> {
    let writer = store.writer()?;
    let Some((timeline, end)) = writer.end() else { return Ok(Lsn::INVALID) };
    let size = store.identity().segment_size;
    let start = size.start_of(end).max(store.start_of(timeline).unwrap_or(end));
    let files = Files { pg_wal, timeline, size };
    let valid_end = files.valid_end(start)?;
    if valid_end.is_none_or(|valid_end| valid_end <= end) {
        drop(writer);
        return Ok(store.sync()?);
    }
    let valid_end = valid_end.unwrap_or(end);
    let mut absorber = Absorber::new(writer, timeline, start)?;
    files.read(start, |at, piece| {
        let left = valid_end.bytes_since(at).min(piece.len() as u64) as usize;
        absorber.absorb(at, &piece[..left]).map_err(|error| SalvageError::Differs(Box::new(error)))?;
        Ok(at + (left as u64) < valid_end)
    })?;
    drop(absorber);
    tracing::info!(from = %end, to = %valid_end, "took WAL that PostgreSQL had flushed and nobody had streamed");
    Ok(store.sync()?)
}

/// The files of one timeline in pg_wal.
struct Files<'a> {
    pg_wal: &'a Path,
    timeline: TimelineId,
    size: SegmentSize,
}

impl Files<'_> {
    /// Where the last whole record ends; `None` when there is none from `start`, a segment's, on.
    fn valid_end(&self, start: Lsn) -> Result<Option<Lsn>, SalvageError> {
        let mut scanner = RecordScanner::new(start);
        self.read(start, |_, piece| Ok(scanner.push(piece).is_ok()))?;
        Ok(scanner.last_record_end())
    }

    /// Gives piece after piece, as long as `take` wants more and there are files.
    fn read(
        &self,
        start: Lsn,
        mut take: impl FnMut(Lsn, &[u8]) -> Result<bool, SalvageError>,
    ) -> Result<(), SalvageError> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = start;
        loop {
            let segment = self.size.segment_of(at);
            let path = self.pg_wal.join(self.size.file_name(self.timeline, segment));
            let failed = |e| FileError::new("read", &path, e);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(failed(e).into()),
            };
            while at < self.size.end_lsn(segment) {
                if let Err(e) = file.read_exact(&mut piece) {
                    // Shorter than a segment it is not PostgreSQL's, or was cut.
                    return if e.kind() == io::ErrorKind::UnexpectedEof {
                        Ok(())
                    } else {
                        Err(failed(e).into())
                    };
                }
                if !take(at, &piece)? {
                    return Ok(());
                }
                at = at + PIECE_BYTES as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    use crate::pg::wal_fixture::RandomWal;
    use crate::store::{NewStore, TimelineIdentity, Visibility};

    /// A store with the first part of some WAL, and a pg_wal with all of it and old bytes behind.
    fn prepared(folder: &Path, kept: usize) -> (Store, RandomWal, PathBuf) {
        let wal = RandomWal::new(11, 4_000);
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let new = NewStore { system_identifier: 7, segment_size };
        let store = Store::create(&folder.join("store"), new).unwrap();
        let mut writer = store.writer().unwrap();
        let identity = TimelineIdentity { timeline: TimelineId::FIRST, parent: None, branch: None };
        writer.begin_timeline(identity, None, wal.start).unwrap();
        writer.append(wal.start, &wal.bytes[..kept]).unwrap();
        writer.sync().unwrap();
        let pg_wal = folder.join("pg_wal");
        std::fs::create_dir(&pg_wal).unwrap();
        for (index, bytes) in wal.bytes.chunks(1 << 20).enumerate() {
            let at = wal.start + (index << 20) as u64;
            let name = segment_size.file_name(TimelineId::FIRST, segment_size.segment_of(at));
            let mut content = bytes.to_vec();
            // A file that was used before: its pages belong elsewhere.
            let zeroed = content.len().next_multiple_of(8192).min(1 << 20);
            content.resize(zeroed, 0);
            content.resize(1 << 20, 0xA5);
            std::fs::write(pg_wal.join(name), content).unwrap();
        }
        (store, wal, pg_wal)
    }

    fn read_all(store: &Store, from: Lsn) -> Vec<u8> {
        let mut cursor = store.raw_cursor(TimelineId::FIRST, from, Visibility::Durable).unwrap();
        let mut all = Vec::new();
        while let crate::store::RawStep::Bytes { data, .. } = cursor.next().unwrap() {
            all.extend_from_slice(&data);
        }
        all
    }

    #[test]
    fn what_was_flushed_and_not_streamed_is_taken_to_the_last_whole_record() {
        let folder = tempfile::tempdir().unwrap();
        let (store, wal, pg_wal) = prepared(folder.path(), 3 * 8192);
        let end = from_pg_wal(&store, &pg_wal).unwrap();
        let mut scanner = RecordScanner::new(wal.start);
        scanner.push(&wal.bytes).unwrap();
        assert_eq!(Some(end), scanner.last_record_end());
        let taken = read_all(&store, wal.start);
        assert!(taken.len() > 1 << 20 && wal.bytes.starts_with(&taken), "{} bytes", taken.len());
        assert_eq!(from_pg_wal(&store, &pg_wal).unwrap(), end, "again it is the same");
        std::fs::remove_dir_all(&pg_wal).unwrap();
        std::fs::create_dir(&pg_wal).unwrap();
        assert_eq!(from_pg_wal(&store, &pg_wal).unwrap(), end, "without files the store's end");
    }

    #[test]
    fn wal_that_is_not_the_stores_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (store, wal, pg_wal) = prepared(folder.path(), 3 * 8192);
        let other = RandomWal::new(12, 4_000);
        let size = store.identity().segment_size;
        let name = size.file_name(TimelineId::FIRST, size.segment_of(other.start));
        let mut content = other.bytes[..(1 << 20).min(other.bytes.len())].to_vec();
        content.resize(1 << 20, 0);
        std::fs::write(pg_wal.join(name), content).unwrap();
        assert!(matches!(from_pg_wal(&store, &pg_wal), Err(SalvageError::Differs(_))));
        assert_eq!(read_all(&store, wal.start).len(), 3 * 8192);
    }
}
