//! How good a source of WAL another node would be; pure.

use crate::link::handshake::{self, Mismatch, Side};
use crate::link::message::{Hello, Purpose, Role};
use crate::pg::{Lsn, TimelineId};
use crate::store::FRAME_BYTES;

/// A source that is behind by no more than this is in step: it is the distance of a moment.
const IN_STEP_BYTES: u64 = FRAME_BYTES;

/// How good a source is; less is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fitness {
    /// What comes from it.
    pub supply: Supply,
    /// Whether it is wanted.
    pub preference: Preference,
}

/// What comes from a source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Supply {
    /// The primary's WAL, as it is written.
    Flowing,
    /// The same, once it has caught up with this node.
    Behind,
    /// No more than it has: it has no way to a primary.
    Dry,
}

/// Where a source stands in the order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Preference {
    /// At this place of the configured `upstream`.
    Listed(usize),
    /// The primary, where the configuration does not say so.
    Primary,
    /// Any other standby.
    Other,
}

/// Why a node is no source at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// The two do not belong together, or not in this direction.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    /// It no longer has what comes next, or never had.
    #[error(
        "WAL from {lsn} on timeline {timeline} is no longer in the store of {node}, which begins at {start}"
    )]
    Lacks {
        /// The node.
        node: String,
        /// The timeline that is needed.
        timeline: TimelineId,
        /// From where it is needed.
        lsn: Lsn,
        /// Where its store begins.
        start: Lsn,
    },
    /// Another node was promoted in its place.
    #[error("{node} was superseded as the primary")]
    Superseded {
        /// The node.
        node: String,
    },
    /// It is joining.
    #[error("{node} has no WAL yet")]
    Empty {
        /// The node.
        node: String,
    },
    /// Nobody asked for it, and it has no way to a primary and no more WAL than this node.
    #[error("{node} has no way to a primary, and no more WAL than this node")]
    NothingMore {
        /// The node.
        node: String,
    },
}

/// Judges a node by what it says of itself. `need` is the end of this node's WAL; `listed` the place in the
/// configured `upstream` where the other was found.
pub fn judge(
    ours: &Hello,
    need: Option<(TimelineId, Lsn)>,
    theirs: &Hello,
    listed: Option<usize>,
) -> Result<Fitness, Unfit> {
    let asking = Hello { purpose: Purpose::Stream, ..ours.clone() };
    let answering = Hello { purpose: Purpose::Stream, ..theirs.clone() };
    handshake::check(&asking, &answering, None, Side::Dialling)
        .map_err(|mismatch| Unfit::Mismatch(mismatch.into()))?;
    if theirs.role == Role::Superseded {
        return Err(Unfit::Superseded { node: theirs.node.clone() });
    }
    let distance = match need {
        Some((timeline, lsn)) => distance(theirs, timeline, lsn)?,
        None => Distance::Ahead,
    };
    let preference = match listed {
        Some(place) => Preference::Listed(place),
        None if theirs.role == Role::Primary => Preference::Primary,
        None => Preference::Other,
    };
    let supply = match distance {
        _ if theirs.role != Role::Primary && !theirs.route.from_primary => Supply::Dry,
        Distance::Behind => Supply::Behind,
        Distance::InStep | Distance::Ahead => Supply::Flowing,
    };
    // Following it would gain nothing, and where everybody is cut off the nodes would only follow each other.
    if supply == Supply::Dry && preference == Preference::Other && distance != Distance::Ahead {
        return Err(Unfit::NothingMore { node: theirs.node.clone() });
    }
    Ok(Fitness { supply, preference })
}

/// Where a source is, seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Distance {
    Ahead,
    InStep,
    Behind,
}

