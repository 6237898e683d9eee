//! One policy over the positions of this moment.

use super::Standing;
use crate::pg::{Level, Levels, Lsn};
use crate::policy::{Policy, Resolved};

/// What a policy releases while `primary` is the primary and has fsynced up to `durable` itself; `None` when it releases
/// nothing beyond what was released before.
pub fn released(
    policy: &Resolved,
    primary: &str,
    durable: Lsn,
    standing: impl Fn(&str) -> Option<Standing>,
) -> Option<Levels<Lsn>> {
    let (others, needed) = (policy.others(primary), policy.needed(primary));
    if policy.policy == Policy::Async {
        return Some(Levels::all(durable));
    }
    let counting: Vec<Standing> = match policy.policy {
        Policy::First { .. } => first(&others, needed, &standing).into_iter().filter_map(standing).collect(),
        // A position is a fact, whether its node is there or not.
        _ => others.into_iter().filter_map(standing).collect(),
    };
    if counting.len() < needed {
        return None;
    }
    Some(Levels::of(|level| nth_best(&counting, needed, level)))
}

/// The first so many of a list that are connected and in step.
pub(super) fn first<'a>(
    others: &[&'a str],
    needed: usize,
    standing: impl Fn(&str) -> Option<Standing>,
) -> Vec<&'a str> {
    let in_step = |name: &&&str| standing(name).is_some_and(|at| at.is_connected && at.is_in_step);
    others.iter().filter(in_step).take(needed).copied().collect()
}

