//! Protocol messages in both directions: framing, what a client sends, what a server sends, and the payloads of
//! physical replication. For `capture` (a client of PostgreSQL) and for `feed` (a server to PostgreSQL).
//!
//! Every length is bounded before anything is allocated for it, and no byte sequence makes a decoder panic.
//! What carries WAL is never copied: bodies are [`Bytes`] that share the read buffer.

pub mod backend;
pub mod copy;
pub mod frontend;
mod io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use io::{MessageReader, MessageWriter};

/// Longest packet before the start of a session, `MAX_STARTUP_PACKET_LENGTH` of `libpq/pqcomm.h`.
pub const MAX_STARTUP_BYTES: usize = 10_000;

/// Longest body of a `CopyData` message. PostgreSQL sends at most 128 KiB of WAL in one.
pub const MAX_COPY_DATA_BYTES: usize = 16 << 20;

/// Longest body of any other message: a query, an error, a row with a history file in it.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// `CopyData`'s tag, the same in both directions.
const COPY_DATA: u8 = b'd';

/// Bytes that are no message, or a connection that ended or failed below one.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The socket failed.
    #[error("the connection to PostgreSQL failed")]
    Io(#[from] std::io::Error),
    /// The peer went away in the middle of a message.
    #[error("the connection ended inside a message, {received_bytes} bytes into it")]
    Truncated {
        /// How much of it had come.
        received_bytes: usize,
    },
    /// A length that no peer of ours sends.
    #[error("message {} claims {bytes} bytes, the limit is {limit_bytes}; the peer does not speak PostgreSQL's protocol", show_tag(*tag))]
    TooLong {
        /// The message's tag; zero for a startup packet.
        tag: u8,
        /// What it claims.
        bytes: u32,
        /// What is accepted.
        limit_bytes: usize,
    },
    /// A length smaller than the length field itself.
    #[error("message {} claims {bytes} bytes, less than its own header", show_tag(*tag))]
    TooShort {
        /// The message's tag; zero for a startup packet.
        tag: u8,
        /// What it claims.
        bytes: u32,
    },
    /// A tag that has no place in this conversation.
    #[error("unexpected message {}", show_tag(*tag))]
    UnknownTag {
        /// The tag.
        tag: u8,
    },
    /// A body that does not fit its tag.
    #[error("malformed {message}: {problem}")]
    Malformed {
        /// The message, by PostgreSQL's name for it.
        message: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A startup packet of a protocol from the last century, or of the next one.
    #[error("protocol {major}.{minor} is not supported, only 3")]
    Protocol {
        /// Major version, as asked for.
        major: u16,
        /// Minor version, as asked for.
        minor: u16,
    },
}

type Result<T> = std::result::Result<T, MessageError>;

fn show_tag(tag: u8) -> String {
    if tag == 0 { "startup".to_owned() } else { format!("'{}'", tag.escape_ascii()) }
}

/// One message as it was framed: decoded by [`backend::Backend`] or [`frontend::Frontend`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawMessage {
    /// What kind of message.
    pub tag: u8,
    /// Its content, without the length.
    pub body: Bytes,
}

impl RawMessage {
    /// Takes the first message out of `buffer`; `None` while it is incomplete, with `buffer` untouched.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<RawMessage>> {
        let Some(&tag) = buffer.first() else { return Ok(None) };
        let limit = if tag == COPY_DATA { MAX_COPY_DATA_BYTES } else { MAX_MESSAGE_BYTES };
        let Some(body_bytes) = body_length(tag, &buffer[1..], limit)? else { return Ok(None) };
        if buffer.len() < 5 + body_bytes {
            return Ok(None);
        }
        buffer.advance(5);
        Ok(Some(RawMessage { tag, body: buffer.split_to(body_bytes).freeze() }))
    }

    /// Appends it as it was framed.
    pub fn encode(&self, out: &mut BytesMut) {
        put_message(out, self.tag, |out| out.put_slice(&self.body));
    }
}

/// Takes a packet without a tag, as they come before a session starts, out of `buffer`.
fn take_startup(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(body_bytes) = body_length(0, buffer, MAX_STARTUP_BYTES)? else { return Ok(None) };
    if buffer.len() < 4 + body_bytes {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(body_bytes).freeze()))
}

/// Reads a length field, which counts itself, and checks it; `None` while it is incomplete.
fn body_length(tag: u8, bytes: &[u8], limit_bytes: usize) -> Result<Option<usize>> {
    let Some(field) = bytes.first_chunk() else { return Ok(None) };
    let bytes = u32::from_be_bytes(*field);
    let body = bytes.checked_sub(4).ok_or(MessageError::TooShort { tag, bytes })? as usize;
    if body > limit_bytes { Err(MessageError::TooLong { tag, bytes, limit_bytes }) } else { Ok(Some(body)) }
}

/// Appends a message: the tag, the length of what `body` writes, and that.
fn put_message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_counted(out, body);
}

