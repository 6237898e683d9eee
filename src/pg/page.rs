//! WAL page headers (`access/xlog_internal.h`): is this WAL, whose, and from where.

use super::{Lsn, TimelineId};

/// Bytes of the header of most pages, `SizeOfXLogShortPHD`.
pub const SHORT_HEADER_BYTES: usize = 24;
/// Bytes of the header of a segment's first page, `SizeOfXLogLongPHD`.
pub const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTINUED_RECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

/// What the header of a WAL page says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// `xlp_magic`: another number for each major version.
    pub magic: u16,
    /// `xlp_tli`: in a timeline's first segment, pages below the switch carry the parent's.
    pub timeline: TimelineId,
    /// `xlp_pageaddr`.
    pub lsn: Lsn,
    /// `xlp_rem_len`: bytes of a record from earlier pages that are still to come; zero when the page begins with
    /// a record of its own.
    pub remaining_bytes: u32,
    /// The record from earlier pages was abandoned in a crash; this page begins afresh.
    pub overwrites_record: bool,
    /// Present on a segment's first page.
    pub long: Option<LongHeader>,
}

/// The additional part of a segment's first page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// `xlp_sysid`.
    pub system_identifier: u64,
    /// `xlp_seg_size`.
    pub segment_bytes: u32,
    /// `xlp_xlog_blcksz`.
    pub page_bytes: u32,
}

impl PageHeader {
    /// How long the header is that begins with these bytes; `None` with fewer than four.
    pub fn header_bytes(page: &[u8]) -> Option<usize> {
        let info = u16::from_le_bytes(page.get(2..4)?.try_into().ok()?);
        Some(if info & LONG_HEADER != 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES })
    }

    /// Reads the header at the start of `page`; `None` when there are too few bytes. Nothing is checked, as the
    /// caller knows what to expect. Little endian: the order of the machine that wrote it, and every platform that
    /// this runs on.
    pub fn parse(page: &[u8]) -> Option<PageHeader> {
        if page.len() < PageHeader::header_bytes(page)? {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(page.get(at..at + 8)?.try_into().ok()?));
        let info = u16_at(2)?;
        let long = if info & LONG_HEADER != 0 {
            Some(LongHeader {
                system_identifier: u64_at(24)?,
                segment_bytes: u32_at(32)?,
                page_bytes: u32_at(36)?,
            })
        } else {
            None
        };
        Some(PageHeader {
            magic: u16_at(0)?,
            timeline: TimelineId(u32_at(4)?),
            lsn: Lsn(u64_at(8)?),
            remaining_bytes: if info & FIRST_IS_CONTINUED_RECORD != 0 { u32_at(16)? } else { 0 },
            overwrites_record: info & FIRST_IS_OVERWRITE_CONTRECORD != 0,
            long,
        })
    }

    /// A page that was never written: what follows an `XLOG_SWITCH` to the end of its segment.
    pub fn is_void(&self) -> bool {
        self.magic == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_headers() {
        let mut page = vec![0u8; 40];
        page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        page[2..4].copy_from_slice(&(LONG_HEADER | FIRST_IS_CONTINUED_RECORD).to_le_bytes());
        page[4..8].copy_from_slice(&3u32.to_le_bytes());
        page[8..16].copy_from_slice(&0x0200_0000u64.to_le_bytes());
        page[16..20].copy_from_slice(&77u32.to_le_bytes());
        page[24..32].copy_from_slice(&42u64.to_le_bytes());
        page[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        page[36..40].copy_from_slice(&8192u32.to_le_bytes());
        let header = PageHeader::parse(&page).unwrap();
        assert_eq!(
            (header.timeline, header.lsn, header.remaining_bytes),
            (TimelineId(3), Lsn(0x0200_0000), 77)
        );
        assert_eq!(header.long.unwrap().system_identifier, 42);
        assert_eq!(PageHeader::parse(&page[..39]), None);
        assert!(PageHeader::parse(&[0; 24]).unwrap().is_void());
        assert_eq!(PageHeader::parse(&[]), None);
    }
}
