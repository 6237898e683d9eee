//! Standbys that catch up: how far they have to go, how fast they go, and when they are there; pure.
//!
//! A standby in step is always a little behind, so only one that lacks more than a segment catches up. While it is not
//! heard nothing is known of it, and it is not in here.

use std::time::Duration;

use super::Status;
use super::lag::{self, Link};
use super::threshold::Amount;
use crate::vitals::Trails;

/// A standby on its way to the end of the WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatchUp {
    /// Its name.
    pub standby: String,
    /// WAL that is not fsynced there yet.
    pub behind_bytes: u64,
    /// How fast it gets WAL; `None` when that is not known yet.
    pub bytes_per_second: Option<u64>,
    /// When it will be in step if all goes on as it does; `None` when that is not known, or never.
    pub left: Option<Duration>,
}

/// Those that catch up at the moment of a status. In step is whoever lacks no more than `segment_bytes`.
pub fn of(status: &Status, trails: &Trails, segment_bytes: u64) -> Vec<CatchUp> {
    let standbys = lag::of(status).standbys.into_iter();
    standbys
        .filter_map(|standby| match (standby.link, standby.flush.bytes) {
            (Link::Up(_), Amount::Known(behind_bytes)) if behind_bytes > segment_bytes => {
                let rates = trails.nodes.get(&standby.name).and_then(|own| {
                    // What was written while it was away is in what it lacks.
                    let since = own.begun()?;
                    own.bytes_per_second(since).zip(trails.end.bytes_per_second(since))
                });
                Some(CatchUp {
                    standby: standby.name,
                    behind_bytes,
                    bytes_per_second: rates.map(|(rate, _)| rate as u64),
                    left: rates.and_then(|(rate, written)| left(behind_bytes, rate - written)),
                })
            }
            _ => None,
        })
        .collect()
}

/// How long it takes when the distance shrinks by so many bytes each second.
fn left(behind_bytes: u64, nearer_each_second: f64) -> Option<Duration> {
    let seconds = behind_bytes as f64 / nearer_each_second;
    // In years nobody's rate is as it is now.
    (nearer_each_second > 0.0 && seconds < 1e8).then(|| Duration::from_secs(seconds.ceil() as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::Instant;

    use super::*;
    use crate::clock::WallTime;
    use crate::pg::Lsn;
    use crate::report::tests;
    use crate::vitals::{Contact, Trail};

    /// Over the last 10 seconds of 20.
    fn trail(from: u64, to: u64) -> Trail {
        let mut trail = Trail::default();
        trail.mark(at(10), Lsn(from));
        trail.mark(at(20), Lsn(to));
        trail
    }

    fn at(seconds: u64) -> Instant {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        *BEGUN.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    /// A standby that is heard, or was, and lacks 1000 bytes.
    fn status(is_heard: bool) -> Status {
        let mut status = tests::standby();
        let now = status.taken_at;
        status.primary.contact =
            if is_heard { Contact::Up { since: WallTime { unix_micros: 0 } } } else { Contact::Never };
        (status.primary.last_contact, status.primary.clock) = (Some(now), Some(now));
        status.primary.timeline = status.node.timeline;
        status.primary.flush_lsn = Some(Lsn(11_000));
        (status.samples, status.downstreams) = (Vec::new(), Vec::new());
        (status.store.appended, status.store.durable) = (Lsn(10_000), Lsn(10_000));
        status
    }

    fn caught(status: &Status, own: Trail, end: Trail, segment_bytes: u64) -> Option<CatchUp> {
        let nodes = [(status.node.name.clone(), own)].into();
        of(status, &Trails { end, nodes }, segment_bytes).pop()
    }

    #[test]
    fn the_time_left_is_what_is_lacking_by_how_fast_it_shrinks() {
        let status = status(true);
        let caught = |own, end| caught(&status, own, end, 999).unwrap();
        let known = caught(trail(0, 1500), trail(0, 500));
        assert_eq!((known.behind_bytes, known.bytes_per_second), (1000, Some(150)));
        assert_eq!(known.left, Some(Duration::from_secs(10)));
        assert_eq!(caught(trail(0, 1500), trail(7, 7)).left, Some(Duration::from_secs(7)));
        // Written before it came back.
        let mut burst = Trail::default();
        for (seconds, lsn) in [(0, 0), (5, 90_000), (10, 90_000), (20, 90_500)] {
            burst.mark(at(seconds), Lsn(lsn));
        }
        assert_eq!(caught(trail(0, 1500), burst).left, Some(Duration::from_secs(10)));
        // Not nearer, or not known: no promise.
        assert_eq!(caught(trail(0, 500), trail(0, 500)).left, None);
        assert_eq!(caught(trail(0, 400), trail(0, 500)).left, None);
        for (own, end) in [(trail(0, 1500), Trail::default()), (Trail::default(), trail(0, 500))] {
            let unknown = caught(own, end);
            assert_eq!((unknown.bytes_per_second, unknown.left), (None, None));
        }
        assert_eq!(caught(trail(5, 5), trail(0, 0)).bytes_per_second, Some(0));
    }

    #[test]
    fn who_is_in_step_or_out_of_hearing_does_not_catch_up() {
        let step = |status: &Status, segment| caught(status, trail(0, 10), trail(0, 1), segment);
        assert!(step(&status(true), 999).is_some() && step(&status(true), 1000).is_none());
        assert_eq!(step(&status(false), 1), None);
    }
}
