//! Where WAL records end, and whether they are whole: a scanner over raw WAL (`access/xlogrecord.h`).
//!
//! It is pushed bytes in order from a segment's start, in pieces of any size, and keeps nothing but the current
//! record's header: the checksum is computed on the way. Of what records mean it knows no more than the one that a clean
//! stop ends with.

use super::page::{LONG_HEADER_BYTES, PageHeader, SHORT_HEADER_BYTES};
use super::{Lsn, WAL_PAGE_BYTES};

const RECORD_HEADER_BYTES: usize = 24;
const INFO_OFFSET: usize = 16;
const MANAGER_OFFSET: usize = 17;
const CRC_OFFSET: usize = 20;
/// `RM_XLOG_ID` and `XLOG_CHECKPOINT_SHUTDOWN`; the low bits of the info belong to the record's form.
const XLOG_MANAGER: u8 = 0;
const CHECKPOINT_SHUTDOWN: u8 = 0;
const INFO_MASK: u8 = 0xF0;
/// `RM_DBASE_ID`, `RM_TBLSPC_ID`, `RM_RELMAP_ID`: databases, tablespaces, the map of relations.
const FILE_MANAGERS: [u8; 3] = [4, 5, 7];
/// Records begin at multiples of eight, `MAXALIGN`.
const RECORD_ALIGNMENT: u64 = 8;

/// Bytes that are not valid WAL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// A page that does not belong here.
    #[error("the WAL page at {lsn} has the header of {found}")]
    WrongPage {
        /// Where it is.
        lsn: Lsn,
        /// What its header says.
        found: Lsn,
    },
    /// A length that no record can have.
    #[error("the WAL record at {lsn} claims {bytes} bytes")]
    BadLength {
        /// Where it begins.
        lsn: Lsn,
        /// `xl_tot_len`.
        bytes: u32,
    },
    /// A checksum that does not fit.
    #[error("the WAL record at {lsn} has a wrong checksum")]
    BadChecksum {
        /// Where it begins.
        lsn: Lsn,
    },
}

/// The scanner. After an error it must not be pushed further; its last record end stays valid.
#[derive(Debug)]
pub struct RecordScanner {
    position: Lsn,
    last_record_end: Option<Lsn>,
    /// What that record was; `None` when its beginning was not seen.
    last_record_is_shutdown: Option<bool>,
    /// The last record that changes whole files ended here.
    last_file_change: Option<Lsn>,
    /// The header of the current page, while it is incomplete.
    page_header: Partial<LONG_HEADER_BYTES>,
    within: Within,
}

#[derive(Debug)]
enum Within {
    /// At or before the start of a record; the bytes up to it are padding.
    Gap,
    /// In the tail of a record whose beginning was not seen.
    UnseenTail { left_bytes: u64 },
    /// In a record's header.
    Header { start: Lsn, header: Partial<RECORD_HEADER_BYTES> },
    /// In a record's body.
    Body { start: Lsn, header: [u8; RECORD_HEADER_BYTES], left_bytes: u64, crc: u32 },
    /// Behind an `XLOG_SWITCH`, to the end of the segment.
    Void,
}

impl RecordScanner {
    /// A scanner that expects its first byte at `segment_start`.
    pub fn new(segment_start: Lsn) -> RecordScanner {
        assert!(segment_start.is_page_boundary());
        RecordScanner {
            position: segment_start,
            last_record_end: None,
            last_record_is_shutdown: None,
            last_file_change: None,
            page_header: Partial::new(),
            within: Within::Gap,
        }
    }

    /// Where the next byte is expected.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The end of the last whole record, aligned as PostgreSQL reports it; `None` before the first.
    pub fn last_record_end(&self) -> Option<Lsn> {
        self.last_record_end
    }

    /// Whether what was pushed ends with the record of a shutdown checkpoint: the last thing that a server writes when it
    /// is stopped, after all its clients are gone, and the first when it has recovered from a crash, before any comes.
    pub fn ends_in_shutdown(&self) -> bool {
        let at_end = self.last_record_end.is_some_and(|end| self.position <= end);
        at_end && matches!(self.within, Within::Gap) && self.last_record_is_shutdown == Some(true)
    }

    /// Where the last record ended that changes whole files: replaying it, PostgreSQL does not wait until pg_control says
    /// how far it is, as it does before a page goes to disk. A record whose beginning was not seen does not count.
    pub fn last_file_change(&self) -> Option<Lsn> {
        self.last_file_change
    }

    /// The furthest position where what was pushed may be cut: the end of the last whole record or the last page
    /// boundary, whichever is later; `None` before either.
    pub fn safe_cut(&self) -> Option<Lsn> {
        let page = self.position.align_down(WAL_PAGE_BYTES);
        self.last_record_end.max(Some(page).filter(|page| page.is_valid()))
    }

