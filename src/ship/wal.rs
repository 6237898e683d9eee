//! What goes down: WAL as it stands in the store, and once a second where the primary is.

use anyhow::Context;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::pace::Pace;
use super::{Entry, Shipping, wire_identity};
use crate::clock::WallTime;
use crate::link::message::{Heartbeat, MemberList, Standing, Timeline, Wal};
use crate::link::{HEARTBEAT_EVERY, Message, Writer};
use crate::pg::{Lsn, TimelineId};
use crate::policy::Kept;
use crate::store::{Chunk, Cursor, Positions, Step, Store, Visibility};
use crate::vitals::{Sample, Vitals};

/// Samples in one message: far below the limit of its kind.
const SAMPLES_A_MESSAGE: usize = 2048;

/// Sends WAL from the cursor on, through every switch of timelines, and waits for more at the end.
pub(super) async fn send<S: AsyncWrite>(
    writer: Writer<S>,
    cursor: Cursor,
    timeline: TimelineId,
    shipping: &Shipping,
    entry: &Entry,
) -> anyhow::Result<()> {
    let mut sender = Sender {
        writer,
        entry,
        store: shipping.store.clone(),
        positions: shipping.store.positions(),
        members: shipping.members.clone(),
        policy: shipping.store.policy(),
        standing: shipping.standing.clone(),
        sent_lsn: cursor.lsn(),
        heartbeat_at: Instant::now(),
        pace: Pace::new(shipping.max_rate_bytes_per_second),
        told: None,
    };
    sender.members.mark_changed();
    sender.policy.mark_changed();
    sender.standing.mark_changed();
    sender.send_samples().await?;
    sender.send_timeline(timeline).await?;
    let mut cursor = cursor;
    loop {
        sender.positions.mark_unchanged();
        let step;
        (cursor, step) = next(cursor).await?;
        match step {
            Step::Chunk(chunk) => sender.send_chunk(chunk).await?,
            Step::AtEnd => sender.wait().await?,
            Step::Switched { next, lsn } => {
                sender.send_timeline(next).await?;
                let store = sender.store.clone();
                let start = store.identity().segment_size.start_of(lsn);
                let opened =
                    tokio::task::spawn_blocking(move || store.cursor(next, start, Visibility::Appended));
                cursor = opened.await.context("open the next timeline")??;
            }
        }
        sender.send_news().await?;
    }
}

/// One step of the cursor: at once for a downstream in step, else on a blocking thread.
async fn next(mut cursor: Cursor) -> anyhow::Result<(Cursor, Step)> {
    if let Some(step) = cursor.ready() {
        return Ok((cursor, step));
    }
    let stepped = tokio::task::spawn_blocking(move || {
        let step = cursor.next();
        (cursor, step)
    });
    let (cursor, step) = stepped.await.context("read the store")?;
    Ok((cursor, step?))
}

struct Sender<'a, S> {
    writer: Writer<S>,
    entry: &'a Entry,
    store: Store,
    positions: watch::Receiver<Positions>,
    members: watch::Receiver<MemberList>,
    policy: watch::Receiver<Kept>,
    standing: watch::Receiver<Standing>,
    sent_lsn: Lsn,
    heartbeat_at: Instant,
    pace: Pace,
    /// When the primary was heard that the last heartbeat told of.
    told: Option<std::time::Instant>,
}

