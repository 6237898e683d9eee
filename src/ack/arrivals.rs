//! How far the WAL had come how long ago, in a few slots.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::pg::Lsn;

/// Into so many slots the time up to the limit is divided: WAL may look younger than it is by the length of one.
const SLOTS: u32 = 32;

/// Remembers when which position was received, for as long as a limit.
#[derive(Debug)]
pub(super) struct Arrivals {
    limit: Duration,
    /// WAL of the last `limit`, oldest first.
    slots: VecDeque<Slot>,
    /// What was received at least `limit` ago.
    aged: Lsn,
}

/// WAL that came at about the same time.
#[derive(Clone, Copy, Debug)]
struct Slot {
    begun: Instant,
    /// When the last of it came: none of it counts as older than that.
    latest: Instant,
    lsn: Lsn,
}

impl Arrivals {
    pub(super) fn new(limit: Duration) -> Arrivals {
        Arrivals { limit, slots: VecDeque::new(), aged: Lsn::INVALID }
    }

    /// WAL up to `lsn` is there.
    pub(super) fn note(&mut self, now: Instant, lsn: Lsn) {
        let newest = self.slots.back().map_or(self.aged, |slot| slot.lsn);
        if lsn > newest {
            let open = self.slots.back_mut().filter(|slot| now - slot.begun < self.limit / SLOTS);
            match open {
                Some(slot) => (slot.latest, slot.lsn) = (now, lsn),
                None => self.slots.push_back(Slot { begun: now, latest: now, lsn }),
            }
        }
        while let Some(slot) = self.slots.front().filter(|slot| now - slot.latest >= self.limit) {
            self.aged = slot.lsn;
            self.slots.pop_front();
        }
    }

    /// What was received at least the limit ago.
    pub(super) fn aged(&self) -> Lsn {
        self.aged
    }

    /// From when on WAL beyond `lsn` will have been there for the limit; `None` while there is none.
    pub(super) fn aged_at(&self, lsn: Lsn, now: Instant) -> Option<Instant> {
        if lsn < self.aged {
            return Some(now);
        }
        self.slots.iter().find(|slot| slot.lsn > lsn).and_then(|slot| slot.latest.checked_add(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never too early, hardly too late, and in bounded room.
        #[test]
        fn ages_are_right_to_a_slot(steps in prop::collection::vec((0u64..60, 0u64..5), 1..400)) {
            let limit = Duration::from_millis(320);
            let start = Instant::now();
            let (mut arrivals, mut log, mut now, mut lsn) = (Arrivals::new(limit), Vec::new(), start, 1u64);
            for (millis, bytes) in steps {
                now += Duration::from_millis(millis);
                lsn += bytes;
                arrivals.note(now, Lsn(lsn));
                log.push((now, lsn));
                let there = |age: Duration| {
                    log.iter().rfind(|(at, _)| now - *at >= age).map_or(0, |(_, lsn)| *lsn)
                };
                prop_assert!(arrivals.aged().0 <= there(limit), "nothing is older than it is");
                prop_assert!(arrivals.aged().0 >= there(limit + limit / SLOTS), "nor much younger");
                prop_assert!(arrivals.slots.len() <= SLOTS as usize + 2, "{}", arrivals.slots.len());
                if let Some(at) = arrivals.aged_at(Lsn(lsn - 1), now) {
                    prop_assert!(at <= now + limit && (at > now || arrivals.aged().0 >= lsn));
                }
            }
        }
    }
}
