//! The numbers that the stages write and `report` reads: plain facts, no opinion.
//!
//! Each stage owns one cell and nobody else writes it. A cell can be watched, so that a report follows the state
//! itself instead of polling it. Imports nothing but `pg` and `clock`.

mod trail;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Instant;

use tokio::sync::watch;

use crate::clock::WallTime;
use crate::pg::{Lsn, TimelineId};

pub use trail::{Trail, Trails};

/// One value that one stage writes and anyone may read or watch.
#[derive(Debug)]
pub struct Cell<T>(watch::Sender<T>);

impl<T: Clone + Default> Default for Cell<T> {
    fn default() -> Cell<T> {
        Cell(watch::Sender::new(T::default()))
    }
}

impl<T: Clone> Cell<T> {
    /// Puts a value in its place; wakes whoever watches if it is another one.
    pub fn set(&self, value: T)
    where
        T: PartialEq,
    {
        self.0.send_if_modified(|current| {
            let is_new = *current != value;
            *current = value;
            is_new
        });
    }

    /// Changes the value and wakes whoever watches.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        self.0.send_modify(change);
    }

    /// A copy of the value now.
    pub fn get(&self) -> T {
        self.0.borrow().clone()
    }

    /// A receiver that is told of every change.
    pub fn watch(&self) -> watch::Receiver<T> {
        self.0.subscribe()
    }
}

/// All numbers of one process.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Written by `capture`, on a primary.
    pub capture: Cell<CaptureVitals>,
    /// Written by `receive`, on a standby.
    pub receive: Cell<ReceiveVitals>,
    /// Written by `feed`, on a standby.
    pub feed: Cell<FeedVitals>,
    /// Written by `feed`, on a standby: what the walreceiver that is connected said last; `None` while none is, or it
    /// said nothing yet. A server that was restarted may show less than the one before had replayed, so what that one
    /// said is not in here.
    pub replay: Cell<Option<Replay>>,
    /// Written by `ship`: one entry per downstream that was ever connected, by node name.
    pub downstreams: Cell<BTreeMap<String, DownstreamVitals>>,
    /// Written by `backup`: the base backups that are running, by number.
    pub backups: Cell<BTreeMap<u64, BackupVitals>>,
    /// When the primary's WAL reached which position, by the primary's clock.
    pub samples: Samples,
    /// Where everybody was in the last half minute; noted once a second.
    pub trails: Cell<Trails>,
}

/// How a connection is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Contact {
    /// Nobody tried yet.
    #[default]
    Never,
    /// Being tried.
    Trying {
        /// When the last connection ended, or the first try began.
        since: WallTime,
        /// Why the last try failed.
        error: Option<String>,
    },
    /// Connected.
    Up {
        /// Since when.
        since: WallTime,
    },
    /// Given up until a person acts.
    Stopped {
        /// Since when.
        since: WallTime,
        /// Why, with what to do.
        reason: String,
    },
}

/// The connection to the local primary.
#[derive(Clone, Debug, Default)]
pub struct CaptureVitals {
    /// The replication connection.
    pub contact: Contact,
    /// The server's flush position as it last told us.
    pub server_flush_lsn: Lsn,
    /// When it told us.
    pub last_heard: Option<Instant>,
    /// Bytes of WAL received from the server.
    pub raw_bytes: u64,
    /// `restart_lsn` of our slot, as of its last advance.
    pub slot_restart_lsn: Lsn,
}

/// The connection to the upstream sidecar.
#[derive(Clone, Debug, Default)]
pub struct ReceiveVitals {
    /// The link.
    pub contact: Contact,
    /// Name of the upstream node.
    pub upstream: String,
    /// Its address as it was connected to.
    pub upstream_address: String,
    /// When anything last arrived.
    pub last_heard: Option<Instant>,
    /// The primary's flush position, as it last came down the link.
    pub server_flush_lsn: Lsn,
    /// The primary's wall time of the newest heartbeat, and when it arrived here.
    pub server_time: Option<(WallTime, Instant)>,
    /// WAL bytes received, decompressed.
    pub raw_bytes: u64,
    /// WAL bytes received, as they came over the wire.
    pub wire_bytes: u64,
}

/// The local standby, as it speaks to our walsender.
#[derive(Clone, Debug, Default)]
pub struct FeedVitals {
    /// The walreceiver's connection.
    pub contact: Contact,
    /// The timeline it streams.
    pub timeline: Option<TimelineId>,
    /// Sent to it.
    pub sent_lsn: Lsn,
    /// Written by it; a maximum, as PostgreSQL's own goes back after a reconnect (pg-facts, rule 10).
    pub written_lsn: Lsn,
    /// Flushed by it.
    pub flushed_lsn: Lsn,
    /// Replayed by it.
    pub replayed_lsn: Lsn,
    /// When it last sent a status message.
    pub last_heard: Option<Instant>,
    /// Its last hot-standby feedback; `None` when it sends none.
    pub feedback: Option<StandbyFeedback>,
}

