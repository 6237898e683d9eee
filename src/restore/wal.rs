//! The WAL that belongs to a copy: a stream of bytes becomes segments in its `pg_wal`.
//!
//! Bytes arrive in order from the start of a segment on; a gap is an error, since PostgreSQL would take it for zeros
//! (pg-facts, rule 2). Segments have their full size from the first byte. Blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::durable::{self, FileError};
use crate::pg::{Lsn, SegmentNumber, SegmentSize, TimelineId};

/// Writes the WAL of one timeline into a data directory.
#[derive(Debug)]
pub struct WalFiles {
    folder: PathBuf,
    timeline: TimelineId,
    segment_size: SegmentSize,
    end: Lsn,
    open: Option<Segment>,
}

#[derive(Debug)]
struct Segment {
    number: SegmentNumber,
    file: File,
    path: PathBuf,
}

/// WAL that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WalFilesError {
    /// The bytes do not follow those before.
    #[error("the WAL has a gap: {got} came where {expected} was due")]
    Gap {
        /// Where the bytes before ended.
        expected: Lsn,
        /// Where these begin.
        got: Lsn,
    },
    /// It ended early.
    #[error("the WAL ends at {end}, and the copy needs it up to {needed}")]
    Short {
        /// Where it ended.
        end: Lsn,
        /// Where the backup ended.
        needed: Lsn,
    },
    /// The file system said no.
    #[error(transparent)]
    File(#[from] FileError),
}

impl WalFiles {
    /// Writes below `data_directory`, from the start of the segment that holds `start_lsn`.
    pub fn create(
        data_directory: &Path,
        timeline: TimelineId,
        segment_size: SegmentSize,
        start_lsn: Lsn,
    ) -> Result<WalFiles, WalFilesError> {
        let folder = data_directory.join("pg_wal");
        durable::create_folder(&folder.join("archive_status"))?;
        let end = segment_size.start_of(start_lsn);
        Ok(WalFiles { folder, timeline, segment_size, end, open: None })
    }

    /// After the last byte; the next must come from here.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Writes the bytes that begin at `start`.
    pub fn append(&mut self, start: Lsn, mut bytes: &[u8]) -> Result<(), WalFilesError> {
        if start != self.end {
            return Err(WalFilesError::Gap { expected: self.end, got: start });
        }
        while !bytes.is_empty() {
            let number = self.segment_size.segment_of(self.end);
            let segment = match self.open.take() {
                Some(segment) if segment.number == number => segment,
                Some(complete) => {
                    self.close(complete)?;
                    self.begin(number)?
                }
                None => self.begin(number)?,
            };
            let room = self.segment_size.end_lsn(number) - self.end;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let offset = self.end - self.segment_size.first_lsn(number);
            let written = segment.file.write_all_at(now, offset);
            written.map_err(|e| FileError::new("write", &segment.path, e))?;
            self.end = self.end + now.len() as u64;
            self.open = Some(segment);
            bytes = later;
        }
        Ok(())
    }

    /// Writes the history of a timeline, without which a later promotion would not know its ancestors.
    pub fn write_history(&self, timeline: TimelineId, history: &[u8]) -> Result<(), WalFilesError> {
        let name = timeline.history_file_name();
        durable::write(&self.folder.join(&name), history)?;
        Ok(self.mark_archived(&name)?)
    }

    /// Makes all of it durable, once it reaches at least `stop_lsn`.
    pub fn finish(mut self, stop_lsn: Lsn) -> Result<(), WalFilesError> {
        if self.end < stop_lsn {
            return Err(WalFilesError::Short { end: self.end, needed: stop_lsn });
        }
        if let Some(segment) = self.open.take() {
            self.close(segment)?;
        }
        Ok(durable::sync_folder(&self.folder)?)
    }

    fn begin(&self, number: SegmentNumber) -> Result<Segment, FileError> {
        let path = self.folder.join(self.segment_size.file_name(self.timeline, number));
        let file = durable::create_new(&path)?;
        let bytes = self.segment_size.bytes();
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A file system that cannot reserve gets a file with a hole.
            Err(Errno::OPNOTSUPP) => file.set_len(bytes).map_err(|e| FileError::new("extend", &path, e))?,
            result => result.map_err(|e| FileError::new("reserve the size of", &path, e.into()))?,
        }
        Ok(Segment { number, file, path })
    }

    fn close(&self, segment: Segment) -> Result<(), FileError> {
        durable::sync_data(&segment.file, &segment.path)?;
        self.mark_archived(&self.segment_size.file_name(self.timeline, segment.number))
    }

    /// The source archives its WAL itself; a copy that is started as a primary must not do it again.
    fn mark_archived(&self, name: &str) -> Result<(), FileError> {
        durable::write(&self.folder.join("archive_status").join(format!("{name}.done")), b"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MIB: u64 = 1 << 20;

    fn files(root: &Path) -> WalFiles {
        let size = SegmentSize::new(MIB).unwrap();
        WalFiles::create(root, TimelineId(2), size, Lsn(5 * MIB + 40)).unwrap()
    }

    #[test]
    fn a_stream_becomes_whole_segments() {
        let root = tempfile::tempdir().unwrap();
        let mut wal = files(root.path());
        assert_eq!(wal.end(), Lsn(5 * MIB), "from the start of the segment");
        let stream: Vec<u8> = (0..2 * MIB + 100).map(|n| (n % 251) as u8 + 1).collect();
        let mut at = 0;
        for length in [1, 8192, 3, 2 * MIB as usize] {
            let piece = &stream[at..stream.len().min(at + length)];
            wal.append(Lsn(5 * MIB + at as u64), piece).unwrap();
            at += piece.len();
        }
        wal.write_history(TimelineId(2), b"1\t0/1\tx\n").unwrap();
        wal.finish(Lsn(7 * MIB + 100)).unwrap();
        let read = |name: &str| fs::read(root.path().join("pg_wal").join(name)).unwrap();
        let mut content = read("000000020000000000000005");
        content.extend(read("000000020000000000000006"));
        content.extend(read("000000020000000000000007"));
        assert_eq!(content.len() as u64, 3 * MIB);
        assert!(content.starts_with(&stream));
        assert!(content[stream.len()..].iter().all(|&byte| byte == 0));
        assert_eq!(read("archive_status/000000020000000000000007.done"), b"");
        assert_eq!(read("00000002.history"), b"1\t0/1\tx\n");
    }

    #[test]
    fn gaps_and_early_ends_are_errors() {
        let root = tempfile::tempdir().unwrap();
        let mut wal = files(root.path());
        for wrong in [5 * MIB + 1, 5 * MIB - 1] {
            assert!(matches!(wal.append(Lsn(wrong), b"x"), Err(WalFilesError::Gap { .. })));
        }
        wal.append(Lsn(5 * MIB), b"x").unwrap();
        let error = wal.finish(Lsn(5 * MIB + 2)).unwrap_err();
        assert_eq!(error.to_string(), "the WAL ends at 0/500001, and the copy needs it up to 0/500002");
    }
}
