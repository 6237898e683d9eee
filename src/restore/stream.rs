//! One connection that brings files: questions go out and files come in at the same time.
//!
//! Two blocking threads belong to it: one reads what is here and asks, the other writes what comes.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ask::{self, Work};
use super::asked::Asked;
use super::file::{FileWriter, WriteError, Written};
use super::progress::Progress;
use super::site::Site;
use crate::fault::WithFault;
use crate::link::message::{Heartbeat, WantFile};
use crate::link::{Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Reader, Writer};
use crate::vitals::Cell;

/// Messages that may be read ahead of the disk, each at most a chunk.
const MESSAGES_AHEAD: usize = 4;

/// Questions that may wait for the socket, each with the digests of 128 MiB at most.
const WANTS_AHEAD: usize = 16;

/// What all connections of a copy share.
#[derive(Clone)]
pub(super) struct Shared {
    pub site: Arc<Site>,
    pub work: Arc<Work>,
    pub progress: Arc<Cell<Progress>>,
    /// Cancelled when another connection failed.
    pub stop: CancellationToken,
}

/// Asks for files and takes them until there is nothing more to ask for; returns what was written. When this returns,
/// nothing is written any more, also after an error.
pub(super) async fn receive_files<S>(conn: Conn<S>, shared: Shared) -> anyhow::Result<Written>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = conn.split();
    let asked = Arc::new(Asked::default());
    let _end = End(Arc::clone(&asked));
    let (want, wants) = mpsc::channel(WANTS_AHEAD);
    let (message, mut messages) = mpsc::channel(MESSAGES_AHEAD);
    let thread = (shared.clone(), Arc::clone(&asked));
    let asking = spawn_blocking(move || ask::run(&thread.0.site, &thread.0.work, &thread.1, &want));
    let thread = (shared.clone(), Arc::clone(&asked));
    let writing = spawn_blocking(move || write_files(thread.0, thread.1, &mut messages));
    // Both directions at once, for the source may have to get rid of files before it takes more questions. The first
    // that ends, ends the connection; the threads end with their channels, and with what was whole.
    let ended = tokio::select! {
        brought = bring(reader, message, &shared.progress) => brought,
        never = send(writer, wants) => match never {},
        () = shared.stop.cancelled() => Err(anyhow::anyhow!("another connection failed")),
    };
    asked.end();
    let (asking, writing) =
        (asking.await.context("read what is here")?, writing.await.context("write files")?);
    let written = match writing {
        // It says why the connection was not read any more.
        Err(error) if matches!(error.downcast_ref(), Some(WriteError::File(_))) => {
            Err(error).hint("Look at the file system of the target: room, permissions, the system's log.")
        }
        // Cut off in the middle of a file: why, is known better.
        Err(error) if ended.is_ok() => Err(error),
        result => ended.and(result),
    }?;
    asking.hint("Look at the file system of the target: permissions, the system's log.")?;
    Ok(written)
}

/// Wakes the asking thread also when the connection's future is dropped.
struct End(Arc<Asked>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Sends questions, then that there are no more, and signs of life for as long as it is polled.
async fn send<S: AsyncWrite>(mut writer: Writer<S>, mut wants: mpsc::Receiver<WantFile>) -> Infallible {
    let mut tick = interval(HEARTBEAT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_more = true;
    loop {
        // Cancel-safe: a question that was not taken stays in the channel, a tick comes again.
        let message = tokio::select! {
            want = wants.recv(), if has_more => match want {
                Some(want) => Message::WantFile(want),
                None => {
                    has_more = false;
                    Message::NoMoreFiles
                }
            },
            _ = tick.tick() => Message::Heartbeat(Heartbeat::BARE),
        };
        if writer.write(message).await.is_err() {
            // What still comes is whole, and how it ends says more.
            std::future::pending::<()>().await;
        }
    }
}

/// Hands on what arrives, until the source has sent everything.
async fn bring<S: AsyncRead>(
    mut reader: Reader<S>,
    messages: mpsc::Sender<Message>,
    progress: &Cell<Progress>,
) -> anyhow::Result<()> {
    let mut seen_bytes = 0;
    loop {
        let message = match reader.read_within(PEER_DEAD_AFTER).await? {
            Message::Heartbeat(_) => continue,
            Message::NoMoreFiles => return Ok(()),
            Message::Reject(reject) => return Err(LinkError::Rejected(Box::new(reject)).into()),
            message => message,
        };
        let wire_bytes = reader.wire_bytes() - seen_bytes;
        seen_bytes += wire_bytes;
        progress.update(|progress| progress.wire_bytes += wire_bytes);
        // The thread ends early only with an error, which it tells.
        if messages.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// Runs on a blocking thread until the connection has nothing more.
fn write_files(
    shared: Shared,
    asked: Arc<Asked>,
    messages: &mut mpsc::Receiver<Message>,
) -> anyhow::Result<Written> {
    let mut writer = FileWriter::new(shared.site, asked).context("prepare decompression")?;
    while let Some(message) = messages.blocking_recv() {
        let took = writer.take(message)?;
        shared.progress.update(|progress| {
            progress.done_bytes += took.written_bytes + took.equal_bytes;
            progress.equal_bytes += took.equal_bytes;
            progress.files += u64::from(took.ends_file);
        });
    }
    Ok(writer.finish()?)
}
