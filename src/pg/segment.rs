//! WAL segments: their size, numbers and file names (`access/xlog_internal.h`).

use std::fmt;

use super::page::{LONG_HEADER_BYTES, SHORT_HEADER_BYTES};
use super::{Lsn, TimelineId, WAL_PAGE_BYTES};

/// `wal_segment_size`: a power of two from 1 MiB to 1 GiB, fixed when the cluster is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentSize(u64);

/// The number of a segment, counted from the beginning of the WAL; the same on every timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNumber(pub u64);

/// A size that no PostgreSQL can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{bytes} is not a WAL segment size; PostgreSQL has powers of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError {
    bytes: u64,
}

impl SegmentSize {
    /// Checks a size in bytes as the server, `pg_control` or a peer gave it.
    pub fn new(bytes: u64) -> Result<SegmentSize, SegmentSizeError> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if valid { Ok(SegmentSize(bytes)) } else { Err(SegmentSizeError { bytes }) }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The segment that holds the byte at `lsn`.
    pub fn segment_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.0)
    }

    /// The first position of the segment that holds `lsn`.
    pub fn start_of(self, lsn: Lsn) -> Lsn {
        lsn.align_down(self.0)
    }

    /// The first position of a segment.
    pub fn first_lsn(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0 * self.0)
    }

    /// The position after the last byte of a segment.
    pub fn end_lsn(self, segment: SegmentNumber) -> Lsn {
        Lsn((segment.0 + 1) * self.0)
    }

    /// The furthest that a record can end which ends at or below `lsn`: `lsn` itself, but where a page begins no record
    /// ends within its header. `pg_current_wal_insert_lsn()` gives the position behind such a header while the last
    /// record ended before it, so nobody ever replays up to there until more is written.
    pub fn record_end_within(self, lsn: Lsn) -> Lsn {
        let page = lsn.align_down(WAL_PAGE_BYTES);
        let header_bytes = if page == self.start_of(page) { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
        if lsn - page <= header_bytes as u64 { page } else { lsn }
    }

    /// PostgreSQL's file name, `XLogFileName`: timeline, then the number split at 4 GiB.
    pub fn file_name(self, timeline: TimelineId, segment: SegmentNumber) -> String {
        let per_xlog_id = (1u64 << 32) / self.0;
        format!("{:08X}{:08X}{:08X}", timeline.0, segment.0 / per_xlog_id, segment.0 % per_xlog_id)
    }

    /// Reads a file name back; `None` when it is not 24 upper-case hexadecimal digits or cannot be of this size.
    pub fn parse_file_name(self, name: &str) -> Option<(TimelineId, SegmentNumber)> {
        let plain =
            name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        if !plain {
            return None;
        }
        let field = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
        let (timeline, high, low) = (field(0)?, u64::from(field(8)?), u64::from(field(16)?));
        let per_xlog_id = (1u64 << 32) / self.0;
        (timeline > 0 && low < per_xlog_id)
            .then(|| (TimelineId(timeline), SegmentNumber(high * per_xlog_id + low)))
    }
}

impl SegmentNumber {
    /// The segment that follows.
    pub fn next(self) -> SegmentNumber {
        SegmentNumber(self.0 + 1)
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn file_names_round_trip(bits in 20u32..=30, timeline in 1u32.., lsn in 0u64..1 << 60) {
            let size = SegmentSize::new(1 << bits).unwrap();
            let segment = size.segment_of(Lsn(lsn));
            let name = size.file_name(TimelineId(timeline), segment);
            prop_assert_eq!(size.parse_file_name(&name), Some((TimelineId(timeline), segment)));
        }
    }

    #[test]
    fn names_are_postgresqls() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let lsn: Lsn = "1/C7DD0F8".parse().unwrap();
        assert_eq!(size.file_name(TimelineId(4), size.segment_of(lsn)), "00000004000000010000000C");
        assert_eq!(size.parse_file_name("0000000400000001000000FF").map(|(_, s)| s.0), Some(511));
        assert_eq!(size.parse_file_name("000000040000000100000100"), None, "low part out of range");
        assert_eq!(size.parse_file_name("00000004000000010000000c"), None, "lower case");
    }

    #[test]
    fn no_record_ends_within_a_header() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let within = |lsn| size.record_end_within(Lsn(lsn)).0;
        let (segment, page) = (3 << 20, (3 << 20) + 8192);
        assert_eq!(
            [segment, segment + 8, segment + 40, segment + 48].map(within),
            [segment, segment, segment, segment + 48]
        );
        assert_eq!([page - 8, page, page + 24, page + 32].map(within), [page - 8, page, page, page + 32]);
        assert_eq!(within(0), 0);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 1, 512 << 10, 3 << 20, 2 << 30, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }
}
