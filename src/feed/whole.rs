//! Only whole records are sent.
//!
//! A primary may be lost when it has shipped the beginning of a record and not the rest. The next timeline then forks off
//! before that record. A standby that was sent the beginning up to the end of a segment, where PostgreSQL always
//! flushes, asks the next timeline for the following segment; its PostgreSQL then looks for the segment of the fork, which
//! it never got, and PANICs, at every start anew (seen with 15.18 and 17.12). So the beginning of a record is kept
//! back until the rest is there. Nobody waits for it: half a record can't be replayed.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::pg::Lsn;
use crate::pg::record::RecordScanner;

/// No more than this is kept back: the beginning of a longer record is sent. Only messages that an application writes to
/// the WAL itself get this long.
const HELD_BYTES_MAX: usize = 8 << 20;

/// Says how far WAL that is read in order consists of whole records.
pub(super) struct Scan(Option<RecordScanner>);

impl Scan {
    /// Expects its first byte at `start`. From within a page it can't tell, and takes all for whole.
    pub(super) fn new(start: Lsn) -> Scan {
        Scan(start.is_page_boundary().then(|| RecordScanner::new(start)))
    }

    /// Takes the WAL from `start` to `end`; returns below which position all records are whole, `None` when there is
    /// no such position yet. What is not valid WAL is not kept back: PostgreSQL says best what is wrong with it.
    pub(super) fn push(&mut self, data: &[u8], end: Lsn) -> Option<Lsn> {
        let Some(scanner) = &mut self.0 else { return Some(end) };
        match scanner.push(data) {
            Ok(()) => scanner.whole(),
            Err(error) => {
                tracing::warn!(%error, "the store holds what is no valid WAL");
                self.0 = None;
                Some(end)
            }
        }
    }
}

/// WAL that was read, of which only whole records are given on. It is cut where it was cut when it came in, and at ends
/// of records.
pub(super) struct Held {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    given_lsn: Lsn,
    whole_lsn: Lsn,
}

impl Held {
    /// Nothing yet; the first byte will be that at `start`.
    pub(super) fn new(start: Lsn) -> Held {
        Held { pieces: VecDeque::new(), bytes: 0, given_lsn: start, whole_lsn: start }
    }

    /// How far was given.
    pub(super) fn given_lsn(&self) -> Lsn {
        self.given_lsn
    }

    /// Takes what comes next, and below which position all is whole now.
    pub(super) fn put(&mut self, data: Bytes, whole_lsn: Option<Lsn>) {
        self.bytes += data.len();
        self.pieces.push_back(data);
        let end = self.given_lsn + self.bytes as u64;
        let whole_lsn = if self.bytes > HELD_BYTES_MAX { Some(end) } else { whole_lsn };
        self.whole_lsn = self.whole_lsn.max(whole_lsn.unwrap_or(Lsn::INVALID)).min(end);
    }

    /// Nothing at or above `lsn` will be given, and all below.
    pub(super) fn end_at(&mut self, lsn: Lsn) {
        self.whole_lsn = lsn;
    }

    /// Gives the next piece: its first position, and the bytes.
    pub(super) fn take(&mut self) -> Option<(Lsn, Bytes)> {
        let room = self.whole_lsn.bytes_since(self.given_lsn);
        let front = self.pieces.front_mut().filter(|_| room > 0)?;
        let data = front.split_to(front.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        if front.is_empty() {
            self.pieces.pop_front();
        }
        let start = self.given_lsn;
        self.given_lsn = start + data.len() as u64;
        self.bytes -= data.len();
        Some((start, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_fixture::{Random, RandomWal};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_given_ends_with_whole_records_and_lacks_none(seed: u64) {
            let wal = RandomWal::new(seed, 100);
            let (mut scan, mut held) = (Scan::new(wal.start), Held::new(wal.start));
            let (mut random, mut read, mut given) = (Random::new(seed), 0, Vec::new());
            while read < wal.bytes.len() {
                let next = wal.bytes.len().min(read + 1 + random.below(30_000) as usize);
                let piece = Bytes::copy_from_slice(&wal.bytes[read..next]);
                let whole_lsn = scan.push(&piece, wal.start + next as u64);
                held.put(piece, whole_lsn);
                read = next;
                while let Some((start, data)) = held.take() {
                    prop_assert_eq!(start, wal.start + given.len() as u64);
                    given.extend_from_slice(&data);
                }
                let position = wal.start + read as u64;
                let complete = wal.record_ends.iter().rfind(|end| Lsn(end.0 & !7) <= position);
                // Padding and the next page's header may follow the last record.
                let end = wal.start + given.len() as u64;
                prop_assert!(complete.is_none_or(|complete| end >= *complete.min(&position)), "{end} of {complete:?}");
                let begun = wal.record_ends.iter().any(|ends| *ends > end && held.bytes > 0);
                prop_assert!(held.bytes == 0 || begun, "{} bytes are kept back at {end}", held.bytes);
            }
            prop_assert!(given == wal.bytes[..given.len()]);
        }
    }

    #[test]
    fn a_record_of_any_length_takes_a_bounded_room() {
        let mut held = Held::new(Lsn(1 << 20));
        let piece = Bytes::from(vec![0; 1 << 20]);
        let mut given = 0;
        for _ in 0..50 {
            held.put(piece.clone(), None);
            assert!(held.bytes <= HELD_BYTES_MAX + piece.len());
            given += std::iter::from_fn(|| held.take()).map(|(_, data)| data.len()).sum::<usize>();
        }
        assert_eq!(given + held.bytes, 50 << 20);
        assert!(held.bytes <= HELD_BYTES_MAX);
    }

    #[test]
    fn a_timeline_that_ends_ends_what_is_given() {
        let mut held = Held::new(Lsn(8192));
        held.put(Bytes::from(vec![0; 100]), Some(Lsn(8200)));
        held.put(Bytes::from(vec![0; 100]), None);
        held.end_at(Lsn(8320));
        let given: Vec<usize> = std::iter::from_fn(|| held.take()).map(|(_, data)| data.len()).collect();
        assert_eq!((given, held.given_lsn()), (vec![100, 28], Lsn(8320)));
    }

    #[test]
    fn what_is_no_wal_is_not_kept_back() {
        let end = Lsn(8192 + 100);
        assert_eq!(Scan::new(Lsn(8192)).push(&[7; 100], end), Some(end));
        assert_eq!(Scan::new(Lsn(8200)).push(&[7; 100], end), Some(end), "from within a page");
    }
}