/// Appends the length of what `body` writes, counting itself, and that. No message of ours comes near 4 GiB.
fn put_counted(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a zero-terminated string. What follows a zero byte inside it is left out, for it would be read as the
/// next field.
fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.split('\0').next().unwrap_or_default().as_bytes());
    out.put_u8(0);
}

/// A body being decoded; every step checks what is left, and names the message when that is too little.
struct Fields {
    message: &'static str,
    rest: Bytes,
}

impl Fields {
    fn new(message: &'static str, body: Bytes) -> Fields {
        Fields { message, rest: body }
    }

    fn malformed(&self, problem: &'static str) -> MessageError {
        MessageError::Malformed { message: self.message, problem }
    }

    fn bytes(&mut self, count: usize) -> Result<Bytes> {
        if self.rest.len() < count {
            return Err(self.malformed("it ends too early"));
        }
        Ok(self.rest.split_to(count))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?.get_u8())
    }

    fn i16(&mut self) -> Result<i16> {
        Ok(self.bytes(2)?.get_i16())
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(self.bytes(4)?.get_u32())
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(self.bytes(4)?.get_i32())
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(self.bytes(8)?.get_u64())
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(self.bytes(8)?.get_i64())
    }

    /// A count that is not negative. It allocates nothing by itself: the elements must be there to be collected.
    fn count(&mut self) -> Result<usize> {
        let count = self.i16()?;
        usize::try_from(count).map_err(|_| self.malformed("a count is negative"))
    }

    fn raw_string(&mut self) -> Result<Bytes> {
        let end = self.rest.iter().position(|&b| b == 0);
        let end = end.ok_or_else(|| self.malformed("a string has no end"))?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        Ok(text)
    }

    /// A string that must be UTF-8: names and commands.
    fn string(&mut self) -> Result<String> {
        let raw = self.raw_string()?;
        let text = std::str::from_utf8(&raw).map_err(|_| self.malformed("a string is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// A string for people, which comes in whatever encoding the server has before a session is set up.
    fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.raw_string()?).into_owned())
    }

    /// What is left, whatever it is.
    fn remainder(self) -> Bytes {
        self.rest
    }

    /// Checks that nothing is left.
    fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("bytes are left over")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn framing_round_trips_and_waits_for_the_last_byte(tag in 1u8.., body: Vec<u8>, more: Vec<u8>) {
            let mut buffer = BytesMut::new();
            put_message(&mut buffer, tag, |out| out.put_slice(&body));
            let whole = buffer.clone();
            for end in 0..whole.len() {
                let mut part = BytesMut::from(&whole[..end]);
                prop_assert!(RawMessage::take(&mut part).unwrap().is_none());
                prop_assert_eq!(part.len(), end);
            }
            buffer.put_slice(&more);
            let message = RawMessage::take(&mut buffer).unwrap().unwrap();
            prop_assert_eq!((message.tag, &message.body[..]), (tag, &body[..]));
            prop_assert_eq!(&buffer[..], &more[..]);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = RawMessage::take(&mut buffer) {
                let _ = backend::Backend::decode(message.clone());
                let _ = frontend::Frontend::decode(message.clone());
            }
            let _ = take_startup(&mut BytesMut::from(&bytes[..])).map(|body| body.map(frontend::Startup::decode));
        }

        #[test]
        fn a_garbled_body_never_panics(tag: u8, body: Vec<u8>) {
            let message = RawMessage { tag, body: body.clone().into() };
            let _ = backend::Backend::decode(message.clone());
            let _ = frontend::Frontend::decode(message);
            let _ = frontend::Startup::decode(body.clone().into());
            let _ = copy::FromServer::decode(body.clone().into());
            let _ = copy::FromClient::decode(body.into());
        }
    }

    #[test]
    fn lengths_are_bounded_before_the_body_comes() {
        let take = |bytes: &[u8]| RawMessage::take(&mut BytesMut::from(bytes));
        assert!(matches!(take(b"Q\xFF\xFF\xFF\xFF"), Err(MessageError::TooLong { tag: b'Q', .. })));
        assert!(matches!(take(b"Q\x00\x10\x00\x05"), Err(MessageError::TooLong { .. })), "1 MiB and a byte");
        assert!(matches!(take(b"Q\x00\x10\x00\x04"), Ok(None)), "1 MiB");
        assert!(matches!(take(b"d\x01\x00\x00\x04"), Ok(None)), "16 MiB of data");
        assert!(matches!(take(b"d\x01\x00\x00\x05"), Err(MessageError::TooLong { .. })));
        assert!(matches!(take(b"Q\x00\x00\x00\x03"), Err(MessageError::TooShort { bytes: 3, .. })));
        let startup = take_startup(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]));
        assert_eq!(
            startup.unwrap_err().to_string(),
            "message startup claims 1195725856 bytes, the limit is 10000; the peer does not speak PostgreSQL's protocol"
        );
    }

    #[test]
    fn a_zero_byte_cannot_start_a_new_field() {
        let mut out = BytesMut::new();
        put_string(&mut out, "a\0b");
        assert_eq!(&out[..], b"a\0");
    }
}
