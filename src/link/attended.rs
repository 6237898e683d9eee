//! A connection that is attended to while its owner waits for something else.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Reader, Writer};

/// Both directions of a connection, and when the peer was last heard.
#[derive(Debug)]
pub struct Attended<S> {
    reader: Reader<S>,
    writer: Writer<S>,
    last_heard: Instant,
}

/// What ended a wait.
#[derive(Debug)]
pub enum Heard<T> {
    /// The work is done.
    Done(T),
    /// The peer said something first.
    Message(Message),
}

impl<S: AsyncRead + AsyncWrite> Attended<S> {
    /// Attends to `conn` from now on.
    pub fn new(conn: Conn<S>) -> Attended<S> {
        let (reader, writer) = conn.split();
        Attended { reader, writer, last_heard: Instant::now() }
    }

    /// The next message, whatever it is; an error when there is none for too long. Cancel-safe.
    pub async fn read(&mut self) -> Result<Message, LinkError> {
        let message = self.reader.read_within(PEER_DEAD_AFTER).await;
        self.last_heard = Instant::now();
        message
    }

    /// See [`Writer::write`].
    pub async fn write(&mut self, message: Message) -> Result<(), LinkError> {
        self.writer.write(message).await
    }

    /// See [`Writer::close`].
    pub async fn close(&mut self) -> Result<(), LinkError> {
        self.writer.close().await
    }

    /// Waits for `work` or for a message other than a heartbeat, while `sign_of_life` goes out every
    /// [`HEARTBEAT_EVERY`]; an error when the peer is gone. Cancel-safe for the connection; `work` that is to go on
    /// afterwards is passed as a pinned reference.
    pub async fn attend<T>(
        &mut self,
        sign_of_life: &Message,
        work: impl Future<Output = T>,
    ) -> Result<Heard<T>, LinkError> {
        tokio::pin!(work);
        let mut ticker = interval(HEARTBEAT_EVERY);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let silent_at = self.last_heard + PEER_DEAD_AFTER;
            // Cancel-safe: `work` is pinned outside, a read keeps what has arrived, a tick comes again.
            tokio::select! {
                result = &mut work => return Ok(Heard::Done(result)),
                message = timeout_at(silent_at, self.reader.read()) => {
                    self.last_heard = Instant::now();
                    match message.unwrap_or(Err(LinkError::Silent(PEER_DEAD_AFTER)))? {
                        Message::Heartbeat(_) => {}
                        message => return Ok(Heard::Message(message)),
                    }
                }
                _ = ticker.tick() => self.writer.write(sign_of_life.clone()).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::Heartbeat;
    use std::time::Duration;

    const BEAT: Message = Message::Heartbeat(Heartbeat::BARE);

    #[tokio::test(start_paused = true)]
    async fn both_ends_live_on_while_they_wait() {
        let (here, there) = tokio::io::duplex(1 << 10);
        let (mut here, mut there) = (Attended::new(Conn::new(here)), Attended::new(Conn::new(there)));
        let long = PEER_DEAD_AFTER * 5;
        let one = here.attend(&BEAT, tokio::time::sleep(long));
        let other = there.attend(&BEAT, tokio::time::sleep(long));
        let (one, other) = tokio::join!(one, other);
        assert!(matches!((one, other), (Ok(Heard::Done(())), Ok(Heard::Done(())))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_noticed_and_a_message_is_heard() {
        let (here, there) = tokio::io::duplex(1 << 10);
        let (mut here, mut there) = (Attended::new(Conn::new(here)), Attended::new(Conn::new(there)));
        let work = tokio::time::sleep(Duration::from_secs(3600));
        tokio::pin!(work);
        there.write(BEAT).await.unwrap();
        there.write(Message::BackupStop).await.unwrap();
        let heard = here.attend(&BEAT, &mut work).await.unwrap();
        assert!(matches!(heard, Heard::Message(Message::BackupStop)));
        let error = here.attend(&BEAT, &mut work).await.unwrap_err();
        assert!(matches!(error, LinkError::Silent(_)), "{error}");
    }
}
