//! One connection that carries files: job after job, until there are no more.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval_at};

use super::file::{FileReader, Piece, ReadError, Reading};
use super::plan::Job;
use super::session::Session;
use crate::link::message::{EntryKind, FileBegin, Heartbeat, WirePath};
use crate::link::{Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Writer};

/// Pieces that may be read ahead of the socket, each at most a chunk.
const PIECES_AHEAD: usize = 4;

/// Sends files of a backup over one connection until none is left, or the backup is over.
pub async fn serve_files<S>(conn: Conn<S>, session: Arc<Session>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut reader, mut writer) = conn.split();
    match reader.read_within(PEER_DEAD_AFTER).await? {
        Message::SendFiles => {}
        other => return Err(LinkError::unexpected("SendFiles", other).into()),
    }
    // Cancel-safe: when the backup is over, so is this connection, with whatever was under way on it.
    tokio::select! {
        sent = send_all(&mut writer, &session) => sent,
        () = session.over() => match session.failure() {
            // Said where it happened, and on the control connection.
            Some(reason) => {
                tracing::debug!("the backup failed: {reason}");
                Ok(())
            }
            None => Ok(()),
        },
    }
}

async fn send_all<S: AsyncWrite>(writer: &mut Writer<S>, session: &Arc<Session>) -> anyhow::Result<()> {
    for folder in session.take_folders() {
        writer.write(Message::FileBegin(folder_entry(&folder)?)).await?;
    }
    let mut file_reader = None;
    while let Some(mut job) = session.take_job() {
        let files = std::mem::take(&mut job.files);
        let result = send_job(writer, session, file_reader.take(), files).await;
        match result {
            Ok(used) => file_reader = Some(used),
            Err(error) => {
                session.fail(format!("{error:#}"));
                return Err(error);
            }
        }
        job.done();
    }
    writer.write(Message::NoMoreFiles).await?;
    Ok(writer.close().await?)
}

fn folder_entry(path: &Path) -> anyhow::Result<FileBegin> {
    let path = WirePath::new(path).context("send the name of a folder")?;
    Ok(FileBegin { path, kind: EntryKind::Folder, size: 0, mode: 0o700, modified_unix_seconds: 0 })
}

/// Sends the files of one job. The reader, with its buffers, goes from job to job.
async fn send_job<S: AsyncWrite>(
    writer: &mut Writer<S>,
    session: &Session,
    reader: Option<FileReader>,
    files: Job,
) -> anyhow::Result<FileReader> {
    let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let reading = session.reading.clone();
    let reading = spawn_blocking(move || read_job(reader, reading, &files, &sender));
    while let Some(Piece { message, bytes }) = alive(writer, pieces.recv()).await? {
        if bytes > 0 {
            alive(writer, session.pace.take(bytes)).await?;
            session.count_bytes(bytes);
        }
        if let Message::FileEnd(end) = &message {
            session.count_file(end.size);
        }
        writer.write(message).await?;
    }
    reading.await.context("read files")?
}

/// Runs on a blocking thread.
fn read_job(
    reader: Option<FileReader>,
    reading: Reading,
    files: &Job,
    pieces: &mpsc::Sender<Piece>,
) -> anyhow::Result<FileReader> {
    let mut reader = match reader {
        Some(reader) => reader,
        None => FileReader::new(reading).context("prepare compression")?,
    };
    for path in files {
        reader.send(path, &mut |piece| pieces.blocking_send(piece).map_err(|_| ReadError::Gone))?;
    }
    Ok(reader)
}

/// Waits for `work`, and lets the peer know meanwhile that this end lives.
async fn alive<S: AsyncWrite, T>(
    writer: &mut Writer<S>,
    work: impl Future<Output = T>,
) -> Result<T, LinkError> {
    tokio::pin!(work);
    let mut ticker = interval_at(Instant::now() + HEARTBEAT_EVERY, HEARTBEAT_EVERY);
    loop {
        // Cancel-safe: `work` is pinned outside and goes on; a tick that is lost comes again.
        tokio::select! {
            biased;
            result = &mut work => return Ok(result),
            _ = ticker.tick() => writer.write(Message::Heartbeat(Heartbeat::BARE)).await?,
        }
    }
}
