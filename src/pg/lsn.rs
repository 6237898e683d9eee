//! A position in the write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use super::WAL_PAGE_BYTES;

/// A log sequence number: the byte offset of a position in the WAL, written `16/B374D848`.
///
/// Always the position *after* the last byte in question, as everywhere in PostgreSQL (`access/xlogdefs.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// PostgreSQL's "no position", `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// True for every position but [`Lsn::INVALID`].
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes from `earlier` to here; zero when `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Rounds down to a multiple of `unit_bytes`, a power of two.
    pub fn align_down(self, unit_bytes: u64) -> Lsn {
        assert!(unit_bytes.is_power_of_two());
        Lsn(self.0 & !(unit_bytes - 1))
    }

    /// The smallest multiple of `unit_bytes` (a power of two) that is *greater* than this position.
    pub fn next_multiple(self, unit_bytes: u64) -> Lsn {
        Lsn(self.align_down(unit_bytes).0 + unit_bytes)
    }

    /// True on a WAL page boundary, where a stream may always be cut (pg-facts, rule 1).
    pub fn is_page_boundary(self) -> bool {
        self.0.is_multiple_of(WAL_PAGE_BYTES)
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;

    /// Distance in bytes; panics when `earlier` is later, which is our own bug: use [`Lsn::bytes_since`] for
    /// positions that come from elsewhere.
    fn sub(self, earlier: Lsn) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is not an LSN.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a WAL position; write it like 16/B374D848")]
pub struct LsnError {
    text: String,
}

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Lsn, LsnError> {
        let part = |half: &str| {
            let plain = (1..=8).contains(&half.len()) && half.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(half, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(part(high)? << 32 | part(low)?)))
            .ok_or_else(|| LsnError { text: text.to_owned() })
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }

        #[test]
        fn the_next_multiple_is_greater_and_near(raw in 0u64..1 << 62, bits in 0u32..30) {
            let next = Lsn(raw).next_multiple(1 << bits);
            prop_assert!(next > Lsn(raw) && next.0 - raw <= 1 << bits && next.0.is_multiple_of(1 << bits));
        }
    }

    #[test]
    fn what_is_not_an_lsn_is_refused() {
        for text in ["", "0", "/", "1/", "/1", "0/G", "0/123456789", "-1/0", "+1/0", " 1/0", "1/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
