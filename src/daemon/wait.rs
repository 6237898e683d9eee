//! Waiting until the PostgreSQL of this node shows a position: read your writes.
//!
//! A standby's position is what its walreceiver says, which by itself speaks once in `wal_receiver_status_interval`. So
//! it is asked while somebody waits: at once, then less and less often, and anew as soon as it has flushed what is waited
//! for and is about to replay it. What was waited for is dropped with the future.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::node::Node;
use crate::pg::{History, Lsn, TimelineId};
use crate::report::wait::{Wait, Waited};
use crate::store::NodeRole;
use crate::vitals::{CaptureVitals, Contact, Replay};

/// Waits at once, over all who ask.
pub const WAITS: usize = 256;

/// Pauses between two questions to the walreceiver: doubled from the first to the last.
const ASK_AFTER_MIN: Duration = Duration::from_millis(1);
const ASK_AFTER_MAX: Duration = Duration::from_millis(100);

/// Waits, for at most as long as is asked.
pub async fn until_there(node: &Arc<Node>, wait: &Wait) -> Waited {
    let Ok(_place) = node.waits.try_acquire() else {
        return Waited::Unknown { reason: format!("{WAITS} are waiting here already; try again") };
    };
    let wanted = node.store.identity().segment_size.record_end_within(wait.lsn);
    let deadline = Instant::now() + wait.timeout.0;
    let mut news = News::of(node);
    let mut asking = Asking::new();
    let mut looks_closely = true;
    loop {
        if let Some(ended) = look(node, wait, wanted, looks_closely).await {
            return ended;
        }
        asking.hurry_once(node.vitals.replay.get().is_some_and(|replay| replay.flushed_lsn >= wanted));
        // Every branch is cancellation-safe: each only waits.
        looks_closely = tokio::select! {
            () = sleep_until(deadline) => return overdue(node),
            () = sleep_until(asking.due) => {
                node.replies.ask();
                asking.put_off();
                true
            }
            () = news.next() => false,
        };
    }
}

/// When to ask next.
struct Asking {
    due: Instant,
    pause: Duration,
    is_hurried: bool,
}

impl Asking {
    fn new() -> Asking {
        Asking { due: Instant::now(), pause: ASK_AFTER_MIN, is_hurried: false }
    }

    fn put_off(&mut self) {
        self.due = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(ASK_AFTER_MAX);
    }

    /// Begins anew, the first time that this is so.
    fn hurry_once(&mut self, is_near: bool) {
        if is_near && !std::mem::replace(&mut self.is_hurried, true) {
            *self = Asking { is_hurried: true, ..Asking::new() };
        }
    }
}

/// Whatever may end a wait.
struct News {
    replay: watch::Receiver<Option<Replay>>,
    capture: watch::Receiver<CaptureVitals>,
    role: watch::Receiver<NodeRole>,
    newer_primary: watch::Receiver<Option<(u64, String)>>,
}

impl News {
    fn of(node: &Node) -> News {
        News {
            replay: node.vitals.replay.watch(),
            capture: node.vitals.capture.watch(),
            role: node.role.subscribe(),
            newer_primary: node.newer_primary.subscribe(),
        }
    }

    /// Cancellation-safe. The senders live as long as the node, so none of these fails.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.replay.changed() => {}
            _ = self.capture.changed() => {}
            _ = self.role.changed() => {}
            _ = self.newer_primary.changed() => {}
        }
    }
}

/// How far the node is, and on which timeline if that is known; or why that is not known.
fn position(node: &Node) -> Result<(Option<TimelineId>, Lsn), &'static str> {
    match node.role() {
        NodeRole::Standby => {
            let replay = node.vitals.replay.get().ok_or("its PostgreSQL is not connected to the sidecar")?;
            Ok((Some(replay.timeline), replay.replayed_lsn))
        }
        NodeRole::Primary => match node.vitals.capture.get() {
            CaptureVitals { contact: Contact::Up { .. }, server_flush_lsn, .. }
                if server_flush_lsn.is_valid() =>
            {
                Ok((None, server_flush_lsn))
            }
            _ => Err("the sidecar is not connected to its PostgreSQL"),
        },
    }
}

/// The end of a wait, if it has come. The timelines are asked where the position seems to be reached, and where
/// `closely` says so: their memory is locked while the store's state is written.
async fn look(node: &Arc<Node>, wait: &Wait, wanted: Lsn, closely: bool) -> Option<Waited> {
    if let Some((epoch, name)) = node.superseded_by() {
        let reason = format!("it was superseded, {name} was promoted with epoch {epoch}");
        return Some(Waited::Unknown { reason });
    }
    let position = position(node);
    let seems_there = position.is_ok_and(|(_, at)| at >= wanted);
    let may_be_lost = closely && wait.timeline.is_some();
    if !seems_there && !may_be_lost {
        return None;
    }
    let timeline = wait.timeline;
    let asked = node.blocking("look at the timelines", move |node| place(node, timeline, wanted)).await;
    match asked.and_then(|place| place) {
        Err(error) => Some(Waited::Unknown { reason: format!("{error:#}") }),
        Ok(Place::LeftBehind { end }) => Some(Waited::LeftBehind { end }),
        Ok(Place::NotYet) => None,
        Ok(Place::Ours { ends }) => {
            let (streamed, at) = position.ok()?;
            let at = within(&ends, streamed, at);
            (at >= wanted).then_some(Waited::Reached { at })
        }
    }
}

