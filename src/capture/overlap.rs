//! The check that the server's past is still the store's, and then the appending: one batch after the other.
//!
//! Capture asks for WAL from a little before the store's end. What comes twice must be equal: a server that was put
//! back to an old state and went on differently would otherwise be shipped as a continuation of what it is not. Every
//! record's checksum is looked at on the way, and whether the last one is a shutdown.

use bytes::{Buf, Bytes};

use super::CaptureError;
use crate::pg::record::RecordScanner;
use crate::pg::{Lsn, TimelineId};
use crate::store::{RawCursor, RawStep, StoreError, Visibility, Writer};

/// Takes WAL in order: compares what the store has, appends what it lacks. Blocks.
pub(super) struct Absorber {
    writer: Writer,
    overlap: Option<Overlap>,
    /// Gone when the WAL is not what we know.
    records: Option<RecordScanner>,
}

/// The stretch from the position asked for to the store's end.
struct Overlap {
    timeline: TimelineId,
    cursor: RawCursor,
    /// Read from the store and not yet compared.
    ours: Bytes,
    at: Lsn,
    end: Lsn,
}

impl Absorber {
    /// Expects WAL of `timeline`, the store's newest, from `start` on, which is at or before the store's end.
    pub fn new(writer: Writer, timeline: TimelineId, start: Lsn) -> Result<Absorber, StoreError> {
        let end = writer.end().map_or(start, |(_, end)| end);
        assert!(start <= end, "asked for WAL beyond the store's end");
        let overlap = if start == end {
            None
        } else {
            let cursor = writer.store().raw_cursor(timeline, start, Visibility::Appended)?;
            Some(Overlap { timeline, cursor, ours: Bytes::new(), at: start, end })
        };
        Ok(Absorber { writer, overlap, records: Some(RecordScanner::new(start)) })
    }

    /// Where the WAL ends, when it ends in a shutdown checkpoint. Read from the WAL itself: a second source, such as
    /// pg_control, would be about another moment.
    pub fn shutdown_end(&self) -> Option<Lsn> {
        self.records.as_ref().filter(|records| records.ends_in_shutdown()).map(RecordScanner::position)
    }

    /// Takes the next batch, which ends where a message of the server's ended.
    pub fn absorb(&mut self, lsn: Lsn, wal: &[u8]) -> Result<(), CaptureError> {
        if let Some(Err(error)) = self.records.as_mut().map(|records| records.push(wal)) {
            tracing::error!("PostgreSQL's WAL is damaged, and so a shutdown in it is not seen: {error}");
            self.records = None;
        }
        let mut rest = wal;
        if let Some(overlap) = &mut self.overlap {
            rest = overlap.compare(lsn, wal)?;
            if overlap.at == overlap.end {
                self.overlap = None;
            }
        }
        if !rest.is_empty() {
            self.writer.append(lsn + (wal.len() - rest.len()) as u64, rest)?;
        }
        Ok(())
    }
}

impl Overlap {
    /// Compares the part that lies before the store's end; returns the rest.
    fn compare<'a>(&mut self, lsn: Lsn, mut theirs: &'a [u8]) -> Result<&'a [u8], CaptureError> {
        if lsn != self.at {
            return Err(CaptureError::Gap { expected: self.at, received: lsn });
        }
        while !theirs.is_empty() && self.at < self.end {
            if self.ours.is_empty() {
                self.ours = self.read()?;
            }
            let length = self.ours.len().min(theirs.len());
            let (now, later) = theirs.split_at(length);
            if let Some(index) = now.iter().zip(&self.ours).position(|(theirs, ours)| theirs != ours) {
                let lsn = self.at + index as u64;
                return Err(CaptureError::PastDiffers { timeline: self.timeline, lsn });
            }
            self.ours.advance(length);
            self.at = self.at + length as u64;
            theirs = later;
        }
        Ok(theirs)
    }

    fn read(&mut self) -> Result<Bytes, StoreError> {
        match self.cursor.next()? {
            RawStep::Bytes { start, data } if start == self.at => {
                // Nothing is appended before the comparison is done, but be sure.
                Ok(data.slice(..data.len().min((self.end - self.at) as usize)))
            }
            _ => Err(StoreError::Gap { offered: self.at, end: self.end }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SegmentSize;
    use crate::pg::wal_fixture::{Random, RandomWal, SEGMENT_BYTES, SYSTEM_IDENTIFIER};
    use crate::store::{NewStore, Store, TimelineIdentity};

    const TIMELINE: TimelineId = TimelineId::FIRST;

    /// A store that has the first part of some WAL.
    fn store_with(folder: &std::path::Path, wal: &RandomWal, end: Lsn) -> Store {
        let segment_size = SegmentSize::new(SEGMENT_BYTES).unwrap();
        let store = Store::create(folder, NewStore { system_identifier: SYSTEM_IDENTIFIER, segment_size });
        let store = store.unwrap();
        let mut writer = store.writer().unwrap();
        writer
            .begin_timeline(
                TimelineIdentity { timeline: TIMELINE, parent: None, branch: None },
                None,
                wal.start,
            )
            .unwrap();
        writer.append(wal.start, &wal.bytes[..(end - wal.start) as usize]).unwrap();
        store
    }

    /// Offers WAL from the start on, in batches that end with records.
    fn offer(store: &Store, wal: &RandomWal, random: &mut Random) -> Result<(), CaptureError> {
        let mut absorber = Absorber::new(store.writer()?, TIMELINE, wal.start)?;
        let mut at = wal.start;
        for &end in &wal.record_ends {
            if random.below(3) == 0 || Some(&end) == wal.record_ends.last() {
                let range = (at - wal.start) as usize..(end - wal.start) as usize;
                absorber.absorb(at, &wal.bytes[range])?;
                at = end;
            }
        }
        Ok(())
    }

    #[test]
    fn an_equal_past_is_continued_and_another_one_is_not() {
        for seed in 0..8 {
            let mut random = Random::new(seed);
            let wal = RandomWal::new(seed, 200);
            let end = wal.record_ends[random.below(wal.record_ends.len() as u64) as usize];
            let last = wal.end();
            let folder = tempfile::tempdir().unwrap();
            let store = store_with(&folder.path().join("equal"), &wal, end);
            offer(&store, &wal, &mut random).unwrap();
            assert_eq!(store.end_of(TIMELINE), Some(last), "seed {seed}");

            let store = store_with(&folder.path().join("other"), &wal, end);
            let mut other = RandomWal::new(seed, 200);
            let changed = random.below(end - wal.start);
            other.bytes[changed as usize] ^= 1;
            let error = offer(&store, &other, &mut random).unwrap_err();
            let expected = wal.start + changed;
            assert!(
                matches!(error, CaptureError::PastDiffers { lsn, .. } if lsn == expected),
                "seed {seed}: {error}"
            );
            assert_eq!(store.end_of(TIMELINE), Some(end), "nothing is appended, seed {seed}");
        }
    }
}
