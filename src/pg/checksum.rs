//! Data pages: their checksum (`storage/checksum_impl.h`), their LSN, and whether they were ever used.

use super::Lsn;

/// Size of a data page, `block_size`. Like [`super::WAL_PAGE_BYTES`], nobody ships builds with another one.
pub const PAGE_BYTES: usize = 8192;

/// Pages in one file of a relation, `RELSEG_SIZE`; the next file is named `.1`, and so on.
pub const PAGES_PER_FILE: u32 = 131_072;

const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

/// Where each lane starts; random values, part of the format.
const LANE_SEEDS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// Offset of `pd_checksum`, which counts as zero in its own computation.
const CHECKSUM_AT: usize = 8;

/// One data page, as read from a file.
#[derive(Clone, Copy)]
pub struct Page<'a>(&'a [u8; PAGE_BYTES]);

impl<'a> Page<'a> {
    /// The page in `bytes`; `None` when they are not exactly one page.
    pub fn new(bytes: &'a [u8]) -> Option<Page<'a>> {
        bytes.try_into().ok().map(Page)
    }

    /// `PageIsNew`: allocated and never used, so without a checksum.
    pub fn is_new(self) -> bool {
        self.u16_at(14) == 0
    }

    /// The end of the last WAL record that changed the page.
    pub fn lsn(self) -> Lsn {
        Lsn(u64::from(self.u32_at(0)) << 32 | u64::from(self.u32_at(4)))
    }

    /// The checksum that it carries.
    pub fn stored_checksum(self) -> u16 {
        self.u16_at(CHECKSUM_AT)
    }

    /// The checksum that it should carry as page `block` of its relation.
    pub fn computed_checksum(self, block: u32) -> u16 {
        let mut sums = LANE_SEEDS;
        // pd_checksum is the lower half of the first row's third word.
        let (first, rest) = self.0.split_at(4 * LANES);
        let mut row: [u32; LANES] = words(first);
        row[CHECKSUM_AT / 4] &= 0xFFFF_0000;
        mix_row(&mut sums, &row);
        for bytes in rest.chunks_exact(4 * LANES) {
            mix_row(&mut sums, &words(bytes));
        }
        mix_row(&mut sums, &[0; LANES]);
        mix_row(&mut sums, &[0; LANES]);
        let folded = sums.iter().fold(0, |sum, lane| sum ^ lane) ^ block;
        // Within 1..=65535, so a checksum is never zero.
        (folded % 65535 + 1) as u16
    }

    /// True when the page is new or carries the right checksum.
    pub fn is_sound(self, block: u32) -> bool {
        self.is_new() || self.stored_checksum() == self.computed_checksum(block)
    }

    fn u16_at(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32_at(self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

fn words(bytes: &[u8]) -> [u32; LANES] {
    let mut words = [0; LANES];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// One round of FNV-1a in every lane, with a shift that spreads the high bits. The compiler vectorises it.
fn mix_row(sums: &mut [u32; LANES], row: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(seed: u32) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let mut state = seed;
        for byte in &mut page {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            *byte = (state >> 16) as u8;
        }
        page
    }

    /// The values come from a second implementation that agreed with 40 pages written by PostgreSQL 15.
    #[test]
    fn checksums_are_postgresqls() {
        for (seed, block, expected) in [(1, 0, 27575), (1, 7, 27570), (99, 131_073, 22100)] {
            assert_eq!(Page::new(&page(seed)).unwrap().computed_checksum(block), expected);
        }
    }

    proptest! {
        #[test]
        fn the_stored_checksum_does_not_count_and_any_other_byte_does(at in 0..PAGE_BYTES, flip in 1u8..) {
            let good = page(7);
            let expected = Page::new(&good).unwrap().computed_checksum(3);
            let mut changed = good;
            changed[at] ^= flip;
            let computed = Page::new(&changed).unwrap().computed_checksum(3);
            prop_assert_eq!(computed == expected, (CHECKSUM_AT..CHECKSUM_AT + 2).contains(&at));
        }
    }

    #[test]
    fn header_fields() {
        let mut bytes = [0; PAGE_BYTES];
        assert!(Page::new(&bytes).unwrap().is_new());
        assert!(Page::new(&bytes).unwrap().is_sound(0), "a new page has no checksum");
        bytes[..8].copy_from_slice(&[0x01, 0, 0, 0, 0x10, 0, 0, 0]);
        bytes[14] = 1;
        let page = Page::new(&bytes).unwrap();
        assert!(!page.is_new() && !page.is_sound(0));
        assert_eq!(page.lsn().to_string(), "1/10");
        assert!(Page::new(&bytes[1..]).is_none());
    }
}
