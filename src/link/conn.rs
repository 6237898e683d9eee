//! Messages over any byte stream: TLS, plain TCP, or a pipe within one process.
//!
//! Both directions keep their state in buffers that outlive a dropped future, so a `select!` may drop a read or a
//! write at any point without losing a byte or breaking the stream.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::buf::Chain;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::frame::{self, Step};
use super::message::Reject;
use super::{LinkError, Message};

/// How much is read at once when the frame at hand does not need more.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// How long a peer is waited for that was sent away.
const REJECT_WITHIN: Duration = Duration::from_secs(2);

/// A connection to a peer.
#[derive(Debug)]
pub struct Conn<S> {
    reader: Reader<S>,
    writer: Writer<S>,
}

/// The receiving half of a [`Conn`].
#[derive(Debug)]
pub struct Reader<S> {
    stream: ReadHalf<S>,
    buffer: BytesMut,
    wire_bytes: u64,
}

/// The sending half of a [`Conn`].
#[derive(Debug)]
pub struct Writer<S> {
    stream: WriteHalf<S>,
    /// What is left of the last frame when a write was dropped half-way.
    pending: Chain<Bytes, Bytes>,
    wire_bytes: u64,
}

impl<S: AsyncRead + AsyncWrite> Conn<S> {
    /// Speaks over `stream`.
    pub fn new(stream: S) -> Conn<S> {
        let (read, write) = tokio::io::split(stream);
        Conn {
            reader: Reader { stream: read, buffer: BytesMut::new(), wire_bytes: 0 },
            writer: Writer { stream: write, pending: Bytes::new().chain(Bytes::new()), wire_bytes: 0 },
        }
    }

    /// Both directions at once.
    pub fn split(self) -> (Reader<S>, Writer<S>) {
        (self.reader, self.writer)
    }

    /// See [`Reader::read`].
    pub async fn read(&mut self) -> Result<Message, LinkError> {
        self.reader.read().await
    }

    /// See [`Reader::read_within`].
    pub async fn read_within(&mut self, patience: Duration) -> Result<Message, LinkError> {
        self.reader.read_within(patience).await
    }

    /// See [`Writer::write`].
    pub async fn write(&mut self, message: Message) -> Result<(), LinkError> {
        self.writer.write(message).await
    }

    /// See [`Writer::close`].
    pub async fn close(&mut self) -> Result<(), LinkError> {
        self.writer.close().await
    }

    /// Tells the peer why this ends, and waits a little until it has hung up: bytes that arrive at a closed socket
    /// make the kernel reset the connection, and the reason would be lost with it.
    pub async fn reject(&mut self, reject: Reject) {
        let say = async {
            self.write(Message::Reject(reject)).await?;
            self.close().await?;
            while !matches!(self.reader.stream.read_buf(&mut self.reader.buffer).await, Ok(0) | Err(_)) {
                self.reader.buffer.clear();
            }
            Ok::<(), LinkError>(())
        };
        // The peer is being sent away: whether it still listens changes nothing.
        let _ = tokio::time::timeout(REJECT_WITHIN, say).await;
    }
}

impl<S: AsyncRead> Reader<S> {
    /// The next message. Cancel-safe: what has arrived stays in the buffer.
    pub async fn read(&mut self) -> Result<Message, LinkError> {
        loop {
            let missing = match frame::take(&mut self.buffer)? {
                Step::Frame(frame) => return Message::decode(frame),
                Step::Need(bytes) => bytes - self.buffer.len(),
            };
            self.buffer.reserve(missing.max(READ_AHEAD_BYTES));
            let read = self.stream.read_buf(&mut self.buffer).await;
            match read {
                Ok(bytes) if bytes > 0 => self.wire_bytes += bytes as u64,
                // TLS takes an end that was not announced for an error; a process that was killed announces nothing.
                Err(e) if e.kind() != ErrorKind::UnexpectedEof => {
                    return Err(LinkError::io("read from the peer", e));
                }
                _ if self.buffer.is_empty() => return Err(LinkError::Closed),
                _ => {
                    let source = ErrorKind::UnexpectedEof.into();
                    return Err(LinkError::io("read the rest of a message", source));
                }
            }
        }
    }

    /// The next message, or [`LinkError::Silent`] when none was whole in time. Cancel-safe as [`Reader::read`].
    pub async fn read_within(&mut self, patience: Duration) -> Result<Message, LinkError> {
        tokio::time::timeout(patience, self.read()).await.unwrap_or(Err(LinkError::Silent(patience)))
    }

    /// Bytes that have arrived, headers included, TLS's own not.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }
}

impl<S: AsyncWrite> Writer<S> {
    /// Sends a message, header and body in one vectored write, and waits until it is handed to the socket.
    ///
    /// Dropped early, the message may or may not go out, but never in part: the next call sends the rest first.
    pub async fn write(&mut self, message: Message) -> Result<(), LinkError> {
        let frame = message.encode()?;
        let head = frame.head()?;
        self.finish().await?;
        self.wire_bytes += (head.len() + frame.body.len()) as u64;
        self.pending = head.chain(frame.body);
        self.finish().await
    }