/// The position that so many have reached.
fn nth_best(standings: &[Standing], needed: usize, level: Level) -> Lsn {
    let mut positions: Vec<Lsn> = standings.iter().map(|standing| *standing.at.get(level)).collect();
    positions.sort_unstable_by(|one, two| two.cmp(one));
    needed.checked_sub(1).and_then(|index| positions.get(index)).copied().unwrap_or(Lsn::INVALID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::StallLimit;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NAMES: [&str; 4] = ["db1", "db2", "db3", "db4"];

    fn policy(text: &str) -> Resolved {
        Resolved::new(1, text.parse().unwrap(), StallLimit(None), &NAMES.map(str::to_owned))
    }

    fn standing(write: u64, flush: u64, apply: u64) -> Standing {
        let at = Levels { write: Lsn(write), flush: Lsn(flush), apply: Lsn(apply) };
        Standing { at, is_connected: true, is_in_step: true, is_copying: false }
    }

    /// db2 is ahead in its store, db3 in its replay; db4 is far behind in both.
    fn standings() -> BTreeMap<String, Standing> {
        let all =
            [("db2", standing(90, 80, 20)), ("db3", standing(70, 60, 50)), ("db4", standing(30, 30, 10))];
        all.map(|(name, standing)| (name.to_owned(), standing)).into()
    }

    fn released_at(policy: &Resolved, standings: &BTreeMap<String, Standing>) -> Option<Levels<Lsn>> {
        released(policy, "db1", Lsn(100), |name| standings.get(name).copied())
    }

    fn released_by(text: &str, standings: &BTreeMap<String, Standing>) -> Option<[u64; 3]> {
        let released = released_at(&policy(text), standings);
        released.map(|at| [at.write.0, at.flush.0, at.apply.0])
    }

    #[test]
    fn each_policy_releases_what_it_says_at_each_level_by_itself() {
        for (text, expected) in [
            ("async", Some([100, 100, 100])),
            ("any 1 (*)", Some([90, 80, 50])),
            ("any 2 (*)", Some([70, 60, 20])),
            ("any 3 (*)", Some([30, 30, 10])),
            ("all", Some([30, 30, 10])),
            ("any 1 (db3, db4)", Some([70, 60, 50])),
            ("first 1 (db2, db3)", Some([90, 80, 20])),
            ("first 1 (db3, db2)", Some([70, 60, 50])),
            ("first 2 (db3, db2, db4)", Some([70, 60, 20])),
            ("chain (db2, db3)", Some([70, 60, 50])),
            ("chain (db3, db4, db2)", Some([90, 80, 20])),
            // Whoever is not known has nothing.
            ("any 1 (db9)", None),
            ("any 2 (db2, db9)", None),
            ("any 4 (*)", None),
        ] {
            assert_eq!(released_by(text, &standings()), expected, "{text}");
        }
    }

    #[test]
    fn only_first_minds_who_is_there() {
        let mut standings = standings();
        for standing in standings.values_mut() {
            standing.is_connected = false;
        }
        assert_eq!(released_by("any 1 (*)", &standings), Some([90, 80, 50]));
        assert_eq!(released_by("all", &standings), Some([30, 30, 10]));
        assert_eq!(released_by("chain (db2, db3)", &standings), Some([70, 60, 50]));
        assert_eq!(released_by("first 1 (db2, db3)", &standings), None);
        let be = |standings: &mut BTreeMap<String, Standing>, name: &str, is_connected, is_in_step| {
            let standing = standings.get_mut(name).unwrap();
            (standing.is_connected, standing.is_in_step) = (is_connected, is_in_step);
        };
        be(&mut standings, "db3", true, true);
        assert_eq!(
            released_by("first 1 (db2, db3)", &standings),
            Some([70, 60, 50]),
            "the next takes its place"
        );
        be(&mut standings, "db2", true, false);
        assert_eq!(released_by("first 1 (db2, db3)", &standings), Some([70, 60, 50]), "it catches up first");
        be(&mut standings, "db2", true, true);
        assert_eq!(
            released_by("first 1 (db2, db3)", &standings),
            Some([90, 80, 20]),
            "and is back in its place"
        );
    }

    #[test]
    fn the_primary_itself_never_counts() {
        let mut standings = standings();
        standings.insert("db1".to_owned(), standing(99, 99, 99));
        assert_eq!(released_by("any 1 (*)", &standings), Some([90, 80, 50]));
        assert_eq!(released_by("all", &standings), Some([30, 30, 10]));
        assert_eq!(released_by("any 1 (db1)", &standings), None);
    }

    fn random_standings() -> impl Strategy<Value = BTreeMap<String, Standing>> {
        let one = (0u64..50, 0u64..50, 0u64..50, any::<bool>(), any::<bool>());
        let one = one.prop_map(|(write, flush, apply, is_connected, is_in_step)| Standing {
            is_connected,
            is_in_step,
            ..standing(write, flush, apply)
        });
        let names = prop::sample::select(&NAMES[1..]).prop_map(str::to_owned);
        prop::collection::btree_map(names, one, 0..4)
    }

    const POLICIES: [&str; 9] = [
        "any 1 (*)",
        "any 2 (*)",
        "any 3 (*)",
        "all",
        "any 1 (db3, db4)",
        "first 1 (db2, db3)",
        "first 2 (db4, db3, db2)",
        "chain (db2, db4)",
        "any 2 (db2, db4)",
    ];

    proptest! {
        /// The promise itself: what is released is held by so many of those that count.
        #[test]
        fn what_is_released_is_held_by_as_many_as_are_waited_for(
            text in prop::sample::select(&POLICIES[..]),
            standings in random_standings(),
        ) {
            let policy = policy(text);
            let Some(at) = released_at(&policy, &standings) else { return Ok(()) };
            let others = policy.others("db1");
            for level in Level::ALL {
                let holds = |name: &&str| standings.get(*name).is_some_and(|it| it.at.get(level) >= at.get(level));
                let holders = others.iter().filter(|name| holds(name)).count();
                prop_assert!(!at.get(level).is_valid() || holders >= policy.needed("db1"), "{text} {level:?}");
            }
        }

        /// And no more is waited for than that.
        #[test]
        fn what_as_many_hold_is_released(
            text in prop::sample::select(&POLICIES[..5]),
            standings in random_standings(),
        ) {
            let policy = policy(text);
            let at = released_at(&policy, &standings).unwrap_or_default();
            for (level, lsn) in Level::ALL.into_iter().flat_map(|level| (1..50).map(move |lsn| (level, Lsn(lsn)))) {
                let others = policy.others("db1");
                let holds = |name: &&str| standings.get(*name).is_some_and(|it| *it.at.get(level) >= lsn);
                let holders = others.iter().filter(|name| holds(name)).count();
                prop_assert!(holders < policy.needed("db1") || *at.get(level) >= lsn, "{text} {level:?} {lsn}");
            }
        }

        #[test]
        fn a_member_that_advances_never_holds_anything_back(
            text in prop::sample::select(&POLICIES[..]),
            standings in random_standings(),
            name in prop::sample::select(&NAMES[1..]),
            more in 0u64..20,
        ) {
            let before = released_at(&policy(text), &standings);
            let mut further = standings;
            if let Some(standing) = further.get_mut(name) {
                standing.at = Levels::of(|level| *standing.at.get(level) + more);
            }
            let after = released_at(&policy(text), &further);
            for level in Level::ALL {
                prop_assert!(after.map(|at| *at.get(level)) >= before.map(|at| *at.get(level)));
            }
        }
    }
}
