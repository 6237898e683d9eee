//! Who waits for others, and since when: from looks at PostgreSQL.
//!
//! PostgreSQL shows who waits, and neither for which position nor at which level. What is sure: whoever waits has its commit
//! below the end of the WAL of that moment. And whoever still waits although all of that is written and fsynced by as many
//! as the policy wants can only wait for its replay; for that its clock begins then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::pg::{Levels, Lsn};

/// A backend that waits, and in which transaction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Waiter {
    /// The backend's process.
    pub process: i32,
    /// What tells its transaction from others of the same backend.
    pub transaction: String,
}

/// What one look showed.
#[derive(Clone, Debug)]
pub struct Look {
    /// Not before this.
    pub began: Instant,
    /// Not after this.
    pub ended: Instant,
    /// The end of the WAL after it.
    pub flushed: Lsn,
    /// Who waited.
    pub waiters: Vec<Waiter>,
}

/// Below which positions somebody has waited for the stall limit; invalid for nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waited {
    /// At some level.
    pub any: Lsn,
    /// For the replay.
    pub apply: Lsn,
}

impl Waited {
    /// Nobody can say, so it may be anywhere.
    pub const UNKNOWN: Waited = Waited { any: Lsn(u64::MAX), apply: Lsn(u64::MAX) };
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Probe {
    waiting: BTreeMap<Waiter, Seen>,
    /// Since when nothing could be seen.
    blind_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    /// Its commit is below this.
    below: Lsn,
    /// Since when it can only wait for the replay.
    met_since: Option<Instant>,
}

impl Probe {
    /// Takes a look in; `protected` is what the policy released when the look began.
    pub fn look(&mut self, look: Look, protected: Levels<Lsn>, limit: Duration) -> Waited {
        let Look { began, ended, flushed, waiters } = look;
        self.blind_since = None;
        let mut before = std::mem::take(&mut self.waiting);
        for waiter in waiters {
            let new = Seen { since: ended, below: flushed, met_since: None };
            let mut seen = before.remove(&waiter).unwrap_or(new);
            if protected.write >= seen.below && protected.flush >= seen.below {
                seen.met_since.get_or_insert(ended);
            }
            self.waiting.insert(waiter, seen);
        }
        let is_over = |since: Instant| began.saturating_duration_since(since) >= limit;
        let mut waited = Waited::default();
        for seen in self.waiting.values() {
            if is_over(seen.since) {
                waited.any = waited.any.max(seen.below);
            }
            if seen.met_since.is_some_and(is_over) {
                waited.apply = waited.apply.max(seen.below);
            }
        }
        waited
    }

    /// A look that failed, as one does when clients that wait use up all connections. Past the limit anybody may have waited
    /// for that long.
    pub fn look_failed(&mut self, now: Instant, limit: Duration) -> Waited {
        let since = *self.blind_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= limit { Waited::UNKNOWN } else { Waited::default() }
    }

    /// Whether nobody waited at the last look.
    pub fn saw_nobody(&self) -> bool {
        self.waiting.is_empty() && self.blind_since.is_none()
    }

    /// Forgets everything: nothing was asked for a while.
    pub fn clear(&mut self) {
        *self = Probe::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn waiter(process: i32, transaction: &str) -> Waiter {
        Waiter { process, transaction: transaction.to_owned() }
    }

    fn at(flush: u64) -> Levels<Lsn> {
        Levels { write: Lsn(flush + 5), flush: Lsn(flush), apply: Lsn(1) }
    }

    fn waited(any: u64, apply: u64) -> Waited {
        Waited { any: Lsn(any), apply: Lsn(apply) }
    }

    #[test]
    fn each_has_its_own_clock_and_one_that_waits_for_the_replay_a_second_one() {
        let start = Instant::now();
        let mut probe = Probe::default();
        let mut look = |millis, flushed, waiters: &[Waiter], protected| {
            let now = start + Duration::from_millis(millis);
            let look = Look { began: now, ended: now, flushed: Lsn(flushed), waiters: waiters.to_vec() };
            probe.look(look, at(protected), LIMIT)
        };
        let (one, two) = (waiter(1, "700"), waiter(2, "701"));
        assert_eq!(look(0, 50, &[one.clone(), two.clone()], 40), waited(0, 0));
        // The second commits again and again: another transaction each time.
        assert_eq!(look(99, 70, &[one.clone(), waiter(2, "702")], 40), waited(0, 0));
        assert_eq!(look(100, 80, &[one.clone(), waiter(2, "703")], 50), waited(50, 0));
        // All that it could wait for is fsynced since then.
        assert_eq!(look(199, 90, std::slice::from_ref(&one), 60), waited(50, 0));
        assert_eq!(look(200, 90, std::slice::from_ref(&one), 60), waited(50, 50));
        assert_eq!(look(210, 90, &[], 60), waited(0, 0), "who is gone waits no more");
    }

    #[test]
    fn a_look_that_takes_long_makes_nobody_wait_longer() {
        let start = Instant::now();
        let mut probe = Probe::default();
        let mut look = |began, ended| {
            let moment = |millis| start + Duration::from_millis(millis);
            let waiters = vec![waiter(1, "700")];
            let look = Look { began: moment(began), ended: moment(ended), flushed: Lsn(50), waiters };
            probe.look(look, at(40), LIMIT)
        };
        assert_eq!(look(0, 90), waited(0, 0));
        assert_eq!(look(189, 300), waited(0, 0));
        assert_eq!(look(190, 300), waited(50, 0));
    }

    #[test]
    fn who_cannot_be_seen_may_wait_but_not_at_once() {
        let start = Instant::now();
        let mut probe = Probe::default();
        assert_eq!(probe.look_failed(start, LIMIT), Waited::default());
        assert!(!probe.saw_nobody());
        assert_eq!(probe.look_failed(start + LIMIT, LIMIT), Waited::UNKNOWN);
        let now = start + LIMIT * 2;
        let look = Look { began: now, ended: now, flushed: Lsn(50), waiters: Vec::new() };
        assert_eq!(probe.look(look, at(40), LIMIT), Waited::default());
        assert!(probe.saw_nobody());
        assert_eq!(probe.look_failed(now + LIMIT, LIMIT), Waited::default(), "it begins anew");
    }
}
