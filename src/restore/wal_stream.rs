//! The WAL of a copy while it arrives: from whatever brings it to the thread that writes the segments.
//!
//! The caller gives a [`WalSource`], which pushes WAL into a [`WalSink`] until it is dropped: over the link, or from
//! a replication connection. This side knows when there is enough.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use super::progress::Progress;
use super::site::Site;
use super::wal::{WalFiles, WalFilesError};
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::vitals::Cell;

/// Pieces that may wait for the disk.
const PIECES_AHEAD: usize = 16;

/// Brings WAL from [`WalSink::start_lsn`] on, in order, for as long as it is polled. It ends only with an error.
pub type WalSource = Box<dyn FnOnce(WalSink) -> WalFuture + Send>;

/// What a [`WalSource`] makes.
pub type WalFuture = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Where a [`WalSource`] puts WAL, and what it has to bring.
#[derive(Debug)]
pub struct WalSink {
    /// The timeline.
    pub timeline: TimelineId,
    /// The start of the segment in which the backup begins.
    pub start_lsn: Lsn,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// The cluster's.
    pub system_identifier: u64,
    pieces: mpsc::Sender<Piece>,
}

#[derive(Debug)]
enum Piece {
    Wal { start: Lsn, bytes: Bytes },
    History { timeline: TimelineId, content: Bytes },
}

impl WalSink {
    /// Takes the bytes that begin at `start`. Cancel-safe: they are taken or not.
    pub async fn write(&self, start: Lsn, bytes: Bytes) -> anyhow::Result<()> {
        self.push(Piece::Wal { start, bytes }).await
    }

    /// Takes the history file of a timeline. Cancel-safe as [`WalSink::write`].
    pub async fn write_history(&self, timeline: TimelineId, content: Bytes) -> anyhow::Result<()> {
        self.push(Piece::History { timeline, content }).await
    }

    async fn push(&self, piece: Piece) -> anyhow::Result<()> {
        self.pieces.send(piece).await.context("write WAL: the writer has stopped")
    }
}

/// WAL that arrives beside the files.
pub(super) struct WalStream {
    source: WalFuture,
    writer: JoinHandle<Result<WalFiles, WalFilesError>>,
    end: watch::Receiver<Lsn>,
}

/// What the WAL is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub segment_size: SegmentSize,
    pub system_identifier: u64,
}

impl WalStream {
    /// Begins to write what `source` brings; the thread that writes holds the site for as long.
    pub fn begin(
        source: WalSource,
        needed: Needed,
        site: &Arc<Site>,
        progress: Arc<Cell<Progress>>,
    ) -> WalStream {
        let Needed { timeline, start_lsn, segment_size, system_identifier } = needed;
        let (pieces, queue) = mpsc::channel(PIECES_AHEAD);
        let start_lsn = segment_size.start_of(start_lsn);
        let (end_sender, end) = watch::channel(start_lsn);
        let site = Arc::clone(site);
        let writer = spawn_blocking(move || {
            let files = WalFiles::create(&site.layout.target, timeline, segment_size, start_lsn)?;
            write_pieces(files, queue, &end_sender, &progress)
        });
        let sink = WalSink { timeline, start_lsn, segment_size, system_identifier, pieces };
        WalStream { source: source(sink), writer, end }
    }

    /// Does something else while WAL arrives; an error when it stops arriving.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        // Cancel-safe: `source` stays where it is and goes on at the next call.
        tokio::select! {
            biased;
            result = work => Ok(result),
            ended = &mut self.source => Err(self.reason_of(ended).await),
        }
    }

    /// Waits until the WAL reaches `stop_lsn`, and makes it durable.
    pub async fn finish(mut self, stop_lsn: Lsn) -> anyhow::Result<()> {
        let mut end = self.end.clone();
        // A writer that stopped has dropped its end of the watch; joining it says why.
        let reached = async { end.wait_for(|&end| end >= stop_lsn).await.map(drop) };
        let _ = self.during(reached).await?;
        drop(self.source);
        let files = self.writer.await.context("write WAL")??;
        Ok(spawn_blocking(move || files.finish(stop_lsn)).await??)
    }

    /// Why the source ended: when the writer failed, the source only noticed it.
    async fn reason_of(&mut self, ended: anyhow::Result<()>) -> anyhow::Error {
        if self.writer.is_finished()
            && let Ok(Err(error)) = (&mut self.writer).await
        {
            return error.into();
        }
        match ended {
            Ok(()) => anyhow::anyhow!("the WAL stopped at {}", *self.end.borrow()),
            Err(error) => error.context("bring the WAL of the copy"),
        }
    }
}

/// Runs on a blocking thread until the source is dropped.
fn write_pieces(
    mut files: WalFiles,
    mut queue: mpsc::Receiver<Piece>,
    end: &watch::Sender<Lsn>,
    progress: &Cell<Progress>,
) -> Result<WalFiles, WalFilesError> {
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Wal { start, bytes } => {
                files.append(start, &bytes)?;
                end.send_replace(files.end());
                progress.update(|progress| progress.wal_bytes += bytes.len() as u64);
            }
            Piece::History { timeline, content } => files.write_history(timeline, &content)?,
        }
    }
    Ok(files)
}
