//! Messages over a byte stream. Both halves keep their state in themselves, so every wait can be abandoned in a
//! `select!` and taken up again without losing or doubling a byte.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frontend::Startup;
use super::{COPY_DATA, MessageError, RawMessage, Result, take_startup};

/// Room made for each read. A long message grows the buffer as its bytes arrive, never by what it claims.
const READ_BYTES: usize = 64 << 10;

/// How many pieces leave in one system call.
const WRITE_SLICES: usize = 16;

/// Payloads from this size are queued as they are; smaller ones are cheaper to copy.
const COPY_BELOW_BYTES: usize = 1 << 10;

/// The reading half: bytes in, messages out.
#[derive(Debug)]
pub struct MessageReader<R> {
    inner: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads messages from `inner`.
    pub fn new(inner: R) -> MessageReader<R> {
        MessageReader { inner, buffer: BytesMut::new() }
    }

    /// The next message, or `None` when the peer closed the connection after a whole one. Cancellation-safe.
    pub async fn read(&mut self) -> Result<Option<RawMessage>> {
        loop {
            if let Some(message) = RawMessage::take(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next packet without a tag, as a client sends before its session starts. Cancellation-safe.
    pub async fn read_startup(&mut self) -> Result<Option<Startup>> {
        loop {
            if let Some(body) = take_startup(&mut self.buffer)? {
                return Startup::decode(body).map(Some);
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// One byte that is no message: the server's answer to [`Startup::Ssl`]. `None` at the end of the stream.
    /// Cancellation-safe.
    pub async fn read_byte(&mut self) -> Result<Option<u8>> {
        while self.buffer.is_empty() {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer.get_u8()))
    }

    /// Gives the stream back, with the bytes that were read beyond the last message.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.inner, self.buffer)
    }

    /// Reads what is there; false at a clean end.
    async fn fill(&mut self) -> Result<bool> {
        self.buffer.reserve(READ_BYTES);
        // Cancellation-safe: `read_buf` either completes or has read nothing.
        match self.inner.read_buf(&mut self.buffer).await? {
            0 if self.buffer.is_empty() => Ok(false),
            0 => Err(MessageError::Truncated { received_bytes: self.buffer.len() }),
            _ => Ok(true),
        }
    }
}

/// The writing half: messages are queued by the `encode` functions through [`MessageWriter::buffer`] and leave with
/// [`MessageWriter::flush`].
#[derive(Debug)]
pub struct MessageWriter<W> {
    inner: W,
    queue: VecDeque<Bytes>,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    /// Writes messages to `inner`.
    pub fn new(inner: W) -> MessageWriter<W> {
        MessageWriter { inner, queue: VecDeque::new(), buffer: BytesMut::new() }
    }

    /// Where to append encoded messages.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Queues a `CopyData` message of a header and data, without copying the data.
    pub fn copy_data(&mut self, header: &[u8], data: Bytes) {
        self.buffer.put_u8(COPY_DATA);
        self.buffer.put_u32((4 + header.len() + data.len()) as u32);
        self.buffer.put_slice(header);
        if data.len() < COPY_BELOW_BYTES {
            self.buffer.put_slice(&data);
        } else {
            self.queue.push_back(self.buffer.split().freeze());
            self.queue.push_back(data);
        }
    }

    /// Bytes that are queued and not yet written.
    pub fn pending_bytes(&self) -> usize {
        self.queue.iter().map(Bytes::len).sum::<usize>() + self.buffer.len()
    }

    /// Writes all that is queued. Cancellation-safe: what was written has left the queue, the rest stays in it.
    pub async fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.queue.push_back(self.buffer.split().freeze());
        }
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            for (slice, piece) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(piece);
            }
            let count = self.queue.len().min(WRITE_SLICES);
            let written = self.inner.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
            }
            self.forget(written);
        }
        Ok(self.inner.flush().await?)
    }

    /// Gives the stream back; what is queued and not flushed is lost.
    pub fn into_inner(self) -> W {
        self.inner
    }

    fn forget(&mut self, mut written_bytes: usize) {
        while let Some(front) = self.queue.front_mut() {
            if written_bytes < front.len() {
                front.advance(written_bytes);
                return;
            }
            written_bytes -= front.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::super::frontend::Frontend;
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn abandoned_waits_lose_and_double_nothing() {
        let (near, far) = tokio::io::duplex(7);
        let (mut reader, mut writer) = (MessageReader::new(far), MessageWriter::new(near));
        let data = Bytes::from((0..=255).cycle().take(5000).collect::<Vec<u8>>());
        writer.copy_data(b"head", data.clone());
        Backend::CopyDone.encode(writer.buffer());
        let mut messages = Vec::new();
        while messages.len() < 2 {
            // Both sides are given up again and again: whoever is polled second starves within its timeout.
            let _ = tokio::time::timeout(Duration::from_millis(1), writer.flush()).await;
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(1), reader.read()).await {
                messages.push(message.unwrap().unwrap());
            }
        }
        assert_eq!(messages[0].body, [b"head", &data[..]].concat());
        assert_eq!(messages[1].tag, b'c');
        assert_eq!(writer.pending_bytes(), 0);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_clean_only_between_messages() {
        let mut reader = MessageReader::new(&b"X\0\0\0\x04"[..]);
        let message = reader.read().await.unwrap().unwrap();
        assert_eq!(Frontend::decode(message).unwrap(), Frontend::Terminate);
        assert!(reader.read().await.unwrap().is_none());
        let mut reader = MessageReader::new(&b"X\0\0"[..]);
        assert!(matches!(reader.read().await, Err(MessageError::Truncated { received_bytes: 3 })));
    }

    #[tokio::test]
    async fn a_claimed_length_allocates_nothing() {
        let mut reader = MessageReader::new(&b"d\x00\xFF\xFF\xFFabc"[..]);
        assert!(reader.read().await.is_err());
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES, "{}", reader.buffer.capacity());
    }
}
