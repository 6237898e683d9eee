//! One connection that brings files: from the socket to a blocking thread that writes them.

use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::file::{FileWriter, Layout, WriteError, Written};
use super::progress::Progress;
use crate::fault::WithFault;
use crate::link::{Conn, LinkError, Message, PEER_DEAD_AFTER};
use crate::vitals::Cell;

/// Messages that may be read ahead of the disk, each at most a chunk.
const MESSAGES_AHEAD: usize = 4;

/// Takes files until the source has no more, and returns what was written.
pub async fn receive_files<S>(
    conn: Conn<S>,
    layout: Layout,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<Written>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut reader, mut writer) = conn.split();
    writer.write(Message::SendFiles).await?;
    let (sender, mut messages) = mpsc::channel(MESSAGES_AHEAD);
    let thread_progress = Arc::clone(&progress);
    let files = spawn_blocking(move || write_files(layout, &mut messages, &thread_progress));
    let mut seen_bytes = 0;
    loop {
        let message = match reader.read_within(PEER_DEAD_AFTER).await? {
            Message::Heartbeat(_) => continue,
            Message::NoMoreFiles => break,
            Message::Reject(reject) => return Err(LinkError::Rejected(Box::new(reject)).into()),
            message => message,
        };
        let wire_bytes = reader.wire_bytes() - seen_bytes;
        seen_bytes += wire_bytes;
        progress.update(|progress| progress.wire_bytes += wire_bytes);
        // The thread ends early only with an error, which it tells below.
        if sender.send(message).await.is_err() {
            break;
        }
    }
    drop(sender);
    match files.await.context("write files")? {
        Err(error) if matches!(error.downcast_ref(), Some(WriteError::File(_))) => {
            Err(error).hint("Look at the file system of the target: room, permissions, the system's log.")
        }
        result => result,
    }
}

/// Runs on a blocking thread until the connection has nothing more.
fn write_files(
    layout: Layout,
    messages: &mut mpsc::Receiver<Message>,
    progress: &Cell<Progress>,
) -> anyhow::Result<Written> {
    let mut writer = FileWriter::new(layout).context("prepare decompression")?;
    while let Some(message) = messages.blocking_recv() {
        let is_end = matches!(message, Message::FileEnd(_));
        let bytes = writer.take(message)?;
        if bytes > 0 || is_end {
            progress.update(|progress| {
                progress.done_bytes += bytes;
                progress.files += u64::from(is_end);
            });
        }
    }
    Ok(writer.finish()?)
}
