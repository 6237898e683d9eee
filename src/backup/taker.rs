//! The peer on a backup's control connection: told what is going on while it waits, and heard at any time.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::fault::Fault;
use crate::link::message::{BackupPhase, Code, Phase, Reject};
use crate::link::{Attended, Conn, HEARTBEAT_EVERY, Heard, LinkError, Message};

/// Whoever takes the backup.
pub(super) struct Taker<S>(Attended<S>);

impl<S: AsyncRead + AsyncWrite> Taker<S> {
    pub fn new(conn: Conn<S>) -> Taker<S> {
        Taker(Attended::new(conn))
    }

    /// The next message.
    pub async fn hear(&mut self) -> Result<Message, LinkError> {
        self.0.read().await
    }

    /// Sends a message.
    pub async fn say(&mut self, message: Message) -> Result<(), LinkError> {
        self.0.write(message).await
    }

    /// Waits for `work`, during which the taker has nothing to say; an error when it is gone.
    pub async fn wait<T>(&mut self, phase: Phase, work: impl Future<Output = T>) -> Result<T, LinkError> {
        match self.listen(phase, work).await? {
            Heard::Done(result) => Ok(result),
            Heard::Message(other) => Err(LinkError::unexpected("a heartbeat", other)),
        }
    }

    /// Waits for `work` or a message; an error when the taker is gone.
    pub async fn listen<T>(
        &mut self,
        phase: Phase,
        work: impl Future<Output = T>,
    ) -> Result<Heard<T>, LinkError> {
        let phase = Message::BackupPhase(BackupPhase { phase, done_bytes: 0, total_bytes: 0 });
        self.0.attend(&phase, work).await
    }

    /// Tells the taker why there will be no backup, if it still listens.
    pub async fn reject(&mut self, error: &anyhow::Error) {
        let hint = Fault::hint_of(error).unwrap_or_default().to_owned();
        let reject = Reject { code: Code::Failed, message: format!("{error:#}"), hint };
        // It may be gone, or may be what went wrong: there is nobody else to tell.
        let _ = timeout(HEARTBEAT_EVERY, self.say(Message::Reject(reject))).await;
    }
}