/// How far a walreceiver's server is, in the server's own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replay {
    /// The timeline that is streamed to it. What it replayed past this timeline's end is none of our history.
    pub timeline: TimelineId,
    /// Flushed by it, since this connection.
    pub flushed_lsn: Lsn,
    /// Replayed by it.
    pub replayed_lsn: Lsn,
}

/// A hot-standby feedback message's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StandbyFeedback {
    /// Oldest transaction the standby needs; zero for none.
    pub xmin: u32,
    /// Epoch of `xmin`.
    pub xmin_epoch: u32,
    /// Oldest catalog transaction; zero for none.
    pub catalog_xmin: u32,
    /// Epoch of `catalog_xmin`.
    pub catalog_xmin_epoch: u32,
}

/// One downstream sidecar.
#[derive(Clone, Debug, Default)]
pub struct DownstreamVitals {
    /// The link.
    pub contact: Contact,
    /// Where it connected from.
    pub address: String,
    /// Through whom its words come, when it is not connected here.
    pub via: Option<Via>,
    /// Where others reach it.
    pub advertise: String,
    /// The certificate that it came with.
    pub certificate_serial: u64,
    /// Whose positions these are; another store under the same name has none of them.
    pub store_uuid: Option<String>,
    /// Its stores before, the oldest first: each was emptied for a new copy.
    pub former_store_uuids: Vec<String>,
    /// Its base backup is not complete: its positions count for no commit.
    pub is_copying: bool,
    /// The highest serial of a policy that it has stored.
    pub policy_serial: u64,
    /// The timeline that its positions are on, as it says; the one that is shipped to it may be a newer one.
    pub timeline: Option<TimelineId>,
    /// Handed to the socket.
    pub shipped_lsn: Lsn,
    /// Written in its store.
    pub written_lsn: Lsn,
    /// Fsynced in its store.
    pub flushed_lsn: Lsn,
    /// Replayed by its PostgreSQL.
    pub replayed_lsn: Lsn,
    /// Where its PostgreSQL would begin to replay after a crash.
    pub restartpoint_lsn: Lsn,
    /// When it last said anything.
    pub last_heard: Option<Instant>,
    /// The same as wall time, which outlives a restart of this process.
    pub last_heard_at: Option<WallTime>,
    /// WAL bytes shipped, before compression.
    pub raw_bytes: u64,
    /// WAL bytes shipped, as they went over the wire.
    pub wire_bytes: u64,
    /// Its hot-standby feedback, to be passed on to the primary.
    pub feedback: Option<StandbyFeedback>,
}

/// The way of a node's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Via {
    /// Who passes them on to this node.
    pub relay: String,
    /// Whom the node follows: the relay, or one further down.
    pub upstream: String,
}

impl DownstreamVitals {
    /// A connection begins. Another store than the one before has nothing of what that one said.
    pub fn connect(&mut self, since: WallTime, address: String, store_uuid: Option<String>) {
        if self.store_uuid != store_uuid {
            *self = DownstreamVitals { store_uuid, ..DownstreamVitals::default() };
        }
        self.contact = Contact::Up { since };
        self.address = address;
        self.via = None;
    }
}

impl StandbyFeedback {
    /// What two of them come to: the older of each, as PostgreSQL itself would take it from several; zero is none.
    pub fn least(self, other: StandbyFeedback) -> StandbyFeedback {
        let older = |one: (u32, u32), two: (u32, u32)| match (one.1, two.1) {
            (0, _) => two,
            (_, 0) => one,
            _ => one.min(two),
        };
        let (xmin_epoch, xmin) = older((self.xmin_epoch, self.xmin), (other.xmin_epoch, other.xmin));
        let (catalog_xmin_epoch, catalog_xmin) = older(
            (self.catalog_xmin_epoch, self.catalog_xmin),
            (other.catalog_xmin_epoch, other.catalog_xmin),
        );
        StandbyFeedback { xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch }
    }
}

/// One running base backup.
#[derive(Clone, Debug, Default)]
pub struct BackupVitals {
    /// Who takes it.
    pub client: String,
    /// In words: `waiting for the checkpoint`, `copying`, …
    pub phase: &'static str,
    /// WAL from here must stay.
    pub start_lsn: Lsn,
    /// Bytes read so far.
    pub done_bytes: u64,
    /// Those of them that the taker had already.
    pub equal_bytes: u64,
    /// Bytes to read, as the walk found them.
    pub total_bytes: u64,
}

/// When the WAL reached which position: the ring that lag in seconds is read from.
///
/// Bounded: beyond [`Samples::LIMIT`] every second one of the older half goes.
#[derive(Debug, Default)]
pub struct Samples(Mutex<VecDeque<Sample>>);

