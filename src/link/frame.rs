//! Frames: a fixed header and a body, checked as a whole. Pure: bytes in, bytes out.
//!
//! ```text
//! 0 kind u8 │ 1 flags u8 │ 2 zero u16 │ 4 length of the body u32 │ 8 lsn u64 │ 16 crc32c u32 │ 20 body
//! ```
//!
//! All numbers are big-endian. The checksum covers the header with its own field zero, and the body. The length is
//! checked against the kind's limit before anything is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LinkError;
use crate::pg::Lsn;

/// Size of the header.
pub const HEADER_BYTES: usize = 20;

/// Kinds from here on carry bulk data (WAL, parts of files), those below control messages.
pub const FIRST_BULK_KIND: u8 = 0x80;

/// The longest body of a control message.
pub const CONTROL_LIMIT_BYTES: usize = 1 << 20;

/// The longest body of a bulk message.
pub const BULK_LIMIT_BYTES: usize = 4 << 20;

const CRC_AT: usize = 16;

/// One frame. In one that was read, `fields` is empty and `body` holds everything behind the header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// What the body is; numbered in [`super::message`].
    pub kind: u8,
    /// Meaning depends on the kind.
    pub flags: u8,
    /// The position that the message is about; [`Lsn::INVALID`] when there is none.
    pub lsn: Lsn,
    /// The small fixed fields before the data, apart so that the data need not be copied behind them.
    pub fields: Bytes,
    /// The data.
    pub body: Bytes,
}

/// The longest body that a kind may have.
pub fn limit_bytes(kind: u8) -> usize {
    if kind < FIRST_BULK_KIND { CONTROL_LIMIT_BYTES } else { BULK_LIMIT_BYTES }
}

impl Frame {
    /// The header and fields as they go over the wire; the body follows as it is.
    ///
    /// Fails when the body is over the limit, which the peer would refuse.
    pub fn head(&self) -> Result<Bytes, LinkError> {
        let (length, limit) = (self.fields.len() + self.body.len(), limit_bytes(self.kind));
        let declared = u32::try_from(length).ok().filter(|_| length <= limit).ok_or(LinkError::TooLong {
            kind: self.kind,
            bytes: length as u64,
            limit,
        })?;
        let mut head = BytesMut::with_capacity(HEADER_BYTES + self.fields.len());
        head.put_u8(self.kind);
        head.put_u8(self.flags);
        head.put_u16(0);
        head.put_u32(declared);
        head.put_u64(self.lsn.0);
        head.put_u32(0);
        head.put_slice(&self.fields);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &self.body);
        head[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        Ok(head.freeze())
    }
}

/// What a look at the start of a buffer gave.
#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// A whole frame, taken off the buffer.
    Frame(Frame),
    /// The frame that has begun is whole when the buffer holds this many bytes.
    Need(usize),
}

/// Takes the frame off the start of `buffer` when it is whole. On an error the stream is lost: there is no way to
/// find the next frame.
pub fn take(buffer: &mut BytesMut) -> Result<Step, LinkError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(Step::Need(HEADER_BYTES));
    };
    let mut fields = &header[..];
    let (kind, flags, zero) = (fields.get_u8(), fields.get_u8(), fields.get_u16());
    let (length, lsn, expected) = (fields.get_u32() as usize, Lsn(fields.get_u64()), fields.get_u32());
    if kind == 0 || zero != 0 {
        return Err(LinkError::NotWalship { start: header.escape_ascii().to_string() });
    }
    let limit = limit_bytes(kind);
    if length > limit {
        return Err(LinkError::TooLong { kind, bytes: length as u64, limit });
    }
    let whole = HEADER_BYTES + length;
    if buffer.len() < whole {
        return Ok(Step::Need(whole));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..CRC_AT]), &[0; 4]);
    let found = crc32c::crc32c_append(crc, &buffer[HEADER_BYTES..whole]);
    if found != expected {
        return Err(LinkError::Damaged { expected, found });
    }
    buffer.advance(HEADER_BYTES);
    let body = buffer.split_to(length).freeze();
    Ok(Step::Frame(Frame { kind, flags, lsn, fields: Bytes::new(), body }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(frame: &Frame) -> Vec<u8> {
        [frame.head().unwrap(), frame.body.clone()].concat()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in 1u8..,
            flags: u8,
            lsn: u64,
            fields in proptest::collection::vec(any::<u8>(), 0..20),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            behind in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let frame = Frame { kind, flags, lsn: Lsn(lsn), fields: fields.into(), body: body.into() };
            let mut buffer = BytesMut::from(&wire(&frame)[..]);
            buffer.extend_from_slice(&behind);
            let read = take(&mut buffer).unwrap();
            let whole = [&frame.fields[..], &frame.body[..]].concat();
            let expected = Frame { fields: Bytes::new(), body: whole.into(), ..frame };
            prop_assert_eq!(read, Step::Frame(expected));
            prop_assert_eq!(&buffer[..], &behind[..]);
        }

        #[test]
        fn any_changed_bit_is_noticed(
            body in proptest::collection::vec(any::<u8>(), 0..100),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let frame = Frame { kind: 0x81, lsn: Lsn(7), body: body.into(), ..Frame::default() };
            let mut bytes = wire(&frame);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let step = take(&mut BytesMut::from(&bytes[..]));
            // A longer length asks for more bytes, which then fail the checksum; nothing else may pass.
            prop_assert!(matches!(step, Err(_) | Ok(Step::Need(_))), "{:?}", step);
        }

        #[test]
        fn garbage_never_panics_nor_asks_for_more_than_the_limit(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(Step::Need(bytes)) = take(&mut BytesMut::from(&garbage[..])) {
                prop_assert!(bytes <= HEADER_BYTES + BULK_LIMIT_BYTES);
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_from_the_header_alone() {
        for (kind, limit) in [(0x7F, CONTROL_LIMIT_BYTES), (0x80, BULK_LIMIT_BYTES)] {
            let frame = Frame { kind, body: vec![0; limit].into(), ..Frame::default() };
            let mut head = frame.head().unwrap().to_vec();
            assert_eq!(take(&mut BytesMut::from(&head[..])).unwrap(), Step::Need(HEADER_BYTES + limit));
            head[4..8].copy_from_slice(&(limit as u32 + 1).to_be_bytes());
            assert!(matches!(take(&mut BytesMut::from(&head[..])), Err(LinkError::TooLong { .. })));
            let frame = Frame { body: vec![0; limit + 1].into(), ..frame };
            assert!(matches!(frame.head(), Err(LinkError::TooLong { .. })));
        }
    }

    #[test]
    fn another_protocol_is_named_as_such() {
        let error = take(&mut BytesMut::from(&b"GET / HTTP/1.1\r\nHost: x"[..])).unwrap_err();
        assert!(error.to_string().contains(r"GET / HTTP/1.1\r\n"), "{error}");
    }
}
