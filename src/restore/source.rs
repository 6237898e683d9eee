//! The source of a copy, on the control connection of the backup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::file::WriteError;
use super::listing::Listing;
use super::progress::{Phase, Progress};
use crate::fault::Fault;
use crate::link::message::{BackupStart, BackupStarted, BackupStopped, ControlFileContent, Heartbeat};
use crate::link::{Attended, Conn, Heard, LinkError, Message};
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_BYTES, ControlFile};
use crate::vitals::Cell;

/// How long the source gets to say why a file connection ended.
const REASON_WAIT: Duration = Duration::from_secs(1);

/// The control connection.
pub(super) struct Source<S> {
    conn: Attended<S>,
    progress: Arc<Cell<Progress>>,
}

impl<S: AsyncRead + AsyncWrite> Source<S> {
    pub fn new(conn: Conn<S>, progress: Arc<Cell<Progress>>) -> Source<S> {
        Source { conn: Attended::new(conn), progress }
    }

    /// Has the backup begun, and says what there is.
    pub async fn begin(&mut self, start: BackupStart) -> anyhow::Result<BackupStarted> {
        self.conn.write(Message::BackupStart(start)).await?;
        match self.told().await? {
            Message::BackupStarted(started) => Ok(*started),
            other => Err(LinkError::unexpected("BackupStarted", other).into()),
        }
    }

    /// Takes the list of what there is.
    pub async fn listing(&mut self, started: &BackupStarted) -> anyhow::Result<Listing> {
        let mut listing = Listing::default();
        loop {
            match self.told().await? {
                Message::Listing(part) => {
                    if listing.take(part, started)? {
                        return Ok(listing);
                    }
                }
                other => return Err(LinkError::unexpected("Listing", other).into()),
            }
        }
    }

    /// Does something else while the source waits; an error when the source is gone or gave up.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        match self.during(work).await.map_err(with_its_hint)? {
            Heard::Done(result) => Ok(result),
            Heard::Message(other) => Err(LinkError::unexpected("BackupPhase", other).into()),
        }
    }

    /// Has the backup ended; returns what only then is known, with the control file.
    pub async fn end(&mut self) -> anyhow::Result<(BackupStopped, Bytes)> {
        self.conn.write(Message::BackupStop).await?;
        let stopped = match self.told().await? {
            Message::BackupStopped(stopped) => *stopped,
            other => return Err(LinkError::unexpected("BackupStopped", other).into()),
        };
        let control_file = self.control_file().await?;
        Ok((stopped, control_file))
    }

    /// Takes the control file, whose place is last and whose bytes wait in memory until then.
    async fn control_file(&mut self) -> anyhow::Result<Bytes> {
        let content = match self.conn.read().await? {
            Message::ControlFile(ControlFileContent(content)) => content,
            other => return Err(LinkError::unexpected("ControlFile", other).into()),
        };
        if content.len() != CONTROL_FILE_BYTES {
            let reason = "its size is wrong".to_owned();
            return Err(WriteError::Damaged { path: CONTROL_FILE.to_owned(), reason }.into());
        }
        ControlFile::parse(&content)?;
        Ok(content)
    }

    /// Hangs up: nothing more is needed.
    pub async fn close(&mut self) -> anyhow::Result<()> {
        Ok(self.conn.close().await?)
    }

    /// The source's own reason for a failure that was first noticed elsewhere, if it has one to tell.
    pub async fn reason_behind(&mut self, noticed: anyhow::Error) -> anyhow::Error {
        match timeout(REASON_WAIT, self.during(std::future::pending::<()>())).await {
            Ok(Err(rejected @ LinkError::Rejected(_))) => with_its_hint(rejected),
            _ => noticed,
        }
    }

    /// The next message that is more than a sign of life.
    async fn told(&mut self) -> anyhow::Result<Message> {
        match self.during(std::future::pending::<()>()).await.map_err(with_its_hint)? {
            Heard::Message(message) => Ok(message),
            Heard::Done(()) => Err(LinkError::Closed.into()),
        }
    }

    /// Waits for `work` or a message, and passes on what the source says it does.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<Heard<T>, LinkError> {
        tokio::pin!(work);
        loop {
            match self.conn.attend(&Message::Heartbeat(Heartbeat::BARE), &mut work).await? {
                Heard::Message(Message::BackupPhase(told)) => {
                    let phase = Phase::from_source(told.phase);
                    self.progress.update(|progress| progress.phase = phase.unwrap_or(progress.phase));
                }
                Heard::Message(Message::Reject(reject)) => return Err(LinkError::Rejected(Box::new(reject))),
                heard => return Ok(heard),
            }
        }
    }
}

/// The source's advice goes on to the person here.
fn with_its_hint(error: LinkError) -> anyhow::Error {
    match &error {
        LinkError::Rejected(reject) if !reject.hint.is_empty() => {
            let hint = reject.hint.clone();
            Fault::advise(error, hint)
        }
        _ => error.into(),
    }
}
