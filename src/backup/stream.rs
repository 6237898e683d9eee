//! One connection that carries files: what is wanted comes in, and what of it is not at the taker goes out.

use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval_at};

use super::compare::Theirs;
use super::file::{FileReader, Piece, ReadError};
use super::session::Session;
use crate::link::message::{Heartbeat, WantFile};
use crate::link::{Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Reader, Writer};

/// Wants that may be taken ahead of the disk, each with the digests of 128 MiB at most.
const WANTS_AHEAD: usize = 16;

/// Pieces that may be read ahead of the socket, each at most a unit.
const PIECES_AHEAD: usize = 4;

/// Sends files of a backup over one connection for as long as some are wanted, or until the backup is over.
pub async fn serve_files<S>(conn: Conn<S>, session: Arc<Session>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut reader, writer) = conn.split();
    let (want, wants) = mpsc::channel(WANTS_AHEAD);
    let (piece, pieces) = mpsc::channel(PIECES_AHEAD);
    let thread_session = Arc::clone(&session);
    let reading = spawn_blocking(move || read_wanted(&thread_session, wants, &piece));
    // Both directions at once, for the taker may have to get rid of digests before it can take files. Cancel-safe: the
    // first that ends, ends the connection with whatever was under way on it, and the thread with its channels.
    tokio::select! {
        sent = send(writer, pieces, reading, &session) => sent?,
        left = hear(&mut reader, want) => left?,
        () = session.over() => {
            // Said where it happened, and on the control connection.
            if let Some(reason) = session.failure() {
                tracing::debug!("the backup failed: {reason}");
            }
            return Ok(());
        }
    }
    // The taker hangs up first: what it says to a closed socket would make the kernel reset the connection, and what
    // of the last files is still on the way would be lost. Both only wait.
    tokio::select! {
        () = drain(&mut reader) => {}
        () = session.over() => {}
    }
    Ok(())
}

async fn drain<S: AsyncRead>(reader: &mut Reader<S>) {
    while reader.read_within(PEER_DEAD_AFTER).await.is_ok() {}
}

/// Hears what is wanted; ends only when the taker is gone.
async fn hear<S: AsyncRead>(reader: &mut Reader<S>, want: mpsc::Sender<WantFile>) -> anyhow::Result<()> {
    loop {
        match reader.read_within(PEER_DEAD_AFTER).await? {
            Message::Heartbeat(_) => {}
            // A thread that has ended says why where it is awaited.
            Message::WantFile(file) => drop(want.send(file).await),
            Message::NoMoreFiles => break,
            other => return Err(LinkError::unexpected("WantFile", other).into()),
        }
    }
    drop(want);
    loop {
        match reader.read_within(PEER_DEAD_AFTER).await {
            Ok(Message::Heartbeat(_)) => {}
            // It has what it wanted; if not, writing to it says so.
            Err(LinkError::Closed) => std::future::pending().await,
            Ok(other) => return Err(LinkError::unexpected("a heartbeat", other).into()),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn send<S: AsyncWrite>(
    mut writer: Writer<S>,
    mut pieces: mpsc::Receiver<Piece>,
    reading: JoinHandle<anyhow::Result<()>>,
    session: &Session,
) -> anyhow::Result<()> {
    while let Some(piece) = alive(&mut writer, pieces.recv()).await? {
        let Piece { message, bytes, equal_bytes } = piece;
        if bytes > 0 {
            alive(&mut writer, session.pace.take(bytes)).await?;
        }
        if bytes + equal_bytes > 0 {
            session.count_bytes(bytes, equal_bytes);
        }
        if let Message::FileEnd(end) = &message {
            session.count_file(end.size);
        }
        writer.write(message).await?;
    }
    reading.await.context("read files")??;
    writer.write(Message::NoMoreFiles).await?;
    Ok(writer.close().await?)
}

/// Reads what is wanted, file after file; a file that cannot be read ends the backup. Runs on a blocking thread.
fn read_wanted(
    session: &Session,
    wants: mpsc::Receiver<WantFile>,
    pieces: &mpsc::Sender<Piece>,
) -> anyhow::Result<()> {
    let result = read_all(session, wants, pieces);
    if let Err(error) = &result
        && !matches!(error.downcast_ref(), Some(ReadError::Gone))
    {
        session.fail(format!("{error:#}"));
    }
    result
}

fn read_all(
    session: &Session,
    mut wants: mpsc::Receiver<WantFile>,
    pieces: &mpsc::Sender<Piece>,
) -> anyhow::Result<()> {
    let mut reader = FileReader::new(session.reading.clone()).context("prepare compression")?;
    while let Some(want) = wants.blocking_recv() {
        let index = want.index;
        let path = session.file(index).with_context(|| format!("find file {index}, which is wanted"))?;
        let mut next_part = || wants.blocking_recv();
        let mut theirs = Theirs::new(want, &mut next_part);
        let mut emit = |piece| pieces.blocking_send(piece).map_err(|_| ReadError::Gone);
        reader.send(index, path, &mut theirs, &mut emit)?;
    }
    Ok(())
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
