//! What may go, and never before whom.
//!
//! Kept is everything from the segment of the least position that anyone holds, up to a size. Beyond that size the
//! slowest holder that may be let go is let go: a choice between one standby's convenience and every node's disk,
//! which the caller reports as an ERROR.

use super::index::Key;
use super::{Store, StoreError};
use crate::durable;
use crate::pg::{Lsn, SegmentSize};

/// Somebody who still needs WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Who, as `status` shows it.
    pub holder: String,
    /// The first position that is needed.
    pub lsn: Lsn,
    /// May be let go when the store is full: a standby can be seeded anew, the local PostgreSQL cannot.
    pub may_be_let_go: bool,
}

/// What retention did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Segments removed.
    pub removed: usize,
    /// Holders that were let go, slowest first.
    pub let_go: Vec<Hold>,
    /// The store is larger than it may be, and nobody is left to let go.
    pub over_limit: bool,
}

/// A segment as the plan sees it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: Key,
    end: Lsn,
    disk_bytes: u64,
    removable: bool,
}

pub(super) fn apply(store: &Store, holds: &[Hold], max_bytes: u64) -> Result<Retention, StoreError> {
    let newest = store.newest_timeline();
    let candidates: Vec<Candidate> = {
        let index = store.index();
        let last = newest.and_then(|timeline| index.of_timeline(timeline).next_back().map(|(key, _)| *key));
        index
            .iter()
            .map(|(key, segment)| Candidate {
                key: *key,
                end: segment.appended.lsn,
                disk_bytes: segment.disk_bytes,
                removable: segment.sealed && Some(*key) != last,
            })
            .collect()
    };
    let (keys, retention) = plan(&candidates, holds, max_bytes, store.identity().segment_size);
    for key in keys {
        let path = store.index().get(key).map(|segment| segment.path.clone());
        if let Some(path) = path {
            // One that stays keeps those behind it, or the store would have a gap.
            durable::remove(&path)?;
            store.index().remove(key);
        }
    }
    store.publish();
    Ok(retention)
}

/// Decides which segments go; pure.
fn plan(
    candidates: &[Candidate],
    holds: &[Hold],
    max_bytes: u64,
    size: SegmentSize,
) -> (Vec<Key>, Retention) {
    let mut holds: Vec<&Hold> = holds.iter().collect();
    holds.sort_by_key(|hold| hold.lsn);
    let mut retention = Retention::default();
    loop {
        let least = holds.first().map_or(Lsn(u64::MAX), |hold| size.start_of(hold.lsn));
        let goes = |candidate: &&Candidate| candidate.removable && candidate.end <= least;
        let kept_bytes: u64 =
            candidates.iter().filter(|candidate| !goes(candidate)).map(|c| c.disk_bytes).sum();
        let slowest = holds.iter().position(|hold| hold.may_be_let_go);
        match slowest.filter(|_| kept_bytes > max_bytes) {
            // Letting go of someone who is not the least holder frees nothing.
            Some(0) => retention.let_go.push(holds.remove(0).clone()),
            _ => {
                retention.over_limit = kept_bytes > max_bytes;
                let keys: Vec<Key> = candidates.iter().filter(goes).map(|candidate| candidate.key).collect();
                retention.removed = keys.len();
                return (keys, retention);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{SegmentNumber, TimelineId};

    const MIB: u64 = 1 << 20;

    fn segments(count: u64) -> Vec<Candidate> {
        (0..count)
            .map(|n| Candidate {
                key: (TimelineId(1), SegmentNumber(n)),
                end: Lsn((n + 1) * MIB),
                disk_bytes: 100,
                removable: n + 1 < count,
            })
            .collect()
    }

    fn hold(holder: &str, lsn: u64, may_be_let_go: bool) -> Hold {
        Hold { holder: holder.into(), lsn: Lsn(lsn), may_be_let_go }
    }

    fn run(holds: &[Hold], max_bytes: u64) -> (usize, Vec<String>, bool) {
        let (keys, retention) = plan(&segments(10), holds, max_bytes, SegmentSize::new(MIB).unwrap());
        assert_eq!(keys.len(), retention.removed);
        (keys.len(), retention.let_go.into_iter().map(|hold| hold.holder).collect(), retention.over_limit)
    }

    #[test]
    fn everything_from_the_least_holders_segment_stays() {
        assert_eq!(
            run(&[hold("a", 5 * MIB + 7, true), hold("b", 3 * MIB + 1, true)], 10_000),
            (3, vec![], false)
        );
        assert_eq!(run(&[hold("a", 3 * MIB, true)], 10_000), (3, vec![], false));
        assert_eq!(run(&[], 10_000), (9, vec![], false), "the last segment always stays");
    }

    #[test]
    fn at_the_limit_the_slowest_is_let_go_and_nobody_else() {
        let holds = [hold("slow", MIB, true), hold("quick", 8 * MIB, true)];
        assert_eq!(run(&holds, 500), (8, vec!["slow".to_owned()], false));
        assert_eq!(run(&holds, 900), (1, vec![], false), "at the limit is not beyond it");
    }

    #[test]
    fn who_cannot_be_let_go_keeps_the_store_over_its_limit() {
        let holds = [hold("local", MIB, false), hold("slow", 2 * MIB, true)];
        assert_eq!(run(&holds, 500), (1, vec![], true));
    }
}
