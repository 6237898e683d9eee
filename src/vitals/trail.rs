//! Where positions were in the last half minute: how fast they move.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::pg::Lsn;

/// What is remembered: long enough to even out batches, short enough to notice another link or load soon.
const WINDOW: Duration = Duration::from_secs(30);
/// Over less than this a rate says nothing.
const TELLING: Duration = Duration::from_secs(2);
/// Marks closer together than this tell no more.
const STEP: Duration = Duration::from_millis(500);

/// Where one position was, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Trail(VecDeque<(Instant, Lsn)>);

/// The trails of the primary's end and of those who follow it.
#[derive(Clone, Debug, Default)]
pub struct Trails {
    /// What the primary has flushed.
    pub end: Trail,
    /// What is fsynced at each node that is heard.
    pub nodes: BTreeMap<String, Trail>,
}

impl Trail {
    /// Notes where it is now. One that went back is another store's, or on another timeline: nothing from before counts.
    pub fn mark(&mut self, now: Instant, lsn: Lsn) {
        if self.0.back().is_some_and(|(_, last)| lsn < *last) {
            self.0.clear();
        }
        if self.0.back().is_some_and(|(last, _)| now.duration_since(*last) < STEP) {
            return;
        }
        self.0.push_back((now, lsn));
        while self.0.front().is_some_and(|(first, _)| now.duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Since when it is remembered.
    pub fn begun(&self) -> Option<Instant> {
        self.0.front().map(|(begun, _)| *begun)
    }

    /// How fast it moved from a moment on, as far as that is remembered; `None` when that is too short to tell.
    pub fn bytes_per_second(&self, since: Instant) -> Option<f64> {
        let (begun, from) = self.0.iter().find(|(at, _)| *at >= since)?;
        let (ended, to) = self.0.back()?;
        let lasted = ended.duration_since(*begun);
        (lasted >= TELLING).then(|| to.bytes_since(*from) as f64 / lasted.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_half_minute_and_unknown_before_it_tells_anything() {
        let begun = Instant::now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let mut trail = Trail::default();
        assert_eq!(trail.bytes_per_second(begun), None);
        trail.mark(at(0.0), Lsn(1000));
        trail.mark(at(0.1), Lsn(9000));
        trail.mark(at(1.0), Lsn(1100));
        assert_eq!(trail.bytes_per_second(begun), None);
        trail.mark(at(2.0), Lsn(1200));
        assert_eq!(trail.bytes_per_second(begun), Some(100.0));
        for second in 3..200 {
            trail.mark(at(f64::from(second)), Lsn(1200 + 10 * u64::try_from(second).unwrap()));
        }
        assert_eq!(trail.bytes_per_second(begun), Some(10.0));
        assert!(trail.0.len() <= 32);
        assert_eq!((trail.begun(), trail.bytes_per_second(at(198.0))), (Some(at(169.0)), None));
        // Another store, or another timeline.
        trail.mark(at(200.0), Lsn(5));
        assert_eq!(trail.bytes_per_second(begun), None);
        // It stands still: that is known, and it is zero.
        trail.mark(at(210.0), Lsn(5));
        assert_eq!(trail.bytes_per_second(begun), Some(0.0));
    }
}
