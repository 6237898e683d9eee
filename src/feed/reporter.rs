//! What a session tells the vitals.
//!
//! Only the local standby's walreceiver counts: positions decide what is drained before a promotion, so those of
//! a `pg_receivewal` that somebody runs must not pass for them. It is known by its application name, which
//! [`super::primary_conninfo`] gives it. When it reconnects before its old session is seen to be gone, the newer
//! session counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::progress::{self, Beginning};
use crate::clock::WallTime;
use crate::pg::Lsn;
use crate::pg::message::copy::{Feedback, Status};
use crate::vitals::{Contact, FeedVitals, Replay, Vitals};

/// One session's way to the vitals.
pub(super) struct Reporter {
    vitals: Arc<Vitals>,
    /// Which session counts.
    current: Arc<AtomicU64>,
    /// The number of this one; zero when it is not the standby's.
    session: u64,
}

impl Reporter {
    /// A reporter that reports nothing.
    pub(super) fn silent(vitals: Arc<Vitals>) -> Reporter {
        Reporter { vitals, current: Arc::default(), session: 0 }
    }

    /// The reporter of the standby's newest session; `session` is its number, not zero.
    pub(super) fn of_standby(vitals: Arc<Vitals>, current: Arc<AtomicU64>, session: u64) -> Reporter {
        current.fetch_max(session, Ordering::AcqRel);
        Reporter { vitals, current, session }
    }

    pub(super) fn begins(&self, beginning: &Beginning) {
        self.update(|feed| {
            beginning.apply(feed);
            feed.contact = Contact::Up { since: WallTime::now() };
        });
        self.set_replay(None);
    }

    pub(super) fn sent(&self, lsn: Lsn) {
        self.update(|feed| feed.sent_lsn = lsn);
    }

    pub(super) fn status(&self, status: &Status) {
        self.update(|feed| {
            progress::note_status(feed, status);
            feed.last_heard = Some(Instant::now());
        });
        self.set_replay(progress::replay(&self.vitals.feed.get(), status));
    }

    pub(super) fn feedback(&self, feedback: &Feedback) {
        self.update(|feed| {
            progress::note_feedback(feed, feedback);
            feed.last_heard = Some(Instant::now());
        });
    }

    /// The standby can't follow until a person acts.
    pub(super) fn stopped(&self, reason: String) {
        self.update(|feed| feed.contact = Contact::Stopped { since: WallTime::now(), reason });
        self.set_replay(None);
    }

    /// The stream or the session is over, for this reason if it did not end well. A reason given earlier stays
    /// when none is added, and so does what a person must see to.
    pub(super) fn ended(&self, error: Option<String>) {
        self.update(|feed| match (&feed.contact, &error) {
            (Contact::Stopped { .. }, _) | (Contact::Trying { .. }, None) => {}
            _ => feed.contact = Contact::Trying { since: WallTime::now(), error },
        });
        self.set_replay(None);
    }

    fn update(&self, change: impl FnOnce(&mut FeedVitals)) {
        if self.counts() {
            self.vitals.feed.update(change);
        }
    }

    fn set_replay(&self, replay: Option<Replay>) {
        if self.counts() {
            self.vitals.replay.set(replay);
        }
    }

    fn counts(&self) -> bool {
        self.session != 0 && self.session == self.current.load(Ordering::Acquire)
    }
}