    /// The furthest position below which every record that was pushed is whole: the end of all that was pushed, unless
    /// that lies in a record. `None` in the tail of a record whose beginning was not seen.
    pub fn whole(&self) -> Option<Lsn> {
        match self.within {
            Within::Gap | Within::Void => Some(self.position),
            Within::UnseenTail { .. } | Within::Header { .. } | Within::Body { .. } => self.last_record_end,
        }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), RecordError> {
        while !bytes.is_empty() {
            let page_offset = (self.position.0 % WAL_PAGE_BYTES) as usize;
            let taken = if page_offset == 0 || !self.page_header.is_empty() {
                self.take_page_header(bytes)?
            } else {
                let left_in_page = WAL_PAGE_BYTES as usize - page_offset;
                self.take_content(&bytes[..bytes.len().min(left_in_page)])?
            };
            bytes = &bytes[taken..];
            self.position = self.position + taken as u64;
        }
        Ok(())
    }

    fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        let mut taken = self.page_header.fill(bytes, SHORT_HEADER_BYTES);
        let wanted = PageHeader::header_bytes(self.page_header.filled()).unwrap_or(SHORT_HEADER_BYTES);
        taken += self.page_header.fill(&bytes[taken..], wanted);
        if self.page_header.filled().len() < wanted {
            return Ok(taken);
        }
        let header = PageHeader::parse(self.page_header.filled());
        self.page_header = Partial::new();
        let page_start = self.position.align_down(WAL_PAGE_BYTES);
        if let Some(header) = header {
            self.enter_page(page_start, header)?;
        }
        Ok(taken)
    }

    fn enter_page(&mut self, page_start: Lsn, header: PageHeader) -> Result<(), RecordError> {
        if header.is_void() {
            self.within = Within::Void;
            return Ok(());
        }
        if header.lsn != page_start {
            return Err(RecordError::WrongPage { lsn: page_start, found: header.lsn });
        }
        let interrupted = header.overwrites_record || matches!(self.within, Within::Void | Within::Gap);
        if interrupted {
            self.within = match u64::from(header.remaining_bytes) {
                0 => Within::Gap,
                left_bytes => Within::UnseenTail { left_bytes },
            };
        }
        Ok(())
    }

    /// Takes bytes that lie within one page, behind its header.
    fn take_content(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        match &mut self.within {
            Within::Void => Ok(bytes.len()),
            Within::Gap => {
                let padding = (self.position.0.next_multiple_of(RECORD_ALIGNMENT) - self.position.0) as usize;
                let taken = padding.min(bytes.len());
                if taken < bytes.len() || padding == 0 {
                    self.within =
                        Within::Header { start: self.position + taken as u64, header: Partial::new() };
                }
                Ok(taken)
            }
            Within::UnseenTail { left_bytes } => {
                let taken = bytes.len().min(*left_bytes as usize);
                *left_bytes -= taken as u64;
                if *left_bytes == 0 {
                    self.end_record(taken, None);
                }
                Ok(taken)
            }
            Within::Header { start, header } => {
                let taken = header.fill(bytes, RECORD_HEADER_BYTES);
                let (start, header) = (*start, header.clone());
                self.after_header_bytes(start, &header, taken)?;
                Ok(taken)
            }
            Within::Body { start, header, left_bytes, crc } => {
                let taken = bytes.len().min(*left_bytes as usize);
                *crc = crc32c::crc32c_append(*crc, &bytes[..taken]);
                *left_bytes -= taken as u64;
                if *left_bytes == 0 {
                    let (start, header, crc) = (*start, *header, *crc);
                    self.check_record(start, &header, crc)?;
                    self.end_record(taken, Some(&header));
                }
                Ok(taken)
            }
        }
    }

    fn after_header_bytes(
        &mut self,
        start: Lsn,
        header: &Partial<RECORD_HEADER_BYTES>,
        taken: usize,
    ) -> Result<(), RecordError> {
        let filled = header.filled();
        let total_bytes = match filled.get(..4) {
            Some(length) => u32::from_le_bytes([length[0], length[1], length[2], length[3]]),
            None => return Ok(()),
        };
        if total_bytes == 0 {
            self.within = Within::Void;
            return Ok(());
        }
        if (total_bytes as usize) < RECORD_HEADER_BYTES {
            return Err(RecordError::BadLength { lsn: start, bytes: total_bytes });
        }
        let Ok(whole) = <[u8; RECORD_HEADER_BYTES]>::try_from(filled) else { return Ok(()) };
        let left_bytes = u64::from(total_bytes) - RECORD_HEADER_BYTES as u64;
        if left_bytes == 0 {
            self.check_record(start, &whole, 0)?;
            self.end_record(taken, Some(&whole));
        } else {
            self.within = Within::Body { start, header: whole, left_bytes, crc: 0 };
        }
        Ok(())
    }

    /// The checksum covers the body first, then the header up to itself (`ValidXLogRecord`).
    fn check_record(
        &self,
        start: Lsn,
        header: &[u8; RECORD_HEADER_BYTES],
        crc: u32,
    ) -> Result<(), RecordError> {
        let crc = crc32c::crc32c_append(crc, &header[..CRC_OFFSET]);
        let stored = u32::from_le_bytes([header[20], header[21], header[22], header[23]]);
        if crc == stored { Ok(()) } else { Err(RecordError::BadChecksum { lsn: start }) }
    }

    fn end_record(&mut self, taken: usize, header: Option<&[u8; RECORD_HEADER_BYTES]>) {
        self.last_record_is_shutdown = header.map(|header| {
            header[MANAGER_OFFSET] == XLOG_MANAGER && header[INFO_OFFSET] & INFO_MASK == CHECKPOINT_SHUTDOWN
        });
        let end = (self.position.0 + taken as u64).next_multiple_of(RECORD_ALIGNMENT);
        self.last_record_end = Some(Lsn(end));
        if header.is_some_and(|header| FILE_MANAGERS.contains(&header[MANAGER_OFFSET])) {
            self.last_file_change = self.last_record_end;
        }
        self.within = Within::Gap;
    }
}