/// What counts of a position on a timeline: past its end lies nothing of our history.
fn within(ends: &[(TimelineId, Lsn)], streamed: Option<TimelineId>, at: Lsn) -> Lsn {
    let end = ends.iter().find(|(timeline, _)| Some(*timeline) == streamed);
    end.map_or(at, |(_, end)| at.min(*end))
}

/// The end of a wait whose time is over.
fn overdue(node: &Node) -> Waited {
    match position(node) {
        Ok((_, at)) => Waited::TimedOut { at },
        Err(reason) => Waited::Unknown { reason: reason.to_owned() },
    }
}

/// Where a position is, by the timelines of the store.
#[derive(PartialEq, Eq, Debug)]
enum Place {
    /// In this node's history, or nobody said otherwise; where each past timeline ended.
    Ours { ends: Vec<(TimelineId, Lsn)> },
    /// On a timeline of which nothing is known here yet.
    NotYet,
    /// In another history: past the end of its timeline, if that is one of ours.
    LeftBehind { end: Option<Lsn> },
}

/// Blocks.
fn place(node: &Node, timeline: Option<TimelineId>, lsn: Lsn) -> anyhow::Result<Place> {
    let state = node.store.state();
    // A primary that was promoted writes a timeline that is not in its store yet.
    if node.role() == NodeRole::Primary && state.promoting.is_some() {
        return Ok(Place::NotYet);
    }
    let Some(newest) = state.newest_timeline() else { return Ok(Place::NotYet) };
    let history = match node.store.history(newest)? {
        Some(text) => History::parse(&text)?,
        None if newest == TimelineId::FIRST => History::default(),
        None => return Ok(Place::NotYet),
    };
    Ok(place_in(newest, &history, timeline, lsn))
}

fn place_in(newest: TimelineId, history: &History, timeline: Option<TimelineId>, lsn: Lsn) -> Place {
    let past = match timeline {
        Some(timeline) if timeline > newest => return Place::NotYet,
        Some(timeline) if timeline < newest => Some(history.switch_of(timeline).map(|switch| switch.lsn)),
        _ => None,
    };
    match past {
        Some(end) if end.is_none_or(|end| lsn > end) => Place::LeftBehind { end },
        _ => Place::Ours {
            ends: history.switches.iter().map(|switch| (switch.timeline, switch.lsn)).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_in_our_history_or_was_left_behind() {
        let history = History::parse(b"1\t0/200\tpromoted\n3\t0/500\tpromoted\n").unwrap();
        let place = |timeline, lsn| place_in(TimelineId(4), &history, timeline, Lsn(lsn));
        let ours = Place::Ours { ends: vec![(TimelineId(1), Lsn(0x200)), (TimelineId(3), Lsn(0x500))] };
        for (timeline, lsn) in [(1, 0x200), (3, 0x500), (4, 0x900)] {
            assert_eq!(place(Some(TimelineId(timeline)), lsn), ours, "{timeline}");
        }
        assert_eq!(place(None, 0x900), ours, "without a timeline it is taken for one of ours");
        assert_eq!(place(Some(TimelineId(1)), 0x201), Place::LeftBehind { end: Some(Lsn(0x200)) });
        assert_eq!(place(Some(TimelineId(2)), 0x100), Place::LeftBehind { end: None });
        assert_eq!(place(Some(TimelineId(5)), 0x100), Place::NotYet);
    }

    #[test]
    fn what_a_server_replayed_past_a_fork_does_not_count() {
        let ends = [(TimelineId(1), Lsn(0x200)), (TimelineId(3), Lsn(0x500))];
        let at = |streamed: Option<u32>, at| within(&ends, streamed.map(TimelineId), Lsn(at)).0;
        assert_eq!([at(Some(1), 0x300), at(Some(1), 0x100), at(Some(3), 0x300)], [0x200, 0x100, 0x300]);
        assert_eq!([at(Some(4), 0x900), at(None, 0x900)], [0x900, 0x900]);
    }

    #[test]
    fn questions_become_rarer_and_begin_anew_once() {
        let mut asking = Asking::new();
        (0..20).for_each(|_| asking.put_off());
        assert_eq!(asking.pause, ASK_AFTER_MAX);
        asking.hurry_once(false);
        assert_eq!(asking.pause, ASK_AFTER_MAX);
        asking.hurry_once(true);
        assert_eq!(asking.pause, ASK_AFTER_MIN);
        asking.put_off();
        asking.hurry_once(true);
        assert_eq!(asking.pause, 2 * ASK_AFTER_MIN);
    }
}
