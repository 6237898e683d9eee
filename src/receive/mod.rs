//! Link → store.
//!
//! Chunks go to the store as they come, once they are known to decode to what they say; what is written, fsynced and
//! replayed here goes back up. One blocking thread appends, another fsyncs beside it; between the link and the
//! appending thread is a short queue, so a slow disk holds the sender back and never fills the memory.

mod append;
mod relayed;
mod report;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::link::message::{Digest, MemberList, OpenFrame, Reject, Resume, Standing};
use crate::link::{Conn, LinkError, Message, PEER_DEAD_AFTER, Reader};
use crate::pg::{Lsn, TimelineId};
use crate::store::{Store, Writer};
use crate::vitals::{Sample, Vitals};

pub use append::{Diverged, Work};

/// Chunks between the link and the disk: eight frames at most, some megabytes.
const QUEUE: usize = 8;

/// What this stage is given.
pub struct Receiving {
    /// This node's name.
    pub node: String,
    /// Where the WAL goes.
    pub store: Store,
    /// Where an empty store begins: the timeline and the segment start of its base backup, while that is being taken.
    pub start: Option<(TimelineId, Lsn)>,
    /// Where the numbers go.
    pub vitals: Arc<Vitals>,
    /// Where the local PostgreSQL would begin to replay after a crash.
    pub restartpoint: watch::Receiver<Lsn>,
    /// The members, as the primary passes them on.
    pub members: watch::Sender<MemberList>,
    /// How the upstream's own WAL comes to it, as it says; `None` before it has.
    pub standing: watch::Sender<Option<Standing>>,
    /// Set when the upstream is not to be followed any more, and to be told why.
    pub leave: watch::Receiver<Option<Reject>>,
}

/// Follows an upstream, whose Hello is done, until it goes or `token` is cancelled. What was appended stays; the next
/// call goes on at that byte.
pub async fn run<S>(conn: Conn<S>, receiving: Receiving, token: CancellationToken) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let store = receiving.store.clone();
    let opened = tokio::task::spawn_blocking(move || store.writer());
    let writer = opened.await.context("open the store for writing")??;
    let (reader, mut up) = conn.split();
    let (writer, resume) = resume_point(writer, receiving.start).await?;
    let start = resume.lsn;
    up.write(Message::Resume(resume)).await?;

    let (work, queue) = mpsc::channel(QUEUE);
    let vitals = Arc::clone(&receiving.vitals);
    let appending = tokio::task::spawn_blocking(move || append::run(writer, start, queue, &vitals));
    let durable = report::keep_durable(receiving.store.clone());
    let stored = watch::Sender::new(0);
    let reporting = report::send(up, &receiving, stored.subscribe());
    let reading = read(reader, work, &receiving, &stored);
    // Each branch ends the stream, so none of them is needed again. The queue closes with `reading`, and the
    // appending thread then ends by itself; it is awaited below, so the writer is free when this returns.
    let ended = tokio::select! {
        result = reading => result,
        result = reporting => result,
        result = durable => result,
        () = token.cancelled() => Ok(()),
    };
    // An error of the disk closes the queue, and says more than the closed queue does.
    appending.await.context("append to the store")??;
    // What arrived last is not left unsynced for as long as the upstream is away: a promotion may count on it.
    let store = receiving.store.clone();
    tokio::task::spawn_blocking(move || store.sync()).await.context("fsync the store")??;
    ended
}

/// Where the store ends, and how much of which frame it has there.
async fn resume_point(writer: Writer, start: Option<(TimelineId, Lsn)>) -> anyhow::Result<(Writer, Resume)> {
    let looked = tokio::task::spawn_blocking(move || {
        let frame = writer.open_frame();
        (writer, frame)
    });
    let (writer, frame) = looked.await.context("look at the store's end")?;
    let Some((timeline, lsn)) = writer.end() else {
        let (timeline, lsn) = start.context("the store is empty and no base backup says where it begins")?;
        return Ok((writer, Resume { timeline, lsn, frame: None }));
    };
    let frame = frame?;
    let frame = (frame.bytes > 0).then_some(OpenFrame {
        start_lsn: frame.start,
        bytes: frame.bytes,
        sha256: Digest(frame.sha256),
    });
    Ok((writer, Resume { timeline, lsn, frame }))
}

/// Reads what comes down and hands WAL on. Its waits are cancellation-safe; a chunk whose hand-over is dropped was
/// not acknowledged and comes again.
async fn read<S: AsyncRead>(
    mut reader: Reader<S>,
    work: mpsc::Sender<Work>,
    receiving: &Receiving,
    stored: &watch::Sender<u64>,
) -> anyhow::Result<()> {
    let vitals = &receiving.vitals;
    loop {
        let message = tokio::select! {
            message = reader.read_within(PEER_DEAD_AFTER) => message?,
            // The appending thread has ended with an error, which the caller takes from it; an upstream that is idle
            // would not show that.
            () = work.closed() => return Ok(()),
        };
        vitals.receive.update(|vitals| vitals.last_heard = Some(Instant::now()));
        let next = match message {
            Message::Wal(wal) => Work::from_wal(wal),
            Message::Timeline(timeline) => Work::Timeline(timeline),
            Message::Heartbeat(heartbeat) => {
                if heartbeat.server_flush_lsn.is_valid() {
                    let (lsn, time) = (heartbeat.server_flush_lsn, heartbeat.server_time);
                    vitals.samples.push(Sample { lsn, time, after_gap: false });
                    vitals.receive.update(|vitals| {
                        vitals.server_flush_lsn = lsn;
                        vitals.server_time = Some((time, Instant::now()));
                    });
                }
                continue;
            }
            Message::Samples(samples) => {
                samples.into_iter().for_each(|sample| vitals.samples.push(sample));
                continue;
            }
            Message::Members(members) => {
                receiving.members.send_replace(members);
                continue;
            }
            Message::Policy(policy) => {
                let (store, serial) = (receiving.store.clone(), policy.serial());
                let keep = move || store.update_state(|state| state.policy = *policy);
                tokio::task::spawn_blocking(keep).await.context("keep the policy")??;
                stored.send_replace(serial);
                continue;
            }
            Message::Standing(standing) => {
                receiving.standing.send_replace(Some(standing));
                continue;
            }
            other => return Err(LinkError::unexpected("Wal", other).into()),
        };
        if work.send(next).await.is_err() {
            return Ok(());
        }
    }
}