/// At `time` the primary's flush position was `lsn`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    /// The position.
    pub lsn: Lsn,
    /// By the primary's clock.
    pub time: WallTime,
    /// Nobody looked between the sample before and this one, so the WAL may have got there long before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_gap: bool,
}

impl Samples {
    /// How many are kept at most.
    pub const LIMIT: usize = 4096;

    /// Adds one; a position at or below the newest replaces nothing and is dropped, so that an idle primary's
    /// samples do not push out the telling ones.
    pub fn push(&self, sample: Sample) {
        let mut ring = self.lock();
        if ring.back().is_some_and(|newest| sample.lsn <= newest.lsn) {
            return;
        }
        ring.push_back(sample);
        if ring.len() > Samples::LIMIT {
            let half = ring.len() / 2;
            let (mut index, mut gap) = (0, false);
            // A gap before one that goes is one before the next.
            ring.retain_mut(|sample| {
                index += 1;
                gap |= sample.after_gap;
                let stays = index > half || index % 2 == 0;
                if stays {
                    sample.after_gap = std::mem::take(&mut gap);
                }
                stays
            });
        }
    }

    /// When the WAL first was known to reach beyond `position`: the time from which a node at `position` lacks
    /// something. `None` when no sample lies beyond.
    pub fn first_beyond(&self, position: Lsn) -> Option<Sample> {
        let ring = self.lock();
        let index = ring.partition_point(|sample| sample.lsn <= position);
        ring.get(index).copied()
    }

    /// Forgets what every node has passed, but for the newest such sample.
    pub fn forget_below(&self, position: Lsn) {
        let mut ring = self.lock();
        while ring.get(1).is_some_and(|second| second.lsn <= position) {
            ring.pop_front();
        }
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Sample> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(lsn: u64, seconds: i64) -> Sample {
        Sample { lsn: Lsn(lsn), time: WallTime { unix_micros: seconds * 1_000_000 }, after_gap: false }
    }

    #[test]
    fn the_first_sample_beyond_a_position_tells_since_when_it_lags() {
        let samples = Samples::default();
        for (lsn, seconds) in [(10, 1), (20, 2), (20, 3), (30, 4)] {
            samples.push(sample(lsn, seconds));
        }
        assert_eq!(samples.first_beyond(Lsn(15)), Some(sample(20, 2)));
        assert_eq!(samples.first_beyond(Lsn(20)), Some(sample(30, 4)));
        assert_eq!(samples.first_beyond(Lsn(30)), None);
        samples.forget_below(Lsn(25));
        assert_eq!(samples.all(), [sample(20, 2), sample(30, 4)]);
    }

    #[test]
    fn another_store_under_the_same_name_has_no_past() {
        let mut member = DownstreamVitals::default();
        let now = WallTime { unix_micros: 1 };
        let connect = |member: &mut DownstreamVitals, uuid: Option<&str>| {
            member.connect(now, "db2:1".to_owned(), uuid.map(str::to_owned));
            member.flushed_lsn
        };
        connect(&mut member, Some("one"));
        (member.flushed_lsn, member.policy_serial) = (Lsn(5), 2);
        assert_eq!(connect(&mut member, Some("one")), Lsn(5));
        assert_eq!(connect(&mut member, Some("two")), Lsn::INVALID);
        assert_eq!(member.policy_serial, 0);
        member.flushed_lsn = Lsn(5);
        assert_eq!(connect(&mut member, None), Lsn::INVALID, "nobody knows whose it is");
    }

    #[test]
    fn the_oldest_need_counts_across_epochs_and_none_counts_not() {
        let of = |epoch, xmin| StandbyFeedback { xmin, xmin_epoch: epoch, ..StandbyFeedback::default() };
        assert_eq!(of(1, 5).least(of(0, 4_000_000_000)), of(0, 4_000_000_000));
        assert_eq!(of(1, 5).least(of(0, 0)), of(1, 5));
        assert_eq!(of(0, 0).least(of(0, 0)), of(0, 0));
    }

    #[test]
    fn the_ring_is_bounded_and_thins_its_older_half() {
        let samples = Samples::default();
        for n in 1..=20_000 {
            samples.push(Sample { after_gap: n == 1001, ..sample(n, n as i64) });
        }
        let all = samples.all();
        assert!(all.len() <= Samples::LIMIT);
        assert_eq!(all.last().copied(), Some(sample(20_000, 20_000)));
        let gaps: Vec<_> = all.iter().filter(|sample| sample.after_gap).collect();
        assert!(gaps.len() == 1 && gaps[0].lsn >= Lsn(1001), "{gaps:?}");
        assert!(all.is_sorted_by_key(|sample| sample.lsn));
    }
}