/// A few bytes that arrive in pieces.
#[derive(Clone, Debug)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Partial<N> {
    fn new() -> Partial<N> {
        Partial { bytes: [0; N], length: 0 }
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Takes from `source` until `wanted` bytes are there; says how many it took.
    fn fill(&mut self, source: &[u8], wanted: usize) -> usize {
        let taken = source.len().min(wanted.saturating_sub(self.length));
        self.bytes[self.length..self.length + taken].copy_from_slice(&source[..taken]);
        self.length += taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_fixture::{RandomWal, SEGMENT_BYTES};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn record_ends_do_not_depend_on_how_bytes_arrive(seed: u64, pieces in prop::collection::vec(1usize..20_000, 1..40)) {
            let wal = RandomWal::new(seed, 200);
            let mut scanner = RecordScanner::new(wal.start);
            let mut at = 0;
            for piece in pieces.iter().cycle() {
                let end = wal.bytes.len().min(at + piece);
                scanner.push(&wal.bytes[at..end]).unwrap();
                let position = wal.start + end as u64;
                let expected = wal.record_ends.iter().copied().rfind(|&end| Lsn(end.0 & !7) <= position);
                // The end is aligned, so it may lie up to seven bytes of padding ahead of what was pushed.
                let found = scanner.last_record_end();
                prop_assert!(found == expected || found.is_some_and(|f| f > position && f - position < 8), "{found:?} {expected:?}");
                at = end;
                if at == wal.bytes.len() { break; }
            }
        }

        #[test]
        fn a_shutdown_is_seen_where_it_is_the_last_and_only_there(seed: u64, before in 0usize..60, piece in 1usize..9000) {
            let mut wal = RandomWal::new(seed, before);
            let record_begins = wal.bytes.len();
            wal.add_shutdown();
            let shutdown = wal.bytes.len();
            wal.add_record();
            let mut at = 0;
            let mut scanner = RecordScanner::new(wal.start);
            let cuts = (1..).map(|n| n * piece).take_while(|cut| *cut < wal.bytes.len());
            let mut cuts: Vec<usize> = cuts.chain([record_begins, shutdown, wal.bytes.len()]).collect();
            cuts.sort_unstable();
            for cut in cuts {
                scanner.push(&wal.bytes[at..cut]).unwrap();
                at = cut;
                let in_padding = cut < shutdown && cut + 8 > shutdown && scanner.ends_in_shutdown();
                prop_assert!(scanner.ends_in_shutdown() == (cut == shutdown) || in_padding, "{cut} {shutdown}");
            }
        }

        #[test]
        fn a_flipped_bit_is_found(seed: u64, at in 0usize..SEGMENT_BYTES as usize) {
            let mut wal = RandomWal::new(seed, 400);
            let at = at % wal.bytes.len();
            wal.bytes[at] ^= 1;
            let mut scanner = RecordScanner::new(wal.start);
            let ok = scanner.push(&wal.bytes).is_ok();
            // Padding, unchecked header fields and a swallowed tail can hide a bit; no record end may lie beyond it.
            if ok { prop_assert!(scanner.last_record_end() <= wal.record_ends.last().copied()); }
        }
    }
}
