//! Which samples tell since when a position is behind.
//!
//! A sample says that at some time the primary's WAL reached some position. A node at `position` has lacked
//! something since the first sample beyond it; and that *is* the first only when another sample is at or below it,
//! otherwise the ring has forgotten earlier ones.

use crate::clock::WallTime;
use crate::pg::Lsn;
use crate::vitals::Sample;

/// Since when a position lacks something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// Since this moment, by the primary's clock, within the interval of sampling.
    Exactly(WallTime),
    /// Since this moment or earlier: the samples do not go back as far, or nobody looked before it.
    AtLatest(WallTime),
    /// No sample lies beyond.
    Unknown,
}

/// Since when a node at `position` lacks something, by samples in ascending order.
pub fn lacking_since(samples: &[Sample], position: Lsn) -> Since {
    let index = samples.partition_point(|sample| sample.lsn <= position);
    match samples.get(index) {
        None => Since::Unknown,
        Some(beyond) if index == 0 || beyond.after_gap => Since::AtLatest(beyond.time),
        Some(beyond) => Since::Exactly(beyond.time),
    }
}

/// The few samples that [`lacking_since`] needs to give for each of `positions` the answer that all give.
pub fn telling(samples: &[Sample], positions: impl IntoIterator<Item = Lsn>) -> Vec<Sample> {
    let mut wanted: Vec<usize> = positions
        .into_iter()
        .flat_map(|position| {
            let beyond = samples.partition_point(|sample| sample.lsn <= position);
            [beyond.checked_sub(1), (beyond < samples.len()).then_some(beyond)]
        })
        .flatten()
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.into_iter().map(|index| samples[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(steps: Vec<(u64, i64)>) -> Vec<Sample> {
        let (mut lsn, mut micros) = (0, 0);
        let step = |(more_lsn, more_micros)| {
            lsn += more_lsn;
            micros += more_micros;
            Sample { lsn: Lsn(lsn), time: WallTime { unix_micros: micros }, after_gap: false }
        };
        steps.into_iter().map(step).collect()
    }

    proptest! {
        #[test]
        fn the_telling_few_say_what_all_say(
            steps in proptest::collection::vec((1u64..20, 0i64..20), 0..40),
            positions in proptest::collection::vec((0u64..500).prop_map(Lsn), 0..6),
        ) {
            let all = ring(steps);
            let few = telling(&all, positions.clone());
            prop_assert!(few.len() <= 2 * positions.len());
            for position in positions {
                prop_assert_eq!(lacking_since(&few, position), lacking_since(&all, position));
            }
        }
    }

    #[test]
    fn what_the_ring_forgot_is_at_latest() {
        let all = ring(vec![(10, 1), (10, 1), (10, 1)]);
        let at = |micros| WallTime { unix_micros: micros };
        assert_eq!(lacking_since(&all, Lsn(5)), Since::AtLatest(at(1)));
        assert_eq!(lacking_since(&all, Lsn(10)), Since::Exactly(at(2)));
        assert_eq!(lacking_since(&all, Lsn(30)), Since::Unknown);
    }

    #[test]
    fn what_was_written_while_nobody_looked_is_at_latest() {
        let mut all = ring(vec![(10, 1), (10, 100), (10, 1)]);
        all[1].after_gap = true;
        let at = |micros| WallTime { unix_micros: micros };
        assert_eq!(lacking_since(&all, Lsn(10)), Since::AtLatest(at(101)));
        assert_eq!(lacking_since(&all, Lsn(20)), Since::Exactly(at(102)));
    }
}