impl<S: AsyncWrite> Sender<'_, S> {
    async fn send_chunk(&mut self, chunk: Chunk) -> anyhow::Result<()> {
        let (raw_bytes, wire_bytes) = (chunk.end.bytes_since(chunk.start), chunk.bytes.len() as u64);
        self.pace.take(wire_bytes).await;
        self.sent_lsn = chunk.end;
        let wal = Wal {
            timeline: chunk.timeline,
            start_lsn: chunk.start,
            end_lsn: chunk.end,
            opens_frame: chunk.opens_frame,
            data: chunk.bytes,
        };
        self.writer.write(Message::Wal(wal)).await?;
        self.entry.update(|vitals| {
            vitals.shipped_lsn = chunk.end;
            vitals.raw_bytes += raw_bytes;
            vitals.wire_bytes += wire_bytes;
        });
        Ok(())
    }

    async fn send_timeline(&mut self, timeline: TimelineId) -> anyhow::Result<()> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.history(timeline));
        let history = read.await.context("read a timeline's history")??.unwrap_or_default();
        let state = self.store.state();
        let identity = state.identity_of(timeline).context("the timeline is no longer in the store")?;
        let identity = wire_identity(identity);
        let history = String::from_utf8(history.to_vec()).context("a timeline's history is not text")?;
        Ok(self.writer.write(Message::Timeline(Timeline { identity, history })).await?)
    }

    async fn send_samples(&mut self) -> anyhow::Result<()> {
        for samples in self.entry.vitals.samples.all().chunks(SAMPLES_A_MESSAGE) {
            self.writer.write(Message::Samples(samples.to_vec())).await?;
        }
        Ok(())
    }

    /// The heartbeat when it is due; members, policy and the way of the WAL when they changed. A heartbeat says where the
    /// primary is only when that was heard since the last one: an old position sent again would look like a primary that
    /// lives.
    async fn send_news(&mut self) -> anyhow::Result<()> {
        if self.heartbeat_at <= Instant::now() {
            self.heartbeat_at = Instant::now() + HEARTBEAT_EVERY;
            let newest = newest_sample(&self.entry.vitals).filter(|(heard, _)| Some(*heard) != self.told);
            let mut heartbeat = Heartbeat { sent_lsn: self.sent_lsn, ..Heartbeat::BARE };
            if let Some((heard, sample)) = newest {
                self.told = Some(heard);
                heartbeat.server_flush_lsn = sample.lsn;
                heartbeat.server_time = sample.time;
            }
            self.writer.write(Message::Heartbeat(heartbeat)).await?;
        }
        if self.members.has_changed().unwrap_or(false) {
            let members = self.members.borrow_and_update().clone();
            self.writer.write(Message::Members(members)).await?;
        }
        // Whoever does not acknowledge has no use for it.
        if self.entry.name.is_some() && self.policy.has_changed().unwrap_or(false) {
            let policy = self.policy.borrow_and_update().clone();
            self.writer.write(Message::Policy(Box::new(policy))).await?;
        }
        if self.standing.has_changed().unwrap_or(false) {
            let standing = self.standing.borrow_and_update().clone();
            self.writer.write(Message::Standing(standing)).await?;
        }
        Ok(())
    }

    /// Waits until there may be more to read or something to say. All branches are cancellation-safe: `changed`
    /// and `sleep_until` keep no state of their own.
    async fn wait(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            changed = self.positions.changed() => changed.context("the store was closed"),
            changed = self.members.changed() => {
                self.members.mark_changed();
                changed.context("the members are no longer kept")
            }
            changed = self.policy.changed(), if self.entry.name.is_some() => {
                self.policy.mark_changed();
                changed.context("the store was closed")
            }
            changed = self.standing.changed() => {
                self.standing.mark_changed();
                changed.context("the way of the WAL is no longer kept")
            }
            () = sleep_until(self.heartbeat_at) => Ok(()),
        }
    }
}

/// Where the primary was when it was last heard, by its own clock, and when that was by ours; `None` when it is not
/// known.
fn newest_sample(vitals: &Vitals) -> Option<(std::time::Instant, Sample)> {
    let capture = vitals.capture.get();
    if let Some(heard) = capture.last_heard {
        let now = WallTime::now();
        let age_micros = i64::try_from(heard.elapsed().as_micros()).unwrap_or(i64::MAX);
        let time = WallTime { unix_micros: now.unix_micros.saturating_sub(age_micros) };
        return Some((heard, Sample { lsn: capture.server_flush_lsn, time, after_gap: false }));
    }
    let receive = vitals.receive.get();
    receive
        .server_time
        .map(|(time, arrived)| (arrived, Sample { lsn: receive.server_flush_lsn, time, after_gap: false }))
}
