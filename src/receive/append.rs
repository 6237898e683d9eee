//! The thread that appends: chunks, and the switches between timelines.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;

use crate::link::message::{self, Timeline, Wal};
use crate::pg::{Lsn, TimelineId};
use crate::store::{Branch, Chunk, TimelineIdentity, Writer};
use crate::vitals::Vitals;

/// What is handed to the appending thread, in the order in which it came.
#[derive(Debug)]
pub enum Work {
    /// A piece of WAL.
    Chunk(Chunk),
    /// The timeline of the chunks that follow.
    Timeline(Timeline),
}

/// This node's log does not lead to the upstream's.
#[derive(Debug, thiserror::Error)]
pub enum Diverged {
    /// It went past the point where the new primary's timeline begins.
    #[error(
        "this node has WAL up to {end} of timeline {timeline}, but the new primary left it at {switch_lsn}"
    )]
    Past {
        /// The timeline that was left.
        timeline: TimelineId,
        /// Where this node's WAL of it ends.
        end: Lsn,
        /// Where the new timeline begins.
        switch_lsn: Lsn,
    },
    /// It is on another branch, or there is a timeline between that is nowhere to be had.
    #[error("timeline {timeline} does not continue this node's timeline {current}, which ends at {end}")]
    Apart {
        /// The upstream's timeline.
        timeline: TimelineId,
        /// This node's.
        current: TimelineId,
        /// Where this node's WAL of it ends.
        end: Lsn,
    },
    /// The same number means another timeline there.
    #[error("the upstream's timeline {timeline} is another one than this node's")]
    Other {
        /// The number.
        timeline: TimelineId,
    },
}

impl Work {
    pub(super) fn from_wal(wal: Wal) -> Work {
        Work::Chunk(Chunk {
            timeline: wal.timeline,
            start: wal.start_lsn,
            end: wal.end_lsn,
            opens_frame: wal.opens_frame,
            bytes: wal.data,
        })
    }
}

/// Appends until the queue closes. `start` is where an empty store begins.
pub(super) fn run(
    mut writer: Writer,
    start: Lsn,
    mut queue: mpsc::Receiver<Work>,
    vitals: &Arc<Vitals>,
) -> anyhow::Result<()> {
    while let Some(work) = queue.blocking_recv() {
        match work {
            Work::Chunk(chunk) => {
                let (raw_bytes, wire_bytes) = (chunk.end.bytes_since(chunk.start), chunk.bytes.len() as u64);
                writer
                    .append_chunk(&chunk)
                    .with_context(|| format!("append WAL from {} to the store", chunk.start))?;
                vitals.receive.update(|vitals| {
                    vitals.raw_bytes += raw_bytes;
                    vitals.wire_bytes += wire_bytes;
                });
            }
            Work::Timeline(timeline) => enter(&mut writer, start, timeline, vitals)?,
        }
    }
    Ok(())
}

/// Goes on with the timeline that the store is on, or ends that one and begins the next.
fn enter(writer: &mut Writer, start: Lsn, timeline: Timeline, vitals: &Vitals) -> anyhow::Result<()> {
    let identity = identity_of(&timeline.identity);
    let number = identity.timeline;
    let history = (!timeline.history.is_empty()).then_some(timeline.history.as_bytes());
    let size = writer.store().identity().segment_size;
    let Some((current, end)) = writer.end() else {
        writer.begin_timeline(identity, history, size.start_of(start))?;
        return Ok(());
    };
    if current == number {
        let known = writer.store().state().identity_of(number).cloned();
        if known.as_ref() != Some(&identity) {
            tracing::debug!("{identity:?} came, and here it is {known:?}");
            return Err(Diverged::Other { timeline: number }.into());
        }
        return Ok(());
    }
    let switch_lsn = identity.switch_lsn();
    let continues = number > current && identity.parent.is_some_and(|(parent, _)| parent == current);
    if !continues || end < switch_lsn {
        return Err(Diverged::Apart { timeline: number, current, end }.into());
    }
    let fits = end == switch_lsn
        || postgres_is_below(vitals, switch_lsn)
        || no_record_ends_past(writer, current, switch_lsn)?;
    if !fits {
        return Err(Diverged::Past { timeline: current, end, switch_lsn }.into());
    }
    writer.end_timeline(switch_lsn).context("end the old timeline")?;
    writer.begin_timeline(identity, history, size.start_of(switch_lsn)).context("begin the new timeline")?;
    tracing::info!(timeline = %number, %switch_lsn, "following the new timeline");
    Ok(())
}

/// Whether the local PostgreSQL is known to have received nothing past `lsn`: only then may the surplus be cut, as it
/// replays all it has received before it looks at a new timeline (pg-facts U3).
fn postgres_is_below(vitals: &Vitals, lsn: Lsn) -> bool {
    let feed = vitals.feed.get();
    feed.last_heard.is_some() && feed.sent_lsn <= lsn && feed.written_lsn <= lsn && feed.flushed_lsn <= lsn
}

/// Whether all that this node has past `lsn` is the first part of a record that its primary died with. PostgreSQL may
/// have received it, too: it cannot replay it, and passes over it when it follows another timeline.
fn no_record_ends_past(writer: &Writer, timeline: TimelineId, lsn: Lsn) -> anyhow::Result<bool> {
    writer.sync().context("fsync the store")?;
    let last = writer.store().last_record_end(timeline).context("find the last record")?;
    Ok(last.is_none_or(|end| end <= lsn))
}

fn identity_of(identity: &message::TimelineIdentity) -> TimelineIdentity {
    TimelineIdentity {
        timeline: identity.timeline,
        parent: identity.parent.map(|parent| (parent, identity.switch_lsn)),
        branch: identity
            .branch
            .as_ref()
            .map(|branch| Branch { epoch: branch.epoch, node: branch.node.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SegmentSize;
    use crate::store::{NewStore, Store};

    #[test]
    fn a_timeline_that_goes_back_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 7, segment_size }).unwrap();
        let mut writer = store.writer().unwrap();
        let identity = |timeline, parent| message::TimelineIdentity {
            timeline: TimelineId(timeline),
            parent,
            switch_lsn: Lsn(3 << 20),
            branch: None,
        };
        let mut enter = |identity| {
            let timeline = Timeline { identity, history: String::new() };
            super::enter(&mut writer, Lsn(3 << 20), timeline, &Vitals::default())
        };
        enter(identity(4, Some(TimelineId(2)))).unwrap();
        let error = enter(identity(1, Some(TimelineId(4)))).unwrap_err();
        assert!(error.to_string().starts_with("timeline 1 does not continue"), "{error:#}");
        assert_eq!(store.newest_timeline(), Some(TimelineId(4)));
    }
}