/// Whether what comes after `lsn` of `timeline` is there, or will be. Whether what lies past the end of an old timeline
/// may be cut off is not known before the streams meet.
fn distance(theirs: &Hello, timeline: TimelineId, lsn: Lsn) -> Result<Distance, Unfit> {
    let node = || theirs.node.clone();
    let (Some(newest), Some(at), Some(kept)) = (theirs.timelines.last(), theirs.positions, theirs.kept)
    else {
        return Err(Unfit::Empty { node: node() });
    };
    if newest.timeline < timeline {
        return Ok(Distance::Behind);
    }
    let next = theirs.timelines.iter().find(|next| next.parent == Some(timeline));
    let first = match next.filter(|next| lsn >= next.switch_lsn) {
        Some(next) => (next.timeline, next.switch_lsn),
        None => (timeline, lsn),
    };
    // A store that was begun later does not know the timeline at all.
    let is_known = theirs.timelines.iter().any(|identity| identity.timeline == timeline);
    if !is_known || first < (kept.timeline, kept.start_lsn) {
        return Err(Unfit::Lacks { node: node(), timeline, lsn, start: kept.start_lsn });
    }
    Ok(match at.written_lsn {
        _ if newest.timeline > timeline => Distance::Ahead,
        end if end > lsn => Distance::Ahead,
        end if end + IN_STEP_BYTES >= lsn => Distance::InStep,
        _ => Distance::Behind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::{Positions, Route, StoreStart, TimelineIdentity};

    const ONE: TimelineId = TimelineId(1);
    const MIB: u64 = 1 << 20;

    fn timeline(number: u32, switch_lsn: u64) -> TimelineIdentity {
        let parent = (number > 1).then(|| TimelineId(number - 1));
        TimelineIdentity { timeline: TimelineId(number), parent, switch_lsn: Lsn(switch_lsn), branch: None }
    }

    /// A node with WAL of its newest timeline from `start` to `end`.
    fn node(name: &str, role: Role, timelines: &[TimelineIdentity], start: u64, end: u64) -> Hello {
        let newest = timelines.last().unwrap().timeline;
        let route = match role {
            Role::Primary => Route::of_primary(name),
            _ => Route::of_primary("db1").below(name).unwrap(),
        };
        Hello {
            timelines: timelines.to_vec(),
            positions: Some(Positions {
                timeline: newest,
                written_lsn: Lsn(end),
                flushed_lsn: Lsn(end),
                replayed_lsn: Lsn(end),
                restartpoint_lsn: Lsn::INVALID,
            }),
            kept: Some(StoreStart { timeline: timelines[0].timeline, start_lsn: Lsn(start) }),
            route,
            ..Hello::of_stranger(name.into(), role, Purpose::Ask)
        }
    }

    fn primary() -> Hello {
        node("db1", Role::Primary, &[timeline(1, 0)], MIB, 20 * MIB)
    }

    fn standby(end: u64) -> Hello {
        node("db2", Role::Standby, &[timeline(1, 0)], MIB, end)
    }

    /// How a standby at `end` of timeline 1 judges a node.
    fn at(end: u64, theirs: &Hello, listed: Option<usize>) -> Result<Fitness, Unfit> {
        let ours = Hello { node: "db3".into(), route: Route::alone("db3"), ..standby(end) };
        judge(&ours, Some((ONE, Lsn(end))), theirs, listed)
    }

    fn fitness(supply: Supply, preference: Preference) -> Result<Fitness, Unfit> {
        Ok(Fitness { supply, preference })
    }

    #[test]
    fn what_flows_comes_before_what_is_wanted() {
        let mut all = [
            Fitness { supply: Supply::Dry, preference: Preference::Listed(0) },
            Fitness { supply: Supply::Flowing, preference: Preference::Other },
            Fitness { supply: Supply::Behind, preference: Preference::Listed(0) },
            Fitness { supply: Supply::Flowing, preference: Preference::Primary },
            Fitness { supply: Supply::Flowing, preference: Preference::Listed(1) },
            Fitness { supply: Supply::Flowing, preference: Preference::Listed(0) },
        ];
        all.reverse();
        all.sort();
        let order: Vec<_> = all.iter().map(|fitness| (fitness.supply, fitness.preference)).collect();
        assert_eq!(order[0], (Supply::Flowing, Preference::Listed(0)));
        assert_eq!(order[2], (Supply::Flowing, Preference::Primary));
        assert_eq!(order[4], (Supply::Behind, Preference::Listed(0)));
    }

    #[test]
    fn a_node_is_judged_by_its_way_and_its_place() {
        let end = 10 * MIB;
        assert_eq!(at(end, &primary(), None), fitness(Supply::Flowing, Preference::Primary));
        assert_eq!(at(end, &primary(), Some(1)), fitness(Supply::Flowing, Preference::Listed(1)));
        assert_eq!(at(end, &standby(end), None), fitness(Supply::Flowing, Preference::Other));
        let a_moment = standby(end - IN_STEP_BYTES);
        assert_eq!(at(end, &a_moment, Some(0)), fitness(Supply::Flowing, Preference::Listed(0)));
        let behind = standby(end - IN_STEP_BYTES - 1);
        assert_eq!(at(end, &behind, Some(0)), fitness(Supply::Behind, Preference::Listed(0)));
    }

    #[test]
    fn one_that_was_superseded_is_none() {
        let theirs = Hello { role: Role::Superseded, ..primary() };
        assert!(matches!(at(10 * MIB, &theirs, Some(0)), Err(Unfit::Superseded { .. })));
    }

    #[test]
    fn without_a_way_only_the_wanted_and_those_ahead_are_followed() {
        let alone = |end| Hello { route: Route::alone("db2"), ..standby(end) };
        let end = 10 * MIB;
        assert_eq!(at(end, &alone(end), Some(0)), fitness(Supply::Dry, Preference::Listed(0)));
        assert_eq!(at(end, &alone(end + 1), None), fitness(Supply::Dry, Preference::Other));
        assert!(matches!(at(end, &alone(end), None), Err(Unfit::NothingMore { .. })));
        let through_us = Route::alone("db3").below("db2").unwrap();
        let circle = Hello { route: through_us, ..standby(end + 1) };
        assert!(
            matches!(at(end, &circle, Some(0)), Err(Unfit::Mismatch(why)) if why.to_string().contains("through it"))
        );
    }

    #[test]
    fn what_is_gone_is_told_from_what_is_over() {
        assert!(matches!(at(MIB - 1, &primary(), None), Err(Unfit::Lacks { start: Lsn(MIB), .. })));
        assert_eq!(at(MIB, &primary(), None), fitness(Supply::Flowing, Preference::Primary));

        let promoted = |timelines: &[TimelineIdentity]| node("db1", Role::Primary, timelines, MIB, 20 * MIB);
        let both = promoted(&[timeline(1, 0), timeline(2, 10 * MIB)]);
        assert_eq!(at(10 * MIB, &both, None), fitness(Supply::Flowing, Preference::Primary));
        assert_eq!(at(10 * MIB + 1, &both, None), fitness(Supply::Flowing, Preference::Primary));
        // Nothing may be left of the old timeline, for one that has all of it.
        let mut trimmed = both.clone();
        trimmed.kept = Some(StoreStart { timeline: TimelineId(2), start_lsn: Lsn(10 * MIB) });
        assert!(at(10 * MIB, &trimmed, None).is_ok());
        assert!(matches!(at(10 * MIB - 1, &trimmed, None), Err(Unfit::Lacks { .. })));
        trimmed.kept = Some(StoreStart { timeline: TimelineId(2), start_lsn: Lsn(11 * MIB) });
        assert!(matches!(at(10 * MIB, &trimmed, None), Err(Unfit::Lacks { .. })));
        // One that joined after the promotion has nothing from before it.
        let later = promoted(&[timeline(2, 10 * MIB)]);
        assert!(matches!(at(10 * MIB, &later, None), Err(Unfit::Lacks { .. })));
        let much_later = promoted(&[timeline(3, 15 * MIB)]);
        assert!(matches!(at(10 * MIB, &much_later, None), Err(Unfit::Lacks { .. })));

        let ours = Hello { timelines: both.timelines.clone(), ..standby(12 * MIB) };
        let older = judge(&ours, Some((TimelineId(2), Lsn(12 * MIB))), &primary(), None);
        assert_eq!(older, fitness(Supply::Behind, Preference::Primary));
        let empty = Hello { timelines: Vec::new(), positions: None, kept: None, ..standby(MIB) };
        assert!(matches!(at(MIB, &empty, Some(0)), Err(Unfit::Empty { .. })));
        assert!(judge(&ours, None, &primary(), None).is_ok(), "an empty store takes what comes");
    }
}
