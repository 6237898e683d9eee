//! How far the local standby is, from what its walreceivers say one after another. Pure.
//!
//! PostgreSQL's own positions go back when it reconnects (pg-facts, rule 10), so the greatest of each is kept, per
//! timeline; until it asks for WAL that it had already reported, because then it has lost it.

use crate::pg::message::copy::{Feedback, Status};
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::vitals::{Contact, FeedVitals, Replay, StandbyFeedback};

/// A stream that begins.
pub(super) struct Beginning {
    /// The timeline asked for.
    pub(super) timeline: TimelineId,
    /// From where.
    pub(super) start_lsn: Lsn,
    /// Where the older of this timeline and the one streamed before was left, on the way to the newest; `None` when
    /// they are the same or not related.
    pub(super) fork: Option<Lsn>,
    /// The cluster's.
    pub(super) segment_size: SegmentSize,
}

impl Beginning {
    /// Takes over what still holds of the positions known so far.
    pub(super) fn apply(&self, feed: &mut FeedVitals) {
        if feed.timeline != Some(self.timeline) {
            lower(feed, self.fork.unwrap_or(Lsn::INVALID));
            feed.timeline = Some(self.timeline);
        }
        if self.lost_wal(feed.flushed_lsn) {
            lower(feed, self.start_lsn);
        }
        feed.sent_lsn = self.start_lsn;
    }

    /// A standby asks from the start of the segment with its end in it, or of the one before, when a record began
    /// there. One that asks from further back no longer has what it flushed: it is a restored copy.
    fn lost_wal(&self, flushed_lsn: Lsn) -> bool {
        let segment = |lsn| self.segment_size.segment_of(lsn).0;
        segment(self.start_lsn) + 1 < segment(flushed_lsn)
    }
}

/// Takes a status in.
pub(super) fn note_status(feed: &mut FeedVitals, status: &Status) {
    feed.written_lsn = feed.written_lsn.max(status.written_lsn);
    feed.flushed_lsn = feed.flushed_lsn.max(status.flushed_lsn);
    feed.replayed_lsn = feed.replayed_lsn.max(status.replayed_lsn);
}

/// What a status says of the server behind it; nothing where the stream is held because the server went another way.
pub(super) fn replay(feed: &FeedVitals, status: &Status) -> Option<Replay> {
    if matches!(feed.contact, Contact::Stopped { .. }) {
        return None;
    }
    let Status { flushed_lsn, replayed_lsn, .. } = *status;
    Some(Replay { timeline: feed.timeline?, flushed_lsn, replayed_lsn })
}

/// Takes feedback in; zeros are kept too, because they clear what was asked for earlier.
pub(super) fn note_feedback(feed: &mut FeedVitals, feedback: &Feedback) {
    feed.feedback = Some(StandbyFeedback {
        xmin: feedback.xmin,
        xmin_epoch: feedback.xmin_epoch,
        catalog_xmin: feedback.catalog_xmin,
        catalog_xmin_epoch: feedback.catalog_xmin_epoch,
    });
}

fn lower(feed: &mut FeedVitals, limit: Lsn) {
    for position in [&mut feed.written_lsn, &mut feed.flushed_lsn, &mut feed.replayed_lsn] {
        *position = limit.min(*position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;

    const MIB: u64 = 1 << 20;

    fn status(written: u64, flushed: u64, replayed: u64) -> Status {
        let [written_lsn, flushed_lsn, replayed_lsn] = [written, flushed, replayed].map(Lsn);
        Status { written_lsn, flushed_lsn, replayed_lsn, sent_micros: 0, reply_requested: false }
    }

    fn begin(feed: &mut FeedVitals, timeline: u32, start: u64, fork: Option<u64>) {
        let segment_size = SegmentSize::new(MIB).unwrap();
        let (timeline, start_lsn, fork) = (TimelineId(timeline), Lsn(start), fork.map(Lsn));
        Beginning { timeline, start_lsn, fork, segment_size }.apply(feed);
    }

    fn positions(feed: &FeedVitals) -> [u64; 3] {
        [feed.written_lsn.0, feed.flushed_lsn.0, feed.replayed_lsn.0]
    }

    #[test]
    fn a_reconnect_takes_nothing_back() {
        let mut feed = FeedVitals::default();
        begin(&mut feed, 1, 2 * MIB, None);
        note_status(&mut feed, &status(3 * MIB + 9, 3 * MIB + 5, 3 * MIB + 1));
        begin(&mut feed, 1, 3 * MIB, None);
        note_status(&mut feed, &status(3 * MIB, 0, 0));
        assert_eq!(positions(&feed), [3 * MIB + 9, 3 * MIB + 5, 3 * MIB + 1]);
        // Flushed to a segment's very end; the record in question began in the segment before.
        note_status(&mut feed, &status(5 * MIB, 5 * MIB, 4 * MIB));
        begin(&mut feed, 1, 4 * MIB, None);
        assert_eq!(positions(&feed), [5 * MIB, 5 * MIB, 4 * MIB]);
        assert_eq!(feed.sent_lsn, Lsn(4 * MIB));
    }

    #[test]
    fn a_server_that_went_another_way_replays_nothing_of_ours() {
        let mut feed = FeedVitals::default();
        assert_eq!(replay(&feed, &status(9, 8, 7)), None);
        begin(&mut feed, 1, 0, None);
        let expected = Replay { timeline: TimelineId(1), flushed_lsn: Lsn(8), replayed_lsn: Lsn(7) };
        assert_eq!(replay(&feed, &status(9, 8, 7)), Some(expected));
        feed.contact = Contact::Stopped { since: WallTime { unix_micros: 0 }, reason: String::new() };
        assert_eq!(replay(&feed, &status(9, 8, 7)), None);
    }

    #[test]
    fn a_restored_copy_has_lost_what_it_reported() {
        let mut feed = FeedVitals::default();
        begin(&mut feed, 1, 2 * MIB, None);
        note_status(&mut feed, &status(9 * MIB + 9, 9 * MIB + 9, 9 * MIB));
        begin(&mut feed, 1, 7 * MIB, None);
        assert_eq!(positions(&feed), [7 * MIB; 3]);
    }

    #[test]
    fn on_a_new_timeline_only_what_lies_below_the_fork_counts() {
        let mut feed = FeedVitals::default();
        begin(&mut feed, 1, 2 * MIB, None);
        note_status(&mut feed, &status(3 * MIB + 9, 3 * MIB + 8, 3 * MIB + 1));
        begin(&mut feed, 2, 3 * MIB, Some(3 * MIB + 4));
        assert_eq!(positions(&feed), [3 * MIB + 4, 3 * MIB + 4, 3 * MIB + 1]);
        begin(&mut feed, 7, 3 * MIB, None);
        assert_eq!(positions(&feed), [0; 3], "an unrelated timeline");
        assert_eq!(feed.timeline, Some(TimelineId(7)));
    }
}
