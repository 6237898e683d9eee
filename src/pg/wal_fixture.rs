//! Random WAL that is valid by PostgreSQL's rules, for tests: pages, records of all sizes, checksums.

use super::page::{LONG_HEADER_BYTES, SHORT_HEADER_BYTES};
use super::{Lsn, WAL_PAGE_BYTES};

/// The segment size of the fixture.
pub(crate) const SEGMENT_BYTES: u64 = 1 << 20;
/// The system identifier in its long page headers.
pub(crate) const SYSTEM_IDENTIFIER: u64 = 7_711_238_045_745_010_420;

/// WAL from a segment start on.
pub(crate) struct RandomWal {
    pub(crate) start: Lsn,
    pub(crate) bytes: Vec<u8>,
    /// The aligned end of every record.
    pub(crate) record_ends: Vec<Lsn>,
    random: Random,
    previous: Lsn,
}

/// A small generator (xorshift), so that a seed is enough to repeat a test.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl RandomWal {
    pub(crate) fn new(seed: u64, records: usize) -> RandomWal {
        let mut wal = RandomWal {
            start: Lsn(3 * SEGMENT_BYTES),
            bytes: Vec::new(),
            record_ends: Vec::new(),
            random: Random::new(seed),
            previous: Lsn(0),
        };
        for _ in 0..records {
            wal.add_record();
        }
        wal
    }

    pub(crate) fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// Appends one record of random size and content.
    pub(crate) fn add_record(&mut self) {
        self.add(0x10, 10);
    }

    /// Appends what looks like a shutdown checkpoint from outside.
    pub(crate) fn add_shutdown(&mut self) {
        self.add(0, 0);
    }

    fn add(&mut self, info: u8, manager: u8) {
        let body_bytes = match self.random.below(10) {
            0 => 8192 + self.random.below(30_000),
            1..=3 => self.random.below(5_000),
            _ => self.random.below(200),
        };
        // Half of it compresses, half does not.
        let body: Vec<u8> = (0..body_bytes)
            .map(|n| if n % 256 < 128 { (n % 7) as u8 } else { self.random.next() as u8 })
            .collect();
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        header.extend_from_slice(&(self.random.next() as u32).to_le_bytes());
        header.extend_from_slice(&self.previous.0.to_le_bytes());
        header.extend_from_slice(&[info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &header);
        header.extend_from_slice(&crc.to_le_bytes());
        self.page_header_if_due(0);
        self.previous = self.end();
        let record = [header, body].concat();
        let mut left = &record[..];
        while !left.is_empty() {
            self.page_header_if_due(left.len() as u32);
            let room = (WAL_PAGE_BYTES - self.end().0 % WAL_PAGE_BYTES) as usize;
            let taken = room.min(left.len());
            self.bytes.extend_from_slice(&left[..taken]);
            left = &left[taken..];
        }
        while !self.end().0.is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.record_ends.push(self.end());
    }

    fn page_header_if_due(&mut self, remaining_bytes: u32) {
        let lsn = self.end();
        if !lsn.is_page_boundary() {
            return;
        }
        // A record that begins on this page is no continuation, whatever is left of it.
        let begins_here = self.previous == lsn || remaining_bytes == 0;
        let remaining_bytes = if begins_here { 0 } else { remaining_bytes };
        let long = lsn.0.is_multiple_of(SEGMENT_BYTES);
        let info = u16::from(remaining_bytes > 0) | if long { 2 } else { 0 };
        let mut header = Vec::new();
        header.extend_from_slice(&0xD110u16.to_le_bytes());
        header.extend_from_slice(&info.to_le_bytes());
        header.extend_from_slice(&1u32.to_le_bytes());
        header.extend_from_slice(&lsn.0.to_le_bytes());
        header.extend_from_slice(&remaining_bytes.to_le_bytes());
        header.resize(SHORT_HEADER_BYTES, 0);
        if long {
            header.extend_from_slice(&SYSTEM_IDENTIFIER.to_le_bytes());
            header.extend_from_slice(&(SEGMENT_BYTES as u32).to_le_bytes());
            header.extend_from_slice(&(WAL_PAGE_BYTES as u32).to_le_bytes());
            assert_eq!(header.len(), LONG_HEADER_BYTES);
        }
        self.bytes.extend_from_slice(&header);
    }
}