    /// Tells the peer that nothing more comes.
    pub async fn close(&mut self) -> Result<(), LinkError> {
        self.finish().await?;
        let closed = self.stream.shutdown().await;
        closed.map_err(|e| LinkError::io("close the connection", e))
    }

    /// Bytes that were sent, headers included, TLS's own not.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Cancel-safe: `write_all_buf` advances the buffer by what the stream took.
    async fn finish(&mut self) -> Result<(), LinkError> {
        let written = match self.stream.write_all_buf(&mut self.pending).await {
            // TLS may still hold a part of it.
            Ok(()) => self.stream.flush().await,
            Err(e) => Err(e),
        };
        // An empty chain, so that a sent body is freed now and not with the next message.
        if self.pending.remaining() == 0 {
            self.pending = Bytes::new().chain(Bytes::new());
        }
        written.map_err(|e| LinkError::io("write to the peer", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use proptest::prelude::*;

    use crate::link::message::{FileChunk, Heartbeat};

    fn chunk(offset: u64, bytes: usize) -> Message {
        let data = vec![offset as u8; bytes].into();
        Message::FileChunk(FileChunk { offset, compressed: false, data })
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    /// Polls a future `polls` times, then drops it.
    async fn poll_then_drop<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
        let mut future = pin!(future);
        for _ in 0..polls {
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if let std::task::Poll::Ready(output) = polled {
                return Some(output);
            }
            tokio::task::yield_now().await;
        }
        None
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn dropped_reads_and_writes_lose_and_break_nothing(
            sizes in proptest::collection::vec(0usize..3000, 1..20),
            polls in proptest::collection::vec(1usize..4, 1..40),
            pipe_bytes in 1usize..700,
        ) {
            let messages: Vec<Message> =
                sizes.iter().enumerate().map(|(index, &size)| chunk(index as u64, size)).collect();
            let read = runtime().block_on(async {
                let (one, two) = tokio::io::duplex(pipe_bytes);
                let sent = messages.clone();
                let write_polls = polls.clone();
                let writing = tokio::spawn(async move {
                    let mut conn = Conn::new(one);
                    for (message, polls) in sent.into_iter().zip(write_polls.into_iter().cycle()) {
                        // Polled at least once, the message is in the writer's hands.
                        let _ = poll_then_drop(conn.write(message), polls).await;
                        conn.writer.finish().await.unwrap();
                    }
                    conn.close().await.unwrap();
                });
                let mut conn = Conn::new(two);
                let (mut read, mut polls) = (Vec::new(), polls.into_iter().cycle());
                loop {
                    match poll_then_drop(conn.read(), polls.next().unwrap()).await {
                        Some(Ok(message)) => read.push(message),
                        Some(Err(LinkError::Closed)) => break,
                        Some(Err(e)) => panic!("{e}"),
                        None => tokio::task::yield_now().await,
                    }
                }
                writing.await.unwrap();
                read
            });
            prop_assert_eq!(read, messages);
        }
    }

    #[tokio::test]
    async fn a_write_that_was_dropped_is_completed_by_the_next() {
        let (one, two) = tokio::io::duplex(100);
        let (mut one, mut two) = (Conn::new(one), Conn::new(two));
        assert!(poll_then_drop(one.write(chunk(1, 1000)), 1).await.is_none(), "more than the pipe holds");
        let last = Message::Heartbeat(Heartbeat::BARE);
        let (wrote, first) = tokio::join!(one.write(last.clone()), two.read());
        wrote.unwrap();
        assert_eq!(first.unwrap(), chunk(1, 1000));
        assert_eq!(two.read().await.unwrap(), last);
        assert_eq!(one.writer.wire_bytes(), two.reader.wire_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_ends_are_told_apart() {
        let (one, two) = tokio::io::duplex(100);
        let mut conn = Conn::new(one);
        let patience = Duration::from_secs(10);
        assert!(matches!(conn.read_within(patience).await, Err(LinkError::Silent(_))));
        drop(two);
        assert!(matches!(conn.read().await, Err(LinkError::Closed)));

        let (one, mut two) = tokio::io::duplex(100);
        two.write_all(&[0x13, 0, 0]).await.unwrap();
        drop(two);
        let error = Conn::new(one).read().await.unwrap_err();
        assert_eq!(error.to_string(), "read the rest of a message");
        assert!(error.is_gone());
    }

    #[tokio::test]
    async fn an_announced_length_is_not_allocated_beyond_the_limit() {
        let (one, mut two) = tokio::io::duplex(100);
        let mut head = frame::Frame { kind: 0x80, ..frame::Frame::default() }.head().unwrap().to_vec();
        head[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        two.write_all(&head).await.unwrap();
        let mut conn = Conn::new(one);
        assert!(matches!(conn.read().await, Err(LinkError::TooLong { .. })));
        assert!(conn.reader.buffer.capacity() <= 2 * READ_AHEAD_BYTES);
    }
}
